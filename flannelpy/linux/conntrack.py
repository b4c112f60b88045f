"""Whether the kernel tracks connections: it does once a rule needs that, for NAT or a match on the state.

Source: Documentation/networking/nf_conntrack-sysctl.rst.
"""

from __future__ import annotations

from pathlib import Path

_SETTINGS = Path("/proc/sys/net/netfilter")


def is_in_use() -> bool:
    """Return whether at least one connection is tracked in this network namespace."""
    used, _ = usage()
    return used > 0


def usage() -> tuple[int, int]:
    """Return the number of tracked connections, and how many there may be; both are 0 if none are tracked."""
    return _setting("nf_conntrack_count"), _setting("nf_conntrack_max")


def _setting(name: str) -> int:
    try:
        return int((_SETTINGS / name).read_text())
    except (OSError, ValueError):
        return 0
