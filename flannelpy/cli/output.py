"""What a command prints: stdout and stderr that cannot be written end it, as they end a program of coreutils.

If the reader of a pipe has gone, as in ``flannelpy -help 2>&1 | head -1``, the command ends by SIGPIPE, without a line.
If a device is full or a stream is closed, it ends with exit code 1, after one line on stderr that names the error.

The log of a daemon is exempt: a daemon keeps running without a reader of its log.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

from flannelpy.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn, TextIO

    from _typeshed import ReadableBuffer


class _CheckedFile(io.FileIO):
    """A file descriptor of stdout.  After a failure, the rest of the output is dropped: Python writes it at exit."""

    _has_failed = False

    def write(self, content: ReadableBuffer, /) -> int:
        """Write to the descriptor.  Raises OutputError; ends the process if the reader has gone."""
        if self._has_failed:
            return memoryview(content).nbytes
        try:
            return super().write(content)
        except BrokenPipeError:
            _end_by_sigpipe()
        except OSError as error:
            self._has_failed = True
            raise OutputError(f"failed to write to standard output: {error.strerror}") from error


@contextmanager
def checked_stdout() -> Iterator[None]:
    """Have all writes to stdout inside the block raise OutputError or end the process."""
    before = sys.stdout
    sys.stdout = _checked(before)
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        finally:
            sys.stdout = before


def end_with(text: str, code: int) -> NoReturn:
    """Print ``text`` to stderr and exit with ``code``; with 1 in place of 0 if the text cannot be written."""
    if sys.stderr is None:  # closed by the caller
        sys.exit(code or OutputError.exit_code)
    try:
        click.echo(text, err=True)
    except BrokenPipeError:
        _end_by_sigpipe()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # for what Python writes at exit
        sys.exit(code or OutputError.exit_code)
    sys.exit(code)


def _checked(stream: TextIO | None) -> TextIO:
    """Return a checked stream with the descriptor of ``stream``; the same stream if it has none, as in a test."""
    if stream is None:  # closed by the caller; without a descriptor here, the next socket would become stdout
        file = _CheckedFile(os.open(os.devnull, os.O_RDONLY), "wb")
        return io.TextIOWrapper(io.BufferedWriter(file), "utf-8")
    with suppress(io.UnsupportedOperation):
        file = _CheckedFile(stream.fileno(), "wb", closefd=False)
        return io.TextIOWrapper(io.BufferedWriter(file), stream.encoding, "backslashreplace")
    return stream


def _end_by_sigpipe() -> NoReturn:
    """End as programs do that do not ignore SIGPIPE."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)
    os._exit(128 + signal.SIGPIPE)  # only if the signal is blocked
