"""Removes from the kernel what a subnet file owns, and nothing else.

A start removes the state of another backend or network; LeaseLost and -cleanup remove all state.
Counterpart: none; flanneld leaves everything behind.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from ipaddress import IPv4Interface, IPv4Network
from typing import NamedTuple

from flannelpy.backend.foreign_routes import leftovers
from flannelpy.causes import listed
from flannelpy.errors import HostError
from flannelpy.linux.netlink.client import Netlink
from flannelpy.linux.own_devices import is_marked, own_devices
from flannelpy.marks import is_device_alias
from flannelpy.rtnetlink.links import Link
from flannelpy.rtnetlink.routes import PROTOCOL_BOOT, KernelRoute, RouteFilter

log = logging.getLogger(__name__)


class Scope(NamedTuple):
    """What one subnet file owns: devices with its alias, and marked routes and rules inside its networks.

    ``addresses``: those of our leases, which identify devices of earlier versions.
    """

    alias: str
    networks: frozenset[IPv4Network]
    addresses: frozenset[IPv4Interface]


class Keep(NamedTuple):
    """What a start leaves in place: the rules of its network, its device, and with ``routes`` the network's routes.

    ``tun``: the first TUN device is the start's device, under any name.
    """

    network: IPv4Network
    device: str
    routes: bool
    tun: bool = False


async def withdraw(netlink: Netlink, scope: Scope, keep: Keep | None = None) -> list[str]:
    """Remove what the scope owns, except ``keep``; return what was removed, in words.  Raises HostError.

    flannelpy marks a kept device, and removes its addresses and routes of networks that are not kept.
    """
    devices = await own_devices(netlink, scope.alias, scope.addresses)
    _check_unused(devices)
    routes = [route for route in await netlink.marked_routes() if _is_unwanted(route, scope, keep)]
    kept = [link for link in devices if keep and link.name == _kept_device(keep, devices)]
    links = [link for link in devices if link not in kept]
    dropped = scope.networks - {keep.network} if keep else scope.networks
    rules = [rule for rule in await netlink.prohibit_rules() if dropped & {rule.source, rule.destination}]
    await netlink.remove_routes(routes)
    for link in links:
        await log_routes_removed_with(netlink, link, scope.networks)
        await netlink.remove_link(link)
    await netlink.remove_rules(rules)
    for link in kept:
        await _keep(netlink, link, scope, keep)
    return [*map(route_text, routes), *(f"device {link.name}" for link in links), *map(str, rules)]


async def marked(netlink: Netlink) -> list[str]:
    """Return what has the mark of any flannelpy on this host, in words.  Raises HostError."""
    devices = [f"device {link.name} ({link.alias})" for link in await netlink.links() if is_marked(link)]
    routes, rules = await netlink.marked_routes(), await netlink.prohibit_rules()
    return [*devices, *map(route_text, routes), *map(str, rules)]


async def unmarked_leftovers(
    netlink: Netlink, networks: Collection[IPv4Network], own_subnet: IPv4Network | None = None
) -> list[str]:
    """Return the commands that remove what earlier versions may have left in these networks.  Raises HostError.

    Another program may have added these routes and rules just as well, so flannelpy never removes them.  Routes into
    our own subnet are another program's.
    """
    boot = [route async for chunk in netlink.routes_of(RouteFilter(PROTOCOL_BOOT)) for route in chunk]
    routes = [route for network in sorted(networks) for route in leftovers(boot, network, own_subnet, ())]
    commands = [f"ip route del {route.text(netlink.name_of)}" for route in routes]
    rules = [rule for rule in await netlink.unmarked_prohibit_rules() if {rule.source, rule.destination} & {*networks}]
    return [*commands, *(f"ip rule del from {rule.source} to {rule.destination} prohibit" for rule in rules)]


def route_text(route: KernelRoute) -> str:
    """Return the route in words."""
    return f"route to {route.destination} via {route.gateway}" if route.gateway else f"route to {route.destination}"


def _kept_device(keep: Keep, devices: Iterable[Link]) -> str:
    """Return the name of the start's device."""
    if not keep.tun:
        return keep.device
    return next((link.name for link in devices if link.kind == "tun" and is_device_alias(link.alias)), "")


def _check_unused(devices: Iterable[Link]) -> None:
    """Raise HostError for an unmarked TUN device that a process has open, because that is a running flanneld."""
    for link in devices:
        if link.kind == "tun" and link.has_carrier and not is_device_alias(link.alias):
            raise HostError(
                f"another process, such as flanneld, has our device {link.name} open: stop that process first"
            )


def _is_unwanted(route: KernelRoute, scope: Scope, keep: Keep | None) -> bool:
    if keep and keep.routes and route.destination.subnet_of(keep.network):
        return False
    return _is_part(route.destination, scope.networks)


async def log_routes_removed_with(netlink: Netlink, link: Link, networks: Collection[IPv4Network]) -> None:
    """Log the routes of other programs that the kernel removes with our device ``link``.  Raises HostError.

    These are its routes that lead outside of ``networks``.
    """
    others = [
        route.text(netlink.name_of)
        async for chunk in netlink.routes_of(RouteFilter(link_index=link.index))
        for route in chunk
        if route.link_index == link.index and not _is_part(route.destination, networks)
    ]
    if others:
        log.warning("The removal of device %s removes routes of other programs: %s", link.name, listed(others))


async def _keep(netlink: Netlink, link: Link, scope: Scope, keep: Keep | None) -> None:
    """Mark our device, and remove its addresses and routes of networks that are not kept."""
    if link.alias != scope.alias:
        await netlink.set_alias(link, scope.alias)
    kept = [keep.network] if keep else []

    def is_dropped(destination: IPv4Network) -> bool:
        return _is_part(destination, scope.networks) and not _is_part(destination, kept)

    for one in await netlink.addresses():
        if one.link_index == link.index and is_dropped(IPv4Network(one.address)):
            await netlink.remove_address(one)
    listing = netlink.routes_of(RouteFilter(link_index=link.index))
    routes = [route async for chunk in listing for route in chunk if route.link_index == link.index]
    await netlink.remove_routes([route for route in routes if is_dropped(route.destination)])


def _is_part(destination: IPv4Network, networks: Iterable[IPv4Network]) -> bool:
    return any(destination.subnet_of(network) for network in networks)
