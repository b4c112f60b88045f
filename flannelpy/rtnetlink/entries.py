"""The kernel's entries that lead packets to peers: gateway routes, neighbours, FDB entries.  Pure.

An entry has a ``key``.  A neighbour or FDB entry replaces the present one with the same key.

Source: rtnetlink(7), include/uapi/linux/rtnetlink.h and neighbour.h of the kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from flannelpy.marks import ROUTE_PROTOCOL
from flannelpy.rtnetlink import routes as routes_
from flannelpy.rtnetlink.messages import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_GETNEIGH,
    RTM_GETROUTE,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    Message,
    attribute,
    attributes,
)
from flannelpy.rtnetlink.routes import PROTOCOL_KERNEL, KernelRoute

_AF_INET, _AF_BRIDGE = 2, 7

# struct rtmsg { unsigned char rtm_family, rtm_dst_len, rtm_src_len, rtm_tos, rtm_table, rtm_protocol, rtm_scope,
#                rtm_type; unsigned rtm_flags; }
_RTMSG = struct.Struct("=BBBBBBBBI")
# The byte of it that is rtm_dst_len.
_DST_LEN = 1
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_MULTIPATH, _RTA_TABLE = 1, 4, 5, 6, 9, 15
_RT_TABLE_MAIN = 254
_RTN_UNICAST = 1
_RTNH_F_ONLINK = 4
# struct rtnexthop { unsigned short rtnh_len; unsigned char rtnh_flags, rtnh_hops; int rtnh_ifindex; }
_RTNEXTHOP = struct.Struct("=HBBi")

# struct ndmsg { __u8 ndm_family; …pad; __s32 ndm_ifindex; __u16 ndm_state; __u8 ndm_flags, ndm_type; }
_NDMSG = struct.Struct("=BxxxiHBB")
_NDA_DST, _NDA_LLADDR, _NDA_PORT, _NDA_VNI, _NDA_IFINDEX = 1, 2, 6, 7, 8
_NUD_PERMANENT = 0x80
_NTF_SELF = 0x02

_NUMBER = struct.Struct("=I")
# The attributes of a route that GatewayRoute can describe, and the header of each attribute.
_DEFINED = {_RTA_DST, _RTA_GATEWAY, _RTA_OIF}
_OF_A_GATEWAY = {*_DEFINED, _RTA_TABLE}
_OF_ROUTE, _OF_NEIGHBOUR = bytes([RTM_DELROUTE]), bytes([RTM_DELNEIGH])
_DST, _GATEWAY, _OIF = (attribute(number, bytes(4))[:4] for number in (_RTA_DST, _RTA_GATEWAY, _RTA_OIF))


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the main table out of the interface with that index; a lower metric wins."""

    destination: IPv4Network
    link_index: int
    metric: int


@dataclass(frozen=True, slots=True)
class GatewayRoute:
    """A route of the main table by a gateway, out of the interface with that index.

    ``is_onlink``: the kernel takes the gateway as reachable there, without a route to it.  ``protocol`` identifies the
    program that added the route, by default flannelpy.
    """

    destination: IPv4Network
    gateway: IPv4Address
    link_index: int
    is_onlink: bool = False
    protocol: int = ROUTE_PROTOCOL

    @property
    def key(self) -> Hashable:
        """Return the destination: flannelpy has one route to each."""
        return self.destination

    def __str__(self) -> str:
        return f"route to {self.destination} via {self.gateway}"

    def body(self) -> bytes:
        """Return struct rtmsg and the attributes."""
        flags = _RTNH_F_ONLINK if self.is_onlink else 0
        return (
            _RTMSG.pack(
                _AF_INET, self.destination.prefixlen, 0, 0, _RT_TABLE_MAIN, self.protocol, 0, _RTN_UNICAST, flags
            )
            + attribute(_RTA_DST, self.destination.network_address.packed)
            + attribute(_RTA_GATEWAY, self.gateway.packed)
            + attribute(_RTA_OIF, _NUMBER.pack(self.link_index))
        )


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A permanent neighbour: the MAC of an address on the link with that index, which ARP would find otherwise."""

    address: IPv4Address
    mac: str
    link_index: int

    @property
    def key(self) -> Hashable:
        """Return address and link: the kernel has one MAC for both."""
        return self.address, self.link_index

    def __str__(self) -> str:
        return f"neighbour {self.address} at {self.mac}"

    def body(self) -> bytes:
        """Return struct ndmsg and the attributes."""
        return (
            _NDMSG.pack(_AF_INET, self.link_index, _NUD_PERMANENT, 0, 0)
            + attribute(_NDA_DST, self.address.packed)
            + attribute(_NDA_LLADDR, _packed(self.mac))
        )


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """An entry of a VXLAN device's forwarding database: the host to which it sends frames for a MAC.

    ``way_out``: the index of the interface by which the device sends, 0 if the routes decide, as in all of ours.
    """

    mac: str
    public_ip: IPv4Address
    link_index: int
    way_out: int = 0

    @property
    def key(self) -> Hashable:
        """Return MAC and device: the kernel has one host for both."""
        return self.mac, self.link_index

    def __str__(self) -> str:
        return f"forwarding of {self.mac} to {self.public_ip}"

    def body(self) -> bytes:
        """Return struct ndmsg and the attributes."""
        return (
            _NDMSG.pack(_AF_BRIDGE, self.link_index, _NUD_PERMANENT, _NTF_SELF, 0)
            + attribute(_NDA_DST, self.public_ip.packed)
            + attribute(_NDA_LLADDR, _packed(self.mac))
            + (attribute(_NDA_IFINDEX, _NUMBER.pack(self.way_out)) if self.way_out else b"")
        )


Entry = GatewayRoute | Neighbour | FdbEntry

#: The entries of one peer in the order in which they are added: the route, which leads packets there, is the last.
PeerEntries = tuple[Entry, ...]


def add_request(entry: Entry) -> Message:
    """Return the request that adds an entry.

    The kernel rejects a route (EEXIST) if there is one to that destination, whichever program added it.  A neighbour or
    FDB entry, which is on our own device, replaces the one with its key.
    """
    if isinstance(entry, GatewayRoute):
        return Message(RTM_NEWROUTE, entry.body(), NLM_F_CREATE | NLM_F_EXCL)
    return Message(RTM_NEWNEIGH, entry.body(), NLM_F_CREATE | NLM_F_REPLACE)


def append_request(route: GatewayRoute) -> Message:
    """Return the request that appends a route to those of its destination, which the kernel prefers until removed."""
    return Message(RTM_NEWROUTE, route.body(), NLM_F_CREATE | NLM_F_APPEND)


#: Distinguishes an entry from all others: the request that removes it.  It is bytes, because these are hashed and
#: compared quickly, and the garbage collector does not track them.
Identity = bytes


def identity(entry: Entry) -> Identity:
    """Return the identity of a wanted entry."""
    return (_OF_ROUTE if isinstance(entry, GatewayRoute) else _OF_NEIGHBOUR) + entry.body()


def identity_of(route: KernelRoute) -> Identity:
    """Return the identity of a listed route; if ``GatewayRoute`` can describe it, the identity of that."""
    return _OF_ROUTE + _plain_body(route)


def delete_request(of: Identity) -> Message:
    """Return the request that removes exactly this entry."""
    return Message(of[0], of[1:])


def is_route(of: Identity) -> bool:
    """Return whether this is the identity of a route."""
    return of[0] == RTM_DELROUTE


def _plain_body(route: KernelRoute) -> bytes:
    if not route.attributes.keys() <= _OF_A_GATEWAY or not route.attributes.keys() >= _DEFINED:
        return routes_.removal_body(route)
    if route.tos or not route.is_unicast or route.table != _RT_TABLE_MAIN:
        return routes_.removal_body(route)
    header = _RTMSG.pack(
        _AF_INET,
        route.prefix_len,
        0,
        0,
        _RT_TABLE_MAIN,
        route.protocol,
        0,
        _RTN_UNICAST,
        route.flags & _RTNH_F_ONLINK,
    )
    has = route.attributes
    return header + _DST + has[_RTA_DST] + _GATEWAY + has[_RTA_GATEWAY] + _OIF + has[_RTA_OIF]


def is_owned(route: KernelRoute, network: IPv4Network, link_index: int) -> bool:
    """Return whether a route into ``network`` is ours: it has our mark, or leads out of our own device.

    The device's connected route, to ``network`` as a whole, is not an entry.  Without a device ``link_index`` is 0.
    """
    is_on_device = bool(link_index) and route.link_index == link_index and route.protocol != PROTOCOL_KERNEL
    if not (is_on_device or route.protocol == ROUTE_PROTOCOL):
        return False
    address = int.from_bytes(route.attributes.get(_RTA_DST, bytes(4)), "big")
    is_inside = address & int(network.netmask) == int(network.network_address)
    return is_inside and (
        route.prefix_len > network.prefixlen or (route.prefix_len == network.prefixlen and route.gateway is not None)
    )


def destination(of: Identity) -> IPv4Network | None:
    """Return the destination of a route, None for another entry."""
    return routes_.parse(delete_request(of)).destination if is_route(of) else None


def describe(of: Identity) -> str:
    """Return an entry in words."""
    if is_route(of):
        route = routes_.parse(delete_request(of))
        return f"route to {route.destination}" + (f" via {route.gateway}" if route.gateway else "")
    return str(_neighbour_entry(of))


def key(of: Identity) -> Hashable:
    """Return the key within which an entry is replaced by another one."""
    return destination(of) if is_route(of) else _neighbour_entry(of).key


def _neighbour_entry(of: Identity) -> Neighbour | FdbEntry:
    body = delete_request(of).body
    family, link_index, *_ = _NDMSG.unpack_from(body)
    has = attributes(body, _NDMSG.size)
    address, mac = IPv4Address(has[_NDA_DST]), has[_NDA_LLADDR].hex(":")
    if family == _AF_BRIDGE:
        return FdbEntry(mac, address, link_index, _way_out(has))
    return Neighbour(address, mac, link_index)


#: The request that lists all IPv4 routes.
ALL_ROUTES = Message(RTM_GETROUTE, _RTMSG.pack(_AF_INET, 0, 0, 0, 0, 0, 0, 0, 0))


def all_neighbours(link_index: int) -> Message:
    """Return the request that lists the IPv4 neighbours on a link."""
    wanted = attribute(_NDA_IFINDEX, _NUMBER.pack(link_index))
    return Message(RTM_GETNEIGH, _NDMSG.pack(_AF_INET, 0, 0, 0, 0) + wanted)


def all_fdb_entries(link_index: int) -> Message:
    """Return the request that lists the forwarding database of a device; old kernels list others as well."""
    return Message(RTM_GETNEIGH, _NDMSG.pack(_AF_BRIDGE, link_index, 0, 0, 0))


class _RouteMessage(NamedTuple):
    """A route of the main table from a listing."""

    destination: IPv4Network
    type_of_service: int
    protocol: int
    flags: int
    attributes: dict[int, bytes]

    def number(self, name: int) -> int:
        """Return the value of an attribute, 0 without it."""
        value: int = _NUMBER.unpack(self.attributes.get(name, bytes(_NUMBER.size)))[0]
        return value


def routes(messages: list[Message]) -> list[Route]:
    """Return the main table's routes of a listing, one for each next hop of a multipath route."""
    return [
        Route(route.destination, link_index, route.number(_RTA_PRIORITY))
        for route in _of_main_table(messages)
        for link_index in _ways_out(route)
    ]


def is_default(message: Message) -> bool:
    """Return whether a listed route leads to everything."""
    return message.body[_DST_LEN] == 0


def neighbours(messages: list[Message], link_index: int) -> list[Neighbour]:
    """Return the permanent neighbours of that link from a listing."""
    return [
        Neighbour(IPv4Address(found[_NDA_DST]), found[_NDA_LLADDR].hex(":"), link_index)
        for found in _permanent(messages, _AF_INET, link_index, 0)
    ]


def fdb_entries(messages: list[Message], link_index: int) -> list[FdbEntry]:
    """Return the permanent FDB entries of that device that lead to a host, from a listing."""
    return [
        FdbEntry(found[_NDA_LLADDR].hex(":"), IPv4Address(found[_NDA_DST]), link_index, _way_out(found))
        for found in _permanent(messages, _AF_BRIDGE, link_index, _NTF_SELF)
    ]


def _of_main_table(messages: list[Message]) -> list[_RouteMessage]:
    found = []
    for message in messages:
        _, length, _, type_of_service, table, protocol, _, _, flags = _RTMSG.unpack_from(message.body)
        if table == _RT_TABLE_MAIN:
            has = attributes(message.body, _RTMSG.size)
            destination = IPv4Network((has.get(_RTA_DST, bytes(4)), length))
            found.append(_RouteMessage(destination, type_of_service, protocol, flags, has))
    return found


def _ways_out(route: _RouteMessage) -> list[int]:
    """Return the interface indices that a route leads to; none for an unreachable or blackhole route."""
    if _RTA_OIF in route.attributes:
        return [route.number(_RTA_OIF)]
    hops, indices = route.attributes.get(_RTA_MULTIPATH, b""), []
    while len(hops) >= _RTNEXTHOP.size:
        length, _, _, link_index = _RTNEXTHOP.unpack_from(hops)
        indices.append(link_index)
        hops = hops[max(length + 3 & ~3, _RTNEXTHOP.size) :]
    return indices


def _permanent(messages: list[Message], family: int, link_index: int, flags: int) -> list[dict[int, bytes]]:
    """Return the attributes of permanent entries that have address and MAC, but no port or VNI of their own."""
    found = []
    for message in messages:
        its_family, its_index, state, its_flags, _ = _NDMSG.unpack_from(message.body)
        if (its_family, its_index) == (family, link_index) and state & _NUD_PERMANENT and its_flags & flags == flags:
            has = attributes(message.body, _NDMSG.size)
            sizes = len(has.get(_NDA_DST, b"")), len(has.get(_NDA_LLADDR, b""))
            if sizes == (4, 6) and not {_NDA_PORT, _NDA_VNI} & has.keys():
                found.append(has)
    return found


def _way_out(found: Mapping[int, bytes]) -> int:
    number: int = _NUMBER.unpack(found.get(_NDA_IFINDEX, bytes(_NUMBER.size)))[0]
    return number


def _packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
