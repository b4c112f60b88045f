"""The wanted chains of flannelpy, what ``iptables-save`` shows of them, and the commands that restore them.  Pure.

A table may hold 30,000 foreign rules, so ``Listing`` takes the output in chunks and keeps only lines about the chains
that it looks for.  A chain is identified by its exact name, a jump by its target, never by a comment.
Source: iptables-save(8), iptables-restore(8).
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

_RETURN = b" -j RETURN\n"
# What iptables-save prints between ``-A CHAIN`` and the target of a rule that holds for all packets: comments at most.
_COMMENTS = rb"(?: -m comment --comment (?:\"(?:[^\"\\]|\\.)*\"|[^\" ]+))*"
# iptables-save escapes quotes and backslashes inside of a text in quotes, but no line end.
_QUOTED = re.compile(rb' "(?:[^"\\]|\\.)*"?', re.DOTALL)
# Stands for a line end in quotes: no rule can contain it.
_QUOTED_LINE_END = b"\0"
# More than this without a line end is not what iptables-save prints.
_LONGEST_LINE = 1 << 20
_END_BYTES = 200


class Place(enum.Enum):
    """The place that a jump must have among the foreign rules of its hook."""

    FIRST = enum.auto()  # before all of them
    LAST = enum.auto()  # behind all of them that a packet reaches: a RETURN for all packets ends them


class Jump(NamedTuple):
    """A rule in the chain ``hook`` that leads to a chain of flannelpy; ``match`` as iptables-save prints it."""

    hook: str
    match: str
    place: Place = Place.FIRST


class Chain(NamedTuple):
    """A chain with all its rules (``-A NAME …`` lines) in order, and the jumps to it."""

    name: str
    rules: bytes
    jumps: tuple[Jump, ...]

    def jump_lines(self) -> dict[bytes, Jump]:
        """Return the jumps, by the lines that iptables-save prints for them."""
        return {
            " ".join(["-A", jump.hook, *filter(None, [jump.match]), "-j", f"{self.name}\n"]).encode(): jump
            for jump in self.jumps
        }


class FoundJump(NamedTuple):
    """A jump in a listing, and its places in the hook; ``is_reached``: no RETURN for all packets stands before it."""

    line: bytes
    places: frozenset[Place]
    is_reached: bool


class Fault(NamedTuple):
    """A difference from the wanted state of a chain; ``interrupts``: whether packets passed by its rules."""

    chain: str
    what: str
    interrupts: bool = True


class Listing:
    """The output of one ``iptables-save -t TABLE``, as far as it concerns the chains called ``names``.

    ``hooks`` are the chains with jumps to chains of flannelpy.  ``own`` matches the names of all chains of flannelpy,
    whose jumps may precede each other, and ``prefix`` begins these names.
    ``rules``: the rules of each chain that exists.  ``own_chains``: the names of all chains of flannelpy.
    ``foreign``: the names of foreign chains that are listed like ``names``.
    ``found``: the rules given to ``look_for``, each as often as the table has it.
    """

    def __init__(
        self,
        names: Iterable[str],
        hooks: Collection[str],
        own: re.Pattern[bytes],
        prefix: str,
        foreign: Collection[str] = (),
    ) -> None:
        self.rules: dict[bytes, list[bytes]] = {}
        self.found: list[bytes] = []
        self.own_chains: list[bytes] = []
        self._names = {name.encode() for name in (*names, *foreign)}
        self._own = own
        self._texts = [text.encode() for text in (prefix, *foreign)]
        self._hooks = {hook.encode(): _Hook(hook.encode(), own) for hook in hooks}
        self._jumps: list[tuple[int, bytes, bytes]] = []
        self._wanted_lines: list[bytes] = []
        self._offset = 0
        self._rest = self._end = b""

    def look_for(self, line: bytes) -> None:
        """Collect this rule in ``found``."""
        self._wanted_lines.append(line)

    def feed(self, chunk: bytes) -> None:
        """Take the next part of the output.  Raises ValueError if it cannot come from iptables-save."""
        data = _one_line_per_rule(self._rest + chunk)
        end = data.rfind(b"\n") + 1
        lines, self._rest = data[:end], data[end:]
        if len(self._rest) > _LONGEST_LINE:
            raise ValueError("a line without an end")
        found = {start: line for text in self._texts for start, line in _lines_with(lines, text)}
        for start, line in sorted(found.items()):
            self._take(self._offset + start, line)
        for wanted in self._wanted_lines:
            self.found += [line for _, line in _lines_with(lines, wanted) if line == wanted]
        for hook in self._hooks.values():
            hook.feed(lines, self._offset)
        self._offset += len(lines)
        self._end = (self._end + lines)[-_END_BYTES:]

    @property
    def last_line(self) -> str:
        """The last line of the output, for an error message."""
        lines = (self._end + self._rest[:_END_BYTES]).strip().splitlines() or [b""]
        return lines[-1].decode(errors="replace")

    @property
    def is_complete(self) -> bool:
        """Whether the output is a whole table; an empty output is a table without rules."""
        return not (self._offset or self._rest) or b"\nCOMMIT\n" in self._end

    def jumps(self, target: bytes) -> list[FoundJump]:
        """Return all jumps to one chain."""
        return [self._found(line, at) for at, line, found in self._jumps if found == target]

    def _found(self, line: bytes, at: int) -> FoundJump:
        hook = self._hooks.get(line.split(b" ", 2)[1])
        return (
            FoundJump(line, hook.places(at), hook.is_reached(at)) if hook else FoundJump(line, frozenset(Place), True)
        )

    def last_number(self, hook: str, without: Collection[bytes]) -> int:
        """Return the number that a rule at place LAST of a hook gets once the jumps ``without`` are removed."""
        found, begin = self._hooks[hook.encode()], f"-A {hook} ".encode()
        before = [line for at, line, _ in self._jumps if at < found.last and line.startswith(begin)]
        return found.last_number - sum(line in without for line in before) + 1

    def _take(self, offset: int, line: bytes) -> None:
        command, _, rest = line.partition(b" ")
        if command.startswith(b":"):
            name = command[1:]
            if name in self._names:
                self.rules.setdefault(name, [])
            if self._own.fullmatch(name):
                self.own_chains.append(name)
        elif command == b"-A":
            chain = rest.partition(b" ")[0]
            if chain in self._names:
                self.rules.setdefault(chain, []).append(line)
            if (target := _target(line)) in self._names and _QUOTED_LINE_END not in line:
                self._jumps.append((offset, line, target))


class _Hook:
    """The positions of the foreign rules of one hook.

    ``first``: the offset of the first rule.  ``last``: that of the last rule which packets reach; its number is
    ``last_number``.
    """

    def __init__(self, name: bytes, own: re.Pattern[bytes]) -> None:
        self._own = own
        self._prefix = b"-A %b " % name
        self._end_rule = re.compile(b"-A %b%b%b" % (re.escape(name), _COMMENTS, _RETURN))
        self._rules = 0
        self._end: float = math.inf  # the offset of a RETURN for all packets
        self.first: float = math.inf
        self.last: float = -1
        self.last_number = 0

    def feed(self, lines: bytes, offset: int) -> None:
        """Take whole lines that begin at ``offset`` of the output."""
        if self.first == math.inf:
            self.first = self._first_foreign(lines, offset)
        if self._end == math.inf:
            returns = _lines_with(lines, _RETURN)
            end = next((at for at, line in returns if self._end_rule.fullmatch(line)), len(lines))
            self._take_last(lines[:end], offset)
            if end < len(lines):
                self._end = offset + end

    def places(self, at: int) -> frozenset[Place]:
        """Return the places of a jump at an offset."""
        places = {Place.FIRST} if at < self.first else set()
        return frozenset(places | ({Place.LAST} if self.last < at < self._end else set()))

    def is_reached(self, at: int) -> bool:
        """Whether packets come to a jump at an offset, as far as a RETURN for all packets decides."""
        return at < self._end

    def _first_foreign(self, lines: bytes, offset: int) -> float:
        found = (at for at, line in _lines_that_begin(lines, self._prefix) if not self._own.fullmatch(_target(line)))
        return next((offset + at for at in found), math.inf)

    def _take_last(self, lines: bytes, offset: int) -> None:
        ours_behind = 0
        for at, line in _lines_that_begin_reversed(lines, self._prefix):
            if not self._own.fullmatch(_target(line)):
                self.last = offset + at
                break
            ours_behind += 1
        else:
            self._rules += ours_behind
            return
        self._rules += lines.count(b"\n" + self._prefix) + lines.startswith(self._prefix)
        self.last_number = self._rules - ours_behind


def _one_line_per_rule(data: bytes) -> bytes:
    if b'"' not in data:
        return data
    return _QUOTED.sub(lambda quoted: quoted[0].replace(b"\n", _QUOTED_LINE_END), data)


def _lines_with(data: bytes, text: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that contain ``text``, each with its offset."""
    at = data.find(text)
    while at >= 0:
        start = data.rfind(b"\n", 0, at) + 1
        end = data.find(b"\n", at) + 1
        yield start, data[start:end]
        at = data.find(text, end)


def _lines_that_begin(data: bytes, text: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that begin with ``text``, each with its offset."""
    at = 0 if data.startswith(text) else data.find(b"\n" + text) + 1
    while at or data.startswith(text):
        end = data.find(b"\n", at)
        yield at, data[at : end + 1]
        at = data.find(b"\n" + text, end) + 1
        if not at:
            return


def _lines_that_begin_reversed(data: bytes, text: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that begin with ``text``, each with its offset, from the end of ``data`` to its start."""
    end = len(data)
    while end:
        at = data.rfind(b"\n" + text, 0, end) + 1
        if at or data.startswith(text):
            yield at, data[at : data.find(b"\n", at) + 1]
        end = max(at - 1, 0)


def _target(line: bytes) -> bytes:
    """Return the target of a rule; empty for a rule without one."""
    words = line.rstrip(b"\n").rsplit(b" ", 2)
    return words[2] if len(words) == 3 and words[1] in (b"-j", b"-g") else b""


class Repair:
    """The commands of iptables-restore for one table.  ``faults``: their reasons; ``removed``: chains they remove."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.removed: list[str] = []
        self._heads: list[bytes] = []
        self._removals: list[bytes] = []
        self._rules: list[bytes] = []
        self._inserts: list[bytes] = []
        self._inserts_last: list[tuple[Listing, str, bytes]] = []

    def text(self, table: str) -> bytes:
        """Return the input of iptables-restore, which the kernel applies as a whole; empty without any command."""
        removed = {b"-A" + line[2:] for line in self._removals}
        last = [_insert(line, hook, found.last_number(hook, removed)) for found, hook, line in self._inserts_last]
        commands = [*self._heads, *self._removals, *self._rules, *last, *self._inserts]
        return b"".join([b"*%b\n" % table.encode(), *commands, b"COMMIT\n"]) if commands else b""

    def keep(self, listing: Listing, chain: Chain) -> None:
        """Add or restore the chain and its jumps."""
        name = chain.name.encode()
        present = listing.rules.get(name)
        if present is None or b"".join(present) != chain.rules:
            self.faults.append(Fault(chain.name, "it was removed" if present is None else "it was changed"))
            self._heads.append(b":%b - [0:0]\n" % name)
            self._rules.append(chain.rules)
        jumps, wanted = listing.jumps(name), chain.jump_lines()
        for line, jump in wanted.items():
            found = [each for each in jumps if each.line == line]
            if len(found) == 1 and jump.place in found[0].places:
                continue
            for each in found:
                self.remove_rule(each.line)
            self._insert(listing, line, jump)
            if present is not None:
                self.faults.append(_fault(chain.name, jump, found))
        for each in jumps:
            if each.line not in wanted:
                self.faults.append(Fault(chain.name, "another jump led there", interrupts=False))
                self.remove_rule(each.line)

    def _insert(self, listing: Listing, line: bytes, jump: Jump) -> None:
        if jump.place is Place.FIRST:
            self._inserts.append(_insert(line, jump.hook, 1))
        else:
            self._inserts_last.append((listing, jump.hook, line))

    def create(self, name: str) -> None:
        """Create an empty foreign chain."""
        self._heads.append(f"-N {name}\n".encode())

    def insert_first(self, hook: str, line: bytes) -> None:
        """Insert a rule before all others of a hook."""
        self._inserts.append(_insert(line, hook, 1))

    def removes(self, line: bytes) -> bool:
        """Whether a rule is removed."""
        return line.replace(b"-A", b"-D", 1) in self._removals

    def delete(self, name: str) -> None:
        """Delete a foreign chain, which must be empty."""
        self._removals.append(f"-X {name}\n".encode())
        self.removed.append(name)

    def removed_rules(self) -> list[str]:
        """Return the rules that ``remove_rule`` got, without their command."""
        return [
            line.decode(errors="replace").strip().removeprefix("-D ") for line in self._removals if line[:2] == b"-D"
        ]

    def remove_rule(self, line: bytes) -> None:
        """Remove a rule, given as the line of a listing."""
        self._removals.append(line.replace(b"-A", b"-D", 1))

    def remove(self, listing: Listing, name: str) -> None:
        """Remove the chain and all jumps to it, if it exists."""
        if name.encode() in listing.rules:
            for jump in listing.jumps(name.encode()):
                self.remove_rule(jump.line)
            self._removals.append(f"-F {name}\n-X {name}\n".encode())
            self.removed.append(name)


def _insert(line: bytes, hook: str, number: int) -> bytes:
    return line.replace(f"-A {hook}".encode(), f"-I {hook} {number}".encode(), 1)


def _fault(chain: str, jump: Jump, found: Sequence[FoundJump]) -> Fault:
    """Return what is wrong with a jump that was found elsewhere, or not exactly once."""
    what = f"its jump in {jump.hook}"
    if not found:
        return Fault(chain, f"{what} was removed")
    if not any(each.is_reached for each in found):
        return Fault(chain, f"{what} was moved behind a RETURN for all packets")
    if len(found) > 1:
        return Fault(chain, f"{what} was repeated", interrupts=False)
    if jump.place is Place.FIRST:
        return Fault(chain, f"{what} was moved behind foreign rules")
    return Fault(chain, f"{what} no longer stood last", interrupts=False)
