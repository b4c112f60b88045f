"""Whether the host forwards packets.  Source: Documentation/networking/ip-sysctl.rst of the kernel."""

from pathlib import Path

_FILE = Path("/proc/sys/net/ipv4/ip_forward")


def is_enabled() -> bool:
    """For all interfaces; also if it cannot be read."""
    try:
        return _FILE.read_text().strip() != "0"
    except OSError:
        return True
