"""Failures between the v2 registry and a real etcd: restarts, the watch, permissions, foreign data.

test_etcd.py has those that v3 has, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import re
import socket
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import pytest
from lab.etcd_server import EtcdServer
from support.etcd_faults import (
    DAY,
    DEADLINE,
    SUBNETS,
    A,
    B,
    LossyProxy,
    answering,
    dead_url,
    short_timeout,
    use,
)

from flannelpy.errors import (
    HistoryGone,
    HistoryOverrun,
    RegistryError,
    RegistryUnavailable,
    UsageError,
)
from flannelpy.registry import event_stream
from flannelpy.registry.base import Changes, Deleted, Put
from flannelpy.registry.endpoints import Access, parse_endpoint
from flannelpy.registry.etcd_v2 import EtcdV2Registry

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["dead_url", "short_timeout"]


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
def server(shared_server: EtcdServer) -> EtcdServer:
    """Return a running, empty etcd."""
    for node in shared_server.list("/"):
        shared_server.delete(node.key)
    return shared_server


# If python-etcd finds another cluster, it drops the connection with an unread answer; the collector closes it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
class TestRestart:
    @pytest.fixture(autouse=True)
    def collected(self) -> Iterator[None]:
        yield
        gc.collect()

    def test_during_a_watch_misses_nothing(self, tmp_path: Path) -> None:
        async def test(registry: EtcdV2Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            watching = asyncio.create_task(registry.watch(cursor, DEADLINE))
            await asyncio.wait([watching], timeout=0.2)  # time to be accepted; the outcome is the same without
            etcd.stop()
            with pytest.raises(RegistryUnavailable):
                await watching
            etcd.start()
            entry = await registry.create(A, "a", DAY)
            assert (await registry.watch(cursor, DEADLINE)).changes == (Put(entry),)

        with EtcdServer(tmp_path) as etcd:
            use(EtcdV2Registry([etcd.url], "/network"), test)

    def test_as_another_cluster(self, tmp_path: Path) -> None:
        async def test(registry: EtcdV2Registry) -> None:
            await registry.create(A, "a", DAY)
            cursor = (await registry.snapshot()).cursor
            old.stop()
            with EtcdServer(tmp_path / "new", port=int(old.url.rpartition(":")[2])):
                with pytest.raises(HistoryGone):
                    await registry.watch(cursor, DEADLINE)
                snapshot = await registry.snapshot()
                assert snapshot.entries == ()
                entry = await registry.create(A, "a", DAY)
                assert (await registry.watch(snapshot.cursor, DEADLINE)).changes == (Put(entry),)

        with EtcdServer(tmp_path / "old") as old:
            use(EtcdV2Registry([old.url], "/network"), test)

    def test_as_another_cluster_is_detected_by_any_call(self, tmp_path: Path) -> None:
        async def test(registry: EtcdV2Registry) -> None:
            await registry.snapshot()
            old.stop()
            with EtcdServer(tmp_path / "new", port=int(old.url.rpartition(":")[2])):
                entry = await registry.create(A, "a", DAY)
                assert [found.version for found in (await registry.snapshot()).entries] == [entry.version]

        with EtcdServer(tmp_path / "old") as old:
            use(EtcdV2Registry([old.url], "/network"), test)


class TestFrozen:
    @pytest.mark.parametrize("call", ["read_config", "snapshot", "create", "compare_and_delete", "watch"])
    def test_is_unavailable_in_time(self, server: EtcdServer, short_timeout: float, call: str) -> None:
        arguments: dict[str, tuple[Any, ...]] = {
            "create": (A, "a", DAY), "compare_and_delete": (A, 1), "watch": (10, 1.0)
        }  # fmt: skip
        begin = time.monotonic()
        server.pause()
        try:
            with pytest.raises(RegistryUnavailable, match="no answer in time"):
                use(
                    EtcdV2Registry([server.url], "/network"),
                    lambda registry: getattr(registry, call)(*arguments.get(call, ())),
                )
        finally:
            server.resume()
        assert time.monotonic() - begin < 4 * short_timeout


# What a DeafProxy does.
OPEN_REPLIES = "buffers the events of an open response"
FORGOTTEN = "holds back what comes on connections of before"
WHOLE_REPLIES = "passes on a reply once it is whole"


class TestStream:
    def test_is_one_request_through_thousands_of_changes_elsewhere(self, server: EtcdServer) -> None:
        async def test(registry: EtcdV2Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            assert await registry.watch(cursor, 0.1) == Changes((), cursor)
            before = watches(server)
            watching = asyncio.create_task(registry.watch(cursor, DEADLINE))
            elsewhere = {f"/elsewhere/{number % 50}?{number}": "x" for number in range(2500)}
            await asyncio.to_thread(server.put_all, elsewhere, DAY)
            assert not watching.done()
            for name in (A, B):
                entry = await registry.create(name, "a", DAY)
                changes = await watching
                assert changes == Changes((Put(entry),), entry.version + 1)
                watching = asyncio.create_task(registry.watch(changes.cursor, DEADLINE))
            watching.cancel()
            assert watches(server) == before

        use(EtcdV2Registry([server.url], "/network"), test)

    def test_between_two_watches_may_be_too_much(self, server: EtcdServer) -> None:
        """The rejection has the store's index, and a watch from there receives the next events."""

        async def test(registry: EtcdV2Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            await asyncio.to_thread(server.put_all, {f"/elsewhere/{number}": "x" for number in range(1001)}, DAY)
            with pytest.raises(HistoryOverrun) as caught:
                await registry.watch(cursor, DEADLINE)
            entry = await registry.create(A, "a", DAY)
            assert (await registry.watch(caught.value.cursor, DEADLINE)).changes == (Put(entry),)

        use(EtcdV2Registry([server.url], "/network"), test)

    def test_continues_after_events_of_the_history(self, server: EtcdServer) -> None:
        """etcd sends one event of the history, and never another one on that connection."""

        async def test(registry: EtcdV2Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            first = await registry.create(A, "a", DAY)
            second = await registry.create(B, "b", DAY)
            changes = await registry.watch(cursor, DEADLINE)
            assert changes == Changes((Put(first),), first.version + 1, behind=1)
            changes = await registry.watch(changes.cursor, DEADLINE)
            assert changes == Changes((Put(second),), second.version + 1)
            watching = asyncio.create_task(registry.watch(changes.cursor, DEADLINE))
            third = await registry.compare_and_swap(A, "c", DAY, first.version)
            assert (await watching).changes == (Put(third),)

        use(EtcdV2Registry([server.url], "/network"), test)

    def test_of_a_frozen_etcd_is_not_a_quiet_one(self, server: EtcdServer, short_timeout: float) -> None:
        async def test(registry: EtcdV2Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            assert await registry.watch(cursor, 0.1) == Changes((), cursor)
            server.pause()
            try:
                with pytest.raises(RegistryUnavailable, match="no answer in time"):
                    await registry.watch(cursor, 0.1)
            finally:
                server.resume()
            entry = await registry.create(A, "a", DAY)
            assert (await registry.watch(cursor, DEADLINE)).changes == (Put(entry),)

        use(EtcdV2Registry([server.url], "/network"), test)

    def test_follows_the_other_calls_to_another_endpoint(self, tmp_path: Path) -> None:
        """A member that is cut off from its cluster accepts watches, but never sends an event."""

        async def test(registry: EtcdV2Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            assert await registry.watch(cursor, 0.1) == Changes((), cursor)
            cut_off.lose("request", "PUT ")
            entry = await registry.create(A, "a", DAY)
            assert await registry.watch(cursor, 0.1) == Changes((), cursor)
            assert (await registry.watch(cursor, DEADLINE)).changes == (Put(entry),)

        with EtcdServer(tmp_path / "1") as member, EtcdServer(tmp_path / "2") as healthy:
            cut_off = LossyProxy(member)
            with cut_off.running():
                use(EtcdV2Registry([cut_off.url, healthy.url], "/network"), test)

    @pytest.mark.parametrize("held_back", [OPEN_REPLIES, FORGOTTEN])
    def test_that_is_deaf_is_detected(self, server: EtcdServer, held_back: str) -> None:
        """The store's index has grown, and its history has the missed events."""

        async def test(registry: EtcdV2Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            assert await registry.watch(cursor, 0.1) == Changes((), cursor)
            deaf.is_deaf = held_back
            entry = await registry.create(A, "a", DAY)
            assert await registry.watch(cursor, 0.1) == Changes((), cursor)
            assert (await registry.watch(cursor, 2)).changes == (Put(entry),)

        deaf = DeafProxy(server)
        with deaf.running():
            use(EtcdV2Registry([deaf.url], "/network"), test)

    def test_through_a_proxy_that_passes_on_whole_replies_only(self, server: EtcdServer, short_timeout: float) -> None:
        async def test(registry: EtcdV2Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            with pytest.raises(RegistryUnavailable, match="no answer in time"):
                await registry.watch(cursor, DEADLINE)
            for name in (A, B):
                watching = asyncio.create_task(registry.watch(cursor, DEADLINE))
                await asyncio.wait([watching], timeout=2 * short_timeout)
                entry = await registry.create(name, "a", DAY)
                async with asyncio.timeout(2):
                    assert (await watching).changes == (Put(entry),)
                cursor = entry.version + 1

        deaf = DeafProxy(server)
        deaf.is_deaf = WHOLE_REPLIES
        with deaf.running():
            use(EtcdV2Registry([deaf.url], "/network"), test)

    def test_that_ends_again_and_again_is_no_loop(self) -> None:
        with answering(200, "") as url:
            began = time.monotonic()
            with pytest.raises(RegistryUnavailable, match="etcd ended the watch"):
                use(EtcdV2Registry([url], "/network"), lambda registry: registry.watch(7, DEADLINE))
            assert time.monotonic() - began < 3

    def test_tells_a_burst_in_batches_that_a_turn_of_the_loop_can_take(self, server: EtcdServer) -> None:
        async def test(registry: EtcdV2Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            assert await registry.watch(cursor, 0.1) == Changes((), cursor)
            names = {f"11.{number // 250}.{number % 250}.0-24" for number in range(700)}
            await asyncio.to_thread(server.put_all, {f"{SUBNETS}/{name}": "x" for name in names}, DAY)
            batches: list[set[str]] = []
            while sum(map(len, batches)) < len(names):
                changes = await registry.watch(cursor, DEADLINE)
                batches.append({change.entry.name for change in changes.changes if isinstance(change, Put)})
                cursor = changes.cursor
            assert set().union(*batches) == names
            assert max(map(len, batches)) <= event_stream.MOST_AT_ONCE

        use(EtcdV2Registry([server.url], "/network"), test)

    def test_of_more_events_than_are_taken_loses_none(
        self, server: EtcdServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Values are large, and the client reads nothing meanwhile."""
        monkeypatch.setattr(event_stream, "MOST_WAITING", 100_000)

        async def test(registry: EtcdV2Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            assert await registry.watch(cursor, 0.1) == Changes((), cursor)
            values = [f"{number}" * 10_000 for number in range(30)]
            for value in values:
                await asyncio.to_thread(put, server, f"{SUBNETS}/{A}", value)
            received: list[str] = []
            while len(received) < len(values):
                changes = await registry.watch(cursor, DEADLINE)
                received += [change.entry.value for change in changes.changes if isinstance(change, Put)]
                cursor = changes.cursor
            assert received == values

        use(EtcdV2Registry([server.url], "/network"), test)


class DeafProxy(LossyProxy):
    """A proxy that withholds what ``is_deaf`` selects of the bytes from etcd, and forwards the rest."""

    def __init__(self, server: EtcdServer) -> None:
        super().__init__(server)
        self.is_deaf = ""
        self._streams: set[socket.socket] = set()
        self._polls: dict[socket.socket, bytes] = {}

    def note(self, client: socket.socket, request: bytes) -> None:
        self._polls.pop(client, None)
        if b"stream=true" in request and self.is_deaf != FORGOTTEN:
            self._streams.add(client)
        elif b"wait=true" in request and self.is_deaf == WHOLE_REPLIES:
            self._polls[client] = b""

    def passed(self, client: socket.socket, reply: bytes) -> bytes:
        if client in self._polls:
            self._polls[client] += reply
            return self._polls.pop(client) if b'"action"' in self._polls[client] else b""
        is_held = self.is_deaf in (FORGOTTEN, WHOLE_REPLIES) or (self.is_deaf and not reply.startswith(b"HTTP/1.1"))
        return b"" if is_held and client in self._streams else reply


def watches(server: EtcdServer) -> int:
    """Return how often etcd was asked for a watch."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=DEADLINE) as answer:
        found = re.search(r"^etcd_debugging_store_watch_requests_total (\S+)$", answer.read().decode(), re.MULTILINE)
    assert found
    return int(float(found[1]))


class TestEvents:
    def test_of_directories_and_strange_names(self, server: EtcdServer) -> None:
        async def test(registry: EtcdV2Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            server.request("PUT", "/v2/keys/network/subnets/directory", {"dir": "true"})
            skipped = await registry.watch(cursor, DEADLINE)
            assert skipped == Changes((Deleted("directory"),), skipped.cursor)
            assert skipped.cursor > cursor
            server.put("/network/subnets/b c?d=1%20", "x")
            ((change,), *_) = await registry.watch(skipped.cursor, DEADLINE)
            assert isinstance(change, Put)
            assert change.entry.name == "b c?d=1%20"
            assert (await registry.snapshot()).entries == (change.entry,)
            await registry.compare_and_delete(change.entry.name, change.entry.version)
            assert (await registry.snapshot()).entries == ()

        use(EtcdV2Registry([server.url], "/network"), test)

    @pytest.mark.parametrize("ttl", [{}, {"ttl": "100"}])
    def test_a_directory_in_place_of_a_lease_removes_it(self, server: EtcdServer, ttl: dict[str, str]) -> None:
        async def test(registry: EtcdV2Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            server.request("PUT", "/v2/keys/network/subnets/lease", {"dir": "true"} | ttl)
            changes = await registry.watch(cursor, DEADLINE)
            assert changes.changes == (Deleted("lease"),)
            assert (await registry.snapshot()).entries == ()
            server.request("PUT", "/v2/keys/network/subnets/lease/inner", {"value": "x"})
            inner = await registry.watch(changes.cursor, DEADLINE)
            assert inner.changes == ()
            server.request("PUT", "/v2/keys/network/subnets/lease", {"dir": "true", "prevExist": "true", "ttl": "9"})
            assert (await registry.watch(inner.cursor, DEADLINE)).changes == ()

        server.put("/network/subnets/lease", "x")
        use(EtcdV2Registry([server.url], "/network"), test)

    @pytest.mark.parametrize("removed", ["/network", "/network/subnets"])
    def test_removal_of_a_directory_ends_the_history(self, server: EtcdServer, removed: str) -> None:
        async def test(registry: EtcdV2Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            server.delete(removed)
            with pytest.raises(HistoryGone, match=f"^{removed}: "):
                await registry.watch(cursor, DEADLINE)

        server.put("/network/subnets/inner/key", "x")
        use(EtcdV2Registry([server.url], "/network"), test)

    def test_expiry_of_the_directory_ends_the_history(self, server: EtcdServer) -> None:
        async def test(registry: EtcdV2Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            with pytest.raises(HistoryGone):
                await registry.watch(cursor, DEADLINE)

        server.request("PUT", "/v2/keys/network/subnets", {"dir": "true", "ttl": "1"})
        use(EtcdV2Registry([server.url], "/network"), test)

    def test_a_lease_about_to_expire_is_never_one_for_ever(self, server: EtcdServer) -> None:
        async def test(registry: EtcdV2Registry) -> None:
            await registry.create(A, "a", 1)
            while entries := (await registry.snapshot()).entries:
                assert entries[0].lifetime.seconds in (0, 1)

        use(EtcdV2Registry([server.url], "/network"), test)


class TestOptions:
    @pytest.mark.parametrize(
        ("text", "url"),
        [
            ("http://127.0.0.1:4001", "http://127.0.0.1:4001"),
            ("https://etcd.example/", "https://etcd.example:2379"),
            (" http://[::1]:2380 ", "http://[::1]:2380"),
        ],
    )
    def test_endpoint(self, text: str, url: str) -> None:
        assert str(parse_endpoint(text)) == url

    def test_user_in_an_endpoint(self) -> None:
        with pytest.raises(UsageError, match="-etcd-username") as caught:
            parse_endpoint("http://root:secret@127.0.0.1:2379")
        assert "secret" not in str(caught.value)

    def test_v2_switched_off(self, tmp_path: Path) -> None:
        with EtcdServer(tmp_path, v2=False) as server:
            with pytest.raises(RegistryUnavailable, match="start etcd with --enable-v2=true"):
                use(EtcdV2Registry([server.url], "/network"), lambda registry: registry.snapshot())
            with pytest.raises(RegistryUnavailable, match="start etcd with --enable-v2=true"):
                use(EtcdV2Registry([server.url], "/network"), lambda registry: registry.watch(1, 1.0))


USER, PASSWORD = "flannel", "pass: wörd €"


@pytest.fixture(scope="module")
def guarded_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URL of an etcd that accepts only USER."""

    def put(path: str, **content: object) -> None:
        etcd.request("PUT", f"/v2/auth/{path}", body=json.dumps(content))

    with EtcdServer(tmp_path_factory.mktemp("auth")) as etcd:
        put("users/root", user="root", password="root")
        put("roles/guest", role="guest", permissions={"kv": {"read": [], "write": []}})
        put("roles/network", role="network", permissions={"kv": {"read": ["/network*"], "write": ["/network*"]}})
        put(f"users/{USER}", user=USER, password=PASSWORD, roles=["network"])
        put("enable")
        yield etcd.url


class TestAuth:
    def test_right_password(self, guarded_url: str) -> None:
        async def test(registry: EtcdV2Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            entry = await registry.create(A, "a", DAY)
            assert (await registry.watch(cursor, DEADLINE)).changes == (Put(entry),)

        use(EtcdV2Registry([guarded_url], "/network", Access(username=USER, password=PASSWORD)), test)

    @pytest.mark.parametrize("options", [{}, {"username": USER, "password": "wrong"}, {"username": USER}])
    @pytest.mark.parametrize("call", ["snapshot", "create", "watch"])
    def test_wrong_password(self, guarded_url: str, options: dict[str, str], call: str) -> None:
        arguments: dict[str, tuple[Any, ...]] = {"create": (B, "b", DAY), "watch": (1, 1.0)}
        with pytest.raises(RegistryUnavailable, match="-etcd-username and -etcd-password") as caught:
            use(
                EtcdV2Registry([guarded_url], "/network", Access(**options)),
                lambda registry: getattr(registry, call)(*arguments.get(call, ())),
            )
        assert "wrong" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, "\xe9 caf\xe9"),
        (200, "[]"),
        (200, '{"action":"get","node":{}}'),
        (404, '{"errorCode":[]}'),
        (404, '{"errorCode":100}'),
        (502, "\xfc <html>"),
    ],
)
@pytest.mark.parametrize(
    "call", ["read_config", "snapshot", "snapshot_of", "create", "compare_and_swap", "compare_and_delete", "watch"]
)
def test_a_service_that_is_no_etcd_is_skipped(server: EtcdServer, call: str, status: int, body: str) -> None:
    """A proxy's error page, or another service on 4001, caused a traceback, and the next endpoint was not asked."""

    arguments: dict[str, tuple[object, ...]] = {
        "snapshot_of": ("11.0.1.0-24",),
        "create": ("11.0.1.0-24", "{}", 60),
        "compare_and_swap": ("11.0.1.0-24", "{}", 60, 1),
        "compare_and_delete": ("11.0.1.0-24", 1),
        "watch": (1, 0.5),
    }
    with answering(status, body) as url:
        for endpoints in ([url], [url, server.url]):
            with contextlib.suppress(RegistryError):
                use(
                    EtcdV2Registry(endpoints, "/network"),
                    lambda registry: getattr(registry, call)(*arguments.get(call, ())),
                )


# Foreign data in the store

DEEP = SUBNETS + "/x" * 600
ODD_NAMES = ["a b", "a%2Fb", "\u00fcber\u202e", "n" * 3000, "a\nb", "_hidden", "11.0.1.0-24x", "-", "?", "#"]


def test_only_direct_children_are_listed_and_none_of_them_ends_a_call(server: EtcdServer) -> None:
    """A key nested 600 levels deep ended every daemon of the cluster with RecursionError."""
    put(server, f"{SUBNETS}/{A}", "lease")
    put(server, DEEP, "deep")
    put(server, f"{SUBNETS}/{B}/inside", "a directory in the place of a lease")
    for name in ODD_NAMES:
        put(server, f"{SUBNETS}/{quote(name, safe='')}", f"value of {name}")
    put(server, f"{SUBNETS}/long", "x" * 10_000_000)
    put(server, f"{SUBNETS}/binary", bytes(range(256)))
    assert use(EtcdV2Registry([server.url], "/network"), lambda registry: registry.snapshot_of(B)).entries == ()
    found = use(EtcdV2Registry([server.url], "/network"), lambda registry: registry.snapshot())
    values = {entry.name: entry.value for entry in found.entries}
    assert values[A] == "lease"
    assert len(values["long"]) == 10_000_000
    assert not {name for name in values if name.startswith(("x", B))}
    assert set(values) >= {"a b", "\u00fcber\u202e", "n" * 3000, "a\nb", "11.0.1.0-24x"}


def test_events_of_deeper_keys_move_the_cursor_on_and_nothing_else(server: EtcdServer) -> None:
    async def test(registry: EtcdV2Registry) -> None:
        put(server, f"{SUBNETS}/{A}", "lease")
        cursor = (await registry.snapshot()).cursor
        put(server, DEEP, "deep")
        put(server, f"{SUBNETS}/{B}/inside", "1")
        delete(server, f"{SUBNETS}/{B}")
        delete(server, f"{SUBNETS}/x")
        put(server, f"{SUBNETS}/{B}", "2")
        for _ in range(4):
            changes = await registry.watch(cursor, DEADLINE)
            assert (changes.changes, changes.cursor) == ((), cursor + 1)
            cursor = changes.cursor
        [change] = (await registry.watch(cursor, DEADLINE)).changes
        assert isinstance(change, Put)
        assert (change.entry.name, change.entry.value) == (B, "2")

    use(EtcdV2Registry([server.url], "/network"), test)


@pytest.mark.parametrize("directory", ["/network/subnets", "/network"])
def test_a_removal_of_our_directory_or_of_one_above_is_noticed(server: EtcdServer, directory: str) -> None:
    async def test(registry: EtcdV2Registry) -> None:
        put(server, f"{SUBNETS}/{A}", "lease")
        cursor = (await registry.snapshot()).cursor
        delete(server, directory)
        with pytest.raises(HistoryGone):
            await registry.watch(cursor, DEADLINE)

    use(EtcdV2Registry([server.url], "/network"), test)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, {"errorCode": 100, "message": "a\nE0101 forged" + "x" * 1000, "cause": "\x1b[2J\u202e", "index": 7}),
        (404, {"errorCode": 100, "message": ["a"] * 1000, "cause": None, "index": 7}),
        (500, {"errorCode": 300, "message": "\u2028\x9b" * 1000, "cause": "b\nc"}),
        (502, "a\n\x1b[2J\u202e" * 100_000),
    ],
)
def test_foreign_text_is_one_short_line(status: int, body: object) -> None:
    with answering(status, json.dumps(body)) as url, pytest.raises(RegistryError) as caught:
        use(EtcdV2Registry([url], "/network"), lambda registry: registry.read_config())
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def put(server: EtcdServer, path: str, value: str | bytes) -> None:
    """Write a key as an administrator's curl does."""
    data = urlencode({"value": value}).encode()
    request = urllib.request.Request(f"{server.url}/v2/keys{path}", data, method="PUT")
    urllib.request.urlopen(request, timeout=DEADLINE).close()


def delete(server: EtcdServer, path: str) -> None:
    request = urllib.request.Request(f"{server.url}/v2/keys{path}?recursive=true", method="DELETE")
    urllib.request.urlopen(request, timeout=DEADLINE).close()
