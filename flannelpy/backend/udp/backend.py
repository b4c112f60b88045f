"""The udp backend: lease to TUN to socket to proxy, watch events to routes.

Counterpart: backend/udp/udp.go.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from ipaddress import IPv4Address

from flannelpy.backend.udp.engine import Engine
from flannelpy.backend.udp.proxy import Proxy
from flannelpy.backend.udp.routes import NextHop, Routes
from flannelpy.errors import ConfigError, HostError
from flannelpy.linux.interface import ExternalInterface
from flannelpy.linux.netlink import Netlink
from flannelpy.linux.tun import Tun, check_access
from flannelpy.linux.udp_socket import UdpSocket
from flannelpy.packet.drops import DropReason
from flannelpy.subnet import go_json
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease import Lease, LeaseAttrs
from flannelpy.subnet.lease_table import Added, LeaseEvent

log = logging.getLogger(__name__)

_DEFAULT_PORT = 8285
# 20 bytes of outer IPv4 header, 8 of UDP.
_ENCAP_OVERHEAD = 28
_DROP_REPORT_SECONDS = 60


class UdpBackend:
    """Inner packets as they are in UDP datagrams, one each; the same port on all hosts."""

    def __init__(self, config: NetworkConfig, external: ExternalInterface) -> None:
        """Raises ConfigError when the port makes no sense, HostError when there can be no TUN."""
        check_access()
        self._network = config.network
        self._port = _port(go_json.get(config.backend.options, "Port"))
        self._external = external
        self._routes = Routes()
        self._resources = ExitStack()

    def lease_attrs(self, public_ip: IPv4Address) -> LeaseAttrs:
        """Only the public IP: the original's hosts all use one port."""
        return LeaseAttrs(public_ip)

    async def start(self, lease: Lease) -> int:
        """Open the socket first: when the port is taken, no device was ever there."""
        mtu = self._external.mtu - _ENCAP_OVERHEAD
        address = lease.subnet.network_address
        udp = UdpSocket(self._external.address, self._port)
        self._resources.callback(udp.close)
        tun = Tun()
        self._resources.callback(tun.close)
        async with Netlink() as netlink:
            await netlink.bring_up(tun.name, address, self._network.prefixlen, mtu)
            await self._check_route(netlink, tun.name)
        tun.accept_own_address()
        self._proxy = Proxy(tun, udp, Engine(address, self._routes))
        self._resources.callback(self._proxy.close)
        return mtu

    def apply(self, events: Sequence[LeaseEvent]) -> None:
        """Next hops follow the leases."""
        for event in events:
            if isinstance(event, Added):
                log.info("Subnet added: %s", event.lease.subnet)
                self._routes.set(event.lease.subnet, NextHop(str(event.lease.attrs.public_ip), self._port))
            else:
                log.info("Subnet removed: %s", event.subnet)
                self._routes.remove(event.subnet)

    def describe(self) -> str:
        """How many hosts we can send to."""
        return f"next hops: {len(self._routes)}"

    async def run(self) -> None:
        """Say once a minute what was dropped, until packets can no longer be carried."""
        reporter = asyncio.create_task(self._report_drops())
        try:
            await self._proxy.failure()
        finally:
            reporter.cancel()

    def close(self) -> None:
        """The device takes its address and route along."""
        self._resources.close()

    async def _check_route(self, netlink: Netlink, name: str) -> None:
        """A leftover device with our network would swallow the containers' packets."""
        [own] = [link.index for link in await netlink.links() if link.name == name]
        ways = [route.link_index for route in await netlink.routes() if route.destination == self._network]
        if ways != [own]:
            names = {link.index: link.name for link in await netlink.links()}
            others = ", ".join(names[index] for index in ways if index != own) or "nothing"
            raise HostError(f"the route to {self._network} leads to {others} instead of {name} alone; remove it")

    async def _report_drops(self) -> None:
        reported: Counter[DropReason] = Counter()
        while True:
            await asyncio.sleep(_DROP_REPORT_SECONDS)
            fresh = self._proxy.drops - reported
            if fresh:
                reported = self._proxy.drops.copy()
                log.info("Dropped packets: %s", ", ".join(f"{why.name.lower()} {n}" for why, n in fresh.most_common()))


def _port(value: object) -> int:
    """Backend.Port.  Raises ConfigError."""
    if value is None:
        return _DEFAULT_PORT
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 65536:
        raise ConfigError(f"Backend.Port {go_json.dump(value)} is not a UDP port: 1 to 65535")
    return value
