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
from typing import NamedTuple

from flannelpy.errors import HostError

# A subnet file has four short lines; flannelpy ignores the rest of a longer file.
_MAX_BYTES = 64 << 10


def render(network: IPv4Network, subnet: IPv4Network, mtu: int, ip_masq: bool) -> str:
    """Return the four lines of the file.  FLANNEL_SUBNET is the bridge's address, the first host of the subnet."""
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
        # "x": in a directory such as /tmp, another user could place a link there that points elsewhere.
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
    """Remove the file, so that Docker does not start with a lost subnet; return whether there was a file.

    A device, FIFO or socket at ``path`` stays.  Raises HostError.
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


class SubnetFile(NamedTuple):
    """What a subnet file promises to Docker and CNI; ``mtu`` is 0 without a number."""

    network: IPv4Network
    subnet: IPv4Network
    mtu: int
    ip_masq: bool


def read(path: Path) -> SubnetFile | None:
    """Read the file; None if there is none with a network and a subnet."""
    network, subnet = previous_network(path), previous_subnet(path)
    if not network or not subnet:
        return None
    mtu = _value(path, "FLANNEL_MTU")
    return SubnetFile(network, subnet, int(mtu) if mtu.isdecimal() else 0, _value(path, "FLANNEL_IPMASQ") == "true")


def previous_subnet(path: Path) -> IPv4Network | None:
    """Read the subnet of an earlier run; None if the file has none."""
    return _network(path, "FLANNEL_SUBNET")


def previous_network(path: Path) -> IPv4Network | None:
    """Read the network of an earlier run; None if the file has none."""
    return _network(path, "FLANNEL_NETWORK")


def _network(path: Path, name: str) -> IPv4Network | None:
    try:
        return IPv4Network(_value(path, name), strict=False)
    except ValueError:
        return None


def _value(path: Path, name: str) -> str:
    """Return the first value of a variable; empty without one."""
    try:
        lines = _read(path).decode("ascii").splitlines()
    except (OSError, ValueError):
        return ""
    return next((line.partition("=")[2] for line in lines if line.startswith(f"{name}=")), "")


def _read(path: Path) -> bytes:
    """Read a regular file.  Anything else, which might be endless, reads as empty.  Raises OSError."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        return file.read(_MAX_BYTES) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""


def _is_special(path: Path) -> bool:
    """Return whether ``path`` is a device, FIFO or socket."""
    try:
        mode = path.lstat().st_mode
    except OSError:  # the caller reports the cause
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode))
