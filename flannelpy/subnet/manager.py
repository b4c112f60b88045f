"""Acquires the own lease, keeps it, and watches everybody's: a registry, a clock and the pure parts.

Trouble with the store is waited out in here, and said once for each cause in a row; it never stops the data path.
Counterpart: subnet/etcd.go, renew.go, watch.go.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol, TypeVar

from flannelpy.errors import (
    CompareFailed,
    ConfigError,
    FlannelError,
    HistoryGone,
    KeyExists,
    KeyNotFound,
    LeaseLost,
    OutOfSubnets,
    RegistryError,
)
from flannelpy.registry.base import Entry, Registry, Snapshot
from flannelpy.subnet import config as network_config
from flannelpy.subnet.allocator import pick_subnet
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease import Lease, LeaseAttrs, format_key, parse_key
from flannelpy.subnet.lease_table import Added, Damaged, LeaseEvent, LeaseTable, OwnEvent, Update
from flannelpy.subnet.renewal import LEASE_TTL, RETRY_SECONDS, Action, Happening, action, classify, renewal_delay

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_PAUSE = 1.0
# A watch that heard nothing for this long lists again: the history it waits for may have gone, or never come.
QUIET_SECONDS = 300.0
_POLL_SECONDS = 30.0
_LOOK_SECONDS = 60.0
_MAX_RACE_PAUSE = 1.0


class Clock(Protocol):
    """Time as the manager needs it."""

    def now(self) -> float:
        """Seconds that only ever grow, also while the machine is suspended."""

    def wall(self) -> datetime:
        """The time of day, for people."""

    async def sleep(self, seconds: float) -> None:
        """Come back after so many seconds of running time."""


class SubnetManager:
    """The lease logic of the host at ``public_ip``."""

    def __init__(self, registry: Registry, clock: Clock, rng: random.Random, public_ip: IPv4Address) -> None:
        self._registry = registry
        self._clock = clock
        self._rng = rng
        self._public_ip = public_ip
        self._own: Lease | None = None
        self._renew_at = self._ends_at = 0.0

    @property
    def own(self) -> Lease:
        """The lease that this host holds, once it was acquired."""
        assert self._own is not None, "acquire comes first"
        return self._own

    def seconds_left(self) -> float | None:
        """Until the own lease runs out if it is never renewed again; None for a reservation."""
        if self.own.lease_ttl is None:
            return None
        return max(self._ends_at - self._clock.now(), 0)

    async def read_config(self, accept: Callable[[NetworkConfig], T]) -> T:
        """What ``accept`` makes of the config, once there is one that neither we nor it (by ConfigError) refuse."""

        async def read() -> T:
            return accept(network_config.parse(await self._registry.read_config()))

        return await self._until_done(read, "Failed to retrieve network config", ConfigError, RegistryError)

    async def acquire(self, config: NetworkConfig, attrs: LeaseAttrs, previous: IPv4Network | None) -> Lease:
        """The lease of this host: the one it has, else ``previous``, else a new one."""

        async def acquire() -> Lease:
            return await self._acquire(config, attrs, previous)

        return await self._until_done(acquire, "Failed to acquire subnet", OutOfSubnets, RegistryError)

    async def keep_lease(self) -> None:
        """Renew the own lease whenever it is due, for ever."""
        while True:
            wait = self._renew_at - self._clock.now()
            if wait <= 0 and action(self.own, Happening.RENEWAL_DUE) is Action.RENEW:
                await self._renew()
            else:
                # In short steps: the lease may be changed by others meanwhile, and sleep stops while we are suspended.
                await self._clock.sleep(min(wait, _LOOK_SECONDS) if wait > 0 else _LOOK_SECONDS)

    async def watch(self, apply: Callable[[Sequence[LeaseEvent]], None]) -> None:
        """Tell ``apply`` what changes among the other hosts' leases, for ever.  Raises LeaseLost."""
        table = LeaseTable(self.own.subnet)
        complaint = _Complaint("Watch subnets")
        while True:
            try:
                snapshot = await self._registry.snapshot()
                await self._take_in(table.replace(snapshot), apply)
                await self._follow(table, snapshot, apply, complaint)
            except HistoryGone:
                log.warning("Watch of subnet leases failed because etcd index outside history window")
            except RegistryError as error:
                complaint.about(error)
                await self._clock.sleep(RETRY_PAUSE)

    async def _until_done(
        self, attempt: Callable[[], Awaitable[T]], what_fails: str, *expected: type[FlannelError]
    ) -> T:
        """Try once a second until it works, and say why it does not whenever the reason changes."""
        complaint = _Complaint(what_fails)
        while True:
            try:
                return await attempt()
            except expected as error:
                complaint.about(error)
                await self._clock.sleep(RETRY_PAUSE)

    async def _acquire(self, config: NetworkConfig, attrs: LeaseAttrs, previous: IPv4Network | None) -> Lease:
        races_lost = 0
        while True:
            snapshot = await self._registry.snapshot()
            try:
                entry = await self._reuse(config, attrs, _well_formed(snapshot))
                if entry is None:
                    entry = await self._create(config, attrs, _taken(snapshot), previous)
                log.info("Subnet lease acquired: %s", parse_key(entry.name))
                return self._hold(entry)
            except (KeyExists, CompareFailed, KeyNotFound):
                # Normal while many hosts start: look again, and spread out the more often it happens.
                races_lost += 1
                await self._clock.sleep(self._rng.uniform(0, min(0.01 * 2 ** min(races_lost, 7), _MAX_RACE_PAUSE)))

    async def _reuse(self, config: NetworkConfig, attrs: LeaseAttrs, leases: Sequence[Lease]) -> Entry | None:
        """Renew the lease that has our public IP, if there is one; one that does not fit is given up."""
        for lease in [lease for lease in leases if lease.attrs.public_ip == self._public_ip]:
            key = format_key(lease.subnet)
            if config.fits(lease.subnet):
                log.info("Found lease (%s) for current IP (%s), reusing", lease.subnet, self._public_ip)
                lease_ttl = None if lease.lease_ttl is None else LEASE_TTL
                return await self._registry.compare_and_swap(key, attrs.encode(), lease_ttl, lease.version)
            message = "Found lease (%s) for current IP (%s) but not compatible with current config"
            if lease.lease_ttl is None:
                log.warning(f"{message}, leaving the reservation alone", lease.subnet, self._public_ip)
            else:
                log.info(f"{message}, deleting", lease.subnet, self._public_ip)
                await self._registry.compare_and_delete(key, lease.version)
        return None

    async def _create(
        self, config: NetworkConfig, attrs: LeaseAttrs, taken: Sequence[IPv4Network], previous: IPv4Network | None
    ) -> Entry:
        log.info("Picking subnet in range %s ... %s", config.subnet_min, config.subnet_max)
        subnet = pick_subnet(config, taken, previous, self._rng)
        return await self._registry.create(format_key(subnet), attrs.encode(), LEASE_TTL)

    def _hold(self, entry: Entry) -> Lease:
        """Take the entry as the state of the own lease."""
        self._own = Lease.from_entry(entry)
        if entry.lease_ttl is not None:
            now = self._clock.now()
            self._renew_at, self._ends_at = now + renewal_delay(entry.lease_ttl), now + entry.lease_ttl
        return self._own

    async def _renew(self) -> None:
        own = self.own
        try:
            entry = await self._registry.compare_and_swap(
                format_key(own.subnet), own.attrs.encode(), LEASE_TTL, own.version
            )
        except RegistryError as error:
            # Deleted or taken meanwhile: the watch sees it too, and acts; until then, and without a store, again later.
            log.error("Error renewing lease (trying again in 1 min): %s", error)
            self._renew_at = self._clock.now() + RETRY_SECONDS
        else:
            self._hold(entry)
            expiration = self._clock.wall() + timedelta(seconds=LEASE_TTL)
            log.info("Lease renewed, new expiration: %s", expiration.strftime("%Y-%m-%d %H:%M:%S.%f +0000 UTC"))

    async def _follow(
        self,
        table: LeaseTable,
        snapshot: Snapshot,
        apply: Callable[[Sequence[LeaseEvent]], None],
        complaint: _Complaint,
    ) -> None:
        """Apply changes from the snapshot on, until it is time to list again."""
        cursor = snapshot.cursor
        quiet_since = self._clock.now()
        while self._clock.now() - quiet_since < QUIET_SECONDS:
            changes = await self._registry.watch(cursor, _POLL_SECONDS)
            complaint.over()
            cursor = changes.cursor
            if changes.changes:
                quiet_since = self._clock.now()
                await self._take_in(table.apply(changes), apply)

    async def _take_in(self, update: Update, apply: Callable[[Sequence[LeaseEvent]], None]) -> None:
        for malformed in update.malformed:
            log.error("Ignoring malformed lease %s", malformed)
        if update.events:
            apply(update.events)
        for event in update.own:
            await self._own_lease_event(event)

    async def _own_lease_event(self, event: OwnEvent) -> None:
        match action(self.own, classify(event, self._public_ip)):
            case Action.ADOPT:
                assert isinstance(event, Added)
                self._adopt(event.lease)
            case Action.REPAIR:
                assert isinstance(event, Damaged)
                await self._until_done(
                    partial(self._repair, event.version), "Failed to repair own lease", RegistryError
                )
            case Action.TAKE_BACK:
                log.warning("Own lease %s was deleted or has expired, taking it back", self.own.subnet)
                await self._until_done(self._take_back, "Failed to take own lease back", RegistryError)
            case Action.LEAVE:
                assert isinstance(event, Added)
                self._leave(event.lease)

    def _adopt(self, lease: Lease) -> None:
        """What the store says, also when it went back in time; our own last write comes by here as well."""
        if lease.version != self.own.version:
            self._hold(Entry(format_key(lease.subnet), lease.attrs.encode(), lease.lease_ttl, lease.version))

    async def _repair(self, version: int) -> None:
        own = self.own
        lease_ttl = None if own.lease_ttl is None else LEASE_TTL
        with suppress(CompareFailed, KeyNotFound):  # changed once more: the watch tells how
            self._hold(
                await self._registry.compare_and_swap(format_key(own.subnet), own.attrs.encode(), lease_ttl, version)
            )

    async def _take_back(self) -> None:
        own = self.own
        with suppress(KeyExists):  # taken, or taken back by an earlier try: the watch tells which
            self._hold(await self._registry.create(format_key(own.subnet), own.attrs.encode(), LEASE_TTL))

    def _leave(self, lease: Lease) -> None:
        raise LeaseLost(f"subnet {lease.subnet} is held by {lease.attrs.public_ip} now, not by us ({self._public_ip})")


def _taken(snapshot: Snapshot) -> list[IPv4Network]:
    """The subnets that have a key, whatever its value: a create would fail."""
    subnets = []
    for entry in snapshot.entries:
        with suppress(ValueError):
            subnets.append(parse_key(entry.name))
    return subnets


class _Complaint:
    """Says why something fails, once for each cause in a row."""

    def __init__(self, what_fails: str) -> None:
        self._what_fails = what_fails
        self._said = ""

    def about(self, error: FlannelError) -> None:
        """It failed by ``error``."""
        if str(error) != self._said:
            self._said = str(error)
            log.error("%s: %s", self._what_fails, error)

    def over(self) -> None:
        """It works again."""
        self._said = ""


def _well_formed(snapshot: Snapshot) -> list[Lease]:
    """The leases of a snapshot; the watch is the one that reports the malformed."""
    leases = []
    for entry in snapshot.entries:
        try:
            leases.append(Lease.from_entry(entry))
        except ValueError:
            continue
    return leases
