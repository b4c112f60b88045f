"""Says that a daemon runs: who else wants what is its own finds out, and it ends with the daemon whatever happens.

Source: unix(7), "abstract": such a socket has no file, belongs to the network namespace, and is gone with its process.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from flannelpy.errors import AlreadyRuns, HostError

_NAME = b"flannelpy "


def anybody() -> bool:
    """Whether a daemon runs here, with whatever subnet file.  Source: proc(5), /proc/net/unix."""
    return b" @" + _NAME in Path("/proc/net/unix").read_bytes()


class Presence:
    """Held by the one process of this host that may write ``subnet_file``."""

    def __init__(self, subnet_file: Path) -> None:
        """Raises AlreadyRuns when another process holds it, HostError."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # As much as an address takes; the end of a long path tells more than its beginning.
        path = os.fsencode(subnet_file.resolve())[-90:]
        try:
            self._socket.bind(b"\0" + _NAME + path)
        except OSError as error:
            self._socket.close()
            if error.errno != errno.EADDRINUSE:
                raise HostError(f"cannot look whether another flannelpy runs: {error.strerror}") from error
            raise AlreadyRuns(f"a flannelpy runs here with the subnet file {subnet_file}: stop it first") from error

    def close(self) -> None:
        """Let others."""
        self._socket.close()
