"""Where leases are kept, seen from above: a small store with versions, lifetimes and a history.

Speaks of create-if-absent, compare-and-swap, TTL and cursor, never of a product.  Names are relative: a lease is
``11.0.101.0-24``, not ``/coreos.com/network/subnets/11.0.101.0-24``.

A *snapshot* is the full state, *changes* are a delta; they are different types, so an empty delta can never be taken
for an empty store.  A *cursor* says where the watch goes on: ``watch(snapshot.cursor)`` misses nothing that happened
after the snapshot, ``watch(changes.cursor)`` nothing after the changes.
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
    """An entry was deleted, has expired, or made way for something that is no entry.  There may have been none."""

    name: str


class Changes(NamedTuple):
    """What happened since a cursor, oldest first.

    Empty when nothing did before the time-out; or earlier, with a cursor further on, when only other things happened.
    """

    changes: tuple[Put | Deleted, ...]
    cursor: int
    #: How much more has happened in the store meanwhile, as far as it says: where that is much, a snapshot is shorter.
    behind: int = 0


def all_names(_: str) -> bool:
    """Wants the entries of every name."""
    return True


class Registry(Protocol):
    """A store of one network's config and leases.

    Raises, in every call: RegistryUnavailable when no endpoint gave an answer that can be used.
    """

    async def read_config(self) -> str:
        """The network config as stored.  Raises KeyNotFound."""

    async def snapshot(self, is_wanted: Callable[[str], bool] = all_names) -> Snapshot:
        """All entries whose names are wanted, and the cursor with which a watch continues.

        Of other entries there may be some, perhaps with an empty value, so that they can be reported.  No leases yet
        is an empty snapshot.
        """

    async def create(self, name: str, value: str, lease_ttl: int) -> KeyValue:
        """Create ``name`` if absent, for at least a second.

        Raises: KeyExists when somebody else has it, never for our own lost reply.
        """

    async def compare_and_swap(self, name: str, value: str, lease_ttl: int | None, version: int) -> KeyValue:
        """Replace value and lifetime (None: for ever) if still at ``version``.  Raises CompareFailed, KeyNotFound."""

    async def compare_and_delete(self, name: str, version: int) -> None:
        """Delete ``name`` if still at ``version``.  Raises CompareFailed, KeyNotFound."""

    async def watch(self, cursor: int, timeout: float) -> Changes:
        """What happens from ``cursor`` on, waiting up to ``timeout`` seconds for it.

        What happens elsewhere in the store while a call waits, however much it is, hides nothing.

        Raises HistoryGone when the store has not come as far as ``cursor``, because it was wiped or restored, when it
        was replaced, or when the directory was removed; HistoryOverrun when only its memory is too short.
        """

    async def close(self) -> None:
        """End every pending call, which raises RegistryUnavailable; nothing may be called afterwards."""
