"""Reads the config, acquires and keeps the own lease, and watches everybody's: a registry, a clock and the pure parts.

Trouble with the store is waited out in here, and said once for each cause in a row; it never stops the data path.
Counterpart: subnet/etcd.go, watch.go.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Network
from math import inf
from typing import TypeVar

from flannelpy.addressing.surroundings import NO_SURROUNDINGS, Surroundings
from flannelpy.errors import ConfigError, HistoryOverrun, HostError, KeyNotFound, RegistryError, RegistryUnavailable
from flannelpy.leasing.own_lease import Describe, OwnLease
from flannelpy.leasing.retry import Backoff, Clock, until_done
from flannelpy.logs import FailureLog, LogLimit
from flannelpy.registry.base import Changes, Registry
from flannelpy.report import LeaseReport
from flannelpy.subnet import config as network_config
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease import HostIdentity, Lease
from flannelpy.subnet.lease_policy import Action, Condition, Terms, action, classify_failure
from flannelpy.subnet.lease_table import LeaseEvent, LeaseTable, Update

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Follows the other hosts' leases.
Apply = Callable[[Sequence[LeaseEvent]], Awaitable[None]]

# A watch that heard nothing for this long lists again: the history it waits for may have gone, or never come.
QUIET_SECONDS = 300.0
# Where changes elsewhere in the store have outrun its history, lists that find nothing new are so far apart.
OVERRUN_SECONDS = 60.0
# Within this time a host whose lease went has noticed that, if it lives; or within the time of its lease.
MAX_GRACE_SECONDS = 60.0
# How often the network config is looked at while we run.
CONFIG_SECONDS = 30.0
_POLL_SECONDS = 12.0
# So much of these times is cut off at random: an event reaches all hosts at the same moment, and their next requests
# should not.
_JITTER = 0.25
# A watch that is so many changes behind lists again: a store may tell them one by one, and a list takes as long as ten.
_MAX_BEHIND = 20
# The pause before the next list, by the time that the last one took.
_PAUSES = 4
_LONGEST_PAUSE = 10.0
_AS_AT_START = logging.INFO, "Network config in etcd is again the one from the start"
_GOING_ON = "going on with the one from the start"
# The longest that a watch may go without anything done, be it in vain: a poll, and every endpoint's time-outs.
_STUCK_SECONDS = 120.0


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
        self._own = OwnLease(registry, clock, rng, host_identity, terms)
        self._grace = min(MAX_GRACE_SECONDS, terms.lease_ttl)
        self._config_text = ""
        self._progress_at = clock.now()
        self._pause = 0.0
        self._may_list_at = clock.now()
        self._ignored = LogLimit(log, "Ignoring leases")
        self._lists_again = LogLimit(log, "Watch of subnet leases failed", burst=5)

    @property
    def own(self) -> Lease:
        """The lease that this host holds, once it was acquired."""
        return self._own.lease

    def report(self) -> LeaseReport:
        """Return the subnet that this host holds, and how long the lease lasts if it is never renewed again."""
        return LeaseReport(self.own.subnet, self._own.seconds_left())

    def is_live(self) -> bool:
        """Return whether the watch still polls the store, also if the store does not answer."""
        return self._clock.now() - max(self._progress_at, self._own.tried_at) < _STUCK_SECONDS

    async def read_config(
        self, accept: Callable[[NetworkConfig], Awaitable[T]], on_silence: Callable[[], Awaitable[None]] | None = None
    ) -> T:
        """What ``accept`` makes of the config, once there is one that neither we nor it (by ConfigError) refuse.

        ``on_silence`` is awaited each time that no endpoint answers, before the next try.
        """

        async def read() -> T:
            try:
                self._config_text = await self._registry.read_config()
            except RegistryUnavailable:
                if on_silence:
                    await on_silence()
                raise
            return await accept(network_config.parse(self._config_text))

        what_fails = "Failed to retrieve network config"
        return await until_done(self._clock, self._rng, read, what_fails, ConfigError, RegistryError)

    async def watch_config(self, accept: Callable[[NetworkConfig], Awaitable[object]]) -> None:
        """Say when the config changes, for ever.  It is acted upon at the next start: as a whole, or not at all."""
        said = _AS_AT_START
        while True:
            await self._clock.sleep(self._jittered(CONFIG_SECONDS))
            try:
                verdict = await self._judge_config(accept)
            except RegistryError:
                continue  # the watch complains
            if verdict != said:
                assert action(self.own, Condition.CONFIG_CHANGED) is Action.LOG
                said = verdict
                log.log(*verdict)

    async def _judge_config(self, accept: Callable[[NetworkConfig], Awaitable[object]]) -> tuple[int, str]:
        """Level and text of what there is to say about the config as it is now."""
        try:
            text = await self._registry.read_config()
            if text == self._config_text:
                return _AS_AT_START
            await accept(network_config.parse(text))
        except KeyNotFound:
            return logging.ERROR, f"Network config in etcd is gone; {_GOING_ON}"
        except (ConfigError, HostError) as error:
            return logging.ERROR, f"Network config in etcd is not valid: {error}; {_GOING_ON}"
        return logging.WARNING, "Network config in etcd has changed; restart flannelpy, then Docker, to act upon it"

    async def acquire(
        self,
        config: NetworkConfig,
        describe: Describe,
        previous: IPv4Network | None,
        around: Surroundings = NO_SURROUNDINGS,
    ) -> Lease:
        """The lease of this host: the one it has, else ``previous``, else a new one.  Raises LeaseLost, HostError."""
        return await self._own.acquire(config, describe, previous, around)

    async def keep_lease(self) -> None:
        """Renew the own lease whenever it is due, for ever.  Raises LeaseLost."""
        await self._own.keep()

    async def watch(self, apply: Apply) -> None:
        """Tell ``apply`` of the other hosts' leases, at first of all, then of changes, for ever.  Raises LeaseLost."""
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
                await self._take_in(update, apply)
                await self._follow(table, cursor, apply)
            except RegistryError as error:
                if action(self.own, classify_failure(error)) is Action.RELIST:
                    text = "Watch of subnet leases failed because etcd index outside history window"
                    self._lists_again.message(logging.WARNING, text, self._clock.now())
                else:
                    self._watch_failures.failed(error)
                    await self._clock.sleep(self._backoff.pause())

    async def _list(self, table: LeaseTable) -> tuple[int, Update]:
        """Make ``table`` equal to the store; the cursor from which the watch goes on, and what that means.

        Pauses before it by how long the last one took, so that a store full of foreign keys that never rests does not
        take all of the processor.
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
        """Apply changes from the snapshot on, until it is time to list again.

        When other changes have outrun the store's history, the watch continues from the store's current position until
        a list is allowed.
        """
        quiet_seconds = self._jittered(QUIET_SECONDS)
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
                await self._take_in(table.apply(changes, now), apply)
            await self._take_in(table.forget(now), apply)
            if changes.behind > _MAX_BEHIND:
                return

    async def _watch(self, table: LeaseTable, cursor: int, seconds: float) -> Changes:
        """What happens within a poll, ``seconds`` at most.  Raises RegistryError."""
        to_forget = max(table.seconds_to_forget(self._clock.now()), 0)
        changes = await self._registry.watch(cursor, min(self._jittered(_POLL_SECONDS), seconds, to_forget))
        now = self._clock.now()
        self._watch_failures.recovered()
        self._backoff.reset()
        self._ignored.report(now)
        self._lists_again.report(now)
        return changes

    def _jittered(self, seconds: float) -> float:
        return seconds * self._rng.uniform(1 - _JITTER, 1)

    async def _take_in(self, update: Update, apply: Apply) -> None:
        for ignored in update.ignored:
            self._ignored.message(logging.ERROR, f"Ignoring lease {ignored}", self._clock.now())
        for subnet in update.outside:
            text = f"Ignoring subnet {subnet}: it is no part of the network {self._own.network}"
            self._ignored.message(logging.WARNING, text, self._clock.now())
        if update.events:
            await apply(update.events)
        for event in update.own:
            await self._own.react(event)
