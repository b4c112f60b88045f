"""Failures between python-etcd and a real etcd: lost replies, dead and frozen members, TLS, permissions."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode

import pytest
from lab.etcd_server import EtcdServer, ServerTls, free_ports
from support.etcd_faults import DrippingProxy, LossyProxy, answering, issue_certificates

import flannelpy
from flannelpy.errors import (
    CompareFailed,
    HistoryGone,
    HistoryOverrun,
    HostError,
    KeyExists,
    KeyNotFound,
    RegistryError,
    RegistryUnavailable,
    UsageError,
)
from flannelpy.registry import endpoints, event_stream
from flannelpy.registry.base import Changes, Deleted, Put, expires_in
from flannelpy.registry.endpoints import Access, parse_endpoint
from flannelpy.registry.etcd_v2 import EtcdV2Registry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

Result = TypeVar("Result")

DAY = 86400
DEADLINE = 20.0
A, B = "11.0.1.0-24", "11.0.2.0-24"
KEY = f"/network/subnets/{A}"


def use(registry: EtcdV2Registry, test: Callable[[EtcdV2Registry], Awaitable[Result]]) -> Result:
    """Run ``test`` with ``registry``, and close ``registry`` afterwards."""

    async def body() -> Result:
        try:
            async with asyncio.timeout(DEADLINE):
                return await test(registry)
        finally:
            await registry.close()

    return asyncio.run(body())


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


@pytest.fixture
def dead_url() -> str:
    return f"http://127.0.0.1:{free_ports(1)[0]}"


@pytest.fixture
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(endpoints, "REPLY_TIMEOUT", 0.5)
    return 0.5


@pytest.fixture
def proxy(server: EtcdServer) -> Iterator[LossyProxy]:
    proxy = LossyProxy(server)
    with proxy.running():
        yield proxy


@pytest.fixture(params=["one endpoint", "two endpoints"])
def registry(request: pytest.FixtureRequest, proxy: LossyProxy, server: EtcdServer) -> EtcdV2Registry:
    """Return a registry whose first endpoint is the proxy."""
    return EtcdV2Registry([proxy.url, server.url][: 1 if request.param == "one endpoint" else 2], "/network")


class TestLostWrite:
    def test_create_that_happened_is_ours(
        self, proxy: LossyProxy, registry: EtcdV2Registry, server: EtcdServer
    ) -> None:
        proxy.lose("reply", "PUT ")
        entry = use(registry, lambda registry: registry.create(A, "mine", DAY))
        assert entry[:3] == (A, "mine", expires_in(DAY))
        (stored,) = server.list("/network/subnets")
        assert stored.value == "mine"

    def test_create_that_happened_is_not_repeated(self, proxy: LossyProxy, registry: EtcdV2Registry) -> None:
        async def test(registry: EtcdV2Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            proxy.lose("reply", "PUT ")
            entry = await registry.create(A, "mine", DAY)
            assert (await registry.watch(cursor, DEADLINE)).changes == (Put(entry),)
            assert entry.version == (await registry.snapshot()).cursor - 1

        use(registry, test)

    def test_create_that_did_not_happen_is_sent_again(self, proxy: LossyProxy, registry: EtcdV2Registry) -> None:
        proxy.lose("request", "PUT ")
        assert use(registry, lambda registry: registry.create(A, "mine", DAY))[:3] == (A, "mine", expires_in(DAY))

    def test_create_while_another_client_is_faster(
        self, proxy: LossyProxy, registry: EtcdV2Registry, server: EtcdServer
    ) -> None:
        proxy.lose("request", "PUT ", lambda: server.put(KEY, "theirs"))
        with pytest.raises(KeyExists):
            use(registry, lambda registry: registry.create(A, "mine", DAY))
        assert server.list("/network/subnets")[0].value == "theirs"

    def test_swap_that_happened_is_ours(self, proxy: LossyProxy, registry: EtcdV2Registry) -> None:
        async def test(registry: EtcdV2Registry) -> None:
            old = await registry.create(A, "mine", 100)
            proxy.lose("reply", "PUT ")
            new = await registry.compare_and_swap(A, "mine", DAY, old.version)
            assert new[:3] == (A, "mine", expires_in(DAY))
            assert new.version > old.version
            assert [entry._replace(lifetime=expires_in(DAY)) for entry in (await registry.snapshot()).entries] == [new]

        use(registry, test)

    def test_swap_while_another_client_is_faster(
        self, proxy: LossyProxy, registry: EtcdV2Registry, server: EtcdServer
    ) -> None:
        async def test(registry: EtcdV2Registry) -> None:
            old = await registry.create(A, "mine", DAY)
            proxy.lose("request", "PUT ", lambda: server.put(KEY, "theirs"))
            with pytest.raises(CompareFailed):
                await registry.compare_and_swap(A, "mine", DAY, old.version)

        use(registry, test)

    def test_swap_of_what_is_gone_meanwhile(
        self, proxy: LossyProxy, registry: EtcdV2Registry, server: EtcdServer
    ) -> None:
        async def test(registry: EtcdV2Registry) -> None:
            old = await registry.create(A, "mine", DAY)
            proxy.lose("reply", "PUT ", lambda: server.delete(KEY))
            with pytest.raises(KeyNotFound):
                await registry.compare_and_swap(A, "mine", DAY, old.version)

        use(registry, test)

    def test_delete_that_happened(self, proxy: LossyProxy, registry: EtcdV2Registry) -> None:
        async def test(registry: EtcdV2Registry) -> None:
            entry = await registry.create(A, "mine", DAY)
            proxy.lose("reply", "DELETE ")
            await registry.compare_and_delete(A, entry.version)
            assert (await registry.snapshot()).entries == ()

        use(registry, test)

    def test_delete_that_did_not_happen_is_sent_again(self, proxy: LossyProxy, registry: EtcdV2Registry) -> None:
        async def test(registry: EtcdV2Registry) -> None:
            entry = await registry.create(A, "mine", DAY)
            proxy.lose("request", "DELETE ")
            await registry.compare_and_delete(A, entry.version)
            assert (await registry.snapshot()).entries == ()

        use(registry, test)

    def test_delete_while_another_client_is_faster(
        self, proxy: LossyProxy, registry: EtcdV2Registry, server: EtcdServer
    ) -> None:
        async def test(registry: EtcdV2Registry) -> None:
            entry = await registry.create(A, "mine", DAY)
            proxy.lose("request", "DELETE ", lambda: server.put(KEY, "theirs"))
            with pytest.raises(CompareFailed):
                await registry.compare_and_delete(A, entry.version)
            assert server.list("/network/subnets")[0].value == "theirs"

        use(registry, test)

    def test_create_whose_every_reply_is_lost_ends(self, proxy: LossyProxy) -> None:
        proxy.lose("reply", "PUT ")
        proxy.lose("reply", "PUT ")
        with pytest.raises(RegistryUnavailable):
            use(EtcdV2Registry([proxy.url], "/network"), lambda registry: registry.create(A, "mine", DAY))

    def test_create_whose_reading_back_is_lost_too_ends(self, proxy: LossyProxy) -> None:
        proxy.lose("reply", "PUT ")
        proxy.lose("reply", "GET ")
        with pytest.raises(RegistryUnavailable):
            use(EtcdV2Registry([proxy.url], "/network"), lambda registry: registry.create(A, "mine", DAY))


class TestDrippingWrite:
    """A write whose answer does not arrive in time has happened, which is detected as after a lost reply."""

    @pytest.mark.parametrize("is_alone", [True, False], ids=["one endpoint", "two endpoints"])
    def test_that_happened_is_ours(self, server: EtcdServer, short_timeout: float, is_alone: bool) -> None:
        async def test(registry: EtcdV2Registry) -> None:
            created = await registry.create(A, "mine", DAY)
            swapped = await registry.compare_and_swap(A, "mine too", DAY, created.version)
            assert (await registry.snapshot()).entries == (swapped,)
            await registry.compare_and_delete(A, swapped.version)
            assert (await registry.snapshot()).entries == ()

        dripping = DrippingProxy(server, "PUT ", 1)
        with dripping.running():
            began = time.monotonic()
            urls = [dripping.url, server.url][: 1 if is_alone else 2]
            use(EtcdV2Registry(urls, "/network"), test)
            assert short_timeout <= time.monotonic() - began < 6 * short_timeout

    def test_whose_every_answer_drips_ends(self, server: EtcdServer, short_timeout: float) -> None:
        dripping = DrippingProxy(server, "PUT ", 9)
        with dripping.running(), pytest.raises(RegistryUnavailable, match="no answer in time"):
            use(EtcdV2Registry([dripping.url], "/network"), lambda registry: registry.create(A, "mine", DAY))


class TestEndpoints:
    def test_the_next_one_is_tried(self, server: EtcdServer, dead_url: str) -> None:
        server.put("/network/config", "{}")
        registry = EtcdV2Registry([dead_url, server.url], "/network")
        assert use(registry, lambda registry: registry.read_config()) == "{}"

    def test_a_create_refused_after_a_dead_endpoint_is_refused(self, server: EtcdServer, dead_url: str) -> None:
        server.put(KEY, "mine")  # nothing was sent to the dead endpoint, so the key is another client's
        with pytest.raises(KeyExists):
            use(EtcdV2Registry([dead_url, server.url], "/network"), lambda registry: registry.create(A, "mine", DAY))

    def test_the_one_that_worked_comes_first_from_then_on(self, server: EtcdServer, short_timeout: float) -> None:
        async def test(registry: EtcdV2Registry) -> None:
            begin = time.monotonic()
            for _ in range(10):
                await registry.snapshot()
            assert time.monotonic() - begin < 3 * short_timeout

        with socket.create_server(("127.0.0.1", 0)) as silent:
            use(EtcdV2Registry([f"http://127.0.0.1:{silent.getsockname()[1]}", server.url], "/network"), test)

    def test_all_dead_names_each_and_recovers(self, tmp_path: Path) -> None:
        servers = [EtcdServer(tmp_path / "1"), EtcdServer(tmp_path / "2")]

        async def test(registry: EtcdV2Registry) -> None:
            with pytest.raises(RegistryUnavailable) as caught:
                await registry.snapshot()
            assert str(caught.value) == "; ".join(f"{server.url}: connection refused" for server in servers)
            for server in servers:  # each endpoint alone suffices
                with server:
                    assert (await registry.snapshot()).entries == ()
                with pytest.raises(RegistryUnavailable):
                    await registry.snapshot()

        use(EtcdV2Registry([server.url for server in servers], "/network"), test)

    def test_an_unknown_name(self) -> None:
        with pytest.raises(RegistryUnavailable, match=r"^http://nowhere\.invalid:2379: \S"):
            use(EtcdV2Registry(["http://nowhere.invalid"], "/network"), lambda registry: registry.snapshot())


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

    def test_holds_up_neither_other_calls_nor_other_endpoints(
        self, server: EtcdServer, short_timeout: float, tmp_path: Path
    ) -> None:
        async def test(registry: EtcdV2Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            frozen.pause()
            watching = asyncio.create_task(registry.watch(cursor, DEADLINE))
            begin = time.monotonic()
            await asyncio.gather(*(registry.snapshot() for _ in range(10)))
            assert time.monotonic() - begin < 3 * short_timeout
            watching.cancel()

        with EtcdServer(tmp_path) as frozen:
            use(EtcdV2Registry([frozen.url, server.url], "/network"), test)


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

    @pytest.mark.parametrize("prefix", ["", "/", "network", "//a//b/", "/a b/ü"])
    def test_any_prefix(self, server: EtcdServer, prefix: str) -> None:
        async def test(registry: EtcdV2Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            entry = await registry.create(A, "a", DAY)
            assert entry.name == A
            assert (await registry.watch(cursor, DEADLINE)).changes == (Put(entry),)
            await registry.compare_and_delete(A, entry.version)
            assert (await registry.watch(entry.version + 1, DEADLINE)).changes == (Deleted(A),)
            with pytest.raises(KeyNotFound):
                await registry.read_config()

        use(EtcdV2Registry([server.url], prefix), test)


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

    @pytest.mark.parametrize(
        "text",
        [
            "", "127.0.0.1:2379", "127.0.0.1", "ftp://a", "http://", "http://:2379", "http://a:port", "http://a:0",
            "http://a:65536", "http://a/v2", "http://a?b", "http://a b", "http://[::1",
        ],
    )  # fmt: skip
    def test_bad_endpoint(self, text: str) -> None:
        with pytest.raises(UsageError) as caught:
            EtcdV2Registry([text], "/network")
        assert "-etcd-endpoints" in str(caught.value)
        assert repr(text) in str(caught.value)

    def test_user_in_an_endpoint(self) -> None:
        with pytest.raises(UsageError, match="-etcd-username") as caught:
            parse_endpoint("http://root:secret@127.0.0.1:2379")
        assert "secret" not in str(caught.value)

    def test_no_endpoint(self) -> None:
        with pytest.raises(UsageError, match="-etcd-endpoints"):
            EtcdV2Registry([], "/network")

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


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the certificates of ``issue_certificates``."""
    directory = tmp_path_factory.mktemp("pki")
    issue_certificates(directory)
    return directory


@pytest.fixture(scope="module")
def tls_url(pki: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    tls = ServerTls(pki / "server.crt", pki / "server.key", client_ca=pki / "ca.crt")
    with EtcdServer(tmp_path_factory.mktemp("tls"), tls=tls) as etcd:
        yield etcd.url


class TestTls:
    def connect(self, url: str, pki: Path, ca: str | None = "ca", client: str | None = "client") -> EtcdV2Registry:
        return EtcdV2Registry(
            [url],
            "/network",
            Access(
                cafile=ca and str(pki / f"{ca}.crt"),
                certfile=client and str(pki / f"{client}.crt"),
                keyfile=client and str(pki / f"{client}.key"),
            ),
        )

    def test_ca_and_client_certificate(self, tls_url: str, pki: Path) -> None:
        async def test(registry: EtcdV2Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            entry = await registry.create(A, "a", DAY)
            assert (await registry.watch(cursor, DEADLINE)).changes == (Put(entry),)

        use(self.connect(tls_url, pki), test)

    def test_a_watch_that_is_left_leaves_no_thread(self, tls_url: str, pki: Path, server: EtcdServer) -> None:
        async def test(registry: EtcdV2Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            assert await registry.watch(cursor, 0.1) == Changes((), cursor)
            assert "etcd watch" in {thread.name for thread in threading.enumerate()}

        use(self.connect(tls_url, pki), test)
        use(EtcdV2Registry([server.url], "/network"), test)
        deadline = time.monotonic() + 2
        while "etcd watch" in {thread.name for thread in threading.enumerate()}:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    @pytest.mark.parametrize("ca", [None, "stranger"])
    def test_unknown_authority_is_refused(self, tls_url: str, pki: Path, ca: str | None) -> None:
        with pytest.raises(RegistryUnavailable, match="certificate refused: "):
            use(self.connect(tls_url, pki, ca=ca), lambda registry: registry.snapshot())

    def test_wrong_name_is_refused(self, tls_url: str, pki: Path) -> None:
        wrong = tls_url.replace("127.0.0.1", "localhost")
        with pytest.raises(RegistryUnavailable, match=r"certificate refused: .*localhost"):
            use(self.connect(wrong, pki), lambda registry: registry.snapshot())

    @pytest.mark.parametrize("client", [None, "stranger"])
    def test_server_refuses_us(self, tls_url: str, pki: Path, client: str | None) -> None:
        with pytest.raises(RegistryUnavailable, match=tls_url):
            use(self.connect(tls_url, pki, client=client), lambda registry: registry.create(A, "a", DAY))

    @pytest.mark.parametrize("option", ["cafile", "certfile", "keyfile"])
    def test_missing_file(self, pki: Path, option: str) -> None:
        files = {"certfile": str(pki / "client.crt"), "keyfile": str(pki / "client.key"), option: str(pki / "missing")}
        with pytest.raises(HostError, match=f"^-etcd-{option}: .*/missing: No such file"):
            EtcdV2Registry(["https://127.0.0.1"], "/network", Access(**files))

    def test_ca_that_is_none(self, pki: Path) -> None:
        with pytest.raises(HostError, match=r"^-etcd-cafile: .*/ca\.key"):
            EtcdV2Registry(["https://127.0.0.1"], "/network", Access(cafile=str(pki / "ca.key")))

    def test_key_of_another_certificate(self, pki: Path) -> None:
        with pytest.raises(HostError, match=r"^-etcd-certfile, -etcd-keyfile: .*/client\.crt and .*/server\.key"):
            EtcdV2Registry(
                ["https://127.0.0.1"],
                "/network",
                Access(certfile=str(pki / "client.crt"), keyfile=str(pki / "server.key")),
            )

    def test_encrypted_key_does_not_ask(self, pki: Path, tmp_path: Path) -> None:
        key = tmp_path / "encrypted.key"
        command = [
            "openssl",
            "ec",
            "-in",
            str(pki / "client.key"),
            "-aes256",
            "-passout",
            "pass:secret",
            "-out",
            str(key),
        ]
        subprocess.run(command, check=True, capture_output=True)
        with pytest.raises(HostError, match="unencrypted"):
            EtcdV2Registry(
                ["https://127.0.0.1"], "/network", Access(certfile=str(pki / "client.crt"), keyfile=str(key))
            )

    @pytest.mark.parametrize("option", ["certfile", "keyfile"])
    def test_half_a_pair(self, pki: Path, option: str) -> None:
        with pytest.raises(UsageError, match="-etcd-keyfile and -etcd-certfile"):
            EtcdV2Registry(["https://127.0.0.1"], "/network", Access(**{option: str(pki / "client.crt")}))


PROGRAM = """
import asyncio, signal, sys
from flannelpy.registry.etcd_v2 import EtcdV2Registry

async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    registry = EtcdV2Registry(sys.argv[1:], "/network")
    try:
        await registry.watch(1, 600)
    except asyncio.CancelledError:
        await registry.close()

asyncio.run(main())
"""


class TestProcess:
    def start(self, *urls: str) -> subprocess.Popen[str]:
        """Start a process that watches until SIGTERM."""
        command = [sys.executable, "-c", PROGRAM, *urls]
        root = Path(flannelpy.__file__).parents[1]
        return subprocess.Popen(command, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    @pytest.mark.parametrize("headers", [b"", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"])
    def test_leaves_while_a_watch_hangs(self, headers: bytes) -> None:
        with contextlib.ExitStack() as cleanup:
            listener = cleanup.enter_context(socket.create_server(("127.0.0.1", 0)))
            listener.settimeout(DEADLINE)
            process = cleanup.enter_context(self.start(f"http://127.0.0.1:{listener.getsockname()[1]}"))
            cleanup.callback(process.kill)
            connection = cleanup.enter_context(listener.accept()[0])
            connection.settimeout(DEADLINE)
            assert b"wait=true" in connection.recv(65536)
            connection.sendall(headers)
            begin = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.communicate(timeout=DEADLINE) == ("", "")
            assert process.returncode == 0
            assert time.monotonic() - begin < 2

    def test_logs_nothing_itself(self, dead_url: str) -> None:
        with self.start(dead_url) as process:
            out, err = process.communicate(timeout=DEADLINE)
        assert out == ""
        assert err.splitlines()[0].startswith("Traceback"), "something was logged before our own error"
        assert err.splitlines()[-1] == f"flannelpy.errors.RegistryUnavailable: {dead_url}: connection refused"

    def test_imports_etcd_only_when_needed(self) -> None:
        program = "import sys, flannelpy.registry.etcd_v2; print({'etcd', 'urllib3', 'dns'} & set(sys.modules))"
        root = Path(flannelpy.__file__).parents[1]
        result = subprocess.run([sys.executable, "-c", program], cwd=root, check=True, capture_output=True, text=True)
        assert result.stdout == "set()\n"


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
    "call", ["read_config", "snapshot", "create", "compare_and_swap", "compare_and_delete", "watch"]
)
def test_a_service_that_is_no_etcd_is_skipped(server: EtcdServer, call: str, status: int, body: str) -> None:
    """A proxy's error page, or another service on 4001, caused a traceback, and the next endpoint was not asked."""

    arguments: dict[str, tuple[object, ...]] = {
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

SUBNETS = "/network/subnets"
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
    "error", [RecursionError("deep"), MemoryError(), OverflowError("much"), EOFError(), OSError(5)]
)
@pytest.mark.parametrize("call", ["read_config", "snapshot"])
def test_every_exception_of_a_call_is_no_usable_answer(
    server: EtcdServer, call: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("json.loads", fail)
    with pytest.raises(RegistryUnavailable, match=f"{server.url}: not an answer of etcd's"):
        use(EtcdV2Registry([server.url], "/network"), lambda registry: getattr(registry, call)())


def test_without_a_thread_to_ask_in_there_is_no_answer(server: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", fail)
    with pytest.raises(RegistryUnavailable, match="can't start new thread"):
        use(EtcdV2Registry([server.url], "/network"), lambda registry: registry.snapshot())


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
