"""Every row of the table of what happens to the own lease."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from flannelpy.subnet import renewal
from flannelpy.subnet.lease import Lease, LeaseAttrs
from flannelpy.subnet.lease_table import Added, Damaged, Gone, OwnEvent
from flannelpy.subnet.renewal import LEASE_TTL, Action, Happening, action, classify, renewal_delay

SUBNET = IPv4Network("11.0.59.0/24")
OURS, THEIRS = IPv4Address("172.17.8.101"), IPv4Address("172.17.8.102")

ROWS = [
    (Happening.RENEWAL_DUE, Action.RENEW, Action.NOTHING),
    (Happening.CHANGED, Action.ADOPT, Action.ADOPT),
    (Happening.DAMAGED, Action.REPAIR, Action.REPAIR),
    (Happening.GONE, Action.TAKE_BACK, Action.TAKE_BACK),
    (Happening.TAKEN, Action.LEAVE, Action.LEAVE),
]


def lease(public_ip: IPv4Address, lease_ttl: int | None) -> Lease:
    return Lease(SUBNET, LeaseAttrs(public_ip), lease_ttl, 5)


@pytest.mark.parametrize(("happening", "leased", "reserved"), ROWS)
def test_each_row(happening: Happening, leased: Action, reserved: Action) -> None:
    assert action(lease(OURS, 86400), happening) is leased
    assert action(lease(OURS, 1), happening) is leased
    assert action(lease(OURS, None), happening) is reserved


def test_the_rows_are_all_there_are_and_the_documented_ones() -> None:
    assert [row[0] for row in ROWS] == list(Happening)
    documented = [" ".join(line.split()) for line in (renewal.__doc__ or "").splitlines()]
    rows = [f"{happening.value} {leased.value} {reserved.value}" for happening, leased, reserved in ROWS]
    assert [line for line in documented if line in rows] == rows


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (Gone(SUBNET), Happening.GONE),
        (Damaged(SUBNET, 6), Happening.DAMAGED),
        *((Added(lease(OURS, ttl)), Happening.CHANGED) for ttl in (86400, None)),
        *((Added(lease(THEIRS, ttl)), Happening.TAKEN) for ttl in (86400, None)),
    ],
)
def test_an_event_about_the_own_subnet_is_one_of_the_rows(event: OwnEvent, expected: Happening) -> None:
    assert classify(event, OURS) is expected


@pytest.mark.parametrize(
    ("lease_ttl", "expected"),
    [(LEASE_TTL, 23 * 3600), (86394, 82794), (7201, 3601), (7200, 3600), (3600, 1800), (100, 50), (1, 0.5)],
)
def test_a_lease_is_renewed_an_hour_early_or_half_way(lease_ttl: int, expected: float) -> None:
    assert renewal_delay(lease_ttl) == expected
