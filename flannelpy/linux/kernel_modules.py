"""Tells which parts of netfilter the kernel may have loaded.

Source: proc(5), /proc/modules.
"""

from __future__ import annotations

from pathlib import Path

_MODULES = Path("/proc/modules")
# One of them is loaded wherever netfilter is used, unless they are built into the kernel.
_USUAL = {"x_tables", "nf_tables", "nf_conntrack"}


def may_be_loaded(name: str) -> bool:
    """Return whether a module is loaded, or may be built into the kernel."""
    try:
        loaded = {line.split(" ", 1)[0] for line in _MODULES.read_text().splitlines()}
    except OSError:
        return True
    return name in loaded or not loaded & _USUAL
