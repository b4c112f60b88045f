"""Chains of ours as they should be, what ``iptables-save`` shows of them, and the commands that restore them.  Pure.

A table may hold 30,000 foreign rules, so ``Listing`` takes the output in chunks and keeps only lines about the chains
that it was asked for.  A chain is known by its exact name, a jump by its target, never by a comment.
Source: iptables-save(8), iptables-restore(8).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

# More than this without a line end is not what iptables-save prints.
_LONGEST_LINE = 1 << 20
_END_BYTES = 200


class Jump(NamedTuple):
    """A rule of the built-in chain ``hook`` that leads to a chain of ours; ``match`` as iptables-save prints it."""

    hook: str
    match: str


class Chain(NamedTuple):
    """A chain with all its rules (``-A NAME …`` lines) in order, and the jumps, which precede all foreign rules."""

    name: str
    rules: bytes
    jumps: tuple[Jump, ...]

    def jump_lines(self) -> dict[bytes, str]:
        """The jumps as iptables-save prints them, each with its hook."""
        return {
            " ".join(["-A", *filter(None, jump), "-j", f"{self.name}\n"]).encode(): jump.hook for jump in self.jumps
        }


class FoundJump(NamedTuple):
    """A jump in a listing; ``in_front``: no foreign rule of its hook precedes it."""

    line: bytes
    target: bytes
    in_front: bool


class Fault(NamedTuple):
    """What differs from the wanted state of a chain."""

    chain: str
    what: str


class Listing:
    """The output of one ``iptables-save -t TABLE``, as far as it concerns the chains called ``names``.

    ``own`` matches the names of all chains of ours, whose jumps may precede each other, and ``prefix`` begins them.
    ``rules``: the rules of each chain that exists.  ``own_chains``: all chains of ours.
    ``found``: the rules that were looked for, each as often as it is there.
    """

    def __init__(self, names: Iterable[str], hooks: Collection[str], own: re.Pattern[bytes], prefix: str) -> None:
        self.rules: dict[bytes, list[bytes]] = {}
        self.found: list[bytes] = []
        self.own_chains: list[bytes] = []
        self._names = {name.encode() for name in names}
        self._own = own
        self._prefix = prefix.encode()
        self._foreign: dict[bytes, int | None] = {f"-A {hook} ".encode(): None for hook in hooks}
        self._jumps: list[tuple[int, bytes, bytes]] = []
        self._wanted_lines: list[bytes] = []
        self._offset = 0
        self._rest = self._end = b""

    def look_for(self, line: bytes) -> None:
        """Collect this rule in ``found``."""
        self._wanted_lines.append(line)

    def feed(self, chunk: bytes) -> None:
        """Take the next part of the output.  Raises ValueError when it cannot come from iptables-save."""
        data = self._rest + chunk
        end = data.rfind(b"\n") + 1
        lines, self._rest = data[:end], data[end:]
        if len(self._rest) > _LONGEST_LINE:
            raise ValueError("a line without an end")
        for start, line in _lines_with(lines, self._prefix):
            self._take(self._offset + start, line)
        for wanted in self._wanted_lines:
            self.found += [line for _, line in _lines_with(lines, wanted) if line == wanted]
        for hook, at in self._foreign.items():
            if at is None:
                self._foreign[hook] = self._first_foreign(hook, lines)
        self._offset += len(lines)
        self._end = (self._end + lines)[-_END_BYTES:]

    @property
    def last_line(self) -> str:
        """The end of the output, for an error message."""
        lines = (self._end + self._rest[:_END_BYTES]).strip().splitlines() or [b""]
        return lines[-1].decode(errors="replace")

    @property
    def is_complete(self) -> bool:
        """Whether the output is a whole table, or nothing, which is a table without rules."""
        return not (self._offset or self._rest) or b"\nCOMMIT\n" in self._end

    def jumps(self, target: bytes) -> list[FoundJump]:
        """All jumps to one chain."""
        found = (jump for jump in self._jumps if jump[2] == target)
        return [FoundJump(line, target, at < self._foreign_at(line)) for at, line, _ in found]

    def _foreign_at(self, line: bytes) -> int:
        at = self._foreign.get(b"-A %b " % line.split(b" ", 2)[1])
        return self._offset if at is None else at

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
            elif (target := _target(line)) in self._names:
                self._jumps.append((offset, line, target))

    def _first_foreign(self, hook: bytes, lines: bytes) -> int | None:
        """Where the first rule of the hook is that is no jump of ours."""
        for start, line in _lines_that_begin(lines, hook):
            if not self._own.fullmatch(_target(line)):
                return self._offset + start
        return None


def _lines_with(data: bytes, text: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines that contain ``text``, and where each begins."""
    at = data.find(text)
    while at >= 0:
        start = data.rfind(b"\n", 0, at) + 1
        end = data.find(b"\n", at) + 1
        yield start, data[start:end]
        at = data.find(text, end)


def _lines_that_begin(data: bytes, text: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines that begin with ``text``, and where."""
    at = 0 if data.startswith(text) else data.find(b"\n" + text) + 1
    while at or data.startswith(text):
        end = data.find(b"\n", at)
        yield at, data[at : end + 1]
        at = data.find(b"\n" + text, end) + 1
        if not at:
            return


def _target(line: bytes) -> bytes:
    """The chain that a rule leads to; empty for other rules."""
    words = line.rstrip(b"\n").rsplit(b" ", 2)
    return words[2] if len(words) == 3 and words[1] in (b"-j", b"-g") else b""


class Repair:
    """What iptables-restore has to do with one table.  ``faults``: why; ``removed``: chains that go."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.removed: list[str] = []
        self._heads: list[bytes] = []
        self._removals: list[bytes] = []
        self._rules: list[bytes] = []
        self._inserts: list[bytes] = []

    def text(self, table: str) -> bytes:
        """The input of iptables-restore, which does all of it at once or nothing; empty when nothing is to do."""
        commands = [*self._heads, *self._removals, *self._rules, *self._inserts]
        return b"".join([b"*%b\n" % table.encode(), *commands, b"COMMIT\n"]) if commands else b""

    def keep(self, listing: Listing, chain: Chain) -> None:
        """Make the chain and its jumps what they should be."""
        name = chain.name.encode()
        present = listing.rules.get(name)
        if present is None or b"".join(present) != chain.rules:
            self.faults.append(Fault(chain.name, "it was removed" if present is None else "it was changed"))
            self._heads.append(b":%b - [0:0]\n" % name)
            self._rules.append(chain.rules)
        jumps, wanted = listing.jumps(name), chain.jump_lines()
        for line, hook in wanted.items():
            fault = self._keep_jump(line, hook, [jump for jump in jumps if jump.line == line])
            if fault and present is not None:
                self.faults.append(Fault(chain.name, f"its jump in {hook} {fault}"))
        for jump in jumps:
            if jump.line not in wanted:
                self.faults.append(Fault(chain.name, "another jump led there"))
                self.remove_rule(jump.line)

    def _keep_jump(self, line: bytes, hook: str, found: list[FoundJump]) -> str:
        """What is wrong with a jump, if anything."""
        if len(found) == 1 and found[0].in_front:
            return ""
        for jump in found:
            self.remove_rule(jump.line)
        self._insert(line, hook)
        return "was moved behind foreign rules" if len(found) == 1 else "was repeated" if found else "was removed"

    def _insert(self, line: bytes, hook: str) -> None:
        self._inserts.append(line.replace(f"-A {hook}".encode(), f"-I {hook} 1".encode(), 1))

    def removed_rules(self) -> list[str]:
        """The rules of ``remove_rule``, without their command."""
        return [
            line.decode(errors="replace").strip().removeprefix("-D ") for line in self._removals if line[:2] == b"-D"
        ]

    def remove_rule(self, line: bytes) -> None:
        """Remove a rule that a listing shows."""
        self._removals.append(line.replace(b"-A", b"-D", 1))

    def remove(self, listing: Listing, name: str) -> None:
        """Remove the chain and all jumps to it, if it exists."""
        if name.encode() in listing.rules:
            for jump in listing.jumps(name.encode()):
                self.remove_rule(jump.line)
            self._removals.append(f"-F {name}\n-X {name}\n".encode())
            self.removed.append(name)
