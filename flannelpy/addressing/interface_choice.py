"""Chooses the interface and address of the overlay's datagrams, and finds their replacement when they are lost.  Pure.

The choice depends on the flags, and on the state of the machine as ``Machine`` holds it.  The start of the daemon and
its monitor of the interface use the same ``Chooser``, so both accept the same addresses.
Counterpart: lookupIface in main.go, pkg/ip/iface.go; LookupExtIface in pkg/ipmatch of v0.20.2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import NamedTuple

from flannelpy.errors import HostError
from flannelpy.rtnetlink.entries import Route
from flannelpy.rtnetlink.links import Address, Link
from flannelpy.rtnetlink.routes import RouteAnswer


class ExternalInterface(NamedTuple):
    """The interface by which packets leave, the address that they come from, and the MTU.

    ``other_holder`` is the interface that has ``address``, where that is not ``name``.
    """

    name: str
    address: IPv4Address
    mtu: int
    other_holder: str = ""

    @property
    def holder(self) -> str:
        """The interface that has the address."""
        return self.other_holder or self.name


class Wanted(NamedTuple):
    """The values of -iface, -iface-regex, -iface-can-reach and -public-ip.

    ``etcd``: the addresses in -etcd-endpoints, to which the machine must have a route in any case.
    """

    ifaces: Sequence[str] = ()
    regexes: Sequence[re.Pattern[str]] = ()
    can_reach: IPv4Address | None = None
    public_ip: IPv4Address | None = None
    etcd: Sequence[IPv4Address] = ()

    @property
    def names_interface(self) -> bool:
        """Whether a flag selects the interface."""
        return bool(self.ifaces or self.regexes or self.can_reach)


class Machine(NamedTuple):
    """The state of a machine that a choice depends on.

    ``links``: by index.  ``addresses``: of these links, in the kernel's order.  ``own``: the indices of devices of
    flannelpy, whose packets would be encapsulated in themselves.  ``defaults``: the default routes by other devices,
    the lowest metric first.  ``reach``: the kernel's route to ``Wanted.can_reach``.  ``etcd_ways``: the kernel's routes
    to etcd, if there is no default route.  ``subnets``: of this host's containers, now or before.
    """

    links: Mapping[int, Link]
    addresses: Sequence[Address]
    own: Collection[int]
    defaults: Sequence[Route] = ()
    reach: RouteAnswer | None = None
    etcd_ways: Sequence[RouteAnswer] = ()
    subnets: Collection[IPv4Network] = ()

    def port_master(self, link: Link) -> Link | None:
        """Return the bridge or bond that ``link`` is a port of; no peer reaches the address of a port."""
        master = self.links.get(link.master)
        return master if master and master.takes_frames else None


class Choice(NamedTuple):
    """The chosen interface, and why each flag value that was tried before does not fit."""

    external: ExternalInterface
    misses: Sequence[str] = ()


class _Pick(NamedTuple):
    """An interface, and its address if a flag names one."""

    link: Link
    address: IPv4Address | None = None


class Chooser:
    """The choice between the interfaces of one machine."""

    def __init__(self, wanted: Wanted, machine: Machine) -> None:
        self._wanted = wanted
        self._machine = machine
        self._addresses: dict[int, list[Address]] = {}
        for address in machine.addresses:
            self._addresses.setdefault(address.link_index, []).append(address)
        #: The interface that has the public IP; None where no interface has it.
        self.public_holder = self._holder(wanted.public_ip) if wanted.public_ip else None

    @property
    def asks_for_default(self) -> bool:
        """Whether the default route decides."""
        return not self._wanted.names_interface and self.public_holder is None

    def choose(self) -> Choice:
        """Choose the interface.  Raises HostError if none fits."""
        pick, misses = self._pick()
        holder, address = pick.link, pick.address
        if self.public_holder:
            holder, address = self.public_holder, self._wanted.public_ip
        address = address or self._usable(holder)[0]
        way_out = pick.link if pick.link.is_exit else self._way_out(pick.link, address)
        other = "" if holder.index == way_out.index else holder.name
        return Choice(ExternalInterface(way_out.name, address, way_out.mtu, other), misses)

    def _pick(self) -> tuple[_Pick, Sequence[str]]:
        if not self._wanted.names_interface:
            return _Pick(self.public_holder or self._default()), ()
        misses: list[str] = []
        for find in self._attempts():
            try:
                pick = find()
                is_port = self._machine.port_master(pick.link) is not None
                if not pick.address and (is_port or not self.public_holder):
                    self._usable(pick.link)
            except HostError as error:
                misses.append(str(error))
            else:
                return pick, misses
        if len(misses) == 1:
            raise HostError(misses[0])
        raise HostError(
            f"Failed to find interface to use that matches the interfaces and/or regexes provided: {'; '.join(misses)}"
        )

    def _attempts(self) -> Iterator[Callable[[], _Pick]]:
        """Yield the searches in the order of v0.20.2: all of -iface, all of -iface-regex, -iface-can-reach."""
        for iface in self._wanted.ifaces:
            yield partial(self._by_name_or_address, iface)
        for regex in self._wanted.regexes:
            yield partial(self._by_regex, regex)
        if self._wanted.can_reach:
            yield self._by_route

    def _by_name_or_address(self, iface: str) -> _Pick:
        address = _as_address(iface)
        if address and address.is_loopback:
            raise HostError(f"-iface={iface!r} is a loopback address: other hosts cannot reach it")
        link = self._holding(address) if address else self._named(iface)
        if link.index in self._machine.own:
            raise HostError(
                f"-iface={iface!r} means {link.name}, a device of flannelpy itself: name the interface by which the "
                "hosts reach each other"
            )
        return _Pick(link, address)

    def _named(self, name: str) -> Link:
        links = self._machine.links.values()
        for link in links:
            if name == link.name or name in link.altnames:
                return link
        names = ", ".join(sorted(link.name for link in links))
        raise HostError(f"Error looking up interface {name!r}: no such network interface; -iface may be one of {names}")

    def _holding(self, wanted: IPv4Address) -> Link:
        """Return the interface with that address, also if flannelpy would not choose it without the flag."""
        if found := self._holder(wanted):
            return found
        for address in self._machine.addresses:
            if address.address == wanted:
                return self._machine.links[address.link_index]
        held = ", ".join(str(address.address) for address in self._machine.addresses)
        raise HostError(
            f"Error looking up interface '{wanted}': No interface with given IP found; this machine has {held}"
        )

    def _holder(self, wanted: IPv4Address) -> Link | None:
        """Return the interface with that address, never a device of flannelpy; an exit for packets comes first."""
        holders = [
            self._machine.links[one.link_index]
            for one in self._machine.addresses
            if one.address == wanted and one.link_index not in self._machine.own
        ]
        exits = (link for link in holders if link.is_exit and not self._machine.port_master(link))
        return next(exits, holders[0] if holders else None)

    def _by_regex(self, regex: re.Pattern[str]) -> _Pick:
        """Search the addresses, then the names, of interfaces with a usable address."""
        for link, usable in self._candidates():
            for address in usable:
                if regex.search(str(address)):
                    return _Pick(link, address)
        for link, _ in self._candidates():
            if any(regex.search(name) for name in (link.name, *link.altnames)):
                return _Pick(link)
        known = ", ".join(f"{link.name} ({', '.join(map(str, usable))})" for link, usable in self._candidates())
        raise HostError(
            f"Error looking up interface by -iface-regex={regex.pattern!r}: it matches no address and no name of "
            f"{known or 'an interface with an IPv4 address'}"
        )

    def _candidates(self) -> Iterator[tuple[Link, list[IPv4Address]]]:
        """Yield the interfaces with usable addresses; all interfaces if another one has the public IP."""
        for link in self._machine.links.values():
            usable = self._usable_addresses(link)
            is_possible = usable or (self.public_holder and not self._machine.port_master(link))
            if is_possible and link.index not in self._machine.own and not self._serves_containers(link.index):
                yield link, usable

    def _serves_containers(self, link_index: int) -> bool:
        """Return whether an interface has an address of this host's containers: other hosts cannot reach it."""
        held = self._addresses.get(link_index, [])
        return any(one.address in subnet for one in held for subnet in self._machine.subnets)

    def _by_route(self) -> _Pick:
        """Use the kernel's route to the target, and the address that the kernel would send from."""
        reach, flag = self._machine.reach, f"-iface-can-reach={self._wanted.can_reach}"
        link = self._machine.links.get(reach.link_index) if reach and not reach.errno else None
        if reach is None or link is None:
            raise HostError(f"Error looking up interface by {flag}: the kernel has no route to it")
        if link.is_loopback:
            raise HostError(f"{flag} is an address of this machine: name one that other hosts have")
        if link.index in self._machine.own:
            raise HostError(f"{flag} is reached by {link.name}, a device of flannelpy itself: name another address")
        usable = self._usable_addresses(link)
        return _Pick(link, reach.source if reach.source in usable else None)

    def _default(self) -> Link:
        if not self._machine.defaults:
            raise HostError(
                "Failed to get default interface: Unable to find default route; name the interface by -iface"
            )
        indices = [route.link_index for route in self._machine.defaults]
        outward = (index for index in indices if not self._serves_containers(index))
        return self._machine.links[next(outward, indices[0])]

    def _way_out(self, holder: Link, address: IPv4Address) -> Link:
        """Return the interface by which packets from an address of ``holder`` leave, if ``holder`` is no exit itself.

        This is the interface of the default route, which leads to hosts that are not known yet, else that of the route
        to etcd.
        """
        indices = [route.link_index for route in self._machine.defaults]
        indices += [way.link_index for way in self._machine.etcd_ways if not way.errno]
        for index in indices:
            link = self._machine.links.get(index)
            if link and not link.is_loopback and index not in self._machine.own:
                return link
        raise HostError(
            f"No packets leave by {holder.name}, which has {address}, and there is no default route: name the "
            f"interface by which they leave with -iface, and the address with -public-ip={address}"
        )

    def _usable(self, link: Link) -> list[IPv4Address]:
        """Return the addresses of ``link`` that flannelpy may choose, the best first.  Raises HostError without any."""
        if usable := self._usable_addresses(link):
            return usable
        held = self._addresses.get(link.index, [])
        flaws = ", ".join(f"{one.address} is {one.flaw}" for one in held if one.flaw and not one.address.is_loopback)
        remedy = "give it one, or choose another -iface"
        if master := self._machine.port_master(link):
            remedy = f"it is a port of {master.name}: try -iface={master.name}"
        raise HostError(
            f"Failed to find IPv4 address for interface {link.name}{f' ({flaws})' if flaws else ''}; {remedy}"
        )

    def _usable_addresses(self, link: Link) -> list[IPv4Address]:
        """Return the addresses that peers can reach, in the kernel's order, then those valid on the link only."""
        if self._machine.port_master(link):
            return []
        usable = [one for one in self._addresses.get(link.index, []) if not one.flaw]
        return [one.address for one in sorted(usable, key=lambda one: one.is_last_resort)]


def place_now(external: ExternalInterface, indices: Mapping[str, int], wanted: Wanted, machine: Machine) -> str:
    """Describe the replacement of the address or the interface that ``external`` has lost; empty if there is none.

    ``indices``: interface indices of ``external`` at the start, by name.
    """
    address, holder = external.address, external.holder
    holders = [
        machine.links[one.link_index]
        for one in machine.addresses
        if one.address == address and one.link_index not in machine.own
    ]
    usable = [link for link in holders if not machine.port_master(link)]
    if any(link.name == holder for link in usable):
        return _new_way_out(external, indices, wanted, machine)
    for link in holders:
        if link.index == indices.get(holder) and link.name != holder:
            return f"{holder} was renamed to {link.name}, which has {address}"
    for link in usable:
        return f"{address} moved from {holder} to {link.name}"
    # Nothing else can replace an address that -public-ip names.
    return "" if address == wanted.public_ip else _replacement(external, wanted, machine)


def _new_way_out(external: ExternalInterface, indices: Mapping[str, int], wanted: Wanted, machine: Machine) -> str:
    link = machine.links.get(indices.get(external.name, 0))
    if link and link.name != external.name:
        return f"{external.name} was renamed to {link.name}"
    new = _choice_now(wanted, machine)
    if new is None or new.name == external.name:
        return ""
    if new.address != external.address:
        return _replacement(external, wanted, machine)
    return f"{external.name} was replaced by {new.name}"


def _replacement(external: ExternalInterface, wanted: Wanted, machine: Machine) -> str:
    new = _choice_now(wanted, machine)
    if new is None and wanted.ifaces:
        # -iface named the interface by the address that is gone.
        new = _choice_now(Wanted([external.holder]), machine)
    if new is None or new.address == external.address:
        return ""
    if new.address.is_link_local and not external.address.is_link_local:
        return ""
    if new.holder == external.holder:
        return f"{new.holder} has {new.address} now instead of {external.address}"
    return f"{external.address} on {external.holder} was replaced by {new.address} on {new.holder}"


def _choice_now(wanted: Wanted, machine: Machine) -> ExternalInterface | None:
    try:
        return Chooser(wanted, machine).choose().external
    except HostError:
        return None


def _as_address(text: str) -> IPv4Address | None:
    try:
        return IPv4Address(text)
    except AddressValueError:
        return None
