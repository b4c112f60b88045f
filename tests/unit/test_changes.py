"""Which of the kernel's messages mean that the network is no longer as it was."""

from __future__ import annotations

import struct

import pytest

from flannelpy.linux import changes

MAIN, LOCAL = 254, 255


def message(message_type: int, table: int = 0) -> bytes:
    """With a body of 13 bytes, which leaves the next message to begin 3 bytes later."""
    body = struct.pack("=4xB8x", table)
    return struct.pack("=IHHII", 16 + len(body), message_type, 0, 0, 0) + body


@pytest.mark.parametrize(
    ("message_type", "table", "matters"),
    [
        (16, 0, True),  # RTM_NEWLINK
        (17, 0, True),
        (20, 0, True),  # RTM_NEWADDR
        (24, MAIN, True),  # RTM_NEWROUTE
        (25, MAIN, True),
        (24, LOCAL, False),
        (25, LOCAL, False),
        (28, 0, False),  # RTM_NEWNEIGH
        (29, 0, True),
        (30, 0, False),
        (32, 0, True),  # RTM_NEWRULE
        (33, 0, True),
    ],
)
def test_what_matters(message_type: int, table: int, matters: bool) -> None:
    assert changes._matters(message(message_type, table)) is matters


def test_several_messages_come_as_one() -> None:
    several = [message(28), message(24, MAIN), message(29)]
    data = b"".join(each + bytes(3) for each in several)
    assert list(changes._messages(data)) == several
    assert list(changes._messages(data[:-3])) == several


def test_what_is_cut_off_or_lies_about_its_length_ends() -> None:
    assert list(changes._messages(message(24)[:10])) == []
    assert len(list(changes._messages(bytes(64)))) == 4
