"""ICMP echo requests of any length with DF, from a chosen address of this host, and the answers to them.

The libraries for ICMP, such as icmplib and aioping, set neither DF nor path MTU discovery, so they cannot find a narrow
link.  The socket is raw: a ping socket excludes root unless ``net.ipv4.ping_group_range`` has its group.
Source: RFC 792; icmp(7), raw(7), ip(7): IP_PMTUDISC_PROBE sets DF and ignores what the kernel has learned of the path.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import socket
import struct
from contextlib import suppress
from ipaddress import IPv4Address
from typing import NamedTuple, Self

from flannelpy.errors import HostError
from flannelpy.packet.checksum import ones_sum

#: Bytes of the IPv4 and the ICMP header in front of the data.
HEADERS = 28
_HEADER = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence number
_ECHO_REPLY, _UNREACHABLE, _ECHO_REQUEST, _TIME_EXCEEDED = 0, 3, 8, 11
# Source: include/uapi/linux/in.h and icmp.h, include/uapi/asm-generic/socket.h of the kernel.
_IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE = 10, 3
_SOL_RAW, _ICMP_FILTER = 255, 1
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 4 << 20
_TTL = 64
_WANTED = (_ECHO_REPLY, _UNREACHABLE, _TIME_EXCEEDED)
#: The error of a request that netfilter drops on its way out, by a rule or by conntrack.
NOT_PERMITTED = "dropped by this host's own rules, or by its full conntrack table"
#: The error of a request that a host with no time left for it reports: one that would have forwarded it.
TIME_EXCEEDED = "time exceeded"
_CODES = {0: "network unreachable", 1: "host unreachable", 3: "port unreachable", 4: "packet too long"}
_CODES |= {9: "prohibited", 10: "prohibited", 13: "prohibited"}


class Answer(NamedTuple):
    """What became of one request.

    ``seconds``: the round trip, None without a reply.  ``error``: what was reported instead, in words.  ``reporter``:
    the machine that reported it, None for this kernel.
    """

    seconds: float | None = None
    error: str = ""
    reporter: IPv4Address | None = None


class Heard(NamedTuple):
    """A received message that concerns an echo request: to which target, and with which numbers."""

    target: IPv4Address
    identifier: int
    sequence: int
    error: str = ""
    reporter: IPv4Address | None = None


class IcmpEcho:
    """A raw socket bound to one address of this host, inside ``async with``."""

    def __init__(self, source: IPv4Address) -> None:
        """Open the socket.  Raises HostError."""
        self.source = source
        self._identifier = int.from_bytes(os.urandom(2), "big")
        self._numbers = itertools.count(1)
        self._pending: dict[tuple[IPv4Address, int], tuple[asyncio.Future[Answer], float]] = {}
        try:
            self._socket = _open(source)
        except OSError as error:
            raise HostError(f"cannot send ICMP from {source}: {error.strerror}") from error

    async def __aenter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._read)
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    async def ask(self, target: IPv4Address, length: int, patience: float, ttl: int = _TTL) -> Answer:
        """Send one request as an IP packet of ``length`` bytes; return what came back within ``patience`` seconds."""
        loop = asyncio.get_running_loop()
        number = next(self._numbers) & 0xFFFF
        answer: asyncio.Future[Answer] = loop.create_future()
        self._pending[target, number] = answer, loop.time()
        try:
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
            self._socket.sendto(request(self._identifier, number, length), (str(target), 0))
            async with asyncio.timeout(patience):
                return await answer
        except TimeoutError:
            return Answer()
        except OSError as error:
            return Answer(error=_words_of(error))
        finally:
            self._pending.pop((target, number), None)

    def _read(self) -> None:
        """Take in all messages that have arrived."""
        with suppress(BlockingIOError):
            while True:
                self._take(self._socket.recv(1 << 16))

    def _take(self, packet: bytes) -> None:
        heard = parse(packet)
        if heard is None or heard.identifier != self._identifier:
            return
        answer, sent_at = self._pending.get((heard.target, heard.sequence), (None, 0.0))
        if answer is None or answer.done():
            return
        seconds = None if heard.error else asyncio.get_running_loop().time() - sent_at
        answer.set_result(Answer(seconds, heard.error, heard.reporter))


def _open(source: IPv4Address) -> socket.socket:
    """Return the socket.  Raises OSError."""
    end = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP)
    try:
        end.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
        unwanted = 0xFFFFFFFF & ~sum(1 << kind for kind in _WANTED)
        end.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", unwanted))
        with suppress(PermissionError):  # without CAP_NET_ADMIN: many large replies at once may then be lost
            end.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        end.bind((str(source), 0))
    except BaseException:
        end.close()
        raise
    return end


def _words_of(error: OSError) -> str:
    if error.errno == errno.EMSGSIZE:
        return "longer than the MTU of this host's interface"
    if error.errno == errno.EPERM:
        return NOT_PERMITTED
    return (error.strerror or str(error)).lower()


def request(identifier: int, number: int, length: int) -> bytearray:
    """Return the ICMP message of an echo request whose IP packet has ``length`` bytes."""
    message = bytearray(max(length - HEADERS, 0) + _HEADER.size)
    _HEADER.pack_into(message, 0, _ECHO_REQUEST, 0, 0, identifier, number)
    _HEADER.pack_into(message, 0, _ECHO_REQUEST, 0, ~ones_sum(message, 0, len(message)) & 0xFFFF, identifier, number)
    return message


def parse(packet: bytes) -> Heard | None:
    """Return what an IP packet with ICMP has about an echo request; None if it is about something else."""
    start = _header_length(packet)
    if len(packet) < start + _HEADER.size:
        return None
    kind, code, _, identifier, number = _HEADER.unpack_from(packet, start)
    sender = IPv4Address(packet[12:16])
    if kind == _ECHO_REPLY:
        return Heard(sender, identifier, number)
    cited = packet[start + _HEADER.size :]
    inner = _header_length(cited)
    if kind not in _WANTED or len(cited) < inner + _HEADER.size:
        return None
    cited_kind, _, _, identifier, number = _HEADER.unpack_from(cited, inner)
    if cited_kind != _ECHO_REQUEST:
        return None
    error = TIME_EXCEEDED if kind == _TIME_EXCEEDED else _CODES.get(code, "unreachable")
    return Heard(IPv4Address(cited[16:20]), identifier, number, error, sender)


def _header_length(packet: bytes) -> int:
    """Return the length of the IPv4 header, at least the shortest one."""
    return max((packet[0] & 15) * 4, 20) if packet else 20
