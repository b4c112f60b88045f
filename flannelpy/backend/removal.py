"""The one removal: it takes away what a subnet file owns in the kernel, and nothing else.

A start uses it for the state of another backend or network, a lost lease and -cleanup for all there is.
Counterpart: none; flanneld leaves everything behind.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Interface, IPv4Network
from typing import NamedTuple

from flannelpy.backend.foreign_routes import leftovers
from flannelpy.errors import HostError
from flannelpy.linux.marks import is_device_alias
from flannelpy.linux.netlink import Address, Link, Netlink
from flannelpy.linux.own_devices import own_devices
from flannelpy.linux.routes import PROTOCOL_BOOT, KernelRoute, RouteFilter


class Scope(NamedTuple):
    """What one subnet file owns: devices with its alias, and marked routes and rules inside its networks.

    ``addresses``: those of our leases, by which devices of earlier versions are known.
    """

    alias: str
    networks: frozenset[IPv4Network]
    addresses: frozenset[IPv4Interface]


class Keep(NamedTuple):
    """What a start leaves in place: the rules of its network, its device, and with ``routes`` the network's routes."""

    network: IPv4Network
    device: str
    routes: bool


async def withdraw(netlink: Netlink, scope: Scope, keep: Keep | None = None) -> list[str]:
    """Remove what the scope owns, except ``keep``; returns what was removed.  Raises HostError.

    A kept device gets its mark, and loses the addresses of networks that are not kept.
    """
    devices = await own_devices(netlink, scope.alias, scope.addresses)
    _check_unused(devices)
    routes = [route for route in await netlink.marked_routes() if _is_unwanted(route, scope, keep)]
    kept = [link for link in devices if keep and link.name == keep.device]
    links = [link for link in devices if link not in kept]
    dropped = scope.networks - {keep.network} if keep else scope.networks
    rules = [rule for rule in await netlink.prohibitions() if dropped & {rule.source, rule.destination}]
    await netlink.remove_routes(routes)
    for link in links:
        await netlink.remove_link(link)
    await netlink.permit(rules)
    for link in kept:
        await _keep(netlink, link, scope.alias, dropped)
    return [*map(route_text, routes), *(f"device {link.name}" for link in links), *map(str, rules)]


async def marked(netlink: Netlink) -> list[str]:
    """What carries the mark of any flannelpy on this host, in words.  Raises HostError."""
    devices = [f"device {link.name} ({link.alias})" for link in await netlink.links() if is_device_alias(link.alias)]
    routes, rules = await netlink.marked_routes(), await netlink.prohibitions()
    return [*devices, *map(route_text, routes), *map(str, rules)]


async def unmarked_leftovers(netlink: Netlink, networks: frozenset[IPv4Network]) -> list[str]:
    """The commands that remove what earlier versions may have left in these networks.  Raises HostError.

    Another program may have added these routes and rules just as well, so they are never removed.
    """
    boot = [route async for chunk in netlink.routes_of(RouteFilter(PROTOCOL_BOOT)) for route in chunk]
    routes = [route for network in sorted(networks) for route in leftovers(boot, network, None, ())]
    commands = [f"ip route del {route.text(netlink.name_of)}" for route in routes]
    rules = [rule for rule in await netlink.unmarked_prohibitions() if {rule.source, rule.destination} & networks]
    return [*commands, *(f"ip rule del from {rule.source} to {rule.destination} prohibit" for rule in rules)]


def route_text(route: KernelRoute) -> str:
    """The route in words."""
    return f"route to {route.destination} via {route.gateway}" if route.gateway else f"route to {route.destination}"


def _check_unused(devices: Iterable[Link]) -> None:
    """Raises HostError for an unmarked TUN device that a process has open: then a flanneld runs."""
    for link in devices:
        if link.kind == "tun" and link.in_use and not is_device_alias(link.alias):
            raise HostError(f"{link.name} is in use: stop flannelpy, then clean up")


def _is_unwanted(route: KernelRoute, scope: Scope, keep: Keep | None) -> bool:
    if keep and keep.routes and route.destination.subnet_of(keep.network):
        return False
    return any(route.destination.subnet_of(network) for network in scope.networks)


async def _keep(netlink: Netlink, link: Link, alias: str, dropped: frozenset[IPv4Network]) -> None:
    if link.alias != alias:
        await netlink.set_alias(link, alias)
    for one in await netlink.addresses():
        if one.link_index == link.index and _is_inside(one, dropped):
            await netlink.remove_address(one)


def _is_inside(one: Address, networks: Iterable[IPv4Network]) -> bool:
    return any(one.address in network for network in networks)
