"""Asks the kernel how packets to and from the peers travel, and which leases are usable."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from flannelpy.backend import peer_routes
from flannelpy.backend.route_check import RouteCheck, Way, WayTo
from flannelpy.backend.underlay import Underlay
from flannelpy.check.observations import HostSeen, Peer, WaySeen
from flannelpy.check.plan import Plan, bridge_address, tunnel_address
from flannelpy.datapath import vtep
from flannelpy.errors import HostError
from flannelpy.linux import rp_filter
from flannelpy.linux.netlink.client import Netlink
from flannelpy.rtnetlink import entries
from flannelpy.rtnetlink.entries import FdbEntry, Neighbour
from flannelpy.rtnetlink.routes import RouteQuery
from flannelpy.subnet.lease import Lease
from flannelpy.subnet.lease_filter import Ignored, LeaseFilter
from flannelpy.subnet.lease_table import LeaseAdded

# Subnets of one RouteCheck: it then asks about eight addresses of each.
_SUBNETS = 10
_LEASES = 1000
# The kernel's answer about a packet to this host that rp_filter rejects; since Linux 6.14 it is EINVAL for any cause.
# Source: inet_rtm_getroute in net/ipv4/route.c of the kernel.
_REJECTED = (errno.EXDEV, errno.EINVAL)


class Usable(NamedTuple):
    """The peers that flannelpy uses, and the leases that it ignores."""

    peers: Sequence[Peer]
    ignored: Sequence[Ignored]


async def usable(
    netlink: Netlink, underlay: Underlay, network: IPv4Network, own: Lease, others: Sequence[Lease]
) -> Usable:
    """Decide as the daemon does which leases are usable.  Raises HostError."""
    leases = LeaseFilter(network, own, await underlay.observe(netlink))
    leases.update(map(LeaseAdded, others))
    ignored: dict[IPv4Network, Ignored] = {}
    while leases.has_work or leases.unasked(1):
        leases.answer(await underlay.overlay_ways(netlink, leases.unasked(_LEASES)))
        ignored |= {one.subnet: one for one in leases.decide(_LEASES).ignored}
    return Usable(holders([lease for lease in others if lease.subnet not in ignored]), list(ignored.values()))


def holders(leases: Sequence[Lease]) -> Sequence[Peer]:
    """Return the holders of leases."""
    return [Peer(lease.subnet, lease.attrs.public_ip, vtep.read(lease.attrs) or "") for lease in leases]


class Kernel:
    """The kernel's routes of one network; ``device``: the index of the tunnel device, 0 without one."""

    def __init__(self, netlink: Netlink, host: HostSeen, plan: Plan, device: int) -> None:
        self._netlink = netlink
        self._host = host
        self._plan = plan
        self._device = device
        self._external = host.link.index if host.link else 0
        self.direct: set[IPv4Address] = set()  # public IPs of the peers that get a route by their public IP

    async def look(self, peers: Sequence[Peer]) -> dict[IPv4Network, WaySeen]:
        """Return what the kernel answers about each peer.  Raises HostError."""
        addresses = [peer.public_ip for peer in peers]
        missing = await peer_routes.faults(self._netlink, self._host.external.address, addresses)
        await self._find_direct(addresses)
        diverted = await self._diverted(peers)
        rejecting = await self._rejecting(peers)
        present = await self._entries()
        return {
            peer.subnet: WaySeen(
                no_route,
                diverted.get(peer.subnet, ()),
                rejecting.get(peer.subnet, ()),
                tuple(str(one) for one in self._wanted(peer) if entries.identity(one) not in present),
            )
            for peer, no_route in zip(peers, missing, strict=True)
        }

    async def _find_direct(self, addresses: Sequence[IPv4Address]) -> None:
        if self._plan.backend == "host-gw":
            self.direct = set(addresses)
        elif self._plan.is_direct:
            answers = await self._netlink.lookups([RouteQuery(address) for address in addresses])
            both = zip(addresses, answers, strict=True)
            self.direct = {address for address, answer in both if answer.is_on_link(self._external)}

    async def _diverted(self, peers: Sequence[Peer]) -> dict[IPv4Network, Sequence[str]]:
        """Return the routes and rules that divert packets of this host or its containers, by the peers' subnets."""
        found: dict[IPv4Network, Sequence[str]] = {}
        if not self._plan.routes_packets or not (self._device or self._plan.backend == "host-gw"):
            return found
        way = self._way({peer.subnet: peer.public_ip for peer in peers})
        for start in range(0, len(peers), _SUBNETS):
            check = RouteCheck(self._plan.network, self._plan.subnet)
            subnets = [peer.subnet for peer in peers[start : start + _SUBNETS]]
            with suppress(HostError):  # no packet takes our routes: the causes are kept as well
                await check.check(self._netlink, subnets, way, self._device)
            found |= {subnet: sorted(causes) for subnet, causes in check.causes.items()}
        return found

    def _way(self, public_ips: dict[IPv4Network, IPv4Address]) -> WayTo:
        def way(subnet: IPv4Network, _: IPv4Address) -> Way:
            if public_ips[subnet] in self.direct:
                return Way(self._external, public_ips[subnet])
            return Way(self._device, tunnel_address(subnet) if self._plan.backend == "vxlan" else None)

        return way

    async def _rejecting(self, peers: Sequence[Peer]) -> dict[IPv4Network, Sequence[str]]:
        """Return the devices on which rp_filter rejects the packets of a peer."""
        asked = [(peer.subnet, *query) for peer in peers for query in self._arrivals(peer)]
        answers = await self._netlink.lookups([query for _, _, query in asked])
        found: dict[IPv4Network, list[str]] = {}
        for (subnet, index, _), answer in zip(asked, answers, strict=True):
            name = self._netlink.name_of(index)
            if answer.errno in _REJECTED and rp_filter.is_enabled(name):
                found.setdefault(subnet, []).append(name)
        return {subnet: list(dict.fromkeys(names)) for subnet, names in found.items()}

    async def _entries(self) -> set[entries.Identity]:
        """Return what leads into the network by the tunnel device."""
        owned = self._netlink.owned(self._plan.network, self._device)
        return {one async for chunk in owned for one in chunk} if self._plan.backend == "vxlan" else set()

    def _wanted(self, peer: Peer) -> list[FdbEntry | Neighbour]:
        """Return the entries of the VXLAN device that lead to a peer."""
        if not self._device or not peer.mac or peer.public_ip in self.direct:
            return []
        return [
            FdbEntry(peer.mac, peer.public_ip, self._device),
            Neighbour(tunnel_address(peer.subnet), peer.mac, self._device),
        ]

    def _arrivals(self, peer: Peer) -> list[tuple[int, RouteQuery]]:
        """Return the packets of a peer to this host: in the underlay, and in the overlay; each with its interface."""
        arrivals = [(self._external, peer.public_ip, self._host.external.address)]
        inside = self._external if peer.public_ip in self.direct else self._device
        own = filter(self._host.holder_of, (tunnel_address(self._plan.subnet), bridge_address(self._plan.subnet)))
        arrivals += [(inside, bridge_address(peer.subnet), target) for target in own]
        return [(index, RouteQuery(target, source, index)) for index, source, target in arrivals if index]
