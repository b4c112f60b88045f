"""What is counted for one peer, in both forms of the code."""

from __future__ import annotations

import pytest
from support.packet_code import INSTALLED, INTERPRETED, PacketCode


@pytest.mark.parametrize("code", [INSTALLED, INTERPRETED])
def test_runs_and_trains_are_counted_as_their_datagrams(code: PacketCode) -> None:
    tally = code.tally.Tally()
    assert (tally.packets_out, tally.bytes_out, tally.packets_in, tally.bytes_in, tally.heard_at) == (0, 0, 0, 0, 0)
    tally.sent(100, 100)
    tally.sent(250, 100)
    assert (tally.packets_out, tally.bytes_out) == (4, 350)
    tally.accepted(3, 290, 1.5)
    tally.accepted(1, 10, 2.5)
    assert (tally.packets_in, tally.bytes_in, tally.heard_at) == (4, 300, 2.5)


@pytest.mark.parametrize("code", [INSTALLED, INTERPRETED])
@pytest.mark.parametrize(
    ("length", "segment_size", "expected"), [(0, 0, 1), (0, 9, 1), (1, 1, 1), (9, 9, 1), (10, 9, 2), (27, 9, 3)]
)
def test_the_number_of_datagrams_in_a_train(code: PacketCode, length: int, segment_size: int, expected: int) -> None:
    assert code.tally.count(length, segment_size) == expected


def test_a_counter_outlasts_32_bits() -> None:
    tally = INSTALLED.tally.Tally()
    for _ in range(3):
        tally.sent(2**62 // 2, 2**62)
    assert tally.bytes_out == 3 * 2**61
