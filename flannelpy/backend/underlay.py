"""The network below the overlay: this host's addresses and links, and how the kernel reaches an address.

No route of ours may capture packets to hosts on the external interface's own link, or to etcd.
Counterpart: none; flanneld v0.5.5 can cut hosts off from etcd.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Container, Iterable, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from itertools import chain

from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.addressing.surroundings import NO_SURROUNDINGS, Surroundings, surroundings
from flannelpy.errors import ConfigError
from flannelpy.linux.netlink.client import Netlink
from flannelpy.linux.own_devices import addresses_by_index, is_marked, looks_like_ours, own_devices
from flannelpy.linux.resolver import resolve
from flannelpy.rtnetlink.links import Link
from flannelpy.rtnetlink.routes import LOCAL, PROTOCOL_KERNEL, RouteFilter, RouteQuery

_RESOLVE_SECONDS = 2.0


class Routed(enum.Enum):
    """What a backend routes to other hosts: nothing, the leased subnets, or the whole network by its device."""

    NOTHING = enum.auto()
    SUBNETS = enum.auto()
    NETWORK = enum.auto()


class Underlay:
    """The underlay of a host with that external interface, public IP and etcd."""

    def __init__(self, external: ExternalInterface, public_ip: IPv4Address, etcd_hosts: Iterable[str]) -> None:
        """``etcd_hosts``: names or addresses.  IPv6 addresses are ignored."""
        self._external = external
        self._public_ip = public_ip
        self._unresolved = set(etcd_hosts)
        self._endpoints: dict[IPv4Address, str] = {}  # address -> host of the endpoint
        self._observed: object = None
        self._surroundings = NO_SURROUNDINGS
        self._overlay_devices: dict[int, str] = {}  # interface index -> name, empty for all other interfaces

    async def observe(self, netlink: Netlink) -> Surroundings:
        """Return the addresses and networks of this host.  Raises HostError."""
        now = (await self._addresses(netlink), frozenset(self._endpoints))
        if now != self._observed:  # mostly nothing has changed, and a host may have thousands of addresses
            (external, others, overlay), endpoints = self._observed = now
            await asyncio.sleep(0)
            self._surroundings = surroundings(external, others, self._public_ip, endpoints, overlay)
        return self._surroundings

    async def overlay_ways(self, netlink: Netlink, addresses: Sequence[IPv4Address]) -> dict[IPv4Address, str]:
        """Return the overlay device by which the kernel would send to each address, or "".  Raises HostError."""
        answers = await netlink.lookups([RouteQuery(address) for address in addresses])
        await self._learn_devices(netlink, (answer.link_index for answer in answers))
        names = [self._overlay_devices.get(answer.link_index, "") for answer in answers]
        return dict(zip(addresses, names, strict=True))

    async def check(self, netlink: Netlink, network: IPv4Network, routed: Routed) -> None:
        """Check that routes into ``network`` capture no packets to our link or etcd.  Raises ConfigError, HostError."""
        await self._resolve()
        if routed is Routed.NOTHING:
            return
        external, _, _ = await self._addresses(netlink)
        for link, address in (await self._links(netlink, external)).items():
            if network.subnet_of(link):
                raise ConfigError(
                    f"Network {network} would capture packets to hosts in {link}, the network of "
                    f"{self._external.name} ({address}): choose one that is no part of {link}"
                )
        if routed is Routed.NETWORK:
            await self._check_neighbours(netlink, network, external)
            await self._check_endpoints(netlink, network)

    async def unblock(self, netlink: Netlink, alias: str, leased: Container[IPv4Interface]) -> list[str]:
        """Remove the routes of our own devices that capture packets to etcd; return the removed routes in words.

        Raises HostError.  ``alias`` and ``leased`` distinguish our devices from foreign ones (own_devices.py).
        """
        await self._resolve()
        ways = await self.overlay_ways(netlink, list(self._endpoints))
        if not any(ways.values()):
            return []
        own = {link.name: link.index for link in await own_devices(netlink, alias, leased)}
        removed = []
        for address, device in ways.items():
            if device in own:
                listing = netlink.routes_of(RouteFilter(link_index=own[device]))
                routes = [route async for chunk in listing for route in chunk if address in route.destination]
                await netlink.remove_routes(routes)
                removed += [f"to {route.destination} by {device}" for route in routes]
        return removed

    async def _resolve(self) -> None:
        """Look up the addresses of those etcd hosts that are not resolved yet."""
        for host, addresses in (await resolve(self._unresolved, _RESOLVE_SECONDS)).items():
            if addresses:
                self._unresolved.discard(host)
                self._endpoints |= dict.fromkeys(addresses, host)

    async def _links(self, netlink: Netlink, external: Iterable[IPv4Interface]) -> dict[IPv4Network, IPv4Address]:
        """Return the networks of the external interface, each with our address: of its addresses and of their peers."""
        link = await netlink.link(self._external.name)
        links = {one.network: one.ip for one in external if one.network.prefixlen < 32}
        if link:
            async for chunk in netlink.routes_of(RouteFilter(PROTOCOL_KERNEL, link.index)):
                for route in chunk:
                    if 0 < route.prefix_len < 32:
                        links.setdefault(route.destination, self._external.address)
        return links

    async def _check_neighbours(
        self, netlink: Netlink, network: IPv4Network, external: Sequence[IPv4Interface]
    ) -> None:
        """Check for neighbours of an address without a network, such as 10.1.0.5/32.  Raises ConfigError."""
        inside = [one for one in external if one.ip in network]
        routes = await netlink.routes() if inside else []
        await self._learn_devices(netlink, (route.link_index for route in routes))
        ways = [route.destination for route in routes if not self._overlay_devices.get(route.link_index)]
        for one in inside:
            if not any(one.ip in way and network.prefixlen < way.prefixlen < 32 for way in ways):
                raise ConfigError(
                    f"Network {network} would capture packets to the neighbours of {self._external.name} ({one}): "
                    f"choose one that does not contain {one.ip}"
                )

    async def _check_endpoints(self, netlink: Netlink, network: IPv4Network) -> None:
        inside = [address for address in self._endpoints if address in network]
        answers = await netlink.lookups([RouteQuery(address) for address in inside], matched=True)
        await self._learn_devices(netlink, (answer.link_index for answer in answers))
        for address, answer in zip(inside, answers, strict=True):
            way = answer.prefix or IPv4Network("0.0.0.0/0")
            is_overlay = bool(self._overlay_devices.get(answer.link_index))
            if answer.kind != LOCAL and (is_overlay or way.prefixlen <= network.prefixlen):
                raise ConfigError(
                    f"Network {network} would capture packets to {address}, an address of the etcd endpoint "
                    f"{self._endpoints[address]}: choose one that does not contain {address}"
                )

    async def _addresses(
        self, netlink: Netlink
    ) -> tuple[list[IPv4Interface], list[IPv4Interface], list[IPv4Interface]]:
        """Return the addresses of the external interface, of other interfaces, and of overlay devices.

        The interface that has the external address counts as the external interface.
        """
        found = [await netlink.link(name) for name in dict.fromkeys((self._external.name, self._external.holder))]
        held = await addresses_by_index(netlink)
        await self._learn_devices(netlink, held)
        external = [address for link in found if link for address in held.pop(link.index, [])]
        overlay = [addresses for index, addresses in held.items() if self._overlay_devices.get(index)]
        others = [addresses for index, addresses in held.items() if not self._overlay_devices.get(index)]
        return external, list(chain.from_iterable(others)), list(chain.from_iterable(overlay))

    async def _learn_devices(self, netlink: Netlink, link_indices: Iterable[int]) -> None:
        """Note which of these are overlay devices.  An index keeps its meaning, so each is looked up once."""
        if not {0, *self._overlay_devices}.issuperset(link_indices):
            links = await netlink.links()
            self._overlay_devices = {link.index: link.name if _is_overlay(link) else "" for link in links}


def _is_overlay(link: Link) -> bool:
    return is_marked(link) or looks_like_ours(link)
