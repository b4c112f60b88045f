"""log-level: has the running daemon log more or less.

Counterpart: none; flanneld's level is that of its start.
"""

from __future__ import annotations

from pathlib import Path

from flannelpy.control import client


def run(control_socket: Path, level: int) -> int:
    """Return 0 when the daemon logs at ``level``.  Raises DaemonUnavailable."""
    client.set_log_level(control_socket, level)
    return 0
