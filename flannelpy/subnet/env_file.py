"""The subnet file, which Docker's start-up and the CNI plugin read.

Counterpart: writeSubnetFile in main.go.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from ipaddress import IPv4Network
from pathlib import Path

from flannelpy.errors import HostError


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

    Raises HostError with path and errno.
    """
    draft = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="ascii") as file:
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
    """Take the file away, so that Docker does not start with a subnet that is not ours; whether there was one."""
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
        lines = path.read_text(encoding="ascii").splitlines()
        value = next(line.partition("=")[2] for line in lines if line.startswith(f"{name}="))
        return IPv4Network(value, strict=False)
    except (OSError, StopIteration, ValueError):
        return None
