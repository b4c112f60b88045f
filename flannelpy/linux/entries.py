"""What leads packets to other hosts in the kernel: routes by a gateway, neighbours, forwarding entries.

An entry has a ``key``: the kernel keeps one entry for each, and putting another one of that key replaces it.

Source: rtnetlink(7), include/uapi/linux/rtnetlink.h and neighbour.h of the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from socket import AF_INET
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable

RT_TABLE_MAIN = 254
RTPROT_BOOT = 3
RTNH_F_ONLINK = 4
NUD_PERMANENT = 0x80
NTF_SELF = 0x02

_AF_BRIDGE = 7
_RTN_UNICAST = 1
_RTM_NEWROUTE, _RTM_DELROUTE = 24, 25
_RTM_NEWNEIGH, _RTM_DELNEIGH = 28, 29
_NLM_F_REQUEST, _NLM_F_ACK = 0x1, 0x4
_NLM_F_REPLACE, _NLM_F_CREATE = 0x100, 0x400
_PUT = _NLM_F_REQUEST | _NLM_F_ACK | _NLM_F_REPLACE | _NLM_F_CREATE
_REMOVE = _NLM_F_REQUEST | _NLM_F_ACK


@dataclass(frozen=True, slots=True)
class Gateway:
    """A route of the main table by way of another machine, out of the interface with that index.

    ``is_onlink``: the gateway counts as reachable there, whatever its address.
    """

    destination: IPv4Network
    gateway: IPv4Address
    link_index: int
    is_onlink: bool = False

    @property
    def key(self) -> Hashable:
        """One route to each destination."""
        return self.destination

    def __str__(self) -> str:
        return f"route to {self.destination} via {self.gateway}"

    def message(self, *, removes: bool) -> Any:
        """The netlink message that puts the entry, or removes it."""
        from pyroute2.netlink.rtnl.rtmsg import rtmsg

        fields = {
            "family": AF_INET,
            "dst_len": self.destination.prefixlen,
            "table": RT_TABLE_MAIN,
            "proto": RTPROT_BOOT,
            "type": _RTN_UNICAST,
            "flags": RTNH_F_ONLINK if self.is_onlink else 0,
        }
        attributes = [
            ("RTA_DST", str(self.destination.network_address)),
            ("RTA_GATEWAY", str(self.gateway)),
            ("RTA_OIF", self.link_index),
        ]
        return _message(rtmsg(), _RTM_DELROUTE if removes else _RTM_NEWROUTE, removes, fields, attributes)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """The MAC of an address on the link with that index, for good: what ARP would find out."""

    address: IPv4Address
    mac: str
    link_index: int

    @property
    def key(self) -> Hashable:
        """One MAC for each address of a link."""
        return self.address, self.link_index

    def __str__(self) -> str:
        return f"neighbour {self.address} at {self.mac}"

    def message(self, *, removes: bool) -> Any:
        """The netlink message that puts the entry, or removes it."""
        fields = {"family": AF_INET, "ifindex": self.link_index, "state": NUD_PERMANENT}
        attributes = [("NDA_DST", str(self.address)), ("NDA_LLADDR", self.mac)]
        return _neighbour_message(removes, fields, attributes)


@dataclass(frozen=True, slots=True)
class Forward:
    """Where a VXLAN device sends what is for a MAC: an entry of its forwarding database."""

    mac: str
    public_ip: IPv4Address
    link_index: int

    @property
    def key(self) -> Hashable:
        """One host for each MAC of a device."""
        return self.mac, self.link_index

    def __str__(self) -> str:
        return f"forwarding of {self.mac} to {self.public_ip}"

    def message(self, *, removes: bool) -> Any:
        """The netlink message that puts the entry, or removes it."""
        fields = {"family": _AF_BRIDGE, "ifindex": self.link_index, "state": NUD_PERMANENT, "flags": NTF_SELF}
        attributes = [("NDA_DST", str(self.public_ip)), ("NDA_LLADDR", self.mac)]
        return _neighbour_message(removes, fields, attributes)


@dataclass(frozen=True, slots=True)
class Prohibition:
    """A rule that refuses, before any route is looked at, what comes from one network and is for another."""

    source: IPv4Network
    destination: IPv4Network

    def __str__(self) -> str:
        return f"rule against packets from {self.source} to {self.destination}"


Entry = Gateway | Neighbour | Forward

#: What one destination needs, in the order in which it is put: what leads packets there comes last.
Unit = tuple[Entry, ...]


def _neighbour_message(removes: bool, fields: dict[str, int], attributes: list[tuple[str, Any]]) -> Any:
    from pyroute2.netlink.rtnl.ndmsg import ndmsg

    return _message(ndmsg(), _RTM_DELNEIGH if removes else _RTM_NEWNEIGH, removes, fields, attributes)


def _message(
    message: Any, message_type: int, removes: bool, fields: dict[str, int], attributes: list[tuple[str, Any]]
) -> Any:
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attributes
    message["header"]["type"] = message_type
    message["header"]["flags"] = _REMOVE if removes else _PUT
    return message
