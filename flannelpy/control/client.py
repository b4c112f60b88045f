"""Asks a running daemon, over its control socket.  Blocking; for commands and the HTTP process, not for the daemon."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Never

from flannelpy.errors import DaemonUnavailable, MessageError
from flannelpy.options import control_socket, lock_path, locked_by
from flannelpy.serving import wire

#: Seconds for a whole answer: a daemon that forwards packets at full load renders ten thousand peers in fewer.
TIMEOUT = 10.0
# A daemon with a hundred networks has a report of some hundred kilobytes.
_LONGEST_LINE = 4 << 20
_READ_BYTES = 1 << 16


def fetch(path: Path, *, with_peers: bool, timeout: float = TIMEOUT) -> wire.Answer:
    """Return the report of the daemon whose control socket is ``path``, with all peers if ``with_peers``.

    The peers are some milliseconds younger than the report.  ``timeout``: seconds for the whole answer.  Raises
    DaemonUnavailable, whose text is one line with the path and what to do: no daemon runs there, the user may not ask
    it, or it gives no answer that this version reads.
    """
    try:
        return wire.answer(_ask(path, wire.GetReport(with_peers), timeout))
    except MessageError as error:
        raise DaemonUnavailable(f"{path}: {error}") from error


def set_log_level(path: Path, level: int, timeout: float = TIMEOUT) -> None:
    """Have the daemon log at ``level`` from now on; when this returns, it does.

    Raises DaemonUnavailable as ``fetch`` does.
    """
    for _ in _ask(path, wire.SetLogLevel(level), timeout):
        pass


def _ask(path: Path, request: wire.Request, timeout: float) -> Iterator[wire.Part]:
    """Yield the parts of the answer before its end.  Raises DaemonUnavailable."""
    deadline = time.monotonic() + timeout
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            _connect(sock, path, deadline)
            with suppress(BrokenPipeError):  # the daemon's refusal can be read all the same
                sock.sendall(wire.request_line(request))
            for line in _lines(sock, deadline):
                match wire.parse_part(line):
                    case wire.End():
                        return
                    case wire.Refusal(reason):
                        raise DaemonUnavailable(f"the daemon at {path} refused: {reason}")
                    case part:
                        yield part
        raise DaemonUnavailable(f"the daemon at {path} closed the connection: see its log, or try again")
    except MessageError as error:
        raise DaemonUnavailable(f"{path}: {error}") from error
    except OSError as error:
        _fail(path, error, timeout)


def _connect(sock: socket.socket, path: Path, deadline: float) -> None:
    """Connect after the clients that came before.  Raises OSError: BlockingIOError if they are first at ``deadline``.

    The kernel keeps the order for sockets that block.  It refuses others at once, also Python's sockets with a timeout:
    a client that tries again and again could keep those out.
    """
    seconds, fraction = divmod(_left(deadline), 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(seconds), int(fraction * 1e6) + 1))
    sock.connect(str(path))
    sock.settimeout(_left(deadline))


def _lines(sock: socket.socket, deadline: float) -> Iterator[bytes]:
    """Yield the lines that arrive until ``deadline``, up to the end of the stream.  Raises OSError, MessageError."""
    pending = b""
    while data := _receive(sock, deadline):
        *whole, pending = (pending + data).split(b"\n")
        yield from whole
        if len(pending) > _LONGEST_LINE:
            raise MessageError("not an answer of flannelpy: a line without an end")


def _receive(sock: socket.socket, deadline: float) -> bytes:
    sock.settimeout(_left(deadline))
    return sock.recv(_READ_BYTES)


def _left(deadline: float) -> float:
    """Return the seconds until ``deadline``.  Raises TimeoutError after it."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _fail(path: Path, error: OSError, timeout: float) -> Never:
    """Raise DaemonUnavailable with the cause in words."""
    match error:
        case TimeoutError():
            text = f"the daemon at {path} did not answer within {timeout:g} s: see its log"
        case PermissionError():
            text = f"not permitted to use {path}: run the command as root or as a member of the socket's group"
        case BlockingIOError():
            text = f"the daemon at {path} is busy with other clients: try again"
        case FileNotFoundError() | ConnectionRefusedError():
            text = _why_unanswered(path)
        case _:
            text = f"cannot ask the daemon at {path}: {error.strerror or error}"
    raise DaemonUnavailable(text) from error


def _why_unanswered(path: Path) -> str:
    pid = _running(path)
    if pid is None:
        return f"no daemon at {path}: start flannelpy, or name its -subnet-file, or with -networks its -subnet-dir"
    runs = f"flannelpy runs with the PID {pid}, but"
    if os.path.lexists(path):
        return f"{runs} {path} is not its control socket: remove that file, then flannelpy creates the socket"
    return f"{runs} its control socket {path} is missing: try again in some seconds; if it stays missing, restart it"


def _running(path: Path) -> int | None:
    """Return the PID of a daemon with this control socket, by its instance lock; None without one."""
    if not (files := _lock_files(path)):
        return None
    from flannelpy.linux import instance_lock  # it is the daemon's, so other commands do not load it

    return next(filter(None, map(instance_lock.holder, files)), None)


def _lock_files(path: Path) -> list[Path]:
    """Return the lock files that a daemon with this control socket has; with -networks, one for each network."""
    if path.name != control_socket(path.with_name("subnet.env"), None).name:
        lock = lock_path(path.with_suffix(""))
        return [lock] if lock.exists() else []
    return [lock for lock in path.parent.glob(".*.lock") if not _has_own_socket(lock)]


def _has_own_socket(lock_file: Path) -> bool:
    """Return whether the lock is none, or that of a daemon without -networks, and thus with another control socket."""
    subnet_file = locked_by(lock_file)
    return subnet_file is None or (subnet_file.name != "subnet.env" and control_socket(subnet_file, None).exists())
