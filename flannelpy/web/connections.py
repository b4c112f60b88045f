"""Serves HTTP connections, of any client, one request each.

h11 parses; this module limits: the time of a connection, the bytes of a request, and the number of connections.  Beyond
that number the oldest connection is closed, so that idle clients keep no probe out.
Source: RFC 9112.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from ipaddress import IPv4Address
from typing import NamedTuple

import h11

from flannelpy.errors import one_line
from flannelpy.logs import FailureLog
from flannelpy.web.messages import Request, Response, refusal

log = logging.getLogger(__name__)

# For a whole connection; Prometheus waits as long for a response by default.
_SECONDS = 10.0
_MOST_CONNECTIONS = 256
# Before the next one, if a connection could not be accepted.
_PAUSE_SECONDS = 0.05
_MOST_REQUEST_BYTES = 8192
_READ_BYTES = 4096
# A slow reader of a long response costs this much memory, not the length of the response.
_WRITE_BYTES = 1 << 16

_ABSOLUTE_FORM = re.compile(r"https?://(?P<host>[^/?]+)(?:/(?P<path>[^?]*))?(?P<query>.*)", re.IGNORECASE)

Answer = Callable[[Request], Awaitable[Response]]


class _Ends(NamedTuple):
    """The addresses of a connection.  The kernel does not tell them of one that the client has reset."""

    local: IPv4Address
    remote: IPv4Address


class Connections:
    """The connections of all listeners; ``answer`` returns the response to a request.

    ``files``: how many files the process may open.
    """

    def __init__(self, answer: Answer, files: int = 1024) -> None:
        self._answer = answer
        self._most = min(_MOST_CONNECTIONS, files // 2)
        self._failures = FailureLog(log, "Failed to answer an HTTP client")
        self._open: dict[asyncio.Task[None], StreamWriter] = {}  # the oldest first

    async def serve(self, listener: socket.socket) -> None:
        """Accept connections until cancelled, one at a time: of those beyond the limit, one is open at most."""
        with listener:
            listener.setblocking(False)
            while True:
                try:
                    await self._accept(listener)
                except OSError:  # the client has closed it, or the machine has too many open files
                    await asyncio.sleep(_PAUSE_SECONDS)

    async def _accept(self, listener: socket.socket) -> None:
        connection, (remote, _) = await asyncio.get_running_loop().sock_accept(listener)
        ends = _Ends(IPv4Address(connection.getsockname()[0]), IPv4Address(remote))
        reader, writer = await asyncio.open_connection(sock=connection, limit=_READ_BYTES)
        if len(self._open) >= self._most:
            self._close_oldest()
        task = asyncio.create_task(self._serve_one(reader, writer, ends))
        self._open[task] = writer
        task.add_done_callback(self._ended)

    def _close_oldest(self) -> None:
        task = next(iter(self._open))
        self._open.pop(task).transport.abort()
        task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if writer := self._open.pop(task, None):
            writer.transport.abort()

    async def _serve_one(self, reader: StreamReader, writer: StreamWriter, ends: _Ends) -> None:
        try:
            async with asyncio.timeout(_SECONDS):
                await _exchange(reader, writer, ends, self._answer)
        except (OSError, TimeoutError):  # the client closed the connection, or took too long
            pass
        except Exception as error:  # clients must not be able to fill the log
            self._failures.failed(one_line(error))


async def _exchange(reader: StreamReader, writer: StreamWriter, ends: _Ends, answer: Answer) -> None:
    """Read a request and write the response.  Raises OSError."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=_MOST_REQUEST_BYTES)
    try:
        head = await _read_head(reader, parser)
    except h11.RemoteProtocolError as error:
        response, is_head = (
            refusal(HTTPStatus(error.error_status_hint), "not an HTTP request that is served here"),
            False,
        )
    else:
        if head is None:
            return
        response, is_head = await answer(_request(head, ends)), head.method == b"HEAD"
    await _write(writer, parser, response, is_head)
    await _discard(reader, writer)


async def _read_head(reader: StreamReader, parser: h11.Connection) -> h11.Request | None:
    """Return the head of a request; None if the client closes the connection first.

    Raises OSError, h11.RemoteProtocolError.
    """
    while True:
        event = parser.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            return None
        parser.receive_data(await reader.read(_READ_BYTES))


def _request(head: h11.Request, ends: _Ends) -> Request:
    hosts = [value.decode("latin-1") for name, value in head.headers if name == b"host"]
    target, host = head.target.decode("ascii"), hosts[0] if hosts else ""
    if absolute := _ABSOLUTE_FORM.fullmatch(target):  # its host replaces the header (RFC 9112 section 3.2.2)
        host, target = absolute["host"], f"/{absolute['path'] or ''}{absolute['query']}"
    return Request(head.method.decode("ascii"), target, host, ends.local, ends.remote)


async def _write(writer: StreamWriter, parser: h11.Connection, response: Response, is_head: bool) -> None:
    headers = [
        ("Content-Type", response.content_type),
        ("Content-Length", str(len(response.body))),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        ("Connection", "close"),
    ]
    if response.allow:
        headers.append(("Allow", response.allow))
    head = h11.Response(status_code=response.status, headers=headers, reason=response.status.phrase.encode())
    writer.write(parser.send(head) or b"")
    body = memoryview(b"" if is_head else response.body)
    for start in range(0, len(body), _WRITE_BYTES):
        writer.write(body[start : start + _WRITE_BYTES])
        await writer.drain()


async def _discard(reader: StreamReader, writer: StreamWriter) -> None:
    """Read until the client closes the connection: unread bytes would have the kernel discard the response."""
    await writer.drain()
    writer.write_eof()
    while await reader.read(_READ_BYTES):
        pass
