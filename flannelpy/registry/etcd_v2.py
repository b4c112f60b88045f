"""Leases in etcd, over its v2 API: the Registry protocol on top of python-etcd.

How it works.  python-etcd is synchronous, so every call gets a daemon thread of its own: a slow answer never holds up a
renewal, a cancelled call is simply no longer listened to, and no thread keeps the process alive.  A cancelled write may
still take effect.  Each endpoint has ``REPLY_TIMEOUT`` for a call in all (bounded_http.py), then the next one is asked.

A watch is a request that stays open (``stream=true``), through any number of changes elsewhere in the store, where a
long poll loses its history after 1,000 of them.  python-etcd cannot read it, so urllib3 and event_stream.py do.  The
cursor moves with the events below ``subnets`` only: nothing else proves what has arrived.  A watch that has to be
opened again in a busy store may therefore find its history gone, which is HistoryOverrun.

python-etcd's fail-over and urllib3's retries are off, because both would hide from us that a write was sent twice.
``_Cluster`` rotates instead: each call tries every endpoint once, beginning with the one that worked last.  A write
whose reply was lost is sent again; when etcd then refuses it, the key is read back, and if it holds what we wrote, the
refusal came from our own first try and the write has succeeded.

etcd's errors become ours in ``_errors_as_ours`` and are seen nowhere above.  Every other exception of a call, also
RecursionError and MemoryError, means that there was no usable answer: ``_understood``.  What others have stored below
or beside the leases never ends a call: only direct children of ``subnets`` are listed, and events of deeper keys only
move the cursor on.

Counterpart: subnet/registry.go of flanneld v0.5.5.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import functools
import itertools
import json
import logging
import posixpath
import ssl
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote, urlsplit

from flannelpy.errors import (
    CompareFailed,
    ConfigError,
    FlannelError,
    HistoryGone,
    HistoryOverrun,
    HostError,
    KeyExists,
    KeyNotFound,
    RegistryError,
    RegistryUnavailable,
    UsageError,
)
from flannelpy.foreign import shown
from flannelpy.registry.base import Changes, Deleted, KeyValue, Put, Snapshot, all_names
from flannelpy.registry.event_stream import EventStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from etcd import Client, EtcdResult
    from urllib3 import BaseHTTPResponse

Answer = TypeVar("Answer")

DEFAULT_PORT = 2379
# etcd accepts values of 1.5 MB, of which JSON may need six characters for one.
_LONGEST_VALUE = 16 << 20
REPLY_TIMEOUT = 4.0  # seconds for a call of one endpoint in all; bounded_http.py says how a long answer gets more
SHORTEST_POLL = 0.5  # seconds that a watch waits even if it was begun late, on the last endpoint in the rotation
# etcd remembers 1,000 events; in the time of a request no more than as many again may happen.
SAFE_HISTORY = 500
LONGEST_CAUSE = 200  # characters; a proxy may answer with a whole web page

_CHILDREN = '"nodes":['
_IN_A_ROW = 50  # children that are parsed without a break
_PIECE = 65536  # bytes of an answer that are read at a time
_DECODE = json.JSONDecoder().raw_decode
# Of keys that were not asked for so much is listed, in characters, a hundred of which count for each key.
_MOST_OF_OTHERS = 200_000

# Source: etcd Documentation/v2/errorcode.md
REFUSALS: dict[int, type[RegistryError]] = {100: KeyNotFound, 101: CompareFailed, 105: KeyExists}
HISTORY_CLEARED = 401

REMOVALS = frozenset({"delete", "compareAndDelete", "expire"})


class Endpoint(NamedTuple):
    """One address of etcd; the host of an IPv6 address keeps its brackets."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """``http(s)://host[:port]`` as an Endpoint.  Raises UsageError."""
    wrong = UsageError(f"-etcd-endpoints: {text!r} is not of the form http://host:port or https://host:port")
    try:
        parts = urlsplit(text.strip())
        host, port = parts.hostname, DEFAULT_PORT if parts.port is None else parts.port
    except ValueError:
        raise wrong from None
    if "@" in parts.netloc:  # the value is not repeated, it holds a password
        raise UsageError("-etcd-endpoints: give the user by -etcd-username and -etcd-password, not inside the URL")
    if parts.scheme not in ("http", "https") or not host or " " in host or not port:
        raise wrong
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise wrong
    return Endpoint(parts.scheme, f"[{host}]" if ":" in host else host, port)


class EtcdV2Registry:
    """The network kept below ``prefix`` in the etcd cluster reached at ``endpoints``.

    Raises: UsageError and HostError from the constructor, for options that can never work.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        prefix: str,
        *,
        keyfile: str | None = None,
        certfile: str | None = None,
        cafile: str | None = None,
        username: str | None = None,
        password: str | None = None,
    ) -> None:
        _check_tls_files(keyfile, certfile, cafile)
        options = {
            "cert": (certfile, keyfile) if certfile else None,
            "ca_cert": cafile,
            "username": username and _as_latin1(username),
            "password": password and _as_latin1(password),
        }
        self._cluster = _Cluster([_Endpoint(parse_endpoint(text), options) for text in endpoints])
        root = posixpath.normpath("/" + prefix.strip("/")).rstrip("/")
        self._config = quote(f"{root}/config")
        self._subnets = f"{root}/subnets/"
        self._stream: _Stream | None = None
        self._is_streaming = True
        self._pending: set[asyncio.Future[Any]] = set()
        self._closed = False

    async def read_config(self) -> str:
        """See Registry."""
        return await self._ask(self._read_config)

    async def snapshot(self, is_wanted: Callable[[str], bool] = all_names) -> Snapshot:
        """See Registry."""
        return await self._ask(functools.partial(self._snapshot, is_wanted))

    async def create(self, name: str, value: str, lease_ttl: int) -> KeyValue:
        """See Registry."""
        return await self._write(name, value, ttl=lease_ttl, prevExist=False)

    async def compare_and_swap(self, name: str, value: str, lease_ttl: int | None, version: int) -> KeyValue:
        """See Registry."""
        return await self._write(name, value, ttl=lease_ttl, prevIndex=version)

    async def compare_and_delete(self, name: str, version: int) -> None:
        """See Registry."""

        def send(endpoint: _Endpoint) -> None:
            endpoint.delete(self._key(name), prevIndex=version)

        def settle(endpoint: _Endpoint) -> None:
            with contextlib.suppress(KeyNotFound):  # our own doing
                send(endpoint)

        await self._ask(send, settle)

    async def watch(self, cursor: int, timeout: float) -> Changes:
        """See Registry.

        A stream that ends is opened again, on the next endpoint.  Of those that end at once, one more is opened than
        there are endpoints.
        """
        deadline = time.monotonic() + timeout
        ends = 0
        while ends <= len(self._cluster.endpoints):
            left = max(deadline - time.monotonic(), SHORTEST_POLL)
            stream = await self._stream_at(cursor, left)
            await stream.wait(max(deadline - time.monotonic(), SHORTEST_POLL))
            if events := stream.take():
                return self._changes(stream, events)
            if not stream.end:
                await self._confirm(stream)
                return Changes((), cursor)
            self._cluster.pass_over(stream.endpoint)
            ends += stream.is_short
        raise RegistryUnavailable(f"{stream.endpoint.url}: {shown(stream.end, LONGEST_CAUSE)}")

    async def close(self) -> None:
        """See Registry; connections in use end by their own time-outs."""
        self._closed = True
        self._leave_stream()
        for answer in self._pending:
            _resolve(answer, None, RegistryUnavailable("the registry was closed"))

    async def _ask(
        self, request: Callable[[_Endpoint], Answer], settle: Callable[[_Endpoint], Answer] | None = None
    ) -> Answer:
        """``_Cluster.ask`` in a thread of its own."""
        return await self._in_thread(functools.partial(self._cluster.ask, request, settle))

    async def _in_thread(self, work: Callable[[], Answer]) -> Answer:
        if self._closed:
            raise RegistryUnavailable("the registry was closed")
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._pending.add(answer)
        answer.add_done_callback(self._pending.discard)
        try:
            threading.Thread(target=_deliver, args=(work, answer), name="etcd", daemon=True).start()
        except (RuntimeError, MemoryError) as error:
            answer.cancel()
            raise RegistryUnavailable(f"no thread to ask in: {error}") from error
        return await answer

    async def _write(self, name: str, value: str, ttl: int | None, **condition: int) -> KeyValue:
        """Write under ``condition``, prevExist or prevIndex: python-etcd ignores what it does not know."""
        if ttl is not None and ttl <= 0:
            raise ValueError(f"lease_ttl is {ttl}, which etcd would take to mean for ever")
        key = self._key(name)

        def send(endpoint: _Endpoint) -> KeyValue:
            return self._entry(endpoint.write(key, value, ttl=ttl, **condition))

        def settle(endpoint: _Endpoint) -> KeyValue:
            try:
                return send(endpoint)
            except (KeyExists, CompareFailed):
                with contextlib.suppress(KeyNotFound):
                    found = endpoint.read(key, quorum=True)
                    if found.value == value:
                        return self._entry(found)
                raise

        return await self._ask(send, settle)

    def _key(self, name: str) -> str:
        return quote(self._subnets + name)

    def _entry(self, node: EtcdResult) -> KeyValue:
        # Between running out and being swept a key has no "ttl" but still an "expiration".
        lease_ttl = None if node.expiration is None else max(node.ttl or 0, 0)
        name = node.key.removeprefix(self._subnets)
        return KeyValue(name, node.value or "", lease_ttl, node.modifiedIndex, node.createdIndex)

    def _read_config(self, endpoint: _Endpoint) -> str:
        node = endpoint.read(self._config, quorum=True)
        if node.dir:
            raise ConfigError(f"{node.key} is a directory instead of the network config")
        return node.value or ""

    def _snapshot(self, is_wanted: Callable[[str], bool], endpoint: _Endpoint) -> Snapshot:
        try:
            with endpoint.list(self._key("")) as (children, index):
                entries = (self._entry(node) for node in children if self._is_entry(node))
                return Snapshot(tuple(_reduced(entries, is_wanted)), index + 1)
        except KeyNotFound as missing:
            return Snapshot((), _index_of(missing) + 1)

    async def _stream_at(self, cursor: int, seconds: float) -> _Stream:
        """The open stream if it has come to ``cursor``, or else a new one from there.  Raises HistoryGone.

        ``seconds`` are those that a long poll may take.
        """
        if self._stream is None or self._stream.is_over or self._stream.cursor != cursor:
            self._leave_stream()
            self._stream = _Stream(await self._open(cursor, seconds), cursor, self._event)
            if self._stream.start < cursor - 1:
                raise self._history_gone(_wiped(self._stream.start, cursor))
        return self._stream

    async def _open(self, cursor: int, seconds: float) -> _Opened:
        """A new watch.  After a stream that no endpoint would begin, a long poll: a proxy may buffer whole replies."""
        poll = None if self._is_streaming else seconds
        try:
            return await self._ask(lambda endpoint: endpoint.watch(self._key(""), cursor, poll))
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
        """Make sure that a stream without events is one of a living endpoint on which nothing has happened.

        A new request to the same endpoint tells whether it answers and where it stands.  If something has happened,
        below the leases or elsewhere, the next call asks from the cursor again while the history reaches back to it, by
        a long poll, which ends with its event: a firewall may have forgotten the connection, or a proxy may hold back
        the events of an open response.  In a store too busy for that the stream is trusted, and TCP keep-alive
        alone finds a dead connection.

        The watch also follows the other calls to another endpoint: a member that is cut off from its cluster still
        answers this request, and refuses theirs.

        Raises HistoryGone, and RegistryUnavailable when no endpoint answers or an event does not come to its end.
        """
        if stream.is_stuck(REPLY_TIMEOUT):
            self._leave_stream()
            self._cluster.pass_over(stream.endpoint)
            raise RegistryUnavailable(f"{stream.endpoint.url}: an event arrives too slowly")
        try:
            index = await self._in_thread(functools.partial(self._cluster.ask_at, stream.endpoint, self._index))
        except RegistryUnavailable:
            self._leave_stream()
            other = await self._stream_at(stream.cursor, SHORTEST_POLL)
            if other.endpoint is stream.endpoint:  # it accepts a watch and answers nothing else
                self._leave_stream()
                raise
            return
        if index < stream.cursor - 1:
            raise self._history_gone(_wiped(index, stream.cursor))
        self._is_streaming = not 0 <= index - stream.cursor < SAFE_HISTORY
        if not self._is_streaming or stream.endpoint is not self._cluster.preferred:
            self._leave_stream()

    def _index(self, endpoint: _Endpoint) -> int:
        """Where this member of the cluster stands."""
        try:
            return int(endpoint.read(self._config).etcd_index)
        except KeyNotFound as missing:
            return _index_of(missing)

    def _changes(self, stream: _Stream, events: Sequence[_Event]) -> Changes:
        """What ``events`` mean.  Raises HistoryGone when one of them is the removal of a directory above the leases."""
        for event in events:
            if event.removed_directory:
                raise self._history_gone(f"{event.removed_directory}: the directory was removed")
        changes = tuple(event.change for event in events if event.change)
        stream.cursor = events[-1].at + 1
        # An event from before the stream is the only one that it brings: etcd does not register such a watch.
        if events[0].at > stream.start:
            return Changes(changes, stream.cursor)
        self._leave_stream()
        return Changes(changes, stream.cursor, stream.start - events[-1].at)

    def _event(self, document: Any) -> _Event:
        from etcd import EtcdResult

        event = EtcdResult(**document)
        index = int(event.modifiedIndex)
        removed = event.action in REMOVALS
        if removed and self._subnets.startswith(f"{event.key.rstrip('/')}/"):
            # What was inside goes without events of its own.
            return _Event(index, None, event.key)
        # To set a directory removes the value that the key had, without an event of its own.
        is_removed = event.action == "set" if event.dir else removed
        if not self._is_child(event) or (event.dir and not is_removed):
            return _Event(index, None)
        entry = self._entry(event)
        return _Event(index, Deleted(entry.name) if is_removed else Put(entry))

    def _is_entry(self, node: EtcdResult) -> bool:
        """Whether it is a value, and a direct child of ``subnets``."""
        return not node.dir and self._is_child(node)

    def _is_child(self, node: EtcdResult) -> bool:
        return bool(node.key.startswith(self._subnets)) and "/" not in node.key[len(self._subnets) :]


def _as_latin1(text: str) -> str:
    """``text`` so that urllib3, which sends credentials as Latin-1, sends its UTF-8 bytes."""
    return text.encode("utf-8", "surrogateescape").decode("latin-1")


def _check_tls_files(keyfile: str | None, certfile: str | None, cafile: str | None) -> None:
    """Load what python-etcd would load much later.  Raises UsageError, HostError."""
    if bool(keyfile) != bool(certfile):
        raise UsageError("-etcd-keyfile and -etcd-certfile must be given together")
    for flag, path in (("-etcd-keyfile", keyfile), ("-etcd-certfile", certfile), ("-etcd-cafile", cafile)):
        if path:
            _check_readable(flag, path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if cafile:
        try:
            context.load_verify_locations(cafile)
        except ssl.SSLError as error:
            raise HostError(f"-etcd-cafile: {cafile} holds no CA certificate in PEM form") from error
    if certfile and keyfile:
        try:
            context.load_cert_chain(certfile, keyfile, password=lambda: "")  # or OpenSSL asks on the terminal
        except ssl.SSLError as error:
            raise HostError(
                f"-etcd-certfile, -etcd-keyfile: {certfile} and {keyfile} are not a certificate and its "
                "unencrypted key in PEM form"
            ) from error


def _check_readable(flag: str, path: str) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise HostError(f"{flag}: cannot read {path}: {error.strerror}") from error


def _deliver(work: Callable[[], Answer], answer: asyncio.Future[Answer]) -> None:
    """Do ``work`` in this thread and hand the outcome to the loop that waits for it."""
    result: Answer | None = None
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:
        failure = error
    with contextlib.suppress(RuntimeError):  # the loop is closed, nobody waits any more
        answer.get_loop().call_soon_threadsafe(_resolve, answer, result, failure)


def _resolve(answer: asyncio.Future[Any], result: object, failure: Exception | None) -> None:
    if answer.done():  # cancelled or closed meanwhile
        if isinstance(result, _Opened):
            result.response.close()
        return
    if failure is None:
        answer.set_result(result)
    else:
        answer.set_exception(failure)


class _NoAnswer(Exception):
    """An endpoint gave no answer that can be used; ``sent``: what was asked may have happened all the same."""

    def __init__(self, cause: str, sent: bool) -> None:
        super().__init__(shown(" ".join(cause[: 10 * LONGEST_CAUSE].split()), LONGEST_CAUSE))
        self.sent = sent


class _Event(NamedTuple):
    """What the event at index ``at`` means; ``removed_directory``: one that holds the leases."""

    at: int
    change: Put | Deleted | None
    removed_directory: str = ""


class _Opened(NamedTuple):
    """A watch that an endpoint has accepted when it stood at ``start``."""

    endpoint: _Endpoint
    response: BaseHTTPResponse
    start: int
    interrupt: Callable[[], None]


class _Stream(EventStream[_Event]):
    """The events of a watch.  ``cursor``: from where a new one would have to begin."""

    def __init__(self, opened: _Opened, cursor: int, convert: Callable[[Any], _Event]) -> None:
        self.endpoint, self.start, self.cursor = opened.endpoint, opened.start, cursor
        super().__init__(opened.response, opened.interrupt, convert)


def _wiped(index: int, cursor: int) -> str:
    return f"etcd stands at {index}, before {cursor}: it was wiped or restored"


class _Cluster:
    """Endpoints in rotation, of which the one that answered last comes first."""

    def __init__(self, endpoints: Sequence[_Endpoint]) -> None:
        if not endpoints:
            raise UsageError("-etcd-endpoints: name at least one endpoint")
        self.endpoints = endpoints
        self._first = 0  # shared by all threads: each only ever stores a valid index

    def ask(
        self, request: Callable[[_Endpoint], Answer], settle: Callable[[_Endpoint], Answer] | None = None
    ) -> Answer:
        """The first usable answer; ``settle`` is asked for it once ``request`` may have happened without our knowing.

        Raises: etcd's refusals, RegistryUnavailable.
        """
        causes = []
        start, count = self._first, len(self.endpoints)
        for turn in range(start, start + count):
            endpoint = self.endpoints[turn % count]
            try:
                return _understood(request, endpoint)
            except _NoAnswer as failure:
                self.pass_over(endpoint)
                if settle and failure.sent:
                    return self.ask(settle)
                causes.append(f"{endpoint.url}: {failure}")
        raise RegistryUnavailable("; ".join(causes))

    def ask_at(self, endpoint: _Endpoint, request: Callable[[_Endpoint], Answer]) -> Answer:
        """The answer of this endpoint.  Raises: etcd's refusals, RegistryUnavailable."""
        try:
            return _understood(request, endpoint)
        except _NoAnswer as failure:
            self.pass_over(endpoint)
            raise RegistryUnavailable(f"{endpoint.url}: {failure}") from failure

    @property
    def preferred(self) -> _Endpoint:
        """The endpoint that the next call is begun with."""
        return self.endpoints[self._first]

    def pass_over(self, endpoint: _Endpoint) -> None:
        """Begin with the endpoint behind it from now on."""
        self._first = (self.endpoints.index(endpoint) + 1) % len(self.endpoints)


def _understood(request: Callable[[_Endpoint], Answer], endpoint: _Endpoint) -> Answer:
    """The answer to ``request``.  Raises _NoAnswer too when the answer cannot be understood: python-etcd trusts it."""
    try:
        return request(endpoint)
    except (FlannelError, _NoAnswer):
        raise
    except Exception as error:
        raise _NoAnswer(f"not an answer of etcd's ({str(error) or type(error).__name__})", sent=True) from error


class _Endpoint:
    """One endpoint and its client.

    Raises, in every call: etcd's refusals as ours, _NoAnswer.
    """

    def __init__(self, url: Endpoint, options: dict[str, Any]) -> None:
        self.url = url
        self._options = options
        self._is_replaced = False

    def read(self, key: str, **options: bool) -> EtcdResult:
        with self._errors_as_ours(key):
            return self._client.read(key, **options)

    @contextlib.contextmanager
    def list(self, key: str) -> Iterator[tuple[Iterator[EtcdResult], int]]:
        """The direct children of a directory, and where the store stands.

        They are read and parsed one by one, while other threads have their turn: the whole answer can be larger than
        all else that the process holds, and json.loads of 100,000 keys stops all threads for half a second.
        """
        from etcd import EtcdResult

        from flannelpy.registry.bounded_http import allow_long

        with self._errors_as_ours(key), contextlib.closing(self._request(key, {"quorum": "true"})) as response:
            allow_long(response)
            pieces = codecs.iterdecode(response.stream(_PIECE), "utf-8")
            yield (EtcdResult(node=node) for node in _children(pieces)), int(response.headers["X-Etcd-Index"])
            response.drain_conn()

    def _request(self, key: str, fields: dict[str, str], poll: float = 0) -> BaseHTTPResponse:
        """Ask as python-etcd's ``api_execute`` does, which would read all of the answer first."""
        import urllib3

        client = self._client
        url = f"{client.base_uri}{client.key_endpoint}{key}"
        patience = urllib3.Timeout(connect=REPLY_TIMEOUT, total=max(poll, REPLY_TIMEOUT))
        options = {"timeout": patience, "redirect": False, "preload_content": False}
        response: BaseHTTPResponse = client.http.request(
            "GET", url, fields=fields, headers=client._get_headers(), **options
        )
        try:
            client._check_cluster_id(response)
            client._handle_server_response(response)
        except BaseException:
            response.close()
            raise
        return response

    def write(self, key: str, value: str, ttl: int | None, **condition: int) -> EtcdResult:
        with self._errors_as_ours(key):
            return self._client.write(key, value, ttl=ttl, **condition)

    def delete(self, key: str, **condition: int) -> None:
        with self._errors_as_ours(key):
            self._client.delete(key, **condition)

    def watch(self, key: str, cursor: int, poll: float | None) -> _Opened:
        """Begin to watch everything below ``key`` from ``cursor`` on.  Raises HistoryGone.

        With ``poll`` for one event only, so long in seconds, even if not a byte of the answer comes before it.
        """
        from flannelpy.registry.bounded_http import lift_deadline

        fields = {"wait": "true", "recursive": "true", "waitIndex": str(cursor), "stream": str(poll is None).lower()}
        self._check_identity()
        try:
            with self._errors_as_ours(key):
                response = self._request(key, fields, poll or 0)
        except _NoAnswer:
            self._check_identity()
            raise
        try:
            start = int(response.headers.get("X-Etcd-Index", cursor - 1))
            return _Opened(self, response, start, lift_deadline(response))
        except BaseException:
            response.close()
            raise

    def _check_identity(self) -> None:
        """Raises HistoryGone if this or an earlier call has met another cluster: the cursor is one of the old one."""
        if self._is_replaced:
            self._is_replaced = False
            raise HistoryGone("etcd was replaced by another cluster")

    @contextlib.contextmanager
    def _errors_as_ours(self, key: str) -> Iterator[None]:
        import etcd
        import urllib3

        try:
            yield
        except (etcd.EtcdException, urllib3.exceptions.HTTPError) as error:
            self._is_replaced |= isinstance(error, etcd.EtcdClusterIdChanged)
            raise (_refusal(key, getattr(error, "payload", None) or {}) or _no_answer(error)) from error

    @functools.cached_property
    def _client(self) -> Client:
        import etcd
        import urllib3

        from flannelpy.registry.bounded_http import bound

        # Both log what our errors say in better words, python-etcd at ERROR and with a traceback.
        for library in ("etcd", "urllib3"):
            logging.getLogger(library).setLevel(logging.CRITICAL)
        scheme, host, port = self.url
        client = etcd.Client(
            host, port, protocol=scheme, read_timeout=REPLY_TIMEOUT, allow_redirect=False, **self._options
        )
        client.http.connection_pool_kw["retries"] = urllib3.Retry(0)
        client._read_timeout = urllib3.Timeout(total=REPLY_TIMEOUT)  # its constructor takes numbers only
        bound(client.http)
        return client


def _reduced(entries: Iterator[KeyValue], is_wanted: Callable[[str], bool]) -> Iterator[KeyValue]:
    """Of those with other names the first ones, without their values."""
    left = _MOST_OF_OTHERS
    for entry in entries:
        if is_wanted(entry.name):
            yield entry
        elif left > 0:
            left -= len(entry.name) + 100
            yield entry._replace(value="")


class _Text:
    """The text of an answer, of which only what is being parsed is kept.

    Raises ValueError where it ends early, or where a value is longer than ``_LONGEST_VALUE``.
    """

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._text = ""
        self._at = 0

    def pass_by(self, words: str) -> bool:
        """Go behind the first occurrence of ``words``; without one all of the text is kept."""
        while (found := self._text.find(words)) < 0:
            if not self._read():
                return False
        self._at = found + len(words)
        return True

    def comes(self, character: str) -> bool:
        """Whether it is the next one; then it is passed by."""
        if self._at == len(self._text):
            self._read()
        comes = self._text.startswith(character, self._at)
        self._at += comes
        return comes

    def value(self) -> Any:
        """The JSON value that comes next."""
        while True:
            try:
                value, self._at = _DECODE(self._text, self._at)
            except ValueError:
                if not self._read():
                    raise
            else:
                return value

    def whole(self) -> str:
        """All of it, if nothing was found yet."""
        return self._text

    def _read(self) -> bool:
        """Read on, twice as much as before if one value is long; False at the end."""
        rest = [self._text[self._at :]]
        size = wanted = len(rest[0])
        for piece in self._pieces:
            rest.append(piece)
            size += len(piece)
            if size > _LONGEST_VALUE:
                raise ValueError(f"more than {_LONGEST_VALUE} characters without the end of a value")
            if size > 2 * wanted:
                break
        self._text, self._at = "".join(rest), 0
        return size > wanted


def _children(pieces: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Those of the directory in an answer of etcd, which writes no blanks between the tokens.

    Inside a string the quotes of the key that is looked for would be escaped.
    """
    text = _Text(pieces)
    if not text.pass_by(_CHILDREN):
        yield from json.loads(text.whole())["node"].get("nodes", ())
        return
    if text.comes("]"):
        return
    for number in itertools.count():
        yield text.value()
        if text.comes("]"):
            return
        if not text.comes(","):
            raise ValueError("a list of nodes without commas, or without an end")
        if not number % _IN_A_ROW:
            time.sleep(0)  # lets other threads run


def _refusal(key: str, payload: dict[str, Any]) -> RegistryError | None:
    """What etcd has refused, as one of our errors, if it is one."""
    words = shown(payload.get("message")), shown(payload.get("cause"), LONGEST_CAUSE)
    text = f"{unquote(key)}: {words[0]} ({words[1]})"
    code = payload.get("errorCode", 0)
    if code == HISTORY_CLEARED:
        return HistoryOverrun(text, int(payload["index"]) + 1)
    return REFUSALS[code](text) if code in REFUSALS else None


def _index_of(refusal: RegistryError) -> int:
    """Where the store stood when it refused."""
    error: Any = refusal.__cause__
    return int(error.payload["index"])


def _no_answer(error: Exception) -> _NoAnswer:
    """python-etcd's ``error`` in words that a person can act on."""
    import etcd
    import urllib3

    if isinstance(error, etcd.EtcdInsufficientPermissions):
        return _NoAnswer("permission denied, see -etcd-username and -etcd-password", sent=False)
    if "404 page not found" in str(error):
        return _NoAnswer("the v2 API is switched off, start etcd with --enable-v2=true", sent=False)
    causes = list(_causes(error))
    # In urllib3 every failure before the connection stands is a ConnectTimeoutError.
    sent = not any(isinstance(cause, urllib3.exceptions.ConnectTimeoutError) for cause in causes)
    return _NoAnswer(_in_words(causes[-1]), sent)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and what lies behind it, wherever python-etcd and urllib3 keep that."""
    while error is not None:
        yield error
        kept = (getattr(error, "cause", None), getattr(error, "reason", None), *error.args, error.__cause__)
        error = next((inner for inner in kept if isinstance(inner, BaseException)), None)


def _in_words(cause: BaseException) -> str:
    if isinstance(cause, TimeoutError) and not cause.strerror:
        return "no answer in time"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"certificate refused: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):
        return f"TLS failed: {cause.reason or cause}"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return str(cause) or type(cause).__name__
