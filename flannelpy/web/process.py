"""The daemon's side of the HTTP process: starts it, answers its questions, and starts it again when it ends.

Its connections to the daemon are pairs of sockets, so it needs no right to use the control socket.  It may ask for the
report and for nothing else, and no faster than an honest process does: strangers might have taken it over.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Never

from flannelpy.errors import MessageError
from flannelpy.logs import FailureLog
from flannelpy.options import Options
from flannelpy.serving import wire
from flannelpy.web.settings import Settings

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
# A process that ran for so long had started well.
_LONG_RUN = 60.0
# What Python itself needs; not FLANNELD_ETCD_PASSWORD, nor NOTIFY_SOCKET.
_KEPT_VARIABLES = ("PYTHON", "LC_", "LANG", "LD_", "PATH")

# One for reports, one for reports with peers.
_CONNECTIONS = 2
# Between two answers; each costs the event loop some time.
_ANSWER_PAUSE = 0.1

#: Returns the lines of the answer to a request, as the control socket has them.
Answer = Callable[[wire.Request], AsyncIterator[bytes]]


class HttpProcess:
    """Keeps the HTTP process running, on ``listeners``."""

    def __init__(self, options: Options, listeners: Sequence[socket.socket], answer: Answer) -> None:
        self._options = options
        self._listeners = listeners
        self._answer = answer
        self._ends = FailureLog(log, "HTTP process ended")

    async def run(self) -> Never:
        """Run the process until cancelled.  If it ends, log why and start it again, after ever longer pauses."""
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE
        while True:
            started_at = loop.time()
            cause = await self._run_once()
            if loop.time() - started_at >= _LONG_RUN:
                self._ends.recovered()
                pause = _FIRST_PAUSE
            self._ends.failed(cause, f"HTTP process ended: {cause}; starting it again in {pause:g} s", logging.WARNING)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _run_once(self) -> str:
        """Run the process to its end; return why it ended."""
        with ExitStack() as opened:
            try:
                ours, theirs = zip(*(_pair(opened) for _ in range(_CONNECTIONS)), strict=True)
                process = await self._start(theirs)
            except OSError as error:
                return f"it cannot be started: {error.strerror}"
            for each in theirs:
                each.close()
            answering = [asyncio.create_task(answer_questions(each, self._answer)) for each in ours]
            try:
                return _cause(await process.wait())
            finally:
                for task in answering:
                    task.cancel()
                await _end(process)

    async def _start(self, connections: Sequence[socket.socket]) -> Process:
        """Start the process with the listeners and its ends of the connections.  Raises OSError."""
        controls = tuple(each.fileno() for each in connections)
        listeners = tuple(each.fileno() for each in self._listeners)
        addresses = tuple(str(each) for each in self._options.metrics_ip)
        settings = Settings(controls, listeners, os.getpid(), addresses, self._options.metrics_peers)
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "flannelpy.web", settings.to_text()),
            stdin=DEVNULL,
            stdout=DEVNULL,
            pass_fds=(*controls, *listeners),
            env={name: value for name, value in os.environ.items() if name.startswith(_KEPT_VARIABLES)},
            cwd="/",
        )


async def answer_questions(connection: socket.socket, answer: Answer) -> None:
    """Answer requests for the report until the process closes the connection, or asks for anything else."""
    reader, writer = await asyncio.open_unix_connection(sock=connection, limit=wire.LONGEST_REQUEST)
    try:
        while isinstance(request := wire.parse_request(await reader.readline()), wire.GetReport):
            async for line in answer(request):
                writer.write(line)
                await writer.drain()
            await asyncio.sleep(_ANSWER_PAUSE)
    except (OSError, ValueError, MessageError):  # the process has ended, or it asks for something else
        pass
    finally:
        writer.close()


def _pair(opened: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Return connected sockets, which ``opened`` closes.  Raises OSError."""
    ours, theirs = socket.socketpair()
    return opened.enter_context(ours), opened.enter_context(theirs)


def _cause(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


async def _end(process: Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
