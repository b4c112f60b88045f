"""Chooses the external interface: the NIC and the address that carry the overlay's datagrams.

Counterpart: lookupIface in main.go, pkg/ip/iface.go.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv4Interface, IPv4Network
from typing import NamedTuple

from flannelpy.errors import HostChanged, HostError
from flannelpy.linux.entries import Route
from flannelpy.linux.netlink import Address, Link, Netlink
from flannelpy.linux.own_devices import addresses_by_index, is_marked, is_of_earlier_version

log = logging.getLogger(__name__)


class ExternalInterface(NamedTuple):
    """The interface, the address of it that we use, and its MTU."""

    name: str
    address: IPv4Address
    mtu: int


# An address that is away for longer does not come back after a restart of the network.
ADDRESS_PATIENCE = 15.0
# VirtualBox gives this one to every machine behind its NAT.  Source: VirtualBox manual, section 9.8.
_VIRTUALBOX_NAT = IPv4Network("10.0.2.0/24")


async def find(
    netlink: Netlink, iface: str | None, leased: Container[IPv4Interface] = frozenset()
) -> ExternalInterface:
    """The interface that ``iface`` (a name or an address) means, by default the default route's.  Raises HostError.

    It is never a device of flannelpy, whose packets would travel in themselves; ``leased`` are the addresses by which
    devices of earlier versions are known.
    """
    links = {link.index: link for link in await netlink.links()}
    # An interface that came in between is none that somebody chose.
    addresses = [address for address in await netlink.addresses() if address.link_index in links]
    own = await _overlay_devices(netlink, links.values(), leased)
    for address in addresses:
        log.debug("Candidate interface %s with address %s", links[address.link_index].name, address.address)
    if iface is None:
        log.info("Determining IP address of default interface")
        routes = [route for route in await netlink.routes() if route.link_index in links.keys() - own]
        external = _with_address(links[_default_index(routes, links)], addresses)
        _warn_of_nat(external)
        return external
    wanted = _as_address(iface)
    if wanted is None:
        return _with_address(_not_own(_named(links.values(), iface), own, iface), addresses)
    # Another interface may have the same address.
    addresses.sort(key=lambda address: address.link_index in own)
    return _holding(wanted, addresses, links, own)


async def _overlay_devices(netlink: Netlink, links: Iterable[Link], leased: Container[IPv4Interface]) -> set[int]:
    """The indices of the devices of this flannelpy and of others."""
    held = await addresses_by_index(netlink)
    return {
        link.index for link in links if is_marked(link) or is_of_earlier_version(link, held.get(link.index, []), leased)
    }


def _not_own(link: Link, own: Container[int], iface: str) -> Link:
    if link.index in own:
        raise HostError(
            f"-iface={iface} means {link.name}, a device of flannelpy itself: name the interface by which the hosts "
            "reach each other"
        )
    return link


def _warn_of_nat(external: ExternalInterface) -> None:
    if external.address in _VIRTUALBOX_NAT:
        log.warning(
            "%s on %s looks like VirtualBox's NAT, which gives every host the same address; name the interface by "
            "which hosts reach each other with -iface",
            external.address,
            external.name,
        )


class Watch:
    """Notices when the external interface is no longer what it was; ``trouble`` is empty while it has its address."""

    def __init__(self, external: ExternalInterface, now: Callable[[], float]) -> None:
        self._external = external
        self._now = now
        self._mtu = external.mtu
        self._missing_since = 0.0
        self.trouble = ""

    async def check(self, netlink: Netlink) -> None:
        """Say what has changed.  Raises HostChanged when another address has taken the place of ours for good."""
        name, address, _ = self._external
        link = await netlink.link(name)
        addresses = await netlink.addresses()
        own = [one.address for one in addresses if link and one.link_index == link.index and not _is_stopgap(one)]
        if link:
            self._say_mtu(link.mtu)
        if any(one.address == address and link and one.link_index == link.index for one in addresses):
            self._found()
        else:
            self._missing(own)

    def _found(self) -> None:
        if self.trouble:
            log.info("Address %s is back on %s", self._external.address, self._external.name)
        self.trouble = ""

    def _missing(self, own: Sequence[IPv4Address]) -> None:
        name, address, _ = self._external
        if not self.trouble:
            self._missing_since = self._now()
            self.trouble = f"address {address} is gone from {name}"
            log.error("Address %s is gone from %s: no packets to and from other hosts", address, name)
        if own and self._now() - self._missing_since >= ADDRESS_PATIENCE:
            raise HostChanged(f"{name} has {own[0]} now instead of {address}: flannelpy has to start anew")

    def _say_mtu(self, mtu: int) -> None:
        if mtu == self._mtu:
            return
        self._mtu = mtu
        if mtu == self._external.mtu:
            log.info("MTU of %s is %d again", self._external.name, mtu)
        else:
            log.warning(
                "MTU of %s is %d now, it was %d at the start; restart flannelpy, then Docker, to follow it",
                self._external.name,
                mtu,
                self._external.mtu,
            )


def _is_stopgap(one: Address) -> bool:
    """Whether it is an address that an interface gives itself while it has none of its own."""
    return one.address.is_link_local or one.address.is_loopback


def _default_index(routes: Sequence[Route], links: Mapping[int, Link]) -> int:
    """The interface of the default route with the lowest metric."""
    defaults = sorted((route for route in routes if route.destination.prefixlen == 0), key=lambda route: route.metric)
    for route in defaults:
        log.debug("Candidate default route by %s with metric %d", links[route.link_index].name, route.metric)
    if not defaults:
        raise HostError("Failed to get default interface: Unable to find default route; name the interface by -iface")
    return defaults[0].link_index


def _named(links: Collection[Link], name: str) -> Link:
    for link in links:
        if link.name == name:
            return link
    names = ", ".join(sorted(link.name for link in links))
    raise HostError(f"Error looking up interface {name}: no such network interface; -iface may be one of {names}")


def _holding(
    wanted: IPv4Address, addresses: Sequence[Address], links: Mapping[int, Link], own: Container[int]
) -> ExternalInterface:
    for address in addresses:
        if address.address == wanted:
            return _external(_not_own(links[address.link_index], own, str(wanted)), wanted)
    held = ", ".join(str(address.address) for address in addresses)
    raise HostError(f"Error looking up interface {wanted}: No interface with given IP found; this machine has {held}")


def _with_address(link: Link, addresses: Sequence[Address]) -> ExternalInterface:
    """The first address that others can reach, else a link-local one; never a loopback address."""
    own = [address.address for address in addresses if address.link_index == link.index]
    usable = [address for address in own if not address.is_loopback and not address.is_multicast]
    usable.sort(key=lambda address: address.is_link_local)
    if not usable:
        raise HostError(f"Failed to find IPv4 address for interface {link.name}; give it one, or choose another -iface")
    return _external(link, usable[0])


def _external(link: Link, address: IPv4Address) -> ExternalInterface:
    return ExternalInterface(link.name, address, link.mtu)


def _as_address(text: str) -> IPv4Address | None:
    try:
        return IPv4Address(text)
    except AddressValueError:
        return None
