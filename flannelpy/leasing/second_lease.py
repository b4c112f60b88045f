"""The second lease: that of etcd v2, of a host that keeps its lease in etcd v3, while v2 has a network config.

Hosts that still use v2 read the second lease, and no other host can take its subnet in v2.  A task follows it by a
watch: it renews the lease, recreates it, and looks every ``CONFIG_SECONDS`` whether v2 still has a config.  If v2 names
another holder, that entry replaces ours in v3 as well, marked as a copy (subnet/copied.py).  The watch of v3 then
reports the holder, and the lease policy decides as it always does.

While v2 has no config, the task looks every ``LOOK_AGAIN_SECONDS``, because a cluster may go back to v2.  If there is a
config again, the task creates the lease in v2.

Requests of a quiet host to v2: two for the config and two for the watch in a minute; without a config, one in ten
minutes to each endpoint.  A stream reports another holder at once; if the stream is dead, the next request finds out
within ``WATCH_SECONDS``.  Writes that another program undoes again and again have pauses in between.
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress
from dataclasses import dataclass, replace

from flannelpy.errors import (
    ApiSwitchedOff,
    CompareFailed,
    ConfigError,
    HistoryGone,
    KeyExists,
    KeyNotFound,
    RegistryError,
    RegistryUnavailable,
)
from flannelpy.leasing.holder import holder_of, is_held_by, is_written_by
from flannelpy.leasing.retry import Backoff, RepeatedWrites
from flannelpy.logs import FailureLog
from flannelpy.registry.base import Changes, Deleted, KeyValue, Put, Registry
from flannelpy.registry.entries import find, put
from flannelpy.subnet import copied
from flannelpy.subnet.lease import HostIdentity

log = logging.getLogger(__name__)

WATCH_SECONDS = 30.0
CONFIG_SECONDS = 30.0
LOOK_AGAIN_SECONDS = 600.0
# Part of LOOK_AGAIN_SECONDS that is cut off at random, so that hosts do not look at the same moment.
_JITTER = 0.25


@dataclass(frozen=True, slots=True)
class _Held:
    """What this host has written last: its lifetime is None for a reservation, its entry in v2 None without one."""

    name: str
    value: str
    lease_ttl: int | None
    entry: KeyValue | None


class SecondLease:
    """The lease in ``v2`` of the host ``host_identity``, whose lease is in ``v3``.

    ``has_config``: whether v2 has a network config; None: v2 was not asked yet.  Raises, from every coroutine:
    RegistryUnavailable if v2 gave no usable answer.
    """

    def __init__(self, v2: Registry, v3: Registry, host_identity: HostIdentity, has_config: bool | None = None) -> None:
        self._v2 = v2
        self._v3 = v3
        self._identity = host_identity
        self._rng = random.Random()  # noqa: S311 - nothing secret
        self._backoff = Backoff(self._rng)
        self._repeated = RepeatedWrites(self._rng)
        self._has_config = has_config
        self._config_read_at = 0.0
        self._held: _Held | None = None
        self._due: int | None = None  # the lifetime to which the task has to renew the lease
        self._failures = FailureLog(log, "Error keeping the lease in etcd v2")
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def has_config(self) -> bool:
        """Whether v2 has a network config, as far as it is known."""
        return bool(self._has_config)

    async def is_wanted(self) -> bool:
        """Return whether v2 has a network config, as far as the last look has shown."""
        if self._has_config is None:
            await self._look_for_config()
        return self.has_config

    async def create(self, name: str, value: str, lease_ttl: int | None) -> KeyValue:
        """Create the lease, or take the one that is ours already.

        Raises KeyExists if another host holds it.  Its entry is then in v3 as well.
        """
        try:
            return await self._create(name, value, lease_ttl)
        except KeyExists:
            found = await find(self._v2, name)
            if found and is_held_by(self._identity, found.value):
                return await self._swap(found, value, lease_ttl)
            if found:
                await self._show_in_v3(found, None)
            raise

    async def write(self, first: KeyValue, value: str, lease_ttl: int | None) -> KeyValue:
        """Write ``value`` over the lease that is ``first`` in v3, and create the lease if v2 has none.

        Raises CompareFailed if another host holds the lease in v2.  Its entry has then replaced ``first`` in v3.
        """
        found = await find(self._v2, first.name)
        try:
            if found is None:
                return await self._create(first.name, value, lease_ttl)
            if self._corresponds(found, first):
                return await self._swap(found, value, lease_ttl)
        except (KeyExists, CompareFailed, KeyNotFound) as error:
            raise RegistryUnavailable(f"the lease in etcd v2 changed at the same moment: {error}") from error
        await self._show_in_v3(found, first)
        raise CompareFailed(f"{first.name}: etcd v2 has another lease of this subnet")

    def hold(self, name: str, value: str, lease_ttl: int | None, entry: KeyValue | None) -> None:
        """Keep the lease ``name``, which is ``entry`` in v2 (None: it is not there) and has ``value``, from now on."""
        self._held = _Held(name, value, lease_ttl, entry)
        self._due = None
        if self._task is None:
            self._task = asyncio.create_task(self._follow())
        self._woken.set()

    def renew(self, name: str, lease_ttl: int) -> None:
        """Have the task renew the lease, and retry that until it succeeds: also if v2's config comes back later."""
        if self._held is None or not self._is_held_name(name):
            return
        self._held = replace(self._held, lease_ttl=lease_ttl)
        if self._held.entry and self._held.entry.lifetime.expires:
            self._due = lease_ttl
            self._woken.set()

    async def delete(self, first: KeyValue) -> None:
        """Delete the lease that is ``first`` in v3; a reservation stays."""
        found = await find(self._v2, first.name)
        if found and found.lifetime.expires and self._corresponds(found, first):
            await self.remove(found)

    async def remove(self, entry: KeyValue) -> None:
        """Delete ``entry`` from v2 if it is unchanged."""
        if self._is_held_name(entry.name):
            self._held = None
        with suppress(CompareFailed, KeyNotFound):
            await self._v2.compare_and_delete(entry.name, entry.version)

    async def note(self, first: KeyValue) -> None:
        """Give the lease up if ``first``, an entry of v3, shows that another host holds its subnet.

        If ``first`` is ours and a reservation, the lease becomes one in v2, too.
        """
        holder = holder_of(first.value)
        if not self._is_held_name(first.name) or holder is None:
            return
        if holder.public_ip == self._identity.public_ip:
            if not first.lifetime.expires and is_written_by(self._identity, first.value):
                self._hold_reservation()
            return
        held, self._held = self._held, None
        if held and held.entry:
            with suppress(RegistryError):
                await self.remove(held.entry)

    def _hold_reservation(self) -> None:
        if self._held and self._held.lease_ttl is not None:
            self._held = replace(self._held, lease_ttl=None)
            self._woken.set()

    def check(self) -> None:
        """Raise the exception that ended the task, if there is one: a fault of flannelpy's."""
        if self._task and self._task.done():
            self._task.result()

    def close(self) -> None:
        """End the task."""
        if self._task:
            self._task.cancel()

    def _corresponds(self, found: KeyValue, first: KeyValue) -> bool:
        """Return whether ``found`` in v2 and ``first`` in v3 are the lease of one host."""
        if self._held and self._held.entry and found.version == self._held.entry.version:
            return True
        if is_held_by(self._identity, found.value) or copied.shows(first.value, found.value):
            return True
        holder = holder_of(found.value)
        return holder is not None and holder == holder_of(first.value)

    async def _create(self, name: str, value: str, lease_ttl: int | None) -> KeyValue:
        return await put(self._v2, name, value, lease_ttl, None)

    async def _swap(self, found: KeyValue, value: str, lease_ttl: int | None) -> KeyValue:
        """Replace ``found``; a reservation stays one."""
        kept = lease_ttl if found.lifetime.expires else None
        return await self._v2.compare_and_swap(found.name, value, kept, found.version)

    async def _show_in_v3(self, found: KeyValue, first: KeyValue | None) -> None:
        """Replace ``first`` in v3 (None: nothing) by a copy of ``found``, which another host has written to v2."""
        try:
            value = copied.copy_of(found.value, found.version)
        except ValueError:  # a malformed value cannot be marked
            value = found.value
        lease_ttl = max(found.lifetime.seconds or 1, 1) if found.lifetime.expires else None
        if first:
            await self._pause()
        with suppress(KeyExists, CompareFailed, KeyNotFound):
            await put(self._v3, found.name, value, lease_ttl, first)
            self._note_write()
            if first and not first.lifetime.expires:
                log.warning("Reservation %s in etcd v3 was replaced by the lease that etcd v2 has", found.name)

    async def _pause(self) -> None:
        """Wait if another program has just undone a write."""
        await asyncio.sleep(self._repeated.pause(asyncio.get_running_loop().time()))

    def _note_write(self) -> None:
        self._repeated.note(asyncio.get_running_loop().time())

    # The task

    async def _follow(self) -> None:
        while True:
            try:
                if self._held is None:
                    await self._woken.wait()
                    self._woken.clear()
                elif self._has_config:
                    await self._follow_from_snapshot(self._held.name)
                else:
                    await self._look_again()
            except (HistoryGone, ApiSwitchedOff):  # the next list, or the next reading of the config, explains it
                await asyncio.sleep(self._backoff.pause())
            except RegistryError as error:
                self._failures.failed(error)
                await asyncio.sleep(self._backoff.pause())

    async def _look_again(self) -> None:
        """Look for a config in v2 after a long time; without an answer, look again after the same time."""
        await asyncio.sleep(LOOK_AGAIN_SECONDS * self._rng.uniform(1 - _JITTER, 1))
        with suppress(RegistryUnavailable):
            await self._look_for_config()

    async def _follow_from_snapshot(self, name: str) -> None:
        """Keep the lease ``name`` until v2 has no config, or this host no lease.  Raises RegistryError."""
        await self._look_for_config()
        if not self._has_config:
            return
        snapshot = await self._v2.snapshot_of(name)
        cursor = snapshot.cursor
        if self._is_held_name(name):
            await self._settle(next(iter(snapshot.entries), None))
        while self._has_config and self._is_held_name(name):
            await self._write_if_due()
            changes = await self._next(cursor)
            self._failures.recovered()
            self._backoff.reset()
            for change in changes.changes:
                await self._react(change)
            cursor = changes.cursor
            if asyncio.get_running_loop().time() - self._config_read_at >= CONFIG_SECONDS:
                await self._look_for_config()

    async def _look_for_config(self) -> None:
        """Find out whether v2 has a config.  Raises RegistryUnavailable.

        A config that v2 had is not gone because some endpoints are without the v2 API and the others do not answer.
        """
        had_config = self._has_config
        try:
            await self._v2.read_config()
            self._has_config = True
            if not had_config:
                log.info("Found network config in etcd v2, too: the lease is kept in both until that config is deleted")
        except (KeyNotFound, ApiSwitchedOff) as missing:
            if had_config and isinstance(missing, ApiSwitchedOff) and not missing.is_certain:
                raise RegistryUnavailable(str(missing)) from missing
            self._has_config = False
            if had_config:
                log.info("Network config is gone from etcd v2 (%s): the lease is kept in v3 only from now on", missing)
        except ConfigError as error:  # a directory in its place, which an operator may correct
            raise RegistryUnavailable(str(error)) from error
        self._config_read_at = asyncio.get_running_loop().time()

    def _is_held_name(self, name: str) -> bool:
        return self._held is not None and name == self._held.name

    async def _next(self, cursor: int) -> Changes:
        """Return the next changes in v2, or none after ``WATCH_SECONDS`` or if this host has written or renews."""
        watch = asyncio.ensure_future(self._v2.watch(cursor, WATCH_SECONDS))
        woken = asyncio.ensure_future(self._woken.wait())
        try:
            await asyncio.wait({watch, woken}, return_when=asyncio.FIRST_COMPLETED)
            self._woken.clear()
            return watch.result() if watch.done() else Changes((), cursor)
        finally:
            watch.cancel()
            woken.cancel()

    async def _react(self, change: Put | Deleted) -> None:
        match change:
            case Put(entry) if self._is_held_name(entry.name):
                await self._settle(entry)
            case Deleted(name) if self._is_held_name(name):
                await self._settle(None)

    async def _write_if_due(self) -> None:
        """Renew the lease, or make it a reservation, if it has to be."""
        held = self._held
        if held is None or held.entry is None:
            return
        must_be_reserved = held.lease_ttl is None and held.entry.lifetime.expires
        lease_ttl = None if must_be_reserved else self._due
        if lease_ttl is None and not must_be_reserved:
            return
        await self._pause()
        try:
            entry = await self._extend(held, held.entry.version, lease_ttl)
        except (CompareFailed, KeyNotFound):
            await self._settle(await find(self._v2, held.name))
        else:
            self._note_write()
            self._replace_entry(held, entry)
            self._due = None

    async def _extend(self, held: _Held, version: int, lease_ttl: int | None) -> KeyValue:
        """Renew the lease for ``lease_ttl`` seconds; None: make it a reservation."""
        if lease_ttl is None:
            return await self._v2.compare_and_swap(held.name, held.value, None, version)
        return await self._v2.renew(held.name, held.value, lease_ttl, version)

    async def _settle(self, found: KeyValue | None) -> None:
        """Act on ``found``, the present state of our lease in v2: adopt it, recreate it, or give it up."""
        held = self._held
        if held is None or (found and held.entry and found.version == held.entry.version):
            return
        if found is None:
            await self._recreate(held)
        elif is_written_by(self._identity, found.value):
            await self._adopt(held, found)
        else:
            await self._give_up(held, found)

    async def _adopt(self, held: _Held, found: KeyValue) -> None:
        """Keep the entry that v2 has.  Renew it, because another program, or this one earlier, chose its lifetime."""
        if not found.lifetime.expires:
            await self._reserve_in_v3(held.name)
        self._due = held.lease_ttl if found.lifetime.expires else None
        self._replace_entry(held, found)

    async def _reserve_in_v3(self, name: str) -> None:
        """Make our lease in v3 a reservation, as that in v2 has become one; the watch of v3 reports it."""
        first = await find(self._v3, name)
        if first and first.lifetime.expires and is_written_by(self._identity, first.value):
            with suppress(CompareFailed, KeyNotFound):
                await self._v3.compare_and_swap(name, first.value, None, first.version)

    async def _give_up(self, held: _Held, found: KeyValue) -> None:
        """Show ``found``, which another host has written to v2, in the place of our lease in v3."""
        first = await find(self._v3, found.name)
        if first and is_written_by(self._identity, first.value):
            log.warning("Lease %s was overwritten in etcd v2 by another host", found.name)
            await self._show_in_v3(found, first)
        if self._held is held:
            self._held = None

    async def _recreate(self, held: _Held) -> None:
        """Create the lease in v2, if v3 still has it."""
        first = await find(self._v3, held.name)
        if first is None or first.value != held.value:
            return
        await self._pause()
        try:
            entry = await self._create(held.name, held.value, held.lease_ttl)
        except KeyExists as error:
            if await find(self._v2, held.name) is None:  # a directory, which another program may remove
                raise RegistryUnavailable(str(error)) from error
            return  # the watch reports the other entry
        self._note_write()
        if held.entry:
            log.warning("Own lease %s was deleted in etcd v2 or has expired there; recreated the lease", held.name)
        self._due = None
        self._replace_entry(held, entry)

    def _replace_entry(self, held: _Held, entry: KeyValue) -> None:
        """Note the entry in v2, unless this host has written another one meanwhile."""
        if self._held is held:
            self._held = replace(held, entry=entry)
