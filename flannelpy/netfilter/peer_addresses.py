"""The public IPs of the other hosts, from which packets come that their hosts masquerade.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network

from flannelpy.netfilter.address_ranges import AddressRanges
from flannelpy.subnet.lease_table import LeaseAdded, LeaseEvent

# To sort more would keep packets waiting.
_MOST_ADDRESSES = 2000


class PeerAddresses:
    """The public IPs of the peers, by the subnets of their leases."""

    def __init__(self) -> None:
        self._of_subnets: dict[IPv4Network, int] = {}
        self._addresses: AddressRanges | None = None
        self._is_changed = True

    def apply(self, events: Sequence[LeaseEvent]) -> None:
        """Follow the leases of the peers."""
        for event in events:
            if isinstance(event, LeaseAdded):
                self._of_subnets[event.lease.subnet] = int(event.lease.attrs.public_ip)
            else:
                self._of_subnets.pop(event.subnet, None)
        self._is_changed = True

    def addresses(self) -> AddressRanges | None:
        """Return the public IPs; None if they are too many to look for them."""
        if self._is_changed:
            found = set(self._of_subnets.values())
            self._addresses = AddressRanges((each, each) for each in found) if len(found) <= _MOST_ADDRESSES else None
            self._is_changed = False
        return self._addresses
