"""What the chains at one hook of the kernel do with the packets between containers of different hosts.  Pure.

The packets are a set, so a rule matches all of them, none, or perhaps some: a match that this module does not know may
match any of them.  A rule that names single ports matches few: what it accepts makes no other drop less certain.
Source: iptables(8), iptables-extensions(8), nft(8).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from ipaddress import IPv4Network
from typing import NamedTuple


class Match(enum.IntEnum):
    """How many of the packets a rule matches.  Of several conditions, the smallest value holds."""

    NONE = 0
    FEW = 1
    SOME = 2  # or all, or none: unknown
    ALL = 3


class Verdict(enum.Enum):
    """What a rule does with the packets that it matches."""

    CONTINUE = enum.auto()
    ACCEPT = enum.auto()
    DROP = enum.auto()
    RETURN = enum.auto()
    JUMP = enum.auto()
    GOTO = enum.auto()
    UNKNOWN = enum.auto()  # another program decides, or a map that was not listed


class Addresses(NamedTuple):
    """The addresses inside a network and outside another one; ``inside`` is None for any address."""

    inside: IPv4Network | None
    outside: IPv4Network | None = None

    def match(self, networks: Iterable[IPv4Network]) -> Match:
        """How many of the addresses are in one of the networks."""
        if self.inside is None:
            return Match.SOME
        overlapping = [
            one for one in networks if one.overlaps(self.inside) and not (self.outside and one.subnet_of(self.outside))
        ]
        if any(self.inside.subnet_of(one) for one in overlapping):
            return Match.ALL
        return Match.SOME if overlapping else Match.NONE


class Packets(NamedTuple):
    """New packets that go one way through a hook.

    ``incoming``, ``outgoing``: the devices by which they may come and go; empty if unknown, None where there is none.
    ``is_tracked``: whether their connections are tracked when they come to the hook.
    """

    source: Addresses
    destination: Addresses
    incoming: tuple[str, ...] | None
    outgoing: tuple[str, ...] | None
    is_tracked: bool = True


Predicate = Callable[[Packets], Match]


class Rule(NamedTuple):
    """``text``: as its program lists it.  ``target``: the chain of a JUMP or GOTO."""

    text: str
    conditions: tuple[Predicate, ...]
    verdict: Verdict
    target: str = ""

    def match(self, packets: Packets) -> Match:
        """How many of the packets it matches."""
        return min((condition(packets) for condition in self.conditions), default=Match.ALL)


class Drop(NamedTuple):
    """``by``: a rule, or the policy of a chain.  ``is_certain``: no packet passes, but for few."""

    by: str
    is_certain: bool


def unknown(_: Packets) -> Match:
    """A condition that may match any packet."""
    return Match.SOME


def few(_: Packets) -> Match:
    """A condition on single ports."""
    return Match.FEW


def never(_: Packets) -> Match:
    """A condition that matches no packet of ours."""
    return Match.NONE


def always(_: Packets) -> Match:
    """A condition that matches all packets of ours."""
    return Match.ALL


def negated(condition: Predicate) -> Predicate:
    """The opposite; that of FEW is unknown."""
    opposite = {Match.NONE: Match.ALL, Match.ALL: Match.NONE}
    return lambda packets: opposite.get(condition(packets), Match.SOME)


def source(networks: Sequence[IPv4Network]) -> Predicate:
    """The source address is in one of the networks."""
    return lambda packets: packets.source.match(networks)


def destination(networks: Sequence[IPv4Network]) -> Predicate:
    """The destination address is in one of the networks."""
    return lambda packets: packets.destination.match(networks)


def incoming(patterns: Sequence[str]) -> Predicate:
    """The device is one of the patterns, each a name or the begin of names and ``*``."""
    return lambda packets: _match_devices(packets.incoming, patterns)


def outgoing(patterns: Sequence[str]) -> Predicate:
    """The device is one of the patterns."""
    return lambda packets: _match_devices(packets.outgoing, patterns)


def states(names: Iterable[str]) -> Predicate:
    """The connection has one of the states; that of our packets is new."""
    found = {name.lower() for name in names}
    known = Match.ALL if "new" in found else Match.NONE
    if not found <= {"new", "established", "related", "invalid"}:
        known = max(known, Match.SOME)
    return lambda packets: known if packets.is_tracked else Match.SOME


def _match_devices(names: tuple[str, ...] | None, patterns: Sequence[str]) -> Match:
    if names is None:
        return Match.NONE
    found = {any(_is_like(name, pattern) for pattern in patterns) for name in names}
    return Match.SOME if len(found) != 1 else Match.ALL if found == {True} else Match.NONE


def _is_like(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


class Walk:
    """One way of packets through a base chain; ``chains`` has the rules of each chain, read as they are needed."""

    def __init__(self, chains: Mapping[str, Iterable[Rule]], packets: Packets) -> None:
        self._chains = chains
        self._packets = packets
        self._passes = False  # some packets, and not only few
        self._drops: list[tuple[str, bool]] = []  # by what, and whether it drops all that come to it
        self._through: dict[tuple[str, bool], bool] = {}

    def run(self, chain: str, policy: str) -> Generator[None, None, Drop | None]:
        """What drops the packets, if anything does.  It pauses after each rule.

        ``policy``: what drops packets that come to the end of the chain; empty if they pass.
        """
        if (yield from self._walk(chain, is_few=False)):
            if policy:
                self._drops.append((policy, True))
            else:
                self._passes = True
        if not self._drops:
            return None
        if self._passes:
            return Drop(self._drops[0][0], is_certain=False)
        return Drop(next((by for by, is_all in self._drops if is_all), self._drops[0][0]), is_certain=True)

    def _walk(self, chain: str, *, is_few: bool) -> Generator[None, None, bool]:
        """Whether packets may come back from a chain.  Each chain is walked once for all jumps to it."""
        if (chain, is_few) in self._through:
            return self._through[chain, is_few]
        self._through[chain, is_few] = True  # of a loop, which the kernel refuses
        returns = False
        for rule in self._chains.get(chain, ()):
            yield
            match = rule.match(self._packets)
            if match is Match.NONE:
                continue
            leaves, comes_back = yield from self._apply(rule, match, is_few=is_few or match is Match.FEW)
            returns |= comes_back
            if leaves and match is Match.ALL:
                break
        else:
            returns = True
        self._through[chain, is_few] = returns
        return returns

    def _apply(self, rule: Rule, match: Match, *, is_few: bool) -> Generator[None, None, tuple[bool, bool]]:
        """Whether the packets that match leave the chain, and whether some of them may return from it."""
        if rule.verdict is Verdict.CONTINUE:
            return False, False
        if rule.verdict is Verdict.RETURN:
            return True, True
        if rule.verdict in (Verdict.JUMP, Verdict.GOTO):
            comes_back = yield from self._walk(rule.target, is_few=is_few)
            is_goto = rule.verdict is Verdict.GOTO
            return is_goto or not comes_back, is_goto and comes_back
        if rule.verdict is not Verdict.ACCEPT:
            self._drops.append((rule.text, match is Match.ALL))
        if rule.verdict is not Verdict.DROP and not is_few:
            self._passes = True
        return True, False
