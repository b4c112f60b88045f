"""The alloc backend: leases a subnet and writes the subnet file; another program carries the packets.

Counterpart: backend/alloc/alloc.go.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.backend.underlay import Routed
from flannelpy.linux.netlink.client import Netlink
from flannelpy.report import BackendReport, PeerReport
from flannelpy.subnet.lease import HostIdentity, Lease, LeaseAttrs
from flannelpy.subnet.lease_table import LeaseEvent


class AllocBackend:
    """A subnet for this host, without any way to other hosts."""

    exclusive_resources: Sequence[str] = ()
    datagrams = None
    forwarding = None
    device = ""
    adopts_routes = adopts_device = False
    routed = Routed.NOTHING

    def __init__(self, external: ExternalInterface) -> None:
        self._external = external

    def lease_attrs(self, host_identity: HostIdentity, found: LeaseAttrs | None) -> LeaseAttrs:
        """Return the public IP alone."""
        return LeaseAttrs(host_identity.public_ip)

    async def start(self, lease: Lease) -> int:
        """Return the MTU of the external interface, which containers may use; nothing is set up."""
        return self._external.mtu

    def apply(self, events: Sequence[LeaseEvent]) -> None:
        """Ignore the peers' leases."""

    async def settled(self) -> None:
        """Return at once: there are no kernel entries."""

    def report(self) -> BackendReport:
        """Return a report without peers: flannelpy carries no packets."""
        return BackendReport("alloc", mtu=self._external.mtu)

    async def refresh(self) -> None:
        """Do nothing: there are no counters."""

    async def peer_reports(self) -> AsyncIterator[list[PeerReport]]:
        """Yield nothing: flannelpy carries no packets to peers."""
        nothing: list[list[PeerReport]] = []
        for chunk in nothing:
            yield chunk

    async def run(self) -> None:
        """Wait until cancelled."""
        await asyncio.Event().wait()

    async def repair(self, netlink: Netlink) -> list[str]:
        """Return an empty list: there is nothing to repair."""
        return []

    async def close(self) -> None:
        """Do nothing: there is nothing to remove."""
