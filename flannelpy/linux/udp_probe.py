"""Finds out whether a program or device of another host listens on a UDP port.

Source: udp(7), ECONNREFUSED; RFC 1122, section 4.1.3.1: a host answers a datagram for a closed port by ICMP.  Of the
other ICMP errors, the kernel reports to a connected socket only those that a firewall causes, "prohibited": the table
icmp_err_convert in net/ipv4/icmp.c.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import socket
from ipaddress import IPv4Address

# A datagram or the ICMP error may be lost, and hosts limit how many errors they send.
_TRIES = 3
_WAIT_SECONDS = 0.3
_PROHIBITED = (errno.EHOSTUNREACH, errno.ENETUNREACH)


class PortState(enum.Enum):
    """The state of a port.

    ``CLOSED``: no program listens, or a firewall answers as if none did.  ``PROHIBITED``: a firewall rejects the
    datagrams.  ``SILENT``: it is open, or a firewall drops the datagrams.  ``NOT_PERMITTED``: a rule of this host
    itself drops them.
    """

    CLOSED = enum.auto()
    PROHIBITED = enum.auto()
    SILENT = enum.auto()
    NOT_PERMITTED = enum.auto()
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
                if state := await _answer(end):
                    return state
    except ConnectionRefusedError:
        return PortState.CLOSED
    except OSError as error:  # EPERM: by the chain OUTPUT; others: no route there
        return PortState.NOT_PERMITTED if error.errno == errno.EPERM else PortState.UNKNOWN
    return PortState.SILENT


async def _answer(end: socket.socket) -> PortState | None:
    """Send one datagram; return what the answer tells, None without one.  Raises OSError."""
    end.send(b"")
    try:
        async with asyncio.timeout(_WAIT_SECONDS):
            await asyncio.get_running_loop().sock_recv(end, 1)
    except TimeoutError:
        return None
    except OSError as error:
        if error.errno in _PROHIBITED:
            return PortState.PROHIBITED
        raise
    return PortState.SILENT
