"""Compiles the packet kernels.  Each extension is optional: without a compiler the plain Python sources run."""

from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

KERNELS = sorted(path for path in Path("flannelpy/packet").glob("*.py") if path.with_suffix(".pxd").exists())

extensions = cythonize(
    [Extension(".".join(path.with_suffix("").parts), [str(path)], extra_compile_args=["-O3"]) for path in KERNELS],
    build_dir="build",
    compiler_directives={
        "language_level": 3,
        # The C types are those of the .pxd files; the annotations are the type checker's.
        "annotation_typing": False,
        "boundscheck": False,
        "wraparound": False,
        "cdivision": True,
    },
)
for extension in extensions:
    extension.optional = True  # cythonize would not hand it on

setup(ext_modules=extensions)
