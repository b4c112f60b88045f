"""The tables that iptables-save prints, as rules that ``packet_filter`` can walk.  Pure.

Only the rules that packets come to are read in full: a table may hold 30,000 others.
Source: iptables-save(8), iptables(8), iptables-extensions(8).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from ipaddress import IPv4Network

from flannelpy.marks import OWN_CHAIN
from flannelpy.netfilter import packet_filter
from flannelpy.netfilter.packet_filter import Predicate, Rule, Verdict

_VERDICTS = {
    "ACCEPT": Verdict.ACCEPT,
    "DROP": Verdict.DROP,
    "REJECT": Verdict.DROP,
    "RETURN": Verdict.RETURN,
    "QUEUE": Verdict.UNKNOWN,
    "NFQUEUE": Verdict.UNKNOWN,
}
_PORTS = {"--dport", "--sport", "--dports", "--sports", "--destination-port", "--source-port", "--ports"}
# A list of single ports, without a range.
_SINGLE_PORTS = re.compile(r"\d+(,\d+)*")
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|\S+')
_NETWORKS = {"-s": packet_filter.source, "-d": packet_filter.destination}
_DEVICES = {"-i": packet_filter.incoming, "-o": packet_filter.outgoing}
# Those whose options are read below, or say nothing.
_MODULES = {"comment", "conntrack", "state", "tcp", "udp", "multiport"}


# Where the kernel accepts no DROP; kube-proxy has tens of thousands of rules there.
_NAT = "nat"
_APPEND = b"-A "


class Table:
    """``name``; ``policies``: of the built-in chains.

    ``own``: the chains of flannelpy.  Their rules are not kept: the guard knows them, and they may be thousands.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.policies: dict[str, str] = {}
        self.own: set[str] = set()
        self._lines: dict[str, list[str]] = {}

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same rules."""
        return isinstance(other, Table) and vars(self) == vars(other)

    def __hash__(self) -> int:
        """By its name."""
        return hash(self.name)

    def take(self, line: str) -> None:
        """Add a line of iptables-save."""
        if line.startswith(":"):
            name, policy, *_ = [*line[1:].split(), ""]
            self._lines.setdefault(name, [])
            if policy != "-":
                self.policies[name] = policy
            elif OWN_CHAIN.fullmatch(name.encode()):
                self.own.add(name)
        elif line.startswith("-A "):
            self._lines.setdefault(line.split(" ", 2)[1], []).append(line)

    def rules(self, own: Mapping[str, Verdict]) -> Mapping[str, Rules]:
        """The rules of each chain.  ``own``: chains of flannelpy, and what a jump there does."""
        chains = {**dict.fromkeys(self._lines, Verdict.JUMP), **own}
        return {name: Rules(lines, chains) for name, lines in self._lines.items()}


class Rules:
    """The rules of one chain, read when they are asked for."""

    def __init__(self, lines: list[str], chains: Mapping[str, Verdict]) -> None:
        self._lines = lines
        self._chains = chains

    def __iter__(self) -> Iterator[Rule]:
        """In their order."""
        return (_rule(line, self._chains) for line in self._lines)


class Tables:
    """All tables of one ``iptables-save`` in which the kernel accepts a DROP."""

    def __init__(self) -> None:
        self.found: list[Table] = []
        self._current: Table | None = None
        self._rest = b""

    def feed(self, chunk: bytes) -> None:
        """Take the next part of the output."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if _is_of_own_chain(line):
                continue
            text = line.decode(errors="replace")
            if text.startswith("*"):
                self._begin(text[1:])
            elif self._current:
                self._current.take(text)

    def _begin(self, name: str) -> None:
        self._current = None if name == _NAT else Table(name)
        if self._current:
            self.found.append(self._current)


def _is_of_own_chain(line: bytes) -> bool:
    found = OWN_CHAIN.match(line, len(_APPEND)) if line.startswith(_APPEND) else None
    return found is not None and line.startswith(b" ", found.end())


def _rule(line: str, chains: Mapping[str, Verdict]) -> Rule:
    words = _words(line)[2:]
    conditions: list[Predicate] = []
    at = 0
    while at < len(words) and words[at] not in ("-j", "-g"):
        is_negated = words[at] == "!"
        at += is_negated
        end = _end_of_option(words, at)
        if condition := _condition(words[at:end]):
            conditions.append(packet_filter.negated(condition) if is_negated else condition)
        at = max(end, at + 1)
    jump, target = [*words[at : at + 2], "", ""][:2]
    if target in chains:
        verdict = Verdict.GOTO if jump == "-g" and chains[target] is Verdict.JUMP else chains[target]
    else:
        verdict = _VERDICTS.get(target, Verdict.CONTINUE)
    return Rule(line, tuple(conditions), verdict, target)


def _words(line: str) -> list[str]:
    """Those of a rule; one in quotes, which may hold spaces, keeps them, so it is taken for no option."""
    return _WORD.findall(line) if '"' in line else line.split()


def _end_of_option(words: list[str], start: int) -> int:
    """Behind the arguments of an option: each has one at least if it is known, and others end at the next option."""
    if start < len(words) and words[start] in {"--comment", "-m", *_NETWORKS, *_DEVICES}:
        return start + 2
    end = start + 1
    while end < len(words) and not words[end].startswith("-") and words[end] != "!":
        end += 1
    return end


def _condition(option: list[str]) -> Predicate | None:
    """That of one option with its arguments; None if it says nothing."""
    name, value = [*option, "", ""][:2]
    if name == "--comment" or (name == "-m" and value in _MODULES):
        return None
    if name in _DEVICES:
        return _DEVICES[name]([re.sub(r"\+$", "*", value)])
    if name in _NETWORKS:
        with suppress(ValueError):
            return _NETWORKS[name]([IPv4Network(value)])
    if name in ("--ctstate", "--state"):
        return packet_filter.states(value.split(","))
    if name in _PORTS and _SINGLE_PORTS.fullmatch(value):
        return packet_filter.few
    return packet_filter.unknown
