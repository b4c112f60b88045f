"""The Internet checksum against the examples of the RFCs."""

from __future__ import annotations

import pytest

from flannelpy.packet.checksum import fold, ones_sum

# RFC 1071, section 3: the words 0001 f203 f4f5 f6f7 add up to 2ddf0, and that folds to ddf2.
RFC_1071 = bytes.fromhex("0001f203f4f5f6f7")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (RFC_1071, 0xDDF2),
        (b"\x12", 0x1200),
        (b"\x12\x34\x56", 0x1234 + 0x5600),
        (b"\x00\x00\x00\x00", 0),
        (b"\xff\xff", 0xFFFF),
        (b"\xff\xff\xff\xff", 0xFFFF),
        (b"\xff\xff\x00\x01", 1),
        (b"\xff" * 65535, 0xFFFF - 0xFF),
    ],
)
def test_sum_is_ones_complement_of_words_in_network_order(data: bytes, expected: int) -> None:
    assert ones_sum(bytearray(data), 0, len(data)) == expected


@pytest.mark.parametrize("start", [0, 1, 2, 7])
@pytest.mark.parametrize("behind", [0, 1, 5])
def test_sum_keeps_to_its_part_of_the_buffer(start: int, behind: int) -> None:
    data = bytearray(b"\xa5" * start + RFC_1071 + b"\x5a" * behind)
    assert ones_sum(data, start, start + len(RFC_1071)) == 0xDDF2


@pytest.mark.parametrize(
    ("total", "expected"),
    [(0, 0), (0xFFFF, 0xFFFF), (0x10000, 1), (0x1FFFE, 0xFFFF), (0x2DDF0, 0xDDF2), (0xFFFFFFFF, 0xFFFF)],
)
def test_fold_carries_until_sixteen_bits_are_left(total: int, expected: int) -> None:
    assert fold(total) == expected
