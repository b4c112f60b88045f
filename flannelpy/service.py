"""A network in service: it has a lease, and carries packets until an error ends it.

``Service`` joins the control plane and the data plane: it passes the leases on to the backend, has what other programs
change restored, and tells the network which state its components are in.
Counterpart: network/network.go.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Network
from typing import Never

from flannelpy.backend.base import Backend
from flannelpy.backend.lease_gate import LeaseGate
from flannelpy.backend.peer_routes import PeerRoutes
from flannelpy.backend.repair_loop import RepairLoop
from flannelpy.backend.underlay import Underlay
from flannelpy.errors import HostError
from flannelpy.host.container_traffic import ContainerTraffic
from flannelpy.host.external_interface_monitor import ExternalInterfaceMonitor
from flannelpy.host.ready_file import ReadyFile
from flannelpy.host.shared import Host
from flannelpy.leasing.manager import SubnetManager
from flannelpy.linux.netlink.client import Netlink
from flannelpy.report import NetworkReport, NetworkState, PeerReport
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease_filter import LeaseFilter
from flannelpy.subnet.lease_table import LeaseEvent
from flannelpy.tasks import run_together

log = logging.getLogger(__name__)


class Service:
    """A network with a lease: runs the tasks that keep the lease, carry packets and restore what others change."""

    def __init__(
        self,
        name: str,
        manager: SubnetManager,
        network: IPv4Network,
        backend: Backend,
        underlay: Underlay,
        host: Host,
        external: ExternalInterfaceMonitor,
        ready_file: ReadyFile,
        enter: Callable[[NetworkState, str], None],
    ) -> None:
        """``enter`` moves the network to a state, with a problem or "", and reports it."""
        self._name = name
        self._manager = manager
        self._network, self._backend = network, backend
        self._underlay = underlay
        self._host = host
        self._external = external
        self._ready_file = ready_file
        self._enter = enter
        self._is_up = False
        self._has_leases = asyncio.Event()
        self.underlay_changed = asyncio.Event()
        self._repair_loop = RepairLoop(self._check, self._network, self._update_state)
        self._peer_routes = PeerRoutes(host.external)
        self._reported: object = None  # on which the last report of a check depended
        self._containers = ContainerTraffic(host.firewall, name, self._network, self._report_changes)

    async def run(self, choose: Callable[[NetworkConfig], Awaitable[object]]) -> None:
        """Carry packets, renew the lease, follow the peers, and restore what other programs change."""
        log.info("Watching for new subnet leases")
        async with Netlink() as netlink:
            around = await self._underlay.observe(netlink)
            leases = LeaseFilter(self._network, self._manager.own, around)
            self._gate = LeaseGate(netlink, leases, self._underlay, self._forward)
            await run_together(
                self._announce(),
                self._backend.run(),
                self._repair_loop.run(),
                self._follow_underlay(),
                self._manager.keep_lease(),
                self._manager.watch(self._gate.apply),
                self._manager.watch_config(choose),
            )

    async def _announce(self) -> None:
        """Report readiness once the peers' first leases are applied; Docker waits for it."""
        await self._has_leases.wait()
        await self._backend.settled()
        async with Netlink() as netlink:
            await self._check_peer_routes(netlink)
        self._is_up = True
        self._reported = None  # from now on what the checks found counts
        self._report_changes()

    def complete(self, report: NetworkReport) -> NetworkReport:
        """Return ``report`` with the parts of the components added."""
        return replace(
            report,
            lease=self._manager.report(),
            backend=self._backend.report(),
            interface=self._external.report(),
            kernel_state=self._repair_loop.report(),
            firewall=self._host.firewall.report(self._name),
            peer_routes=self._peer_routes.report(),
            traffic=self._containers.report(),
        )

    async def refresh(self) -> None:
        """Read the counters that only the kernel has, for the next report."""
        await self._backend.refresh()

    def peer_reports(self) -> AsyncIterator[list[PeerReport]]:
        """Yield the reports of all peers in chunks, between which the event loop runs."""
        return self._backend.peer_reports()

    def is_live(self) -> bool:
        """Return whether the watch of the leases and the repair loop still run, also if they only fail."""
        return self._manager.is_live() and self._repair_loop.is_live()

    def _forward(self, events: Sequence[LeaseEvent]) -> None:
        self._backend.apply(events)
        self._peer_routes.follow(events)
        self._containers.apply(events)
        self._host.firewall.apply(self._name, events)
        self._has_leases.set()
        self._update_state()

    async def _follow_underlay(self) -> Never:
        async with Netlink() as netlink:
            while True:
                await self.underlay_changed.wait()
                self.underlay_changed.clear()
                await self._check_peer_routes(netlink)
                self._report_changes()

    async def _check_peer_routes(self, netlink: Netlink) -> None:
        """Check whether datagrams to peers leave the host, if the backend sends any."""
        if self._backend.datagrams and not self._external.report().problem:  # which explains what routes are missing
            with suppress(HostError):  # the kernel could not be asked: it is asked again within ten seconds
                await self._peer_routes.check(netlink)

    async def _check(self, netlink: Netlink) -> list[str]:
        self._ready_file.check()
        await self._containers.check(netlink, self._manager.own.subnet, self._backend.forwarding)
        self._report_changes()
        await self._gate.check()
        rules = [f"Restored {rule}: it was missing" for rule in await self._host.isolation.restore(netlink)]
        try:
            return [*rules, *await self._backend.repair(netlink)]
        finally:
            self._report_changes()

    def _report_changes(self) -> None:
        """Update the state if a check has found a change of the interface, of an obstacle or of the reachable peers."""
        backend = self._backend.report()
        underlay = self._external.report(), self._peer_routes.report()
        found = underlay, self._containers.report(), backend.next_hops, backend.unreachable
        if found != self._reported:
            self._reported = found
            self._update_state()

    def _update_state(self) -> None:
        """Enter the state that the components are in, also if it is the same: their reports have changed."""
        if not self._is_up:
            self._enter(NetworkState.WAITING_FOR_PEERS, "")
            return
        problem = self.complete(NetworkReport(self._name, NetworkState.READY)).present_problem
        self._ready_file.set(not problem)
        self._enter(NetworkState.DEGRADED if problem else NetworkState.READY, problem)
