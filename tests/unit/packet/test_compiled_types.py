"""The .pxd files: they repeat the Python constants exactly, and leave no Python object in a compiled hot loop.

A name that a .pxd file lacks is a Python object in the compiled code, which stays correct and becomes silently slow.
Cython's annotation gives each source line a score for the Python calls that the line compiles to.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from Cython.Compiler.Main import compile as translate
from Cython.Compiler.Options import CompilationOptions

from flannelpy import packet
from flannelpy.packet import headers
from flannelpy.packet.drops import DropReason

DIRECTORY = Path(packet.__file__).parent
# As in setup.py, without its sanitizers.
DIRECTIVES = {
    "language_level": 3,
    "annotation_typing": False,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
}
#: Functions whose arguments or results are Python objects; each runs once for a batch, a train or a super-packet.
TAKE_OBJECTS = {
    "checksum": set[str](),
    "coalesce": {"__init__", "begin", "allow_sources", "_expected", "_close"},
    "group": {"__init__", "group", "_close"},
    "ipv4": set[str](),
    "segment": {"__init__"},
    "tally": {"__init__"},
}
# Cython checks that a typed memoryview is set before its use; no line's checks score more.
MEMORYVIEW_CHECKS = 10
_LINE = re.compile(r'class="cython line score-(\d+)"[^>]*>\+<span class="">0*(\d+)</span>')


def constants(pxd: str) -> dict[str, int]:
    """The members of the file's enumeration, by name."""
    body = (DIRECTORY / pxd).read_text().split("cdef enum", 1)[1].split(":\n", 1)[1]
    found: dict[str, int] = {}
    for name, value in re.findall(r"^    (\w+) = (.+)$", body, re.MULTILINE):
        found[name] = eval(value, {}, found)
    return found


def test_c_has_the_header_constants_of_python() -> None:
    assert constants("headers.pxd") == {name: value for name, value in vars(headers).items() if name.isupper()}


def test_c_has_the_drop_reasons_of_python() -> None:
    assert constants("drops.pxd") == {reason.name: reason.value for reason in DropReason}


def function_of_line(source: str) -> dict[int, str]:
    """The function that each line is in, by line number; signatures and docstrings are in none."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
            found.update(dict.fromkeys(range(node.body[0].lineno, node.end_lineno + 1), node.name))
    return found


@pytest.mark.parametrize("module", TAKE_OBJECTS)
def test_hot_functions_use_c_types_only(module: str, tmp_path: Path) -> None:
    source = DIRECTORY / f"{module}.py"
    output = tmp_path / f"{module}.c"
    options = {"annotate": "default", "output_file": str(output), "compiler_directives": DIRECTIVES}
    translate([str(source)], CompilationOptions(**options))  # type: ignore[no-untyped-call]
    scores = {int(line): int(score) for score, line in _LINE.findall(output.with_suffix(".html").read_text())}
    assert scores
    lines = source.read_text().splitlines()
    slow = [
        f"{source.name}:{line}: score {scores[line]}: {lines[line - 1].strip()}"
        for line, function in function_of_line("\n".join(lines)).items()
        if scores.get(line, 0) > MEMORYVIEW_CHECKS
        and function not in TAKE_OBJECTS[module]
        and ".append(" not in lines[line - 1]
    ]
    assert not slow
