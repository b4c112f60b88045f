"""Which rules of a listing are flannelpy's rules between networks."""

from __future__ import annotations

import struct
from ipaddress import IPv4Network

import pytest

from flannelpy.marks import ROUTE_PROTOCOL
from flannelpy.rtnetlink.messages import RTM_NEWRULE, Message, attribute
from flannelpy.rtnetlink.rules import ProhibitRule, marked_prohibit_rules, unmarked_prohibit_rules

RULE = ProhibitRule(IPv4Network("11.0.0.0/16"), IPv4Network("11.1.0.0/16"))
FRA_DST, FRA_SRC, FRA_IIFNAME, FRA_PRIORITY, FRA_FWMARK, FRA_SUPPRESS_PREFIXLEN = 1, 2, 3, 6, 10, 14
FRA_TABLE, FRA_PROTOCOL = 15, 21


def listed(
    rule: ProhibitRule = RULE,
    *,
    protocol: int = ROUTE_PROTOCOL,
    priority: int = 8285,
    action: int = 8,
    type_of_service: int = 0,
    flags: int = 0,
    more: bytes = b"",
) -> Message:
    """The message by which Linux 5.10 lists a rule."""
    source, destination = rule.source, rule.destination
    header = struct.pack("=BBBBBxxBI", 2, destination.prefixlen, source.prefixlen, type_of_service, 0, action, flags)
    return Message(
        RTM_NEWRULE,
        header
        + attribute(FRA_TABLE, struct.pack("=I", 0))
        + attribute(FRA_SUPPRESS_PREFIXLEN, struct.pack("=I", 0xFFFFFFFF))
        + attribute(FRA_PROTOCOL, bytes([protocol]))
        + attribute(FRA_PRIORITY, struct.pack("=I", priority))
        + attribute(FRA_DST, destination.network_address.packed)
        + attribute(FRA_SRC, source.network_address.packed)
        + more,
    )


def test_a_marked_rule_is_ours_and_an_unmarked_rule_may_be_an_earlier_versions() -> None:
    messages = [listed(), listed(protocol=0, priority=8285, rule=ProhibitRule(RULE.destination, RULE.source))]
    assert marked_prohibit_rules(messages) == [RULE]
    assert unmarked_prohibit_rules(messages) == [ProhibitRule(RULE.destination, RULE.source)]


@pytest.mark.parametrize(
    "message",
    [
        listed(priority=100),
        listed(action=7),
        listed(type_of_service=8),
        listed(flags=2),  # FIB_RULE_INVERT
        listed(more=attribute(FRA_IIFNAME, b"eth0\0")),
        listed(more=attribute(FRA_FWMARK, struct.pack("=I", 1))),
        listed(protocol=3),
    ],
)
def test_a_rule_with_another_meaning_is_another_programs(message: Message) -> None:
    assert marked_prohibit_rules([message]) == []


def test_an_unmarked_rule_behind_another_one_with_the_same_networks_is_left_out() -> None:
    assert unmarked_prohibit_rules([listed(protocol=3), listed(protocol=0)]) == []
    assert unmarked_prohibit_rules([listed(protocol=3, priority=100), listed(protocol=0)]) == [RULE]
