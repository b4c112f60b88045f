"""The watch of etcd v3: one stream for the config and the leases of a network.

The cursor moves with events and with etcd's progress notices, because nothing else proves what has arrived.  Several
events can have one revision, and etcd may split them into several answers: until the last of them has arrived, the
cursor stays at their revision, and a new stream reports them once more.

A watch from the very revision up to which etcd was compacted is accepted, but lacks the deletions of that revision
(etcd issue 18089).  flannelpy therefore asks from one revision earlier, which etcd then refuses, and skips the events
before the cursor.

A stream without events may be a quiet network, or the endpoint is frozen, the connection dead or the store replaced.
After about 40 s without events, flannelpy therefore looks at the config on the same endpoint: one small request.  Its
answer shows the cluster, the revision of the store and the version of the config.  If other keys of the store were
written since the last look, a proxy may hold a dead connection open, which TCP keep-alive cannot detect.  flannelpy
then opens a new stream at the cursor, about once a minute at most.  It also does so at the end of a poll without events
if another call, such as a renewal, had to pass over the endpoint of the stream.

After the loss of a stream, flannelpy looks at once: a store that was restored may stand behind the cursor, or has
passed it already, but then its config has another version.
"""

from __future__ import annotations

import functools
import random
import time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from flannelpy.errors import HistoryGone, HistoryOverrun, RegistryUnavailable
from flannelpy.foreign import shown
from flannelpy.registry import endpoints
from flannelpy.registry.base import Changes, Deleted, Put
from flannelpy.registry.endpoints import LONGEST_CAUSE
from flannelpy.registry.etcd_v3_messages import (
    Header,
    Node,
    Refusal,
    checked,
    encoded,
    header_of,
    node_of,
    number,
    only_node_of,
    refusal_of_cancel,
)
from flannelpy.registry.event_stream import EventStream

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flannelpy.registry.endpoints import CallThreads, Rotation
    from flannelpy.registry.etcd_v3_client import OpenedWatch, V3Client
    from flannelpy.registry.etcd_v3_store import Keys, Known

SHORTEST_POLL = 0.5  # seconds that a watch waits even if it begins late
# Seconds of silence before a look, and between a new stream for a health check and the next look.  An event is reported
# within a minute of its write also if the stream had died.
LOOK_SECONDS = (35.0, 45.0)
REOPEN_SECONDS = (50.0, 55.0)
# Seconds that the event of a new config may take longer than a look that shows it.
_LATE = 1.0

_RANDOM = random.SystemRandom()


class Created(NamedTuple):
    """etcd has accepted the watch."""

    header: Header


class Compacted(NamedTuple):
    """etcd's history begins at ``first`` only, behind the start of the watch."""

    first: int


class Step(NamedTuple):
    """An event or a progress notice.  ``cursor``: the revision from which a new watch would continue.

    ``config``: the version of the config after the event, 0 if it was deleted; None if the event is of another key.
    """

    cursor: int
    change: Put | Deleted | None = None
    config: int | None = None


Item: TypeAlias = Created | Compacted | Step


class _Stream(EventStream[Item]):
    """The answers of one watch.

    ``cursor``: the revision from which a new watch would continue.  ``revision``: that of the store, as far as this
    stream or a look has shown it.  Time is that of time.monotonic.
    """

    def __init__(self, opened: OpenedWatch, cursor: int, keys: Keys) -> None:
        self.client, self.cursor = opened.client, cursor
        self.revision = 0
        self.is_created = False
        self.opened_at = time.monotonic()
        self.look_at = self.opened_at + endpoints.REPLY_TIMEOUT
        super().__init__(opened.response, opened.interrupt, functools.partial(items_of, keys, opened.client, cursor))

    def move_to(self, cursor: int) -> None:
        self.cursor = max(self.cursor, cursor)
        self.revision = max(self.revision, cursor - 1)


class Watch:
    """The watch of one network.  All methods belong to the event loop."""

    def __init__(self, cluster: Rotation[V3Client], threads: CallThreads, keys: Keys, known: Known) -> None:
        self._cluster = cluster
        self._threads = threads
        self._keys = keys
        self._known = known
        self._stream: _Stream | None = None
        self._has_lost_stream = False
        self._reopened_at = time.monotonic() - REOPEN_SECONDS[1]

    async def changes(self, cursor: int, timeout: float) -> Changes:
        """Return what happens from ``cursor`` on, as Registry demands.

        If a stream ends, flannelpy opens another on the next endpoint.  It gives up after one more short or silent
        stream than there are endpoints.
        """
        deadline = time.monotonic() + max(timeout, SHORTEST_POLL)
        failures = 0
        while failures <= len(self._cluster.clients):
            stream = await self._stream_at(cursor)
            await stream.wait(_seconds_until(deadline, stream))
            if items := stream.take():
                if changes := self._taken(stream, items):
                    return changes
            elif stream.end or stream.is_stuck(endpoints.REPLY_TIMEOUT):
                failures += stream.is_short or not stream.end
                self._give_up(stream)
            elif time.monotonic() >= stream.look_at:
                failures += not await self._look(stream)
            elif time.monotonic() >= deadline:
                self._follow_other_calls(stream)
                return Changes((), cursor)
        raise RegistryUnavailable(f"{stream.client.url}: {shown(stream.end or 'no answer', LONGEST_CAUSE)}")

    def close(self) -> None:
        """Leave the stream."""
        if self._stream:
            self._stream.close()
        self._stream = None

    async def _stream_at(self, cursor: int) -> _Stream:
        """Return the open stream if its position is ``cursor``, else a new one from there."""
        if self._stream is None or self._stream.is_over or self._stream.cursor != cursor:
            self.close()
            self._stream = _Stream(await self._open(cursor), cursor, self._keys)
        return self._stream

    async def _open(self, cursor: int) -> OpenedWatch:
        options = {"start_revision": str(max(cursor - 1, 1)), "fragment": True, "progress_notify": True}
        begin = functools.partial(self._cluster.ask, lambda client: client.watch(self._keys.span | options))
        try:
            return await self._threads.run(begin, discard=lambda opened: opened.response.close())
        except RegistryUnavailable:
            self._has_lost_stream = True
            raise

    def _give_up(self, stream: _Stream) -> None:
        """Continue on the next endpoint, where a look comes first."""
        stream.close("an event arrives too slowly")
        self._cluster.pass_over(stream.client)
        self._has_lost_stream = True

    def _follow_other_calls(self, stream: _Stream) -> None:
        """Leave a silent stream if another call has passed over its endpoint, for a new one, where a look comes first.

        Of endpoints that answer some calls and not others, each can be passed over again and again; the watch follows
        about once a minute at most.
        """
        now = time.monotonic()
        if stream.client is not self._cluster.preferred and now - self._reopened_at >= REOPEN_SECONDS[0]:
            self._reopened_at = now
            self._has_lost_stream = True
            self.close()

    def _taken(self, stream: _Stream, items: Sequence[Item]) -> Changes | None:
        """Return the changes and the new cursor; None if the cursor has not moved.  Raises HistoryGone."""
        before = stream.cursor
        changes = []
        self._cluster.answers.answered()
        self._plan_look(stream)
        for item in items:
            match item:
                case Created(header):
                    self._accept(stream, header)
                case Compacted(first):
                    raise self._overrun(stream, first)
                case Step(cursor, change, config):
                    stream.move_to(cursor)
                    changes += [change] if change else []
                    if config is not None:
                        self._known.note_config(cursor, config)
        return Changes(tuple(changes), stream.cursor) if changes or stream.cursor > before else None

    def _accept(self, stream: _Stream, header: Header) -> None:
        """Note what the first answer shows.  Raises HistoryGone.

        A member that lags behind its cluster may be behind the cursor too.  The list that follows waits for it.
        """
        self._check_position(stream, header, None)
        stream.is_created = True
        stream.revision = header.revision
        if self._has_lost_stream:
            stream.look_at = time.monotonic()
        self._has_lost_stream = False

    async def _look(self, stream: _Stream) -> bool:
        """Look whether the stream can be trusted; return False if its endpoint gives no answer.  Raises HistoryGone."""
        if not stream.is_created:
            self._give_up(stream)
            return False
        try:
            header, config = await self._threads.run(functools.partial(self._cluster.ask_at, stream.client, self._ask))
        except RegistryUnavailable as error:
            stream.close(str(error).removeprefix(f"{stream.client.url}: "))
            self._has_lost_stream = True
            return False
        self._check_position(stream, header, config)
        await self._check_config(stream, header, config)
        self._judge_silence(stream, header)
        return True

    def _ask(self, client: V3Client) -> tuple[Header, int]:
        """Return the position of the store, and the version of the config."""
        answer = client.call("kv/range", {"key": encoded(self._keys.config), "keys_only": True})
        node = only_node_of(answer)
        return header_of(answer), node.version if node else 0

    async def _check_config(self, stream: _Stream, header: Header, config: int) -> None:
        """Raise HistoryGone if the config has another version, and no event reports it."""
        if self._known.config not in (None, config):
            await stream.wait(_LATE)
            if not stream.has_news:
                raise self._gone("the config was changed without an event: etcd was restored or replaced", config)
        else:
            self._known.note(header, config)

    def _judge_silence(self, stream: _Stream, header: Header) -> None:
        """Plan the next look.  If other keys were written in silence, leave the stream for a new one."""
        now = time.monotonic()
        is_suspicious = header.revision > stream.revision and now - stream.opened_at > LOOK_SECONDS[0] / 2
        stream.revision = max(stream.revision, header.revision)
        self._plan_look(stream)
        if is_suspicious and not stream.has_news:
            self._reopened_at = now
            self.close()

    def _plan_look(self, stream: _Stream) -> None:
        silence = time.monotonic() + _RANDOM.uniform(*LOOK_SECONDS)
        stream.look_at = max(silence, self._reopened_at + _RANDOM.uniform(*REOPEN_SECONDS))

    def _check_position(self, stream: _Stream, header: Header, config: int | None) -> None:
        """Raise HistoryGone if the store is not the one that the cursor belongs to."""
        if self._known.cluster not in (None, header.cluster):
            raise self._gone("etcd was replaced by another cluster", config)
        if header.revision < stream.cursor - 1:
            why = f"etcd stands at {header.revision}, before {stream.cursor}: it was wiped or restored"
            raise self._gone(why, config)

    def _gone(self, why: str, config: int | None) -> HistoryGone:
        self.close()
        self._known.forget(config)
        return HistoryGone(why)

    def _overrun(self, stream: _Stream, first: int) -> HistoryOverrun:
        """Return the error for a compaction: the store is healthy, and a watch from its present revision works."""
        self.close()
        why = f"etcd was compacted up to {first}, beyond {stream.cursor}"
        return HistoryOverrun(why, max(stream.revision + 1, first))


def _seconds_until(deadline: float, stream: _Stream) -> float:
    """Return how long to wait for the stream: until it is created, or until the next look, or ``deadline``."""
    wake_at = min(deadline, stream.look_at) if stream.is_created else stream.look_at
    return max(wake_at - time.monotonic(), 0)


def items_of(keys: Keys, client: V3Client, start: int, document: Any) -> Iterator[Item]:
    """Yield what an answer of a watch contains, from the revision ``start`` on.

    Raises Refusal if etcd has ended the watch.
    """
    try:
        answer = checked(document)
        if answer.get("canceled"):
            yield _cancellation(answer)
            return
    except Refusal as refusal:
        raise client.in_words(refusal) from None
    header = header_of(answer)
    if answer.get("created"):
        yield Created(header)
    elif events := answer.get("events"):
        yield from _steps(keys, events, start, is_complete=not answer.get("fragment"))
    else:
        yield Step(header.revision + 1)


def _cancellation(answer: dict[str, Any]) -> Compacted:
    """Return the first revision that etcd has.  Raises Refusal if etcd has ended the watch for another reason."""
    if first := number(answer, "compact_revision"):
        return Compacted(first)
    raise refusal_of_cancel(str(answer.get("cancel_reason", "etcd canceled the watch")))


def _steps(keys: Keys, events: Sequence[dict[str, Any]], start: int, is_complete: bool) -> Iterator[Step]:
    """Yield the events of an answer; the last of a revision moves the cursor behind it if ``is_complete``."""
    nodes = [(node_of(event["kv"]), event.get("type") == "DELETE") for event in events]
    for at, (node, is_deleted) in enumerate(nodes):
        if node.version < start:
            continue
        is_last = nodes[at + 1][0].version > node.version if at + 1 < len(nodes) else is_complete
        config = (0 if is_deleted else node.version) if node.key == keys.config else None
        yield Step(node.version + is_last, _change(keys, node, is_deleted), config)


def _change(keys: Keys, node: Node, is_deleted: bool) -> Put | Deleted | None:
    name = keys.name(node.key)
    if name is None:
        return None
    return Deleted(name) if is_deleted else Put(node.entry(name))
