"""The maps of the programs: their kinds, and the layouts of keys and values.  Pure.

Addresses and masks are in network order, all other numbers in the host's.  ``peers`` and ``recent`` have a value for
each processor.

============  ================================  ======================================================
map           key                               value
============  ================================  ======================================================
routes        prefix length, address            network, mask, public IP; 0: the loop serves the peer
senders       public IP                         network and mask of the peer's first subnet
subnets       prefix length, public IP, address network and mask, for each subnet of each sender
peers         network, mask                     packets and bytes out, packets and bytes in, last heard
left_…        0                                 packets left to the loop, for each check
settings      0                                 deadline, index of the external interface
devices       TUN = 0, GRO = 1, CUT = 2         index of the interface; gone when the interface is
recent        0                                 what the incoming program knows of the last packet
============  ================================  ======================================================

Source: struct bpf_lpm_trie_key in include/uapi/linux/bpf.h of the kernel.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network

from flannelpy.bpf.map_kind import MapKind, MapType
from flannelpy.datapath.fast_path.checks import Check, Incoming, Outgoing
from flannelpy.datapath.routes import Totals

# A subnet has at least 4 addresses, and a network of so many subnets is larger than etcd serves.
_MAX_PEERS = 1 << 16
_NANOSECONDS = 10**9

# Of struct members in the values, for the programs.
NETWORK, MASK, PUBLIC_IP = 0, 4, 8
PACKETS_OUT, BYTES_OUT, PACKETS_IN, BYTES_IN, HEARD = 0, 8, 16, 24, 32
DEADLINE, EXTERNAL = 0, 8
#: The TUN, and the ends of the GRO pair that get single packets and super-packets.
TUN, GRO, CUT = 0, 1, 2
# Of ``recent``, behind NETWORK and MASK: the sender, and the indices of ``devices`` or 0.
RECENT_SENDER, RECENT_TUN, RECENT_GRO, RECENT_CUT = 8, 12, 16, 20
# Nanoseconds since boot and jiffies at the look-up.
RECENT_TIME, RECENT_JIFFIES = 24, 32
# The queue of CUT, a number that counts up, and how many packets went there; with 0, single packets go to GRO.
RECENT_QUEUE, RECENT_QUEUED = 40, 44
#: The bytes of a counter.
COUNTER = 8

_ROUTE_KEY = struct.Struct("=I4s")
_SENDER_KEY = struct.Struct("=I4s4s")
_SETTINGS = struct.Struct("=QI4x")
_INDEX = struct.Struct("=I")
_PEER = struct.Struct("=5Q")
#: The peer is reached by the loop.
LOOP = IPv4Address(0)
#: No time is later.
_NEVER = (1 << 64) - 1


MAPS = {
    "routes": MapKind(MapType.LPM_TRIE, _ROUTE_KEY.size, 12, _MAX_PEERS),
    "senders": MapKind(MapType.HASH, 4, 8, _MAX_PEERS),
    "subnets": MapKind(MapType.LPM_TRIE, _SENDER_KEY.size, 8, _MAX_PEERS),
    "peers": MapKind(MapType.PERCPU_HASH, 8, _PEER.size, _MAX_PEERS),
    "left_outgoing": MapKind(MapType.ARRAY, 4, COUNTER * len(Outgoing), 1),
    "left_incoming": MapKind(MapType.ARRAY, 4, COUNTER * len(Incoming), 1),
    "settings": MapKind(MapType.ARRAY, 4, _SETTINGS.size, 1),
    "devices": MapKind(MapType.DEVMAP, 4, 4, 3),
    "recent": MapKind(MapType.PERCPU_ARRAY, 4, 48, 1),
}


def subnet_key(subnet: IPv4Network) -> bytes:
    """Return network and mask: a key of ``peers``, and a value of ``senders`` and ``subnets``."""
    return subnet.network_address.packed + subnet.netmask.packed


def route_key(subnet: IPv4Network) -> bytes:
    """Return a key of ``routes``."""
    return _ROUTE_KEY.pack(subnet.prefixlen, subnet.network_address.packed)


def sender_key(public_ip: IPv4Address, subnet: IPv4Network) -> bytes:
    """Return a key of ``subnets``, whose prefix begins with the whole public IP."""
    return _SENDER_KEY.pack(32 + subnet.prefixlen, public_ip.packed, subnet.network_address.packed)


def route_value(key: bytes, public_ip: IPv4Address) -> bytes:
    """Return a value of ``routes``; ``key``: that of ``peers``, ``public_ip``: LOOP if the loop serves the peer."""
    return key + public_ip.packed


def index_key(number: int) -> bytes:
    """Return a key of an array, and a value of ``devices``."""
    return _INDEX.pack(number)


def settings(deadline: float, external: int) -> bytes:
    """Return the value of ``settings``; ``deadline``: seconds since boot, or inf; ``external``: an interface."""
    nanoseconds = max(0.0, deadline) * _NANOSECONDS
    return _SETTINGS.pack(int(nanoseconds) if nanoseconds < _NEVER else _NEVER, external)


def totals(values: bytes) -> Totals:
    """Return the sum of the values that all processors have of a peer; ``heard_at``: seconds since boot, or 0."""
    total = Totals()
    for packets_out, bytes_out, packets_in, bytes_in, heard in _PEER.iter_unpack(values):
        total.packets_out += packets_out
        total.bytes_out += bytes_out
        total.packets_in += packets_in
        total.bytes_in += bytes_in
        total.heard_at = max(total.heard_at, heard / _NANOSECONDS)
    return total


def left(values: bytes, checks: type[Check]) -> dict[Check, int]:
    """Return the counter of each check, without those that are 0."""
    numbers = struct.unpack(f"={len(checks)}Q", values)
    return {check: numbers[check.index] for check in checks if numbers[check.index]}
