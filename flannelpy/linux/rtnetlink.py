"""rtnetlink by itself, for what there are thousands of: pyroute2 takes 0.3 ms for a message, this a few microseconds.

Every method lets the event loop run between two system calls that carry many messages, and listings are received in a
thread, so that no turn of the loop takes long, however many messages there are.
Source: netlink(7), rtnetlink(7), include/uapi/linux/netlink.h, rtnetlink.h and neighbour.h of the kernel.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

RTM_GETLINK, RTM_GETADDR = 18, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP_INTR, _NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
#: In the number of an attribute that consists of attributes; older ones do without it.
NLA_F_NESTED = 0x8000
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
_SOL_NETLINK, _NETLINK_GET_STRICT_CHK = 270, 12

# struct nlmsghdr { __u32 nlmsg_len; __u16 nlmsg_type, nlmsg_flags; __u32 nlmsg_seq, nlmsg_pid; }; messages and
# attributes begin at multiples of 4.
_HEADER = struct.Struct("=IHHII")
# struct rtattr { unsigned short rta_len, rta_type; }
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
# The kernel fills as much of a listing as it is given room for: some 250 routes.
_BUFFER = 1 << 14
# To make something of so many takes about a millisecond.
_CHUNK = 100
# Requests that are sent with one system call.  The kernel may take 0.3 ms for one, since it compares a new route with
# all that leave by the same device.
_BATCH = 10


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
        with suppress(OSError):  # before Linux 4.20 listings are not filtered by the kernel
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        self._sequence = 0

    async def change(self, requests: Iterable[Message]) -> list[int]:
        """The errno of each request, 0 where it was done; many go with one system call.  Raises OSError."""
        return [error_of(answer) async for batch in self._batches(requests, _NLM_F_ACK) for answer in batch]

    async def ask(self, requests: Iterable[Message]) -> list[Message]:
        """The answer to each request, which may be an error (``error_of``).  Raises OSError."""
        return [answer async for batch in self._batches(requests, 0) for answer in batch]

    async def _batches(self, requests: Iterable[Message], flags: int) -> AsyncIterator[list[Message]]:
        left = iter(requests)
        while batch := list(islice(left, _BATCH)):
            first = self._sequence + 1
            data = b"".join(self._encode(request, flags) for request in batch)
            await asyncio.get_running_loop().sock_sendall(self._socket, data)
            received: dict[int, Message] = {}
            while len(received) < len(batch):
                received |= {number: one for number, one in decode(await self._receive()) if number >= first}
            yield [received[first + number] for number in range(len(batch))]
            await asyncio.sleep(0)

    async def listing(self, request: Message) -> AsyncIterator[list[Message]]:
        """All that there is of a kind, chunk by chunk; to be read to its end.  Raises OSError, InterruptedListing."""
        # Each system call makes the kernel look at thousands of entries when few of them are wanted, which takes it
        # milliseconds.  It always leaves a part of the listing to be received.
        await asyncio.to_thread(self._socket.send, self._encode(request, _NLM_F_DUMP))
        is_done = is_interrupted = False
        while not is_done:
            data = await asyncio.to_thread(self._socket.recv, _BUFFER)
            found = [message for number, message in decode(data) if number == self._sequence]
            is_interrupted |= any(message.flags & _NLM_F_DUMP_INTR for message in found)
            if found and found[-1].message_type in (_NLMSG_ERROR, _NLMSG_DONE):
                is_done = True
                if error := error_of(found.pop()):
                    raise OSError(error, os.strerror(error))
            for start in range(0, len(found), _CHUNK):
                yield found[start : start + _CHUNK]
                await asyncio.sleep(0)
        if is_interrupted:
            raise InterruptedListing

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
    start = 0
    while start + _HEADER.size <= len(data):
        length, message_type, flags, sequence, _ = _HEADER.unpack_from(data, start)
        if not _HEADER.size <= length <= len(data) - start:
            return
        yield sequence, Message(message_type, data[start + _HEADER.size : start + length], flags)
        start += length + 3 & ~3


def error_of(message: Message) -> int:
    """The errno in a message that is an error or the end of a listing; 0 in any other, and where all went well."""
    if message.message_type not in (_NLMSG_ERROR, _NLMSG_DONE) or len(message.body) < _ERROR.size:
        return 0
    value: int = _ERROR.unpack_from(message.body)[0]
    return max(0, -value)


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


def repeated(body: bytes, number: int) -> Iterator[bytes]:
    """The values of all attributes of one number in a list of attributes."""
    while len(body) >= _ATTRIBUTE.size:
        length, its_number = _ATTRIBUTE.unpack_from(body)
        if length < _ATTRIBUTE.size:
            return
        if its_number == number:
            yield body[_ATTRIBUTE.size : length]
        body = body[length + 3 & ~3 :]
