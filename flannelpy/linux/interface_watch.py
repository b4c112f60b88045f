"""Notices when the external interface or its address is no longer what it was at the start.

While the address stands on its interface, nothing but the state of the link matters.  Once it is gone, the choice of
the start is asked again: when it finds an address in place of ours for 15 s, only a restart can use that.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Container
from ipaddress import IPv4Interface

from flannelpy.errors import HostChanged
from flannelpy.linux.interface import observe
from flannelpy.linux.interface_choice import ExternalInterface, Wanted, place_now
from flannelpy.linux.netlink import Link, Netlink

log = logging.getLogger(__name__)

# A network restart takes less time: it may put another address in place of ours for a moment.
ADDRESS_PATIENCE = 15.0


class Watch:
    """``trouble`` says what is wrong; it is empty while the address is there and the link is up."""

    def __init__(
        self,
        external: ExternalInterface,
        wanted: Wanted,
        now: Callable[[], float],
        leased: Container[IPv4Interface] = frozenset(),
    ) -> None:
        """``wanted`` and ``leased``: as for ``interface.find``, which chose ``external``.  ``now``: in seconds."""
        self._external = external
        self._wanted = wanted
        self._now = now
        self._leased = leased
        self._mtu = external.mtu
        self._index = 0  # of the interface that has the address
        self._is_gone = False
        self._place = ""  # of another address
        self._placed_at = math.inf
        self.trouble = ""

    async def check(self, netlink: Netlink) -> None:
        """Log what has changed.  Raises HostChanged when another address is in place for 15 s, and HostError."""
        external = self._external
        link = await netlink.link(external.name)
        holder = link if external.holder == external.name else await netlink.link(external.holder)
        if link:
            self._log_mtu(link.mtu)
        if holder and await self._has_address(netlink, holder):
            self._found(holder)
        else:
            await self._missing(netlink)

    def due(self) -> float:
        """In how many seconds ``check`` may raise HostChanged; infinite while no other address is in place."""
        return max(0.0, self._placed_at + ADDRESS_PATIENCE - self._now())

    async def _has_address(self, netlink: Netlink, holder: Link) -> bool:
        """Whether the interface has both the address and its name; the kernel finds one by its altnames, too."""
        address = self._external.address
        is_there = any(one.link_index == holder.index and one.address == address for one in await netlink.addresses())
        return is_there and holder.name == self._external.holder

    def _found(self, holder: Link) -> None:
        self._index = holder.index
        self._note_place("")
        if self._is_gone:
            log.info("Address %s is back on %s", self._external.address, holder.name)
            self._is_gone, self.trouble = False, ""
        before, self.trouble = self.trouble, self._link_trouble(holder)
        if self.trouble and self.trouble != before:
            log.error("Link %s: no packets to and from other hosts", self.trouble)
        elif before and not self.trouble:
            log.info("Link %s is up again", holder.name)

    def _link_trouble(self, holder: Link) -> str:
        if not holder.is_up:
            return f"{holder.name} is down"
        return "" if holder.in_use or self._external.other_holder else f"{holder.name} has no carrier"

    async def _missing(self, netlink: Netlink) -> None:
        address, holder = self._external.address, self._external.holder
        if not self._is_gone:
            log.error("Address %s is gone from %s: no packets to and from other hosts", address, holder)
        self._is_gone = True
        place = place_now(self._external, self._index, self._wanted, await observe(netlink, self._wanted, self._leased))
        self._note_place(place)
        self.trouble = f"address {address} is gone from {holder}" + (f": {place}" if place else "")

    def _note_place(self, place: str) -> None:
        """Count the time from when another address is in place."""
        if not place:
            self._place, self._placed_at = "", math.inf
            return
        if place != self._place:
            log.warning("%s; flannelpy exits unless it is undone within %d s", place, ADDRESS_PATIENCE)
        self._place = place
        self._placed_at = min(self._placed_at, self._now())
        if not self.due():
            raise HostChanged(f"{place}: flannelpy has to start anew")

    def _log_mtu(self, mtu: int) -> None:
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
