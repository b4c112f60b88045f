"""Copies one network from etcd v2 to v3.

Each key is one line on stdout, and the last line has the numbers.  v2 is only read.  copy_plan.py decides about each
key, and every write is conditional, so a key that a host writes meanwhile stays.

With -follow, the copies are kept equal until a signal ends the command, or until v2 has no network config any more:
changes, renewals, expirations and deletions of leases in v2 are followed, and a copy that goes away in v3 is made
again while v2 has the lease.  Without a config in v2 the change-over is over, and the copies are left to expire.

Before each write, the lease is read in v2.  Its remaining time counts from the beginning of that request: an event can
be late, and a list can be older than what another copy-to-v3 has written.
Counterpart: none.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, Protocol

import click

from flannelpy import logs
from flannelpy.causes import Causes
from flannelpy.errors import (
    ApiSwitchedOff,
    CompareFailed,
    ConfigError,
    HistoryGone,
    KeyExists,
    KeyNotFound,
    RegistryError,
)
from flannelpy.foreign import shown
from flannelpy.leasing.retry import Backoff
from flannelpy.registry.base import Changes, Deleted, KeyValue, Put, Registry
from flannelpy.registry.entries import find, put
from flannelpy.subnet import copied
from flannelpy.subnet.copy_plan import EXPIRING, SHORTEST_LIFETIME, WRITING, Plan, Step, plan_config, plan_lease

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

# Interval of the reads of the config in v2 with -follow.
_CONFIG_SECONDS = 30.0
_WATCH_SECONDS = 30.0
# A key that was changed between reading and writing is read again so often.
_TRIES = 5
# After this time, a lease is looked at again that may only pass through its state, or could not be written.
_AGAIN_SECONDS = 3.0
# A write that took so much longer than expected is repeated with less time, or the copy would outlive its original.
_LATE_SECONDS = 0.5
# Steps that change nothing and are no news.
_QUIET = {Step.EQUAL, Step.MOVED}
# Steps that leave v3 different from v2.
_GAPS = (Step.CONFLICT, Step.FAILED)


class Target(Registry, Protocol):
    """A registry whose network config can be written."""

    async def find_config(self) -> tuple[str, int]:
        """Return the network config and its version; an empty text and 0 if there is none."""

    async def write_config(self, value: str, version: int) -> None:
        """Write the network config if it is at ``version``, 0 for none.  Raises CompareFailed."""


class _Read(NamedTuple):
    """An entry that was read in v2, and the time before it was."""

    entry: KeyValue
    at: float

    def seconds_left(self, later: float) -> int | None:
        """Return the lifetime that remains ``later`` seconds from now, rounded down; None for a reservation."""
        lifetime = self.entry.lifetime
        return math.floor((lifetime.seconds or 0) - (_now() + later - self.at)) if lifetime.expires else None


class NetworkCopy:
    """The copies in ``v3`` of what one network has in ``v2``."""

    def __init__(self, v2: Registry, v3: Target, network: str = "", say: Callable[[str], object] = click.echo) -> None:
        """``say`` prints a line."""
        self._v2 = v2
        self._v3 = v3
        self._prefix = f"{network}: " if network else ""
        self._say = say
        self._in_v2: dict[str, KeyValue] = {}
        self._in_v3: dict[str, KeyValue] = {}
        self._again: dict[str, float] = {}  # when to look at a lease again
        self._causes = Causes(math.inf)  # why keys were not written; the subjects are those of the two tables
        self._has_config = True
        self._config_read_at = 0.0
        self._is_complete = False  # all keys were copied, and printed, once
        self._failures = logs.FailureLog(log, "Error copying to etcd v3")
        self._backoff = Backoff(random.Random())  # noqa: S311 - nothing secret
        #: How often each step was made.
        self.counts: Counter[Step] = Counter()

    @property
    def has_gaps(self) -> bool:
        """Whether anything was not copied that should be in v3."""
        return any(self.counts[step] for step in _GAPS)

    async def make(self) -> None:
        """Copy once, and print a line about each key.  Raises KeyNotFound if v2 has no config, and RegistryError."""
        await self._copy_config(await self._v2.read_config())
        await self._copy_leases()

    async def follow(self) -> None:
        """Copy, and keep the copies equal until v2 has no config any more.  Raises KeyNotFound, ApiSwitchedOff."""
        while self._has_config:
            try:
                await self._follow_from_snapshots()
            except HistoryGone:
                await asyncio.sleep(self._backoff.pause())
            except (RegistryError, ConfigError) as error:
                if not self._is_complete and _is_without_config(error):
                    raise
                self._failures.failed(error)
                await asyncio.sleep(self._backoff.pause())
        self._print("there is no network config in v2: the copies in v3 stay until they expire")

    async def _follow_from_snapshots(self) -> None:
        if not self._is_complete:
            self.counts.clear()
        await self._look_for_config()
        if not self._has_config:
            return
        cursors = await self._copy_leases()
        watches = [
            asyncio.create_task(store.watch(cursor, _WATCH_SECONDS))
            for store, cursor in zip((self._v2, self._v3), cursors, strict=True)
        ]
        try:
            while self._has_config:
                await self._follow_watches(watches)
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)

    async def _follow_watches(self, watches: list[asyncio.Task[Changes]]) -> None:
        """Apply what the watches of v2 and v3 report next, and begin the next ones.  Raises RegistryError."""
        await asyncio.wait(watches, timeout=self._seconds_until_again(), return_when=asyncio.FIRST_COMPLETED)
        await self._look_for_config_if_due(watches[0])
        for number, (store, table) in enumerate(((self._v2, self._in_v2), (self._v3, self._in_v3))):
            if self._has_config and watches[number].done():
                changes = watches[number].result()
                watches[number] = asyncio.create_task(store.watch(changes.cursor, _WATCH_SECONDS))
                await self._apply(changes, table)
        if self._has_config:
            await self._look_again(_now())
        self._failures.recovered()
        self._backoff.reset()

    async def _apply(self, changes: Changes, table: dict[str, KeyValue]) -> None:
        for change in changes.changes:
            match change:
                case Put(entry):
                    name = entry.name
                    _note(table, name, entry)
                case Deleted(name):
                    _note(table, name, None)
            await self._copy_lease(name)

    # The config

    async def _look_for_config_if_due(self, watch: asyncio.Task[Changes]) -> None:
        """Read the config in v2 if that is due, or if a lease is gone there: everything may have been deleted."""
        is_gone = watch.done() and any(not isinstance(change, Put) for change in watch.result().changes)
        if is_gone or _now() - self._config_read_at >= _CONFIG_SECONDS:
            await self._look_for_config()

    async def _look_for_config(self) -> None:
        """Copy the config, or note that v2 has none any more.  Raises RegistryError."""
        try:
            config = await self._v2.read_config()
        except RegistryError as error:
            if not (self._is_complete and _is_without_config(error)):
                raise
            self._has_config = False
            return
        self._config_read_at = _now()
        await self._copy_config(config)

    async def _copy_config(self, config: str) -> None:
        for _ in range(_TRIES):
            found, version = await self._v3.find_config()
            plan = plan_config(config, found if version else None)
            if plan.step in WRITING:
                try:
                    await self._v3.write_config(copied.copy_of(config, 0), version)
                except CompareFailed:
                    continue
            self._report("config", plan)
            return
        self._report("config", _FAILED)

    # The leases

    async def _copy_leases(self) -> tuple[int, int]:
        """Copy all leases; return the cursors of v2 and v3.  Raises RegistryError."""
        seconds = await self._v2.snapshot()
        self._in_v2 = {entry.name: entry for entry in seconds.entries}
        firsts = await self._v3.snapshot()
        self._in_v3 = {entry.name: entry for entry in firsts.entries}
        for name in sorted(self._in_v2.keys() | self._in_v3.keys()):
            await self._copy_lease(name)
        if not self._is_complete:
            await self._look_again_once()
            self._print(", ".join(f"{self.counts[step]} {step.value}" for step in Step))
            self._is_complete = True
        return seconds.cursor, firsts.cursor

    async def _copy_lease(self, name: str) -> None:
        """Make the copy of a lease equal to v2, and report it, unless that has to wait."""
        if name in self._again:
            return
        plan = await self._make_equal(name)
        if plan and plan.may_pass:
            self._again.setdefault(name, _now() + _AGAIN_SECONDS)
        else:
            self._report_lease(name, plan)

    def _report_lease(self, name: str, plan: Plan | None) -> None:
        self._again.pop(name, None)
        if plan is None:
            self._causes.clear(name)
            return
        if plan.step is Step.FAILED:
            self._again[name] = _now() + _AGAIN_SECONDS
        self._report(name, plan)

    async def _make_equal(self, name: str) -> Plan | None:
        """Make the copy of a lease equal to v2, and return what was done."""
        for _ in range(_TRIES):
            plan = self._plan(name)
            if plan is None or plan.step not in WRITING:
                return plan
            read = await self._read_second(name)
            plan = self._plan(name)
            if plan is None or plan.step not in WRITING:
                return plan
            try:
                return await self._do(plan, name, read)
            except (CompareFailed, KeyExists, KeyNotFound):
                _note(self._in_v3, name, await find(self._v3, name))
        return _FAILED

    def _plan(self, name: str) -> Plan | None:
        return plan_lease(self._in_v2.get(name), self._in_v3.get(name))

    async def _read_second(self, name: str) -> _Read | None:
        """Read a lease in v2."""
        at = _now()
        entry = await find(self._v2, name)
        _note(self._in_v2, name, entry)
        return _Read(entry, at) if entry else None

    async def _do(self, plan: Plan, name: str, read: _Read | None) -> Plan:
        """Write to v3.  Raises CompareFailed, KeyExists, KeyNotFound if v3 has changed."""
        if read:
            return await self._write(plan, name, read)
        await self._remove(name)
        return plan

    async def _write(self, plan: Plan, name: str, read: _Read) -> Plan:
        """Write a copy, again if that took long; return what was done."""
        value = copied.copy_of(read.entry.value, read.entry.version)
        expected, is_written = 0.0, False
        for _ in range(_TRIES):
            began, seconds = _now(), read.seconds_left(expected)
            if seconds is None:
                self._in_v3[name] = await put(self._v3, name, value, None, self._in_v3.get(name))
                return plan._replace(reason="a reservation")
            if seconds < SHORTEST_LIFETIME:
                if is_written:
                    await self._remove(name)
                return EXPIRING
            self._in_v3[name] = await put(self._v3, name, value, seconds, self._in_v3.get(name))
            took, is_written = _now() - began, True
            if took < expected + _LATE_SECONDS:
                break
            expected = took
        return plan._replace(reason=f"expires in {seconds} s")

    async def _remove(self, name: str) -> None:
        await self._v3.compare_and_delete(name, self._in_v3[name].version)
        _note(self._in_v3, name, None)

    # What may be different a moment later

    def _seconds_until_again(self) -> float | None:
        return max(min(self._again.values()) - _now(), 0) if self._again else None

    async def _look_again_once(self) -> None:
        """Look again at what may pass by, so that all lines precede the last one."""
        if self._again:
            await asyncio.sleep(_AGAIN_SECONDS)
            await self._look_again(_now())

    async def _look_again(self, until: float) -> None:
        """Read the leases in both stores that are due by ``until``, and report what has lasted."""
        for name in [name for name, due in self._again.items() if due <= until]:
            await self._read_second(name)
            _note(self._in_v3, name, await find(self._v3, name))
            self._report_lease(name, await self._make_equal(name))

    # The output

    def _report(self, name: str, plan: Plan) -> None:
        """Count the step, and print it unless it is no news."""
        self.counts[plan.step] += 1
        if plan.step in WRITING or (self._is_complete and plan.step in _QUIET):
            self._causes.clear(name)
            is_news = plan.step in WRITING
        else:
            is_news = self._causes.is_new(plan, name)
        if is_news:
            self._print(f"{shown(name)}: {plan.step.value}{', ' if plan.reason else ''}{plan.reason}")

    def _print(self, line: str) -> None:
        self._say(f"{self._prefix}{line}")


_FAILED = Plan(Step.FAILED, f"another program changed it at each of {_TRIES} tries", may_pass=True)


def _is_without_config(error: Exception) -> bool:
    """Return whether ``error`` shows that v2 has no config: an endpoint that does not answer may have it."""
    return isinstance(error, KeyNotFound) or (isinstance(error, ApiSwitchedOff) and error.is_certain)


def _note(table: dict[str, KeyValue], name: str, entry: KeyValue | None) -> None:
    """Make ``entry`` the present one; None: there is none."""
    if entry:
        table[name] = entry
    else:
        table.pop(name, None)


def _now() -> float:
    return asyncio.get_running_loop().time()
