"""How many ICMP errors go to one destination."""

from __future__ import annotations

import pytest

from flannelpy.datapath.icmp_limit import BURST, MAX_DESTINATIONS, PER_SECOND, TOTAL_BURST, TOTAL_PER_SECOND, IcmpLimit

A, B = 0x0B003B02, 0x0B003B03


def allowed(limit: IcmpLimit, destination: int, now: float, attempts: int = 100) -> int:
    return sum(limit.allow(destination, now) for _ in range(attempts))


def test_a_burst_is_allowed_at_once_and_no_more() -> None:
    limit = IcmpLimit()
    assert [limit.allow(A, 5.0) for _ in range(BURST + 2)] == [True] * BURST + [False] * 2


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.0, 0), (0.19, 0), (0.2, 1), (0.5, 2), (1.0, PER_SECOND), (1.2, BURST), (3600.0, BURST)]
)
def test_tokens_come_back_with_time_up_to_a_burst(seconds: float, expected: int) -> None:
    limit = IcmpLimit()
    allowed(limit, A, 0.0)
    assert allowed(limit, A, seconds) == expected


def test_a_flood_gets_the_rate_at_any_frequency() -> None:
    limit = IcmpLimit()
    total = sum(limit.allow(A, step / 1000) for step in range(10_001))
    assert total in range(BURST + 10 * int(PER_SECOND) - 1, BURST + 10 * int(PER_SECOND) + 1)


def test_destinations_do_not_share_a_bucket() -> None:
    limit = IcmpLimit()
    allowed(limit, A, 0.0)
    assert allowed(limit, B, 0.0) == BURST


def test_the_least_recent_destination_is_dropped_first() -> None:
    limit = IcmpLimit()
    allowed(limit, A, 0.0)
    allowed(limit, B, 0.0)
    for other in range(MAX_DESTINATIONS - 2):
        limit.allow(other, other / 1e6)  # none of them waits for the common bucket
        limit._total = TOTAL_BURST
    assert not limit.allow(A, 0.01)  # known still, and heard of again
    limit.allow(MAX_DESTINATIONS, 0.01)  # makes B go
    assert not limit.allow(A, 0.01)
    assert limit.allow(B, 0.01)


def test_all_destinations_together_have_a_limit() -> None:
    limit = IcmpLimit()
    assert sum(limit.allow(destination, 7.0) for destination in range(1000)) == TOTAL_BURST
    assert limit.is_spent(7.0)
    assert not limit.is_spent(7.0 + 1 / 512)
    assert sum(limit.allow(destination, 7.0 + 1 / 32) for destination in range(2000, 3000)) == TOTAL_PER_SECOND // 32
    assert sum(limit.allow(destination, 3600.0) for destination in range(4000, 5000)) == TOTAL_BURST


def test_a_destination_over_its_limit_takes_no_common_tokens() -> None:
    limit = IcmpLimit()
    allowed(limit, A, 0.0, 10_000)
    assert sum(limit.allow(destination, 0.0) for destination in range(1000)) == TOTAL_BURST - BURST


def test_a_clock_that_does_not_move_adds_no_tokens() -> None:
    limit = IcmpLimit()
    assert sum(limit.allow(destination, now) for destination in range(500) for now in (9.0, 8.0)) == TOTAL_BURST
