"""The marks by which flannelpy recognises its own state in the kernel.  Pure.

flannelpy changes or removes only entries with such a mark, and entries on its own devices.  The fields of a route, a
rule or a device prove nothing: operators and other programs use the same destinations, gateways and device names.
Counterpart: none; flanneld recognises its state by these fields.
"""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

#: The protocol (``proto``) of every route and rule that flannelpy adds.  ``rtnetlink.h`` leaves the number free.
ROUTE_PROTOCOL = 85

#: The first part of the name of every iptables chain that flannelpy adds.
CHAIN_PREFIX = "FLANNEL"
#: The names of the chains that belong to one network, as iptables-save prints them.
OWN_CHAIN = re.compile(rb"%b-[A-Z]-[0-9.]+/[0-9]+" % CHAIN_PREFIX.encode())

#: The connection tracking zone of our own datagrams, separate from the packets of containers.
CONNTRACK_ZONE = 8285

# Source: include/uapi/linux/if.h, IFALIASZ; the terminating zero counts.
_MAX_ALIAS_BYTES = 255
_DEVICE_PREFIX = "flannelpy "


def is_device_alias(alias: str) -> bool:
    """Return whether the alias marks a device of any flannelpy."""
    return alias.startswith(_DEVICE_PREFIX)


def device_alias(resolved: Path) -> str:
    """Return the alias (IFLA_IFALIAS) of a device of the daemon that owns the subnet file ``resolved``.

    ``resolved`` is an absolute path whose directory has no symbolic link in it, so that a file has one alias.
    The kernel limits an alias to 255 bytes.  For a longer path, the alias has a digest of the path and its end.
    """
    path = str(resolved).encode(errors="surrogateescape")
    available = _MAX_ALIAS_BYTES - len(_DEVICE_PREFIX)
    if len(path) > available or not path.decode(errors="surrogateescape").isprintable():
        digest = sha256(path).hexdigest()[:16].encode()
        path = digest + b" ..." + path[len(digest) + len(b" ...") - available :]
    return _DEVICE_PREFIX + "".join(each if each.isprintable() else "?" for each in path.decode(errors="ignore"))
