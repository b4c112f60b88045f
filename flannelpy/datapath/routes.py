"""Destination subnet to next hop, longest prefix first.  Pure.

There is one dictionary per prefix length in use, so a look-up costs the same with 1 and with 10,000 peers.
Counterpart: the original's array, scanned from the front and first match wins.
"""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import NamedTuple

from flannelpy.packet.tally import Tally

_ALL_ONES = 0xFFFFFFFF
# The mask of a /30: shorter subnets have no broadcast address.  Source: RFC 3021.
_LONGEST_WITH_BROADCAST = 0xFFFFFFFC


class NextHop(NamedTuple):
    """Public IP and port of the peer that leases a subnet; usable as a socket address."""

    public_ip: str
    port: int


class Route:
    """The next hop of a leased subnet, and what is counted for it, also while the next hop changes."""

    __slots__ = ("next_hop", "tally")

    def __init__(self, next_hop: NextHop, tally: Tally) -> None:
        self.next_hop = next_hop
        self.tally = tally


class Totals:
    """The counts of several tallies, and when the last of their packets was accepted."""

    def __init__(self) -> None:
        self.packets_out = self.bytes_out = self.packets_in = self.bytes_in = 0
        self.heard_at = 0.0

    def add(self, counts: Tally | Totals) -> None:
        """Add the counts of a tally, or of other tallies."""
        self.packets_out += counts.packets_out
        self.bytes_out += counts.bytes_out
        self.packets_in += counts.packets_in
        self.bytes_in += counts.bytes_in
        self.heard_at = max(self.heard_at, counts.heard_at)


class Sender:
    """What a peer with one public IP leases: the tally of each subnet, which is (network, mask).

    ``tally``: that of the only subnet; None if there are several.
    """

    __slots__ = ("tallies", "tally")

    def __init__(self) -> None:
        self.tallies: dict[tuple[int, int], Tally] = {}
        self.tally: Tally | None = None

    def add(self, subnet: tuple[int, int], tally: Tally) -> None:
        """Add a subnet."""
        self.tallies[subnet] = tally
        self._choose()

    def remove(self, subnet: tuple[int, int]) -> None:
        """Remove a subnet."""
        del self.tallies[subnet]
        self._choose()

    def tally_of(self, source: int) -> Tally:
        """Return the tally for a train whose first packet is from ``source``: of its subnet, else of any."""
        found = (tally for (network, mask), tally in self.tallies.items() if source & mask == network)
        return next(found, next(iter(self.tallies.values())))

    def _choose(self) -> None:
        self.tally = next(iter(self.tallies.values())) if len(self.tallies) == 1 else None


class Routes:
    """The routing table of the data path."""

    def __init__(self) -> None:
        self._by_length: dict[int, dict[int, Route]] = {}
        self._longest_first: tuple[tuple[int, dict[int, Route]], ...] = ()
        #: What each peer leases, by its public IP.
        self.by_public_ip: dict[str, Sender] = {}
        #: What was counted for subnets that were removed.
        self.removed = Totals()
        #: Addresses that are equal under it have the same next hop.
        self.mask = _ALL_ONES

    def __len__(self) -> int:
        return sum(map(len, self._by_length.values()))

    def __contains__(self, subnet: object) -> bool:
        assert isinstance(subnet, IPv4Network)
        return int(subnet.network_address) in self._by_length.get(subnet.prefixlen, ())

    def set(self, subnet: IPv4Network, next_hop: NextHop) -> None:
        """Send packets for ``subnet`` to ``next_hop`` from now on."""
        before = self._discard(subnet)
        route = Route(next_hop, before.tally if before else Tally())
        self._by_length.setdefault(subnet.prefixlen, {})[int(subnet.network_address)] = route
        self.by_public_ip.setdefault(next_hop.public_ip, Sender()).add(_numbers(subnet), route.tally)
        self._reorder()

    def remove(self, subnet: IPv4Network) -> None:
        """Remove ``subnet``, if it is there."""
        route = self._discard(subnet)
        if route is not None:
            self.removed.add(route.tally)
        self._reorder()

    def get(self, subnet: IPv4Network) -> Route | None:
        """Return the route of exactly this subnet, or None."""
        return self._by_length.get(subnet.prefixlen, {}).get(int(subnet.network_address))

    def tallies(self) -> list[Tally]:
        """Return the tallies of all subnets."""
        return [route.tally for entries in self._by_length.values() for route in entries.values()]

    def lookup(self, destination: int) -> Route | None:
        """Return the route for an address (0..2^32-1), or None if no peer leases it."""
        for mask, entries in self._longest_first:
            route = entries.get(destination & mask)
            if route is not None:
                return route
        return None

    def is_broadcast(self, address: int) -> bool:
        """Return whether ``address`` (0..2^32-1) is the last one of the leased subnet that contains it."""
        for mask, entries in self._longest_first:
            if address & mask in entries:
                return address | mask == _ALL_ONES and mask <= _LONGEST_WITH_BROADCAST
        return False

    def _discard(self, subnet: IPv4Network) -> Route | None:
        """Remove the route of a subnet, and return it."""
        entries = self._by_length.get(subnet.prefixlen, {})
        route = entries.pop(int(subnet.network_address), None)
        if route is None:
            return None
        if not entries:
            del self._by_length[subnet.prefixlen]
        sender = self.by_public_ip[route.next_hop.public_ip]
        sender.remove(_numbers(subnet))
        if not sender.tallies:
            del self.by_public_ip[route.next_hop.public_ip]
        return route

    def _reorder(self) -> None:
        self._longest_first = tuple(
            ((_ALL_ONES << (32 - length)) & _ALL_ONES, self._by_length[length])
            for length in sorted(self._by_length, reverse=True)
        )
        self.mask = self._longest_first[0][0] if self._longest_first else _ALL_ONES


def _numbers(subnet: IPv4Network) -> tuple[int, int]:
    return int(subnet.network_address), int(subnet.netmask)
