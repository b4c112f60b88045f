"""Destination subnet to next hop, longest prefix first.  Pure.

There is one dictionary per prefix length in use, so a look-up costs the same with 1 and with 10,000 peers.
Counterpart: the original's array, scanned from the front and first match wins.
"""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import NamedTuple

_ALL_ONES = 0xFFFFFFFF
# The mask of a /30: shorter subnets have no broadcast address.  Source: RFC 3021.
_LONGEST_WITH_BROADCAST = 0xFFFFFFFC


class NextHop(NamedTuple):
    """Public IP and port of the peer that leases a subnet; usable as a socket address."""

    public_ip: str
    port: int


class Routes:
    """The routing table of the data path."""

    def __init__(self) -> None:
        self._by_length: dict[int, dict[int, NextHop]] = {}
        self._longest_first: tuple[tuple[int, dict[int, NextHop]], ...] = ()
        #: The subnets of each peer as (network, mask), by its public IP.
        self.by_public_ip: dict[str, set[tuple[int, int]]] = {}
        #: Addresses that are equal under it have the same next hop.
        self.mask = _ALL_ONES

    def __len__(self) -> int:
        return sum(map(len, self._by_length.values()))

    def __contains__(self, subnet: object) -> bool:
        assert isinstance(subnet, IPv4Network)
        return int(subnet.network_address) in self._by_length.get(subnet.prefixlen, ())

    def set(self, subnet: IPv4Network, next_hop: NextHop) -> None:
        """Send packets for ``subnet`` to ``next_hop`` from now on."""
        self._discard(subnet)
        self._by_length.setdefault(subnet.prefixlen, {})[int(subnet.network_address)] = next_hop
        self.by_public_ip.setdefault(next_hop.public_ip, set()).add(_numbers(subnet))
        self._reorder()

    def remove(self, subnet: IPv4Network) -> None:
        """Remove ``subnet``, if it is there."""
        self._discard(subnet)
        self._reorder()

    def lookup(self, destination: int) -> NextHop | None:
        """Return the next hop for an address (0..2^32-1), or None if no peer leases it."""
        for mask, entries in self._longest_first:
            next_hop = entries.get(destination & mask)
            if next_hop is not None:
                return next_hop
        return None

    def is_broadcast(self, address: int) -> bool:
        """Return whether ``address`` (0..2^32-1) is the last one of the leased subnet that contains it."""
        for mask, entries in self._longest_first:
            if address & mask in entries:
                return address | mask == _ALL_ONES and mask <= _LONGEST_WITH_BROADCAST
        return False

    def _discard(self, subnet: IPv4Network) -> None:
        entries = self._by_length.get(subnet.prefixlen, {})
        next_hop = entries.pop(int(subnet.network_address), None)
        if next_hop is None:
            return
        if not entries:
            del self._by_length[subnet.prefixlen]
        subnets = self.by_public_ip[next_hop.public_ip]
        subnets.remove(_numbers(subnet))
        if not subnets:
            del self.by_public_ip[next_hop.public_ip]

    def _reorder(self) -> None:
        self._longest_first = tuple(
            ((_ALL_ONES << (32 - length)) & _ALL_ONES, self._by_length[length])
            for length in sorted(self._by_length, reverse=True)
        )
        self.mask = self._longest_first[0][0] if self._longest_first else _ALL_ONES


def _numbers(subnet: IPv4Network) -> tuple[int, int]:
    return int(subnet.network_address), int(subnet.netmask)
