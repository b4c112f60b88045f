"""Stand-ins for the world, for tests that need neither root nor etcd."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from flannelpy.errors import CompareFailed, HistoryGone, HistoryOverrun, KeyExists, KeyNotFound, RegistryUnavailable
from flannelpy.registry.base import PERMANENT, Changes, Deleted, KeyValue, Put, Schema, Snapshot, all_names, expires_in

if TYPE_CHECKING:
    from collections.abc import Callable

HISTORY_LENGTH = 1000  # as in etcd v2


class _Stored(NamedTuple):
    value: str
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
    """

    schema = Schema.V2
    relist_seconds = 300.0

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._config: str | None = None
        self._stored: dict[str, _Stored] = {}
        self._history: deque[_Event] = deque(maxlen=HISTORY_LENGTH)
        self._index = 0
        self._watches: list[list[_Event]] = []  # what has happened since each of them began, and a little before
        self._woken = asyncio.Event()  # replaced by a new one each time it is set
        self._down = self._closed = self._reply_is_lost = False

    # The protocol

    async def read_config(self) -> str:
        self._begin()
        if self._config is None:
            raise KeyNotFound("config: key not found")
        return self._config

    async def wait_for_config_change(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def snapshot(self, is_wanted: Callable[[str], bool] = all_names) -> Snapshot:
        self._begin()
        return Snapshot(tuple(map(self._entry, self._stored)), self._index + 1)

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
        permanent = name in self._stored and self._stored[name].expires is None
        return await self.compare_and_swap(name, value, None if permanent else lease_ttl, version)

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

    def wipe(self) -> None:
        """Restart without data, as an etcd that lost its data directory; waiting calls keep waiting."""
        self._stored.clear()
        self._history.clear()
        self._index = 0

    def remove_subnets(self) -> None:
        """Remove the directory of all entries at one stroke."""
        self._stored.clear()
        self._record(None, ends_history=True)

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
        value, expires, version, created = self._stored[name]
        lifetime = PERMANENT if expires is None else expires_in(math.ceil(expires - self._clock()))
        return KeyValue(name, value, lifetime, version, created)

    def _put(self, name: str, value: str, lease_ttl: int | None, created: int | None = None) -> KeyValue:
        """``created`` is kept by a compare-and-swap only: etcd's plain set creates the key again."""
        if lease_ttl is not None and lease_ttl <= 0:
            raise ValueError(f"lease_ttl is {lease_ttl}")
        expires = None if lease_ttl is None else self._clock() + lease_ttl
        self._stored[name] = _Stored(value, expires, self._index + 1, self._index + 1 if created is None else created)
        entry = self._entry(name)
        self._record(Put(entry))
        return entry

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
