"""Endpoints between a registry and a real etcd, or in its place, that fail in a chosen way; certificates for TLS."""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest
from lab.etcd_server import EtcdServer, free_ports
from lab.etcd_stores import Api

from flannelpy.errors import RegistryUnavailable
from flannelpy.registry import endpoints
from flannelpy.registry.base import Deleted, Put, Registry
from flannelpy.registry.endpoints import Access, parse_endpoint
from flannelpy.registry.etcd_v2 import EtcdV2Registry
from flannelpy.registry.etcd_v3 import EtcdV3Registry

Result = TypeVar("Result")
AnyRegistry = TypeVar("AnyRegistry", bound=Registry)

DAY = 86400
DEADLINE = 20.0
PREFIX = "/network"
SUBNETS = f"{PREFIX}/subnets"
A, B, C = "11.0.1.0-24", "11.0.2.0-24", "11.0.3.0-24"
KEY = f"{SUBNETS}/{A}"
SHORT_TIMEOUT = 0.5

_REQUEST_LINE = re.compile(rb"(GET|PUT|POST|DELETE) [^\r]*")
_DRIP_SECONDS = 0.05  # of each byte: in time for a deadline of every byte, too late for one of the whole answer


class Kind(NamedTuple):
    """The registry of an API, and by which words a proxy recognises its requests.

    ``write``: of what stores a value.  ``settle``: of what follows a write without a reply.  ``watch``: of a watch.
    """

    api: Api
    registry: type[EtcdV2Registry] | type[EtcdV3Registry]
    write: str
    delete: str
    settle: str
    watch: str

    def connect(self, *urls: str, **access: str | None) -> EtcdV2Registry | EtcdV3Registry:
        """Return a registry of the network, as the daemon makes it."""
        return self.registry(urls, PREFIX, Access(**access))

    def empty(self, server: EtcdServer) -> None:
        """Remove all keys, and all leases of etcd."""
        if self.api is Api.V2:
            for node in server.list("/"):
                server.delete(node.key)
            return
        everything = "AA=="  # the key of one null byte, in base64
        server.v3.call("kv/deleterange", key=everything, range_end=everything)
        for lease in server.v3.leases():
            server.v3.revoke(lease)


V2 = Kind(Api.V2, EtcdV2Registry, write="PUT ", delete="DELETE ", settle="GET ", watch="wait=true")
V3 = Kind(Api.V3, EtcdV3Registry, write="kv/txn", delete="kv/txn", settle="/v3/kv/", watch="/v3/watch")


class LossyProxy(socketserver.ThreadingTCPServer):
    """A proxy of etcd that loses the ``loss`` ("request" or "reply") of the next request that ``lose`` names.

    After a loss it calls ``then``, and closes the connection.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, server: EtcdServer) -> None:
        super().__init__(("127.0.0.1", 0), _Relay)
        self.upstream = parse_endpoint(server.url)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._losses: list[tuple[str, bytes, Callable[[], None]]] = []
        self._hooks: list[tuple[bytes, int, Callable[[], None]]] = []

    def lose(self, loss: str, request: str, then: Callable[[], None] = lambda: None) -> None:
        """Lose this of the next request whose request line contains ``request``."""
        self._losses.append((loss, request.encode(), then))

    def before(self, request: str, number: int, then: Callable[[], None]) -> None:
        """Call ``then`` before etcd receives the ``number``-th request whose line contains ``request``."""
        self._hooks.append((request.encode(), number, then))

    def loses(self, what: str, request: bytes) -> bool:
        if not self._losses or self._losses[0][0] != what or self._losses[0][1] not in request:
            return False
        self._losses.pop(0)[2]()
        return True

    def note(self, client: socket.socket, request: bytes) -> None:
        """Note a request of ``client``, which etcd has not received yet."""
        line = request.split(b"\r", 1)[0]
        self._hooks = [(part, number - (part in line), then) for part, number, then in self._hooks]
        due = [then for _, number, then in self._hooks if not number]
        self._hooks = [hook for hook in self._hooks if hook[1]]
        for then in due:
            then()

    def passed(self, client: socket.socket, reply: bytes) -> bytes:
        """Return the bytes that ``client`` gets for this part of a reply.  Raises OSError to end the connection."""
        return reply

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Serve until the block ends."""
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        with self:
            thread.start()
            try:
                yield
            finally:  # a thread that polled a closed descriptor would poll the next socket with its number
                self.shutdown()
                thread.join()


class _Relay(socketserver.BaseRequestHandler):
    server: LossyProxy

    def handle(self) -> None:
        client: socket.socket = self.request
        request = b""
        with contextlib.suppress(OSError), socket.create_connection(self.server.upstream[1:]) as etcd:
            while True:
                source = select.select([client, etcd], [], [])[0][0]
                data = source.recv(65536)
                if source is client and (line := _REQUEST_LINE.match(data)):
                    request = line[0]
                    self.server.note(client, data)
                if not data or self.server.loses("request" if source is client else "reply", request):
                    return
                if source is client:
                    etcd.sendall(data)
                else:
                    client.sendall(self.server.passed(client, data))


class DrippingProxy(LossyProxy):
    """A proxy that forwards the answers to the first ``count`` requests of a kind a byte at a time, each in time."""

    def __init__(self, server: EtcdServer, request: str, count: int) -> None:
        super().__init__(server)
        self._request = request.encode()
        self._left = count
        self._dripping: set[socket.socket] = set()

    def note(self, client: socket.socket, request: bytes) -> None:
        self._dripping.discard(client)
        if self._request in request.split(b"\r", 1)[0] and self._left:
            self._left -= 1
            self._dripping.add(client)

    def passed(self, client: socket.socket, reply: bytes) -> bytes:
        if client not in self._dripping:
            return reply
        with contextlib.suppress(OSError):
            for byte in reply:
                client.sendall(bytes([byte]))
                time.sleep(_DRIP_SECONDS)
        return b""


class CuttingProxy(LossyProxy):
    """A proxy that ends the connection of a v3 watch after so many answers with events; then it cuts no more."""

    def __init__(self, server: EtcdServer, answers: Sequence[int]) -> None:
        super().__init__(server)
        self._answers = list(answers)
        self._parts: dict[socket.socket, bytes] = {}

    def note(self, client: socket.socket, request: bytes) -> None:
        if b"/watch " in request:
            self._parts[client] = b""

    def passed(self, client: socket.socket, reply: bytes) -> bytes:
        if client not in self._parts or not self._answers:
            return reply
        *whole, rest = (self._parts[client] + reply).split(_END_OF_CHUNK)
        self._parts[client] = rest
        for number, chunk in enumerate(whole):
            self._answers[0] -= b'"events"' in chunk
            if not self._answers[0]:
                self._answers.pop(0)
                client.sendall(b"".join(chunk + _END_OF_CHUNK for chunk in whole[: number + 1]))
                raise ConnectionAbortedError
        return b"".join(chunk + _END_OF_CHUNK for chunk in whole)


_END_OF_CHUNK = b"\n\r\n"  # the gateway writes each answer as a line, and each line as a chunk


class SilentProxy(LossyProxy):
    """A proxy that loses its connections of before ``fall_silent``, and tells neither end."""

    def __init__(self, server: EtcdServer) -> None:
        super().__init__(server)
        self._known: dict[socket.socket, bool] = {}  # whether it is a watch
        self._silent: frozenset[socket.socket] = frozenset()

    def fall_silent(self, *, watches_only: bool = False) -> None:
        known = self._known.items()
        self._silent = frozenset(client for client, is_watch in known if is_watch or not watches_only)

    def note(self, client: socket.socket, request: bytes) -> None:
        self._known[client] = b"/watch " in request

    def passed(self, client: socket.socket, reply: bytes) -> bytes:
        return b"" if client in self._silent else reply


@contextlib.contextmanager
def answering(status: int, body: str, **headers: str) -> Iterator[str]:
    """Return the URL of a service that answers every request with this."""

    class Stranger(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode("latin-1"))

        do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - the names that http.server calls

        def log_message(self, *_: object) -> None:
            pass

    with serving(Stranger) as url:
        yield url


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Return the URL of an HTTP server of its own."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:  # as in LossyProxy.running
            server.shutdown()
            server.block_on_close = False


INCOMPLETE = '{"result":'
_EMPTY_ANSWER = '{"header":{"cluster_id":"1","member_id":"1","revision":"50","raft_term":"2"}}'


@contextlib.contextmanager
def gateway(*streams: Sequence[str], **answers: str) -> Iterator[str]:
    """Return the URL of a v3 gateway whose watches send these lines, one stream after the other.

    The last stream stays open, and those that end with INCOMPLETE; the others end.  Other requests get the answer of
    that name, as ``range`` or ``txn``, or one that has nothing but the revision 50.
    """
    left = list(streams)
    over = threading.Event()

    class Gateway(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            name = self.path.rpartition("/")[2]
            if name == "watch":
                is_last = len(left) == 1
                self._stream(left[0] if is_last else left.pop(0), is_last=is_last)
            else:
                self._answer(answers.get(name, _EMPTY_ANSWER))

        def _answer(self, body: str) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def _stream(self, lines: Sequence[str], *, is_last: bool) -> None:
            self.close_connection = True
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for line in lines:
                self.wfile.write(b"%x\r\n%s\n\r\n" % (len(line.encode()) + 1, line.encode()))
            self.wfile.flush()
            if is_last or lines[-1] == INCOMPLETE:
                over.wait()
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_: object) -> None:
            pass

    with serving(Gateway) as url:
        try:
            yield url
        finally:
            over.set()


def issue_certificates(directory: Path, server: str = "127.0.0.1") -> None:
    """Write .crt and .key of ca, server (for that address only), client and stranger (of no CA).

    ``server-only`` is a server certificate that lacks the usage clientAuth.
    """

    def issue(name: str, *arguments: str) -> None:
        new = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name}"
        files = f"-keyout {name}.key -out {name}.crt"
        command = ["openssl", *new.split(), *files.split(), *arguments]
        subprocess.run(command, cwd=directory, check=True, capture_output=True)

    leaf = ["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "basicConstraints=CA:FALSE"]
    address = ["-addext", f"subjectAltName=IP:{server}"]
    # Python 3.13 rejects a CA without key usage.
    issue("ca", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    issue("server", *leaf, *address)
    issue("server-only", *leaf, *address, "-addext", "extendedKeyUsage=serverAuth")
    issue("client", *leaf, "-addext", "extendedKeyUsage=clientAuth")
    issue("stranger")


def use(registry: AnyRegistry, test: Callable[[AnyRegistry], Awaitable[Result]]) -> Result:
    """Run ``test`` with ``registry``, and close ``registry`` afterwards."""

    async def body() -> Result:
        try:
            async with asyncio.timeout(DEADLINE):
                return await test(registry)
        finally:
            await registry.close()

    return asyncio.run(body())


async def changes_after(registry: Registry, cursor: int, count: int = 1) -> tuple[list[Put | Deleted], int]:
    """Return so many changes from ``cursor`` on, or some more, and the next cursor."""
    changes: list[Put | Deleted] = []
    while len(changes) < count:
        found = await registry.watch(cursor, DEADLINE)
        assert found.cursor >= cursor
        changes += found.changes
        cursor = found.cursor
    return changes, cursor


async def persistent(call: Callable[[], Awaitable[Result]]) -> Result:
    """Make a call until etcd is available, as the daemon does."""
    while True:
        try:
            return await call()
        except RegistryUnavailable:
            await asyncio.sleep(0.05)


def values(changes: list[Put | Deleted]) -> list[str | None]:
    """Return the value of each change, None for a deletion."""
    return [change.entry.value if isinstance(change, Put) else None for change in changes]


@pytest.fixture
def dead_url() -> str:
    """Return the URL of a port at which nothing listens."""
    return f"http://127.0.0.1:{free_ports(1)[0]}"


@pytest.fixture
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> float:
    """Shorten the time that an endpoint has for a call, and return it."""
    monkeypatch.setattr(endpoints, "REPLY_TIMEOUT", SHORT_TIMEOUT)
    return SHORT_TIMEOUT


@pytest.fixture
def proxy(server: EtcdServer) -> Iterator[LossyProxy]:
    """Return a proxy of the server that can lose requests and replies."""
    proxy = LossyProxy(server)
    with proxy.running():
        yield proxy
