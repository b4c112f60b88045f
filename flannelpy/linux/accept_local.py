"""Whether a device accepts packets whose source is an address of this host.

Source: accept_local in Documentation/networking/ip-sysctl.rst.
"""

from __future__ import annotations

from pathlib import Path

from flannelpy.errors import HostError

_CONF = Path("/proc/sys/net/ipv4/conf")
# The setting that applies to every device.
_ALL = "all"


def is_enabled(device: str) -> bool:
    """Return whether a device accepts such packets; true for a device that does not exist.  Raises HostError."""
    return _is_set(_ALL) or not _path(device).exists() or _is_set(device)


def enable(device: str) -> None:
    """Have a device accept packets whose source is an address of this host.  Raises HostError."""
    path = _path(device)
    try:
        path.write_text("1")
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from error


def _is_set(device: str) -> bool:
    path = _path(device)
    try:
        return path.read_text().strip() != "0"
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error


def _path(device: str) -> Path:
    return _CONF / device / "accept_local"
