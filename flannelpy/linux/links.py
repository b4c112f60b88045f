"""Network interfaces and IPv4 addresses as the kernel lists them.  Pure.

Source: rtnetlink(7), include/uapi/linux/if_link.h, if_addr.h and if.h of the kernel.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from functools import cached_property, lru_cache
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from flannelpy.linux.rtnetlink import RTM_GETADDR, RTM_GETLINK, Message, attribute, attributes

_AF_INET = 2
# struct ifinfomsg { unsigned char ifi_family; …pad; unsigned short ifi_type; int ifi_index; unsigned ifi_flags,
#                    ifi_change; }
_IFINFOMSG = struct.Struct("=BxHiII")
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_CARRIER = 1, 3, 4, 18, 20, 33
_IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS = 29, 8
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_IFLA_VXLAN_ID, _IFLA_VXLAN_LINK, _IFLA_VXLAN_LOCAL, _IFLA_VXLAN_LEARNING = 1, 3, 4, 7
_IFLA_VXLAN_PORT, _IFLA_VXLAN_GBP = 15, 23
_IFF_UP = 0x1
# struct ifaddrmsg { __u8 ifa_family, ifa_prefixlen, ifa_flags, ifa_scope; __u32 ifa_index; }
_IFADDRMSG = struct.Struct("=BBBBI")
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_NUMBER = struct.Struct("=I")


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

    ``in_use``: it has a carrier; a TUN device has one while a process has it open.
    """

    index: int
    name: str
    mtu: int
    kind: str = ""
    is_up: bool = True
    in_use: bool = True
    mac: str = ""
    vxlan: Vxlan | None = None
    alias: str = ""


@dataclass(frozen=True)
class Address:
    """An IPv4 address on the interface with that index; ``peer`` is the other end of a point-to-point address."""

    link_index: int
    address: IPv4Address
    prefix_len: int = 32
    peer: IPv4Address | None = None

    @cached_property
    def interface(self) -> IPv4Interface:
        """With its prefix length."""
        return IPv4Interface((self.address, self.prefix_len))

    @property
    def destination(self) -> IPv4Network:
        """To where the kernel adds a route with the address."""
        return IPv4Network((int(self.peer or self.address), self.prefix_len), strict=False)


_CACHED_ADDRESSES = 10_000
_NO_STATISTICS = attribute(_IFLA_EXT_MASK, _NUMBER.pack(_RTEXT_FILTER_SKIP_STATS))

#: The request that lists all interfaces.
ALL_LINKS = Message(RTM_GETLINK, _IFINFOMSG.pack(0, 0, 0, 0, 0) + _NO_STATISTICS)

#: The request that lists all IPv4 addresses.
ALL_ADDRESSES = Message(RTM_GETADDR, _IFADDRMSG.pack(_AF_INET, 0, 0, 0, 0))


def link_named(name: str) -> Message:
    """The request for the interface of that name."""
    return Message(
        RTM_GETLINK,
        _IFINFOMSG.pack(0, 0, 0, 0, 0) + _NO_STATISTICS + attribute(_IFLA_IFNAME, os.fsencode(name) + b"\0"),
    )


def link(message: Message) -> Link:
    """An interface as it was listed."""
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
    )


def address(message: Message) -> Address:
    """An address as it was listed."""
    return _address(message.body)


@lru_cache(_CACHED_ADDRESSES)
def _address(body: bytes) -> Address:
    """A host may have thousands, which hardly ever change."""
    _, prefix_len, _, _, link_index = _IFADDRMSG.unpack_from(body)
    has = attributes(body, _IFADDRMSG.size)
    local = has.get(_IFA_LOCAL) or has[_IFA_ADDRESS]
    peer = has.get(_IFA_ADDRESS, local)
    return Address(link_index, IPv4Address(local), prefix_len, None if peer == local else IPv4Address(peer))


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
    """A name that another program chose, which may be no UTF-8."""
    return os.fsdecode(value.split(b"\0")[0])
