"""The lease table: snapshots and changes become events."""

from __future__ import annotations

import tracemalloc
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannelpy.registry.base import Changes, Deleted, KeyValue, Put, Snapshot, expires_in
from flannelpy.subnet.lease import Lease, LeaseAttrs
from flannelpy.subnet.lease_table import (
    Ignored,
    LeaseAdded,
    LeaseRemoved,
    LeaseTable,
    Malformed,
    Overlapping,
    SameIPElsewhere,
    Update,
)

OWN, B, C = (IPv4Network(f"11.0.{n}.0/24") for n in (59, 101, 55))
DAY = expires_in(86400)
NOT_JSON = "not JSON: Expecting value at line 1 column 1"


def put(name: str, public_ip: int | str, version: int = 1) -> KeyValue:
    """``public_ip`` is the last byte of a host's address, or a whole value."""
    value = public_ip if isinstance(public_ip, str) else f'{{"PublicIP":"172.17.8.{public_ip}"}}'
    return KeyValue(name, value, DAY, version, version)


def added(subnet: IPv4Network, public_ip: int, version: int = 1) -> LeaseAdded:
    return LeaseAdded(Lease(subnet, LeaseAttrs(IPv4Address(f"172.17.8.{public_ip}")), DAY, version, version))


def table(*entries: KeyValue) -> LeaseTable:
    """As after a first snapshot, in which there was the own lease."""
    leases = LeaseTable(OWN)
    leases.replace(snapshot(*entries))
    return leases


def snapshot(*entries: KeyValue, own: bool = True) -> Snapshot:
    return Snapshot((*([put("11.0.59.0-24", 101)] if own else []), *entries), 10)


OURS = added(OWN, 101)
KNOWN = (put("11.0.101.0-24", 102), put("11.0.55.0-24", 103))


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(snapshot(*KNOWN), Update(own=[OURS]), id="nothing new"),
        pytest.param(
            snapshot(put("11.0.101.0-24", 102, version=7), KNOWN[1]), Update(own=[OURS]), id="renewed is nothing new"
        ),
        pytest.param(
            snapshot(*KNOWN, put("11.0.7.0-24", 104)),
            Update([added(IPv4Network("11.0.7.0/24"), 104)], [OURS]),
            id="a host came",
        ),
        pytest.param(snapshot(KNOWN[1]), Update([LeaseRemoved(B)], [OURS]), id="a host left"),
        pytest.param(
            snapshot(put("11.0.101.0-24", 105, 9), KNOWN[1]), Update([added(B, 105, 9)], [OURS]), id="a new public IP"
        ),
        pytest.param(
            snapshot(put("11.0.101.0-24", 103), put("11.0.55.0-24", 102)),
            Update([added(B, 103), added(C, 102)], [OURS]),
            id="two hosts changed places",
        ),
        pytest.param(snapshot(), Update([LeaseRemoved(B), LeaseRemoved(C)], [OURS]), id="all left"),
        pytest.param(snapshot(*KNOWN, own=False), Update(own=[LeaseRemoved(OWN)]), id="the own lease is gone"),
        pytest.param(
            Snapshot((), 10), Update([LeaseRemoved(B), LeaseRemoved(C)], [LeaseRemoved(OWN)]), id="everything is gone"
        ),
        pytest.param(
            snapshot(*KNOWN, put("11.0.59.0-24", 102), own=False), Update(own=[added(OWN, 102)]), id="the own was taken"
        ),
        pytest.param(
            snapshot(put("11.0.101.0-24", "x"), KNOWN[1]),
            Update(own=[OURS], ignored=[Ignored("11.0.101.0-24", NOT_JSON)]),
            id="a known one became malformed and stays",
        ),
        pytest.param(
            snapshot(*KNOWN, put("rubbish", "x"), put("11.0.7.0-24", "{}")),
            Update(
                own=[OURS],
                ignored=[
                    Ignored("rubbish", "no subnet key such as 10.1.7.0-24"),
                    Ignored("11.0.7.0-24", "no PublicIP"),
                ],
            ),
            id="malformed among the good",
        ),
    ],
)
def test_a_snapshot_is_compared_by_value(seen: Snapshot, expected: Update) -> None:
    leases = table(*KNOWN)
    assert leases.replace(seen) == expected
    assert leases.replace(seen) == Update(own=expected.own)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param([], Update(), id="nothing"),
        pytest.param([Put(KNOWN[0])], Update(), id="renewed"),
        pytest.param([Put(put("11.0.101.0-24", 105, 9))], Update([added(B, 105, 9)]), id="a new public IP"),
        pytest.param(
            [Deleted("11.0.101.0-24"), Put(put("11.0.101.0-24", 102))],
            Update([LeaseRemoved(B), added(B, 102)]),
            id="left and came back",
        ),
        pytest.param([Deleted("11.0.200.0-24"), Deleted("rubbish")], Update(), id="unknown ones left"),
        pytest.param(
            [Deleted("11.0.59.0-24"), Put(put("11.0.59.0-24", 102, 8))],
            Update(own=[LeaseRemoved(OWN), added(OWN, 102, 8)]),
            id="the own lease in order",
        ),
        pytest.param(
            [Put(put("rubbish", "x")), Put(put("11.0.7.0-24", 104)), Put(put("rubbish", "x"))],
            Update(
                [added(IPv4Network("11.0.7.0/24"), 104)], [], [Ignored("rubbish", "no subnet key such as 10.1.7.0-24")]
            ),
            id="malformed is reported once and the rest applied",
        ),
        pytest.param(
            [Put(put("11.0.101.0-24", "x")), Put(put("11.0.101.0-24", "y"))],
            Update(ignored=[Ignored("11.0.101.0-24", NOT_JSON)] * 2),
            id="another malformed value is reported again",
        ),
        pytest.param(
            [Put(put("11.0.101.0-24", "x")), Put(KNOWN[0]), Put(put("11.0.101.0-24", "x"))],
            Update(ignored=[Ignored("11.0.101.0-24", NOT_JSON)] * 2),
            id="and so is one that was good meanwhile",
        ),
        pytest.param(
            [Put(put("11.0.101.0-24", "x")), Deleted("11.0.101.0-24")],
            Update([LeaseRemoved(B)], [], [Ignored("11.0.101.0-24", NOT_JSON)]),
            id="malformed, then gone",
        ),
    ],
)
def test_changes_are_applied_in_order(changes: list[Put | Deleted], expected: Update) -> None:
    assert table(*KNOWN).apply(Changes(tuple(changes), 11)) == expected


def test_two_spellings_of_one_subnet_do_not_flap() -> None:
    """When the second was a key of the same subnet, each snapshot gave it to the one and then to the other."""
    entries = put("10.0.0.0-8", 102), put("10.0.0.0-08", 103)
    assert table(*entries).replace(snapshot(*entries)) == Update(own=[OURS])


def test_a_malformed_own_lease_is_an_event_each_time_and_reported_once() -> None:
    """Without the event, the key stayed malformed, and hosts that started later could not reach this host."""
    leases = table()
    damaged = Put(KeyValue("11.0.59.0-24", "", DAY, 7, 1))
    assert leases.apply(Changes((damaged,), 11)) == Update(
        own=[Malformed(OWN, 7)], ignored=[Ignored("11.0.59.0-24", NOT_JSON)]
    )
    assert leases.replace(Snapshot((damaged.entry,), 12)) == Update(own=[Malformed(OWN, 7)])


def test_a_peer_that_is_gone_is_kept_for_the_grace_and_then_removed() -> None:
    leases = LeaseTable(OWN, grace=60)
    leases.replace(snapshot(*KNOWN), 1000)
    gone = Changes((Deleted("11.0.101.0-24"),), 6)
    assert leases.apply(gone, 1001) == Update()
    assert leases.seconds_to_forget(1011) == 50
    assert leases.apply(gone, 1030) == Update()
    assert leases.forget(1060) == Update()
    assert leases.forget(1061) == Update([LeaseRemoved(B)])
    assert leases.seconds_to_forget(1061) == float("inf")
    assert leases.forget(5000) == Update()


def test_the_grace_begins_again_after_an_outage_of_the_store() -> None:
    leases = LeaseTable(OWN, grace=60)
    leases.replace(snapshot(*KNOWN), 1000)
    leases.apply(Changes((Deleted("11.0.101.0-24"),), 6), 1001)
    leases.begin_grace_again(1050)
    assert leases.seconds_to_forget(1050) == 60
    assert leases.forget(1109) == Update()
    assert leases.forget(1110) == Update([LeaseRemoved(B)])


def test_a_peer_that_returns_within_the_grace_was_never_gone_unless_changed() -> None:
    leases = LeaseTable(OWN, grace=60)
    leases.replace(snapshot(*KNOWN), 0)
    assert leases.replace(snapshot(), 1) == Update(own=[OURS])
    assert leases.replace(snapshot(KNOWN[0], put("11.0.55.0-24", 109)), 2) == Update([added(C, 109)], [OURS])
    assert leases.forget(5000) == Update()


def test_a_lease_that_gets_our_public_ip_is_gone_at_once() -> None:
    leases = LeaseTable(OWN, IPv4Address("172.17.8.101"), grace=60)
    leases.replace(snapshot(*KNOWN), 0)
    update = leases.apply(Changes((Put(put("11.0.55.0-24", 101)),), 6), 1)
    lease = Lease.from_entry(put("11.0.55.0-24", 101))
    assert update == Update(
        [LeaseRemoved(C)], [SameIPElsewhere(lease)], [Ignored("11.0.55.0-24", "it has our public IP")]
    )


# Leases that overlap ours

NETWORK = IPv4Network("11.0.0.0/16")


def changes(*changed: Put | Deleted) -> Changes:
    return Changes(changed, 11)


def overlapping_table(*entries: KeyValue) -> tuple[LeaseTable, Update]:
    leases = LeaseTable(OWN, IPv4Address("172.17.8.101"), network=NETWORK)
    return leases, leases.replace(snapshot(*entries, own=False))


@pytest.mark.parametrize("name", ["11.0.59.0-25", "11.0.59.255-32", "11.0.58.0-23", "11.0.0.0-18"])
def test_a_lease_that_overlaps_ours_is_an_event_of_both_kinds_behind_that_of_the_own_lease(name: str) -> None:
    subnet = IPv4Network(name.replace("-", "/"))
    _, update = overlapping_table(put(name, 102, 3), put("11.0.59.0-24", 101, 7))
    assert update.events == [added(subnet, 102, 3)]
    assert update.own == [added(OWN, 101, 7), Overlapping(added(subnet, 102, 3).lease)]


@pytest.mark.parametrize("name", ["11.0.60.0-24", "11.0.0.0-16", "11.0.0.0-15", "0.0.0.0-0"])
def test_what_overlaps_us_not_or_is_no_lease_of_the_network_is_no_such_event(name: str) -> None:
    leases, update = overlapping_table(put("11.0.59.0-24", 101), put(name, 102))
    assert Overlapping not in set(map(type, [*update.own, *leases.apply(changes(Put(put(name, 103, 2)))).own]))


@pytest.mark.parametrize("public_ip", ["0.0.0.0", "127.0.0.1", "224.0.0.9", "255.255.255.255"])
def test_a_lease_that_no_host_can_have_does_not_take_our_subnet_away(public_ip: str) -> None:
    other = KeyValue("11.0.0.0-18", f'{{"PublicIP":"{public_ip}"}}', expires_in(60), 3, 3)
    _, update = overlapping_table(other, put("11.0.59.0-24", 101, 7))
    assert update.own == [added(OWN, 101, 7)]


def test_one_of_our_own_public_ip_is_elsewhere_instead() -> None:
    _, update = overlapping_table(put("11.0.59.0-24", 101), put("11.0.59.0-25", 101))
    assert [type(event) for event in update.own] == [LeaseAdded, SameIPElsewhere]


def test_an_overlap_is_an_event_again_when_either_lease_is_created_again_but_not_when_it_is_gone() -> None:
    leases, _ = overlapping_table(put("11.0.59.0-24", 101, 5), put("11.0.59.0-25", 102, 7))
    other = Overlapping(added(IPv4Network("11.0.59.0/25"), 102, 7).lease)
    assert leases.apply(changes(Put(put("11.0.60.0-24", 103, 8)))).own == []
    assert leases.apply(changes(Put(put("11.0.59.0-24", 101, 9)))).own == [added(OWN, 101, 9), other]
    again = put("11.0.59.0-25", 102, 10)
    assert leases.apply(changes(Put(again))).own == [Overlapping(added(IPv4Network("11.0.59.0/25"), 102, 10).lease)]
    assert leases.apply(changes(Deleted("11.0.59.0-25"))).own == []
    assert leases.apply(changes(Put(put("11.0.59.0-24", 101, 12)))).own == [added(OWN, 101, 12)]


NETWORK = IPv4Network("11.0.0.0/16")


@pytest.mark.parametrize("name", ["12.0.1.0-24", "11.0.0.0-16", "11.0.0.0-8", "0.0.0.0-0", "11.1.0.0-32"])
@pytest.mark.parametrize("value", ["102", '{"PublicIP":"172.17.8.102"}'])
def test_a_lease_outside_of_the_network_is_reported_once_and_not_remembered(name: str, value: str) -> None:
    leases = LeaseTable(OWN, network=NETWORK)
    assert not leases.is_key(name)
    assert leases.apply(Changes((Put(put(name, value)),), 7)).outside == [IPv4Network(name.replace("-", "/"))]
    assert leases.replace(snapshot(put(name, ""))) == Update(own=[OURS])
    assert leases.apply(Changes((Deleted(name),), 8)) == Update()


@pytest.mark.parametrize("name", ["", "x", "11.0.7.0-024", "11.0.7.1-24", "11.0.7.0-24/x", "11.0.7.0-24\n"])
def test_what_is_no_key_is_not_wanted(name: str) -> None:
    assert not LeaseTable(OWN, network=NETWORK).is_key(name)


def test_the_keys_of_the_network_are_wanted() -> None:
    assert all(map(LeaseTable(OWN, network=NETWORK).is_key, ["11.0.59.0-24", "11.0.7.0-24", "11.0.128.0-17"]))
    assert LeaseTable(OWN).is_key("12.0.1.0-24")


@pytest.mark.parametrize("name", ["rubbish {}", "12.{}.0.0-16", "11.0.{}.0-24"])
def test_what_is_ignored_takes_little_memory(name: str) -> None:
    leases = LeaseTable(OWN, network=NETWORK)
    tracemalloc.start()
    for number in range(20_000):
        leases.apply(Changes((Put(put(name.format(number % 250), f"{number} " * 100)),), number))
        leases.apply(Changes((Put(put(name.format(number), f"{number} " * 100)),), number))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 300_000
