"""The subnet file, which Docker's start-up and the CNI plugin read.

Counterpart: writeSubnetFile in main.go.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from ipaddress import IPv4Network
from pathlib import Path

from flannelpy.errors import HostError

# A subnet file has four short lines.  Of a longer one, the rest is not read.
_MAX_BYTES = 64 << 10


def render(network: IPv4Network, subnet: IPv4Network, mtu: int, ip_masq: bool) -> str:
    """The four lines.  FLANNEL_SUBNET is the bridge's address: the subnet's first one, plus 1."""
    return (
        f"FLANNEL_NETWORK={network}\n"
        f"FLANNEL_SUBNET={subnet.network_address + 1}/{subnet.prefixlen}\n"
        f"FLANNEL_MTU={mtu}\n"
        f"FLANNEL_IPMASQ={'true' if ip_masq else 'false'}\n"
    )


def write(path: Path, text: str) -> None:
    """Replace the file as a whole: a reader sees the old text or the new one, also after a crash.

    A device, FIFO or socket at ``path``, such as /dev/null, stays.  Raises HostError with path and errno.
    """
    if _is_special(path):
        raise HostError(f"cannot write subnet file {path}: it is not a regular file; see -subnet-file")
    draft = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.unlink(missing_ok=True)
        # A new file: in a directory such as /tmp, another user can put a link there that leads elsewhere.
        with draft.open("x", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):  # there may be no draft, or no directory
            draft.unlink()
        name = errno.errorcode.get(error.errno or 0, "error")
        raise HostError(f"cannot write subnet file {path}: {error.strerror} ({name}); see -subnet-file") from error


def remove(path: Path) -> bool:
    """Remove the file, so that Docker does not start with a subnet that is not ours; whether there was one.

    A device, FIFO or socket at ``path`` is not ours.  Raises HostError.
    """
    if _is_special(path):
        return False
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise HostError(f"cannot remove subnet file {path}: {error.strerror}") from error
    return True


def previous_subnet(path: Path) -> IPv4Network | None:
    """The subnet that an earlier run held, if the file says so."""
    return _network(path, "FLANNEL_SUBNET")


def previous_network(path: Path) -> IPv4Network | None:
    """The network that an earlier run was on, if the file says so."""
    return _network(path, "FLANNEL_NETWORK")


def _network(path: Path, name: str) -> IPv4Network | None:
    try:
        lines = _read(path).decode("ascii").splitlines()
        value = next(line.partition("=")[2] for line in lines if line.startswith(f"{name}="))
        return IPv4Network(value, strict=False)
    except (OSError, StopIteration, ValueError):
        return None


def _read(path: Path) -> bytes:
    """The text of a regular file; of anything else, which might have no end, nothing.  Raises OSError."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        return file.read(_MAX_BYTES) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""


def _is_special(path: Path) -> bool:
    """Whether a device, FIFO or socket is there."""
    try:
        mode = path.lstat().st_mode
    except OSError:  # the caller finds out why
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode))
