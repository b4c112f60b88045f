"""Leases in etcd, over its v3 API: implements the Registry protocol.

A lease of flannelpy is a key that is attached to a lease of etcd; a reservation is a key without one.  ``version`` is
etcd's mod_revision, ``created`` its create_revision, and a cursor is the revision from which a watch continues.

A renewal extends the lease of etcd and leaves the key as it is, so no watch reports it.  Whether the key still is at
its version is looked up in the same call.

Layers: etcd_v3_client.py calls one endpoint, and etcd_v3_messages.py translates messages and errors;
etcd_v3_listing.py, etcd_v3_writes.py and etcd_v3_watch.py have the calls; etcd_v3_store.py has keys and what is known
of the store.  endpoints.py, event_stream.py and json_list.py are shared with v2.

Counterpart: subnet/etcd/registry.go of flanneld v0.20.2.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from flannelpy.errors import KeyNotFound
from flannelpy.registry.base import Changes, KeyValue, Schema, Snapshot, all_names
from flannelpy.registry.endpoints import ANONYMOUS, Access, CallThreads, Rotation, parse_endpoint
from flannelpy.registry.etcd_v3_client import V3Client
from flannelpy.registry.etcd_v3_listing import Listing
from flannelpy.registry.etcd_v3_messages import Alarm, alarms_of
from flannelpy.registry.etcd_v3_store import Keys, Known
from flannelpy.registry.etcd_v3_watch import Watch
from flannelpy.registry.etcd_v3_writes import Writes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flannelpy.report import StoreReport


class EtcdV3Registry:
    """The network kept below ``prefix`` in the etcd cluster reached at ``urls``.

    Raises UsageError and HostError from the constructor, for options that can never work.
    """

    schema = Schema.V3
    # The watch itself looks for what makes a list necessary, so the hourly list is a second line of defence.
    relist_seconds = 3600.0

    def __init__(self, urls: Sequence[str], prefix: str, access: Access = ANONYMOUS) -> None:
        access.check_files()
        self._keys = Keys(prefix)
        self._cluster = Rotation([V3Client(parse_endpoint(text), access, self._keys.root) for text in urls])
        self._threads = CallThreads()
        self._known = Known()
        self._writes = Writes(self._cluster, self._keys)
        self._watch = Watch(self._cluster, self._threads, self._keys, self._known)

    def store_reports(self) -> tuple[StoreReport, ...]:
        """Return when etcd answered, as Registry demands."""
        return (self._cluster.report(3),)

    async def read_config(self) -> str:
        """Read the network config, as Registry demands."""
        key = self._keys.config
        node = await self._threads.run(functools.partial(self._writes.find, key))
        self._known.note_read(node.version if node else 0)
        if node is None:
            raise KeyNotFound(f"{key}: key not found")
        return node.value

    async def wait_for_config_change(self, seconds: float) -> None:
        """Wait until the watch reports another config, as Registry demands."""
        await self._known.wait_for_config_change(seconds)

    async def snapshot(self, is_wanted: Callable[[str], bool] = all_names) -> Snapshot:
        """List the entries, as Registry demands."""
        listing = await self._threads.run(Listing(self._cluster, self._keys, is_wanted).run)
        self._known.note(listing.header, listing.config)
        return Snapshot(tuple(listing.entries), listing.header.revision + 1)

    async def snapshot_of(self, name: str) -> Snapshot:
        """Read an entry, as Registry demands."""
        header, node = await self._threads.run(functools.partial(self._writes.read, self._keys.of(name)))
        entry = self._keys.entry(node) if node else None
        return Snapshot((entry,) if entry else (), header.revision + 1)

    async def create(self, name: str, value: str, lease_ttl: int) -> KeyValue:
        """Create an entry, as Registry demands."""
        _check(lease_ttl)
        return await self._threads.run(functools.partial(self._writes.create, name, value, lease_ttl))

    async def compare_and_swap(self, name: str, value: str, lease_ttl: int | None, version: int) -> KeyValue:
        """Replace an entry, as Registry demands."""
        _check(lease_ttl)
        return await self._threads.run(functools.partial(self._writes.swap, name, value, lease_ttl, version))

    async def renew(self, name: str, value: str, lease_ttl: int, version: int) -> KeyValue:
        """Extend the lease of an entry, as Registry demands; the version stays, and no watch reports the renewal."""
        _check(lease_ttl)
        return await self._threads.run(functools.partial(self._writes.renew, name, value, lease_ttl, version))

    async def compare_and_delete(self, name: str, version: int) -> None:
        """Delete an entry, as Registry demands."""
        await self._threads.run(functools.partial(self._writes.delete, name, version))

    async def watch(self, cursor: int, timeout: float) -> Changes:
        """Return what happens from ``cursor`` on, as Registry demands."""
        return await self._watch.changes(cursor, timeout)

    async def seconds_left(self, name: str) -> int | None:
        """Return in how many seconds an entry expires; None for a permanent entry, and without one."""
        return await self._threads.run(functools.partial(self._writes.seconds_left, name))

    async def alarms(self) -> list[Alarm]:
        """Return the alarms of all members."""
        return await self._threads.run(functools.partial(self._cluster.ask, _alarms))

    async def find_config(self) -> tuple[str, int]:
        """Return the network config and its version; an empty text and 0 if there is none."""
        node = await self._threads.run(functools.partial(self._writes.find, self._keys.config))
        return (node.value, node.version) if node else ("", 0)

    async def write_config(self, value: str, version: int) -> None:
        """Write the network config if it is at ``version``, 0 for none.  Raises CompareFailed."""
        await self._threads.run(functools.partial(self._writes.write_config, value, version))

    async def close(self) -> None:
        """Close the registry, as Registry demands; connections in use end by their own time-outs."""
        self._watch.close()
        self._threads.close()


def _alarms(client: V3Client) -> list[Alarm]:
    return alarms_of(client.call("maintenance/alarm", {"action": "GET"}))


def _check(lease_ttl: int | None) -> None:
    """Raise ValueError for a lease_ttl that etcd would refuse."""
    if lease_ttl is not None and lease_ttl <= 0:
        raise ValueError(f"lease_ttl is {lease_ttl}, which is no TTL")
