"""Says that a daemon runs: who else wants what is its own finds out, and it ends with the daemon whatever happens.

Source: unix(7), "abstract": such a socket has no file, belongs to the network namespace, and is gone with its process.
"""

from __future__ import annotations

import errno
import socket
from pathlib import Path

from flannelpy.errors import HostError


class Presence:
    """Held by the one process of this host that may write ``subnet_file``."""

    def __init__(self, subnet_file: Path) -> None:
        """Raises HostError when another process holds it."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            # As much as an address takes; the end of a long path tells more than its beginning.
            self._socket.bind(f"\0flannelpy {str(subnet_file.absolute())[-90:]}")
        except OSError as error:
            self._socket.close()
            if error.errno != errno.EADDRINUSE:
                raise HostError(f"cannot look whether another flannelpy runs: {error.strerror}") from error
            raise HostError(f"a flannelpy runs here with -subnet-file {subnet_file}: stop it first") from error

    def close(self) -> None:
        """Let others."""
        self._socket.close()
