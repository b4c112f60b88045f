"""-etcd-api=3 during a change-over: the lease of this host is in etcd v3 and, while v2 has a network config, in v2 too.

v3 is the store: config, snapshots and the watch come from it.  v2 has this host's lease as well, so that hosts that
still use v2 reach this host, and hosts of both kinds never lease one subnet twice:

* A lease is created in v2 first, where the create is atomic among all hosts, then in v3.
* It is renewed and released in both.  etcd v3 may grant more time than was asked for, and v2 does not, so the time
  that was asked for counts.
* If it is a reservation in either, it is one in both.
* If either store names another holder, it is given up in both.

A lease that ``flannelpy copy-to-v3`` has copied to v3 has its mark there.  A marked copy that names this host is this
host's lease, and is written over.  second_lease.py keeps the lease in v2.

Without a config in v2, v2 gets no request but those that find that out.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from flannelpy.errors import CompareFailed, KeyExists, KeyNotFound, RegistryError, RegistryUnavailable
from flannelpy.leasing.holder import is_held_by
from flannelpy.leasing.second_lease import SecondLease
from flannelpy.registry.base import Changes, KeyValue, Put, Registry, Snapshot, all_names, expires_in
from flannelpy.registry.entries import find, put

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flannelpy.registry.base import Schema
    from flannelpy.report import StoreReport
    from flannelpy.subnet.lease import HostIdentity

_WRITING = "the lease in etcd v2"


class BothStores:
    """The registry ``v3``, whose lease of the host ``host_identity`` is also in ``v2`` while v2 has a config.

    ``has_second_config``: whether v2 has one; None: not known yet.
    """

    def __init__(
        self, v3: Registry, v2: Registry, host_identity: HostIdentity, has_second_config: bool | None = None
    ) -> None:
        self._v3 = v3
        self._v2 = v2
        self._identity = host_identity
        self._second = SecondLease(v2, v3, host_identity, has_second_config)

    @property
    def schema(self) -> Schema:
        """The schema of v3, as Registry demands."""
        return self._v3.schema

    @property
    def relist_seconds(self) -> float:
        """The longest quiet watch of v3, as Registry demands."""
        return self._v3.relist_seconds

    def store_reports(self) -> tuple[StoreReport, ...]:
        """Return when v3 answered, and v2 if it has a config, as Registry demands."""
        return (*self._v3.store_reports(), *(self._v2.store_reports() if self._second.has_config else ()))

    async def read_config(self) -> str:
        """Read the network config, as Registry demands."""
        return await self._v3.read_config()

    async def wait_for_config_change(self, seconds: float) -> None:
        """Wait for a change, as Registry demands."""
        await self._v3.wait_for_config_change(seconds)

    async def snapshot(self, is_wanted: Callable[[str], bool] = all_names) -> Snapshot:
        """List the entries, as Registry demands.  A start waits here for v2, before it logs what it is about to do."""
        await self._is_second_wanted()
        snapshot = await self._v3.snapshot(is_wanted)
        for entry in snapshot.entries:
            await self._second.note(entry)
        return snapshot

    async def snapshot_of(self, name: str) -> Snapshot:
        """Read an entry, as Registry demands."""
        return await self._v3.snapshot_of(name)

    async def create(self, name: str, value: str, lease_ttl: int) -> KeyValue:
        """Create the lease in v2, then in v3, as Registry demands."""
        if not await self._is_second_wanted():
            entry = await self._v3.create(name, value, lease_ttl)
            self._second.hold(name, value, lease_ttl, None)
            return entry
        with _during(_WRITING):
            second = await self._second.create(name, value, lease_ttl)
        kept_ttl = lease_ttl if second.lifetime.expires else None
        try:
            entry = await self._create_first(name, value, kept_ttl)
        except RegistryError:
            await self._second.remove(second)
            raise
        self._second.hold(name, value, kept_ttl, second)
        return _no_longer_than(lease_ttl, entry)

    async def compare_and_swap(self, name: str, value: str, lease_ttl: int | None, version: int) -> KeyValue:
        """Replace the lease in v2, then in v3, as Registry demands."""
        if not await self._is_second_wanted():
            entry = await self._v3.compare_and_swap(name, value, lease_ttl, version)
            self._second.hold(name, value, lease_ttl, None)
            return entry
        first = await self._first_at(name, version)
        with _during(_WRITING):
            second = await self._second.write(first, value, lease_ttl)
        kept_ttl = lease_ttl if second.lifetime.expires else None
        entry = await self._v3.compare_and_swap(name, value, kept_ttl, version)
        self._second.hold(name, value, kept_ttl, second)
        return _no_longer_than(kept_ttl, entry)

    async def renew(self, name: str, value: str, lease_ttl: int, version: int) -> KeyValue:
        """Renew the lease in v3, as Registry demands; v2 follows as soon as it answers."""
        entry = await self._v3.renew(name, value, lease_ttl, version)
        if entry.lifetime.expires:
            self._second.renew(name, lease_ttl)
        return _no_longer_than(lease_ttl, entry) if self._second.has_config else entry

    async def compare_and_delete(self, name: str, version: int) -> None:
        """Delete the lease from v2, then from v3, as Registry demands."""
        if await self._is_second_wanted():
            await self._second.delete(await self._first_at(name, version))
        await self._v3.compare_and_delete(name, version)

    async def watch(self, cursor: int, timeout: float) -> Changes:
        """Return what happens in v3 from ``cursor`` on, as Registry demands."""
        self._second.check()
        changes = await self._v3.watch(cursor, timeout)
        for change in changes.changes:
            if isinstance(change, Put):
                await self._second.note(change.entry)
        return changes

    async def close(self) -> None:
        """Close both registries, as Registry demands."""
        self._second.close()
        await self._v2.close()
        await self._v3.close()

    async def _is_second_wanted(self) -> bool:
        with _during("etcd v2, which may have a network config"):
            return await self._second.is_wanted()

    async def _create_first(self, name: str, value: str, lease_ttl: int | None) -> KeyValue:
        """Create the lease in v3, or write over one of this host, such as a copy.  Raises KeyExists."""
        try:
            return await put(self._v3, name, value, lease_ttl, None)
        except KeyExists:
            found = await find(self._v3, name)
            if found and is_held_by(self._identity, found.value):
                return await self._v3.compare_and_swap(name, value, lease_ttl, found.version)
            raise

    async def _first_at(self, name: str, version: int) -> KeyValue:
        """Return the entry in v3.  Raises CompareFailed if it is not at ``version``, KeyNotFound."""
        found = await find(self._v3, name)
        if found is None:
            raise KeyNotFound(f"{name}: key not found")
        if found.version != version:
            raise CompareFailed(f"{name}: [{version} != {found.version}]")
        return found


@contextmanager
def _during(what: str) -> Iterator[None]:
    """Name ``what`` in the error if a store does not answer: the endpoints of both stores are the same."""
    try:
        yield
    except RegistryUnavailable as error:
        raise RegistryUnavailable(f"{error} ({what})") from error


def _no_longer_than(lease_ttl: int | None, entry: KeyValue) -> KeyValue:
    """Return ``entry`` with the lifetime that it has in v2, if that is the shorter one."""
    if lease_ttl is None or entry.lifetime.seconds is None or entry.lifetime.seconds <= lease_ttl:
        return entry
    return entry._replace(lifetime=expires_in(lease_ttl))
