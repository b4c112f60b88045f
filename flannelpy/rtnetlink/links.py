"""Network interfaces and IPv4 addresses, as listed by the kernel.  Pure.

Source: rtnetlink(7), include/uapi/linux/if_link.h, if_addr.h and if.h of the kernel.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from flannelpy.rtnetlink.messages import (
    NLA_F_NESTED,
    RTM_GETADDR,
    RTM_GETLINK,
    Message,
    attribute,
    attributes,
    repeated,
)

_AF_INET = 2
# struct ifinfomsg { unsigned char ifi_family; …pad; unsigned short ifi_type; int ifi_index; unsigned ifi_flags,
#                    ifi_change; }
_IFINFOMSG = struct.Struct("=BxHiII")
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_CARRIER = 1, 3, 4, 18, 20, 33
_IFLA_MASTER, _IFLA_CARRIER_CHANGES, _IFLA_LINK_NETNSID, _IFLA_PROP_LIST, _IFLA_ALT_IFNAME = 10, 35, 37, 52, 53
_IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS = 29, 8
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_IFLA_VXLAN_ID, _IFLA_VXLAN_LINK, _IFLA_VXLAN_LOCAL, _IFLA_VXLAN_LEARNING = 1, 3, 4, 7
_IFLA_VXLAN_PORT, _IFLA_VXLAN_GBP = 15, 23
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
# struct ifaddrmsg { __u8 ifa_family, ifa_prefixlen, ifa_flags, ifa_scope; __u32 ifa_index; }
_IFADDRMSG = struct.Struct("=BBBBI")
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_DADFAILED, _IFA_F_DEPRECATED, _IFA_F_TENTATIVE = 0x08, 0x20, 0x40
# Source: include/uapi/linux/rtnetlink.h.
_SCOPE_LINK, _SCOPE_HOST = 253, 254
_TAKING_FRAMES = ("bridge", "bond", "team", "openvswitch")
_NUMBER = struct.Struct("=I")
# struct rtnl_link_stats64 { __u64 rx_packets, tx_packets, rx_bytes, tx_bytes, rx_errors, tx_errors, rx_dropped,
#                            tx_dropped; … }
_IFLA_STATS64, _STATS64 = 23, struct.Struct("=56xQ")


@dataclass(frozen=True, slots=True)
class Vxlan:
    """The settings of a VXLAN device that cannot be changed later; ``lower_index`` is the interface below."""

    vni: int
    port: int
    local: IPv4Address
    lower_index: int
    learning: bool = False
    gbp: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface; ``kind`` is ``tun``, ``vxlan``, … or empty for hardware.

    A TUN device has a carrier while a process has it open.  ``master``: the index of the bridge or bond that the
    interface is a port of, of the VRF that it belongs to, or 0.
    ``carrier_changes``: how often it got or lost a carrier.  ``leads_elsewhere``: the other end of a veth pair, or the
    interface below, is in another network namespace.
    """

    index: int
    name: str
    mtu: int
    kind: str = ""
    is_up: bool = True
    has_carrier: bool = True
    mac: str = ""
    vxlan: Vxlan | None = None
    alias: str = ""
    is_loopback: bool = False
    altnames: tuple[str, ...] = ()
    master: int = 0
    carrier_changes: int = field(default=0, compare=False)
    leads_elsewhere: bool = field(default=False, compare=False)

    @property
    def is_exit(self) -> bool:
        """Return whether packets can leave the host by it, as they cannot by a loopback or dummy interface."""
        return not self.is_loopback and self.kind != "dummy"

    @property
    def takes_frames(self) -> bool:
        """Whether it takes the frames of the interfaces below it, its ports, as a VRF does not."""
        return self.kind in _TAKING_FRAMES


@dataclass(frozen=True)
class Address:
    """An IPv4 address on the interface with that index; ``peer`` is the other end of a point-to-point address.

    ``flags`` and ``scope`` are the kernel's numbers; two addresses that differ only in them are equal.
    """

    link_index: int
    address: IPv4Address
    prefix_len: int = 32
    peer: IPv4Address | None = None
    flags: int = field(default=0, compare=False)
    scope: int = field(default=0, compare=False)

    @property
    def flaw(self) -> str:
        """Return why flannelpy does not choose this address by itself, as ``deprecated``; empty for a usable one."""
        if self.address.is_loopback or self.address.is_multicast:
            return "loopback" if self.address.is_loopback else "multicast"
        if self.scope >= _SCOPE_HOST:
            return "of scope host"
        if self.flags & (_IFA_F_TENTATIVE | _IFA_F_DADFAILED):
            return "tentative"
        return "deprecated" if self.flags & _IFA_F_DEPRECATED else ""

    @property
    def is_last_resort(self) -> bool:
        """Return whether it is valid on its link only, as an address that a host assigns itself without DHCP."""
        return self.address.is_link_local or self.scope >= _SCOPE_LINK

    @cached_property
    def interface(self) -> IPv4Interface:
        """Return the address with its prefix length."""
        return IPv4Interface((self.address, self.prefix_len))

    @property
    def destination(self) -> IPv4Network:
        """Return the network to which the kernel adds a route with the address."""
        return IPv4Network((int(self.peer or self.address), self.prefix_len), strict=False)


_CACHED_ADDRESSES = 10_000
_NO_STATISTICS = attribute(_IFLA_EXT_MASK, _NUMBER.pack(_RTEXT_FILTER_SKIP_STATS))

#: The request that lists all interfaces.
ALL_LINKS = Message(RTM_GETLINK, _IFINFOMSG.pack(0, 0, 0, 0, 0) + _NO_STATISTICS)

#: The request that lists all IPv4 addresses.
ALL_ADDRESSES = Message(RTM_GETADDR, _IFADDRMSG.pack(_AF_INET, 0, 0, 0, 0))


def link_named(name: str) -> Message:
    """Return the request for the interface of that name."""
    return Message(RTM_GETLINK, _IFINFOMSG.pack(0, 0, 0, 0, 0) + _NO_STATISTICS + _name(name))


def statistics_of(name: str) -> Message:
    """Return the request for the interface of that name with its counters."""
    return Message(RTM_GETLINK, _IFINFOMSG.pack(0, 0, 0, 0, 0) + _name(name))


def _name(name: str) -> bytes:
    return attribute(_IFLA_IFNAME, name.encode(errors="surrogateescape") + b"\0")


def link(message: Message) -> Link:
    """Return the interface that a message of a listing describes."""
    _, _, index, flags, _ = _IFINFOMSG.unpack_from(message.body)
    has = attributes(message.body, _IFINFOMSG.size)
    info = attributes(has.get(_IFLA_LINKINFO, b""), 0)
    kind = _text(info.get(_IFLA_INFO_KIND, b""))
    return Link(
        index,
        _text(has[_IFLA_IFNAME]),
        _number(has.get(_IFLA_MTU)),
        kind,
        bool(flags & _IFF_UP),
        has.get(_IFLA_CARRIER, b"\0") != b"\0",
        has.get(_IFLA_ADDRESS, b"").hex(":"),
        _vxlan(attributes(info.get(_IFLA_INFO_DATA, b""), 0)) if kind == "vxlan" else None,
        _text(has.get(_IFLA_IFALIAS, b"")),
        bool(flags & _IFF_LOOPBACK),
        tuple(_text(name) for name in repeated(has.get(_IFLA_PROP_LIST | NLA_F_NESTED, b""), _IFLA_ALT_IFNAME)),
        _number(has.get(_IFLA_MASTER)),
        _number(has.get(_IFLA_CARRIER_CHANGES)),
        _IFLA_LINK_NETNSID in has,
    )


def transmit_drops(message: Message) -> int:
    """Return how many packets the interface that a message with counters describes dropped instead of sending them."""
    dropped: int = _STATS64.unpack_from(attributes(message.body, _IFINFOMSG.size)[_IFLA_STATS64])[0]
    return dropped


def address(message: Message) -> Address:
    """Return the address that a message of a listing describes."""
    return _address(message.body)


@lru_cache(_CACHED_ADDRESSES)
def _address(body: bytes) -> Address:
    """Return a cached address: a host may have thousands, which rarely change."""
    _, prefix_len, low_flags, scope, link_index = _IFADDRMSG.unpack_from(body)
    has = attributes(body, _IFADDRMSG.size)
    local = has.get(_IFA_LOCAL) or has[_IFA_ADDRESS]
    peer = has.get(_IFA_ADDRESS, local)
    # The structure has space for the first 8 flags; the attribute, since Linux 3.14, has all 32.
    flags = _number(has[_IFA_FLAGS]) if _IFA_FLAGS in has else low_flags
    other_end = None if peer == local else IPv4Address(peer)
    return Address(link_index, IPv4Address(local), prefix_len, other_end, flags, scope)


def _vxlan(has: dict[int, bytes]) -> Vxlan:
    return Vxlan(
        _number(has.get(_IFLA_VXLAN_ID)),
        int.from_bytes(has.get(_IFLA_VXLAN_PORT, b""), "big"),
        IPv4Address(has.get(_IFLA_VXLAN_LOCAL, bytes(4))),
        _number(has.get(_IFLA_VXLAN_LINK)),
        has.get(_IFLA_VXLAN_LEARNING, b"\0") != b"\0",
        _IFLA_VXLAN_GBP in has,
    )


def _number(value: bytes | None) -> int:
    number: int = _NUMBER.unpack(value or bytes(4))[0]
    return number


def _text(value: bytes) -> str:
    """Return a name that another program chose, and that may not be UTF-8."""
    return value.split(b"\0")[0].decode(errors="surrogateescape")
