"""The udp backend: lease to TUN to socket to proxy, watch events to routes.

Counterpart: backend/udp/udp.go.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from ipaddress import IPv4Network

from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.backend.device_config import DeviceConfig
from flannelpy.backend.lease_log import LeaseLog
from flannelpy.backend.route_check import RouteCheck, Way
from flannelpy.backend.udp.device import Device
from flannelpy.backend.udp.proxy import Proxy
from flannelpy.backend.udp.sender_queues import SenderQueues
from flannelpy.backend.underlay import Routed
from flannelpy.datapath.engine import Engine
from flannelpy.datapath.offloads import Offload, choose, probe
from flannelpy.datapath.routes import NextHop, Routes
from flannelpy.datapath.settings import inner_mtu
from flannelpy.datapath.source_check import SourceCheck
from flannelpy.datapath.traffic import Datagrams, Forwarding
from flannelpy.errors import ConfigError
from flannelpy.linux.netlink.client import Netlink
from flannelpy.linux.tun import check_access
from flannelpy.linux.udp_socket import UdpSocket
from flannelpy.packet import build
from flannelpy.packet.drops import DropReason
from flannelpy.report import BackendReport
from flannelpy.subnet import go_json
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease import HostIdentity, Lease, LeaseAttrs
from flannelpy.subnet.lease_table import LeaseAdded, LeaseEvent

log = logging.getLogger(__name__)

# The original's leases name no type, alloc's neither.
_BACKEND_TYPE = ""
_DEFAULT_PORT = 8285
# 20 bytes of outer IPv4 header, 8 of UDP.
_ENCAP_OVERHEAD = 28
# Packets that wait in the TUN: a burst of datagrams must fit, while what waits for long is better lost.
_TUN_QUEUE = 1000
_DROP_REPORT_SECONDS = 60


class UdpBackend:
    """Inner packets as they are in UDP datagrams, one each; the same port on all hosts."""

    adopts_routes = False
    routed = Routed.NETWORK

    def __init__(
        self,
        config: NetworkConfig,
        external: ExternalInterface,
        alias: str,
        offload: frozenset[str] | None,
        source_check: SourceCheck = SourceCheck.PEER,
    ) -> None:
        """``alias`` marks the device as ours; ``offload``: names of offloads, None for what is best.

        Raises ConfigError when port or MTU make no sense, HostError when there can be no TUN.
        """
        check_access()
        self._offload = choose(offload, compiled=build() == "compiled", kernel=os.uname().release)
        self._source_check = source_check
        self._sender_queues: SenderQueues | None = None
        self._network = config.network
        self._port = _port(go_json.get(config.backend.options, "Port"))
        self._mtu = inner_mtu(config.backend.options, _ENCAP_OVERHEAD, external.mtu)
        self._external = external
        self._lease_log = LeaseLog(log)
        self._routes = Routes()
        self._route_check: RouteCheck | None = None
        self._subnets: dict[IPv4Network, None] = {}  # of the peers, in the order in which they came
        self._resources = ExitStack()
        self._alias = alias
        self.device = ""
        self._told_drops: Counter[DropReason] = Counter()

    @property
    def exclusive_resources(self) -> Sequence[str]:
        """The port."""
        return [f"UDP port {self._port}"]

    @property
    def datagrams(self) -> Datagrams:
        """From our port to that of the other host, which is the same."""
        return Datagrams(self._device.tun.name, self._port, self._port, accepts_local=True)

    @property
    def forwarding(self) -> Forwarding:
        """All by our device."""
        return Forwarding([self._device.tun.name], self._external.name)

    def lease_attrs(self, host_identity: HostIdentity, found: LeaseAttrs | None) -> LeaseAttrs:
        """Only the public IP: the original's hosts all use one port."""
        return LeaseAttrs(host_identity.public_ip)

    async def start(self, lease: Lease) -> int:
        """Open the socket first: when the port is taken, no device was ever there."""
        device_config = DeviceConfig(self._network, lease.subnet.network_address, self._mtu, _TUN_QUEUE)
        self._udp = UdpSocket(
            self._external.address, self._port, gso=Offload.GSO in self._offload, gro=Offload.GRO in self._offload
        )
        self._resources.callback(self._udp.close)
        async with Netlink() as netlink:
            self._device = Device(device_config, self._alias)
            self.device = self._device.tun.name
            self._resources.callback(self._device.close)
            await self._device.set_up(netlink)
            self._route_check = RouteCheck(self._network, lease.subnet)
            await self._check_routes(netlink)
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
        self._resources.callback(self._proxy.close)
        expected_port = None if self._source_check is SourceCheck.OFF else self._port
        self._sender_queues = SenderQueues(self._udp, self._routes, expected_port)
        self._resources.callback(self._sender_queues.close)
        return self._mtu

    def _offloads(self) -> set[str]:
        """Those of the chosen offloads that the kernel really has, set up."""
        tso, uso = self._device.offload(tso=Offload.TSO in self._offload, uso=Offload.USO in self._offload)
        has = {Offload.TSO: tso, Offload.USO: uso, Offload.GSO: self._udp.gso, Offload.GRO: self._udp.gro}
        for merge in (Offload.MERGE_TCP, Offload.MERGE_UDP):
            has[merge] = merge in self._offload and self._device.tun.write(*probe(merge))
        missing = [name for name in self._offload if not has[Offload(name)]]
        if missing:
            log.warning("This kernel cannot do %s: slower, nothing else", ", ".join(sorted(missing)))
        present = {str(offload) for offload in has if has[offload]}
        log.info("Packet code %s, offloads: %s", build(), ", ".join(sorted(present)) or "none")
        return present

    def apply(self, events: Sequence[LeaseEvent]) -> None:
        """Next hops follow the leases."""
        for event in events:
            if isinstance(event, LeaseAdded):
                self._lease_log.added(event.lease.subnet)
                self._subnets[event.lease.subnet] = None
                self._routes.set(event.lease.subnet, NextHop(str(event.lease.attrs.public_ip), self._port))
            else:
                self._lease_log.removed(event.subnet)
                del self._subnets[event.subnet]
                self._routes.remove(event.subnet)
        if self._sender_queues is not None:
            self._sender_queues.changed()

    async def settled(self) -> None:
        """Packets go to the other hosts as soon as their leases are applied; theirs have to be accepted, too."""
        if self._sender_queues is not None:
            self._sender_queues.settle()

    def report(self) -> BackendReport:
        """Return how many peers can be reached, and what was dropped up to the last count."""
        lost = len(self._route_check.unreachable) if self._route_check else 0
        drops = {reason.name.lower(): count for reason, count in self._told_drops.items() if count}
        return BackendReport("udp", len(self._routes) - lost, lost, drops)

    async def run(self) -> None:
        """Log once a minute, and when we are stopped, what was dropped.  Raises what failed in the packet path."""
        failure = self._proxy.failure
        try:
            while not failure.done():
                await asyncio.wait([failure], timeout=_DROP_REPORT_SECONDS)
                await self._tell_drops()
        except asyncio.CancelledError:
            await self._tell_drops()
            raise
        failure.result()

    async def repair(self, netlink: Netlink) -> list[str]:
        """A device that is gone is made anew, one that was changed gets back what it had; the socket stays."""
        self._lease_log.report()
        name = self._device.tun.name
        link, flaws = await self._device.flaws(netlink)
        if link is None or self._proxy.stalled:
            flaws = flaws or ["could be used no longer"]
            self._proxy.close()
            await self._device.make_anew(netlink)
            self.device = self._device.tun.name
            self._proxy.resume(self._device.tun)
        elif flaws:
            removed = await self._device.set_up(netlink)
            flaws += [flaw for flaw in removed if flaw not in flaws]  # what has come meanwhile
        if not flaws:
            await self._check_routes(netlink)
        return [f"{name} {flaw}: put right" for flaw in flaws]

    async def _check_routes(self, netlink: Netlink) -> None:
        """Ask the kernel whether packets to the peers come to our device.  Raises HostError."""
        link = await netlink.link(self._device.tun.name)
        if link and self._route_check:
            way = Way(link.index)
            await self._route_check.check(netlink, list(self._subnets), lambda *_: way, link.index)
            lower = await netlink.link(self._external.name)
            if lower:
                await self._route_check.report_leftovers(netlink, lower.index, ())

    def close(self) -> None:
        """The device takes its address and route along."""
        self._resources.close()

    async def _drops(self) -> Counter[DropReason]:
        """Ours and the kernel's, since the start."""
        drops = self._proxy.drops.copy()
        drops[DropReason.SOCKET_REFUSED] = self._udp.refused()
        async with Netlink() as netlink:
            drops[DropReason.TUN_OVERFLOW] = await netlink.transmit_drops(self._device.tun.name)
        return drops

    async def _tell_drops(self) -> None:
        """Log what was dropped since the last time, if anything."""
        drops = await self._drops()
        fresh = drops - self._told_drops
        self._told_drops = drops
        if fresh:
            log.info("Dropped packets: %s", ", ".join(self._told(why, n) for why, n in fresh.most_common()))

    def _told(self, reason: DropReason, count: int) -> str:
        return f"{reason.name.lower()} {count}{self._hint(reason)}"

    def _hint(self, reason: DropReason) -> str:
        """Who sent the last datagram that was dropped for ``reason``, where that is known."""
        sender = self._engine.refused_senders.get(reason)
        if sender is None:
            return ""
        address, port = sender
        if reason is DropReason.UNKNOWN_SENDER:
            return f" (last from {address})"
        return f" (last from {address}:{port}, not port {self._port}; -source-check=off if a NAT changes ports)"


def _port(value: object) -> int:
    """Backend.Port.  Raises ConfigError."""
    if value is None:
        return _DEFAULT_PORT
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 65536:
        raise ConfigError(f"Backend.Port {go_json.show(value)} is not a UDP port: 1 to 65535")
    return value
