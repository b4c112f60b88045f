"""Find mistakes that the unit tests would miss: change the code in one place at a time, and run its tests.

usage: mutate.py [--count=300] [--seed=N] [--only=REGEX] [--jobs=2]

The mutants are drawn by a seed, which is printed.  Each is tested in a copy of the tree; those that pass are listed.
The tests run changed code with your rights: as root, use namespaces of their own (``unshare --mount --net``).
``--only`` selects the mutants whose description matches, such as ``daemon.py:1[0-9]+`` or "kernel_entries.py.*lock".
"""

from __future__ import annotations

import argparse
import ast
import compileall
import copy
import itertools
import os
import py_compile
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
SECONDS = 120
#: The tests of each part, besides those that name the mutated module.
TESTS = {
    "flannelpy/subnet/": ("lease_table", "lease_policy", "config", "lease"),
    "flannelpy/leasing/": ("acquire", "claim", "react", "renew", "watch", "lease_policy", "subnet_file"),
    "flannelpy/datapath/": ("engine", "routes", "proxy", "udp_backend"),
    "flannelpy/backend/udp/": ("udp_backend", "proxy", "sender_queues"),
    "flannelpy/backend/": (
        "kernel_entries",
        "repair_loop",
        "host_gw",
        "vxlan",
        "udp_backend",
        "network",
        "route_check",
    ),
    "flannelpy/network.py": ("network", "daemon"),
    "flannelpy/commands/daemon.py": ("daemon", "network"),
    "flannelpy/host/": ("resources", "firewall"),
    "flannelpy/netfilter/": ("ruleset", "network_rules", "firewall"),
    "flannelpy/linux/systemd.py": ("systemd_notify",),
}
_SWAPS: dict[type[ast.AST], Any] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
    ast.Break: ast.Continue, ast.Continue: ast.Break,
}  # fmt: skip
_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_NAMES = {"any": "all", "all": "any", "min": "max", "max": "min", "sorted": "list"}


class Mutant(NamedTuple):
    """One file with one change."""

    path: str
    line: int
    what: str
    place: int  # of the node, as ast.walk comes to it
    change: Callable[[ast.AST, ast.AST], str]

    def source(self) -> str:
        """Return the changed file."""
        tree = ast.parse((ROOT / self.path).read_text())
        self.change(tree, next(itertools.islice(ast.walk(tree), self.place, None)))
        return ast.unparse(tree)

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}"


def mutants(path: Path) -> Iterator[Mutant]:
    """All of one file."""
    name = str(path.relative_to(ROOT))
    tree = ast.parse(path.read_text())
    types = {id(node) for annotation in _annotations(tree) for node in ast.walk(annotation)}
    for index, node in enumerate(ast.walk(tree)):
        if id(node) in types or not isinstance(node, ast.stmt | ast.expr) or isinstance(node, _DEFINITIONS):
            continue
        for change in (_change, _negate):
            if what := change(tree, copied := copy.deepcopy(node)):
                if ast.dump(copied) == ast.dump(node) and what == "returns None":
                    continue
                yield Mutant(name, node.lineno, f"{what}: {ast.unparse(node).splitlines()[0][:90]}", index, change)


def _annotations(tree: ast.AST) -> Iterator[ast.AST]:
    """Return what names types, and does not run."""
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            if isinstance(found := getattr(node, field, None), ast.AST):
                yield found


def _change(tree: ast.AST, node: ast.AST) -> str:
    """Change this node in place.  Returns what was done, nothing if there is nothing to change."""
    match node:
        case ast.Constant(value=bool(value)):
            node.value = not value
            return f"{value} became {node.value}"
        case ast.Constant(value=int(value) | float(value)):
            node.value = value + 1
            return f"{value} became {node.value}"
        case ast.Name(id=name) if name in _NAMES:
            node.id = _NAMES[name]
            return f"{name} became {node.id}"
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return _replace(tree, node, operand, "not was removed")
        case ast.Return(value=ast.expr()):
            node.value = ast.Constant(None)
            return "returns None"
        case ast.Raise() | ast.Expr(value=ast.Call() | ast.Await()) | ast.AugAssign() | ast.Delete():
            return _replace(tree, node, ast.Pass(), "was removed")
        case ast.AsyncWith(items=[ast.withitem(context_expr=ast.Attribute())], body=body):
            return _replace(tree, node, ast.If(ast.Constant(True), body, []), "the lock was removed")
    return _swap(node)


def _negate(_: ast.AST, node: ast.AST) -> str:
    if isinstance(node, ast.If | ast.While | ast.IfExp) and not isinstance(node.test, ast.Constant):
        node.test = ast.UnaryOp(ast.Not(), node.test)
        return "condition was negated"
    return ""


def _swap(node: ast.AST) -> str:
    """Another operator; the parser has all operators of one kind as one object."""
    old: ast.AST | None = None
    if isinstance(node, ast.Compare):
        old, node.ops[0] = node.ops[0], _SWAPS[type(node.ops[0])]()
    elif isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in _SWAPS:
        old, node.op = node.op, _SWAPS[type(node.op)]()
    return f"{type(old).__name__} was swapped" if old else ""


def _replace(tree: ast.AST, old: ast.AST, new: ast.AST, what: str) -> str:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
            if isinstance(value, list) and any(each is old for each in value):
                value[[each is old for each in value].index(True)] = new
    return what


def tests_of(path: str) -> list[str]:
    """The unit tests that should notice a change of this file: its part's, and all that name the module."""
    part = next(part for part in TESTS if path.startswith(part))
    module = path.removesuffix(".py").replace("/", ".")
    package, _, stem = module.rpartition(".")
    names = re.compile(rf"{re.escape(module)}\b|from {re.escape(package)} import .*\b{stem}\b")
    found = [test for test in sorted((ROOT / "tests/unit").rglob("test_*.py")) if names.search(test.read_text())]
    first = [path for name in TESTS[part] for path in (ROOT / "tests/unit").rglob(f"test_{name}.py")]
    return [str(test.relative_to(ROOT)) for test in dict.fromkeys((*found, *first)) if test.exists()]


def survives(mutant: Mutant, tree: Path) -> bool:
    """Whether all tests pass with it, in this copy of the tree."""
    original = (tree / mutant.path).read_text()
    (tree / mutant.path).write_text(mutant.source())
    try:
        return passes(tests_of(mutant.path), tree, PYTHONDONTWRITEBYTECODE="1")
    finally:
        (tree / mutant.path).write_text(original)


def passes(tests: Sequence[str], tree: Path, seconds: float = SECONDS, **variables: str) -> bool:
    """Whether the tests pass in this copy of the tree in time."""
    argv = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not timed", *tests]
    env = {**os.environ, "CI": "1", **variables}
    quiet = subprocess.DEVNULL
    with subprocess.Popen(argv, cwd=tree, env=env, stdout=quiet, stderr=quiet, start_new_session=True) as process:
        try:
            return process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            return False


def copy_tree(tree: Path, tests: Sequence[str]) -> None:
    """Copy what the tests need, with bytecode files, and check that they pass without a mutant.

    Python compares the bytecode of a module with the hash of its source, since a mutant may have the size and the
    second of the original.  Raises SystemExit if a test fails: it would count every mutant as noticed.
    """
    for name in ("flannelpy", "tests", "scripts", "docs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile"):
        shutil.copy(ROOT / name, tree)
    compileall.compile_dir(tree / "flannelpy", quiet=1, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if not passes(tests, tree, 10 * SECONDS):
        sys.exit(f"without a mutant, a test fails in a copy of the tree: pytest -x {' '.join(tests)}")


def draw(options: argparse.Namespace) -> list[Mutant]:
    """Those to be tested."""
    sources = [
        path
        for name in ("subnet", "leasing", "datapath", "backend")
        for path in (ROOT / "flannelpy" / name).rglob("*.py")
    ]
    sources += [ROOT / "flannelpy" / name for name in ("network.py", "commands/daemon.py")]
    if options.only:
        sources += [path for name in ("host", "netfilter") for path in (ROOT / "flannelpy" / name).rglob("*.py")]
        sources += [ROOT / "flannelpy/linux/systemd.py"]
        return [one for path in sources for one in mutants(path) if re.search(options.only, str(one))]
    found = [one for path in sorted(sources) for one in mutants(path)]
    print(f"seed {options.seed}, {options.count} of {len(found)} mutants", flush=True)
    return random.Random(options.seed).sample(found, min(options.count, len(found)))


def run(chosen: Sequence[Mutant], jobs: int) -> list[Mutant]:
    """Return the survivors, which are printed as they are found."""
    with tempfile.TemporaryDirectory() as temporary:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(jobs):
            tree = Path(temporary) / str(number)
            copy_tree(tree, sorted({test for mutant in chosen for test in tests_of(mutant.path)}))
            trees.put(tree)

        def test(mutant: Mutant) -> bool:
            tree = trees.get()
            try:
                if survived := survives(mutant, tree):
                    print(mutant, flush=True)
                return survived
            finally:
                trees.put(tree)

        with ThreadPoolExecutor(jobs) as workers:
            return [mutant for mutant, survived in zip(chosen, workers.map(test, chosen), strict=True) if survived]


def main() -> None:
    """Draw, test, list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    chosen = draw(options)
    print(f"{len(run(chosen, options.jobs))} of {len(chosen)} survived")


if __name__ == "__main__":
    main()
