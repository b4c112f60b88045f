"""Finds out whether a program or device of another host listens on a UDP port.

Source: udp(7), ECONNREFUSED; RFC 1122, section 4.1.3.1: a host answers a datagram for a closed port by ICMP.
"""

from __future__ import annotations

import asyncio
import enum
import socket
from ipaddress import IPv4Address

# A datagram or the ICMP error may be lost, and hosts limit how many errors they send.
_TRIES = 3
_WAIT_SECONDS = 0.3


class PortState(enum.Enum):
    """The state of a port.  ``SILENT``: it is open, or a firewall drops the datagrams."""

    CLOSED = enum.auto()
    SILENT = enum.auto()
    UNKNOWN = enum.auto()


async def probe(source: IPv4Address, target: IPv4Address, port: int) -> PortState:
    """Send empty datagrams from an address of this host to a port of another host; return the port's state.

    They do no harm: a VXLAN device drops a datagram shorter than a VXLAN header before it reads any of it (vxlan_rcv in
    drivers/net/vxlan of the kernel), and a program reads zero bytes.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as end:
            end.bind((str(source), 0))
            end.connect((str(target), port))
            for _ in range(_TRIES):
                if await _is_answered(end):
                    break
    except ConnectionRefusedError:
        return PortState.CLOSED
    except OSError:  # no route there, or a rule of this host rejects it
        return PortState.UNKNOWN
    return PortState.SILENT


async def _is_answered(end: socket.socket) -> bool:
    """Send one datagram; return whether an answer came.  Raises OSError, for the ICMP error ConnectionRefusedError."""
    end.send(b"")
    try:
        async with asyncio.timeout(_WAIT_SECONDS):
            await asyncio.get_running_loop().sock_recv(end, 1)
    except TimeoutError:
        return False
    return True
