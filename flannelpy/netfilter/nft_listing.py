"""A table that ``nft --json`` prints, as rules that ``packet_filter`` can walk.  Pure.

A rule is kept as nft prints it and read when packets come to it: a table may hold thousands of others.
Source: libnftables-json(5), nft(8).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flannelpy.netfilter import nft_conditions, packet_filter
from flannelpy.netfilter.nft_conditions import key_of
from flannelpy.netfilter.packet_filter import Predicate, Rule, Verdict

#: The rules of each chain, each as nft prints it.
NativeRules = Mapping[str, Sequence[bytes]]

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
# Statements that neither decide nor choose packets, but log them, count them or change something.
_EFFECTS = {"counter", "log", "mangle", "notrack", "set", "flow", "ct helper", "ct timeout"}
_HARMLESS = {"comment", "continue"}
# Flags of a table that leave its chains at their hooks; nft 1.0.6 prints other flags as garbage, also ``dormant``.
_ACTIVE_FLAGS = {"owner", "persist"}
# To read 32 KB of JSON takes a millisecond.
_MOST_BYTES_OF_RULE = 1 << 15
# The elements of a map are read one by one; kube-proxy has 2,000 in one of this size.
_MOST_BYTES_OF_MAP = 1 << 18
# What stands between two entries; no text in quotes can contain it, because it contains quotes.
_BOUNDARY = re.compile(
    rb', (?=\{"(?:table|chain|rule|set|map|element|flowtable|counter|quota|limit|secmark|synproxy|ct \w+)": \{"family")'
)
_BOUNDARY_BYTES = 64
# Of an entry, these hold the names of its table and chain.
_HEAD_BYTES = 1024
_TAIL_BYTES = _MOST_BYTES_OF_MAP
_CHAIN_OF_RULE = re.compile(rb'\{"rule": \{.*?"chain": ("(?:[^"\\]|\\.)*")')
_MAP = re.compile(rb'\{"map": \{.*?"name": ("(?:[^"\\]|\\.)*")')
_OF_VERDICTS = b'"map": "verdict"'
_ELEMENTS = '"elem": ['
_LOOKUP = re.compile(rb'"set": \[|"vmap"|"right": "@')
_XTABLES = b'{"xt": '
# The end of a rule that is too long to be read.
_DECISION = re.compile(rb'(\{"(?:accept|drop|reject|return|jump|goto)": (?:null|\{[^{}]*\})\})\]\}\}')

# Maps that decide, as nft prints them.
Maps = Mapping[str, bytes]


class BaseChain(NamedTuple):
    """A chain at a hook; ``chains``: the rules of all chains of its table.

    ``is_active``: whether its table is certainly not dormant.  ``is_nat``: whether only new connections come to it.
    """

    family: str
    table: str
    name: str
    hook: str
    is_tracked: bool
    policy: str
    is_nat: bool
    is_active: bool
    chains: Mapping[str, NftRules]

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name}"


class NftRules:
    """The rules of a chain, each read once, when a packet comes to it."""

    def __init__(self, rules: Sequence[bytes], maps: Maps) -> None:
        self._read: list[Rule] = []
        self._reading = (rule for each in rules for rule in read_rule(each, maps))

    def __iter__(self) -> Iterator[Rule]:
        """In their order."""
        at = 0
        while at < len(self._read) or self._read_next():
            yield self._read[at]
            at += 1

    def _read_next(self) -> bool:
        rule = next(self._reading, None)
        if rule:
            self._read.append(rule)
        return rule is not None


class Entries:
    """Splits what nft prints into its entries, each of which goes to ``take``, while the output comes in."""

    def __init__(self, take: Callable[[bytes], object]) -> None:
        self._take = take
        self._rest = b""
        self._from = 0  # before which there is no boundary
        self._is_begun = False

    def feed(self, chunk: bytes) -> None:
        """Take the next part of the output.  Raises ValueError if nft does not print that."""
        self._rest += chunk
        start = 0
        for boundary in _BOUNDARY.finditer(self._rest, self._from):
            self._emit(self._rest[start : boundary.start()])
            start = boundary.end()
        self._rest = self._rest[start:]
        if len(self._rest) > 2 * _TAIL_BYTES:  # of an entry that is too long to be read
            self._rest = self._rest[:_HEAD_BYTES] + self._rest[-_TAIL_BYTES:]
        self._from = max(len(self._rest) - _BOUNDARY_BYTES, 0)

    def close(self) -> None:
        """Take the last entry.  Raises ValueError if the output has no end."""
        if not self._rest.rstrip().endswith(b"]}"):
            raise ValueError("no end")
        self._emit(self._rest.rstrip()[:-2])
        self._rest = b""

    def _emit(self, entry: bytes) -> None:
        if self._is_begun:
            self._take(entry)
        elif len(json.loads(entry + b"]}")["nftables"]) > 1:  # about nft itself
            raise ValueError("other entries than expected")
        self._is_begun = True


class NftTable:
    """One table of nftables; ``map_names``: of its maps that decide.  ``rules``: of each chain, as nft prints them."""

    def __init__(self, family: str, name: str) -> None:
        self.family = family
        self.name = name
        self.map_names: list[str] = []
        self.rules: dict[str, list[bytes]] = {}
        self._heads: list[dict[str, Any]] = []
        self._maps: dict[str, bytes] = {}
        self._is_active = True
        self._chains: dict[str, NftRules] = {}

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same rules."""
        return isinstance(other, NftTable) and self._content() == other._content()

    def __hash__(self) -> int:
        """Return a hash of the family and name, which do not change."""
        return hash((self.family, self.name))

    def _content(self) -> tuple[object, ...]:
        return self.family, self.name, self._is_active, self._heads, self._maps, self.rules

    def take(self, entry: bytes) -> None:
        """Add an entry.  Raises KeyError, TypeError, ValueError, AttributeError for what nft does not print."""
        if entry.startswith(b'{"rule"'):
            self.rules.setdefault(_chain_of(entry), []).append(_shortened(entry))
        elif entry.startswith(b'{"chain"'):
            self._heads.append(json.loads(entry)["chain"])
        elif entry.startswith(b'{"map"'):
            self.map_names += _names_of_verdict_map(entry)
        elif entry.startswith(b'{"table"'):
            flags = json.loads(entry)["table"].get("flags", [])
            self._is_active = set([flags] if isinstance(flags, str) else flags) <= _ACTIVE_FLAGS

    def take_elements(self, entry: bytes) -> None:
        """Add the elements of a map that decides, unless they are too many to be read.  Raises as ``take`` does."""
        found = _MAP.match(entry)
        if found and len(entry) <= _MOST_BYTES_OF_MAP:
            self._maps[str(json.loads(found[1]))] = entry

    def base_chains(self) -> list[BaseChain]:
        """Return the chains at a hook.  Raises KeyError, TypeError, ValueError for what nft does not print."""
        if not self._chains:
            names = [str(head["name"]) for head in self._heads]
            self._chains = {name: NftRules(self.rules.get(name, ()), self._maps) for name in names}
        return [
            BaseChain(
                self.family,
                self.name,
                str(head["name"]),
                str(head["hook"]),
                int(head.get("prio", 0)) > _CONNTRACK_PRIORITY,
                str(head.get("policy", "accept")),
                head.get("type") == "nat",
                self._is_active,
                self._chains,
            )
            for head in self._heads
            if "hook" in head
        ]


def has_lookup(rule: bytes) -> bool:
    """Whether a rule of a table of iptables looks into a set or map, which iptables-save does not print."""
    return _LOOKUP.search(rule) is not None and _XTABLES not in rule


def _names_of_verdict_map(entry: bytes) -> list[str]:
    """Return the name of a map if it decides; a version of nft that ignores --terse prints all its elements."""
    if not (found := _MAP.match(entry)):
        raise ValueError("a map without a name")
    return [str(json.loads(found[1]))] if _OF_VERDICTS in entry[:_HEAD_BYTES] else []


def _chain_of(rule: bytes) -> str:
    found = _CHAIN_OF_RULE.match(rule)
    return str(json.loads(found[1])) if found else ""


def _shortened(rule: bytes) -> bytes:
    """Do not keep a rule in full that is not read in full."""
    return rule if len(rule) <= _MOST_BYTES_OF_RULE else rule[:_HEAD_BYTES] + rule[-_MOST_BYTES_OF_RULE:]


def read_rule(rule: bytes, maps: Maps | None = None) -> Iterator[Rule]:
    """Yield a rule for each verdict of one rule; a rule that cannot be read may match any packet."""
    chain = _chain_of(rule)
    if len(rule) > _MOST_BYTES_OF_RULE:
        yield from _of_long_rule(chain, rule)
        return
    try:
        yield from _rules(chain, json.loads(rule)["rule"].get("expr", []), maps or {})
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        yield Rule(f"a rule in chain {chain}", (packet_filter.unknown,), Verdict.UNKNOWN)


def _of_long_rule(chain: str, rule: bytes) -> Iterator[Rule]:
    yield Rule(f"a long rule in chain {chain}", (packet_filter.unknown,), Verdict.CONTINUE)
    if found := _DECISION.search(rule, len(rule) - _HEAD_BYTES):
        [(word, value)] = json.loads(found[1]).items()
        yield _decide(chain, (packet_filter.unknown,), word, value)
    else:
        yield Rule(f"a long rule in chain {chain}", (packet_filter.unknown,), Verdict.UNKNOWN)


def _rules(chain: str, statements: Sequence[dict[str, Any]], maps: Maps) -> Iterator[Rule]:
    conditions: list[Predicate] = []
    for statement in statements:
        [(word, value)] = statement.items() if isinstance(statement, dict) else [(str(statement), None)]
        if word == "match":
            conditions.append(nft_conditions.match(value))
        elif word == "vmap":
            mapped = _mapped(chain, tuple(conditions), value, maps)
            yield from (rule for rule in mapped if rule.verdict is not Verdict.CONTINUE)
        elif word in _VERDICTS:
            yield _decide(chain, tuple(conditions), word, value)
        elif word in ("limit", "ct count"):
            is_above = isinstance(value, dict) and value.get("inv")
            conditions.append(packet_filter.rare if is_above else packet_filter.unknown)
        elif word == "xt" and statement is statements[-1]:
            yield _of_target(chain, tuple(conditions), value)
        elif word == "xt":
            conditions.append(packet_filter.unknown)
        elif _has_effect(word, value, is_last=statement is statements[-1]):
            yield Rule(f"{word} in chain {chain}", tuple(conditions), Verdict.CONTINUE)
            conditions += [] if word in _EFFECTS else [packet_filter.unknown]


def _has_effect(word: str, value: Any, *, is_last: bool) -> bool:
    """Whether a statement is more than the counter of a rule that decides."""
    if word == "counter":
        return is_last or isinstance(value, str)  # which is the name of a counter of its own
    return word not in _HARMLESS


def _of_target(chain: str, conditions: tuple[Predicate, ...], value: Any) -> Rule:
    """Return the rule of a target of iptables; a version of nft that prints null does not name it."""
    name = value["name"] if value else ""
    word = {"REJECT": "reject", "NFQUEUE": "queue", "": "queue"}.get(name, name)
    return _decide(chain, conditions, word, None)


def _decide(chain: str, conditions: tuple[Predicate, ...], word: str, value: Any) -> Rule:
    verdict = _VERDICTS.get(word, Verdict.CONTINUE)
    target = str(value["target"]) if verdict in (Verdict.JUMP, Verdict.GOTO) else ""
    return Rule(f"{word} in chain {chain}", conditions, verdict, target)


def _mapped(chain: str, conditions: tuple[Predicate, ...], value: dict[str, Any], maps: Maps) -> Iterator[Rule]:
    if nft_conditions.is_of_other_protocol(value["key"]):
        return
    conditions = (*conditions, nft_conditions.has_header(value["key"]))
    elements = _elements(value["data"], maps)
    if elements is None:
        yield Rule(f"vmap in chain {chain}", (*conditions, packet_filter.unknown), Verdict.UNKNOWN)
        return
    others: list[tuple[str, Any]] = []
    named: list[Predicate] = []
    for key, decision in elements:
        [(word, target)] = decision.items()
        if key_of(key) == "*":
            others.append((word, target))
        else:
            named.append(nft_conditions.compare(value["key"], key_of(key)))
            yield _decide(chain, (*conditions, named[-1]), word, target)
    # The kernel looks once: a packet that returns from the chain of its element does not meet that of the others.
    not_named = packet_filter.negated(packet_filter.any_of(named))
    for word, target in others:
        yield _decide(chain, (*conditions, not_named), word, target)


def _elements(data: Any, maps: Maps) -> Iterable[Any] | None:
    """Return the elements of a map, each a key and a decision; None if they are not known."""
    if isinstance(data, dict):
        return data.get("set")
    found = maps.get(str(data).removeprefix("@"))
    return None if found is None else _read_elements(found.decode(errors="replace"))


def _read_elements(text: str) -> Iterator[Any]:
    """Read the elements of a long map one by one."""
    decoder = json.JSONDecoder()
    at = text.find(_ELEMENTS) + len(_ELEMENTS)
    while at >= len(_ELEMENTS) and text[at] != "]":
        element, at = decoder.raw_decode(text, at)
        yield element
        at += len(", ") if text[at] == "," else 0
