"""The MAC of a host's VXLAN device, its VTEP, by which others reach it; it is kept in the lease.  Pure.

Counterpart: vxlanLeaseAttrs and hardwareAddr in backend/vxlan/vxlan.go.
"""

from __future__ import annotations

import hashlib
import re

from flannelpy.subnet import go_json
from flannelpy.subnet.lease import HostIdentity, LeaseAttrs

BACKEND_TYPE = "vxlan"

_MAC = re.compile("[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
_KEY = "VtepMAC"
# The two low bits of the first octet.  Source: IEEE 802, "I/G" and "U/L".
_GROUP, _LOCAL = 0x01, 0x02


def attrs(host_identity: HostIdentity, vni: int, found: LeaseAttrs | None) -> LeaseAttrs:
    """The value of our lease: with the MAC that others know already, else one made of who we are, always the same."""
    mac = (read(found) if found else None) or _derive(host_identity, vni)
    return LeaseAttrs(host_identity.public_ip, BACKEND_TYPE, {_KEY: mac})


def read(attrs: LeaseAttrs) -> str | None:
    """The MAC in a lease; None when there is none by which a single host could be reached."""
    data = attrs.backend_data if attrs.backend_type == BACKEND_TYPE else None
    value = go_json.get(data, _KEY) if isinstance(data, dict) else None
    mac = value.lower().replace("-", ":") if isinstance(value, str) else ""
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & _GROUP or not mac.strip("0:"):
        return None
    return mac


def _derive(host_identity: HostIdentity, vni: int) -> str:
    """No two hosts have one public IP, and no two networks of a host one VNI."""
    digest = bytearray(
        hashlib.sha256(f"flannelpy vtep {host_identity.host_id} {host_identity.public_ip} {vni}".encode()).digest()[:6]
    )
    digest[0] = digest[0] & ~_GROUP | _LOCAL
    return digest.hex(":")
