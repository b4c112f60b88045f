"""Whether the kernel forwards packets.

The setting of the device by which a packet arrives decides.  A write to that of the host changes all devices' settings.
Source: Documentation/networking/ip-sysctl.rst, IN_DEV_FORWARD in include/linux/inetdevice.h of the kernel.
"""

from pathlib import Path

_CONF = Path("/proc/sys/net/ipv4/conf")
#: The setting of the host, net.ipv4.ip_forward.
HOST = "all"


def is_enabled(device: str) -> bool:
    """Return whether packets that arrive by the device are forwarded; true if the setting cannot be read.

    ``HOST`` stands for the setting of the host.
    """
    try:
        return (_CONF / device / "forwarding").read_text().strip() != "0"
    except OSError:
        return True
