"""Stand-ins for the world, for tests that need neither root nor etcd."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from flannelpy.errors import CompareFailed, HistoryGone, HistoryOverrun, KeyExists, KeyNotFound, RegistryUnavailable
from flannelpy.registry.base import (
    EXPIRES,
    PERMANENT,
    Changes,
    Deleted,
    KeyValue,
    Put,
    Schema,
    Snapshot,
    all_names,
    expires_in,
)
from flannelpy.report import StoreReport

if TYPE_CHECKING:
    from collections.abc import Callable

HISTORY_LENGTH = 1000  # as in etcd v2


class _Stored(NamedTuple):
    value: str
    lease_ttl: int | None
    expires: float | None
    version: int
    created: int


class _Event(NamedTuple):
    at: int
    change: Put | Deleted | None  # None: a change that no watch reports, such as a new config
    ends_history: bool = False


class FakeRegistry:
    """The Registry protocol in memory, on the time of ``clock``.

    ``clock`` is the time.  A clock that the test itself moves has to be followed by ``tick``, which lets
    entries expire and waiting watches time out.

    ``schema`` is that of the etcd API which the fake imitates.  v3 differs from v2 in this: it tells the remaining
    seconds only of what a call has just written, renews without an event, wakes who waits for the config, keeps all of
    its history, keeps the creation of a key that is set without a condition, and removes all keys by an event for each.
    """

    def __init__(self, clock: Callable[[], float], schema: Schema = Schema.V2) -> None:
        self._clock = clock
        self.schema = schema
        self.relist_seconds = 300.0 if schema is Schema.V2 else 3600.0
        self._config: str | None = None
        self._config_read: str | None = None
        self._is_config_reported = False
        self._stored: dict[str, _Stored] = {}
        self._history: deque[_Event] = deque(maxlen=HISTORY_LENGTH if schema is Schema.V2 else None)
        self._index = 0
        self._watches: list[list[_Event]] = []  # what has happened since each of them began, and a little before
        self._woken = asyncio.Event()  # replaced by a new one each time it is set
        self._down = self._closed = self._reply_is_lost = False

    # The protocol

    def store_reports(self) -> tuple[StoreReport, ...]:
        return (StoreReport(int(self.schema.value), "http://127.0.0.1:2379", None, None),)

    async def read_config(self) -> str:
        self._begin()
        self._config_read, self._is_config_reported = self._config, False
        if self._config is None:
            raise KeyNotFound("config: key not found")
        return self._config

    async def wait_for_config_change(self, seconds: float) -> None:
        if self.schema is Schema.V2 or self._is_config_reported:
            await asyncio.sleep(seconds)
            return
        while self._config == self._config_read:
            await self._woken.wait()
        self._is_config_reported = True

    async def snapshot(self, is_wanted: Callable[[str], bool] = all_names) -> Snapshot:
        self._begin()
        return Snapshot(tuple(map(self._untimed, self.stored())), self._index + 1)

    async def snapshot_of(self, name: str) -> Snapshot:
        self._begin()
        entries = [self._untimed(self._entry(name))] if name in self._stored else []
        return Snapshot(tuple(entries), self._index + 1)

    async def create(self, name: str, value: str, lease_ttl: int) -> KeyValue:
        self._begin()
        if name in self._stored:
            raise KeyExists(f"{name}: key already exists")
        entry = self._put(name, value, lease_ttl)
        self._reply()
        return entry

    async def compare_and_swap(self, name: str, value: str, lease_ttl: int | None, version: int) -> KeyValue:
        self._begin()
        self._compare(name, version)
        entry = self._put(name, value, lease_ttl, self._stored[name].created)
        self._reply()
        return entry

    async def renew(self, name: str, value: str, lease_ttl: int, version: int) -> KeyValue:
        self._begin()
        self._compare(name, version)
        stored = self._stored[name]
        wanted_ttl = None if stored.lease_ttl is None else lease_ttl
        if self.schema is Schema.V2 or (stored.value, stored.lease_ttl) != (value, wanted_ttl):
            return await self.compare_and_swap(name, value, wanted_ttl, version)
        if wanted_ttl is not None:
            self._extend(name, wanted_ttl)
        self._reply()
        return self._entry(name)

    async def compare_and_delete(self, name: str, version: int) -> None:
        self._begin()
        self._compare(name, version)
        self._remove(name)
        self._reply()

    async def watch(self, cursor: int, timeout: float) -> Changes:
        deadline = self._clock() + timeout
        self._begin()
        seen = self._since(cursor)
        self._watches.append(seen)
        try:
            while not (changes := _as_changes(seen, cursor)).changes and self._clock() < deadline:
                await self._wait(deadline)
                self._begin()
                self._check_position(cursor)
        finally:
            self._watches = [other for other in self._watches if other is not seen]
        return changes

    async def close(self) -> None:
        self._closed = True
        self._wake()

    # What only tests do

    def stored(self) -> tuple[KeyValue, ...]:
        """All entries, with the remaining seconds."""
        return tuple(map(self._entry, self._stored))

    def change_leader(self) -> None:
        """Begin the lifetime of every entry again, as etcd v3 does."""
        for name, stored in self._stored.items():
            if stored.lease_ttl is not None:
                self._extend(name, stored.lease_ttl)

    def tick(self) -> None:
        """The clock was moved."""
        self._expire()
        self._wake()

    def go_down(self) -> None:
        """Stop answering; every waiting call fails at once."""
        self._down = True
        self._wake()

    def come_up(self) -> None:
        """Answer again; everything stored is still there."""
        self._down = False

    def lose_reply_of_next_write(self) -> None:
        """Execute the next write and raise RegistryUnavailable: its reply is lost, and no endpoint can be asked."""
        self._reply_is_lost = True

    def set_config(self, config: str | None) -> None:
        """Store ``config``; None removes it."""
        self._config = config
        self._record(None)

    def put_raw(self, name: str, value: str, ttl: int | None) -> KeyValue:
        """Store an entry without any condition, as an administrator would."""
        self._expire()
        return self._put(name, value, ttl)

    def delete_raw(self, name: str) -> None:
        """Remove an entry without any condition."""
        self._expire()
        self._remove(name)

    def forget_history(self) -> None:
        """Forget all changes but the last one, as etcd v3 does when it is compacted."""
        while len(self._history) > 1:
            self._history.popleft()

    def back_up(self) -> Callable[[], None]:
        """Return what restores the store as it is now, to be called as often as one likes.

        Waiting calls keep waiting.  In v2 an entry still ends at its former time; in v3 its lifetime begins again.
        """
        stored, index = dict(self._stored), self._index

        def restore() -> None:
            self._stored, self._index = dict(stored), index
            self._history.clear()
            if self.schema is Schema.V3:
                self.change_leader()

        return restore

    def wipe(self) -> None:
        """Restart without data, as an etcd that lost its data directory; waiting calls keep waiting."""
        self._stored.clear()
        self._history.clear()
        self._index = 0

    def remove_subnets(self) -> None:
        """Remove all entries at one stroke: in v2 their directory, in v3 the range of their keys."""
        if self.schema is Schema.V2:
            self._stored.clear()
            self._record(None, ends_history=True)
        for name in list(self._stored):
            self._remove(name)

    # How it works

    def _begin(self) -> None:
        """What every call begins with."""
        if self._down or self._closed:
            raise RegistryUnavailable("the fake registry is " + ("closed" if self._closed else "down"))
        self._expire()

    def _reply(self) -> None:
        """What every write ends with."""
        if self._reply_is_lost:
            self._reply_is_lost = False
            raise RegistryUnavailable("the reply was lost")

    def _compare(self, name: str, version: int) -> None:
        if name not in self._stored:
            raise KeyNotFound(f"{name}: key not found")
        found = self._stored[name].version
        if found != version:
            raise CompareFailed(f"{name}: [{version} != {found}]")

    def _entry(self, name: str) -> KeyValue:
        value, _, expires, version, created = self._stored[name]
        lifetime = PERMANENT if expires is None else expires_in(math.ceil(expires - self._clock()))
        return KeyValue(name, value, lifetime, version, created)

    def _untimed(self, entry: KeyValue) -> KeyValue:
        """``entry`` as a snapshot or an event has it."""
        is_unknown = self.schema is Schema.V3 and entry.lifetime.expires
        return entry._replace(lifetime=EXPIRES) if is_unknown else entry

    def _put(self, name: str, value: str, lease_ttl: int | None, created: int | None = None) -> KeyValue:
        """``created`` is kept by a compare-and-swap only: etcd v2's plain set creates the key again."""
        if lease_ttl is not None and lease_ttl <= 0:
            raise ValueError(f"lease_ttl is {lease_ttl}")
        if self.schema is Schema.V3 and name in self._stored:
            created = self._stored[name].created
        version = self._index + 1
        self._stored[name] = _Stored(value, lease_ttl, None, version, version if created is None else created)
        if lease_ttl is not None:
            self._extend(name, lease_ttl)
        entry = self._entry(name)
        self._record(Put(self._untimed(entry)))
        return entry

    def _extend(self, name: str, lease_ttl: int) -> None:
        self._stored[name] = self._stored[name]._replace(lease_ttl=lease_ttl, expires=self._clock() + lease_ttl)

    def _remove(self, name: str) -> None:
        del self._stored[name]
        self._record(Deleted(name))

    def _record(self, change: Put | Deleted | None, ends_history: bool = False) -> None:
        self._index += 1
        event = _Event(self._index, change, ends_history)
        self._history.append(event)
        for seen in self._watches:
            seen.append(event)
        self._wake()

    def _expire(self) -> None:
        due = sorted((stored.expires, name) for name, stored in self._stored.items() if stored.expires is not None)
        for expires, name in due:
            if expires <= self._clock():
                self._remove(name)

    def _since(self, cursor: int) -> list[_Event]:
        self._check_position(cursor)
        if self._history and cursor < self._history[0].at:
            raise HistoryOverrun(f"the history begins at {self._history[0].at}, after {cursor}", self._index + 1)
        return [event for event in self._history if event.at >= cursor]

    def _check_position(self, cursor: int) -> None:
        if cursor > self._index + 1:
            raise HistoryGone(f"the store stands at {self._index}, before {cursor}")

    def _wake(self) -> None:
        self._woken.set()
        self._woken = asyncio.Event()

    async def _wait(self, deadline: float) -> None:
        """Until something happens, but not beyond the next expiry or ``deadline``."""
        times = [stored.expires for stored in self._stored.values() if stored.expires is not None]
        # Not wait_for, which in Python 3.11 forgets that it was cancelled when something happened at the same moment.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(min([deadline, *times]) - self._clock(), 0)):
                await self._woken.wait()


def _as_changes(events: list[_Event], cursor: int) -> Changes:
    """Raises HistoryGone when the directory was removed."""
    seen = [event for event in events if event.change or event.ends_history]
    if any(event.ends_history for event in seen):
        raise HistoryGone("the directory was removed")
    return Changes(tuple(event.change for event in seen if event.change), seen[-1].at + 1 if seen else cursor)
