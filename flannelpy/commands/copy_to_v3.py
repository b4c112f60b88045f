"""copy-to-v3: copy config and leases of all networks from etcd's v2 store to its v3 store, for a change-over.

Each key is one line on stdout, and the last line has the numbers.  v2 is only read.  copy_plan.py decides about each
key, and every write is conditional, so a key that a host writes meanwhile stays.

With -follow, the copies are kept equal until a signal ends the command, or until v2 has no network config any more:
changes, renewals, expirations and deletions of leases in v2 are followed, and a copy that goes away in v3 is made
again while v2 has the lease.  Without a config in v2 the change-over is over, and the copies are left to expire.
Counterpart: none.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from collections import Counter
from contextlib import asynccontextmanager, suppress
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
from flannelpy.registry.connect import open_as
from flannelpy.registry.entries import find, put
from flannelpy.registry.etcd_v2 import EtcdV2Registry
from flannelpy.registry.etcd_v3 import EtcdV3Registry
from flannelpy.subnet import copied
from flannelpy.subnet.copy_plan import Plan, Step, plan_config, plan_lease
from flannelpy.tasks import run_together

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from flannelpy.options import Options

log = logging.getLogger(__name__)

# Interval of the reads of the config in v2 with -follow.
_CONFIG_SECONDS = 30.0
_WATCH_SECONDS = 30.0
# A key that was changed between reading and writing is read again so often.
_TRIES = 5
# Steps that change nothing and are no news.
_QUIET = {Step.EQUAL, Step.MOVED}


class Target(Registry, Protocol):
    """A registry whose network config can be written."""

    async def find_config(self) -> tuple[str, int]:
        """Return the network config and its version; an empty text and 0 if there is none."""

    async def write_config(self, value: str, version: int) -> None:
        """Write the network config if it is at ``version``, 0 for none.  Raises CompareFailed."""


class _Seen(NamedTuple):
    """An entry of v2, and the time at which its lifetime was read."""

    entry: KeyValue
    at: float


def run(options: Options, is_following: bool) -> int:
    """Copy the config and leases of all networks; return the exit code."""
    logs.configure(options.verbosity)
    try:
        return asyncio.run(_until_signalled(options) if is_following else _copy_all(options))
    except Exception as error:
        return logs.log_error(log, error)


async def _copy_all(options: Options) -> int:
    """Copy once; return 1 if anything is in conflict, else 0."""
    conflicts = 0
    for name in options.networks or ("",):
        async with _opened(options, name) as copy:
            await copy.make()
            conflicts += copy.counts[Step.CONFLICT]
    return min(conflicts, 1)


async def _until_signalled(options: Options) -> int:
    """Follow all networks until they end, or until SIGINT, SIGTERM or SIGHUP."""
    names = options.networks or ("",)
    task = asyncio.ensure_future(run_together(*(_follow(options, name) for name in names)))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        await task
    return 0


async def _follow(options: Options, name: str) -> None:
    async with _opened(options, name) as copy:
        await copy.follow()


@asynccontextmanager
async def _opened(options: Options, name: str) -> AsyncIterator[NetworkCopy]:
    """Open both stores of a network, which log lines name from now on."""
    logs.network.set(name)
    v2, v3 = open_as(EtcdV2Registry, options, name), open_as(EtcdV3Registry, options, name)
    try:
        yield NetworkCopy(v2, v3, name)
    finally:
        await v2.close()
        await v3.close()


class NetworkCopy:
    """The copies in ``v3`` of what one network has in ``v2``."""

    def __init__(self, v2: Registry, v3: Target, network: str = "", say: Callable[[str], object] = click.echo) -> None:
        """``say`` prints a line."""
        self._v2 = v2
        self._v3 = v3
        self._prefix = f"{network}: " if network else ""
        self._say = say
        self._seconds: dict[str, _Seen] = {}
        self._firsts: dict[str, KeyValue] = {}
        self._causes = Causes()  # of conflicts and ignored keys
        self._has_config = True
        self._config_read_at = 0.0
        self._is_complete = False  # all keys were copied, and printed, once
        self._failures = logs.FailureLog(log, "Error copying to etcd v3")
        self._backoff = Backoff(random.Random())  # noqa: S311 - nothing secret
        #: How often each step was made.
        self.counts: Counter[Step] = Counter()

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
                if not self._is_complete and isinstance(error, KeyNotFound | ApiSwitchedOff):
                    raise
                self._failures.failed(error)
                await asyncio.sleep(self._backoff.pause())
        self._print("there is no network config in v2: the copies in v3 stay until they expire")

    async def _follow_from_snapshots(self) -> None:
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
        await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED)
        await self._look_for_config_if_due(watches[0])
        for number, (store, note) in enumerate(((self._v2, self._note_second), (self._v3, self._note_first))):
            if self._has_config and watches[number].done():
                changes = watches[number].result()
                watches[number] = asyncio.create_task(store.watch(changes.cursor, _WATCH_SECONDS))
                await self._apply(changes, note)
        self._failures.recovered()
        self._backoff.reset()

    async def _apply(self, changes: Changes, note: Callable[[str, KeyValue | None], None]) -> None:
        for change in changes.changes:
            match change:
                case Put(entry):
                    name = entry.name
                    note(name, entry)
                case Deleted(name):
                    note(name, None)
            await self._copy_lease(name)

    # The config

    async def _look_for_config_if_due(self, watch: asyncio.Task[Changes]) -> None:
        """Read the config in v2 if that is due, or if a lease is gone there: everything may have been deleted."""
        is_gone = watch.done() and any(not isinstance(change, Put) for change in watch.result().changes)
        if is_gone or asyncio.get_running_loop().time() - self._config_read_at >= _CONFIG_SECONDS:
            await self._look_for_config()

    async def _look_for_config(self) -> None:
        """Copy the config, or note that v2 has none any more.  Raises RegistryError."""
        try:
            config = await self._v2.read_config()
        except (KeyNotFound, ApiSwitchedOff):
            if not self._is_complete:
                raise
            self._has_config = False
            return
        self._config_read_at = asyncio.get_running_loop().time()
        await self._copy_config(config)

    async def _copy_config(self, config: str) -> None:
        for _ in range(_TRIES):
            found, version = await self._v3.find_config()
            plan = plan_config(config, found)
            if plan.step in (Step.COPY, Step.UPDATE):
                try:
                    await self._v3.write_config(copied.copy_of(config, 0), version)
                except CompareFailed:
                    continue
            self._report("config", plan)
            return

    # The leases

    async def _copy_leases(self) -> tuple[int, int]:
        """Copy all leases; return the cursors of v2 and v3.  Raises RegistryError."""
        seconds = await self._v2.snapshot()
        now = asyncio.get_running_loop().time()
        self._seconds = {entry.name: _Seen(entry, now) for entry in seconds.entries}
        firsts = await self._v3.snapshot()
        self._firsts = {entry.name: entry for entry in firsts.entries}
        for name in sorted(self._seconds.keys() | self._firsts.keys()):
            await self._copy_lease(name)
        if not self._is_complete:
            self._print(", ".join(f"{self.counts[step]} {step.value}" for step in Step))
            self._is_complete = True
        return seconds.cursor, firsts.cursor

    def _note_second(self, name: str, entry: KeyValue | None) -> None:
        self._seconds.pop(name, None)
        if entry:
            self._seconds[name] = _Seen(entry, asyncio.get_running_loop().time())

    def _note_first(self, name: str, entry: KeyValue | None) -> None:
        self._firsts.pop(name, None)
        if entry:
            self._firsts[name] = entry

    async def _copy_lease(self, name: str) -> None:
        """Make the copy of a lease equal to v2."""
        for _ in range(_TRIES):
            seen = self._seconds.get(name)
            plan = plan_lease(seen.entry if seen else None, self._firsts.get(name))
            if plan is None:
                self._causes.clear(name)
                return
            try:
                await self._do(plan.step, name, seen)
            except (CompareFailed, KeyExists, KeyNotFound):
                self._note_first(name, await find(self._v3, name))
                continue
            self._report(name, self._with_lifetime(plan, seen))
            return

    async def _do(self, step: Step, name: str, seen: _Seen | None) -> None:
        """Write to v3.  Raises CompareFailed, KeyExists, KeyNotFound if v3 has changed."""
        first = self._firsts.get(name)
        if step is Step.REMOVE and first:
            await self._v3.compare_and_delete(name, first.version)
            self._note_first(name, None)
        elif step in (Step.COPY, Step.UPDATE) and seen:
            value = copied.copy_of(seen.entry.value, seen.entry.version)
            self._note_first(name, await put(self._v3, name, value, _seconds_left(seen), first))

    # The output

    def _with_lifetime(self, plan: Plan, seen: _Seen | None) -> Plan:
        if plan.step not in (Step.COPY, Step.UPDATE) or seen is None:
            return plan
        seconds = _seconds_left(seen)
        return Plan(plan.step, "a reservation" if seconds is None else f"expires in {seconds} s")

    def _report(self, name: str, plan: Plan) -> None:
        """Count the step, and print it unless it is no news."""
        self.counts[plan.step] += 1
        if plan.step in (Step.CONFLICT, Step.IGNORE):
            is_news = self._causes.is_new(plan, name)
        else:
            self._causes.clear(name)
            is_news = not self._is_complete or plan.step not in _QUIET
        if is_news:
            self._print(f"{shown(name)}: {plan.step.value}{', ' if plan.reason else ''}{plan.reason}")

    def _print(self, line: str) -> None:
        self._say(f"{self._prefix}{line}")


def _seconds_left(seen: _Seen) -> int | None:
    """Return the remaining lifetime of a lease in v2, at least a second; None for a reservation."""
    lifetime = seen.entry.lifetime
    if not lifetime.expires:
        return None
    passed = asyncio.get_running_loop().time() - seen.at
    return max(round((lifetime.seconds or 1) - passed), 1)
