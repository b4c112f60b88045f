"""The Registry protocol: a small store of leases, with versions, lifetimes and a history.

The protocol has create-if-absent, compare-and-swap, TTL and cursor, and names no product.  Names are relative: a lease
is ``11.0.101.0-24``, not ``/coreos.com/network/subnets/11.0.101.0-24``.

A *snapshot* is the full state, *changes* are a delta; they are different types, so an empty delta can never be taken
for an empty store.  A *cursor* is the position from which a watch continues: ``watch(snapshot.cursor)`` misses nothing
that happened after the snapshot, ``watch(changes.cursor)`` nothing after the changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol


class KeyValue(NamedTuple):
    """One key below ``subnets``: its relative name, value, remaining seconds (None: no end), version and creation.

    ``version`` grows with every write.  ``created`` is the version of the write that created the key: a smaller number
    means an earlier creation.  ``compare_and_swap`` keeps it; a key that is deleted and created again gets a new one.
    """

    name: str
    value: str
    lease_ttl: int | None
    version: int
    created: int


class Snapshot(NamedTuple):
    """Everything below ``subnets`` at one moment."""

    entries: tuple[KeyValue, ...]
    cursor: int


class Put(NamedTuple):
    """An entry was created or given a new value."""

    entry: KeyValue


class Deleted(NamedTuple):
    """An entry was deleted, has expired, or was replaced by a directory.  There may have been no such entry."""

    name: str


class Changes(NamedTuple):
    """The changes since a cursor, oldest first.

    Empty if there were none before the time-out.  If only other keys changed, empty earlier, with an advanced cursor.
    """

    changes: tuple[Put | Deleted, ...]
    cursor: int
    #: Number of later changes that the store reports to hold already.  If it is large, a snapshot is cheaper.
    behind: int = 0


def all_names(_: str) -> bool:
    """Accept every name."""
    return True


class Registry(Protocol):
    """A store of one network's config and leases.

    Raises, from every call: RegistryUnavailable if no endpoint gave a usable answer.
    """

    async def read_config(self) -> str:
        """Return the network config as stored.  Raises KeyNotFound."""

    async def snapshot(self, is_wanted: Callable[[str], bool] = all_names) -> Snapshot:
        """Return all entries whose names are wanted, and the cursor from which a watch continues.

        The snapshot may contain some unwanted entries, perhaps with empty values, so that the caller can report them.
        Without any lease, the snapshot is empty.
        """

    async def create(self, name: str, value: str, lease_ttl: int) -> KeyValue:
        """Create ``name`` if absent, for ``lease_ttl`` seconds, at least one.

        Raises KeyExists if another host has created ``name``, never for a lost reply to this call.
        """

    async def compare_and_swap(self, name: str, value: str, lease_ttl: int | None, version: int) -> KeyValue:
        """Replace value and lifetime (None: no end) if still at ``version``.  Raises CompareFailed, KeyNotFound."""

    async def compare_and_delete(self, name: str, version: int) -> None:
        """Delete ``name`` if still at ``version``.  Raises CompareFailed, KeyNotFound."""

    async def watch(self, cursor: int, timeout: float) -> Changes:
        """Return the changes from ``cursor`` on, and wait up to ``timeout`` seconds for the first.

        Writes elsewhere in the store during the call hide no change, regardless of their number.

        Raises HistoryGone if the store is behind ``cursor`` (wiped or restored), if it was replaced, or if the
        directory was removed.  Raises HistoryOverrun if only the store's history is too short.
        """

    async def close(self) -> None:
        """End every pending call by RegistryUnavailable; the caller makes no further calls."""
