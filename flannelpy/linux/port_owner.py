"""Names the owner of a UDP port in this network namespace.

Source: proc(5), /proc/net/udp and /proc/PID/fd.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from flannelpy.foreign import shown

_TABLES = ("udp", "udp6")
# Fields of a line.
_LOCAL, _UID, _INODE = 1, 7, 9


class _Socket(NamedTuple):
    inode: str
    uid: str


def describe(port: int, proc: Path = Path("/proc")) -> str:
    """Return the programs that have sockets with that port, in words; empty if there is no such socket.

    It finds only programs whose open files flannelpy may list.  It reads the open files of all processes, which takes a
    while, so call it in a thread.
    """
    sockets = [one for table in _TABLES for one in _sockets(proc / "net" / table, port)]
    if not sockets:
        return ""
    programs = _programs({one.inode for one in sockets}, proc)
    users = sorted({one.uid for one in sockets})
    return ", ".join(programs) or (
        f"a socket of user {' and '.join(users)}, of the kernel itself or of a process that flannelpy may not look at"
    )


def _sockets(table: Path, port: int) -> Iterable[_Socket]:
    with suppress(OSError):
        for line in table.read_text().splitlines()[1:]:
            fields = line.split()
            if int(fields[_LOCAL].rpartition(":")[2], 16) == port:
                yield _Socket(fields[_INODE], fields[_UID])


def _programs(inodes: set[str], proc: Path) -> list[str]:
    """Return the processes that have one of these sockets open."""
    links = {Path(f"socket:[{inode}]") for inode in inodes}
    found = []
    for process in sorted(proc.glob("[0-9]*"), key=lambda path: int(path.name)):
        with suppress(OSError):  # it has ended, or flannelpy may not list its files
            if any(one.readlink() in links for one in (process / "fd").iterdir()):
                found.append(f"process {process.name} ({shown((process / 'comm').read_text().strip())})")
    return found
