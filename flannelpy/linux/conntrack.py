"""Whether the kernel tracks connections: it does once a rule needs that, for NAT or a match on the state.

Source: Documentation/networking/nf_conntrack-sysctl.rst.
"""

from __future__ import annotations

from pathlib import Path

_COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")


def is_in_use() -> bool:
    """Return whether at least one connection is tracked in this network namespace."""
    try:
        return int(_COUNT.read_text()) > 0
    except (OSError, ValueError):
        return False
