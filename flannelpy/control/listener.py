"""The listening end of the control socket: a file that exists while its daemon runs."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from flannelpy.errors import HostError

#: Of the file: root, the daemon's user and its group may connect.
MODE = 0o660
# Connections that wait until the daemon accepts them, which it does one at a time.
_BACKLOG = 128


class Listener:
    """A non-blocking socket that listens at ``path``; ``close`` removes the file."""

    def __init__(self, path: Path) -> None:
        """Replace the socket of a daemon that has ended.

        Raises HostError if another daemon listens there, or the file cannot be created.
        """
        self._path = path
        remove_stale(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self.socket.bind(str(path))
            path.chmod(MODE)  # no connection is possible before the next line
            self.socket.listen(_BACKLOG)
            self._inode = path.lstat().st_ino
        except OSError as error:
            self.socket.close()
            raise HostError(f"Failed to create the control socket {path}: {error.strerror or error}") from error

    def is_removed(self) -> bool:
        """Return whether another program has removed the file, and put no other in its place."""
        return not os.path.lexists(self._path)

    def close(self) -> None:
        """Stop listening, and remove the file unless it is another's."""
        self.socket.close()
        with suppress(OSError):
            if self._path.lstat().st_ino == self._inode:
                self._path.unlink()


def remove_stale(path: Path) -> bool:
    """Remove the control socket of a daemon that has ended; return whether there was one.

    Raises HostError if a daemon listens there, if the file is no socket, or if it cannot be removed.
    """
    try:
        mode = path.lstat().st_mode
        if stat.S_ISSOCK(mode) and not _is_live(path):
            path.unlink()
            return True
    except FileNotFoundError:
        return False
    except OSError as error:
        raise HostError(f"Failed to remove the control socket {path}: {error.strerror}") from error
    cause = "another daemon has it" if stat.S_ISSOCK(mode) else "the file is no socket; remove it"
    raise HostError(f"Failed to create the control socket {path}: {cause}")


def _is_live(path: Path) -> bool:
    """Return whether a process listens at ``path``.  Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except BlockingIOError:  # too many connections wait already
            return True
        except ConnectionRefusedError:
            return False
        return True
