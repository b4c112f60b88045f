"""What the answers of a watch mean, how far each moves the cursor, and when the watch changes its endpoint."""

from __future__ import annotations

import asyncio
import functools
import json
import queue
from typing import TYPE_CHECKING, Any

import pytest
import urllib3

from flannelpy.registry import etcd_v3_watch
from flannelpy.registry.base import EXPIRES, Changes, Deleted, KeyValue, Put
from flannelpy.registry.endpoints import ANONYMOUS, CallThreads, Rotation, parse_endpoint
from flannelpy.registry.etcd_v3_client import OpenedWatch, V3Client
from flannelpy.registry.etcd_v3_messages import Header, Refusal, encoded
from flannelpy.registry.etcd_v3_store import Keys, Known
from flannelpy.registry.etcd_v3_watch import Compacted, Created, Item, Step, Watch, items_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

KEYS = Keys("/network")
CLIENT = V3Client(parse_endpoint("http://127.0.0.1"), ANONYMOUS, KEYS.root)
HEADER = {"cluster_id": "1", "revision": "90"}


def items(answer: dict[str, Any], start: int = 1) -> list[Item]:
    return list(items_of(KEYS, CLIENT, start, {"result": {"header": HEADER} | answer}))


def put(key: str, revision: int, value: str = "v") -> dict[str, Any]:
    kv = {"key": encoded(f"/network/{key}"), "value": encoded(value), "lease": "9"}
    return {"kv": kv | {"mod_revision": str(revision), "create_revision": "3"}}


def delete(key: str, revision: int) -> dict[str, Any]:
    return {"type": "DELETE", "kv": {"key": encoded(f"/network/{key}"), "mod_revision": str(revision)}}


def entry(name: str, revision: int) -> Put:
    return Put(KeyValue(name, "v", EXPIRES, revision, 3))


def test_created_does_not_move_the_cursor() -> None:
    assert items({"created": True}) == [Created(Header(1, 90))]


def test_a_progress_notice_does() -> None:
    assert items({}) == [Step(91)]


def test_events_move_the_cursor_to_their_own_revision_and_not_to_that_of_the_header() -> None:
    assert items({"events": [put("subnets/a", 5), delete("subnets/b", 7)]}) == [
        Step(6, entry("a", 5)),
        Step(8, Deleted("b")),
    ]


def test_events_of_one_revision_move_the_cursor_after_the_last() -> None:
    events = [put("subnets/a", 5), put("subnets/b", 5), delete("subnets/c", 6), delete("subnets/d", 6)]
    assert [step.cursor for step in items({"events": events}) if isinstance(step, Step)] == [5, 6, 6, 7]


def test_events_before_the_start_are_skipped() -> None:
    """The watch asks from one revision earlier, so that etcd refuses a watch behind a compaction."""
    events = [put("subnets/a", 5), delete("subnets/b", 5), put("subnets/c", 6)]
    assert items({"events": events}, start=6) == [Step(7, entry("c", 6))]
    assert items({"events": events[:2]}, start=6) == []


def test_a_fragment_does_not_move_the_cursor_behind_its_last_revision() -> None:
    events = [put("subnets/a", 5), put("subnets/b", 6)]
    assert items({"events": events, "fragment": True}) == [Step(6, entry("a", 5)), Step(6, entry("b", 6))]


@pytest.mark.parametrize("key", ["configuration", "subnets/a/b", "status", "subnets", "subnets-old/a"])
def test_other_keys_only_move_the_cursor(key: str) -> None:
    assert items({"events": [put(key, 5), delete(key, 6)]}) == [Step(6), Step(7)]


def test_the_config() -> None:
    assert items({"events": [put("config", 5), delete("config", 6)]}) == [Step(6, config=5), Step(7, config=0)]


def test_a_compaction() -> None:
    assert items({"canceled": True, "compact_revision": "6"}) == [Compacted(6)]


@pytest.mark.parametrize(
    "answer", [{"canceled": True, "cancel_reason": "no reason"}, {"created": True, "canceled": True}]
)
def test_a_canceled_watch_has_ended(answer: dict[str, Any]) -> None:
    with pytest.raises(Refusal):
        items(answer)


def test_an_error_ends_the_watch() -> None:
    error = {"grpc_code": 14, "http_code": 503, "message": "etcdserver: no leader", "http_status": "x"}
    with pytest.raises(Refusal, match=r"^no leader$"):
        list(items_of(KEYS, CLIENT, 1, {"error": error}))


@pytest.mark.parametrize(
    "events",
    [
        7,
        "x",
        [7],
        [{}],
        [{"kv": []}],
        [{"kv": {"key": 7}}],
        [{"kv": {"key": "?"}}],
        [{"kv": {"key": "", "lease": 1.5}}],
    ],
)
def test_malformed_events_end_the_stream_by_an_exception(events: object) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 - any: the stream ends with all of them
        items({"events": events})


class Member(V3Client):
    """A member of a cluster: its watches report what ``send`` is called with, and are silent otherwise."""

    def __init__(self, number: int) -> None:
        super().__init__(parse_endpoint(f"http://10.0.0.{number}"), ANONYMOUS, KEYS.root)
        self.watches: list[dict[str, Any]] = []
        self.looks = 0
        self._lines: queue.Queue[bytes] = queue.Queue()

    def watch(self, request: dict[str, Any]) -> OpenedWatch:
        self.watches.append(request)
        self._lines = queue.Queue()
        self.send({"created": True})
        return OpenedWatch(self, Response(self._lines), functools.partial(self._lines.put, b""))

    def send(self, answer: dict[str, Any]) -> None:
        self._lines.put(json.dumps({"result": {"header": HEADER} | answer}).encode() + b"\n")

    def call(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        self.looks += 1
        return {"header": HEADER}


class Response(urllib3.HTTPResponse):
    """The body of a watch: a line for each answer, and an empty one for the end."""

    def __init__(self, lines: queue.Queue[bytes]) -> None:
        super().__init__()
        self._lines = lines

    def read1(self, amt: int | None = None, decode_content: bool | None = None) -> bytes:
        return self._lines.get()


class TestEndpoint:
    CURSOR = int(HEADER["revision"]) + 1

    @pytest.fixture(autouse=True)
    def short_polls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(etcd_v3_watch, "SHORTEST_POLL", 0.01)

    @pytest.fixture
    def members(self) -> list[Member]:
        return [Member(1), Member(2)]

    def run(self, members: list[Member], test: Callable[[Rotation[Member], Watch], Awaitable[None]]) -> None:
        """Run ``test`` with a watch that has been opened on the first member."""

        async def body() -> None:
            cluster = Rotation(members)
            watch = Watch(cluster, CallThreads(), KEYS, Known())  # type: ignore[arg-type]
            await self.poll(watch)
            await test(cluster, watch)
            watch.close()

        asyncio.run(body())

    async def poll(self, watch: Watch) -> None:
        assert await watch.changes(self.CURSOR, 0) == Changes((), self.CURSOR)

    def test_stays_while_the_other_calls_use_it(self, members: list[Member]) -> None:
        async def test(_: Rotation[Member], watch: Watch) -> None:
            for _poll in range(5):
                await self.poll(watch)

        self.run(members, test)
        assert [len(member.watches) for member in members] == [1, 0]
        assert [member.looks for member in members] == [0, 0]

    def test_is_left_in_silence_if_another_call_has_passed_over_it(self, members: list[Member]) -> None:
        """The next poll continues at the same cursor elsewhere, and looks there: the store may have been restored."""

        async def test(cluster: Rotation[Member], watch: Watch) -> None:
            cluster.pass_over(members[0])
            await self.poll(watch)
            await self.poll(watch)
            members[1].send({"events": [put("subnets/a", 95)]})
            assert await watch.changes(self.CURSOR, 5) == Changes((entry("a", 95),), 96)

        self.run(members, test)
        assert [[request["start_revision"] for request in member.watches] for member in members] == [["90"], ["90"]]
        assert [member.looks for member in members] == [0, 1]

    def test_is_not_left_while_it_reports_events(self, members: list[Member]) -> None:
        async def test(cluster: Rotation[Member], watch: Watch) -> None:
            cluster.pass_over(members[0])
            members[0].send({"events": [put("subnets/a", 95)]})
            assert await watch.changes(self.CURSOR, 5) == Changes((entry("a", 95),), 96)
            members[0].send({"events": [put("subnets/a", 96)]})
            assert await watch.changes(96, 5) == Changes((entry("a", 96),), 97)

        self.run(members, test)
        assert [len(member.watches) for member in members] == [1, 0]

    def test_changes_once_a_minute_at_most(self, members: list[Member], monkeypatch: pytest.MonkeyPatch) -> None:
        """Endpoints that answer some calls and not others let the rotation go round."""

        async def test(cluster: Rotation[Member], watch: Watch) -> None:
            for _ in range(20):
                cluster.pass_over(cluster.preferred)
                await self.poll(watch)
            assert sum(len(member.watches) for member in members) == 2
            assert sum(member.looks for member in members) == 1
            monkeypatch.setattr(etcd_v3_watch, "REOPEN_SECONDS", (0.0, 0.0))
            cluster.pass_over(members[0])
            await self.poll(watch)
            await self.poll(watch)

        self.run(members, test)
        assert [len(member.watches) for member in members] == [2, 1]
