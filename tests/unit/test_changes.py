"""Which of the kernel's messages mean that the network is no longer as it was."""

from __future__ import annotations

import struct

import pytest

from flannelpy.linux.changes import matters
from flannelpy.linux.rtnetlink import Message

PERMANENT, REACHABLE = 0x80, 0x02
MAIN, LOCAL = 254, 255


@pytest.mark.parametrize(
    ("message_type", "table", "expected"),
    [
        (16, 0, True),  # RTM_NEWLINK
        (17, 0, True),
        (20, 0, True),  # RTM_NEWADDR
        (24, MAIN, True),  # RTM_NEWROUTE
        (25, MAIN, True),
        (24, LOCAL, False),
        (25, LOCAL, False),
        (29, 0, True),
        (30, 0, False),
        (32, 0, True),  # RTM_NEWRULE
        (33, 0, True),
    ],
)
def test_what_matters(message_type: int, table: int, expected: bool) -> None:
    assert matters(Message(message_type, struct.pack("=4xB7x", table))) is expected


@pytest.mark.parametrize(("state", "expected"), [(PERMANENT, True), (REACHABLE, False)])
def test_a_neighbour_that_somebody_puts_matters_and_one_that_is_found_does_not(state: int, expected: bool) -> None:
    assert matters(Message(28, struct.pack("=8xHBB", state, 0, 0))) is expected
