"""The conditions of a rule that ``nft --json`` prints, as predicates of ``packet_filter``.  Pure.

Source: libnftables-json(5), nft(8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from flannelpy.netfilter import packet_filter
from flannelpy.netfilter.address_ranges import AddressRanges
from flannelpy.netfilter.packet_filter import Predicate

# What only fragments have, which are rare: an offset, more fragments behind them, or one of both.
# Source: IP_OFFSET and IP_MF in net/ip.h of the kernel.
_FRAGMENT_BITS = {0x1FFF, 0x3FFF, 0x2000}
_OTHER_PROTOCOLS = ("ip6", "icmpv6", "arp")
# The headers behind that of IP, each of which one transport protocol has.
_TRANSPORT_PROTOCOLS = {"ah", "comp", "dccp", "esp", "gre", "icmp", "igmp", "sctp", "tcp", "udp", "udplite"}


def key_of(key: Any) -> Any:
    """Return an element of a set without its timeout and comment."""
    return key["elem"]["val"] if isinstance(key, dict) and "elem" in key else key


def match(value: dict[str, Any]) -> Predicate:
    """Return the condition of a match statement.  Raises KeyError, TypeError, ValueError, AttributeError."""
    operator = value.get("op", "==")
    left, right = value["left"], value["right"]
    if is_of_other_protocol(left):
        return packet_filter.never
    exists, condition = has_header(left), _match(operator, left, right)
    return lambda packets: min(exists(packets), condition(packets))


def _match(operator: str, left: Any, right: Any) -> Predicate:
    if _is_flags(left):
        return _match_flags(operator, left, right)
    if operator not in ("==", "!=", "in"):
        return packet_filter.unknown
    condition = compare(left, right)
    return packet_filter.negated(condition) if operator == "!=" else condition


def is_of_other_protocol(left: Any) -> bool:
    """Return whether only packets of other protocols than IPv4 have a field; nft lists no condition for that."""
    return any(
        "exthdr" in field or field.get("payload", {}).get("protocol") in _OTHER_PROTOCOLS for field in _fields(left)
    )


def has_header(left: Any) -> Predicate:
    """Return the condition that a packet has the transport header of a field; nft lists no condition for that."""
    found = {field.get("payload", {}).get("protocol") for field in _fields(left)} & _TRANSPORT_PROTOCOLS
    return packet_filter.protocol(sorted(found)) if found else packet_filter.always


def _fields(left: Any) -> Iterator[dict[str, Any]]:
    """Yield the fields of which an expression consists, without their masks."""
    parts = left["concat"] if isinstance(left, dict) and "concat" in left else [left]
    for part in parts:
        field = part["&"][0] if isinstance(part, dict) and "&" in part else part
        if isinstance(field, dict):
            yield field


def _is_flags(left: Any) -> bool:
    payloads = [field.get("payload", {}) for field in _fields(left)]
    return [(each.get("protocol"), each.get("field")) for each in payloads] == [("tcp", "flags")]


def _match_flags(operator: str, left: dict[str, Any], right: Any) -> Predicate:
    wanted = _flags(right)
    mask = _flags(left["&"][1]) if "&" in left else None
    if wanted is None or (mask is None and "&" in left):
        return packet_filter.unknown
    if operator == "in":
        return packet_filter.tcp_flags_that(lambda flags: bool(flags & wanted))
    if operator == "!":
        return packet_filter.tcp_flags_that(lambda flags: not flags & wanted)
    if operator not in ("==", "!="):
        return packet_filter.unknown
    return packet_filter.tcp_flags_that(
        lambda flags: ((flags if mask is None else flags & mask) == wanted) is (operator == "==")
    )


def _flags(value: Any) -> frozenset[str] | None:
    """Names of flags; None for others."""
    if value == 0:
        return frozenset()
    if isinstance(value, dict) and "|" in value:
        value = value["|"]
    values = [value] if isinstance(value, str) else value
    is_named = isinstance(values, list) and all(isinstance(each, str) for each in values)
    return frozenset(values) if is_named else None


def compare(left: Any, right: Any) -> Predicate:
    """Return the condition that an expression is one of the values.  Raises as ``match`` does."""
    if right == "*":
        return packet_filter.always
    if not isinstance(left, dict):
        return packet_filter.unknown
    if "concat" in left:
        return _compare_concatenation(left["concat"], right)
    [(kind, expression)] = left.items()
    values = _values(right)
    if values is None or kind not in _COMPARISONS:
        return packet_filter.unknown
    return _COMPARISONS[kind](expression, values)


def _compare_concatenation(lefts: Sequence[Any], right: Any) -> Predicate:
    """One of the elements matches in all its parts."""
    elements = right.get("set", [right]) if isinstance(right, dict) else None
    if elements is None:
        return packet_filter.unknown
    found = [
        [compare(left, each) for left, each in zip(lefts, key_of(element)["concat"], strict=True)]
        for element in elements
    ]
    return lambda packets: max(
        (min(condition(packets) for condition in element) for element in found), default=packet_filter.never(packets)
    )


def _compare_fragment(operands: Sequence[Any], values: Sequence[Any]) -> Predicate:
    field, mask = operands
    payload = field.get("payload", {}) if isinstance(field, dict) else {}
    is_fragment = payload.get("field") == "frag-off" and mask in _FRAGMENT_BITS and values == [0]
    return packet_filter.negated(packet_filter.rare) if is_fragment else packet_filter.unknown


def _compare_route(fib: dict[str, Any], values: Sequence[Any]) -> Predicate:
    flags = fib.get("flags", [])
    if fib.get("result") == "type" and "daddr" in flags:
        return packet_filter.destination_type(list(map(str, values)))
    if fib.get("result") == "type" and "saddr" in flags:
        return packet_filter.source_type(list(map(str, values)))
    is_source_check = fib.get("result") == "oif" and "saddr" in flags
    if is_source_check and values in ([False], [True]):
        return packet_filter.negated(packet_filter.rare) if values == [True] else packet_filter.rare
    return packet_filter.unknown


def _compare_meta(meta: dict[str, Any], values: Sequence[Any]) -> Predicate:
    key = meta.get("key")
    if key in ("iifname", "iif"):
        return packet_filter.incoming(list(map(str, values)))
    if key in ("oifname", "oif"):
        return packet_filter.outgoing(list(map(str, values)))
    if key in ("nfproto", "protocol"):
        return _for_protocol(values)
    return _compare_transport(values) if key == "l4proto" else packet_filter.unknown


def _compare_transport(values: Sequence[Any]) -> Predicate:
    if any(map(_is_range, values)):
        return packet_filter.unknown
    return packet_filter.protocol(list(map(str, values)))


def _for_protocol(values: Sequence[Any]) -> Predicate:
    return packet_filter.always if {"ipv4", "ip"} & set(map(str, values)) else packet_filter.never


def _compare_connection(connection: dict[str, Any], values: Sequence[Any]) -> Predicate:
    key = connection.get("key")
    if key == "state":
        return packet_filter.states(map(str, values))
    # As firewalld accepts packets to published ports.
    return packet_filter.few if key == "status" and values == ["dnat"] else packet_filter.unknown


def _compare_payload(payload: dict[str, Any], values: Sequence[Any]) -> Predicate:
    protocol, field = payload.get("protocol"), payload.get("field")
    if (protocol, field) == ("ether", "type"):
        return _for_protocol(values)
    if protocol == "ip" and field in ("saddr", "daddr"):
        with suppress(ValueError):
            ranges = AddressRanges(map(_range, values))
            return (packet_filter.source if field == "saddr" else packet_filter.destination)(ranges)
    if (protocol, field) == ("ip", "protocol"):
        return _compare_transport(values)
    if field in ("sport", "dport"):
        with suppress(ValueError, TypeError, KeyError):
            return packet_filter.ports(list(map(_port_range, values)))
    return packet_filter.unknown


def _port_range(value: Any) -> tuple[int, int]:
    """Raise ValueError, TypeError or KeyError for what is neither a number nor a range."""
    first, last = value["range"] if _is_range(value) else (value, value)
    return int(first), int(last)


def _values(right: Any) -> list[Any] | None:
    """Return the values on the right side; None if they are not known."""
    if isinstance(right, dict) and "set" in right:
        right = right["set"]
    values = list(map(key_of, right if isinstance(right, list) else [right]))
    is_known = all(isinstance(value, int) or _is_text(value) or _is_range(value) for value in values)
    return values if is_known else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not value.startswith("@")


def _is_range(value: Any) -> bool:
    return isinstance(value, dict) and ("prefix" in value or "range" in value)


def _range(value: Any) -> tuple[int, int]:
    if isinstance(value, dict) and "range" in value:
        first, last = map(IPv4Address, value["range"])
        return int(first), int(last)
    if isinstance(value, dict):
        network = IPv4Network((value["prefix"]["addr"], value["prefix"]["len"]))
        return int(network.network_address), int(network.broadcast_address)
    return int(address := IPv4Address(value)), int(address)


_COMPARISONS: dict[str, Callable[[Any, Sequence[Any]], Predicate]] = {
    "&": _compare_fragment,
    "ct": _compare_connection,
    "fib": _compare_route,
    "meta": _compare_meta,
    "payload": _compare_payload,
}
