"""Answers the clients of the control socket, one request of each, in the event loop that also forwards packets.

No client can delay packets: the server accepts one connection, renders one part of one answer, and does so once, per
turn of the loop, and neither a report nor a part with peers takes more than two milliseconds.  No number of clients can
keep the loop busy: the server pauses between connections, and renders for a quarter of the time.  No client can make it
grow: there are at most 32 clients, a request has at most 4 KB, and the next part of an answer is rendered when the
client has taken the last one.  A client has 10 s for its request and 30 s to take the answer.  If another one connects
meanwhile, it takes the place of the client for which the server has waited longest; if the server waits for none, the
newcomer waits.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Never, Protocol

from flannelpy.control.listener import Listener
from flannelpy.errors import HostError, MessageError, one_line
from flannelpy.logs import FailureLog
from flannelpy.report import DaemonReport, PeerReport
from flannelpy.serving import wire

log = logging.getLogger(__name__)

#: Clients at a time.
MOST_CLIENTS = 32
_REQUEST_SECONDS = 10.0
_ANSWER_SECONDS = 30.0
# The counters of the kernel in a report are at most so old.
_REFRESH_SECONDS = 1.0
# Peers of a line: half a millisecond of work.
_PEERS = 50
# The pause between two connections, of which each costs a tenth of a millisecond.
_CONNECTION_SECONDS = 0.001
# The pause after a turn, as a multiple of the work in it.
_PAUSES = 3
# The pause after a connection could not be accepted, because the process has too many open files.
_PAUSE_SECONDS = 1.0
# Between two checks whether the file of the socket is still there.
_CHECK_SECONDS = 2.0


class ReportedNetwork(Protocol):
    """What the server needs of a network."""

    @property
    def name(self) -> str:
        """The name of the network."""

    async def refresh(self) -> None:
        """Read the counters that only the kernel has, for the next report."""

    def peer_reports(self) -> AsyncIterator[list[PeerReport]]:
        """Yield the peers in chunks that take a fraction of a millisecond each."""


class ControlServer:
    """Answers requests about ``networks``."""

    def __init__(
        self,
        networks: Sequence[ReportedNetwork],
        report: Callable[[], DaemonReport],
        set_log_level: Callable[[int], None],
    ) -> None:
        self._networks = networks
        self._report = report
        self._set_log_level = set_log_level
        self._clients: set[asyncio.Task[None]] = set()
        self._awaited: dict[asyncio.Task[None], None] = {}  # for which the server waits, the longest first
        self._lock = asyncio.Lock()
        self._refreshed_at = -math.inf
        self._failures = FailureLog(log, "Failed to answer a client of the control socket")
        self._removals = FailureLog(log, "Failed to restore the control socket")

    async def run(self, path: Path) -> None:
        """Listen at ``path`` until cancelled; the file exists meanwhile, also if another program removes it.

        If the file cannot be created, log that and return: the daemon carries packets without it.
        """
        try:
            listener = Listener(path)
        except HostError as error:
            log.warning("%s; flannelpy status cannot ask this daemon", error)
            return
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._serve_until_removed(listener, tasks)
                listener = await self._listen_again(path)

    async def _serve_until_removed(self, listener: Listener, tasks: asyncio.TaskGroup) -> None:
        """Accept connections until another program removes the file."""
        accepting = tasks.create_task(self._accept_all(listener.socket, tasks))
        try:
            while True:
                await asyncio.sleep(_CHECK_SECONDS)
                if listener.is_removed():
                    return
        finally:
            accepting.cancel()
            await asyncio.wait([accepting])
            listener.close()

    async def _listen_again(self, path: Path) -> Listener:
        """Return a listener at ``path`` once the path is free and the file can be created."""
        while True:
            try:
                listener = Listener(path)
            except HostError as error:
                self._removals.failed(error, level=logging.WARNING)
                await asyncio.sleep(_CHECK_SECONDS)
            else:
                self._removals.recovered()
                log.warning("Restored the control socket %s: it was missing", path)
                return listener

    async def _accept_all(self, listener: socket.socket, tasks: asyncio.TaskGroup) -> Never:
        while True:
            await self._accept(listener, tasks)
            await asyncio.sleep(_CONNECTION_SECONDS)  # many may wait, and each would be accepted at once

    async def _accept(self, listener: socket.socket, tasks: asyncio.TaskGroup) -> None:
        try:
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        except OSError as error:
            self._failures.failed(error.strerror or str(error), level=logging.WARNING)
            await asyncio.sleep(_PAUSE_SECONDS)
            return
        while len(self._clients) >= MOST_CLIENTS and not self._close_awaited():
            await asyncio.wait(self._clients, return_when=asyncio.FIRST_COMPLETED)
        self._start(connection, tasks)

    def _close_awaited(self) -> bool:
        """Close the client for which the server has waited longest; return whether there was one."""
        longest = next(iter(self._awaited), None)
        if longest is None:
            return False
        self._forget(longest)
        return longest.cancel()

    def _start(self, connection: socket.socket, tasks: asyncio.TaskGroup) -> None:
        task = tasks.create_task(self._serve(connection))
        self._clients.add(task)
        task.add_done_callback(self._forget)
        task.add_done_callback(lambda _: connection.close())  # also if it is cancelled before it has begun

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._clients.discard(task)
        self._awaited.pop(task, None)

    async def _serve(self, connection: socket.socket) -> None:
        """Answer the request of one client."""
        try:
            await self._exchange(connection)
        except OSError:  # it has left, or it is too slow
            pass
        except MessageError as error:
            _refuse(connection, str(error))
        except Exception as error:
            self._failures.failed(one_line(error))
            _refuse(connection, one_line(error))

    async def _exchange(self, connection: socket.socket) -> None:
        """Receive the request, and send the answer.  Raises OSError, TimeoutError included, and MessageError."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_REQUEST_SECONDS):
            with self._awaiting():
                line = await _receive_line(connection)
        async with asyncio.timeout(_ANSWER_SECONDS):
            async for part in self.answer(wire.parse_request(line)):
                with self._awaiting():
                    await loop.sock_sendall(connection, part)

    @contextmanager
    def _awaiting(self) -> Iterator[None]:
        """Note that the server waits for the client of the present task."""
        task = asyncio.current_task()
        assert task
        self._awaited[task] = None
        try:
            yield
        finally:
            self._awaited.pop(task, None)

    async def answer(self, request: wire.Request) -> AsyncIterator[bytes]:
        """Carry out the request, and yield the lines of the answer; the next one is rendered when it is asked for."""
        match request:
            case wire.SetLogLevel(level):
                self._set_log_level(level)
            case wire.GetReport(with_peers):
                yield await self._report_line()
                for network in self._networks if with_peers else ():
                    async for line in self._peers(network):
                        yield line
        yield wire.part_line(wire.End())

    async def _report_line(self) -> bytes:
        async with self._lock:
            await self._refresh()
        async with self._turn():
            return wire.part_line(self._report())

    async def _refresh(self) -> None:
        """Read the counters of the kernel, unless that was a moment ago: it costs more than all other work."""
        now = asyncio.get_running_loop().time()
        if now - self._refreshed_at >= _REFRESH_SECONDS:
            self._refreshed_at = now
            for network in self._networks:
                await network.refresh()

    async def _peers(self, network: ReportedNetwork) -> AsyncIterator[bytes]:
        chunks = network.peer_reports()
        while True:
            try:
                async with self._turn():
                    peers = await anext(chunks)
            except StopAsyncIteration:
                return
            for start in range(0, len(peers), _PEERS):
                async with self._turn():
                    line = wire.part_line(wire.Peers(network.name, tuple(peers[start : start + _PEERS])))
                yield line

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Let one client at a time work, and packets be forwarded after each time."""
        async with self._lock:
            began = time.perf_counter()
            yield
            await asyncio.sleep(_PAUSES * (time.perf_counter() - began))


async def _receive_line(connection: socket.socket) -> bytes:
    """Return the first line without its end.  Raises MessageError if it is too long, ConnectionError without one."""
    loop = asyncio.get_running_loop()
    received = b""
    while b"\n" not in received:
        if len(received) >= wire.LONGEST_REQUEST:
            raise MessageError(f"a request has at most {wire.LONGEST_REQUEST} bytes")
        data = await loop.sock_recv(connection, wire.LONGEST_REQUEST - len(received))
        if not data:
            raise ConnectionError("the client sent no line")
        received += data
    return received.partition(b"\n")[0]


def _refuse(connection: socket.socket, reason: str) -> None:
    """Send a refusal, if the client has left space for it."""
    with suppress(OSError):
        connection.send(wire.part_line(wire.Refusal(reason)))
