"""The watch of the v3 registry: compaction, cancellation, frozen members, lost links, wiped and restored stores."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from lab.etcd_server import EtcdServer, free_ports
from lab.etcd_stores import MOST_OPERATIONS, Api
from lab.machines import MEMBER_ARGUMENTS
from support.etcd_faults import (
    DAY,
    DEADLINE,
    INCOMPLETE,
    KEY,
    SUBNETS,
    A,
    B,
    C,
    CuttingProxy,
    LossyProxy,
    SilentProxy,
    answering,
    changes_after,
    gateway,
    persistent,
    short_timeout,
    use,
    values,
)
from support.etcd_v3 import connect, server, shared_server

from flannelpy.errors import HistoryGone, HistoryOverrun, KeyExists, KeyNotFound, RegistryUnavailable
from flannelpy.registry import etcd_v3_watch, event_stream
from flannelpy.registry.base import EXPIRES, Changes, Deleted, Put
from flannelpy.registry.etcd_v3 import EtcdV3Registry

__all__ = ["server", "shared_server", "short_timeout"]

# The seconds between two looks whether a silent watch can be trusted are most of a minute.
LOOKS = (0.4, 0.5)


@pytest.fixture
def frequent_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the watch look after half a second."""
    monkeypatch.setattr(etcd_v3_watch, "LOOK_SECONDS", LOOKS)
    monkeypatch.setattr(etcd_v3_watch, "REOPEN_SECONDS", LOOKS)


NAMES = [f"11.{number // 250}.{number % 250}.0-24" for number in range(2500)]


async def opened(registry: EtcdV3Registry, cursor: int) -> int:
    """Open the watch at ``cursor``, and return the next cursor."""
    return (await registry.watch(cursor, 0.1)).cursor


class TestStream:
    def test_is_one_request_through_thousands_of_changes_elsewhere(self, server: EtcdServer) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            cursor = await opened(registry, (await registry.snapshot()).cursor)
            before = server.calls()
            watching = asyncio.create_task(changes_after(registry, cursor))
            elsewhere = {f"/elsewhere/{number}": "x" for number in range(2500)}
            await asyncio.to_thread(server.v3.put_together, elsewhere)
            assert not watching.done()
            for name in (A, B):
                entry = await registry.create(name, "a", DAY)
                changes, cursor = await watching
                assert changes == [Put(entry._replace(lifetime=EXPIRES))]
                assert cursor == entry.version + 1
                watching = asyncio.create_task(changes_after(registry, cursor))
            watching.cancel()
            after = server.calls()
            assert after["Watch"] == before["Watch"] > 0
            assert after["Range"] == before["Range"]

        use(connect(server.url), test)

    def test_of_a_quiet_network_sends_nothing(self, server: EtcdServer) -> None:
        """Two requests a minute are allowed; tests/soak counts those of a daemon for ten minutes."""

        async def test(registry: EtcdV3Registry) -> None:
            cursor = await opened(registry, (await registry.snapshot()).cursor)
            before = server.calls()
            for _ in range(20):
                changes = await registry.watch(cursor, 0.2)
                assert changes.changes == ()
                cursor = changes.cursor
            after = server.calls()
            assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {}
            assert before["Watch"] > 0

        use(connect(server.url), test)

    def test_carries_the_config_too(self, server: EtcdServer) -> None:
        """A change of the config ends wait_for_config_change, and is no change of a lease."""

        async def test(registry: EtcdV3Registry) -> None:
            assert await registry.read_config() == "{}"
            cursor = await opened(registry, (await registry.snapshot()).cursor)
            before = server.calls()["Watch"]
            watching = asyncio.create_task(changes_after(registry, cursor))
            for config in ("{ }", None, "{  }"):
                with suppress(KeyNotFound):
                    await registry.read_config()
                waiting = asyncio.create_task(registry.wait_for_config_change(DEADLINE))
                await asyncio.sleep(0)
                if config is None:
                    await asyncio.to_thread(server.delete, "/network/config")
                else:
                    await asyncio.to_thread(server.put, "/network/config", config)
                async with asyncio.timeout(2):
                    await waiting
            assert await registry.read_config() == "{  }"
            waiting = asyncio.create_task(registry.wait_for_config_change(DEADLINE))
            entry = await registry.create(A, "a", DAY)
            changes, _ = await watching
            assert changes == [Put(entry._replace(lifetime=EXPIRES))]
            assert not waiting.done()
            waiting.cancel()
            assert server.calls()["Watch"] == before > 0

        server.put("/network/config", "{}")
        use(connect(server.url), test)

    def test_of_a_config_that_changed_during_an_outage(self, tmp_path: Path) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            await registry.read_config()
            cursor = await opened(registry, (await registry.snapshot()).cursor)
            waiting = asyncio.create_task(registry.wait_for_config_change(DEADLINE))
            etcd.stop()
            with pytest.raises(RegistryUnavailable):
                await registry.watch(cursor, DEADLINE)
            etcd.start()
            etcd.put("/network/config", "{ }")
            watching = asyncio.create_task(changes_after(registry, cursor))
            async with asyncio.timeout(5):
                await waiting
            watching.cancel()

        with EtcdServer(tmp_path, api=Api.V3) as etcd:
            etcd.put("/network/config", "{}")
            use(connect(etcd.url), test)

    def test_of_foreign_keys_advances_the_cursor_only(self, server: EtcdServer) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            cursor = await opened(registry, (await registry.snapshot()).cursor)
            server.put(SUBNETS, "a value in the place of the directory")
            server.put(f"{SUBNETS}/x/y", "nested")
            server.put("/network/elsewhere", "between config and leases")
            server.v3.put(f"{SUBNETS}/".encode() + b"\xff\xfe", "of a key that is no text")
            server.delete(f"{SUBNETS}/x")
            server.put(f"{SUBNETS}/{B}", "lease", DAY)
            changes: list[Put | Deleted] = []
            while not any(isinstance(change, Put) and change.entry.name == B for change in changes):
                found, cursor = await changes_after(registry, cursor)
                changes += found
            names = [change.entry.name if isinstance(change, Put) else change.name for change in changes]
            assert not [name for name in names if "/" in name or name == ""]
            assert cursor == server.v3.revision() + 1

        use(connect(server.url), test)

    def test_of_an_expiry_and_of_a_deletion(self, server: EtcdServer) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            cursor = await opened(registry, (await registry.snapshot()).cursor)
            server.put(KEY, "a", DAY)
            server.v3.revoke(server.v3.lease_of(KEY))
            server.put(KEY, "b")
            server.delete(KEY)
            changes, _ = await changes_after(registry, cursor, 4)
            assert values(changes) == ["a", None, "b", None]
            assert [isinstance(change, Put) and change.entry.lifetime.expires for change in changes] == [
                True, False, False, False
            ]  # fmt: skip

        use(connect(server.url), test)


class TestManyEvents:
    def test_of_one_revision(self, server: EtcdServer) -> None:
        """flanneld v0.20.2 uses one event of an answer only."""

        async def test(registry: EtcdV3Registry) -> None:
            cursor = await opened(registry, (await registry.snapshot()).cursor)
            server.v3.put_together(dict.fromkeys((f"{SUBNETS}/{name}" for name in NAMES[:MOST_OPERATIONS]), "x"), DAY)
            changes, cursor = await changes_after(registry, cursor, MOST_OPERATIONS)
            assert {change.entry.name for change in changes if isinstance(change, Put)} == set(NAMES[:MOST_OPERATIONS])
            assert len(changes) == MOST_OPERATIONS
            assert cursor == server.v3.revision() + 1

        use(connect(server.url), test)

    def test_of_one_revision_that_is_received_in_part_come_again(
        self, server: EtcdServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A cursor names a revision: behind half of its events, a new stream would lose the rest."""
        monkeypatch.setattr(event_stream, "MOST_AT_ONCE", 10)
        names = NAMES[: 3 * MOST_OPERATIONS]

        def added(changes: list[Put | Deleted]) -> list[str]:
            return [change.entry.name for change in changes if isinstance(change, Put)]

        start = server.v3.revision() + 1
        server.v3.put_together(dict.fromkeys((f"{SUBNETS}/{name}" for name in names), "x"))
        first, cursor = use(connect(server.url), lambda registry: changes_after(registry, start, 1))
        count = len(names) if cursor == start else len(names) - len(first)
        others, cursor = use(connect(server.url), lambda registry: changes_after(registry, cursor, count))
        assert {*added(first), *added(others)} == set(names)
        assert len(others) == count
        assert cursor == start + 3

    def test_of_the_history_in_answers_of_more_than_two_megabytes(self, server: EtcdServer) -> None:
        """The gateway receives at most 4 MB in one piece, so that large answers have to come in fragments."""
        contents = [str(number % 10) * 700_000 for number in range(14)]
        start = server.v3.revision() + 1
        for content in contents:
            server.put(KEY, content)
        changes, _ = use(connect(server.url), lambda registry: changes_after(registry, start, len(contents)))
        assert values(changes) == contents

    def test_of_one_revision_in_several_fragments(self, tmp_path: Path) -> None:
        """A cursor between two fragments would lose the second."""
        names = NAMES[:10]
        with EtcdServer(tmp_path, api=Api.V3, arguments=["--max-request-bytes=10000000"]) as etcd:
            start = etcd.v3.revision() + 1
            etcd.v3.put_together({f"{SUBNETS}/{name}": "x" * 700_000 for name in names})
            found, cursor = use(connect(etcd.url), lambda registry: changes_after(registry, start, len(names)))
            assert sorted(change.entry.name for change in found if isinstance(change, Put)) == sorted(names)
            assert cursor == start + 1

    def test_come_in_batches_that_a_turn_of_the_loop_can_take(self, server: EtcdServer) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            cursor = await opened(registry, (await registry.snapshot()).cursor)
            leases = {f"{SUBNETS}/{name}": "x" for name in NAMES[:700]}
            await asyncio.to_thread(server.put_all, leases, DAY)
            batches: list[list[str]] = []
            while sum(map(len, batches)) < len(leases):
                changes = await registry.watch(cursor, DEADLINE)
                batches.append([change.entry.name for change in changes.changes if isinstance(change, Put)])
                cursor = changes.cursor
            assert sorted(itertools.chain.from_iterable(batches)) == sorted(NAMES[:700])
            assert max(map(len, batches)) <= event_stream.MOST_AT_ONCE

        use(connect(server.url), test)

    def test_than_are_taken_lose_none(self, server: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """Values are large, and the client reads nothing meanwhile."""
        monkeypatch.setattr(event_stream, "MOST_WAITING", 100_000)

        async def test(registry: EtcdV3Registry) -> None:
            cursor = await opened(registry, (await registry.snapshot()).cursor)
            contents = [f"{number}" * 10_000 for number in range(30)]
            for content in contents:
                await asyncio.to_thread(server.put, KEY, content)
            changes, _ = await changes_after(registry, cursor, len(contents))
            assert values(changes) == contents

        use(connect(server.url), test)


class TestExactResume:
    """The watch continues behind the last event: none is lost, none comes twice."""

    @pytest.mark.parametrize("answers", [[1], [2, 1, 3], [1, 1, 1, 1]], ids=str)
    def test_after_a_connection_that_ends_between_two_events(self, server: EtcdServer, answers: list[int]) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            contents = [str(number) for number in range(12)]
            received: list[str | None] = []
            for content in contents:
                await asyncio.to_thread(server.put, f"{SUBNETS}/{NAMES[int(content)]}", content)
                while len(received) <= int(content) // 2:
                    changes, cursor = await tolerant(registry, cursor)
                    received += values(changes)
            while len(received) < len(contents):
                changes, cursor = await tolerant(registry, cursor)
                received += values(changes)
            assert received == contents

        async def tolerant(registry: EtcdV3Registry, cursor: int) -> tuple[list[Put | Deleted], int]:
            try:
                return await changes_after(registry, cursor)
            except RegistryUnavailable:  # the next watch resumes from the same cursor
                return [], cursor

        cutting = CuttingProxy(server, answers)
        with cutting.running():
            use(connect(cutting.url), test)

    def test_after_created_answers_with_a_later_revision(self, server: EtcdServer) -> None:
        """The header of ``created`` has the store's revision, behind events that are still to come."""

        async def test(registry: EtcdV3Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            entry = await registry.create(A, "a", DAY)
            lossy.lose("reply", "/v3/watch")
            server.put("/elsewhere", "x")
            try:
                changes, cursor = await changes_after(registry, cursor)
            except RegistryUnavailable:
                changes, cursor = await changes_after(registry, cursor)
            assert changes == [Put(entry._replace(lifetime=EXPIRES))]
            assert cursor == entry.version + 1

        lossy = LossyProxy(server)
        with lossy.running():
            use(connect(lossy.url), test)

    def test_on_another_endpoint(self, server: EtcdServer) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            entries = [(await registry.create(name, "a", DAY))._replace(lifetime=EXPIRES) for name in (A, B)]
            changes, cursor = await changes_after(registry, cursor, 2)
            entries.append((await registry.create(C, "a", DAY))._replace(lifetime=EXPIRES))
            more, _ = await changes_after(registry, cursor)
            assert changes + more == [Put(entry) for entry in entries]

        cutting = CuttingProxy(server, [1])
        with cutting.running():
            use(connect(cutting.url, server.url), test)


class TestRestart:
    def test_during_a_watch_misses_nothing(self, tmp_path: Path) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            cursor = await opened(registry, (await registry.snapshot()).cursor)
            watching = asyncio.create_task(changes_after(registry, cursor))
            await asyncio.sleep(0)
            etcd.stop()
            with pytest.raises(RegistryUnavailable):
                await watching
            etcd.start()
            entry = await registry.create(A, "a", DAY)
            changes, _ = await changes_after(registry, cursor)
            assert changes == [Put(entry._replace(lifetime=EXPIRES))]

        with EtcdServer(tmp_path, api=Api.V3) as etcd:
            use(connect(etcd.url), test)

    def test_without_its_data(self, tmp_path: Path) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            await registry.create(A, "a", DAY)
            cursor = await opened(registry, (await registry.snapshot()).cursor)
            etcd.kill()
            etcd.wipe()
            etcd.start()
            with pytest.raises(HistoryGone):
                await again(registry, cursor)
            snapshot = await registry.snapshot()
            assert snapshot.entries == ()
            entry = await registry.create(A, "a", DAY)
            changes, _ = await changes_after(registry, snapshot.cursor)
            assert changes == [Put(entry._replace(lifetime=EXPIRES))]

        with EtcdServer(tmp_path, api=Api.V3) as etcd:
            use(connect(etcd.url), test)

    def test_as_another_cluster(self, tmp_path: Path) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            await registry.create(A, "a", DAY)
            cursor = await opened(registry, (await registry.snapshot()).cursor)
            old.stop()
            with EtcdServer(tmp_path / "new", api=Api.V3, port=int(old.url.rpartition(":")[2]), name="new"):
                with pytest.raises(HistoryGone):
                    await again(registry, cursor)
                assert (await registry.snapshot()).entries == ()

        with EtcdServer(tmp_path / "old", api=Api.V3) as old:
            use(connect(old.url), test)

    def test_with_an_older_copy_of_its_data(self, tmp_path: Path) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            kept = await registry.create(A, "a", DAY)
            etcd.stop()
            etcd.save(tmp_path / "copy")
            etcd.start()
            await registry.create(B, "b", DAY)
            cursor = await opened(registry, (await registry.snapshot()).cursor)
            etcd.kill()
            etcd.restore(tmp_path / "copy")
            etcd.start()
            with pytest.raises(HistoryGone):
                await again(registry, cursor)
            snapshot = await registry.snapshot()
            assert [(entry.name, entry.version) for entry in snapshot.entries] == [(A, kept.version)]
            later = await registry.create(C, "c", DAY)
            changes, _ = await changes_after(registry, snapshot.cursor)
            assert changes == [Put(later._replace(lifetime=EXPIRES))]

        with EtcdServer(tmp_path / "etcd", api=Api.V3) as etcd:
            use(connect(etcd.url), test)

    def test_with_an_older_copy_and_other_writes_since(self, tmp_path: Path) -> None:
        """The store has passed the cursor by the time that the watch returns: revisions alone show nothing."""

        async def test(registry: EtcdV3Registry) -> None:
            cursor = await opened(registry, (await registry.snapshot()).cursor)
            etcd.stop()
            etcd.save(tmp_path / "copy")
            etcd.start()
            for name in (A, B):
                await registry.create(name, "x", DAY)
            _, cursor = await changes_after(registry, cursor, 2)
            etcd.kill()
            etcd.restore(tmp_path / "copy")
            etcd.start()
            for number in range(20):
                etcd.put("/elsewhere", str(number))
            # Either the watch notices it, or the relist that is due after relist_seconds.
            assert 0 < registry.relist_seconds <= 3600

        with EtcdServer(tmp_path / "etcd", api=Api.V3) as etcd:
            use(connect(etcd.url), test)


async def resumed(registry: EtcdV3Registry, cursor: int) -> tuple[list[Put | Deleted], int]:
    """Return the next changes from ``cursor`` on, once etcd is available."""
    return await persistent(lambda: changes_after(registry, cursor))


async def again(registry: EtcdV3Registry, cursor: int) -> Changes:
    """Watch until the answer is another one than that etcd is not available."""
    while True:
        try:
            changes = await registry.watch(cursor, 1)
        except RegistryUnavailable:
            await asyncio.sleep(0.05)
        else:
            assert changes.changes == ()


class TestCompaction:
    def test_of_the_history_that_a_watch_needs(self, server: EtcdServer) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            server.put(KEY, "a")
            server.put(KEY, "b")
            server.put("/elsewhere", "x")
            server.v3.compact()
            with pytest.raises(HistoryGone) as caught:
                await registry.watch(cursor, DEADLINE)
            if isinstance(caught.value, HistoryOverrun):
                assert cursor < caught.value.cursor <= server.v3.revision() + 1
            snapshot = await registry.snapshot()
            assert [entry.value for entry in snapshot.entries] == ["b"]
            entry = await registry.create(B, "c", DAY)
            changes, _ = await changes_after(registry, snapshot.cursor)
            assert changes == [Put(entry._replace(lifetime=EXPIRES))]

        use(connect(server.url), test)

    def test_of_what_an_open_watch_has_received_is_not_noticed(self, server: EtcdServer) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            cursor = await opened(registry, (await registry.snapshot()).cursor)
            for number in range(3):
                server.put(KEY, str(number))
                changes, cursor = await changes_after(registry, cursor)
                assert values(changes) == [str(number)]
                server.put("/elsewhere", "x")
                server.v3.compact()

        use(connect(server.url), test)

    def test_of_a_deletion_is_noticed(self, server: EtcdServer) -> None:
        """etcd 3.4 accepts a watch from the revision up to which it is compacted, without the deletion at it."""

        async def test(registry: EtcdV3Registry) -> None:
            entry = await registry.create(A, "a", DAY)
            cursor = (await registry.snapshot()).cursor
            await registry.compare_and_delete(A, entry.version)
            assert server.v3.revision() == cursor
            server.v3.compact()
            with pytest.raises(HistoryGone):
                await registry.watch(cursor, DEADLINE)

        use(connect(server.url), test)

    def test_before_the_cursor_is_no_loss(self, server: EtcdServer) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            server.put("/elsewhere", "x")  # etcd refuses a second compaction at one revision
            cursor = (await registry.snapshot()).cursor
            server.v3.compact()
            entry = await registry.create(A, "a", DAY)
            assert entry.version == cursor
            changes, _ = await changes_after(registry, cursor)
            assert changes == [Put(entry._replace(lifetime=EXPIRES))]

        use(connect(server.url), test)

    def test_during_an_outage(self, tmp_path: Path) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            cursor = await opened(registry, (await registry.snapshot()).cursor)
            etcd.stop()
            etcd.start()
            for number in range(5):
                etcd.put(KEY, str(number))
            etcd.v3.compact()
            with pytest.raises(HistoryGone):
                await again(registry, cursor)

        with EtcdServer(tmp_path, api=Api.V3) as etcd:
            use(connect(etcd.url), test)


def line(**result: object) -> str:
    """Return an answer of a watch, as the gateway writes it."""
    return json.dumps({"result": result})


def header(revision: int) -> dict[str, str]:
    return {"cluster_id": "1", "member_id": "1", "revision": str(revision), "raft_term": "2"}


def put_event(name: str, revision: int, value: str = "x") -> dict[str, object]:
    key, content = (b64encode(text.encode()).decode() for text in (f"{SUBNETS}/{name}", value))
    kv = {"key": key, "value": content, "create_revision": str(revision), "mod_revision": str(revision), "version": "1"}
    return {"kv": kv}


CREATED = line(header=header(50), created=True)


class TestAnswers:
    """What etcd can answer, and a test cannot make it answer at the right moment."""

    def test_a_progress_notice_advances_the_cursor(self) -> None:
        with gateway([CREATED, line(header=header(60))]) as url:

            async def test(registry: EtcdV3Registry) -> None:
                cursor = 51
                while cursor != 61:
                    changes = await registry.watch(cursor, 1)
                    assert changes.changes == ()
                    assert changes.cursor in (51, 61)
                    cursor = changes.cursor

            use(connect(url), test)

    def test_the_revision_of_created_does_not_advance_the_cursor(self) -> None:
        """Events of the history follow it."""
        events = line(header=header(50), events=[put_event(A, 10)])
        later = line(header=header(50), events=[put_event(B, 12), put_event(C, 12)])
        with gateway([CREATED], [CREATED, events], [CREATED, later]) as url:

            async def test(registry: EtcdV3Registry) -> None:
                changes, cursor = await resumed(registry, 10)
                assert ([change.entry.name for change in changes if isinstance(change, Put)], cursor) == ([A], 11)
                names: list[str] = []
                while cursor < 13:
                    changes, cursor = await resumed(registry, cursor)
                    names += [change.entry.name for change in changes if isinstance(change, Put)]
                assert names == [B, C]

            use(connect(url), test)

    def test_fragments_of_a_revision_are_one_change(self) -> None:
        fragments = [
            line(header=header(50), fragment=True, events=[put_event(A, 50)]),
            line(header=header(50), fragment=True, events=[put_event(B, 50)]),
            line(header=header(50), events=[put_event(C, 50)]),
        ]
        with gateway([CREATED, *fragments[:2]], [CREATED, *fragments]) as url:

            async def test(registry: EtcdV3Registry) -> None:
                names: list[str] = []
                cursor = 50
                while cursor == 50:
                    changes, cursor = await resumed(registry, cursor)
                    names += [change.entry.name for change in changes if isinstance(change, Put)]
                assert (names[-3:], cursor) == ([A, B, C], 51)

            use(connect(url), test)

    @pytest.mark.parametrize(
        ("answer", "cause"),
        [
            (line(header=header(50), canceled=True, cancel_reason="etcdserver: no leader"), "no leader"),
            (line(header=header(50), canceled=True, cancel_reason="a\nE0101 forged\x1b"), "forged"),
            (line(header=header(50), canceled=True), ""),
            ('{"error":{"grpc_code":14,"http_code":503,"message":"etcdserver: no leader"}}', "no leader"),
            ('{"error":{"code":14,"message":"transport is closing"}}', "transport is closing"),
            ('{"error":"etcdserver: no leader","code":14}', "no leader"),
            ('{"error":7}', ""),
            ('{"result":[]}', ""),
            ('{"result":{"header":{"revision":"x"},"events":[{}]}}', ""),
            ('{"result":{"header":{"revision":"51"},"events":[{"kv":{"key":"!","mod_revision":"51"}}]}}', ""),
            ('{"result":{"header":{"revision":"51"},"events":{"kv":1}}}', ""),
            ("[" * 100_000, ""),
        ],
    )
    def test_an_answer_that_ends_the_watch(self, answer: str, cause: str) -> None:
        """Even if the connection stays open, and however often it happens: it is no loop."""
        with gateway([CREATED, answer]) as url:
            began = time.monotonic()
            with pytest.raises(RegistryUnavailable, match=url) as caught:
                use(connect(url), lambda registry: registry.watch(51, DEADLINE))
            assert cause in str(caught.value)
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) < 400
            assert time.monotonic() - began < 5

    def test_an_answer_that_stays_incomplete_ends_the_watch(self, short_timeout: float) -> None:
        answer = line(header=header(50), events=[put_event(A, 50)])
        with gateway([CREATED, INCOMPLETE], [CREATED, answer]) as url:

            async def test(registry: EtcdV3Registry) -> list[Put | Deleted]:
                while not (found := await persistent(lambda: registry.watch(50, 2 * short_timeout))).changes:
                    pass
                return list(found.changes)

            assert values(use(connect(url), test)) == ["x"]

    def test_a_watch_that_is_refused_at_once(self) -> None:
        answer = line(header=header(50), created=True, canceled=True, cancel_reason="permission denied")
        with gateway([answer]) as url, pytest.raises(RegistryUnavailable, match="-etcd-username and -etcd-password"):
            use(connect(url), lambda registry: registry.watch(51, DEADLINE))

    def test_a_watch_that_ends_again_and_again_is_no_loop(self) -> None:
        with answering(200, "") as url:
            began = time.monotonic()
            with pytest.raises(RegistryUnavailable):
                use(connect(url), lambda registry: registry.watch(7, DEADLINE))
            assert time.monotonic() - began < 3

    def test_a_store_behind_the_cursor_was_wiped_or_restored(self) -> None:
        with gateway([CREATED]) as url, pytest.raises(HistoryGone):
            use(connect(url), lambda registry: registry.watch(52, DEADLINE))

    def test_a_member_that_lags_behind_the_cursor_by_nothing_is_healthy(self) -> None:
        with gateway([CREATED]) as url:
            changes = use(connect(url), lambda registry: registry.watch(51, 0.3))
        assert changes == Changes((), 51)


class TestMembers:
    @pytest.fixture
    def members(self, tmp_path: Path) -> Iterator[list[EtcdServer]]:
        """Return three running members of a cluster."""
        peers = {f"m{number}": f"http://127.0.0.1:{port}" for number, port in enumerate(free_ports(3))}
        members = [
            EtcdServer(tmp_path / name, api=Api.V3, name=name, peers=peers, arguments=MEMBER_ARGUMENTS)
            for name in peers
        ]
        for member in members:
            member.launch()
        for member in members:
            member.wait_until_ready()
        yield members
        for member in members:
            member.kill()

    def test_without_a_leader_a_watch_ends_in_time(self, members: list[EtcdServer]) -> None:
        """etcd itself is silent, unless the client asks for a leader."""

        async def test(registry: EtcdV3Registry) -> None:
            cursor = await opened(registry, (await registry.snapshot()).cursor)
            for member in members[1:]:
                member.kill()
            with pytest.raises(RegistryUnavailable):
                await changes_after(registry, cursor)
            for member in members[1:]:
                member.launch()
            for member in members[1:]:
                member.wait_until_ready()
            entry = await persistent(lambda: registry.create(A, "a", DAY))
            changes, _ = await resumed(registry, cursor)
            assert changes == [Put(entry._replace(lifetime=EXPIRES))]

        use(connect(members[0].url), test)

    def test_a_new_leader_is_not_noticed(self, members: list[EtcdServer]) -> None:
        """Leases begin again at their full TTL, and events come exactly once."""

        async def test(registry: EtcdV3Registry) -> None:
            entry = await registry.create(A, "a", DAY)
            cursor = await opened(registry, entry.version + 1)
            leader = next(member for member in members if member.is_leader())
            leader.kill()
            received: list[str | None] = []
            written = 0
            while len(received) < 5:
                try:
                    if written == len(received):
                        with suppress(KeyExists):  # it was written by a call that failed
                            await registry.create(NAMES[10 + written], str(written), DAY)
                        written += 1
                    changes, cursor = await changes_after(registry, cursor)
                except RegistryUnavailable:
                    await asyncio.sleep(0.05)
                else:
                    received += values(changes)
            assert received == [str(number) for number in range(5)]
            assert await registry.renew(A, "a", DAY, entry.version) == entry

        use(connect(*(member.url for member in members)), test)

    def test_a_frozen_one_is_left(self, members: list[EtcdServer], short_timeout: float, frequent_looks: None) -> None:
        """The watch that sits on it follows the other calls."""

        async def test(registry: EtcdV3Registry) -> None:
            cursor = await opened(registry, (await registry.snapshot()).cursor)
            members[0].pause()
            try:
                entry = await persistent(lambda: registry.create(A, "a", DAY))
                changes, _ = await changes_after(registry, cursor)
                assert changes == [Put(entry._replace(lifetime=EXPIRES))]
            finally:
                members[0].resume()

        use(connect(*(member.url for member in members)), test)


class TestDeaf:
    def test_a_forgotten_connection_is_left_after_a_while(
        self, server: EtcdServer, short_timeout: float, frequent_looks: None
    ) -> None:
        """All connections were forgotten; the daemon makes no other call."""

        async def test(registry: EtcdV3Registry) -> None:
            cursor = await opened(registry, (await registry.snapshot()).cursor)
            silent.fall_silent()
            server.put(f"{SUBNETS}/{B}", "b")
            changes, _ = await resumed(registry, cursor)
            assert values(changes) == ["b"]

        silent = SilentProxy(server)
        with silent.running():
            use(connect(silent.url), test)

    def test_a_proxy_that_holds_back_the_events_is_detected(
        self, server: EtcdServer, short_timeout: float, frequent_looks: None
    ) -> None:
        """Its answers to other calls show that the store has gone on."""

        async def test(registry: EtcdV3Registry) -> None:
            cursor = await opened(registry, (await registry.snapshot()).cursor)
            silent.fall_silent(watches_only=True)
            entry = await registry.create(A, "a", DAY)
            changes, _ = await resumed(registry, cursor)
            assert changes == [Put(entry._replace(lifetime=EXPIRES))]

        silent = SilentProxy(server)
        with silent.running():
            use(connect(silent.url), test)

    def test_a_forgotten_connection_is_left_with_the_next_failure(
        self, server: EtcdServer, short_timeout: float, frequent_looks: None
    ) -> None:
        """A firewall forgets the connections, and nothing ends them; a renewal or a check shows it."""

        async def test(registry: EtcdV3Registry) -> None:
            entry = await registry.create(A, "a", DAY)
            cursor = await opened(registry, entry.version + 1)
            silent.fall_silent()
            server.put(f"{SUBNETS}/{B}", "b")
            await persistent(lambda: registry.renew(A, "a", DAY, entry.version))
            changes, _ = await resumed(registry, cursor)
            assert values(changes) == ["b"]

        silent = SilentProxy(server)
        with silent.running():
            use(connect(silent.url), test)

    def test_a_watch_that_is_left_leaves_no_thread(self, server: EtcdServer) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            await opened(registry, (await registry.snapshot()).cursor)
            assert [thread for thread in threading.enumerate() if thread.name.startswith("etcd")]

        use(connect(server.url), test)
        deadline = time.monotonic() + 2
        while [thread for thread in threading.enumerate() if thread.name.startswith("etcd")]:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def test_a_silent_endpoint_gives_no_watch(self, short_timeout: float) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            began = time.monotonic()
            with pytest.raises(RegistryUnavailable, match="no answer in time"):
                use(connect(url), lambda registry: registry.watch(1, DEADLINE))
            assert time.monotonic() - began < 4 * short_timeout
