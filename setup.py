"""Compiles the packet code.  Each extension is optional: without a compiler the plain Python sources run.

With FLANNELPY_SANITIZE=1 they are compiled, and slow, with a watch on every step beyond a buffer: for `make sanitize`.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

KERNELS = sorted(path for path in Path("flannelpy/packet").glob("*.py") if path.with_suffix(".pxd").exists())

SANITIZE = os.environ.get("FLANNELPY_SANITIZE") == "1"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
COMPILER_FLAGS = ["-O1", "-g", "-fno-omit-frame-pointer", *SANITIZERS] if SANITIZE else ["-O3"]

extensions = cythonize(
    [
        Extension(
            ".".join(path.with_suffix("").parts),
            [str(path)],
            extra_compile_args=COMPILER_FLAGS,
            extra_link_args=SANITIZERS if SANITIZE else [],
        )
        for path in KERNELS
    ],
    build_dir="build",
    compiler_directives={
        "language_level": 3,
        # The C types are those of the .pxd files; the annotations are the type checker's.
        "annotation_typing": False,
        "boundscheck": SANITIZE,
        "wraparound": False,
        "cdivision": True,
    },
)
for extension in extensions:
    extension.optional = not SANITIZE  # cythonize would not hand it on

setup(ext_modules=extensions)
