"""Which leases of other hosts are usable: each rule, and that a decision follows what it depends on."""

from __future__ import annotations

import time
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from flannelpy.addressing.surroundings import Surroundings, surroundings
from flannelpy.registry.base import expires_in
from flannelpy.subnet.lease import Lease, LeaseAttrs
from flannelpy.subnet.lease_filter import Cause, Decisions, LeaseFilter
from flannelpy.subnet.lease_table import LeaseAdded, LeaseRemoved

NETWORK = IPv4Network("10.0.0.0/8")
OWN = IPv4Network("10.7.1.0/24")
OUR_IP, ETCD = IPv4Address("10.1.0.11"), IPv4Address("10.50.0.9")
# The hosts are in 10.1.0.0/24, a part of the network; docker0 has our subnet.
AROUND = surroundings(
    [IPv4Interface("10.1.0.11/24")],
    [IPv4Interface("127.0.0.1/8"), IPv4Interface("10.7.1.1/24"), IPv4Interface("192.168.7.3/26")],
    OUR_IP,
    [ETCD],
    [IPv4Interface("10.7.1.0/8"), IPv4Interface("100.64.3.0/10")],
)
PEER = "10.1.0.12"


def lease(subnet: str, public_ip: str = PEER, backend_type: str = "vxlan", version: int = 1) -> Lease:
    attrs = LeaseAttrs(IPv4Address(public_ip), backend_type)
    return Lease(IPv4Network(subnet), attrs, expires_in(86400), version, 1)


def new_filter(network: IPv4Network = NETWORK, around: Surroundings = AROUND) -> LeaseFilter:
    return LeaseFilter(network, Lease(OWN, LeaseAttrs(OUR_IP, "vxlan"), expires_in(86400), 1, 1), around)


def decide(leases: LeaseFilter, captured: dict[str, str] | None = None) -> Decisions:
    """All decisions, with the kernel's answers; ``captured``: public IP -> device."""
    ways = {IPv4Address(address): device for address, device in (captured or {}).items()}
    whole = Decisions([], [])
    while leases.has_work or leases.unasked(1):
        leases.answer({address: ways.get(address, "") for address in leases.unasked(7)})
        events, ignored = leases.decide(5)
        whole.events.extend(events)
        whole.ignored.extend(ignored)
    return whole


def causes(decisions: Decisions) -> dict[str, Cause]:
    return {str(subnet): fault.cause for subnet, fault in decisions.ignored}


def usable(decisions: Decisions, before: frozenset[str] = frozenset()) -> set[str]:
    """The usable subnets after the events."""
    known = set(before)
    for event in decisions.events:
        if isinstance(event, LeaseAdded):
            known.add(str(event.lease.subnet))
        else:
            known.remove(str(event.subnet))
    return known


@pytest.mark.parametrize(
    "good",
    [
        lease("10.9.0.0/24"),
        lease("10.128.0.0/9"),
        lease("10.8.0.0/15"),
        lease("10.9.0.0/31"),
        lease("10.9.0.7/32"),
        lease("10.0.0.0/24"),
        lease("10.255.255.0/24"),
        lease("10.7.0.0/24"),
        lease("10.7.2.0/24"),
        lease("10.9.0.0/24", "10.1.0.254"),
        lease("10.9.0.0/24", "172.17.8.102"),
        lease("10.9.0.0/24", "169.254.7.7"),
        lease("10.9.0.0/24", "192.168.7.64"),
        lease("10.9.0.0/24", "223.255.255.255"),
        lease("10.9.0.0/24", "1.0.0.0"),
        lease("10.9.0.0/24", "100.64.0.0"),
        lease("10.9.0.0/24", "100.127.255.255"),
    ],
    ids=lambda good: f"{good.subnet} of {good.attrs.public_ip}",
)
def test_a_lease_inside_the_network_of_a_host_is_usable(good: Lease) -> None:
    leases = new_filter()
    leases.update([LeaseAdded(good)])
    assert decide(leases) == Decisions([LeaseAdded(good)], [])


def test_a_lease_that_names_udp_is_that_of_a_host_with_udp() -> None:
    """flanneld's udp writes no backend type."""
    leases = LeaseFilter(NETWORK, Lease(OWN, LeaseAttrs(OUR_IP), expires_in(86400), 1, 1), AROUND)
    good = lease("10.9.0.0/24", backend_type="udp")
    leases.update([LeaseAdded(good)])
    assert decide(leases) == Decisions([LeaseAdded(good)], [])


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        (lease("10.9.0.0/24", backend_type=""), "its backend is udp, ours vxlan"),
        (lease("10.9.0.0/24", backend_type="host-gw"), "its backend is host-gw, ours vxlan"),
        (lease("11.0.0.0/24"), "it is no part of the network 10.0.0.0/8"),
        (lease("9.255.255.0/24"), "it is no part of the network 10.0.0.0/8"),
        (lease("0.0.0.0/0"), "it is no part of the network 10.0.0.0/8"),
        (lease("10.0.0.0/8"), "it is no part of the network 10.0.0.0/8"),
        (lease("10.0.0.0/7"), "it is no part of the network 10.0.0.0/8"),
        (lease("10.7.1.0/25"), "it overlaps our subnet 10.7.1.0/24"),
        (lease("10.7.1.255/32"), "it overlaps our subnet 10.7.1.0/24"),
        (lease("10.7.0.0/23"), "it overlaps our subnet 10.7.1.0/24"),
        (lease("10.0.0.0/9"), "it overlaps our subnet 10.7.1.0/24"),
        (lease("10.9.0.0/24", "0.0.0.0"), "its public IP 0.0.0.0 is in 0.0.0.0/8 (this host itself), not a host's"),
        (lease("10.9.0.0/24", "127.0.0.1"), "its public IP 127.0.0.1 is in 127.0.0.0/8 (loopback), not a host's"),
        (lease("10.9.0.0/24", "224.0.0.5"), "its public IP 224.0.0.5 is in 224.0.0.0/4 (multicast), not a host's"),
        (
            lease("10.9.0.0/24", "255.255.255.255"),
            "its public IP 255.255.255.255 is in 240.0.0.0/4 (reserved and broadcast), not a host's",
        ),
        (lease("10.9.0.0/24", "192.168.7.3"), "its public IP 192.168.7.3 is an address of this host"),
        (lease("10.9.0.0/24", "10.7.1.1"), "its public IP 10.7.1.1 is an address of this host"),
        (lease("10.9.0.0/24", "100.64.3.0"), "its public IP 100.64.3.0 is an address of this host"),
        (
            lease("10.9.0.0/24", "10.1.0.255"),
            "its public IP 10.1.0.255 is the network or broadcast address of a network of this host",
        ),
        (
            lease("10.9.0.0/24", "192.168.7.0"),
            "its public IP 192.168.7.0 is the network or broadcast address of a network of this host",
        ),
        (lease("10.9.0.0/24", "10.9.0.1"), "its public IP 10.9.0.1 lies inside the subnet itself"),
        (lease("10.9.0.7/32", "10.9.0.7"), "its public IP 10.9.0.7 lies inside the subnet itself"),
        (lease("10.9.0.0/24", "10.7.1.9"), "its public IP 10.7.1.9 lies inside our subnet 10.7.1.0/24"),
        (lease("10.1.0.0/24", "172.17.8.102"), "it contains 10.1.0.11, an address of this host"),
        (lease("10.1.0.11/32", "172.17.8.102"), "it contains 10.1.0.11, an address of this host"),
        (lease("10.48.0.0/14"), "it contains 10.50.0.9, an address of etcd"),
        (lease("10.50.0.8/31"), "it contains 10.50.0.9, an address of etcd"),
        (lease("10.1.0.128/25"), "it lies inside 10.1.0.0/24, a network of the external interface"),
        (lease("10.1.0.1/32"), "it lies inside 10.1.0.0/24, a network of the external interface"),
    ],
    ids=lambda one: f"{one.subnet} of {one.attrs.public_ip}" if isinstance(one, Lease) else "",
)
def test_an_unusable_lease_is_ignored_and_logged_once_for_each_cause(bad: Lease, fault: str) -> None:
    leases = new_filter()
    good = lease("10.200.0.0/24")
    known: set[str] = set()
    for faults in ([fault], [], []):
        leases.update([LeaseAdded(bad), LeaseAdded(good)])
        decisions = decide(leases)
        known = usable(decisions, frozenset(known))
        assert known == {str(good.subnet)}
        assert [str(ignored.fault) for ignored in decisions.ignored] == faults


def test_a_cause_with_another_value_in_it_is_logged_again() -> None:
    leases = new_filter()
    for address in ("10.9.0.1", "10.9.0.1", "10.9.0.2"):
        leases.update([LeaseAdded(lease("10.9.0.0/24", address))])
        ignored = decide(leases).ignored
    assert [str(one.fault) for one in ignored] == ["its public IP 10.9.0.2 lies inside the subnet itself"]


def test_a_lease_around_the_public_ip_of_another_one_is_the_unusable_one_while_the_other_is_there() -> None:
    leases = new_filter()
    around, other = lease("10.20.0.0/16"), lease("10.9.0.0/24", "10.20.7.7")
    leases.update([LeaseAdded(around)])
    assert usable(decide(leases)) == {"10.20.0.0/16"}
    leases.update([LeaseAdded(other)])
    decisions = decide(leases)
    assert set(map(type, decisions.events)) == {LeaseAdded, LeaseRemoved}
    assert usable(decisions, frozenset({"10.20.0.0/16"})) == {"10.9.0.0/24"}
    assert causes(decisions) == {"10.20.0.0/16": Cause.AROUND_ANOTHER}
    leases.update([LeaseRemoved(other.subnet)])
    assert usable(decide(leases), frozenset({"10.9.0.0/24"})) == {"10.20.0.0/16"}


@pytest.mark.parametrize("subnet", ["10.20.0.0/24", "10.20.0.4/32", "10.16.0.0/12"])
def test_two_leases_that_contain_each_others_public_ip_are_both_unusable(subnet: str) -> None:
    leases = new_filter()
    one, two = lease(subnet, "10.30.0.4"), lease("10.30.0.0/24", "10.20.0.4")
    if subnet == "10.16.0.0/12":
        two = lease("10.40.0.0/24", "10.20.0.4")
        one = lease(subnet, "10.40.0.4")
    leases.update([LeaseAdded(one), LeaseAdded(two)])
    assert causes(decide(leases)) == dict.fromkeys((str(one.subnet), str(two.subnet)), Cause.AROUND_ANOTHER)
    leases.update([LeaseRemoved(one.subnet)])
    assert usable(decide(leases)) == {str(two.subnet)}


def test_a_public_ip_that_no_host_can_have_makes_no_other_lease_unusable() -> None:
    leases = new_filter()
    leases.update([LeaseAdded(lease("10.20.0.0/16")), LeaseAdded(lease("10.20.7.0/24", "10.20.7.1"))])
    assert causes(decide(leases)) == {"10.20.7.0/24": Cause.INSIDE_ITSELF}


def test_two_leases_of_one_host_are_both_usable_and_protect_its_address_until_both_are_gone() -> None:
    leases = new_filter()
    one, two, around = lease("10.9.0.0/24", "10.20.0.4"), lease("10.9.1.0/24", "10.20.0.4"), lease("10.20.0.0/16")
    leases.update([LeaseAdded(one), LeaseAdded(two), LeaseAdded(around)])
    assert usable(decide(leases)) == {"10.9.0.0/24", "10.9.1.0/24"}
    leases.update([LeaseRemoved(one.subnet)])
    assert usable(decide(leases), frozenset({"10.9.0.0/24", "10.9.1.0/24"})) == {"10.9.1.0/24"}
    leases.update([LeaseRemoved(two.subnet)])
    assert usable(decide(leases), frozenset({"10.9.1.0/24"})) == {"10.20.0.0/16"}


def test_a_public_ip_that_the_kernel_would_reach_by_an_overlay_device_is_unusable_until_it_would_not() -> None:
    leases = new_filter()
    leases.update([LeaseAdded(lease("10.9.0.0/24", "10.99.0.4")), LeaseAdded(lease("10.9.1.0/24"))])
    decisions = decide(leases, {"10.99.0.4": "flannel.1"})
    assert usable(decisions) == {"10.9.1.0/24"}
    assert [str(ignored.fault) for ignored in decisions.ignored] == [
        "the kernel would send packets for its public IP 10.99.0.4 into flannel.1, an overlay device of this host"
    ]
    leases.answer({IPv4Address("10.99.0.4"): ""})
    assert usable(decide(leases)) == {"10.9.0.0/24"}
    leases.answer({IPv4Address("10.1.0.12"): "flannel0", IPv4Address("1.2.3.4"): "flannel0"})
    assert usable(decide(leases), frozenset({"10.9.1.0/24"})) == set()


def test_no_lease_is_usable_before_the_kernel_was_asked_and_answers_are_asked_for_again_in_turn() -> None:
    leases = new_filter()
    leases.update([LeaseAdded(lease(f"10.9.{n}.0/24", f"10.1.0.{20 + n}")) for n in range(5)])
    assert leases.decide(100) == Decisions([], [])
    assert leases.oldest_answers(9) == []
    asked = leases.unasked(3)
    leases.answer(dict.fromkeys(asked, ""))
    assert len(leases.decide(100).events) == 3
    leases.answer(dict.fromkeys(leases.unasked(100), ""))
    assert len(leases.decide(100).events) == 2
    assert {*leases.oldest_answers(3), *leases.oldest_answers(2)} == {IPv4Address(f"10.1.0.{20 + n}") for n in range(5)}
    leases.update([LeaseRemoved(IPv4Network(f"10.9.{n}.0/24")) for n in range(5)])
    assert leases.oldest_answers(9) == leases.unasked(9) == []


def test_a_change_of_this_hosts_addresses_changes_what_is_usable() -> None:
    leases = new_filter()
    leases.update([LeaseAdded(lease("10.9.0.0/24")), LeaseAdded(lease("10.9.1.0/24", "172.17.8.1"))])
    known = usable(decide(leases))
    for change, expected in (
        (AROUND._replace(addresses=AROUND.addresses | {IPv4Address(PEER)}), {"10.9.1.0/24"}),
        (AROUND._replace(underlay=AROUND.underlay | {IPv4Address("10.9.1.5")}), {"10.9.0.0/24"}),
        (AROUND._replace(endpoints=frozenset([IPv4Address("10.9.0.5")])), {"10.9.1.0/24"}),
        (AROUND._replace(edges=frozenset([IPv4Address(PEER)])), {"10.9.1.0/24"}),
        (AROUND._replace(links=(IPv4Network("10.9.0.0/23"),)), set()),
        (AROUND, {"10.9.0.0/24", "10.9.1.0/24"}),
    ):
        leases.observe(change)
        known = usable(decide(leases), frozenset(known))
        assert known == expected


def test_a_lease_that_changes_is_decided_again_and_a_new_version_alone_changes_nothing() -> None:
    leases = new_filter()
    leases.update([LeaseAdded(lease("10.9.0.0/24"))])
    decide(leases)
    leases.update([LeaseAdded(lease("10.9.0.0/24", version=2))])
    assert decide(leases) == Decisions([], [])
    moved = lease("10.9.0.0/24", "10.1.0.13")
    leases.update([LeaseAdded(moved)])
    assert decide(leases) == Decisions([LeaseAdded(moved)], [])
    leases.update([LeaseAdded(lease("10.9.0.0/24", "127.0.0.1"))])
    assert decide(leases).events == [LeaseRemoved(moved.subnet)]
    leases.update([LeaseRemoved(moved.subnet), LeaseRemoved(IPv4Network("10.77.0.0/24"))])
    assert decide(leases) == Decisions([], [])


def test_ten_thousand_leases_are_decided_in_time_that_grows_with_their_number() -> None:
    """Also when each contains an address, and when one that all depend on comes and goes."""
    leases = new_filter()
    events = [
        LeaseAdded(lease(f"10.{64 + n // 256}.{n % 256}.0/24", f"172.{n // 256}.{n % 256}.9")) for n in range(10_000)
    ]
    start = time.process_time()
    leases.update(events)
    assert len(decide(leases).events) == 10_000
    assert time.process_time() - start < 2
    start = time.process_time()
    for n in range(1000):
        leases.update([LeaseAdded(lease("10.3.0.0/16", f"10.80.{n % 256}.5"))])
        decide(leases)
    assert time.process_time() - start < 1


def test_a_lease_around_the_former_public_ip_of_a_changed_lease_is_usable() -> None:
    leases = new_filter()
    around, inside = lease("10.60.0.0/16"), lease("10.9.0.0/24", "10.60.0.7")
    leases.update([LeaseAdded(around), LeaseAdded(inside)])
    assert usable(decide(leases)) == {"10.9.0.0/24"}
    leases.update([LeaseAdded(lease("10.9.0.0/24", PEER))])
    assert usable(decide(leases), frozenset({"10.9.0.0/24"})) == {"10.9.0.0/24", "10.60.0.0/16"}


def test_the_kernel_is_not_asked_about_the_public_ip_of_a_removed_lease() -> None:
    leases = new_filter()
    leases.update([LeaseAdded(lease("10.9.0.0/24")), LeaseRemoved(IPv4Network("10.9.0.0/24"))])
    assert leases.unasked(1) == []
