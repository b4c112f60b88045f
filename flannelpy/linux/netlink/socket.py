"""A netlink socket for thousands of messages: pyroute2 takes 0.3 ms for a message, this socket a few microseconds.

Every method lets the event loop run between two system calls with many messages each, and listings are received in a
thread.  So no turn of the loop takes long, however many messages there are.
Source: netlink(7), include/uapi/linux/netlink.h of the kernel.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from itertools import islice

from flannelpy.rtnetlink.messages import NLMSG_DONE, NLMSG_ERROR, Message, decode, encode, error_of

_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP_INTR, _NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
_SOL_NETLINK, _NETLINK_GET_STRICT_CHK = 270, 12
# The kernel fills the whole buffer of a receive call: with about 250 routes.
_BUFFER = 1 << 14
# Parsing so many messages takes about a millisecond.
_CHUNK = 100
# Requests in one system call.  The kernel may take 0.3 ms for one request, because it compares a new route with all
# routes of the same device.
_BATCH = 10


class InterruptedListing(Exception):
    """The kernel's state changed during a listing, so entries may be missing or repeated."""


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
        """Send requests, many in one system call; return the errno of each, 0 for success.  Raises OSError."""
        return [error_of(answer) async for batch in self._batches(requests, _NLM_F_ACK) for answer in batch]

    async def ask(self, requests: Iterable[Message]) -> list[Message]:
        """Return the answer to each request, which may be an error (``error_of``).  Raises OSError."""
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
        """Yield a listing chunk by chunk; the caller must read it to its end.  Raises OSError, InterruptedListing."""
        # If few of thousands of entries are wanted, each system call takes the kernel milliseconds.  A send never
        # returns the whole listing: a part always remains to be received.
        await asyncio.to_thread(self._socket.send, self._encode(request, _NLM_F_DUMP))
        is_done = is_interrupted = False
        while not is_done:
            data = await asyncio.to_thread(self._socket.recv, _BUFFER)
            found = [message for number, message in decode(data) if number == self._sequence]
            is_interrupted |= any(message.flags & _NLM_F_DUMP_INTR for message in found)
            if found and found[-1].message_type in (NLMSG_ERROR, NLMSG_DONE):
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
