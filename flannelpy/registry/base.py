"""The Registry protocol: a small store of leases, with versions, lifetimes and a history.

The protocol has create-if-absent, compare-and-swap, TTL and cursor, and names no product.  Names are relative: a lease
is ``11.0.101.0-24``, not ``/coreos.com/network/subnets/11.0.101.0-24``.

A *snapshot* is the full state, *changes* are a delta; they are different types, so an empty delta can never be taken
for an empty store.  A *cursor* is the position from which a watch continues: ``watch(snapshot.cursor)`` misses nothing
that happened after the snapshot, ``watch(changes.cursor)`` nothing after the changes.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from flannelpy.report import StoreReport


class Schema(enum.Enum):
    """Which originals share a store with flannelpy: the JSON of a lease and the rules of the config differ.

    ``V2``: flanneld up to v0.17, whose leases are in etcd v2.  ``V3``: flanneld from v0.18 on, in etcd v3.
    """

    V2 = "2"
    V3 = "3"


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Whether an entry expires unless it is renewed, and in how many seconds, if the store tells (None: it does not).

    etcd v3 tells the seconds only of an entry that this host has just written or renewed.
    """

    expires: bool
    seconds: int | None = None


PERMANENT = Lifetime(expires=False)
EXPIRES = Lifetime(expires=True)


def expires_in(seconds: int) -> Lifetime:
    """Return the lifetime of an entry that expires in ``seconds``."""
    return Lifetime(True, seconds)


class KeyValue(NamedTuple):
    """One key below ``subnets``: its relative name, value, lifetime, version and creation.

    ``version`` grows with every write.  ``created`` is the version of the write that created the key: a smaller number
    means an earlier creation.  ``compare_and_swap`` keeps it; a key that is deleted and created again gets a new one.
    """

    name: str
    value: str
    lifetime: Lifetime
    version: int
    created: int


class Snapshot(NamedTuple):
    """Everything below ``subnets``, or one entry of it, at one moment."""

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

    @property
    def schema(self) -> Schema:
        """The schema of config and leases.  Known once ``read_config`` has returned."""

    @property
    def relist_seconds(self) -> float:
        """A watch without events for this long is replaced by a new snapshot, because the store may hide a loss."""

    def store_reports(self) -> tuple[StoreReport, ...]:
        """Return when the store answered last; second, the same of a store that holds this host's lease as well."""

    async def read_config(self) -> str:
        """Return the network config as stored.  Raises KeyNotFound."""

    async def wait_for_config_change(self, seconds: float) -> None:
        """Return when the config may differ from the one that ``read_config`` returned last.

        A store whose watch reports changes of the config returns after such a change.  If no ``read_config`` has
        succeeded since then, and in any other store, it returns after ``seconds``.  Raises nothing.
        """

    async def snapshot(self, is_wanted: Callable[[str], bool] = all_names) -> Snapshot:
        """Return all entries whose names are wanted, and the cursor from which a watch continues.

        The snapshot may contain some unwanted entries, perhaps with empty values, so that the caller can report them.
        Without any lease, the snapshot is empty.
        """

    async def snapshot_of(self, name: str) -> Snapshot:
        """Return the entry ``name``, if there is one, and the cursor.  The number of other entries costs nothing."""

    async def create(self, name: str, value: str, lease_ttl: int) -> KeyValue:
        """Create ``name`` if absent, for ``lease_ttl`` seconds, at least one.

        Raises KeyExists if another host has created ``name``, never for a lost reply to this call.
        """

    async def compare_and_swap(self, name: str, value: str, lease_ttl: int | None, version: int) -> KeyValue:
        """Replace value and lifetime (None: no end) if still at ``version``.  Raises CompareFailed, KeyNotFound."""

    async def renew(self, name: str, value: str, lease_ttl: int, version: int) -> KeyValue:
        """Extend the lifetime of ``name``, which holds ``value``, to ``lease_ttl`` seconds if it is at ``version``.

        Whether the version changes and a watch reports the renewal depends on the store.  A permanent entry stays
        permanent.  Raises CompareFailed, KeyNotFound.
        """

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
