"""What the chains at one hook of the kernel do with packets between containers of different hosts, or hosts.  Pure.

The packets are a set, so a rule matches all of them, none, or perhaps some: a match that this module does not know may
match any of them.  For packets of containers, a rule that names single ports matches few: what it accepts, or sends
back, makes no other drop less certain; and a match of malformed or rare packets only matches none.  Of the datagrams
between hosts, ports and protocol are known, and each one counts.
Source: iptables(8), iptables-extensions(8), nft(8).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import NamedTuple

from flannelpy.netfilter.address_ranges import ANYWHERE, AddressRanges

#: The states of the connections that are followed.
NEW, ESTABLISHED = "new", "established"
_STATES = {NEW, ESTABLISHED, "related", "invalid"}
# Source: IPPROTO_UDP in include/uapi/linux/in.h of the kernel.
_UDP = {"udp", "17"}
#: A device of containers that does not exist yet: no rule names it.
UNNAMED = ""


class Match(enum.IntEnum):
    """How many of the packets a rule matches.  Of several conditions, the smallest value holds."""

    NONE = 0
    FEW = 1
    SOME = 2  # or all, or none: unknown
    ALL = 3


class Verdict(enum.Enum):
    """What a rule does with the packets that it matches."""

    CONTINUE = enum.auto()  # the rule does something else with the packets, which then meet the next rule
    ACCEPT = enum.auto()
    DROP = enum.auto()
    RETURN = enum.auto()
    JUMP = enum.auto()
    GOTO = enum.auto()
    UNKNOWN = enum.auto()  # another program decides, or a map that was not listed


class Packets(NamedTuple):
    """Packets that go one way through a hook.

    ``incoming``, ``outgoing``: the devices by which they may come and go; empty if unknown, None where there is none.
    ``is_tracked``: whether their connections are tracked when they come to the hook.  ``state``: of their connections.
    ``port``: the source and destination port of UDP datagrams between hosts, each of which counts, and of which only
    addresses, devices, protocol and ports are evaluated; None for packets of containers, which have any protocol.
    """

    source: AddressRanges
    destination: AddressRanges
    incoming: tuple[str, ...] | None
    outgoing: tuple[str, ...] | None
    is_tracked: bool = True
    state: str = NEW
    port: int | None = None

    @property
    def is_between_hosts(self) -> bool:
        """Whether they are datagrams between hosts."""
        return self.port is not None


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


#: The rules of each chain by its name.
Chains = Mapping[str, Iterable[Rule]]


class Drop(NamedTuple):
    """What drops packets on their way through a base chain.

    ``by``: a rule, or the policy of a chain.  ``is_certain``: at most few of the packets pass the chain.
    """

    by: str
    is_certain: bool


def unknown(_: Packets) -> Match:
    """Match perhaps any packet."""
    return Match.SOME


def few(_: Packets) -> Match:
    """Match packets of single ports."""
    return Match.FEW


def never(_: Packets) -> Match:
    """Match no packet of ours."""
    return Match.NONE


def always(_: Packets) -> Match:
    """Match all packets of ours."""
    return Match.ALL


def rare(packets: Packets) -> Match:
    """Match only malformed and rare packets."""
    return Match.SOME if packets.is_between_hosts else Match.NONE


def incomplete(packets: Packets) -> Match:
    """Match like the other conditions of a rule, of which a listing may lack one."""
    return Match.SOME if packets.is_between_hosts else Match.ALL


def negated(condition: Predicate) -> Predicate:
    """Return the opposite of a condition; that of FEW is unknown."""
    opposite = {Match.NONE: Match.ALL, Match.ALL: Match.NONE}
    return lambda packets: opposite.get(condition(packets), Match.SOME)


def any_of(conditions: Sequence[Predicate]) -> Predicate:
    """Return the condition that one of several is met, of which a packet meets one at most."""
    return lambda packets: max((condition(packets) for condition in conditions), default=Match.NONE)


def source(ranges: AddressRanges) -> Predicate:
    """Return the condition that the source address is one of these."""
    return lambda packets: _match_addresses(packets.source, ranges)


def destination(ranges: AddressRanges) -> Predicate:
    """Return the condition that the destination address is one of these."""
    return lambda packets: _match_addresses(packets.destination, ranges)


def _match_addresses(ours: AddressRanges, ranges: AddressRanges) -> Match:
    if not ours.is_comparable(ranges):
        return Match.SOME
    if not ours.overlaps(ranges):
        return Match.NONE
    return Match.ALL if ours.is_within(ranges) else Match.SOME


def protocol(names: Sequence[str]) -> Predicate:
    """Return the condition that the transport protocol is one of these, each a name or a number."""
    found = Match.ALL if _UDP & set(map(str.lower, names)) else Match.NONE
    return lambda packets: found if packets.is_between_hosts else Match.SOME


def ports(ranges: Sequence[tuple[int, int]]) -> Predicate:
    """Return the condition that the source port, or the destination port, is in one of the ranges, first to last."""
    amount = Match.FEW if all(first == last for first, last in ranges) else Match.SOME

    def match(packets: Packets) -> Match:
        if packets.port is None:
            return amount
        return Match.ALL if any(first <= packets.port <= last for first, last in ranges) else Match.NONE

    return match


def source_type(names: Sequence[str]) -> Predicate:
    """Return the condition that the source address has one of the types of routes, such as local or unicast."""
    return lambda packets: Match.SOME if packets.is_between_hosts or packets.source == ANYWHERE else _match_types(names)


def destination_type(names: Sequence[str]) -> Predicate:
    """Return the condition that the destination address has one of the types of routes.

    Of datagrams between hosts, none that leaves this host goes to an address of this host.
    """

    def match(packets: Packets) -> Match:
        if not packets.is_between_hosts:
            return _match_types(names)
        is_leaving = packets.outgoing is not None
        return Match.NONE if is_leaving and {name.lower() for name in names} == {"local"} else Match.SOME

    return match


def _match_types(names: Sequence[str]) -> Match:
    """Containers and other hosts have unicast addresses, none of which is an address of this host."""
    return Match.ALL if "unicast" in map(str.lower, names) else Match.NONE


def incoming(patterns: Sequence[str]) -> Predicate:
    """Return the condition on the device, which is one of the patterns: names, or the begin of names and ``*``."""
    return lambda packets: _match_devices(packets.incoming, patterns)


def outgoing(patterns: Sequence[str]) -> Predicate:
    """Return the condition on the device by which packets go."""
    return lambda packets: _match_devices(packets.outgoing, patterns)


def states(names: Iterable[str]) -> Predicate:
    """Return the condition that the connection has one of the states."""
    found = {name.lower() for name in names}
    other = Match.NONE if found <= _STATES else Match.SOME

    def match(packets: Packets) -> Match:
        if packets.is_between_hosts or not packets.is_tracked:
            return Match.SOME
        return Match.ALL if packets.state in found else other

    return match


# What begins a TCP connection, and what follows; RST is rare.
_FLAGS = {
    NEW: (frozenset({"syn"}),),
    ESTABLISHED: (
        frozenset({"ack"}),
        frozenset({"ack", "psh"}),
        frozenset({"ack", "fin"}),
        frozenset({"ack", "syn"}),
    ),
}


def tcp_flags(mask: Iterable[str], wanted: Iterable[str]) -> Predicate:
    """Return the condition that a TCP segment has the wanted flags, and no others of the mask; "none" is no flag."""
    masked, expected = frozenset(mask), frozenset(wanted) - {"none"}
    return tcp_flags_that(lambda flags: flags & masked == expected)


def tcp_flags_that(is_wanted: Callable[[frozenset[str]], bool]) -> Predicate:
    """Return the condition that the flags of a TCP segment pass a test."""
    found = {state: {is_wanted(flags) for flags in each} for state, each in _FLAGS.items()}
    return lambda packets: Match.NONE if packets.is_between_hosts else _match_found(found[packets.state])


def _match_found(found: set[bool]) -> Match:
    return Match.SOME if len(found) != 1 else Match.ALL if found == {True} else Match.NONE


def _match_devices(names: tuple[str, ...] | None, patterns: Sequence[str]) -> Match:
    if names is None:
        return Match.NONE
    return _match_found({any(_is_like(name, pattern) for pattern in patterns) for name in names})


def _is_like(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


class _Frame:
    """A chain that is being walked.

    ``is_few``: only few packets are left in it.  ``back``: how many have returned from it.
    ``jump``: the match of the rule that leads to the next frame, and its verdict.
    """

    def __init__(self, name: str, rules: Iterable[Rule], *, is_few: bool) -> None:
        self.key = name, is_few
        self.rules = iter(rules)
        self.is_few = is_few
        self.is_done = False
        self.back = Match.NONE
        self.jump = Match.NONE, Verdict.JUMP

    def amount(self, match: Match) -> Match:
        """FEW or SOME."""
        return Match.FEW if self.is_few or match is Match.FEW else Match.SOME

    def leave(self, match: Match, stays: Match = Match.NONE) -> None:
        """Take out the packets that a rule matches, but for those that stay."""
        if match is Match.ALL:
            self.is_few |= stays is Match.FEW
            self.is_done = stays is Match.NONE

    def return_(self, amount: Match) -> None:
        """Note that packets return from the chain."""
        self.back = max(self.back, amount)

    def take_back(self, back: Match) -> None:
        """Continue with the packets that came back from the chain of the jump."""
        match, verdict = self.jump
        if verdict is Verdict.GOTO:
            self.return_(back)
        self.leave(match, Match.NONE if verdict is Verdict.GOTO else back)


class Walk:
    """One way of packets through a base chain; ``chains`` has the rules of each chain, read as they are needed.

    It keeps a stack of its own, because iptables-legacy takes chains that are nested by the hundred.
    ``is_any_effect_a_drop``: a rule that logs, counts or changes packets counts like one that drops them.
    """

    def __init__(self, chains: Chains, packets: Packets, *, is_any_effect_a_drop: bool = False) -> None:
        self._chains = chains
        self._packets = packets
        self._is_any_effect_a_drop = is_any_effect_a_drop
        self._passes = False  # some packets, and not only few
        self._drops: list[tuple[str, bool]] = []  # by what, and whether it drops all that come to it
        self._back: dict[tuple[str, bool], Match] = {}  # what returns from a chain, which is walked once for all jumps
        self._frames: list[_Frame] = []

    def run(self, chain: str, policy: str) -> Generator[None, None, Drop | None]:
        """Find what drops the packets, if anything does, with a pause after each rule.

        ``policy``: what drops packets that come to the end of the chain; empty if they pass.
        """
        self._enter((chain, False))
        yield from self._walk()
        self._end(self._back[chain, False], policy)
        if not self._drops:
            return None
        if self._passes:
            return Drop(self._drops[0][0], is_certain=False)
        return Drop(next((by for by, is_all in self._drops if is_all), self._drops[0][0]), is_certain=True)

    def _end(self, returned: Match, policy: str) -> None:
        if policy and returned is not Match.NONE:
            self._drops.append((policy, returned is not Match.FEW))
        elif returned is Match.SOME:
            self._passes = True

    def _walk(self) -> Generator[None, None, None]:
        while self._frames:
            frame = self._frames[-1]
            rule = None if frame.is_done else next(frame.rules, None)
            if rule is None:
                self._leave()
                continue
            yield
            if (match := rule.match(self._packets)) is not Match.NONE:
                self._apply(frame, rule, match)

    def _enter(self, key: tuple[str, bool]) -> None:
        chain, is_few = key
        self._back[key] = Match.FEW if is_few else Match.SOME  # of a loop, which the kernel refuses
        self._frames.append(_Frame(chain, self._chains.get(chain, ()), is_few=is_few))

    def _leave(self) -> None:
        frame = self._frames.pop()
        if not frame.is_done:
            frame.return_(frame.amount(Match.ALL))
        self._back[frame.key] = frame.back
        if self._frames:
            self._frames[-1].take_back(frame.back)

    def _apply(self, frame: _Frame, rule: Rule, match: Match) -> None:
        amount = frame.amount(match)
        if rule.verdict is Verdict.CONTINUE:
            self._drops += [(rule.text, False)] if self._is_any_effect_a_drop else []
            return
        if rule.verdict in (Verdict.JUMP, Verdict.GOTO):
            self._jump(frame, rule, match, is_few=amount is Match.FEW)
            return
        if rule.verdict is Verdict.RETURN:
            frame.return_(amount)
        elif rule.verdict is not Verdict.ACCEPT:
            self._drops.append((rule.text, match is Match.ALL and not frame.is_few))
        if rule.verdict in (Verdict.ACCEPT, Verdict.UNKNOWN):
            self._passes |= amount is Match.SOME
        frame.leave(match)

    def _jump(self, frame: _Frame, rule: Rule, match: Match, *, is_few: bool) -> None:
        frame.jump = match, rule.verdict
        key = rule.target, is_few
        if key in self._back:
            frame.take_back(self._back[key])
        else:
            self._enter(key)
