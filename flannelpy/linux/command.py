"""Runs a command of another program, for a limited time and without stalling the event loop."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from contextlib import suppress

from flannelpy.errors import HostError

# For one command; iptables needs a second for 30,000 rules.
_DEADLINE = 15.0
_KILL_SECONDS = 1.0
# The event loop runs other tasks between two chunks, each of which takes about a millisecond.
_CHUNK_BYTES = 1 << 15
_MOST_BYTES = 1 << 28
_ERROR_BYTES = 4096
_LINE_CHARACTERS = 200


def _discard(_: bytes) -> None:
    pass


async def run(*command: str, package: str, stdin: bytes = b"", sink: Callable[[bytes], object] = _discard) -> str:
    """Run a command to its end and feed its output to ``sink``; return why it failed, or "".

    ``package``: the name of the package that provides the command.  Raises HostError, and ValueError for more than
    256 MB of output.
    """
    process = await _start(*command, package=package)
    try:
        async with asyncio.timeout(_DEADLINE):
            failures = await _exchange(process, stdin, sink)
    except TimeoutError:
        raise HostError(f"{' '.join(command)} did not end within {_DEADLINE:g} s") from None
    finally:
        await _end(process)
    return failures


async def _start(*command: str, package: str) -> Process:
    try:
        return await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=PIPE, start_new_session=True
        )
    except FileNotFoundError as error:
        raise HostError(f"the command {command[0]} is missing: install {package}") from error
    except OSError as error:
        raise HostError(f"cannot run {command[0]}: {error.strerror}") from error


async def _exchange(process: Process, stdin: bytes, sink: Callable[[bytes], object]) -> str:
    """Write, read and wait; return the exit code and last line of a command that failed, else "".

    Raises ValueError.
    """
    assert process.stdin
    assert process.stdout
    assert process.stderr
    error_output = bytearray()

    def keep_end(chunk: bytes) -> None:
        error_output.extend(chunk)
        del error_output[:-_ERROR_BYTES]

    try:
        async with asyncio.TaskGroup() as tasks:  # cancels all if one fails
            tasks.create_task(_write(process.stdin, stdin))
            tasks.create_task(_read(process.stdout, sink))
            tasks.create_task(_read(process.stderr, keep_end))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    code = await process.wait()
    return f"exit code {code}{readable(_cause(error_output.decode(errors='replace')))}" if code else ""


def _cause(error_output: str) -> str:
    """Return the last line, or that of nft, which shows the place of an error behind it."""
    lines = error_output.strip().splitlines() or [""]
    return next((line for line in reversed(lines) if line.startswith("Error:")), lines[-1])


def readable(line: str) -> str:
    """Return a line of a command's output for an error message; empty if it is not printable text."""
    is_text = line.isprintable() and "\N{REPLACEMENT CHARACTER}" not in line
    return f": {line[:_LINE_CHARACTERS]}" if is_text and line else ""


async def _write(stream: StreamWriter, data: bytes) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # the command ended first; its exit code counts
        stream.write(data)
        await stream.drain()
        stream.close()


async def _read(stream: StreamReader, sink: Callable[[bytes], object]) -> None:
    """Feed a stream to ``sink``.  Raises ValueError after 256 MB."""
    total = 0
    while chunk := await stream.read(_CHUNK_BYTES):
        sink(chunk)
        await asyncio.sleep(0)  # read() does not wait while there is more
        total += len(chunk)
        if total > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES >> 20} MB")


async def _end(process: Process) -> None:
    """Kill the command, if it still runs, with all processes that it has started."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(TimeoutError):  # a process that waits for a device does not end
            async with asyncio.timeout(_KILL_SECONDS):
                assert process.stdout
                assert process.stderr
                await process.stdout.read()  # until the pipe is closed, so that it can be collected
                await process.stderr.read()
                await process.wait()
