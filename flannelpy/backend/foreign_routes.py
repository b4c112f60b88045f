"""Routes of other programs to destinations of flannelpy's routes.  flannelpy never changes them.

Counterpart: none; flanneld replaces them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from ipaddress import IPv4Network

from flannelpy.causes import listed
from flannelpy.chunks import in_chunks
from flannelpy.linux.netlink.client import Netlink
from flannelpy.logs import FailureLog
from flannelpy.marks import ROUTE_PROTOCOL
from flannelpy.rtnetlink.entries import GatewayRoute
from flannelpy.rtnetlink.routes import PROTOCOL_BOOT, KernelRoute, RouteFilter

log = logging.getLogger(__name__)


class ForeignRoutes:
    """Other programs' routes to leased subnets, by subnet.

    A ``blocking`` route leads elsewhere, so the subnet is unreachable.  An ``equivalent`` route leads to the lease's
    host, so the subnet is reachable without a route of ours.
    """

    def __init__(self) -> None:
        self.blocking: dict[IPv4Network, KernelRoute] = {}
        self.equivalent: dict[IPv4Network, KernelRoute] = {}
        self._texts: Mapping[IPv4Network, str] = {}  # about the blocking routes, as of the last ``report``
        self._failures = FailureLog(log, "Subnets are unreachable because of other programs' routes")

    async def judge(self, netlink: Netlink, wanted: Sequence[GatewayRoute]) -> list[tuple[GatewayRoute, KernelRoute]]:
        """List the routes to the destinations of ``wanted``; return those to adopt.  Raises HostError.

        flannelpy adopts a route that flanneld or an earlier version of flannelpy added: protocol boot, metric 0, and
        exactly what the lease asks for.
        """
        there = await netlink.routes_to({route.destination for route in wanted})
        adopted = []
        for route in wanted:
            found = _first(there.get(route.destination, ()))
            self.blocking.pop(route.destination, None)
            self.equivalent.pop(route.destination, None)
            if found is None or found.protocol == ROUTE_PROTOCOL:
                continue
            if not leads_as(route, found):
                self.blocking[route.destination] = found
            elif found.protocol == PROTOCOL_BOOT and not found.has_nexthop_object:
                adopted.append((route, found))
            else:
                self.equivalent[route.destination] = found
        return adopted

    def forget_all_but(self, subnets: Container[IPv4Network]) -> None:
        """Forget what was found about subnets that are no longer leased."""
        for found in (self.blocking, self.equivalent):
            for subnet in [subnet for subnet in found if subnet not in subnets]:
                del found[subnet]

    def why_blocked(self, subnet: IPv4Network) -> str:
        """Return which route is in the way of ours; empty if there is none."""
        if subnet not in self.blocking:
            return ""
        return f"the route {self._texts.get(subnet, subnet)} of another program is in the way"

    async def report(self, netlink: Netlink) -> None:
        """Log each blocking route once, in one line for all that differ by their destination only."""
        texts, ways = dict[IPv4Network, str](), dict[IPv4Network, str]()
        async for chunk in in_chunks(self.blocking.items()):
            for subnet, route in chunk:
                texts[subnet] = route.text(netlink.name_of)
                ways[subnet] = texts[subnet].replace(str(subnet), "", 1)
        self._texts = texts
        self._failures.note_all(ways, lambda subnets, _: _about_blocked(sorted(subnets), texts))


def _about_blocked(subnets: Sequence[IPv4Network], routes_of: Mapping[IPv4Network, str]) -> str:
    """Return the log line about subnets whose routes differ by the destination only."""
    route = routes_of[subnets[0]]
    routes = f"the route {route} alone, which" if len(subnets) == 1 else f"routes such as {route} alone, which"
    return (
        f"{subnets_are(subnets)} unreachable: flannelpy leaves {routes} another program added; "
        f"to remove it: ip route del {route}"
    )


def subnets_are(subnets: Sequence[IPv4Network]) -> str:
    """Return the subject and verb of a sentence about subnets, such as ``Subnets a, b, c and 17 more are``."""
    return f"Subnet {subnets[0]} is" if len(subnets) == 1 else f"Subnets {listed(subnets)} are"


def leads_as(wanted: GatewayRoute, found: KernelRoute) -> bool:
    """Return whether a route has the same gateway and the same interface."""
    return (
        found.is_unicast
        and not found.has_several_hops
        and (found.gateway, found.link_index) == (wanted.gateway, wanted.link_index)
    )


def leftovers(
    routes: Iterable[KernelRoute], network: IPv4Network, own_subnet: IPv4Network | None, wanted: Container[IPv4Network]
) -> list[KernelRoute]:
    """Return the routes that flanneld, or flannelpy before it marked its routes, may have left.

    Such a route has protocol boot, metric 0 and a gateway.  It leads into the network, but not into our own subnet, and
    no lease asks for it.  Another program may have added it just as well, so flannelpy never removes it.
    """
    return [
        route
        for route in routes
        if route.protocol == PROTOCOL_BOOT
        and route.gateway is not None
        and not (route.metric or route.tos or route.has_several_hops or route.has_nexthop_object)
        and route.destination != network
        and route.destination.subnet_of(network)
        and not (own_subnet and route.destination.subnet_of(own_subnet))
        and route.destination not in wanted
    ]


async def find_leftovers(
    netlink: Netlink,
    network: IPv4Network,
    own_subnet: IPv4Network | None,
    link_index: int,
    wanted: Container[IPv4Network] = (),
) -> list[KernelRoute]:
    """Return the ``leftovers`` in the main table that use the external interface.  Raises HostError.

    ``link_index`` is the index of the external interface.
    """
    found: list[KernelRoute] = []
    async for chunk in netlink.routes_of(RouteFilter(PROTOCOL_BOOT, link_index)):
        found += leftovers(chunk, network, own_subnet, wanted)
    return found


def log_leftovers(found: Sequence[KernelRoute], name_of: Callable[[int], str]) -> None:
    """Log the leftover routes in one line, with the command that removes the only one or lists them."""
    if not found:
        return
    texts = [route.text(name_of) for route in found]
    log.warning(
        "Route %s may be left from flanneld: no lease asks for it; flannelpy leaves it alone; %s",
        listed(texts),
        f"to remove it: ip route del {texts[0]}" if len(texts) == 1 else "-cleanup lists the commands that remove them",
    )


def _first(routes: Sequence[KernelRoute]) -> KernelRoute | None:
    """Return the route that the kernel uses among those in the way of a route without metric."""
    return next((route for route in routes if not (route.metric or route.tos)), None)
