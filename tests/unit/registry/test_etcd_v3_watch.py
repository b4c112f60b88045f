"""What the answers of a watch mean, and how far each moves the cursor."""

from __future__ import annotations

from typing import Any

import pytest

from flannelpy.registry.base import EXPIRES, Deleted, KeyValue, Put
from flannelpy.registry.endpoints import parse_endpoint
from flannelpy.registry.etcd_v3_client import V3Client
from flannelpy.registry.etcd_v3_messages import Access, Header, Refusal, encoded
from flannelpy.registry.etcd_v3_store import Keys
from flannelpy.registry.etcd_v3_watch import Compacted, Created, Item, Step, items_of

KEYS = Keys("/network")
CLIENT = V3Client(parse_endpoint("http://127.0.0.1"), Access(KEYS.root, None, None, None, None, None))
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
