"""A file that exists while the host is ready, for health checks that know no systemd."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)


class ReadyFile:
    """The file ``path``, which exists after ``set(True)`` until ``set(False)``; removes the file of an earlier run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ready = False
        with suppress(OSError):  # ``set`` logs why the file cannot be written
            path.unlink()

    def set(self, ready: bool) -> None:
        """Create or remove the file; log a failure, because forwarding must not stop for it."""
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
        """Remove the file."""
        self.set(False)
