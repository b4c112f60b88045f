"""The kernel's IPv4 routes, and its answers about the route of a packet.  Pure.

Source: rtnetlink(7), include/uapi/linux/rtnetlink.h, inet_rtm_getroute in net/ipv4/route.c of the kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from flannelpy.rtnetlink.messages import RTM_GETROUTE, Message, attribute, attributes, error_of

_AF_INET = 2
# struct rtmsg { unsigned char rtm_family, rtm_dst_len, rtm_src_len, rtm_tos, rtm_table, rtm_protocol, rtm_scope,
#                rtm_type; unsigned rtm_flags; }
_RTMSG = struct.Struct("=BBBBBBBBI")
# The byte of it that is rtm_protocol.
_PROTOCOL = 5
_NUMBER = struct.Struct("=I")
_RTA_DST, _RTA_SRC, _RTA_IIF, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY = 1, 2, 3, 4, 5, 6
_RTA_PREFSRC, _RTA_MULTIPATH, _RTA_TABLE, _RTA_VIA, _RTA_NH_ID = 7, 9, 15, 18, 30
_RTM_F_LOOKUP_TABLE, _RTM_F_FIB_MATCH = 0x1000, 0x2000
# What identifies a route with a nexthop object; the kernel rejects (EINVAL) a request that also has its next hops.
_OF_A_NEXTHOP_OBJECT = (_RTA_DST, _RTA_PRIORITY, _RTA_TABLE, _RTA_NH_ID)
_RTNH_F_ONLINK = 4
_MAX_SMALL_TABLE = 255

# struct rtnexthop { unsigned short rtnh_len; unsigned char rtnh_flags, rtnh_hops; int rtnh_ifindex; }
_RTNEXTHOP = struct.Struct("=HBBi")
_SCOPE_LINK = 253

TABLE_MAIN, TABLE_LOCAL = 254, 255
PROTOCOL_KERNEL, PROTOCOL_BOOT = 2, 3
UNICAST, LOCAL, BLACKHOLE, UNREACHABLE, PROHIBIT, THROW = 1, 2, 6, 7, 8, 9

# As iproute2 prints them.
_KINDS = {2: "local", 3: "broadcast", 4: "anycast", 5: "multicast", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
_KINDS |= {9: "throw", 10: "nat"}
_PROTOCOLS = {1: "redirect", 2: "kernel", 3: "boot", 4: "static", 8: "gated", 9: "ra", 11: "zebra", 12: "bird"}
_PROTOCOLS |= {16: "dhcp", 18: "keepalived", 42: "babel", 186: "bgp", 187: "isis", 188: "ospf", 189: "rip"}
_TABLES = {253: "default", 254: "main", 255: "local"}


class RouteFilter(NamedTuple):
    """Selects the routes of a listing; 0 stands for all, in ``except_protocol`` for none."""

    protocol: int = 0
    link_index: int = 0
    table: int = TABLE_MAIN
    kind: int = 0
    except_protocol: int = 0

    def request(self) -> Message:
        """Return the request for these routes; kernels before 4.20 answer it with all routes."""
        by_link = attribute(_RTA_OIF, _NUMBER.pack(self.link_index)) if self.link_index else b""
        table = self.table if self.table <= _MAX_SMALL_TABLE else 0
        by_table = attribute(_RTA_TABLE, _NUMBER.pack(self.table)) if table != self.table else b""
        return Message(
            RTM_GETROUTE,
            _RTMSG.pack(_AF_INET, 0, 0, 0, table, self.protocol, 0, self.kind, 0) + by_table + by_link,
        )

    def select(self, messages: Iterable[Message]) -> list[KernelRoute]:
        """Return the wanted routes of a listing.  One of several next hops suffices for ``link_index``."""
        # The header alone excludes most unwanted routes, in a tenth of the time.
        likely = (
            message
            for message in messages
            if self.protocol in (0, message.body[_PROTOCOL]) and message.body[_PROTOCOL] != self.except_protocol
        )
        return [
            route
            for route in map(parse, likely)
            if self.table in (0, route.table)
            and self.kind in (0, route.kind)
            and (not self.link_index or self.link_index == route.link_index or _RTA_MULTIPATH in route.attributes)
        ]


class KernelRoute(NamedTuple):
    """A route from a listing of the kernel.  ``body``: struct rtmsg, and attributes."""

    body: bytes
    prefix_len: int
    tos: int
    protocol: int
    scope: int
    kind: int
    flags: int
    attributes: Mapping[int, bytes]

    @property
    def destination(self) -> IPv4Network:
        """Return the destination prefix."""
        return IPv4Network((self.attributes.get(_RTA_DST, bytes(4)), self.prefix_len))

    @property
    def gateway(self) -> IPv4Address | None:
        """Return the address of the gateway; None without one, and if there are several."""
        found = self.attributes.get(_RTA_GATEWAY)
        return IPv4Address(found) if found else None

    @property
    def has_ipv6_gateway(self) -> bool:
        """Return whether the gateway has an IPv6 address, which the kernel lists in another attribute."""
        return _RTA_VIA in self.attributes

    @property
    def source(self) -> IPv4Address | None:
        """Return the source address that packets of the host itself get, if the route names one."""
        found = self.attributes.get(_RTA_PREFSRC)
        return IPv4Address(found) if found else None

    @property
    def link_index(self) -> int:
        """Return the index of the outgoing interface; 0 without one, and if there are several."""
        return self._number(_RTA_OIF)

    @property
    def metric(self) -> int:
        """Return the metric, of which the lowest wins."""
        return self._number(_RTA_PRIORITY)

    @property
    def table(self) -> int:
        """Return the number of its table."""
        return self._number(_RTA_TABLE) or self.body[4]

    @property
    def is_onlink(self) -> bool:
        """Return whether the kernel takes the gateway as reachable, without a route to it."""
        return bool(self.flags & _RTNH_F_ONLINK)

    @property
    def has_several_hops(self) -> bool:
        """Return whether it has several next hops of its own or of a nexthop object."""
        return _RTA_MULTIPATH in self.attributes

    @property
    def has_nexthop_object(self) -> bool:
        """Return whether its next hop is a nexthop object, which other programs such as FRR can change."""
        return _RTA_NH_ID in self.attributes

    @property
    def is_unicast(self) -> bool:
        """Return whether it leads to another machine or a network, and neither to the host itself nor to an error."""
        return self.kind == UNICAST

    def text(self, name_of: Callable[[int], str]) -> str:
        """Return the route in the syntax of ``ip route del``; ``name_of`` returns the name of an interface index."""
        return " ".join(self._words(name_of))

    def _words(self, name_of: Callable[[int], str]) -> Iterator[str]:
        if not self.is_unicast:
            yield _KINDS.get(self.kind, str(self.kind))
        yield str(self.destination) if self.prefix_len else "default"
        if self.tos:
            yield f"tos {self.tos:#x}"
        if _RTA_NH_ID in self.attributes:
            yield f"nhid {self._number(_RTA_NH_ID)}"
        else:
            yield from _hop_words(self.gateway, self.link_index, name_of)
        yield f"proto {_PROTOCOLS.get(self.protocol, self.protocol)}"
        if self.scope == _SCOPE_LINK and self.is_unicast:
            yield "scope link"
        if self.metric:
            yield f"metric {self.metric}"
        if self.table != TABLE_MAIN:
            yield f"table {_TABLES.get(self.table, self.table)}"
        if self.is_onlink:
            yield "onlink"
        for gateway, link_index in self._hops():
            yield " ".join(["nexthop", *_hop_words(gateway, link_index, name_of)])

    def _hops(self) -> Iterator[tuple[IPv4Address | None, int]]:
        """Yield gateway and interface of each next hop, if there are several."""
        left = b"" if _RTA_NH_ID in self.attributes else self.attributes.get(_RTA_MULTIPATH, b"")
        while len(left) >= _RTNEXTHOP.size:
            length, _, _, link_index = _RTNEXTHOP.unpack_from(left)
            found = attributes(left[:length], _RTNEXTHOP.size).get(_RTA_GATEWAY)
            yield IPv4Address(found) if found else None, link_index
            left = left[max(length + 3 & ~3, _RTNEXTHOP.size) :]

    def _number(self, name: int) -> int:
        value: int = _NUMBER.unpack(self.attributes.get(name, bytes(_NUMBER.size)))[0]
        return value


def _hop_words(gateway: IPv4Address | None, link_index: int, name_of: Callable[[int], str]) -> Iterator[str]:
    if gateway:
        yield f"via {gateway}"
    if link_index:
        yield f"dev {name_of(link_index)}"


def parse(message: Message) -> KernelRoute:
    """Return the route that a message of a listing describes."""
    _, prefix_len, _, tos, _, protocol, scope, kind, flags = _RTMSG.unpack_from(message.body)
    has = attributes(message.body, _RTMSG.size)
    return KernelRoute(message.body, prefix_len, tos, protocol, scope, kind, flags, has)


def removal_body(route: KernelRoute) -> bytes:
    """Return the body of the RTM_DELROUTE request that removes exactly this route."""
    if _RTA_NH_ID not in route.attributes:
        return route.body
    has = route.attributes
    kept = (attribute(name, has[name]) for name in _OF_A_NEXTHOP_OBJECT if name in has)
    return route.body[: _RTMSG.size] + b"".join(kept)


class RouteQuery(NamedTuple):
    """A packet to ``destination``.

    Without ``input_index``, the host itself sends the packet.  With it, the host forwards the packet: it arrived by the
    interface with that index, and has that source.
    """

    destination: IPv4Address
    source: IPv4Address | None = None
    input_index: int = 0

    def request(self, *, matched: bool) -> Message:
        """Return the request for the route that the kernel would use; with ``matched``, as it is in its table."""
        flags = _RTM_F_LOOKUP_TABLE | (_RTM_F_FIB_MATCH if matched else 0)
        source = attribute(_RTA_SRC, self.source.packed) if self.source else b""
        by_link = attribute(_RTA_IIF, _NUMBER.pack(self.input_index)) if self.input_index else b""
        return Message(
            RTM_GETROUTE,
            _RTMSG.pack(_AF_INET, 32, 32 if source else 0, 0, 0, 0, 0, 0, flags)
            + attribute(_RTA_DST, self.destination.packed)
            + source
            + by_link,
        )


class RouteAnswer(NamedTuple):
    """The route that the kernel would use, or the errno by which it rejects the packet.

    EINVAL: blackhole, or an impossible source.  EACCES: prohibit.  EHOSTUNREACH: unreachable, or forwarding is off.
    ENETUNREACH: no route.  EXDEV: rp_filter rejects the source.

    Only an answer to a query that is not ``matched`` has the next hop that the kernel would use of several.  Only an
    answer to a ``matched`` query has ``protocol``, ``prefix`` and ``route``.  ``source`` is the address from which the
    host itself would send.
    """

    errno: int = 0
    link_index: int = 0
    gateway: IPv4Address | None = None
    table: int = 0
    kind: int = 0
    protocol: int = 0
    metric: int = 0
    prefix: IPv4Network | None = None
    route: KernelRoute | None = None
    source: IPv4Address | None = None
    has_ipv6_gateway: bool = False

    def is_on_link(self, link_index: int) -> bool:
        """Return whether the kernel sends the packet to its destination itself, out of the interface with that index.

        The answer is no for a broadcast address, which is on the link but belongs to no host.
        """
        is_direct = self.gateway is None and not self.has_ipv6_gateway
        return not self.errno and self.kind == UNICAST and is_direct and self.link_index == link_index


def answer(message: Message, *, matched: bool) -> RouteAnswer:
    """Return the answer to a ``RouteQuery``."""
    if error := error_of(message):
        return RouteAnswer(errno=error)
    route = parse(message)
    return RouteAnswer(
        0,
        route.link_index,
        route.gateway,
        route.table,
        route.kind,
        route.protocol,
        route.metric,
        route.destination if matched else None,
        route if matched else None,
        route.source,
        route.has_ipv6_gateway,
    )
