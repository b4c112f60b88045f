"""What every backend promises.

A backend is one way for packets to travel between hosts; ``catalogue.py`` has the list of them.  The contract tests in
``tests/contract/test_backend.py`` check each sentence below on all backends.
Counterpart: backend/common.go.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from flannelpy.backend.underlay import Routed
from flannelpy.datapath.traffic import Datagrams, Forwarding
from flannelpy.linux.netlink.client import Netlink
from flannelpy.report import BackendReport, PeerReport
from flannelpy.subnet.lease import HostIdentity, Lease, LeaseAttrs
from flannelpy.subnet.lease_table import LeaseEvent


class Backend(Protocol):
    """One way for packets to travel between hosts, while this host holds one lease.

    A backend is started once, and closed at the end.  Another one can then start with the same config.  Before
    ``start``, only ``exclusive_resources``, ``lease_attrs`` and ``close`` may be called, and none of them changes the
    kernel's state.  A backend never changes kernel state of other programs, except on its own device.

    ``adopts_routes``: whether its routes stay when it stops, so that its next start adopts them.
    ``adopts_device``: whether its next start adopts a TUN device of its that an earlier process has kept.
    ``routed``: which part of the network it routes to other hosts.
    """

    adopts_routes: bool
    adopts_device: bool
    routed: Routed

    @property
    def exclusive_resources(self) -> Sequence[str]:
        """Return what no two networks of a host may share, such as ``UDP port 8285``.

        It depends on the config alone.  Two backends without a common resource run beside each other.
        """

    @property
    def datagrams(self) -> Datagrams | None:
        """Return the datagrams that packets travel in since ``start``; None if packets are not encapsulated in UDP.

        Their device is ``device``, and the host listens on their port.
        """

    @property
    def forwarding(self) -> Forwarding | None:
        """Return by which devices the host forwards packets since ``start``; None if it forwards none.

        The devices exist.  ``device`` is one of them.
        """

    @property
    def device(self) -> str:
        """Return the name of its device; empty without a device, and before ``start`` if that chooses the name."""

    def lease_attrs(self, host_identity: HostIdentity, found: LeaseAttrs | None) -> LeaseAttrs:
        """Return what peers need to know of this host; ``found`` are the attributes in its present lease.

        The attributes stay the same if they are ``found``.  A backend of the same type can use them.
        """

    async def start(self, lease: Lease) -> int:
        """Begin to carry the packets of ``lease``; return the MTU that containers may use.  Raises HostError.

        Its device has this MTU and an alias that marks it.  What an earlier run left is adopted.  If ``start`` fails
        because another program has a resource, it leaves nothing behind after ``close``.
        """

    def apply(self, events: Sequence[LeaseEvent]) -> None:
        """Take in the peers' usable leases; the first call has all of them, maybe none.

        Later calls add a lease, change an added lease or remove an added lease.  An event that repeats what is known
        changes nothing, and neither does the removal of an unknown lease.  The result depends on the present leases
        alone, not on the events that led to them.
        """

    async def settled(self) -> None:
        """Return once the leases of the first ``apply`` are in the kernel, or the attempt has failed.

        ``run`` must be running.
        """

    def report(self) -> BackendReport:
        """Return how many peers can be reached, and which packets were dropped.

        Both numbers of peers together are the number of present leases, or both are None if it carries no packets.
        """

    async def refresh(self) -> None:
        """Read the counters that only the kernel has, for the next ``report``."""

    def peer_reports(self) -> AsyncIterator[list[PeerReport]]:
        """Yield the reports of all peers in chunks, between which the event loop runs."""

    async def run(self) -> None:
        """Carry packets until cancelled.  Raises HostError if the packet path fails.

        A cancellation leaves the kernel's state as it is.
        """

    async def repair(self, netlink: Netlink) -> list[str]:
        """Restore what other programs changed since ``start``; return one line for each repair.  Raises HostError.

        If nothing was changed, the list is empty: no repair is reported twice.  While ``run`` changes entries, their
        repair waits for the next call.
        """

    async def close(self) -> None:
        """Remove what ``start`` set up, except what lets traffic continue during a restart.

        With ``adopts_routes`` nothing changes; otherwise nothing is left, unless systemd keeps the device that the next
        start adopts.  Further calls do nothing.
        """
