"""Every row of the table of what happens to the own lease."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from flannelpy.errors import HistoryGone, RegistryError, RegistryUnavailable
from flannelpy.registry.base import EXPIRES, PERMANENT, Lifetime, expires_in
from flannelpy.subnet import lease_policy
from flannelpy.subnet.lease import HostIdentity, Lease, LeaseAttrs
from flannelpy.subnet.lease_policy import (
    Action,
    Condition,
    Terms,
    action,
    classify,
    classify_failure,
    renewal_lead,
    retry_delay,
)
from flannelpy.subnet.lease_table import LeaseAdded, LeaseRemoved, Malformed, Overlapping, OwnEvent, SameIPElsewhere

CREATED = 3
SUBNET = IPv4Network("11.0.59.0/24")
OURS, THEIRS = IPv4Address("172.17.8.101"), IPv4Address("172.17.8.102")

ROWS = [
    (Condition.RENEWAL_DUE, Action.RENEW, Action.NOTHING),
    (Condition.CHANGED, Action.ADOPT, Action.ADOPT),
    (Condition.MALFORMED, Action.RESTORE, Action.RESTORE),
    (Condition.NO_HOST_ID, Action.RESTORE, Action.RESTORE),
    (Condition.CLAIMED, Action.RESTORE, Action.RESTORE),
    (Condition.HELD_BY_HIGHER_ID, Action.RESTORE, Action.RESTORE),
    (Condition.HELD_BY_LOWER_ID, Action.SURRENDER, Action.SURRENDER),
    (Condition.ELSEWHERE_LOWER_ID, Action.SURRENDER, Action.SURRENDER),
    (Condition.ELSEWHERE, Action.NOTHING, Action.NOTHING),
    (Condition.GONE, Action.RECREATE, Action.RECREATE),
    (Condition.TAKEN, Action.SURRENDER, Action.SURRENDER),
    (Condition.OVERLAPS_EARLIER, Action.SURRENDER, Action.SURRENDER),
    (Condition.OVERLAPS_LATER, Action.NOTHING, Action.NOTHING),
    (Condition.STORE_SILENT, Action.KEEP_FORWARDING, Action.KEEP_FORWARDING),
    (Condition.HISTORY_GONE, Action.RELIST, Action.RELIST),
]


def lease(
    public_ip: IPv4Address, lifetime: Lifetime, host_id: str = "", claim: bool = False, created: int = CREATED
) -> Lease:
    return Lease(SUBNET, LeaseAttrs(public_ip, host_id=host_id, claim=claim), lifetime, 5, created)


@pytest.mark.parametrize(("condition", "leased", "reserved"), ROWS)
def test_each_row(condition: Condition, leased: Action, reserved: Action) -> None:
    assert action(lease(OURS, expires_in(86400)), condition) is leased
    assert action(lease(OURS, expires_in(1)), condition) is leased
    assert action(lease(OURS, PERMANENT), condition) is reserved


def test_the_rows_are_complete_and_the_documented_ones() -> None:
    assert [row[0] for row in ROWS] == list(Condition)
    documented = [" ".join(line.split()) for line in (lease_policy.__doc__ or "").splitlines()]
    rows = [f"{condition.value} {leased.value} {reserved.value}" for condition, leased, reserved in ROWS]
    assert [line for line in documented if line in rows] == rows
    architecture = (Path(__file__).parents[3] / "docs/architecture.md").read_text()
    table = [f"| {condition.value} | {leased.value} | {reserved.value} |" for condition, leased, reserved in ROWS]
    assert [line for line in architecture.splitlines() if line in table] == table


LIFETIMES = (EXPIRES, PERMANENT)
EVENTS: list[tuple[OwnEvent, Condition]] = [
    (LeaseRemoved(SUBNET), Condition.GONE),
    (Malformed(SUBNET, 6), Condition.MALFORMED),
    *((LeaseAdded(lease(OURS, each, "m")), Condition.CHANGED) for each in LIFETIMES),
    *((LeaseAdded(lease(THEIRS, each)), Condition.TAKEN) for each in LIFETIMES),
    (LeaseAdded(lease(THEIRS, EXPIRES, "m")), Condition.TAKEN),
    (LeaseAdded(lease(OURS, EXPIRES, "m", claim=True)), Condition.CHANGED),
    (LeaseAdded(lease(OURS, EXPIRES)), Condition.NO_HOST_ID),
    (LeaseAdded(lease(OURS, EXPIRES, "a", claim=True)), Condition.CLAIMED),
    (LeaseAdded(lease(OURS, EXPIRES, "z", claim=True)), Condition.CLAIMED),
    (LeaseAdded(lease(OURS, EXPIRES, "z")), Condition.HELD_BY_HIGHER_ID),
    (LeaseAdded(lease(OURS, EXPIRES, "a")), Condition.HELD_BY_LOWER_ID),
    (SameIPElsewhere(lease(OURS, EXPIRES, "a")), Condition.ELSEWHERE_LOWER_ID),
    (SameIPElsewhere(lease(OURS, EXPIRES, "a", claim=True)), Condition.ELSEWHERE),
    (SameIPElsewhere(lease(OURS, EXPIRES, "z")), Condition.ELSEWHERE),
    (SameIPElsewhere(lease(OURS, EXPIRES, "m")), Condition.ELSEWHERE),
    (SameIPElsewhere(lease(OURS, EXPIRES)), Condition.ELSEWHERE),
    *((Overlapping(lease(THEIRS, each, created=CREATED - 1)), Condition.OVERLAPS_EARLIER) for each in LIFETIMES),
    *((Overlapping(lease(THEIRS, each, created=CREATED + 1)), Condition.OVERLAPS_LATER) for each in LIFETIMES),
]


@pytest.mark.parametrize(("event", "expected"), EVENTS)
def test_an_event_about_the_own_subnet_is_one_of_the_rows(event: OwnEvent, expected: Condition) -> None:
    assert classify(event, HostIdentity(OURS, "m"), CREATED) is expected


@pytest.mark.parametrize("host_id", ["", "a"])
def test_without_a_host_id_every_holder_of_our_public_ip_is_us(host_id: str) -> None:
    assert (
        classify(LeaseAdded(lease(OURS, EXPIRES, host_id, claim=bool(host_id))), HostIdentity(OURS), CREATED)
        is Condition.CHANGED
    )
    assert classify(SameIPElsewhere(lease(OURS, EXPIRES, host_id)), HostIdentity(OURS), CREATED) is Condition.ELSEWHERE


FAILURES = [(HistoryGone(""), Condition.HISTORY_GONE), (RegistryUnavailable(""), Condition.STORE_SILENT)]


@pytest.mark.parametrize(("error", "expected"), FAILURES)
def test_a_failure_is_one_of_the_rows(error: RegistryError, expected: Condition) -> None:
    assert classify_failure(error) is expected


def test_every_row_is_the_classification_of_an_event_or_a_failure_or_drives_the_renewal() -> None:
    driven = {condition for _, condition in [*EVENTS, *FAILURES]} | {Condition.RENEWAL_DUE}
    assert driven == set(Condition)


@pytest.mark.parametrize(
    ("lease_ttl", "margin", "expected"),
    [
        (86400, 3600, 3600),
        (86394, 3600, 3600),
        (7200, 3600, 3600),
        (3600, 3600, 1800),
        (100, 3600, 50),
        (1, 3600, 0.5),
        (86400, 86399, 77760),
        (3601, 3600, 3240.9),
        (61, 60, 54.9),
        (60, 20, 20),
        (0, 3600, 0),
    ],
)
def test_a_lease_is_renewed_a_margin_early_or_half_way(lease_ttl: int, margin: int, expected: float) -> None:
    terms = Terms(86400, margin)
    assert renewal_lead(lease_ttl, terms, 0) == pytest.approx(expected)
    assert renewal_lead(lease_ttl, terms, 1) == pytest.approx(min(1.1 * expected, 0.9 * lease_ttl))


def test_a_failed_renewal_is_tried_again_in_time_and_less_and_less_often() -> None:
    assert [retry_delay(3600, failures, 0) for failures in (0, 1, 2, 1000)] == [60, 60, 60, 60]
    assert [retry_delay(8, failures, 0) for failures in (0, 1, 2, 3, 1000)] == [0.5, 1, 2, 2, 2]
    assert retry_delay(3600, 1, 1) == pytest.approx(54)
    assert retry_delay(0, 0, 0) == retry_delay(2.5, 0, 1) == 0.5
