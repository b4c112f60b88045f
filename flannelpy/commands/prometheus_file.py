"""status -prometheus: writes the metrics of the running daemon into a file for node_exporter's textfile collector."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from flannelpy.control import client
from flannelpy.diagnosis import is_well
from flannelpy.errors import HostError
from flannelpy.report import DaemonReport
from flannelpy.serving import metrics

# node_exporter runs as another user.
_MODE = 0o644


def run(control_socket: Path, file: Path) -> int:
    """Write the metrics to ``file``; return 0 if the daemon is well, 1 otherwise.

    Without a daemon, write that none answers, and raise DaemonUnavailable.  Raises HostError if the file cannot be
    written, or is anything but a regular file: then nothing is changed.
    """
    _refuse_other_kinds(file)
    report: DaemonReport | None = None
    try:
        report = client.fetch(control_socket, with_peers=False).report
    finally:
        write(file, metrics.exposition(report))
    return 0 if is_well(report) else 1


def write(file: Path, text: str) -> None:
    """Replace ``file`` as a whole.  Raises HostError with the path and the cause."""
    _refuse_other_kinds(file)
    draft = file.with_name(f".{file.name}.{os.getpid()}")  # node_exporter reads only names that end in .prom
    try:
        # "x": another user could have placed a link there.
        with draft.open("x", encoding="utf-8") as output:
            output.write(text)
        draft.chmod(_MODE)
        draft.replace(file)
    except OSError as error:
        with suppress(OSError):  # there may be no draft, or no directory
            draft.unlink()
        raise HostError(f"cannot write {file}: {error.strerror}; see -prometheus") from error


def _refuse_other_kinds(file: Path) -> None:
    """Raise HostError for a device such as /dev/null, a link or a directory: the file would be put in its place."""
    try:
        mode = file.lstat().st_mode
    except OSError:  # there is none, or the attempt to write it shows the cause
        return
    if not stat.S_ISREG(mode):
        raise HostError(f"cannot write {file}: it exists and is not a regular file; see -prometheus")
