"""What every backend can do.

A backend is one way for packets to travel between hosts; ``catalogue.py`` has the list of them.
Counterpart: backend/common.go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flannelpy.backend.underlay import Routed
from flannelpy.datapath.traffic import Datagrams, Forwarding
from flannelpy.linux.netlink.client import Netlink
from flannelpy.report import BackendReport
from flannelpy.subnet.lease import HostIdentity, Lease, LeaseAttrs
from flannelpy.subnet.lease_table import LeaseEvent


class Backend(Protocol):
    """One way for packets between hosts, for the life of one lease.

    ``exclusive_resources``: what no two networks of a host may share, in words, such as a port.
    ``adopts_routes``: whether its routes stay when it stops, for its next start to adopt.
    ``routed``: what it routes to other hosts.
    """

    adopts_routes: bool
    routed: Routed

    @property
    def exclusive_resources(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def datagrams(self) -> Datagrams | None:
        """What carries packets since ``start``, if datagrams do."""

    @property
    def forwarding(self) -> Forwarding | None:
        """How the host forwards packets since ``start``, if this backend has it forward any."""

    @property
    def device(self) -> str:
        """The name of its device; empty without one, and before ``start`` if only that chooses the name."""

    def lease_attrs(self, host_identity: HostIdentity, found: LeaseAttrs | None) -> LeaseAttrs:
        """What other hosts need to know of us; ``found`` is what they know already."""

    async def start(self, lease: Lease) -> int:
        """Carry packets for ``lease`` from now on; the MTU that containers may use.  Raises HostError."""

    def apply(self, events: Sequence[LeaseEvent]) -> None:
        """Follow the other hosts' usable leases; the first call has all there are, if any.

        Later calls add a lease, change one that was added, or take one away that was added.
        """

    async def settled(self) -> None:
        """Return once it was tried to carry the leases of the first ``apply`` over into the kernel."""

    def report(self) -> BackendReport:
        """Return how many peers can be reached, and which packets were dropped."""

    async def run(self) -> None:
        """Stay with it until cancelled."""

    async def repair(self, netlink: Netlink) -> list[str]:
        """Put right what somebody has changed of what ``start`` set up; what that was.  Raises HostError."""

    def close(self) -> None:
        """Remove what ``start`` set up, but for what lets traffic go on while we restart."""
