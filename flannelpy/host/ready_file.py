"""A file that exists while the host is ready, for health checks that know no systemd."""

from __future__ import annotations

import logging
from pathlib import Path

from flannelpy.logs import FailureLog

log = logging.getLogger(__name__)


class ReadyFile:
    """The file ``path``, which exists after ``set(True)`` until ``set(False)``; removes the file of an earlier run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ready: bool | None = None  # whether the file exists; None until that is known
        self._failures = FailureLog(log, "Cannot change the ready file")
        self.set(False)

    def set(self, ready: bool) -> None:
        """Create or remove the file; log a failure, because forwarding must not stop for it.

        After a failure, the next call tries again.
        """
        if ready == self._ready:
            return
        try:
            if ready:
                self._path.touch()
            else:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            line = f"Cannot {'write' if ready else 'remove'} {self._path}: {error.strerror}"
            self._failures.failed(line, line, logging.WARNING)
        else:
            self._ready = ready
            self._failures.recovered()

    def check(self) -> None:
        """Create or remove the file again if another program has changed it."""
        ready = self._ready
        if ready is None or ready == self._path.exists():
            return
        self._ready = None
        self.set(ready)
        if self._ready is ready:
            done, why = ("Restored", "it was missing") if ready else ("Removed", "the network is not ready")
            log.warning("%s %s: %s", done, self._path, why)

    def close(self) -> None:
        """Remove the file."""
        self.set(False)
