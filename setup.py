"""Compiles the packet code.  Each extension is optional: without a compiler the plain Python sources run.

With FLANNELPY_SANITIZE=1, for `make sanitize`, the compiled code checks every access to a buffer, and is slow.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

# Their .pxd files declare constants, which the C compiler copies into the modules that use them.
CONSTANTS_ONLY = {"drops", "headers"}
PACKET_CODE = sorted(
    path
    for path in Path("flannelpy/packet").glob("*.py")
    if path.with_suffix(".pxd").exists() and path.stem not in CONSTANTS_ONLY
)

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
        for path in PACKET_CODE
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
    extension.optional = not SANITIZE  # cythonize drops this attribute

setup(ext_modules=extensions, options={"build_ext": {"parallel": True}})
