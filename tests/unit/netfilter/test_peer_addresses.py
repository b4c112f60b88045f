"""The public IPs of the leases, by which a rule for the addresses of others is known to be one."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from flannelpy.netfilter import peer_addresses
from flannelpy.netfilter.address_ranges import ANYWHERE, AddressRanges, between, of_networks
from flannelpy.netfilter.peer_addresses import PeerAddresses
from flannelpy.registry.base import PERMANENT
from flannelpy.subnet.lease import Lease, LeaseAttrs
from flannelpy.subnet.lease_table import LeaseAdded, LeaseRemoved

SUBNETS = list(IPv4Network("11.0.0.0/16").subnets(new_prefix=24))


def added(number: int, ip: str) -> LeaseAdded:
    return LeaseAdded(Lease(SUBNETS[number], LeaseAttrs(IPv4Address(ip)), PERMANENT, 1, 1))


def of(*addresses: str) -> AddressRanges:
    return AddressRanges((int(IPv4Address(each)),) * 2 for each in addresses)


def test_they_follow_the_leases() -> None:
    peers = PeerAddresses()
    assert peers.addresses() == of()
    peers.apply([added(1, "192.0.2.1"), added(2, "192.0.2.9"), added(3, "192.0.2.9")])
    assert peers.addresses() == of("192.0.2.1", "192.0.2.9")
    peers.apply([added(1, "192.0.2.4"), LeaseRemoved(SUBNETS[2])])
    assert peers.addresses() == of("192.0.2.4", "192.0.2.9")
    peers.apply([LeaseRemoved(SUBNETS[3])])
    assert peers.addresses() == of("192.0.2.4")


def test_so_many_that_to_sort_them_takes_long_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_addresses, "_MOST_ADDRESSES", 1)
    peers = PeerAddresses()
    peers.apply([added(1, "192.0.2.1"), added(2, "192.0.2.9")])
    assert peers.addresses() is None


@pytest.mark.parametrize(
    ("one", "other", "overlaps", "is_within"),
    [
        (of("1.1.1.1"), ANYWHERE, True, True),
        (ANYWHERE, of("1.1.1.1"), True, False),
        (of("1.1.1.1", "1.1.1.3"), of("1.1.1.2"), False, False),
        (of("1.1.1.1", "1.1.1.3"), of("1.1.1.1", "1.1.1.3", "1.1.1.9"), True, True),
        (of("1.1.1.1", "1.1.1.3", "1.1.1.5"), of_networks(IPv4Network("1.1.1.0/29")), True, True),
        (of("1.1.1.1", "1.1.1.3", "1.1.1.8"), of_networks(IPv4Network("1.1.1.0/29")), True, False),
        (between(SUBNETS[0].supernet(new_prefix=16), SUBNETS[1]), of_networks(SUBNETS[1]), False, False),
        (of_networks(*SUBNETS[:4]), of_networks(SUBNETS[0].supernet(2)), True, True),
        (of(), of("1.1.1.1"), False, True),
    ],
)
def test_ranges_are_compared(one: AddressRanges, other: AddressRanges, overlaps: bool, is_within: bool) -> None:
    assert one.overlaps(other) is other.overlaps(one) is overlaps
    assert one.is_within(other) is is_within
