"""Whether a device takes packets whose source is an address of this host.

Source: accept_local in Documentation/networking/ip-sysctl.rst.
"""

from __future__ import annotations

from pathlib import Path

from flannelpy.errors import HostError


def is_enabled(device: str) -> bool:
    """Also true for a device that does not exist.  Raises HostError."""
    path = _path(device)
    try:
        return path.read_text().strip() != "0"
    except FileNotFoundError:
        return True
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error


def enable(device: str) -> None:
    """Raises HostError."""
    path = _path(device)
    try:
        path.write_text("1")
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from error


def _path(device: str) -> Path:
    return Path(f"/proc/sys/net/ipv4/conf/{device}/accept_local")
