"""Descriptors that systemd keeps open for us while this service restarts, and closes when the service is stopped.

The service needs ``FileDescriptorStoreMax=``.  systemd tells so by ``$FDSTORE`` from version 254 on; the drop-in
``flannelpy.service.d/50-datapath.conf`` sets that variable for older ones.  Each descriptor has a name of ours.
Source: sd_pid_notify_with_fds(3), sd_listen_fds_with_names(3), systemd.service(5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cache

from flannelpy.linux import systemd

# SD_LISTEN_FDS_START
_FIRST = 3


class DescriptorStore:
    """The descriptors that systemd keeps for this process, by their names."""

    def __init__(self) -> None:
        """Take what systemd has passed to this process; only the first store of a process gets that."""
        self._kept = _received()

    @property
    def is_available(self) -> bool:
        """Whether systemd keeps descriptors for us."""
        return _is_count(os.environ.get("FDSTORE", "")) and "NOTIFY_SOCKET" in os.environ

    def names(self) -> Sequence[str]:
        """Return the names of what is kept."""
        return list(self._kept)

    def open(self, name: str) -> int:
        """Return a new descriptor of what is kept as ``name``; the caller closes it.  Raises KeyError."""
        return os.dup(self._kept[name])

    def keep(self, name: str, fd: int) -> None:
        """Have systemd keep what ``fd`` refers to.

        systemd does not confirm that; it closes what the store has no space for.
        """
        self.forget(name)
        self._kept[name] = os.dup(fd)
        systemd.notify("FDSTORE=1", f"FDNAME={name}", fds=[fd])

    def forget(self, name: str) -> None:
        """Have systemd close what it keeps as ``name``, if it does."""
        fd = self._kept.pop(name, None)
        if fd is not None:
            os.close(fd)
            systemd.notify("FDSTOREREMOVE=1", f"FDNAME={name}")


@cache
def of_process() -> DescriptorStore:
    """Return the store of this process."""
    return DescriptorStore()


def _received() -> dict[str, int]:
    """Return what systemd has passed, closed in child processes, and remove the variables that announce it."""
    pid, count, names = (os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or not _is_count(count):
        return {}
    fds = range(_FIRST, _FIRST + int(count))
    for fd in fds:
        os.set_inheritable(fd, False)
    return dict(zip(names.split(":"), fds, strict=False))


def _is_count(text: str) -> bool:
    return re.fullmatch("[1-9][0-9]{0,5}", text) is not None
