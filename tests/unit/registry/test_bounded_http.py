"""Endpoints that answer too slowly, at every step of an answer: each has its time, and the next endpoint is asked."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flannelpy.errors import RegistryError, RegistryUnavailable
from flannelpy.registry import bounded_http, endpoints
from flannelpy.registry.base import Changes
from flannelpy.registry.endpoints import Access
from flannelpy.registry.etcd_v2 import EtcdV2Registry

TIMEOUT = 0.4
HEADERS = b"HTTP/1.1 200 OK\r\nX-Etcd-Index: 7\r\nX-Etcd-Cluster-Id: a\r\n"
NODE = {"key": "/network/subnets/11.0.1.0-24", "value": "v", "modifiedIndex": 7, "createdIndex": 7}
BODY = json.dumps({"action": "get", "node": NODE}).encode()

ZIPPED = zlib.compress(bytes(1 << 20), wbits=31)

Answer = Callable[[socket.socket], None]


def dripping(before: bytes, dripped: bytes) -> Answer:
    """``before`` at once, then ``dripped`` for ever, a byte at a time: each read succeeds in time."""

    def answer(client: socket.socket) -> None:
        client.sendall(before)
        for byte in itertools.cycle(dripped) if dripped else ():
            time.sleep(TIMEOUT / 20)
            client.sendall(bytes([byte]))

    return answer


def flooding(before: bytes, repeated: bytes) -> Answer:
    """``repeated`` as fast as the client reads."""

    def answer(client: socket.socket) -> None:
        client.sendall(before)
        while True:
            client.sendall(repeated)

    return answer


def fitting(body: bytes) -> bytes:
    return HEADERS + b"Content-Length: %d\r\n\r\n" % len(body) + body


SLOW: dict[str, Answer] = {
    "nothing": lambda client: time.sleep(5 * TIMEOUT),
    "a status line": dripping(b"HTTP/1.1 200 ", b"OK"),
    "headers": dripping(HEADERS, b"X-A: b\r\n"),
    "provisional answers": dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a body": dripping(HEADERS + b"Content-Length: 1000000\r\n\r\n", b" "),
    "a body without a length": dripping(HEADERS + b"\r\n", b" "),
    "a chunk": dripping(HEADERS + b"Transfer-Encoding: chunked\r\n\r\nFFFFFF\r\n", b" "),
    "chunks": dripping(HEADERS + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "a trailer": dripping(HEADERS + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n", b"A: b\r\n"),
    "a refusal": dripping(b"HTTP/1.1 404 Not Found\r\nContent-Length: 1000\r\n\r\n", b" "),
    "provisional answers at full speed": flooding(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "endless chunks at full speed": flooding(
        HEADERS + b"Transfer-Encoding: chunked\r\n\r\n", b"100\r\n" + b" " * 256 + b"\r\n"
    ),
}
CALLS: dict[str, tuple[object, ...]] = {
    "read_config": (),
    "snapshot": (),
    "snapshot_of": ("11.0.1.0-24",),
    "create": ("11.0.1.0-24", "v", 60),
    "compare_and_delete": ("11.0.1.0-24", 7),
    "watch": (8, 0.1),
}


@contextlib.contextmanager
def served(answer: Answer, context: ssl.SSLContext | None = None, to_watches: Answer | None = None) -> Iterator[str]:
    """A port that reads a request and gives ``answer``, or ``to_watches``, again and again; its URL."""

    def handle(client: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            client,
            context.wrap_socket(client, server_side=True) if context else client as stream,
        ):
            while request := stream.recv(65536):
                (to_watches if to_watches and b"wait=true" in request else answer)(stream)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=handle, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        scheme = "https" if context else "http"
        try:
            yield f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "REPLY_TIMEOUT", TIMEOUT)
    monkeypatch.setattr(bounded_http, "LONGEST_REPLY", 2 * TIMEOUT)


async def ask(name: str, *urls: str, **options: str) -> tuple[object, float]:
    """The outcome of a call, and how long it took."""
    began = time.monotonic()
    registry = EtcdV2Registry(urls, "/network", Access(**options))
    outcome: object
    try:
        outcome = await getattr(registry, name)(*CALLS[name])
    except RegistryError as error:
        outcome = error
    await registry.close()
    return outcome, time.monotonic() - began


def call(name: str, *urls: str, **options: str) -> tuple[object, float]:
    return asyncio.run(ask(name, *urls, **options))


async def ask_all(name: str, urls: dict[str, str], *more: str) -> dict[str, tuple[object, float]]:
    """One call for each of ``urls``, all at the same time."""
    outcomes = await asyncio.gather(*(ask(name, url, *more) for url in urls.values()))
    return dict(zip(urls, outcomes, strict=True))


@pytest.fixture
def slow_urls() -> Iterator[dict[str, str]]:
    with contextlib.ExitStack() as servers:
        yield {kind: servers.enter_context(served(answer)) for kind, answer in SLOW.items()}


@pytest.fixture
def fast_urls() -> Iterator[dict[str, str]]:
    """Endpoints that make progress without end."""
    blanks = b" " * 65536
    chunk = b"10000\r\n" + blanks + b"\r\n"
    answers = {
        "headers": flooding(HEADERS, b"X-A: " + b"b" * 60000 + b"\r\n"),
        "a body": flooding(HEADERS + b"Content-Length: 100000000000\r\n\r\n", blanks),
        "chunks": flooding(HEADERS + b"Transfer-Encoding: chunked\r\n\r\n", chunk),
        "a refusal": flooding(b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n", chunk),
        "a node": flooding(HEADERS + b'\r\n{"action":"get","node":{"key":"/network/', b"x" * 65536),
        "a list": flooding(HEADERS + b'\r\n{"node":{"dir":true,"nodes":[{"key":"/network/', b"x" * 65536),
        "gzip": flooding(
            HEADERS + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"%x\r\n%b\r\n" % (len(ZIPPED), ZIPPED),
        ),
    }
    with contextlib.ExitStack() as servers:
        yield {kind: servers.enter_context(served(answer)) for kind, answer in answers.items()}


@pytest.mark.sample("name", 2)
@pytest.mark.parametrize("name", CALLS)
def test_progress_gives_no_more_time_and_a_reply_takes_no_more_memory_than_etcd_can_need(
    name: str, fast_urls: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_http, "LONGEST_REPLY", 60.0)
    for kind, url in fast_urls.items():
        gc.collect()
        tracemalloc.start()
        outcome, seconds = call(name, url)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert isinstance(outcome, RegistryUnavailable), kind
        assert seconds < 12 * TIMEOUT, kind
        assert peak < 200 << 20, kind


@pytest.mark.parametrize("name", CALLS)
def test_an_endpoint_has_its_time_however_it_answers(name: str, slow_urls: dict[str, str]) -> None:
    for kind, (outcome, seconds) in asyncio.run(ask_all(name, slow_urls)).items():
        assert isinstance(outcome, RegistryUnavailable), kind
        assert seconds < 12 * TIMEOUT, kind


def test_the_next_endpoint_is_asked(slow_urls: dict[str, str]) -> None:
    with served(lambda client: client.sendall(fitting(BODY))) as healthy:
        outcomes = asyncio.run(ask_all("read_config", slow_urls, healthy))
    for kind, (outcome, seconds) in outcomes.items():
        assert outcome == "v", kind
        assert seconds < 6 * TIMEOUT, kind


def test_an_event_that_drips_is_no_quiet_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the endpoint answers all else; a quiet one stays quiet."""
    monkeypatch.setitem(CALLS, "watch", (8, 3 * TIMEOUT))
    headers = HEADERS + b"Transfer-Encoding: chunked\r\n\r\n"
    begun = b'10\r\n{"action":"set",\r\n'
    for before, is_quiet in ((headers, True), (headers + begun, False)):
        with served(
            lambda client: client.sendall(fitting(BODY)),
            to_watches=dripping(before, b"" if is_quiet else b"1\r\n \r\n"),
        ) as url:
            outcome, seconds = call("watch", url)
        assert isinstance(outcome, Changes if is_quiet else RegistryUnavailable), outcome
        assert seconds < 6 * TIMEOUT


def test_a_long_answer_that_makes_progress_has_more_time() -> None:
    nodes = [NODE | {"key": f"/network/subnets/11.0.{number}.0-24", "value": "x" * 1000} for number in range(200)]
    body = json.dumps({"action": "get", "node": {"nodes": nodes}}, separators=(",", ":")).encode()

    def answer(client: socket.socket) -> None:
        for at in range(0, len(body), len(body) // 20):
            piece = body[at : at + len(body) // 20]
            client.sendall(piece if at else fitting(body)[: -len(body)] + piece)
            time.sleep(1.3 * TIMEOUT / 20)

    with served(answer) as url:
        outcome, seconds = call("snapshot", url)
    assert len(getattr(outcome, "entries", ())) == 200
    assert seconds > 1.2 * TIMEOUT


def test_of_a_name_with_two_addresses_both_have_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not answer, as behind a firewall that drops: a full backlog accepts nothing."""
    with contextlib.ExitStack() as cleanup, served(lambda client: client.sendall(fitting(BODY))) as healthy:
        port = int(healthy.rpartition(":")[2])
        full = cleanup.enter_context(socket.create_server(("127.0.0.2", port), backlog=0))
        for _ in range(3):
            filler = cleanup.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        addresses: list[Any] = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("127.0.0.2", "127.0.0.1")
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
        outcome, seconds = call("read_config", f"http://etcd.example:{port}")
    assert outcome == "v"
    assert TIMEOUT / 2 <= seconds < 2 * TIMEOUT


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and its certificate for 127.0.0.1, which is its own CA, in one file."""
    assert shutil.which("openssl")
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    new = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=a -keyout {file}.key"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "keyUsage=critical,digitalSignature,keyCertSign"]
    subprocess.run(["openssl", *new.split(), "-out", f"{file}.crt", *names], check=True, capture_output=True)
    file.write_text(Path(f"{file}.key").read_text() + Path(f"{file}.crt").read_text())
    return file


def test_a_handshake_that_drips_has_its_time(certificate: Path) -> None:
    hello = b"\x16\x03\x03\x40\x00\x02"  # of a record of 16 KiB, which never ends
    with served(dripping(hello, b"\x00")) as url:
        outcome, seconds = call("read_config", url.replace("http", "https"), cafile=str(certificate))
    assert isinstance(outcome, RegistryUnavailable)
    assert seconds < 3 * TIMEOUT


@pytest.mark.parametrize("slow", ["headers", "a body", "chunks"])
def test_an_answer_inside_tls_has_its_time(slow: str, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with served(SLOW[slow], context) as url:
        outcome, seconds = call("snapshot", url, cafile=str(certificate))
    assert isinstance(outcome, RegistryUnavailable)
    assert "certificate" not in str(outcome)
    assert seconds < 4 * TIMEOUT
