"""The instance lock: one daemon for each subnet file, and a record of what the last run used.

The lock is an flock on a file beside the subnet file, so the kernel releases it when its process ends, even by a crash.
Only root and the owner of the directory can open the file: with a wider mode, any local user could hold the lock.
flannelpy never removes the file: a process that still has a removed file open would hold a lock that excludes no other.

Source: flock(2), open(2), sock_diag(7).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from flannelpy.errors import AlreadyRunning, HostError
from flannelpy.options import lock_path
from flannelpy.rtnetlink.messages import Message, attributes, decode, encode

_MAX_RECORD_BYTES = 64 << 10
_MODE = 0o600
_LOCKS = Path("/proc/locks")

# Source: linux/sock_diag.h, linux/unix_diag.h.
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _DUMP_REQUEST = 4, 20, 0x301
_ALL_STATES = 0xFFFFFFFF
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_UDIAG_SHOW_NAME, _UDIAG_SHOW_UID = 0x01, 0x40
_UNIX_DIAG_NAME, _UNIX_DIAG_UID = 0, 7
# struct unix_diag_req { __u8 family, protocol; __u16 pad; __u32 states, inode, show, cookie[2]; }
_UNIX_DIAG_REQ = struct.Struct("=BBHIIIII")
# struct unix_diag_msg { __u8 family, type, state, pad; __u32 inode, cookie[2]; }
_UNIX_DIAG_MSG_BYTES = 16


@dataclass(frozen=True, slots=True)
class Run:
    """What a run used: its networks (the current one first), its backend type, its device or an empty string."""

    networks: tuple[IPv4Network, ...]
    backend: str
    device: str


class InstanceLock:
    """The lock of the only process on this host that may change what belongs to ``subnet_file``."""

    def __init__(self, subnet_file: Path) -> None:
        """Take the lock.  Raises AlreadyRunning if another process holds it, HostError if the file cannot be used."""
        self._path = lock_path(subnet_file)
        self._fd = _open(self._path, subnet_file)
        try:
            _check_file(self._path, self._fd)
            _lock(self._path, self._fd, subnet_file)
            if _is_held_by_old_version(subnet_file):
                raise _already_running(subnet_file)
        except BaseException:
            os.close(self._fd)
            raise

    def read(self) -> Run | None:
        """Return the record of the last run; None without a valid record."""
        return _record(self._fd)

    def write(self, run: Run | None) -> None:
        """Replace the record; None removes it.  A crash leaves the old record or the new one.  Raises HostError."""
        record = {"networks": list(map(str, run.networks)), "backend": run.backend, "device": run.device} if run else {}
        line = json.dumps(record).encode() + b"\n"
        try:
            os.pwrite(self._fd, line, 0)  # ``read`` takes the first line only, so a longer old record does no harm
            os.ftruncate(self._fd, len(line))
            os.fsync(self._fd)
        except OSError as error:
            raise HostError(f"cannot write the lock file {self._path}: {error.strerror}") from error

    def close(self) -> None:
        """Release the lock; from then on there is no record to read."""
        os.close(self._fd)
        self._fd = -1


@dataclass(frozen=True, slots=True)
class Holder:
    """What a lock file shows without taking the lock: whether a process holds it, and the record of the last run."""

    is_running: bool
    run: Run | None


def look(subnet_file: Path) -> Holder:
    """Return what the lock file of a subnet file shows; without one, that none runs.  Raises HostError.

    Source: proc(5), /proc/locks.
    """
    path = lock_path(subnet_file)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return Holder(is_running=False, run=None)
    except OSError as error:
        raise HostError(f"cannot read the lock file {path}: {_cause(error)}; only its owner and root may") from error
    try:
        return Holder(_holder(os.fstat(fd)) is not None, _record(fd))
    finally:
        os.close(fd)


def holder(lock_file: Path) -> int | None:
    """Return the PID of the process that holds a lock file, which only its owner may open; None without one."""
    try:
        return _holder(lock_file.lstat())
    except OSError:
        return None


def _holder(status: os.stat_result) -> int | None:
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    locks = [line.split() for line in _LOCKS.read_text().splitlines()]
    return next((int(words[4]) for words in locks if words[1] == "FLOCK" and words[5] == place), None)


def _record(fd: int) -> Run | None:
    try:
        record = json.loads(os.pread(fd, _MAX_RECORD_BYTES, 0).split(b"\n")[0])
        networks = tuple(IPv4Network(network) for network in record["networks"] if isinstance(network, str))
        return Run(networks, _text(record["backend"]), _text(record["device"])) if networks else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value


def _open(path: Path, subnet_file: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(f"cannot write subnet file {subnet_file}: {_cause(error)}; see -subnet-file") from error
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, _MODE)
    except OSError as error:
        cause = "it is a symbolic link: remove it" if error.errno == errno.ELOOP else _cause(error)
        raise HostError(f"cannot open the lock file {path}: {cause}; see -subnet-file") from error


def _cause(error: OSError) -> str:
    return f"{error.strerror} ({errno.errorcode.get(error.errno or 0, 'error')})"


def _check_file(path: Path, fd: int) -> None:
    """Reject a file that another user could have created.  The umask may have cleared bits, so set the mode."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise HostError(f"the lock file {path} is not a regular file with one name; remove it")
    if status.st_uid not in (os.geteuid(), path.parent.stat().st_uid):
        raise HostError(f"the lock file {path} belongs to the user with ID {status.st_uid}; remove it")
    if stat.S_IMODE(status.st_mode) != _MODE:
        with suppress(PermissionError):  # root without CAP_FOWNER, and a file of the directory's owner
            os.fchmod(fd, _MODE)


def _lock(path: Path, fd: int, subnet_file: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _already_running(subnet_file) from error
    except OSError as error:
        raise HostError(f"cannot lock {path}: {error.strerror}") from error


def _already_running(subnet_file: Path) -> AlreadyRunning:
    return AlreadyRunning(f"a flannelpy runs here with the subnet file {subnet_file}: stop it first")


def _is_held_by_old_version(subnet_file: Path) -> bool:
    """Return whether a version without the lock file runs: it bound an abstract socket named after the subnet file.

    Any local user can bind that name, so only a socket of root or of our own user counts.
    """
    name = b"flannelpy " + os.fsencode(os.path.realpath(subnet_file))[-90:]
    if b" @" + name + b"\n" not in Path("/proc/net/unix").read_bytes():
        return False
    try:
        return bool(_owners(b"\0" + name) & {0, os.geteuid()})
    except OSError:  # a kernel without sock_diag does not report the owner of a socket
        return True


def _owners(name: bytes) -> set[int]:
    """Return the user IDs of the Unix sockets with that name; kernels before 5.3 report none, which counts as 0.

    Raises OSError.
    """
    body = _UNIX_DIAG_REQ.pack(socket.AF_UNIX, 0, 0, _ALL_STATES, 0, _UDIAG_SHOW_NAME | _UDIAG_SHOW_UID, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as sock:
        sock.send(encode(Message(_SOCK_DIAG_BY_FAMILY, body, _DUMP_REQUEST), 1))
        found = [has for has in _answers(sock) if has.get(_UNIX_DIAG_NAME) == name]
    return {int.from_bytes(has.get(_UNIX_DIAG_UID, bytes(4)), sys.byteorder) for has in found}


def _answers(sock: socket.socket) -> list[dict[int, bytes]]:
    """Return the attributes of all messages of a listing.  Raises OSError."""
    found: list[dict[int, bytes]] = []
    while True:
        for _, message in decode(sock.recv(1 << 16)):
            if message.message_type == _NLMSG_ERROR:
                raise OSError("the kernel cannot list Unix sockets")
            if message.message_type == _NLMSG_DONE:
                return found
            found.append(attributes(message.body, _UNIX_DIAG_MSG_BYTES))
