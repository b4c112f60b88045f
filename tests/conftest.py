"""Chooses the variants of a test that ``make test`` runs; ``make soak`` runs the others."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from zlib import crc32

import pytest


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark with ``soak`` the variants that the marks ``sample`` leave out.

    ``sample(argument, count)``: of the values of the argument, ``count`` remain, spread evenly.  Each test begins with
    another value, unless ``together`` is true: then all tests below the mark have the same values, as they must if a
    fixture of the module has them.  With LAB_DATAPATH, a single value remains: the tests run once more then.
    """
    values: dict[tuple[str, str], list[pytest.Function]] = defaultdict(list)
    for item, mark, owner in _sampled(items):
        values[owner, mark.args[0]].append(item)
    for item, mark, owner in _sampled(items):
        argument, count = mark.args
        count = 1 if "LAB_DATAPATH" in os.environ else count
        indices = sorted({_indices(each)[argument] for each in values[owner, argument]})
        first = crc32(owner.encode())
        kept = {indices[(first + number * len(indices) // count) % len(indices)] for number in range(count)}
        if _indices(item)[argument] not in kept:
            item.add_marker(pytest.mark.soak)


def _sampled(items: list[pytest.Item]) -> Iterator[tuple[pytest.Function, pytest.Mark, str]]:
    """Yield each variant with each of its marks, and the test or module among whose variants the mark chooses."""
    for item in items:
        for node, mark in item.iter_markers_with_node("sample"):
            if not isinstance(item, pytest.Function) or mark.args[0] not in _indices(item):
                continue  # another test of the module that has the mark
            together = mark.kwargs.get("together", False)
            yield item, mark, node.nodeid if together else item.nodeid.partition("[")[0]


def _indices(item: pytest.Function) -> dict[str, int]:
    """Return which of its values each argument of a variant has."""
    return dict(item.callspec.indices) if hasattr(item, "callspec") else {}
