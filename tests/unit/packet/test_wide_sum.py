"""The sum by 32-bit words against the one by bytes, wherever a part of a buffer begins and ends."""

from __future__ import annotations

import random

import pytest
from support.packet_code import filled_up
from support.packets import checksum

from flannelpy.packet.checksum import ones_sum, wide_sum

MIXED = bytearray(random.Random(1071).randbytes(64))


def wide(data: bytearray, start: int, end: int) -> int:
    return wide_sum(data, memoryview(data).cast("I"), start, end)


@pytest.mark.parametrize("start", range(9))
def test_every_part_of_a_buffer_has_the_same_sum_by_words_and_by_bytes(start: int) -> None:
    for end in range(start, len(MIXED) + 1):
        expected = 0xFFFF - checksum(MIXED[start:end])
        assert wide(MIXED, start, end) == ones_sum(MIXED, start, end) == expected, (start, end)


@pytest.mark.parametrize("data", [b"\x00", b"\xff", b"\x01", b"\x80"], ids=bytes.hex)
@pytest.mark.parametrize("start", range(4))
@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5, 7, 8, 1448, 1449, 65534, 65535])
def test_carries_are_not_lost_however_many_there_are(data: bytes, start: int, length: int) -> None:
    buffer = filled_up(b"\x5a" * start + data * length)
    assert wide(buffer, start, start + length) == 0xFFFF - checksum(data * length)


def test_a_part_at_the_very_end_is_summed_without_a_look_beyond() -> None:
    for start in range(len(MIXED)):
        assert wide(MIXED, start, len(MIXED)) == 0xFFFF - checksum(MIXED[start:])
