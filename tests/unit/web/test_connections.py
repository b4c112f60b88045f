"""Real connections on loopback: requests, and clients that send nonsense, too much, too slowly or nothing."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from ipaddress import IPv4Address

import pytest

from flannelpy.web import connections
from flannelpy.web.connections import Connections
from flannelpy.web.messages import Request, Response

SEED = 14
GOOD = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
LONG = bytes(range(256)) * 40_000

Client = Callable[[tuple[str, int]], Awaitable[bytes]]


async def echo(request: Request) -> Response:
    body = LONG if request.path == "/long" else f"{request.target} {request.host}".encode()
    return Response(HTTPStatus.OK, body)


def served(client: Client, answer: connections.Answer = echo) -> bytes:
    """Return what a client of a new server receives."""

    async def serve() -> bytes:
        listener = socket.create_server(("127.0.0.1", 0))
        serving = asyncio.create_task(Connections(answer).serve(listener))
        try:
            return await client(listener.getsockname())
        finally:
            serving.cancel()

    return asyncio.run(serve())


async def exchanged(address: tuple[str, int], data: bytes) -> bytes:
    """Return what a client receives that sends ``data`` and then waits."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(data)
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def received(data: bytes) -> bytes:
    return served(lambda address: exchanged(address, data))


def test_a_response_has_length_and_closes_the_connection() -> None:
    head, body = received(b"GET /a?b HTTP/1.1\r\nhost: c:1\r\nConnection: keep-alive\r\n\r\n").split(b"\r\n\r\n")
    assert body == b"/a?b c:1"
    lines = head.lower().split(b"\r\n")
    assert lines[0] == b"http/1.1 200 ok"
    assert {b"content-length: 8", b"connection: close", b"cache-control: no-store"} <= set(lines)


def test_the_addresses_are_those_of_the_connection() -> None:
    async def answer(request: Request) -> Response:
        assert (request.local, request.remote) == (IPv4Address("127.0.0.1"), IPv4Address("127.0.0.1"))
        return Response(HTTPStatus.NO_CONTENT, b"")

    assert served(lambda address: exchanged(address, GOOD), answer).startswith(b"HTTP/1.1 204 ")


def test_head_has_the_length_and_no_body() -> None:
    response = received(b"HEAD /abc HTTP/1.1\r\nHost: a\r\n\r\n")
    assert response.endswith(b"\r\n\r\n")
    assert b"content-length: 6\r\n" in response.lower()


def test_one_connection_serves_one_request() -> None:
    assert received(GOOD * 3).count(b"HTTP/1.1 ") == 1


def test_http_1_0_without_host() -> None:
    assert received(b"GET /x HTTP/1.0\r\n\r\n").endswith(b"/x ")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"http://10.0.0.1:8471/healthz", b"/healthz 10.0.0.1:8471"),
        (b"HTTP://b/readyz?verbose", b"/readyz?verbose b"),
        (b"http://b?verbose", b"/?verbose b"),
        (b"http://b", b"/ b"),
        (b"http://b//x/http://c", b"//x/http://c b"),
        (b"http:///healthz", b"http:///healthz a"),
        (b"/http://b/x", b"/http://b/x a"),
    ],
)
def test_an_absolute_target_is_that_of_its_path_and_its_host_counts(target: bytes, expected: bytes) -> None:
    response = received(b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % target)
    assert response.endswith(b"\r\n\r\n" + expected)


def test_a_body_is_not_read() -> None:
    assert b" 200 " in received(b"GET /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\nabc")


def test_a_long_response_arrives_whole() -> None:
    assert received(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n").endswith(b"\r\n\r\n" + LONG)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),  # TLS
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET /" + b"x" * 9000, 431),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 2000, 431),
    ],
)
def test_a_bad_request_is_refused(data: bytes, status: int) -> None:
    assert received(data).startswith(b"HTTP/1.1 %d " % status)


def test_any_bytes_are_survived() -> None:
    print(f"seed {SEED}")
    rng = random.Random(SEED)

    async def attack(address: tuple[str, int]) -> bytes:
        for _ in range(300):
            data = rng.randbytes(rng.randrange(200))
            start = rng.choice((b"", b"GET ", b"GET / HTTP/1.1\r\nHost: "))
            _, writer = await asyncio.open_connection(*address)
            writer.write(start + data)
            writer.close()
        return await exchanged(address, GOOD)

    assert b" 200 " in served(attack)


def test_clients_that_reset_their_connections_leave_no_trace(caplog: pytest.LogCaptureFixture) -> None:
    async def attack(address: tuple[str, int]) -> bytes:
        for _ in range(100):
            with socket.create_connection(address) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close resets it
                client.send(GOOD)
            await asyncio.sleep(0)
        return await exchanged(address, GOOD)

    assert b" 200 " in served(attack)
    assert caplog.messages == []


def test_an_error_of_ours_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(_: Request) -> Response:
        raise ZeroDivisionError("nothing to divide")

    async def ask(address: tuple[str, int]) -> bytes:
        return await exchanged(address, GOOD) + await exchanged(address, GOOD)

    assert served(ask, answer) == b""
    [message] = caplog.messages
    assert message.startswith("Failed to answer an HTTP client: Unexpected error ")


def test_a_slow_client_is_closed_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_SECONDS", 0.2)

    async def attack(address: tuple[str, int]) -> bytes:
        _, writer = await asyncio.open_connection(*address)
        try:
            for byte in GOOD * 100:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionError:
            return b"closed"
        finally:
            writer.close()
        return b"open"

    assert served(attack) == b"closed"


def test_a_client_that_does_not_read_is_closed_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_SECONDS", 0.2)

    async def attack(address: tuple[str, int]) -> bytes:
        with socket.create_connection(address) as client:
            client.setblocking(False)
            client.send(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n")
            await asyncio.sleep(0.5)
            total = 0
            with suppress(ConnectionError):
                while data := await asyncio.get_running_loop().sock_recv(client, 1 << 20):
                    total += len(data)
        return b"closed" if total < len(LONG) else b"open"

    assert served(attack) == b"closed"


def test_idle_clients_keep_no_other_client_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_MOST_CONNECTIONS", 20)

    async def attack(address: tuple[str, int]) -> bytes:
        idle = [await asyncio.open_connection(*address) for _ in range(100)]
        response = await exchanged(address, GOOD)
        open_ones = [asyncio.create_task(reader.read()) for reader, _ in idle]
        closed, still_open = await asyncio.wait(open_ones, timeout=0.2)
        assert len(still_open) <= 20
        assert len(closed) >= 80
        for task in closed:
            task.exception()
        for task in still_open:
            task.cancel()
        for _, writer in idle:
            writer.close()
        return response

    assert b" 200 " in served(attack)


def test_requests_whose_answer_takes_long_are_limited_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_MOST_CONNECTIONS", 20)
    waiting = 0

    async def answer(request: Request) -> Response:
        nonlocal waiting
        waiting += 1
        try:
            await asyncio.sleep(60)
        finally:
            waiting -= 1
        return Response(HTTPStatus.OK, b"")

    async def attack(address: tuple[str, int]) -> bytes:
        writers = []
        for _ in range(100):
            _, writer = await asyncio.open_connection(*address)
            writer.write(GOOD)
            writers.append(writer)
        await asyncio.sleep(0.2)
        assert 0 < waiting <= 20
        for writer in writers:
            writer.close()
        return b""

    served(attack, answer)
