"""The marks by which flannelpy recognises its own state in the kernel.  Pure.

flannelpy changes or removes only what carries such a mark, and what lies on a device of its own.  How a route, a rule
or a device looks proves nothing: operators and other programs use the same destinations, gateways and device names.
Counterpart: none; flanneld recognises its state by how it looks.
"""

from __future__ import annotations

from pathlib import Path

#: The protocol (``proto``) of every route and rule that flannelpy adds.  ``rtnetlink.h`` leaves the number free.
ROUTE_PROTOCOL = 85

#: The first part of the name of every iptables chain that flannelpy adds.
CHAIN_PREFIX = "FLANNEL"

# Source: include/uapi/linux/if.h, IFALIASZ; the terminating zero counts.
_MAX_ALIAS_BYTES = 255


def device_alias(subnet_file: Path) -> str:
    """The alias (IFLA_IFALIAS) of a device: it names the subnet file of the daemon that owns the device.

    The kernel limits an alias to 255 bytes, so only the end of a very long path is kept.
    """
    prefix = "flannelpy "
    path = str(subnet_file.resolve()).encode(errors="replace")
    return prefix + path[-(_MAX_ALIAS_BYTES - len(prefix)) :].decode(errors="ignore")
