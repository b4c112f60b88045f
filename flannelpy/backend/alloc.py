"""The alloc backend: leases a subnet and writes the subnet file; packets are somebody else's business.

Counterpart: backend/alloc/alloc.go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.backend.underlay import Routed
from flannelpy.linux.netlink.client import Netlink
from flannelpy.report import BackendReport
from flannelpy.subnet.lease import HostIdentity, Lease, LeaseAttrs
from flannelpy.subnet.lease_table import LeaseEvent


class AllocBackend:
    """Nothing between hosts."""

    exclusive_resources: Sequence[str] = ()
    datagrams = None
    forwarding = None
    device = ""
    adopts_routes = False
    routed = Routed.NOTHING

    def __init__(self, external: ExternalInterface) -> None:
        self._external = external

    def lease_attrs(self, host_identity: HostIdentity, found: LeaseAttrs | None) -> LeaseAttrs:
        """Only the public IP."""
        return LeaseAttrs(host_identity.public_ip)

    async def start(self, lease: Lease) -> int:
        """Nothing is set up; containers may use the MTU of the external interface."""
        return self._external.mtu

    def apply(self, events: Sequence[LeaseEvent]) -> None:
        """Other hosts are of no concern."""

    async def settled(self) -> None:
        """There is nothing to carry over."""

    def report(self) -> BackendReport:
        """Return a report without peers: flannelpy carries no packets."""
        return BackendReport("alloc")

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.Event().wait()

    async def repair(self, netlink: Netlink) -> list[str]:
        """There is nothing that could be wrong."""
        return []

    def close(self) -> None:
        """Nothing to remove."""
