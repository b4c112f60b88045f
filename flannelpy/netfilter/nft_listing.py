"""A table that ``nft --json`` prints, as rules that ``packet_filter`` can walk.  Pure.

Source: libnftables-json(5), nft(8).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, summarize_address_range
from typing import Any, NamedTuple

from flannelpy.netfilter import packet_filter
from flannelpy.netfilter.packet_filter import Predicate, Rule, Verdict

# Priorities behind this one see tracked connections.  Source: NF_IP_PRI_CONNTRACK in linux/netfilter_ipv4.h.
_CONNTRACK_PRIORITY = -200
_VERDICTS = {
    "accept": Verdict.ACCEPT,
    "drop": Verdict.DROP,
    "reject": Verdict.DROP,
    "return": Verdict.RETURN,
    "jump": Verdict.JUMP,
    "goto": Verdict.GOTO,
    "queue": Verdict.UNKNOWN,
}
# Statements that neither decide nor choose packets.
_HARMLESS = {"counter", "log", "mangle", "notrack", "comment", "set", "flow", "ct helper", "ct timeout"}


class BaseChain(NamedTuple):
    """A chain at a hook; ``chains``: the rules of all chains of its table."""

    family: str
    table: str
    name: str
    hook: str
    is_tracked: bool
    policy: str
    chains: dict[str, list[Rule]]

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name}"


def base_chains(entries: Sequence[dict[str, Any]]) -> list[BaseChain]:
    """Those of one table.  Raises KeyError, TypeError, ValueError for what nft does not print."""
    heads = [entry["chain"] for entry in entries if "chain" in entry]
    chains: dict[str, list[Rule]] = {str(head["name"]): [] for head in heads}
    for entry in entries:
        if rule := entry.get("rule"):
            chains[str(rule["chain"])] += _rules(str(rule["chain"]), rule.get("expr", []))
    return [
        BaseChain(
            str(head["family"]),
            str(head["table"]),
            str(head["name"]),
            str(head["hook"]),
            int(head.get("prio", 0)) > _CONNTRACK_PRIORITY,
            str(head.get("policy", "accept")),
            chains,
        )
        for head in heads
        if "hook" in head
    ]


def _rules(chain: str, statements: Sequence[dict[str, Any]]) -> Iterator[Rule]:
    """What one rule does, as one rule for each of its verdicts."""
    conditions: list[Predicate] = []
    for statement in statements:
        [(word, value)] = statement.items() if isinstance(statement, dict) else [(str(statement), None)]
        if word == "match":
            conditions.append(_match(value))
        elif word == "vmap":
            yield from _mapped(chain, tuple(conditions), value)
        elif word in _VERDICTS:
            yield _decide(chain, tuple(conditions), word, value)
        elif word not in _HARMLESS:
            conditions.append(packet_filter.unknown)


def _decide(chain: str, conditions: tuple[Predicate, ...], word: str, value: Any) -> Rule:
    verdict = _VERDICTS.get(word, Verdict.CONTINUE)
    target = str(value["target"]) if verdict in (Verdict.JUMP, Verdict.GOTO) else ""
    return Rule(f"{word} in chain {chain}", conditions, verdict, target)


def _mapped(chain: str, conditions: tuple[Predicate, ...], value: dict[str, Any]) -> Iterator[Rule]:
    elements = value["data"].get("set") if isinstance(value["data"], dict) else None
    if elements is None:
        yield Rule(f"vmap in chain {chain}", (*conditions, packet_filter.unknown), Verdict.UNKNOWN)
        return
    for key, decision in elements:
        [(word, target)] = decision.items()
        yield _decide(chain, (*conditions, _compare(value["key"], key)), word, target)


def _match(value: dict[str, Any]) -> Predicate:
    operator = value.get("op", "==")
    if operator not in ("==", "!=", "in"):
        return packet_filter.unknown
    condition = _compare(value["left"], value["right"])
    return packet_filter.negated(condition) if operator == "!=" else condition


def _compare(left: Any, right: Any) -> Predicate:
    """The condition that an expression is one of the values."""
    values = _values(right)
    if not isinstance(left, dict) or values is None:
        return packet_filter.unknown
    if "meta" in left:
        return _compare_meta(str(left["meta"].get("key")), values)
    if "ct" in left:
        return _compare_connection(str(left["ct"].get("key")), values)
    if "payload" in left:
        return _compare_payload(left["payload"].get("protocol"), left["payload"].get("field"), values)
    return packet_filter.unknown


def _compare_meta(key: str, values: Sequence[Any]) -> Predicate:
    if key in ("iifname", "iif"):
        return packet_filter.incoming(list(map(str, values)))
    if key in ("oifname", "oif"):
        return packet_filter.outgoing(list(map(str, values)))
    if key in ("nfproto", "protocol"):
        return packet_filter.always if {"ipv4", "ip"} & set(map(str, values)) else packet_filter.never
    return packet_filter.unknown


def _compare_connection(key: str, values: Sequence[Any]) -> Predicate:
    if key == "state":
        return packet_filter.states(map(str, values))
    # As firewalld accepts packets to published ports.
    return packet_filter.few if key == "status" and values == ["dnat"] else packet_filter.unknown


def _compare_payload(protocol: Any, field: Any, values: Sequence[Any]) -> Predicate:
    if protocol in ("ip6", "icmpv6", "arp"):
        return packet_filter.never
    if protocol == "ip" and field in ("saddr", "daddr"):
        networks = [network for value in values for network in _networks(value)]
        return (packet_filter.source if field == "saddr" else packet_filter.destination)(networks)
    if field in ("sport", "dport") and all(isinstance(value, int) for value in values):
        return packet_filter.few
    return packet_filter.unknown


def _values(right: Any) -> list[Any] | None:
    """The values on the right side; None if they are not known."""
    if isinstance(right, dict) and "set" in right:
        right = right["set"]
    values = right if isinstance(right, list) else [right]
    values = [value["elem"]["val"] if isinstance(value, dict) and "elem" in value else value for value in values]
    is_known = all(isinstance(value, int) or _is_text(value) or _is_range(value) for value in values)
    return values if is_known else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not value.startswith("@")


def _is_range(value: Any) -> bool:
    return isinstance(value, dict) and ("prefix" in value or "range" in value)


def _networks(value: Any) -> list[IPv4Network]:
    if isinstance(value, dict) and "range" in value:
        first, last = map(IPv4Address, value["range"])
        return list(summarize_address_range(first, last))
    if isinstance(value, dict):
        return [IPv4Network((value["prefix"]["addr"], value["prefix"]["len"]))]
    return [IPv4Network(value)]
