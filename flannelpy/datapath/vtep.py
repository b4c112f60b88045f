"""The MAC of a host's VXLAN device (its VTEP), which the lease contains for the peers.  Pure.

Counterpart: vxlanLeaseAttrs and hardwareAddr in backend/vxlan/vxlan.go; VNI is a key of later versions.
"""

from __future__ import annotations

import hashlib
import re

from flannelpy.registry.base import Schema
from flannelpy.subnet import go_json
from flannelpy.subnet.lease import HostIdentity, LeaseAttrs

BACKEND_TYPE = "vxlan"

_MAC = re.compile("[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
_KEY = "VtepMAC"
# The two low bits of the first octet.  Source: IEEE 802, "I/G" and "U/L".
_GROUP, _LOCAL = 0x01, 0x02
# The original writes the lower 16 bits of the VNI, rejects a lease with a larger number, and uses neither.
_VNI_VALUES = 1 << 16


def attrs(host_identity: HostIdentity, vni: int, schema: Schema, found: LeaseAttrs | None) -> LeaseAttrs:
    """Return the attributes of our lease: with the MAC in ``found``, else with one derived from our identity."""
    mac = (read(found) if found else None) or _derive(host_identity, vni)
    data: dict[str, object] = {"VNI": vni % _VNI_VALUES} if schema is Schema.V3 else {}
    return LeaseAttrs(host_identity.public_ip, BACKEND_TYPE, data | {_KEY: mac})


def read(attrs: LeaseAttrs) -> str | None:
    """Return the MAC in a lease; None without one that can belong to a single host."""
    data = attrs.backend_data if attrs.backend_type == BACKEND_TYPE else None
    value = go_json.get(data, _KEY) if isinstance(data, dict) else None
    mac = value.lower().replace("-", ":") if isinstance(value, str) else ""
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & _GROUP or not mac.strip("0:"):
        return None
    return mac


def _derive(host_identity: HostIdentity, vni: int) -> str:
    """Return the same MAC for the same arguments: no two hosts share a public IP, no two networks of a host a VNI."""
    digest = bytearray(
        hashlib.sha256(f"flannelpy vtep {host_identity.host_id} {host_identity.public_ip} {vni}".encode()).digest()[:6]
    )
    digest[0] = digest[0] & ~_GROUP | _LOCAL
    return digest.hex(":")
