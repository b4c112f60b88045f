"""A file that exists while the host is ready, for health checks that know no systemd."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)


class ReadyFile:
    """``path`` exists while ``set(True)`` was the last word.  One that an earlier run left is removed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ready = False
        with suppress(OSError):  # whatever stands in the way is told by whoever writes there first
            path.unlink()

    def set(self, ready: bool) -> None:
        """Make it so; a file that cannot be written is no reason to stop forwarding."""
        if ready == self._ready:
            return
        self._ready = ready
        try:
            if ready:
                self._path.touch()
            else:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("Cannot %s %s: %s", "write" if ready else "remove", self._path, error.strerror)

    def close(self) -> None:
        """Not ready any more."""
        self.set(False)
