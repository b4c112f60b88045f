"""The control plane of one network: reads the config, keeps the own lease, and watches the leases of all hosts.

If the store fails, this module retries and logs each cause once.  The data path never stops for such a failure.
Counterpart: subnet/etcd.go, watch.go.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from ipaddress import IPv4Network
from math import inf
from typing import NamedTuple, TypeVar

from flannelpy.addressing.surroundings import NO_SURROUNDINGS, Surroundings
from flannelpy.errors import (
    ConfigError,
    FlannelError,
    HistoryOverrun,
    HostError,
    KeyNotFound,
    RegistryError,
    RegistryUnavailable,
    one_line,
)
from flannelpy.leasing.acquisition import Describe, Request
from flannelpy.leasing.lease_store import LeaseStore
from flannelpy.leasing.own_lease import OwnLease
from flannelpy.leasing.retry import Backoff, Clock, until_done
from flannelpy.logs import FailureLog, LogLimit
from flannelpy.registry.base import Changes, Registry
from flannelpy.report import ConfigReport, ConfigState, LeaseReport, NetworkReport
from flannelpy.subnet import config as network_config
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease import HostIdentity, Lease
from flannelpy.subnet.lease_policy import Action, Terms, action, classify_failure
from flannelpy.subnet.lease_table import LeaseEvent, LeaseTable, Update

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Follows the leases of peers.
Apply = Callable[[Sequence[LeaseEvent]], Awaitable[None]]

# Minimum distance between lists that find nothing new, while other writes to the store overrun its history.
OVERRUN_SECONDS = 60.0
# A live host notices within this time, or within the time of its lease, that its lease is gone.
MAX_GRACE_SECONDS = 60.0
# Interval of the reads of the network config, if the watch does not report its changes, or if a read fails.
CONFIG_SECONDS = 30.0
_POLL_SECONDS = 12.0
# Part of these times that is cut off at random: an event reaches all hosts at the same moment, and their next requests
# should not reach the store at the same moment.
_JITTER = 0.25
# A watch that is this many changes behind relists: a store may report them one by one, and a list costs as much as ten.
_MAX_BEHIND = 20
# The pause before the next list, as a multiple of the time that the last one took.
_PAUSES = 4
_LONGEST_PAUSE = 10.0
_CONTINUING = "continuing with the config read at start"
# Causes that are logged before LogLimit applies; an operator who corrects a config reads each of them.
_CONFIG_CAUSES = 100
# The longest time without progress of a healthy watch: a poll, and the time-outs of every endpoint.
_STUCK_SECONDS = 120.0


class ConfigVerdict(NamedTuple):
    """The log line about a config that differs from the one read at start; ``value``: the config itself."""

    level: int
    state: ConfigState
    line: str
    value: str = ""


class SubnetManager:
    """The lease logic of one host on one network."""

    def __init__(
        self,
        registry: Registry,
        clock: Clock,
        rng: random.Random,
        host_identity: HostIdentity,
        terms: Terms | None = None,
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._rng = rng
        self._backoff = Backoff(rng)
        self._watch_failures = FailureLog(log, "Watch subnets")
        terms = terms or Terms()
        self._own = OwnLease(LeaseStore(registry, terms.lease_ttl), clock, rng, host_identity, terms)
        self._grace = min(MAX_GRACE_SECONDS, terms.lease_ttl)
        self._config_text = ""
        self._config = ConfigReport()
        self._lease_problem = ""
        self._progress_at = clock.now()
        self._pause = 0.0
        self._may_list_at = clock.now()
        self._ignored = LogLimit(log, "Ignoring leases", now=clock.now)
        self._relists = LogLimit(log, "Watch of subnet leases failed", burst=5, now=clock.now)

    @property
    def own(self) -> Lease:
        """The acquired lease of this host."""
        return self._own.lease

    def report(self) -> LeaseReport:
        """Return the subnet that this host holds, and how long the lease lasts if it is never renewed again."""
        return self._own.report()

    def complete(self, report: NetworkReport) -> NetworkReport:
        """Return ``report`` with what is known before a subnet is leased: of the store, its config and the lease."""
        store, *second = self._registry.store_reports()
        return replace(
            report,
            config=self._config,
            lease_problem=self._lease_problem,
            store=store,
            second_store=second[0] if second else None,
        )

    def is_live(self) -> bool:
        """Return whether the watch still polls the store, also if the store does not answer."""
        return self._clock.now() - max(self._progress_at, self._own.last_attempt_at) < _STUCK_SECONDS

    async def read_config(
        self, accept: Callable[[NetworkConfig], Awaitable[T]], on_silence: Callable[[], Awaitable[None]] | None = None
    ) -> T:
        """Return the result of ``accept`` for the first valid config.  ``accept`` rejects a config by ConfigError.

        Each time that no endpoint answers, ``on_silence`` runs before the next try.
        """

        async def read() -> T:
            try:
                self._config_text = await self._registry.read_config()
                config = network_config.parse(self._config_text, self._registry.schema)
                accepted = await accept(config)
            except RegistryUnavailable:
                self._config = ConfigReport()
                if on_silence:
                    await on_silence()
                raise
            except (KeyNotFound, ConfigError) as error:
                self._config = ConfigReport(_state_after(error), one_line(error))
                raise
            self._config = ConfigReport(ConfigState.IN_USE)
            if config.ignored:
                log.warning("Ignored %s of the network config: flannelpy routes IPv4 only", ", ".join(config.ignored))
            return accepted

        what_fails = "Failed to retrieve network config"
        return await until_done(self._clock, self._rng, read, what_fails, ConfigError, RegistryError)

    async def watch_config(self, accept: Callable[[NetworkConfig], Awaitable[object]]) -> None:
        """Log each change of the config, for ever.  A change takes effect at the next start, never in part."""
        changes = FailureLog(log, "Network config in etcd", _CONFIG_CAUSES)
        while True:
            await self._registry.wait_for_config_change(self._jittered(CONFIG_SECONDS))
            try:
                verdict = await self._judge_config(accept)
            except RegistryError:
                continue  # the watch logs the failure
            self._config = ConfigReport(verdict.state, verdict.line) if verdict else ConfigReport(ConfigState.IN_USE)
            if verdict:
                changes.failed(f"{verdict.line}{verdict.value}", verdict.line, verdict.level)
            elif changes.recovered():
                log.info("Network config in etcd was changed back to the config read at start")

    async def _judge_config(self, accept: Callable[[NetworkConfig], Awaitable[object]]) -> ConfigVerdict | None:
        """Compare the config in the store with the one read at start.  Raises RegistryError."""
        try:
            text = await self._registry.read_config()
            if text == self._config_text:
                return None
            await accept(network_config.parse(text, self._registry.schema))
        except KeyNotFound as error:
            line = f"Network config in etcd was removed; {_CONTINUING}"
            return ConfigVerdict(logging.ERROR, _state_after(error), line)
        except (ConfigError, HostError) as error:
            line = f"Network config in etcd became invalid: {error}; {_CONTINUING}"
            return ConfigVerdict(logging.ERROR, _state_after(error), line)
        line = "Network config in etcd was changed; restart flannelpy, then Docker, to apply the change"
        return ConfigVerdict(logging.WARNING, ConfigState.CHANGED, line, text)

    async def acquire(
        self,
        config: NetworkConfig,
        describe: Describe,
        previous: IPv4Network | None,
        around: Surroundings = NO_SURROUNDINGS,
    ) -> Lease:
        """Return the lease of this host: an existing one, else ``previous``, else a new one.

        Raises LeaseLost, HostError.
        """
        lease = await self._own.acquire(Request(config, describe, previous, around), self._note_lease_problem)
        self._lease_problem = ""
        return lease

    def _note_lease_problem(self, error: FlannelError) -> None:
        self._lease_problem = one_line(error)

    async def keep_lease(self) -> None:
        """Renew the own lease whenever its renewal is due, for ever.  Raises LeaseLost."""
        await self._own.keep()

    def announce(self, *, in_kernel: bool) -> None:
        """Tell peers by the own lease, as soon as the store answers, whether our kernel takes their datagrams."""
        self._own.announce(in_kernel=in_kernel)

    async def announced(self) -> float:
        """Wait until the own lease in the store has what was announced; return the seconds for which it has."""
        return await self._own.announced()

    def seconds_left(self) -> float | None:
        """Return the seconds until the own lease expires if no renewal succeeds; None for a reservation."""
        return self._own.seconds_left()

    async def watch(self, apply: Apply) -> None:
        """Pass the leases of peers to ``apply``: first all of them, then changes, for ever.  Raises LeaseLost."""
        table = LeaseTable(self.own.subnet, self._own.host_identity.public_ip, self._grace, self._own.network)
        is_first = True
        while True:
            self._progress_at = self._clock.now()
            try:
                cursor, update = await self._list(table)
                if is_first and not update.events:
                    await apply([])
                if not is_first and not update.events:
                    self._may_list_at = self._clock.now() + OVERRUN_SECONDS
                is_first = False
                await self._apply(update, apply)
                await self._follow(table, cursor, apply)
            except RegistryError as error:
                await self._handle_failure(error)

    async def _handle_failure(self, error: RegistryError) -> None:
        match action(self.own, classify_failure(error)):
            case Action.RELIST:
                text = "Watch of subnet leases failed because etcd index outside history window"
                self._relists.message(logging.WARNING, text)
            case Action.KEEP_FORWARDING:
                self._watch_failures.failed(error)
                await self._clock.sleep(self._backoff.pause())

    async def _list(self, table: LeaseTable) -> tuple[int, Update]:
        """Make ``table`` equal to the store; return the cursor for the watch, and the differences.

        Pause first, in proportion to the time that the last list took.  A busy store full of foreign keys then takes
        only a part of the processor.
        """
        await self._clock.sleep(self._pause)
        began = self._clock.now()
        snapshot = await self._registry.snapshot(table.is_key)
        update = Update()
        for _ in table.replacing(snapshot, self._clock.now(), update):
            await asyncio.sleep(0)
        self._pause = min(_PAUSES * (self._clock.now() - began), _LONGEST_PAUSE)
        return snapshot.cursor, update

    async def _follow(self, table: LeaseTable, cursor: int, apply: Apply) -> None:
        """Apply changes from the snapshot on, until a relist is due.

        If other writes overrun the store's history, the watch continues from the store's current position until the
        next list is allowed.
        """
        quiet_seconds = self._jittered(self._registry.relist_seconds)
        overdue_at = inf
        list_at = self._clock.now() + quiet_seconds
        while (left := min(list_at, overdue_at) - self._clock.now()) > 0:
            try:
                changes = await self._watch(table, cursor, left)
            except HistoryOverrun as overrun:
                cursor, overdue_at = overrun.cursor, self._may_list_at
                await self._clock.sleep(min(self._backoff.pause(), max(overdue_at - self._clock.now(), 0)))
                continue
            now = self._progress_at = self._clock.now()
            cursor = changes.cursor
            if changes.changes:
                list_at = now + quiet_seconds
                await self._apply(table.apply(changes, now), apply)
            await self._apply(table.forget(now), apply)
            if changes.behind > _MAX_BEHIND:
                return

    async def _watch(self, table: LeaseTable, cursor: int, seconds: float) -> Changes:
        """Return the changes within one poll, ``seconds`` at most.  Raises RegistryError."""
        to_forget = max(table.seconds_to_forget(self._clock.now()), 0)
        changes = await self._registry.watch(cursor, min(self._jittered(_POLL_SECONDS), seconds, to_forget))
        if self._watch_failures.recovered():
            table.begin_grace_again(self._clock.now())
        self._backoff.reset()
        self._ignored.report()
        self._relists.report()
        return changes

    def _jittered(self, seconds: float) -> float:
        return seconds * self._rng.uniform(1 - _JITTER, 1)

    async def _apply(self, update: Update, apply: Apply) -> None:
        self._ignored.message_by_cause(logging.ERROR, "Ignoring lease", update.ignored)
        outside = f"it is no part of the network {self._own.network}"
        self._ignored.message_by_cause(logging.WARNING, "Ignoring subnet", [(one, outside) for one in update.outside])
        if update.events:
            await apply(update.events)
        for event in update.own:
            await self._own.react(event)


def _state_after(error: FlannelError) -> ConfigState:
    """Return what an error shows about the config."""
    return ConfigState.MISSING if isinstance(error, KeyNotFound) else ConfigState.INVALID
