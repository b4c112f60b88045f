"""Asks the kernel whether packets for the containers of this host reach their bridge, and containers are at it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network

from flannelpy.backend.route_cause import DivertingRoutes
from flannelpy.check.observations import HostSeen, Peer
from flannelpy.check.plan import Plan, bridge_address
from flannelpy.linux.netlink.client import Netlink
from flannelpy.rtnetlink.links import Link
from flannelpy.rtnetlink.routes import RouteAnswer, RouteFilter, RouteQuery

# All addresses of a subnet of 24 bits.
_ADDRESSES = 256
_NAMED = 4
_HOST_BITS = 32
_ALL_TABLES = 0
# Docker's libnetwork has 7 digits, CNI's bridge and ptp plugins have 8.  Programs that need no bridge use other names,
# such as Cilium lxc and Calico cali.
_FOR_BRIDGE = re.compile(r"veth[0-9a-f]{7,8}")


async def diverted(netlink: Netlink, host: HostSeen, plan: Plan, device: int, peers: Sequence[Peer]) -> Sequence[str]:
    """Return the routes that take packets for the own subnet elsewhere than to the bridge of the containers.

    ``device``: the index of the tunnel device, 0 without one.  Empty without a bridge, and while one is down: the
    kernel has then removed its route.  Raises HostError.
    """
    bridges = _bridges(host, plan.subnet)
    if not bridges or any(link.index in bridges and not link.is_up for link in host.links):
        return []
    index = device or (host.link.index if host.link else 0)
    queries = list(_queries(host, plan.subnet, index, peers))
    answers = await netlink.lookups(queries)
    wanted = {link.master for link in host.links} & bridges
    wrong = [
        query
        for query, answer in zip(queries, answers, strict=True)
        if _is_wrong(query, answer, bridges=bridges, wanted=wanted)
    ]
    return await _causes(netlink, wrong)


def _bridges(host: HostSeen, subnet: IPv4Network) -> set[int]:
    """Return the indices of the bridges with an address and the prefix length of a subnet."""
    kinds = {link.index: link.kind for link in host.links}
    return {
        one.link_index
        for one in host.addresses
        if one.address in subnet and one.prefix_len == subnet.prefixlen and kinds.get(one.link_index) == "bridge"
    }


def _queries(host: HostSeen, subnet: IPv4Network, index: int, peers: Sequence[Peer]) -> Iterator[RouteQuery]:
    """Yield packets of this host, and of a container of a peer, to addresses all over the subnet."""
    held = {one.address for one in host.addresses}
    step = max(1, subnet.num_addresses // _ADDRESSES)
    for number in range(1, subnet.num_addresses - 1, step):
        target = IPv4Address(int(subnet.network_address) + number)
        if target not in held:
            yield RouteQuery(target)
            if peers and index:
                yield RouteQuery(target, bridge_address(peers[0].subnet) + 1, index)


def _is_wrong(query: RouteQuery, answer: RouteAnswer, *, bridges: Collection[int], wanted: Collection[int]) -> bool:
    """Return whether a packet misses the bridge; ``wanted``: the bridges that have containers.

    The kernel may reject a packet from elsewhere because of rp_filter or forwarding, which have lines of their own.
    """
    if answer.errno:
        return not query.input_index
    return wanted != {answer.link_index} if wanted else answer.link_index not in bridges


async def unplugged(netlink: Netlink, host: HostSeen, plan: Plan) -> Sequence[Link]:
    """Return the ends of containers' veth pairs that are at no bridge, although the subnet has one.  Raises HostError.

    ``host`` was observed some time ago: a CNI plugin plugs an end in milliseconds after it has come to this host.
    """
    before = {link.index for link in host.links if _is_unplugged(link)}
    if not before or not _bridges(host, plan.subnet):
        return []
    held = {one.link_index for one in await netlink.addresses()}
    lost = [link for link in await netlink.links() if link.index in before - held and _is_unplugged(link)]
    return [link for link in lost if not await _has_routes(netlink, link)]


def _is_unplugged(link: Link) -> bool:
    """Return whether Docker or the bridge plugin of CNI has made a veth pair for a bridge, and this end is at none."""
    return link.leads_elsewhere and not link.master and link.kind == "veth" and bool(_FOR_BRIDGE.fullmatch(link.name))


async def _has_routes(netlink: Netlink, link: Link) -> bool:
    """Return whether packets are routed to the end itself, as by CNI's ptp plugin."""
    is_found = False
    async for chunk in netlink.routes_of(RouteFilter(link_index=link.index, table=_ALL_TABLES)):
        is_found |= bool(chunk)
    return is_found


async def _causes(netlink: Netlink, wrong: Sequence[RouteQuery]) -> Sequence[str]:
    """Return the routes in words, without those to a single container."""
    answers = await netlink.lookups(wrong, matched=True)
    causes, found = DivertingRoutes(netlink), dict[tuple[object, ...], str]()
    for query, answer in zip(wrong, answers, strict=True):
        key = (answer.errno, answer.prefix, answer.link_index, answer.table)
        is_of_one = not answer.errno and answer.prefix is not None and answer.prefix.prefixlen == _HOST_BITS
        if key not in found and len(found) < _NAMED and not is_of_one:
            found[key] = await causes.name(query, answer)
    return list(found.values())
