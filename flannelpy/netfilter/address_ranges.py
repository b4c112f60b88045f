"""Sets of IPv4 addresses, compared by binary search.  Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network

_LAST_ADDRESS = (1 << 32) - 1
# To compare more than this would keep packets waiting.
_MOST_COMPARISONS = 1000


class AddressRanges:
    """The addresses of ranges, each from its first to its last address, as integers."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in sorted(ranges):
            if self._lasts and first <= self._lasts[-1] + 1:
                self._lasts[-1] = max(last, self._lasts[-1])
            else:
                self._firsts.append(first)
                self._lasts.append(last)

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same addresses."""
        return isinstance(other, AddressRanges) and (
            self is other or (self._firsts, self._lasts) == (other._firsts, other._lasts)
        )

    def __hash__(self) -> int:
        """Return a hash of the number of ranges, which is fast to compute."""
        return hash(len(self))

    def __len__(self) -> int:
        """Return the number of ranges that neither overlap nor touch."""
        return len(self._firsts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """In the order of the addresses."""
        return zip(self._firsts, self._lasts, strict=True)

    def is_comparable(self, other: AddressRanges) -> bool:
        """Whether a comparison takes less than a millisecond."""
        return min(len(self), len(other)) <= _MOST_COMPARISONS

    def is_within(self, other: AddressRanges) -> bool:
        """Whether all addresses are among the others."""
        if len(self) <= len(other):
            return all(other._covers(first, last) for first, last in self)
        return sum(self._count_inside(first, last) for first, last in other) == len(self)

    def overlaps(self, other: AddressRanges) -> bool:
        """Whether an address is among the others."""
        few, many = sorted((self, other), key=len)
        return any(many._touches(first, last) for first, last in few)

    def _covers(self, first: int, last: int) -> bool:
        at = bisect_right(self._firsts, first) - 1
        return at >= 0 and self._lasts[at] >= last

    def _touches(self, first: int, last: int) -> bool:
        at = bisect_right(self._firsts, last) - 1
        return at >= 0 and self._lasts[at] >= first

    def _count_inside(self, first: int, last: int) -> int:
        return max(bisect_right(self._lasts, last) - bisect_left(self._firsts, first), 0)


def of_networks(*networks: IPv4Network) -> AddressRanges:
    """Return the addresses of networks."""
    return AddressRanges(map(_bounds, networks))


def between(network: IPv4Network, hole: IPv4Network) -> AddressRanges:
    """Return the addresses of a network that are outside of a network in it."""
    (first, last), (hole_first, hole_last) = _bounds(network), _bounds(hole)
    ranges = ((first, hole_first - 1), (hole_last + 1, last))
    return AddressRanges((begin, end) for begin, end in ranges if begin <= end)


def _bounds(network: IPv4Network) -> tuple[int, int]:
    first = int(network.network_address)
    return first, first + network.num_addresses - 1


ANYWHERE = AddressRanges([(0, _LAST_ADDRESS)])
