"""The udp backend: sets up TUN device, socket and proxy for a lease, and turns lease events into next hops.

Counterpart: backend/udp/udp.go.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.backend.device_config import DeviceConfig
from flannelpy.backend.lease_log import LeaseLog
from flannelpy.backend.route_check import RouteCheck, Way
from flannelpy.backend.udp.device import Device, QueueDrops
from flannelpy.backend.udp.proxy import Proxy
from flannelpy.backend.udp.sender_queues import SenderQueues
from flannelpy.backend.underlay import Routed
from flannelpy.chunks import in_chunks
from flannelpy.datapath import udp_settings
from flannelpy.datapath.engine import Engine
from flannelpy.datapath.offloads import Offload, choose, probe
from flannelpy.datapath.routes import NextHop, Route, Routes, Totals
from flannelpy.datapath.source_check import SourceCheck
from flannelpy.datapath.traffic import Datagrams, Forwarding
from flannelpy.errors import HostError
from flannelpy.linux.netlink.client import Netlink
from flannelpy.linux.tun import check_access
from flannelpy.linux.udp_socket import UdpSocket
from flannelpy.packet import build
from flannelpy.packet.drops import DropReason
from flannelpy.packet.tally import Tally
from flannelpy.report import BackendReport, PeerReport, Traffic
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease import HostIdentity, Lease, LeaseAttrs
from flannelpy.subnet.lease_table import LeaseAdded, LeaseEvent
from flannelpy.tasks import run_together

if TYPE_CHECKING:
    from flannelpy.backend.udp.datapath import KernelDatapath
    from flannelpy.backend.udp.kernel_mode import KernelMode
    from flannelpy.linux.tun import Tun

log = logging.getLogger(__name__)

# Packets that wait in the TUN: a burst of datagrams must fit; a packet that waited long is better dropped.
_TUN_QUEUE = 1000
_DROP_REPORT_SECONDS = 60


class UdpBackend:
    """Each inner packet is the payload of a UDP datagram, without a header; all hosts use the same port."""

    adopts_routes = False
    routed = Routed.NETWORK

    def __init__(
        self,
        config: NetworkConfig,
        external: ExternalInterface,
        alias: str,
        offload: frozenset[str] | None,
        source_check: SourceCheck = SourceCheck.PEER,
        kernel_mode: KernelMode | None = None,
    ) -> None:
        """Mark the device with ``alias``; ``offload``: names of offloads, None for the best ones.

        ``kernel_mode``: the kernel may carry packets, too.

        Raises ConfigError for an invalid port or MTU, HostError if the host cannot open a TUN device.
        """
        check_access()
        self._offload = choose(offload, compiled=build() == "compiled", kernel=os.uname().release)
        self._source_check = source_check
        self._kernel_mode = kernel_mode
        self._kernel: KernelDatapath | None = None
        self.adopts_device = kernel_mode is not None
        self._sender_queues: SenderQueues | None = None
        self._network = config.network
        self._port, self._mtu = udp_settings.parse(config.backend.options, external.mtu)
        self._external = external
        self._lease_log = LeaseLog(log)
        self._routes = Routes()
        self._route_check: RouteCheck | None = None
        self._subnets: dict[IPv4Network, float] = {}  # of the peers, in the order of their leases: when each was added
        self._resources = ExitStack()
        self._alias = alias
        self.device = ""
        self._queue_drops = QueueDrops()
        self._carried = Traffic()  # as of the last ``refresh``
        self._used_offloads: tuple[str, ...] = ()
        self._is_open = False  # from the end of ``start`` to ``close``
        self._logged_drops: Counter[DropReason] = Counter()

    @property
    def exclusive_resources(self) -> Sequence[str]:
        """Return the UDP port."""
        return [f"UDP port {self._port}"]

    @property
    def datagrams(self) -> Datagrams:
        """Return the device and the port, which is source and destination port."""
        return Datagrams(self._device.tun.name, self._port, self._port, accepts_local=True)

    @property
    def forwarding(self) -> Forwarding:
        """Return our device in both directions."""
        return Forwarding([self._device.tun.name], self._external.name)

    def lease_attrs(self, host_identity: HostIdentity, found: LeaseAttrs | None) -> LeaseAttrs:
        """Return the public IP, as the original does: all hosts use one port.

        Programs that an earlier process has left in the kernel take datagrams until ``start`` finds that they cannot.
        """
        in_kernel = self._kernel_mode is not None and found is not None and found.in_kernel
        return LeaseAttrs(host_identity.public_ip, in_kernel=in_kernel)

    async def start(self, lease: Lease) -> int:
        """Open the socket, then the device, so that a taken port leaves no device; return the device's MTU."""
        device_config = DeviceConfig(self._network, lease.subnet.network_address, self._mtu, _TUN_QUEUE)
        self._udp = UdpSocket(
            self._external.address, self._port, gso=Offload.GSO in self._offload, gro=Offload.GRO in self._offload
        )
        self._resources.callback(self._udp.close)
        async with Netlink() as netlink:
            self._device = Device(device_config, self._alias, await self._adopted_tun(netlink))
            self.device = self._device.tun.name
            self._resources.callback(self._device.close)
            await self._device.set_up(netlink)
            self._route_check = RouteCheck(self._network, lease.subnet)
            await self._check_routes(netlink)
            await self._open_kernel(netlink, lease)
        offloads = self._offloads()
        self._engine = Engine(
            lease.subnet,
            self._routes,
            network=self._network,
            bound=self._external.address,
            port=self._port,
            source_check=self._source_check,
            merge_tcp=Offload.MERGE_TCP in offloads,
            merge_udp=Offload.MERGE_UDP in offloads,
        )
        self._proxy = Proxy(self._device.tun, self._udp, self._engine)
        self._resources.callback(self._proxy.pause)
        expected_port = None if self._source_check is SourceCheck.OFF else self._port
        self._sender_queues = SenderQueues(self._udp, self._routes, expected_port)
        self._resources.callback(self._sender_queues.close)
        self._is_open = True
        return self._mtu

    async def _adopted_tun(self, netlink: Netlink) -> Tun | None:
        """Return the device that an earlier process has kept, or None.  Raises HostError."""
        return await self._kernel_mode.keeper.adopt(netlink, self._alias) if self._kernel_mode else None

    async def _open_kernel(self, netlink: Netlink, lease: Lease) -> None:
        """Load the programs if the kernel may carry packets.  Raises HostError if it must and cannot."""
        if self._kernel_mode is None:
            return
        from flannelpy.backend.udp.datapath import KernelDatapath
        from flannelpy.backend.udp.fast_path import FastPathConfig

        config = FastPathConfig(
            lease.subnet,
            self._network,
            self._external.address,
            self._port,
            self._source_check,
            self.device,
            self._external.name,
            self._alias,
        )
        self._kernel = KernelDatapath(self._kernel_mode, config, self._device.tun)
        await self._kernel.open(netlink)

    def _offloads(self) -> set[str]:
        """Set up the chosen offloads; return those that the kernel supports."""
        tso, uso = self._device.offload(tso=Offload.TSO in self._offload, uso=Offload.USO in self._offload)
        has = {Offload.TSO: tso, Offload.USO: uso, Offload.GSO: self._udp.gso, Offload.GRO: self._udp.gro}
        for merge in (Offload.MERGE_TCP, Offload.MERGE_UDP):
            has[merge] = merge in self._offload and self._device.tun.write(*probe(merge))
        missing = [name for name in self._offload if not has[Offload(name)]]
        if missing:
            log.warning("Kernel lacks offload %s; throughput is reduced", ", ".join(sorted(missing)))
        present = {str(offload) for offload in has if has[offload]}
        self._used_offloads = tuple(sorted(present))
        log.info("Packet code %s, offloads: %s", build(), ", ".join(sorted(present)) or "none")
        return present

    def apply(self, events: Sequence[LeaseEvent]) -> None:
        """Update the next hops, and the receive queues of their senders."""
        now = time.time()
        for event in events:
            if isinstance(event, LeaseAdded):
                self._subnets.setdefault(event.lease.subnet, now)
                self._set_next_hop(event.lease)
            elif event.subnet in self._subnets:
                self._lease_log.removed(event.subnet)
                del self._subnets[event.subnet]
                self._routes.remove(event.subnet)
        if self._sender_queues is not None:
            self._sender_queues.changed()
        if self._kernel is not None:
            self._kernel.apply(events)

    def _set_next_hop(self, lease: Lease) -> None:
        """Send packets for a lease to its public IP; a lease that differs in something else is not logged again."""
        next_hop = NextHop(str(lease.attrs.public_ip), self._port)
        route = self._routes.get(lease.subnet)
        if route is None or route.next_hop != next_hop:
            self._lease_log.added(lease.subnet)
            self._routes.set(lease.subnet, next_hop)

    async def settled(self) -> None:
        """Return once queues and programs follow the leases; the next hops already do."""
        if self._sender_queues is not None:
            self._sender_queues.settle()
        if self._kernel is not None:
            await self._kernel.settled()

    def report(self) -> BackendReport:
        """Return how many peers can be reached, and what was carried and dropped.

        What was carried, and what the device's queue dropped, is as of the last ``refresh``.
        """
        unreachable = len(self._route_check.unreachable) if self._route_check else 0
        return BackendReport(
            "udp",
            len(self._routes) - unreachable,
            unreachable,
            {reason.name.lower(): count for reason, count in self._drops().items() if count},
            self.device,
            self._mtu,
            self._used_offloads,
            udp_settings.ENCAP_OVERHEAD,
            self._carried,
            "kernel" if self._kernel and self._kernel.is_used else "loop",
            self._kernel.loop_cause if self._kernel else "",
        )

    async def refresh(self) -> None:
        """Add up the packets of all peers, and read the kernel's counter of those that found the device's queue full.

        If the kernel cannot be asked, the former value stays.
        """
        total = Totals()
        total.add(self._routes.removed)
        async for chunk in in_chunks(self._routes.tallies()):
            for tally in chunk:
                total.add(tally)
        if self._kernel:
            total.add(self._kernel.removed)
            async for subnets in in_chunks(list(self._subnets)):
                for subnet in subnets:
                    total.add(self._kernel.carried(subnet))
        self._carried = _traffic(total, _boot_time())
        with suppress(HostError, OSError):
            async with Netlink() as netlink:
                await self._queue_drops.read(netlink, self._device.tun.name)

    async def peer_reports(self) -> AsyncIterator[list[PeerReport]]:
        """Yield the reports of all peers in chunks, as Backend demands."""
        async for chunk in in_chunks(list(self._subnets)):
            boot = _boot_time()
            yield [self._peer_report(subnet, route, boot) for subnet in chunk if (route := self._routes.get(subnet))]

    def _peer_report(self, subnet: IPv4Network, route: Route, boot: float) -> PeerReport:
        """Return the report of a peer; ``boot``: as ``_boot_time`` returns it."""
        traffic = _traffic(route.tally, boot)
        if self._kernel:
            traffic += _traffic(self._kernel.carried(subnet), boot)
        cause = self._route_check.why_unreachable(subnet) if self._route_check else ""
        return PeerReport(subnet, IPv4Address(route.next_hop.public_ip), self._subnets[subnet], cause, traffic)

    async def run(self) -> None:
        """Carry packets, in the kernel too if it may.  Raises the error of the packet path if it fails."""
        await run_together(self._run_loop(), *([self._kernel.run()] if self._kernel else []))

    async def _run_loop(self) -> None:
        """Log drops once a minute and when cancelled.  Raises the error of the packet path if it fails."""
        failure = self._proxy.failure
        try:
            while not failure.done():
                await asyncio.wait([failure], timeout=_DROP_REPORT_SECONDS)
                await self._log_drops()
        except asyncio.CancelledError:
            await self._log_drops()
            raise
        failure.result()

    async def repair(self, netlink: Netlink) -> list[str]:
        """Recreate a removed device, restore a changed one, and check the routes; the socket stays open."""
        self._lease_log.report()
        name = self._device.tun.name
        link, flaws = await self._device.flaws(netlink)
        if link is None or self._proxy.paused:
            flaws = flaws or ["could no longer be used"]
            self._proxy.pause()
            self._queue_drops.recreate()
            await self._device.recreate(netlink)
            self.device = self._device.tun.name
            self._proxy.resume(self._device.tun)
        elif flaws:
            removed = await self._device.set_up(netlink)
            flaws += [flaw for flaw in removed if flaw not in flaws]  # addresses added meanwhile
        if not flaws:
            await self._check_routes(netlink)
        repairs = [f"{name} {flaw}; restored" for flaw in flaws]
        if self._kernel:
            repairs += [f"{flaw}; restored" for flaw in await self._kernel.repair(netlink, self._device.tun)]
        return repairs

    async def _check_routes(self, netlink: Netlink) -> None:
        """Ask the kernel whether packets to the peers come to our device.  Raises HostError."""
        link = await netlink.link(self._device.tun.name)
        if link and self._route_check:
            way = Way(link.index)
            await self._route_check.check(netlink, list(self._subnets), lambda *_: way, link.index)
            lower = await netlink.link(self._external.name)
            if lower:
                await self._route_check.report_leftovers(netlink, lower.index, ())

    async def close(self) -> None:
        """Close device and socket; the kernel removes the device's address and route with it, unless systemd keeps it.

        With systemd's descriptor store, the programs carry packets while the service restarts.
        """
        self._is_open = False
        if self._kernel:
            await self._kernel.close()
        self._resources.close()

    def _drops(self) -> Counter[DropReason]:
        """Return our own counters and the kernel's, since the start; those of a closed socket are the last logged."""
        if not self._is_open:
            return self._logged_drops
        drops = self._proxy.drops.copy()
        drops[DropReason.SOCKET_FILTERED_OR_FULL] = self._udp.kernel_drops()
        drops[DropReason.TUN_QUEUE_FULL] = self._queue_drops.total
        return drops

    async def _log_drops(self) -> None:
        """Log the packets dropped since the last call, if there are any."""
        await self.refresh()
        drops = self._drops()
        fresh = drops - self._logged_drops
        self._logged_drops = drops
        if fresh:
            log.info("Dropped packets: %s", ", ".join(self._drop_text(why, n) for why, n in fresh.most_common()))

    def _drop_text(self, reason: DropReason, count: int) -> str:
        return f"{reason.name.lower()} {count}{self._hint(reason)}"

    def _hint(self, reason: DropReason) -> str:
        """Return the sender of the last datagram dropped for ``reason``, in words; empty if it is not known."""
        sender = self._engine.refused_senders.get(reason)
        if sender is None:
            return ""
        address, port = sender
        if reason is DropReason.UNKNOWN_SENDER:
            return f" (last from {address})"
        if reason is DropReason.WRONG_SENDER_PORT:
            return f" (last from {address}:{port}, not port {self._port}; -source-check=off if a NAT changes ports)"
        return f" (last from {address}:{port})"


def _boot_time() -> float:
    """Return the Unix time at which the event loop's clock was 0."""
    return time.time() - asyncio.get_running_loop().time()


def _traffic(counts: Tally | Totals, boot: float) -> Traffic:
    heard_at = boot + counts.heard_at if counts.packets_in else None
    return Traffic(counts.packets_out, counts.bytes_out, counts.packets_in, counts.bytes_in, heard_at)
