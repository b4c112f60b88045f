"""Leases in etcd, over its v2 API: implements the Registry protocol.

A watch is a request that stays open (``stream=true``) through any number of changes elsewhere in the store.  A long
poll would lose its history after 1,000 of them.  The cursor moves with the events below ``subnets`` only, because
nothing else proves what has arrived.  A watch that has to be reopened in a busy store may therefore find its history
gone (HistoryOverrun).

A write whose reply was lost is sent again.  If etcd then refuses it, flannelpy reads the key back.  If the key holds
the value of this write, the first try caused the refusal, and the write has succeeded.

Keys of other programs below or beside the leases never end a call.  flannelpy lists only the direct children of
``subnets``, and events of deeper keys only move the cursor.

Layers: etcd_v2_client.py calls one endpoint and translates etcd's errors; endpoints.py rotates over the endpoints and
runs each call in a thread; event_stream.py reads an open watch.

Counterpart: subnet/registry.go of flanneld v0.5.5.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import posixpath
import time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote

from flannelpy.errors import CompareFailed, ConfigError, HistoryGone, KeyExists, KeyNotFound, RegistryUnavailable
from flannelpy.foreign import shown
from flannelpy.registry import endpoints
from flannelpy.registry.base import PERMANENT, Changes, Deleted, KeyValue, Put, Schema, Snapshot, all_names, expires_in
from flannelpy.registry.endpoints import ANONYMOUS, LONGEST_CAUSE, Access, CallThreads, Rotation, parse_endpoint
from flannelpy.registry.etcd_v2_client import OpenedWatch, V2Client, event_of, index_of
from flannelpy.registry.event_stream import EventStream
from flannelpy.registry.unwanted import Reduction

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from etcd import EtcdResult

    from flannelpy.report import StoreReport

Answer = TypeVar("Answer")

SHORTEST_POLL = 0.5  # seconds that a watch waits even if it begins late, on the last endpoint in the rotation
# etcd remembers 1,000 events; at most as many again may happen during one request.
SAFE_HISTORY = 500

REMOVALS = frozenset({"delete", "compareAndDelete", "expire"})


class _Event(NamedTuple):
    """The meaning of the event at index ``at``; ``removed_directory``: one that contained the leases, now removed."""

    at: int
    change: Put | Deleted | None
    removed_directory: str = ""


class _Stream(EventStream[_Event]):
    """The events of a watch.  ``cursor``: the index from which a new watch would have to begin."""

    def __init__(self, opened: OpenedWatch, cursor: int, convert: Callable[[Any], _Event]) -> None:
        self.client, self.start, self.cursor = opened.client, opened.start, cursor
        super().__init__(opened.response, opened.interrupt, lambda document: (convert(document),))


class EtcdV2Registry:
    """The network kept below ``prefix`` in the etcd cluster reached at ``urls``.

    Raises UsageError and HostError from the constructor, for options that can never work.
    """

    schema = Schema.V2
    relist_seconds = 300.0

    def __init__(self, urls: Sequence[str], prefix: str, access: Access = ANONYMOUS) -> None:
        access.check_files()
        self._cluster = Rotation([V2Client(parse_endpoint(text), access) for text in urls])
        self._threads = CallThreads()
        root = posixpath.normpath("/" + prefix.strip("/")).rstrip("/")
        self._config = quote(f"{root}/config")
        self._subnets = f"{root}/subnets/"
        self._stream: _Stream | None = None
        self._is_streaming = True

    def store_reports(self) -> tuple[StoreReport, ...]:
        """Return when etcd answered, as Registry demands."""
        return (self._cluster.report(2),)

    async def read_config(self) -> str:
        """Read the network config, as Registry demands."""
        return await self._ask(self._read_config)

    async def wait_for_config_change(self, seconds: float) -> None:
        """Wait for ``seconds``, as Registry demands: the watch reports changes of leases only."""
        await asyncio.sleep(seconds)

    async def snapshot(self, is_wanted: Callable[[str], bool] = all_names) -> Snapshot:
        """List the entries, as Registry demands."""
        return await self._ask(functools.partial(self._snapshot, is_wanted))

    async def snapshot_of(self, name: str) -> Snapshot:
        """Read an entry, as Registry demands."""
        return await self._ask(functools.partial(self._snapshot_of, self._key(name)))

    async def create(self, name: str, value: str, lease_ttl: int) -> KeyValue:
        """Create an entry, as Registry demands."""
        return await self._write(name, value, ttl=lease_ttl, prevExist=False)

    async def compare_and_swap(self, name: str, value: str, lease_ttl: int | None, version: int) -> KeyValue:
        """Replace an entry, as Registry demands."""
        return await self._write(name, value, ttl=lease_ttl, prevIndex=version)

    async def renew(self, name: str, value: str, lease_ttl: int, version: int) -> KeyValue:
        """Write the entry again, as Registry demands.

        flanneld reads the expiration of a lease from this event; etcd's ``refresh`` would send none.  A read before the
        write shows whether the entry is permanent: at one version, an entry has one lifetime.
        """
        found = await self._ask(lambda client: self._entry(client.read(self._key(name), quorum=True)))
        return await self.compare_and_swap(name, value, lease_ttl if found.lifetime.expires else None, version)

    async def compare_and_delete(self, name: str, version: int) -> None:
        """Delete an entry, as Registry demands."""

        def send(client: V2Client) -> None:
            client.delete(self._key(name), prevIndex=version)

        def settle(client: V2Client) -> None:
            with contextlib.suppress(KeyNotFound):  # deleted by the first try
                send(client)

        await self._ask(send, settle)

    async def watch(self, cursor: int, timeout: float) -> Changes:
        """Return what happens from ``cursor`` on, as Registry demands.

        If a stream ends, flannelpy opens another on the next endpoint.  It gives up after one more short stream than
        there are endpoints.
        """
        deadline = time.monotonic() + timeout
        ends = 0
        while ends <= len(self._cluster.clients):
            left = max(deadline - time.monotonic(), SHORTEST_POLL)
            stream = await self._stream_at(cursor, left)
            await stream.wait(max(deadline - time.monotonic(), SHORTEST_POLL))
            if events := stream.take():
                return self._changes(stream, events)
            if not stream.end:
                await self._confirm(stream)
                return Changes((), cursor)
            self._cluster.pass_over(stream.client)
            ends += stream.is_short
        raise RegistryUnavailable(f"{stream.client.url}: {shown(stream.end, LONGEST_CAUSE)}")

    async def close(self) -> None:
        """Close the registry, as Registry demands; connections in use end by their own time-outs."""
        self._leave_stream()
        self._threads.close()

    async def _ask(
        self, request: Callable[[V2Client], Answer], settle: Callable[[V2Client], Answer] | None = None
    ) -> Answer:
        """Call ``Rotation.ask`` in a thread of its own."""
        return await self._threads.run(functools.partial(self._cluster.ask, request, settle))

    async def _write(self, name: str, value: str, ttl: int | None, **condition: int) -> KeyValue:
        """Write under ``condition``, prevExist or prevIndex, and return the new entry."""
        if ttl is not None and ttl <= 0:
            raise ValueError(f"lease_ttl is {ttl}, which etcd would read as no TTL")
        key = self._key(name)

        def send(client: V2Client) -> KeyValue:
            return self._entry(client.write(key, value, ttl=ttl, **condition))

        def settle(client: V2Client) -> KeyValue:
            try:
                return send(client)
            except (KeyExists, CompareFailed):
                with contextlib.suppress(KeyNotFound):
                    found = client.read(key, quorum=True)
                    if found.value == value:
                        return self._entry(found)
                raise

        return await self._ask(send, settle)

    def _key(self, name: str) -> str:
        return quote(self._subnets + name)

    def _entry(self, node: EtcdResult) -> KeyValue:
        # Between its expiration and its removal by etcd, a key has no "ttl" but still an "expiration".
        lifetime = PERMANENT if node.expiration is None else expires_in(max(node.ttl or 0, 0))
        name = node.key.removeprefix(self._subnets)
        return KeyValue(name, node.value or "", lifetime, node.modifiedIndex, node.createdIndex)

    def _read_config(self, client: V2Client) -> str:
        node = client.node(self._config)
        if node.get("dir"):
            raise ConfigError(f"{node['key']} is a directory instead of the network config")
        return str(node.get("value", ""))

    def _snapshot(self, is_wanted: Callable[[str], bool], client: V2Client) -> Snapshot:
        try:
            with client.list(self._key("")) as (children, index):
                entries = (self._entry(node) for node in children if self._is_entry(node))
                return Snapshot(tuple(Reduction(is_wanted).of(entries)), index + 1)
        except KeyNotFound as missing:
            return Snapshot((), index_of(missing) + 1)

    def _snapshot_of(self, key: str, client: V2Client) -> Snapshot:
        try:
            node = client.read(key, quorum=True)
        except KeyNotFound as missing:
            return Snapshot((), index_of(missing) + 1)
        return Snapshot((self._entry(node),) if self._is_entry(node) else (), int(node.etcd_index) + 1)

    async def _stream_at(self, cursor: int, seconds: float) -> _Stream:
        """Return the open stream if its position is ``cursor``, else a new one from there.  Raises HistoryGone.

        ``seconds``: how long a long poll may take.
        """
        if self._stream is None or self._stream.is_over or self._stream.cursor != cursor:
            self._leave_stream()
            self._stream = _Stream(await self._open(cursor, seconds), cursor, self._event)
            if self._stream.start < cursor - 1:
                raise self._history_gone(_wiped(self._stream.start, cursor))
        return self._stream

    async def _open(self, cursor: int, seconds: float) -> OpenedWatch:
        """Open a new watch.

        After a failure to open a stream, this is a long poll, because a proxy may buffer whole replies.
        """
        poll = None if self._is_streaming else seconds
        try:
            begin = functools.partial(self._cluster.ask, lambda client: client.watch(self._key(""), cursor, poll))
            return await self._threads.run(begin, discard=lambda opened: opened.response.close())
        except RegistryUnavailable:
            self._is_streaming = False
            raise

    def _leave_stream(self) -> None:
        if self._stream:
            self._stream.close()
        self._stream = None

    def _history_gone(self, why: str) -> HistoryGone:
        self._leave_stream()
        return HistoryGone(why)

    async def _confirm(self, stream: _Stream) -> None:
        """Check that a stream without events belongs to a working endpoint on which nothing has happened.

        A new request to the same endpoint shows whether the endpoint answers, and its index.  If anything has happened
        in the store, a firewall may have forgotten the connection, or a proxy may hold back events.  The next call
        therefore asks from the cursor again, by a long poll, which ends with its event.  This needs the history to
        reach back to the cursor.  In a busier store, flannelpy trusts the stream, and TCP keep-alive alone detects a
        dead connection.

        If the other calls moved to another endpoint, the watch follows them.  A member that is cut off from its
        cluster still answers this request, but rejects theirs.

        Raises HistoryGone, and RegistryUnavailable if no endpoint answers or an event stays incomplete.
        """
        if stream.is_stuck(endpoints.REPLY_TIMEOUT):
            self._leave_stream()
            self._cluster.pass_over(stream.client)
            raise RegistryUnavailable(f"{stream.client.url}: an event arrives too slowly")
        try:
            index = await self._threads.run(functools.partial(self._cluster.ask_at, stream.client, self._index))
        except RegistryUnavailable:
            self._leave_stream()
            other = await self._stream_at(stream.cursor, SHORTEST_POLL)
            if other.client is stream.client:  # accepts a watch and answers nothing else
                self._leave_stream()
                raise
            return
        if index < stream.cursor - 1:
            raise self._history_gone(_wiped(index, stream.cursor))
        self._is_streaming = not 0 <= index - stream.cursor < SAFE_HISTORY
        if not self._is_streaming or stream.client is not self._cluster.preferred:
            self._leave_stream()

    def _index(self, client: V2Client) -> int:
        """Return the index of this member of the cluster."""
        try:
            return int(client.read(self._config).etcd_index)
        except KeyNotFound as missing:
            return index_of(missing)

    def _changes(self, stream: _Stream, events: Sequence[_Event]) -> Changes:
        """Translate ``events``.  Raises HistoryGone if one of them removed a directory that contained the leases."""
        for event in events:
            if event.removed_directory:
                raise self._history_gone(f"{event.removed_directory}: the directory was removed")
        self._cluster.answers.answered()
        changes = tuple(event.change for event in events if event.change)
        stream.cursor = events[-1].at + 1
        # If the first event is older than the stream, no more will come: etcd does not register such a watch.
        if events[0].at > stream.start:
            return Changes(changes, stream.cursor)
        self._leave_stream()
        return Changes(changes, stream.cursor, stream.start - events[-1].at)

    def _event(self, document: Any) -> _Event:
        event = event_of(document)
        index = int(event.modifiedIndex)
        removed = event.action in REMOVALS
        if removed and self._subnets.startswith(f"{event.key.rstrip('/')}/"):
            # etcd sends no events for the keys inside.
            return _Event(index, None, event.key)
        # If a key with a value becomes a directory, etcd sends no separate event for the removed value.
        is_removed = event.action == "set" if event.dir else removed
        if not self._is_child(event) or (event.dir and not is_removed):
            return _Event(index, None)
        entry = self._entry(event)
        return _Event(index, Deleted(entry.name) if is_removed else Put(entry))

    def _is_entry(self, node: EtcdResult) -> bool:
        """Return whether ``node`` is a value, and a direct child of ``subnets``."""
        return not node.dir and self._is_child(node)

    def _is_child(self, node: EtcdResult) -> bool:
        return bool(node.key.startswith(self._subnets)) and "/" not in node.key[len(self._subnets) :]


def _wiped(index: int, cursor: int) -> str:
    return f"etcd stands at {index}, before {cursor}: it was wiped or restored"
