"""Checks whether the external interface still is up and has the address with which flannelpy was started.

While the address exists, only the state of the link matters.  Once the address is gone, its interface is the port of a
bridge or bond, or its link is down and no flag names it, flannelpy chooses an interface again, as at the start.  If
another address is in its place for 15 s, flannelpy must be restarted to use that one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from flannelpy.addressing.interface_choice import ExternalInterface, Wanted, place_now
from flannelpy.causes import sentence
from flannelpy.errors import ExternalAddressChanged
from flannelpy.host.external_interface import Leased, observe
from flannelpy.linux.netlink.client import Netlink
from flannelpy.logs import FailureLog
from flannelpy.report import InterfaceReport
from flannelpy.rtnetlink.links import Address, Link

log = logging.getLogger(__name__)

# A restart of the host's network takes less time, and may replace the address for a moment.
ADDRESS_PATIENCE = 15.0


class _Fault(NamedTuple):
    """What is wrong, and what is logged when it no longer is."""

    text: str
    recovery: str
    is_port: bool = False
    is_loss: bool = False  # of the interface or its address


class ExternalInterfaceMonitor:
    """Checks that the external interface is up and has the address that flannelpy was started with."""

    def __init__(
        self,
        external: ExternalInterface,
        wanted: Wanted,
        now: Callable[[], float],
        leased: Callable[[], Leased] = Leased,
    ) -> None:
        """``wanted`` and ``leased``: the arguments by which ``external_interface.find`` chose ``external``.

        ``now``: a clock in seconds.
        """
        self._external = external
        self._wanted = wanted
        self._now = now
        self._leased = leased
        self._indices: dict[str, int] = {}  # link indices by the names of the interface and of the address's holder
        self._fault: _Fault | None = None
        self._failures = FailureLog(log, "The external interface fails")
        self._replacements = FailureLog(log, "The external interface is replaced")
        self._mtu = external.mtu
        self._mtus = FailureLog(log, "The external interface has another MTU")
        self._public_ips = FailureLog(log, "This machine has the public IP")
        self._placed_at = math.inf  # since when another address is in the place of ours
        self._problem = ""

    async def check(self, netlink: Netlink) -> None:
        """Log what has changed.  Raises ExternalAddressChanged if the address is replaced for 15 s; HostError."""
        external = self._external
        link = await netlink.link(external.name)
        holder = await netlink.link(external.holder) if external.other_holder else link
        addresses = await netlink.addresses()
        if link:
            self._log_mtu(link.mtu)
        self._log_public_ip(addresses)
        lost = self._what_is_lost(link, holder, addresses)
        if lost:
            await self._missing(netlink, lost)
        elif link and holder:
            self._indices = {link.name: link.index, holder.name: holder.index}
            await self._found(netlink, link, holder)
        self._failures.report()
        self._replacements.report()

    def report(self) -> InterfaceReport:
        """Return the interface, and what is wrong with it: its address is gone, or its link is down."""
        address = self._external.address
        return InterfaceReport(
            self._external.name, self._problem, address, self._wanted.public_ip or address, self._mtu
        )

    def due(self) -> float:
        """Return in how many seconds ``check`` may raise; infinite if the address is not replaced."""
        return max(0.0, self._placed_at + ADDRESS_PATIENCE - self._now())

    def _what_is_lost(self, link: Link | None, holder: Link | None, addresses: Iterable[Address]) -> _Fault | None:
        """Return what is lost, if anything.

        A link that has the interface's name as an alternative name does not count, because rules use the name.
        """
        external = self._external
        index = holder.index if holder and holder.name == external.holder else 0
        if not any(one.link_index == index and one.address == external.address for one in addresses):
            text = f"address {external.address} is gone from {external.holder}"
            return _Fault(text, f"Address {external.address} is back on {external.holder}", is_loss=True)
        if link and link.name == external.name:
            return None
        return _Fault(f"interface {external.name} is gone", f"Interface {external.name} is back", is_loss=True)

    async def _found(self, netlink: Netlink, link: Link, holder: Link) -> None:
        if self._fault and self._fault.is_loss:
            self._recover(self._fault)
        before, fault = self._fault, await self._fault_of_links(netlink, link, holder)
        self._fault = fault
        if fault:
            self._failures.failed(fault.text, f"Link {fault.text}: no packets to and from other hosts")
        elif before:
            self._recover(before)
        self._problem = fault.text if fault else ""
        if fault and (fault.is_port or not (self._wanted.ifaces or self._wanted.regexes)):
            await self._look_for_place(netlink, fault.text)
        else:
            self._note_place("")

    def _recover(self, fault: _Fault) -> None:
        self._fault = None
        self._failures.recovered(fault.recovery)

    async def _fault_of_links(self, netlink: Netlink, link: Link, holder: Link) -> _Fault | None:
        used = (holder, link) if self._is_way_out_named() else (holder,)
        for one in used:
            if not one.is_up:
                return _Fault(f"{one.name} is down", f"Link {one.name} is up again")
        for one in (holder, link):
            master = await netlink.link(netlink.name_of(one.master)) if one.master else None
            if master and master.takes_frames:
                text = f"{one.name} is a port of {master.name}, so its address must be on {master.name}"
                return _Fault(text, f"Link {one.name} is no longer a port", is_port=True)
        if link in used and not link.has_carrier:
            return _Fault(f"{link.name} has no carrier", f"Link {link.name} is up again")
        return None

    def _is_way_out_named(self) -> bool:
        """Return whether flags name the interface by which packets leave, although another one has the address.

        Otherwise the routes decide by which interface they leave: if there are several, one that is down is no fault.
        """
        wanted = self._wanted
        return wanted.names_interface and wanted.public_ip == self._external.address

    async def _missing(self, netlink: Netlink, lost: _Fault) -> None:
        text = lost.text
        self._failures.failed(text, f"{sentence(text)}: no packets to and from other hosts")
        self._fault = lost
        await self._look_for_place(netlink, text)

    async def _look_for_place(self, netlink: Netlink, fault: str) -> None:
        machine = await observe(netlink, self._wanted, self._leased())
        place = place_now(self._external, self._indices, self._wanted, machine)
        self._problem = f"{fault}: {place}" if place else fault
        self._note_place(place)

    def _note_place(self, place: str) -> None:
        """Measure how long the address has been replaced."""
        if not place:
            self._placed_at = math.inf
            self._replacements.recovered()
            return
        line = f"{place}; flannelpy exits unless it is undone within {ADDRESS_PATIENCE:.0f} s"
        self._replacements.failed(place, line, logging.WARNING)
        self._placed_at = min(self._placed_at, self._now())
        if not self.due():
            raise ExternalAddressChanged(f"{place}: restart flannelpy to use it")

    def _log_public_ip(self, addresses: Iterable[Address]) -> None:
        """Log if an interface has the public IP now: at the start none had, so flannelpy assumed a NAT."""
        public_ip, address = self._wanted.public_ip, self._external.address
        if public_ip in (None, address) or not any(one.address == public_ip for one in addresses):
            self._public_ips.recovered()
            return
        line = (
            f"This machine has the public IP {public_ip} now, and datagrams come from {address}: restart flannelpy, "
            "unless a NAT passes them on"
        )
        self._public_ips.failed(str(public_ip), line, logging.WARNING)

    def _log_mtu(self, mtu: int) -> None:
        self._mtu = mtu
        name, at_start = self._external.name, self._external.mtu
        if mtu == at_start:
            self._mtus.recovered(f"MTU of {name} is {mtu} again")
            return
        line = f"MTU of {name} changed from {at_start} to {mtu}: restart flannelpy, then Docker, to use it"
        self._mtus.failed(str(mtu), line, logging.WARNING)
