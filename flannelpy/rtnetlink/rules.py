"""Policy rules: which routing tables the kernel looks at, and for which packets.  Pure.

Source: ip-rule(8), include/uapi/linux/fib_rules.h of the kernel.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from flannelpy.rtnetlink.messages import RTM_GETRULE, Message, attributes

_AF_INET = 2
# struct fib_rule_hdr { __u8 family, dst_len, src_len, tos, table, res1, res2, action; __u32 flags; }
_HEADER = struct.Struct("=BBBBBxxBI")
_NUMBER = struct.Struct("=I")
_FRA_DST, _FRA_SRC, _FRA_IIFNAME, _FRA_PRIORITY, _FRA_TABLE = 1, 2, 3, 6, 15
_ANY = IPv4Network("0.0.0.0/0")

LOOKUP, BLACKHOLE, UNREACHABLE, PROHIBIT = 1, 6, 7, 8
# As iproute2 prints them.
_ACTIONS = {LOOKUP: "lookup", 2: "goto", 3: "nop", BLACKHOLE: "blackhole", UNREACHABLE: "unreachable"}
_ACTIONS |= {PROHIBIT: "prohibit"}
_TABLES = {253: "default", 254: "main", 255: "local"}

#: The request that lists all IPv4 rules.
ALL_RULES = Message(RTM_GETRULE, _HEADER.pack(_AF_INET, 0, 0, 0, 0, 0, 0))


class PolicyRule(NamedTuple):
    """A rule; empty ``input_name``: for packets of any interface and of the host itself."""

    priority: int
    source: IPv4Network
    destination: IPv4Network
    input_name: str
    action: int
    table: int

    def matches(self, destination: IPv4Address, source: IPv4Address | None, input_name: str) -> bool:
        """Whether it is for such a packet, as far as addresses and interface decide; the host's own has no source."""
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


def _shown(network: IPv4Network) -> str:
    return "all" if network == _ANY else str(network)


def parse(message: Message) -> PolicyRule:
    """A rule of a listing."""
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


def _number(value: bytes | None) -> int:
    number: int = _NUMBER.unpack(value or bytes(4))[0]
    return number
