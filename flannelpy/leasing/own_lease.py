"""The own lease: renewed and defended.  lease_policy.py decides, and this module acts.

Counterpart: subnet/etcd.go, renew.go.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from ipaddress import IPv4Network
from math import inf

from flannelpy.errors import (
    CompareFailed,
    FlannelError,
    KeyExists,
    KeyNotFound,
    LeaseLost,
    OutOfSubnets,
    RegistryError,
    one_line,
)
from flannelpy.leasing.acquisition import Acquisition, Request
from flannelpy.leasing.claims import Claims, describe_conflict
from flannelpy.leasing.lease_store import LeaseStore
from flannelpy.leasing.retry import Clock, RepeatedWrites, until_done
from flannelpy.logs import FailureLog, LogLimit
from flannelpy.report import LeaseReport
from flannelpy.subnet.lease import HostIdentity, Lease, LeaseAttrs
from flannelpy.subnet.lease_policy import Action, Condition, Terms, action, classify, renewal_lead, retry_delay
from flannelpy.subnet.lease_table import LeaseAdded, Malformed, Overlapping, OwnEvent, SameIPElsewhere

log = logging.getLogger(__name__)

_LONGEST_SLEEP = 60.0


class OwnLease:
    """The lease of the host ``host_identity``, on ``terms``."""

    def __init__(
        self, store: LeaseStore, clock: Clock, rng: random.Random, host_identity: HostIdentity, terms: Terms
    ) -> None:
        self._store = store
        self._clock = clock
        self._rng = rng
        self.host_identity = host_identity
        self._terms = terms
        self._claims = Claims(store, clock, rng, host_identity)
        self._lease: Lease | None = None
        self._attrs = LeaseAttrs(host_identity.public_ip)  # as flannelpy writes them; the store's may differ
        self._network: IPv4Network | None = None
        self._lead = self._renew_at = self._ends_at = 0.0
        self._is_planned = asyncio.Event()  # set by each plan of a renewal, and by ``announce``
        self._is_written = asyncio.Event()  # set while the store has what was announced
        self._written_at = 0.0
        self._failures = 0
        self._problem = ""
        self._acquired_at = self._confirmed_at = 0.0
        self._repeated = RepeatedWrites(rng)
        self._renewal_failures = FailureLog(log, "Error renewing lease")
        self._losses = LogLimit(log, "Own lease was deleted", now=clock.now)
        self._conflicts = LogLimit(log, "Own lease was overwritten", now=clock.now)
        #: Time of the last try to restore or recreate the lease.
        self.last_attempt_at = 0.0

    @property
    def lease(self) -> Lease:
        """The acquired lease, as the store held it when flannelpy last saw it."""
        assert self._lease is not None, "acquire comes first"
        return self._lease

    @property
    def network(self) -> IPv4Network:
        """The network of the acquired lease."""
        assert self._network is not None, "acquire comes first"
        return self._network

    def report(self) -> LeaseReport:
        """Return the subnet that this host holds, and how long the lease lasts if it is never renewed again.

        A renewal that fails once is repeated within seconds and is no problem yet.
        """
        problem = self._problem if self._failures > 1 else ""
        return LeaseReport(
            self.lease.subnet, self.seconds_left(), self._acquired_at, self._confirmed_at, self.lease.version, problem
        )

    def seconds_left(self) -> float | None:
        """Return the seconds until the lease expires if no renewal succeeds; None for a reservation."""
        if self.lease.is_reservation:
            return None
        return max(self._ends_at - self._clock.now(), 0)

    async def acquire(self, request: Request, on_failure: Callable[[FlannelError], None] = lambda _: None) -> Lease:
        """Return the lease of our public IP, else that of our former one, else ``previous``, else a new one.

        ``on_failure`` is called with the error of each try that fails.  Raises LeaseLost if another live host holds the
        lease, HostError if the lease contains our own address.
        """
        self._network = request.config.network
        acquisition = Acquisition(request, self._store, self._claims, self._clock, self._rng)

        async def run() -> Lease:
            try:
                return await acquisition.run()
            except (OutOfSubnets, RegistryError) as error:
                on_failure(error)
                raise

        lease = await until_done(self._clock, self._rng, run, "Failed to acquire subnet", OutOfSubnets, RegistryError)
        self._attrs = lease.attrs
        self._hold(lease)
        self._written_at = -inf
        self._acquired_at = self._confirmed_at
        return lease

    def announce(self, *, in_kernel: bool) -> None:
        """Have ``keep`` tell peers by the lease whether the kernel of this host takes their datagrams."""
        self._attrs = replace(self._attrs, in_kernel=in_kernel)
        self._note_announcement()
        self._is_planned.set()

    async def announced(self) -> float:
        """Wait until the lease in the store has what was announced; return the seconds for which it has.

        They are ``inf`` if the acquired lease had it already.
        """
        await self._is_written.wait()
        return self._clock.now() - self._written_at

    def _note_announcement(self) -> None:
        """Note whether, and since when, the store has what was announced."""
        if self.lease.attrs.in_kernel != self._attrs.in_kernel:
            self._is_written.clear()
        elif not self._is_written.is_set():
            self._written_at = self._clock.now()
            self._is_written.set()

    # Renewing

    async def keep(self) -> None:
        """Renew the lease whenever its renewal is due, and write what was announced, for ever.  Raises LeaseLost."""
        while True:
            self._losses.report()
            self._conflicts.report()
            self._renewal_failures.report()
            if self.lease.attrs.in_kernel != self._attrs.in_kernel:
                await until_done(self._clock, self._rng, self._rewrite, "Failed to write own lease", RegistryError)
                continue
            wait = self._renew_at - self._clock.now()
            if wait <= 0 and action(self.lease, Condition.RENEWAL_DUE) is Action.RENEW:
                await self._renew()
            else:
                # Short sleeps: the lease may change meanwhile, and sleep does not count suspended time.
                await self._sleep(min(wait, _LONGEST_SLEEP) if wait > 0 else _LONGEST_SLEEP)

    async def _rewrite(self) -> None:
        """Write the lease with other attributes; if it has changed meanwhile, act on that."""
        await self._clock.sleep(self._repeated.pause(self._clock.now()))
        try:
            self._hold(await self._write(self.lease.version))
            self._repeated.note(self._clock.now())
        except (CompareFailed, KeyNotFound):
            await self.react(await self._store.find(self.lease.subnet))

    async def _sleep(self, seconds: float) -> None:
        """Sleep until a renewal is planned or attributes are announced, ``seconds`` at most."""
        self._is_planned.clear()
        waits = [asyncio.ensure_future(self._clock.sleep(seconds)), asyncio.ensure_future(self._is_planned.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()

    async def _renew(self) -> None:
        await self._clock.sleep(self._repeated.pause(self._clock.now()))
        try:
            await self._renew_or_read_back()
        except RegistryError as error:
            self._failures += 1
            self._problem = one_line(error)
            delay = self._put_off()
            when = "1 min" if delay > 50 else f"{delay:.1f} s"
            self._renewal_failures.failed(error, f"Error renewing lease (trying again in {when}): {error}")

    async def _renew_or_read_back(self) -> None:
        lease = self.lease
        try:
            renewed = await self._store.renew(lease, self._attrs)
        except (CompareFailed, KeyNotFound):
            self._put_off()
            await self.react(await self._store.find(lease.subnet))
            return
        self._repeated.note(self._clock.now())
        if self.lease is lease or self.lease.version == renewed.version:  # the watch has reported no later write
            self._hold(renewed)
        expiration = self._clock.wall() + timedelta(seconds=renewed.lifetime.seconds or self._terms.lease_ttl)
        log.info("Lease renewed, new expiration: %s", expiration.strftime("%Y-%m-%d %H:%M:%S.%f +0000 UTC"))

    def _put_off(self) -> float:
        """Postpone the renewal; return by how many seconds."""
        delay = retry_delay(self._lead, self._failures, self._rng.random())
        self._renew_at = self._clock.now() + delay
        return delay

    # Reacting

    async def react(self, event: OwnEvent) -> None:
        """Act as lease_policy.py decides on an event of our subnet.  Raises LeaseLost."""
        condition = classify(event, self.host_identity, self.lease.created)
        match action(self.lease, condition), event:
            case Action.ADOPT, LeaseAdded(lease):
                self._adopt(lease)
            case Action.RESTORE, (LeaseAdded(Lease(version=version)) | Malformed(version=version)):
                self._log_conflict(condition, event)
                await self._write_again(partial(self._restore, version), "Failed to write own lease")
            case Action.RECREATE, _:
                text = f"Own lease {self.lease.subnet} was deleted or has expired; recreating the lease"
                self._losses.message(logging.WARNING, text)
                await self._write_again(self._recreate, "Failed to recreate own lease")
            case Action.SURRENDER, LeaseAdded(lease):
                raise LeaseLost(self._why_lost(condition, lease))
            case Action.SURRENDER, (SameIPElsewhere(lease) | Overlapping(lease)):
                await self._give_back()
                raise LeaseLost(self._why_lost(condition, lease))

    async def _write_again(self, attempt: Callable[[], Awaitable[Lease | None]], what_fails: str) -> None:
        """Write our lease by ``attempt``, after a pause if another program has just undone such a write.

        An attempt that comes too late, because the lease changed again, returns None; the watch reports the change.
        """

        async def noted() -> None:
            self.last_attempt_at = self._clock.now()
            if lease := await attempt():
                self._hold(lease)
                self._repeated.note(self._clock.now())

        await self._clock.sleep(self._repeated.pause(self._clock.now()))
        await until_done(self._clock, self._rng, noted, what_fails, RegistryError)

    def _adopt(self, lease: Lease) -> None:
        """Hold the lease as the store reports it, also if the store went back in time or reports our own last write."""
        if lease.version != self.lease.version:
            self._hold(lease)

    async def _restore(self, version: int) -> Lease | None:
        try:
            return await self._write(version)
        except (CompareFailed, KeyNotFound):
            return None

    async def _recreate(self) -> Lease | None:
        try:
            return await self._store.create(self.lease.subnet, self._attrs)
        except KeyExists:  # taken, or recreated by an earlier try
            return None

    async def _give_back(self) -> None:
        """Remove our lease, but not a reservation.

        If the lease stayed, another host with our public IP would have to claim it.  The host that we surrender to
        would have to surrender in turn after its own lease was recreated.
        """
        if self.lease.is_reservation:
            return
        with suppress(RegistryError):
            await self._store.delete(self.lease)

    async def _write(self, version: int) -> Lease:
        return await self._store.swap(self.lease, version, self._attrs)

    def _log_conflict(self, condition: Condition, event: OwnEvent) -> None:
        """Warn if another host made the write of our lease necessary."""
        match condition, event:
            case Condition.NO_HOST_ID, _:
                text = (
                    f"Lease {self.lease.subnet} was overwritten without a host ID, as by flanneld; restoring the lease."
                    f" If another host did so, public IP {self.host_identity.public_ip} is not unique: give each host "
                    "its own by -iface or -public-ip"
                )
                self._conflicts.message(logging.WARNING, text)
            case ((Condition.CLAIMED | Condition.HELD_BY_HIGHER_ID), LeaseAdded(lease)):
                self._conflicts.message(logging.WARNING, describe_conflict(self.host_identity, lease))

    def _why_lost(self, condition: Condition, lease: Lease) -> str:
        if condition is Condition.OVERLAPS_EARLIER:
            return (
                f"our subnet {self.lease.subnet} overlaps {lease.subnet}, which {lease.attrs.public_ip} leased earlier;"
                " the next start leases another one"
            )
        if condition is not Condition.TAKEN:
            return describe_conflict(self.host_identity, lease)
        ours, theirs = self.host_identity.public_ip, lease.attrs.public_ip
        return f"subnet {lease.subnet} is held by {theirs} now, not by us ({ours})"

    def _hold(self, lease: Lease) -> Lease:
        """Make ``lease`` the state of the own lease."""
        self._lease = lease
        self._note_announcement()
        self._confirmed_at = self._clock.wall().timestamp()
        self._failures = 0
        self._renewal_failures.recovered()
        if lease.lifetime.expires:
            self._plan_renewal(lease.lifetime.seconds)
        return lease

    def _plan_renewal(self, seconds: int | None) -> None:
        """Plan the renewal of a lease with ``seconds`` left; None: unknown, so the renewal is due, which tells them."""
        now = self._clock.now()
        self._lead = renewal_lead(seconds or self._terms.lease_ttl, self._terms, self._rng.random())
        self._renew_at = now if seconds is None else now + seconds - self._lead
        self._ends_at = self._renew_at + self._lead
        self._is_planned.set()
