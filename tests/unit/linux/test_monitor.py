"""Which of the kernel's notifications may affect a network."""

from __future__ import annotations

import struct
from ipaddress import IPv4Network

import pytest

from flannelpy.linux.netlink.monitor import is_relevant
from flannelpy.rtnetlink import messages
from flannelpy.rtnetlink.messages import Message

NETWORK = IPv4Network("11.0.0.0/16")
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
def test_which_notifications_are_relevant(message_type: int, table: int, expected: bool) -> None:
    assert is_relevant(Message(message_type, struct.pack("=4xB7x", table)), NETWORK) is expected


@pytest.mark.parametrize(
    ("destination", "protocol", "expected"),
    [
        ("11.0.49.0/24", 3, True),
        ("11.0.49.64/26", 186, True),
        ("11.0.0.0/17", 4, True),
        ("11.0.0.0/16", 2, True),
        ("11.0.0.0/8", 4, True),
        ("8.0.0.0/5", 4, True),
        ("0.0.0.0/0", 16, True),
        ("11.1.0.0/24", 4, False),
        ("10.0.49.0/24", 3, False),
        ("139.0.49.0/24", 3, False),
        ("12.0.0.0/6", 4, False),
        ("10.0.49.0/24", 85, True),
    ],
)
@pytest.mark.parametrize("table", [MAIN, 100, 252])
def test_routes_are_relevant_if_they_overlap_the_network_or_are_ours(
    destination: str, protocol: int, expected: bool, table: int
) -> None:
    network = IPv4Network(destination)
    header = struct.pack("=BBBBBB6x", 2, network.prefixlen, 0, 0, table, protocol)
    attribute = messages.attribute(1, network.network_address.packed) if network.prefixlen else b""
    assert is_relevant(Message(24, header + attribute), NETWORK) is expected


@pytest.mark.parametrize(("state", "expected"), [(PERMANENT, True), (REACHABLE, False)])
def test_a_permanent_neighbour_is_relevant_and_one_that_arp_finds_is_not(state: int, expected: bool) -> None:
    assert is_relevant(Message(28, struct.pack("=8xHBB", state, 0, 0)), NETWORK) is expected
