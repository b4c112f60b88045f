"""Backends on a host of a lab, without daemon and etcd: this process enters the host's network namespace."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, contextmanager, suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults.backends import NETWORK
from faults.backends import Lease as Peer
from pyroute2 import netns
from support.hosts import ways

from flannelpy import cli
from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.backend import catalogue
from flannelpy.backend.leftovers import Scope, withdraw
from flannelpy.datapath import vtep
from flannelpy.linux import packet_loop
from flannelpy.linux.netlink.client import Netlink
from flannelpy.marks import device_alias
from flannelpy.registry.base import expires_in
from flannelpy.subnet import config
from flannelpy.subnet.lease import HostIdentity, Lease, LeaseAttrs
from flannelpy.subnet.lease_table import LeaseAdded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence

    from faults.backends import Backend as Kind
    from lab import Host

    from flannelpy.backend.base import Backend
    from flannelpy.subnet.lease_table import LeaseEvent

DEADLINE = 20.0
MTU = 1500
OTHER_NETWORK = IPv4Network("12.0.0.0/16")
#: State of other programs: a route into the network, and one of each kind elsewhere.
FOREIGN = (
    "link add foreign0 type bridge",
    "address add 192.0.2.1/24 dev foreign0",
    "link set foreign0 up",
    "route add 198.51.100.0/24 via 172.17.8.200 dev eth1",
    "route add 11.0.200.0/24 via 172.17.8.200 dev eth1 proto static",
    "rule add from 198.51.100.0/24 prohibit",
    "neighbour add 172.17.8.200 lladdr 02:00:00:00:02:00 dev eth1 nud permanent",
)
# All kernel state that a backend may change.  Not the state of links, which the kernel updates with a delay.
_STATE = "; ".join(
    (
        "ip -br link | awk '{ print $1, $3 }'",
        "ip -4 -o address",
        "ip -4 route show table all",
        "ip -4 rule",
        "ip -4 neighbour show nud permanent",
        "bridge fdb show",
    )
)


def peer(number: int, *, public_ip: str = "") -> Peer:
    """Return the lease of another host, whose public IP is on the link of this one."""
    subnet = IPv4Network((int(NETWORK.network_address) + (number << 8), 24))
    return Peer(subnet, public_ip or str(IPv4Address("172.17.8.130") + number), f"02:00:00:00:01:{number:02x}")


class BackendHost:
    """A host, and what this test needs to run backends of one type on it."""

    def __init__(self, host: Host, kind: Kind) -> None:
        self.host = host
        self.kind = kind
        self.external = ExternalInterface("eth1", host.public_ip, MTU)
        self.identity = HostIdentity(host.public_ip, "host1")
        self.foreign_ways = ways(host)

    def create(self, network: IPv4Network = NETWORK, **options: Any) -> Backend:
        """Return a backend that is not started."""
        text = json.dumps({"Network": str(network), "Backend": {"Type": self.kind.name, **options}})
        return catalogue.create(config.parse(text), self.external, cli.parse([]), _alias(network))

    def own_lease(self, backend: Backend, network: IPv4Network = NETWORK) -> Lease:
        """Return the lease of this host: the first subnet of the network."""
        subnet = next(network.subnets(new_prefix=24))
        return Lease(subnet, backend.lease_attrs(self.identity, None), expires_in(86400), 1, 1)

    def lease(self, peer: Peer) -> Lease:
        """Return the lease of a peer."""
        attrs = LeaseAttrs.decode(self.kind.lease(peer.public_ip, peer.mac))
        return Lease(peer.subnet, attrs, expires_in(86400), 2, int(peer.subnet.network_address))

    def added(self, *peers: Peer) -> list[LeaseEvent]:
        """Return the events of new or changed leases."""
        return [LeaseAdded(self.lease(one)) for one in peers]

    @asynccontextmanager
    async def running(self, events: Sequence[LeaseEvent] = (), **options: Any) -> AsyncIterator[Backend]:
        """Start and run a backend, apply its first leases, and close it at the end."""
        backend = self.create(**options)
        try:
            await backend.start(self.own_lease(backend))
            run = asyncio.create_task(backend.run())
            try:
                backend.apply(events)
                await backend.settled()
                yield backend
            finally:
                run.cancel()
                with suppress(asyncio.CancelledError):
                    await run
        finally:
            await backend.close()

    def wanted(self, peers: Iterable[Peer]) -> set[str]:
        """Return what ``ways`` must return while these peers are known."""
        own = self.own_lease(self.create())
        ours = Peer(own.subnet, str(self.host.public_ip), vtep.read(own.attrs) or "")
        return self.kind.ways(self.host, ours, peers) | self.foreign_ways

    def ways(self) -> set[str]:
        """Return the kernel state for packets to peers."""
        # The kernel adds the device's own route first, and flannelpy after a removal.
        return {way.replace("proto 85 scope link", "proto kernel scope link") for way in ways(self.host)}

    def state(self) -> list[str]:
        """Return all kernel state that a backend may change, as ip prints it."""
        return sorted(line.strip() for line in self.host.run("sh", "-c", _STATE).stdout.splitlines())

    def run(self, test: Callable[[], Awaitable[None]]) -> None:
        """Run a test in the host's network namespace, and check that a clean-up leaves what was there before."""

        async def body() -> None:
            try:
                async with asyncio.timeout(DEADLINE):
                    await test()
            finally:
                async with Netlink() as netlink:
                    for network in (NETWORK, OTHER_NETWORK):
                        await withdraw(netlink, Scope(_alias(network), frozenset({network}), frozenset()))

        before = self.state()
        with _inside(self.host):
            packet_loop.run(body())
        assert self.state() == before


async def until(condition: Callable[[], bool]) -> None:
    """Return once the condition is true."""
    while True:
        if condition():
            return
        await asyncio.sleep(0.01)


def _alias(network: IPv4Network) -> str:
    return device_alias(Path(f"/run/contract/{network.network_address}.env"))


@contextmanager
def _inside(host: Host) -> Iterator[None]:
    """Have this thread in the network namespace of the host."""
    with Path("/proc/thread-self/ns/net").open() as outside:
        netns.setns(host.netns)
        try:
            yield
        finally:
            netns.setns(outside.fileno())
