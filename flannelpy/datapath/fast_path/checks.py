"""What the programs check, in their order, and what the engine does with a packet that fails a check.  Pure.

A packet that fails a check is passed on as it came, so that the loop gets it.  The loop alone decides drops: a check
with a reason here names that of the engine, which drops the packet for it; any other packet is only unusual, and the
engine may well carry it.  tests/unit/datapath/test_fast_path.py compares programs and engine by these tables.
"""

from __future__ import annotations

import enum

from flannelpy.packet.drops import DropReason


class Check(enum.Enum):
    """A check of a table: its index there counts the packets that failed it."""

    def __init__(self, index: int, reason: DropReason | None) -> None:
        self.index = index
        self.reason = reason

    @property
    def label(self) -> str:
        """Return the name for the report, and of the label in the program."""
        return self.name.lower()


class Outgoing(Check):
    """Of packets that enter the TUN."""

    DEADLINE = 0, None  # the daemon no longer pushes the deadline on: its lease is over
    TRUNCATED = 1, DropReason.TRUNCATED  # shorter than an IPv4 header
    VERSION = 2, DropReason.NOT_IPV4
    HEADER_LENGTH = 3, DropReason.BAD_HEADER
    HEADER_TRUNCATED = 4, DropReason.TRUNCATED  # options, but not all of them
    LENGTH = 5, DropReason.BAD_LENGTH
    OWN_DATAGRAM = 6, None  # UDP from an address of our socket: a fragment, or with our port
    SUPER_PACKET = 7, None  # not of TCP, or with IP options: segments get checksums that a receiver's loop wants
    OWN_SUBNET = 8, DropReason.NO_ROUTE
    TOO_LONG = 9, None  # for the outer header, or for the kernel to add it
    NO_PEER = 10, None  # no peer leases the destination, or the loop serves the peer
    TTL = 11, DropReason.TTL_EXPIRED
    TOO_BIG = 12, None  # for the underlay's MTU: the loop sends fragments
    NOT_FORWARDING = 13, None  # the kernel answers no look-up while forwarding is off
    OTHER_WAY = 14, None  # the underlay's route leads elsewhere than to the external interface
    REFUSED = 15, None  # the kernel adds no header: no memory, or the packet is encapsulated already


class Incoming(Check):
    """Of datagrams to our address and port, which arrive at the external interface."""

    FRAGMENT = 0, None
    OUTER_LENGTH = 1, None
    IP_CHECKSUM = 2, None
    UDP_CHECKSUM = 3, None  # only loops send one, and the loop can check it
    DEADLINE = 4, None
    NO_DEVICE = 5, None  # the TUN is gone
    UNKNOWN_SENDER = 6, None
    SENDER_PORT = 7, DropReason.WRONG_SENDER_PORT
    TRUNCATED = 8, DropReason.TRUNCATED
    VERSION = 9, DropReason.NOT_IPV4
    HEADER_LENGTH = 10, DropReason.BAD_HEADER
    HEADER_TRUNCATED = 11, DropReason.TRUNCATED
    LENGTH = 12, DropReason.BAD_LENGTH
    SOURCE = 13, DropReason.SPOOFED_SOURCE
    DESTINATION = 14, DropReason.WRONG_DESTINATION
    TTL = 15, DropReason.TTL_EXPIRED
    SUPER_PACKET = 16, None  # not of TCP, or with IP options: a sender's program makes none
    REFUSED = 17, None
