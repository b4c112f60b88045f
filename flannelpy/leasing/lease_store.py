"""Leases in the registry, read and written as ``Lease``.  Each write is conditional.

Raises, from every call: RegistryError.
"""

from __future__ import annotations

from ipaddress import IPv4Network

from flannelpy.registry.base import Registry, Snapshot
from flannelpy.subnet.lease import Lease, LeaseAttrs, format_key
from flannelpy.subnet.lease_table import LeaseTable, OwnEvent


class LeaseStore:
    """The leases of one network.  A lease that is written lasts ``lease_ttl`` seconds; a reservation stays one."""

    def __init__(self, registry: Registry, lease_ttl: int) -> None:
        self._registry = registry
        self._lease_ttl = lease_ttl

    async def list(self) -> Snapshot:
        """List all entries, malformed ones included."""
        return await self._registry.snapshot()

    async def find(self, subnet: IPv4Network) -> OwnEvent:
        """Read back the lease of ``subnet``, as the event that a watch would report."""
        snapshot = await self._registry.snapshot_of(format_key(subnet))
        return LeaseTable(subnet).replace(snapshot).own[-1]

    async def create(self, subnet: IPv4Network, attrs: LeaseAttrs) -> Lease:
        """Create the lease of ``subnet``.  Raises KeyExists."""
        return Lease.from_entry(await self._registry.create(format_key(subnet), self._encode(attrs), self._lease_ttl))

    async def swap(self, lease: Lease, version: int, attrs: LeaseAttrs) -> Lease:
        """Give ``lease`` other attributes if it still is at ``version``.  Raises CompareFailed, KeyNotFound."""
        lease_ttl = None if lease.is_reservation else self._lease_ttl
        key = format_key(lease.subnet)
        return Lease.from_entry(await self._registry.compare_and_swap(key, self._encode(attrs), lease_ttl, version))

    async def renew(self, lease: Lease, attrs: LeaseAttrs) -> Lease:
        """Extend the lifetime of ``lease``, which has ``attrs``, if unchanged.  Raises CompareFailed, KeyNotFound."""
        key, value = format_key(lease.subnet), self._encode(attrs)
        return Lease.from_entry(await self._registry.renew(key, value, self._lease_ttl, lease.version))

    async def delete(self, lease: Lease) -> None:
        """Delete ``lease`` if it is unchanged.  Raises CompareFailed, KeyNotFound."""
        await self._registry.compare_and_delete(format_key(lease.subnet), lease.version)

    def _encode(self, attrs: LeaseAttrs) -> str:
        return attrs.encode(self._registry.schema)
