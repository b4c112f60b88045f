"""Limits how much of foreign keys below ``subnets`` a snapshot keeps.

Other programs can write any number of keys there.  Some of them are kept without their values, to be reported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from flannelpy.registry.base import KeyValue

# Characters of the listing of unwanted keys that are kept; each key counts as a hundred more.
_MOST_UNWANTED = 200_000


class Reduction:
    """Reduces one snapshot, which may come in several parts; ``is_wanted`` tells by the name of an entry."""

    def __init__(self, is_wanted: Callable[[str], bool]) -> None:
        self._is_wanted = is_wanted
        self._left = _MOST_UNWANTED

    def of(self, entries: Iterable[KeyValue]) -> Iterator[KeyValue]:
        """Yield the wanted entries, and the first unwanted ones without their values."""
        for entry in entries:
            if self._is_wanted(entry.name):
                yield entry
            elif self._left > 0:
                self._left -= len(entry.name) + 100
                yield entry._replace(value="")
