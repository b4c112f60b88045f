"""Policy rules: which routing tables the kernel uses for which packets.  Pure.

Source: ip-rule(8), include/uapi/linux/fib_rules.h of the kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from flannelpy.marks import ROUTE_PROTOCOL
from flannelpy.rtnetlink.messages import RTM_GETRULE, Message, attributes

_AF_INET = 2
# struct fib_rule_hdr { __u8 family, dst_len, src_len, tos, table, res1, res2, action; __u32 flags; }
_HEADER = struct.Struct("=BBBBBxxBI")
_NUMBER = struct.Struct("=I")
_FRA_DST, _FRA_SRC, _FRA_IIFNAME, _FRA_PRIORITY, _FRA_SUPPRESS_PREFIXLEN, _FRA_TABLE = 1, 2, 3, 6, 14, 15
_FRA_PROTOCOL = 21
# The attributes of a rule between networks; with any other selector a rule means something else.
_OF_PROHIBIT_RULE = {_FRA_TABLE, _FRA_SUPPRESS_PREFIXLEN, _FRA_PROTOCOL, _FRA_PRIORITY, _FRA_SRC, _FRA_DST}
_ANY = IPv4Network("0.0.0.0/0")

LOOKUP, BLACKHOLE, UNREACHABLE, PROHIBIT = 1, 6, 7, 8
# As iproute2 prints them.
_ACTIONS = {LOOKUP: "lookup", 2: "goto", 3: "nop", BLACKHOLE: "blackhole", UNREACHABLE: "unreachable"}
_ACTIONS |= {PROHIBIT: "prohibit"}
_TABLES = {253: "default", 254: "main", 255: "local"}

#: Of flannelpy's rules: behind the rule for the host's own addresses, before that for the main table.
RULE_PRIORITY = 8285

#: The request that lists all IPv4 rules.
ALL_RULES = Message(RTM_GETRULE, _HEADER.pack(_AF_INET, 0, 0, 0, 0, 0, 0))


class PolicyRule(NamedTuple):
    """A policy rule.  ``input_name`` is empty for packets of any interface and of the host itself."""

    priority: int
    source: IPv4Network
    destination: IPv4Network
    input_name: str
    action: int
    table: int

    def matches(self, destination: IPv4Address, source: IPv4Address | None, input_name: str) -> bool:
        """Return whether addresses and interface of a packet match; a packet of the host itself has no source."""
        return (
            destination in self.destination
            and (self.source == _ANY or (source is not None and source in self.source))
            and self.input_name in ("", input_name or "lo")
        )

    def __str__(self) -> str:
        words = [f"rule {self.priority}: from {_shown(self.source)}"]
        if self.destination != _ANY:
            words.append(f"to {self.destination}")
        if self.input_name:
            words.append(f"iif {self.input_name}")
        words.append(_ACTIONS.get(self.action, f"action {self.action}"))
        if self.action == LOOKUP:
            words.append(_TABLES.get(self.table, str(self.table)))
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class ProhibitRule:
    """A rule that rejects what one network sends to another, before any route but those to the host itself."""

    source: IPv4Network
    destination: IPv4Network

    def __str__(self) -> str:
        return f"rule against packets from {self.source} to {self.destination}"


def _shown(network: IPv4Network) -> str:
    return "all" if network == _ANY else str(network)


def parse(message: Message) -> PolicyRule:
    """Return the rule that a message of a listing describes."""
    _, destination_len, source_len, _, table, action, _ = _HEADER.unpack_from(message.body)
    has = attributes(message.body, _HEADER.size)
    return PolicyRule(
        _number(has.get(_FRA_PRIORITY)),
        IPv4Network((has.get(_FRA_SRC, bytes(4)), source_len), strict=False),
        IPv4Network((has.get(_FRA_DST, bytes(4)), destination_len), strict=False),
        has.get(_FRA_IIFNAME, b"").rstrip(b"\0").decode(errors="replace"),
        action,
        _number(has.get(_FRA_TABLE)) or table,
    )


def may_be_ours(message: Message) -> bool:
    """Return whether a listed rule has the action and the priority of flannelpy's rules."""
    *_, action, _ = _HEADER.unpack_from(message.body)
    return bool(
        action == PROHIBIT and _number(attributes(message.body, _HEADER.size).get(_FRA_PRIORITY)) == RULE_PRIORITY
    )


def marked_prohibit_rules(messages: Iterable[Message]) -> list[ProhibitRule]:
    """Return flannelpy's rules between networks, which have its mark."""
    found = [_prohibit_rule(message) for message in messages if _protocol(message) == ROUTE_PROTOCOL]
    return [rule for rule in found if rule]


def unmarked_prohibit_rules(messages: Iterable[Message]) -> list[ProhibitRule]:
    """Return the rules between networks that have no mark, and no other rule with the same networks before them."""
    first: dict[Hashable, Message] = {}
    for message in filter(may_be_ours, messages):
        _, destination_len, source_len, *_ = _HEADER.unpack_from(message.body)
        has = attributes(message.body, _HEADER.size)
        first.setdefault((has.get(_FRA_SRC), source_len, has.get(_FRA_DST), destination_len), message)
    found = [_prohibit_rule(message) for message in first.values() if not _protocol(message)]
    return [rule for rule in found if rule]


def _protocol(message: Message) -> int:
    return int.from_bytes(attributes(message.body, _HEADER.size).get(_FRA_PROTOCOL, b""), "big")


def _prohibit_rule(message: Message) -> ProhibitRule | None:
    """Return the rule between networks that a message describes, if it is one."""
    _, destination_len, source_len, type_of_service, _, _, flags = _HEADER.unpack_from(message.body)
    has = attributes(message.body, _HEADER.size)
    if not {_FRA_SRC, _FRA_DST} <= has.keys() <= _OF_PROHIBIT_RULE or flags or type_of_service:
        return None
    if not may_be_ours(message):
        return None
    try:
        return ProhibitRule(IPv4Network((has[_FRA_SRC], source_len)), IPv4Network((has[_FRA_DST], destination_len)))
    except ValueError:  # host bits, which ours never have
        return None


def _number(value: bytes | None) -> int:
    number: int = _NUMBER.unpack(value or bytes(4))[0]
    return number
