"""Whether the kernel checks by which interface the sender of a packet is reached.

The stricter of the settings of the host and of the device counts.
Source: rp_filter in Documentation/networking/ip-sysctl.rst.
"""

from __future__ import annotations

from pathlib import Path

_CONF = Path("/proc/sys/net/ipv4/conf")


def is_enabled(device: str) -> bool:
    """Return whether the kernel may reject a packet that arrives by the device; false if that cannot be read."""
    return any(_setting(each) != "0" for each in ("all", device))


def _setting(device: str) -> str:
    try:
        return (_CONF / device / "rp_filter").read_text().strip()
    except OSError:
        return "0"
