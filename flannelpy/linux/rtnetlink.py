"""rtnetlink by itself, for what there are thousands of: pyroute2 takes 0.3 ms for a message, this a few microseconds.

Source: netlink(7), rtnetlink(7), include/uapi/linux/netlink.h, rtnetlink.h and neighbour.h of the kernel.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP_INTR, _NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
NLM_F_REPLACE, NLM_F_CREATE = 0x100, 0x400

# struct nlmsghdr { __u32 nlmsg_len; __u16 nlmsg_type, nlmsg_flags; __u32 nlmsg_seq, nlmsg_pid; }; messages and
# attributes begin at multiples of 4.
_HEADER = struct.Struct("=IHHII")
# struct rtattr { unsigned short rta_len, rta_type; }
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
_BUFFER = 1 << 16
# Messages that are sent as one: their answers have to fit into a socket's buffer.
_BATCH = 150


class Message(NamedTuple):
    """What stands behind the header: a fixed structure, and attributes."""

    message_type: int
    body: bytes
    flags: int = 0


class InterruptedListing(Exception):
    """Things changed while they were listed: the list may be wrong."""


class RtnetlinkSocket:
    """A socket to the kernel of this network namespace; for one task at a time."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, 0))
        self._sequence = 0

    async def change(self, requests: Sequence[Message]) -> list[int]:
        """The errno of each request, 0 where it was done; many go with one system call.  Raises OSError."""
        left, outcomes = iter(requests), []
        while batch := list(islice(left, _BATCH)):
            first = self._sequence + 1
            data = b"".join(self._encode(request, _NLM_F_ACK) for request in batch)
            await asyncio.get_running_loop().sock_sendall(self._socket, data)
            answers: dict[int, int] = {}
            while len(answers) < len(batch):
                for sequence, message in decode(await self._receive()):
                    if message.message_type == _NLMSG_ERROR and sequence >= first:
                        answers[sequence] = -_ERROR.unpack_from(message.body)[0]
            outcomes += [answers[first + number] for number in range(len(batch))]
        return outcomes

    async def list(self, request: Message) -> list[Message]:
        """All that there is of a kind.  Raises OSError, InterruptedListing."""
        await asyncio.get_running_loop().sock_sendall(self._socket, self._encode(request, _NLM_F_DUMP))
        found: list[Message] = []
        while True:
            for sequence, message in decode(await self._receive()):
                if sequence != self._sequence:  # of a listing that was given up
                    continue
                if message.message_type == _NLMSG_ERROR:
                    error = -_ERROR.unpack_from(message.body)[0]
                    raise OSError(error, os.strerror(error))
                if message.message_type == _NLMSG_DONE:
                    if any(each.flags & _NLM_F_DUMP_INTR for each in (message, *found)):
                        raise InterruptedListing
                    return found
                found.append(message)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _encode(self, request: Message, flags: int) -> bytes:
        self._sequence += 1
        return encode(request._replace(flags=request.flags | flags | _NLM_F_REQUEST), self._sequence)

    async def _receive(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self._socket, _BUFFER)


def encode(message: Message, sequence: int) -> bytes:
    """With its header, padded so that another one may follow."""
    length = _HEADER.size + len(message.body)
    return _HEADER.pack(length, message.message_type, message.flags, sequence, 0) + message.body + bytes(-length % 4)


def decode(data: bytes) -> Iterator[tuple[int, Message]]:
    """The messages in ``data`` with their sequence numbers; what is cut off or lies about its length ends them."""
    while len(data) >= _HEADER.size:
        length, message_type, flags, sequence, _ = _HEADER.unpack_from(data)
        if not _HEADER.size <= length <= len(data):
            return
        yield sequence, Message(message_type, data[_HEADER.size : length], flags)
        data = data[length + 3 & ~3 :]


def attribute(number: int, value: bytes) -> bytes:
    """An attribute, padded so that another one may follow."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), number) + value + bytes(-len(value) % 4)


def attributes(body: bytes, start: int) -> dict[int, bytes]:
    """The attributes behind a structure of ``start`` bytes, by their numbers; the last one of a number counts."""
    found = {}
    while start + _ATTRIBUTE.size <= len(body):
        length, number = _ATTRIBUTE.unpack_from(body, start)
        if length < _ATTRIBUTE.size:
            break
        found[number] = body[start + _ATTRIBUTE.size : start + length]
        start += length + 3 & ~3
    return found
