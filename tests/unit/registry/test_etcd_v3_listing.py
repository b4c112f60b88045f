"""Pages of a list in etcd v3, and answers that etcd would never give."""

from __future__ import annotations

import asyncio
import itertools
import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from support.fake_gateway import gateway

from flannelpy.errors import RegistryUnavailable
from flannelpy.registry.etcd_v3 import EtcdV3Registry
from flannelpy.registry.etcd_v3_messages import decoded, encoded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from flannelpy.registry.base import Snapshot

HEADER = {"cluster_id": "1", "member_id": "2", "revision": "9000", "raft_term": "2"}
COMPACTED = "etcdserver: mvcc: required revision has been compacted"


def error(code: int, message: str) -> bytes:
    return json.dumps({"error": message, "message": message, "code": code}).encode()


class Store:
    """Keys of /network and their values.  ``longest``: the size of an answer, in bytes of keys and values."""

    def __init__(self, values: dict[str, str], longest: int = 1 << 60) -> None:
        self._values = dict(sorted(values.items()))
        self._longest = longest
        self.compactions = 0
        self.requests: list[dict[str, Any]] = []

    def __call__(self, path: str, request: dict[str, Any]) -> tuple[int, bytes]:
        assert path == "kv/range"
        self.requests.append(request)
        if self.compactions and "revision" in request:
            self.compactions -= 1
            return 400, error(11, COMPACTED)
        first, end = decoded(request["key"]), decoded(request["range_end"])
        keys = [key for key in self._values if first <= key < end]
        page = keys[: int(request["limit"])]
        kvs = [self._kv(key, request["keys_only"]) for key in page]
        if (size := sum(len(str(kv)) for kv in kvs)) > self._longest:
            return 429, error(8, f"grpc: received message larger than max ({size} vs. {self._longest})")
        answer = {"header": HEADER, "kvs": kvs} | ({"more": True} if page != keys else {}) | {"count": str(len(keys))}
        return 200, json.dumps(answer, separators=(",", ":")).encode()

    def _kv(self, key: str, keys_only: bool) -> dict[str, str]:
        value = {} if keys_only else {"value": encoded(self._values[key])}
        return {"key": encoded(key), "create_revision": "3", "mod_revision": "4", "version": "1", **value}


def snapshot(store: Store, is_wanted: Callable[[str], bool] = lambda _: True) -> Snapshot:
    async def test(url: str) -> Snapshot:
        registry = EtcdV3Registry([url], "/network")
        try:
            return await registry.snapshot(is_wanted)
        finally:
            await registry.close()

    with gateway(store) as url:
        return asyncio.run(test(url))


def subnets(count: int, value: str = "v") -> dict[str, str]:
    return {f"/network/subnets/{number:05}": value for number in range(count)}


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2500])
def test_pages_at_the_revision_of_the_first(count: int) -> None:
    others = {"/network/config": "{}", "/network/other": "x", "/network/subnets/a/b": "x", "/network2/subnets/z": "x"}
    store = Store(subnets(count) | others)
    found = snapshot(store)
    assert [entry.name for entry in found.entries] == [f"{number:05}" for number in range(count)]
    assert found.cursor == 9001
    assert [request.get("revision") for request in store.requests] == [None] + ["9000"] * ((count + 2) // 1000)


def test_a_page_that_is_too_large_is_halved() -> None:
    store = Store(subnets(30) | subnets(4, "x" * 1000), longest=1800)
    found = snapshot(store)
    assert [(entry.name, len(entry.value)) for entry in found.entries] == [
        (f"{number:05}", 1000 if number < 4 else 1) for number in range(30)
    ]
    assert len(store.requests) < 40


def test_a_key_that_is_too_large_alone_loses_its_value() -> None:
    store = Store(subnets(3) | {"/network/subnets/00001": "x" * 5000}, longest=3000)
    assert [(entry.name, entry.value) for entry in snapshot(store).entries] == [
        ("00000", "v"),
        ("00001", ""),
        ("00002", "v"),
    ]


def test_a_compaction_between_pages_begins_the_list_again() -> None:
    store = Store(subnets(1500))
    store.compactions = 2
    assert len(snapshot(store).entries) == 1500


def test_a_compaction_between_all_pages_ends() -> None:
    store = Store(subnets(1500))
    store.compactions = 100
    with pytest.raises(RegistryUnavailable, match="lost the revision"):
        snapshot(store)


def test_foreign_keys_take_little_memory() -> None:
    store = Store(subnets(5000, "x" * 1000) | {"/network/subnets/wanted": "y"})

    async def test(url: str) -> tuple[int, Snapshot]:
        registry = EtcdV3Registry([url], "/network")
        await registry.snapshot("wanted".__eq__)
        tracemalloc.start()
        found = await registry.snapshot("wanted".__eq__)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        await registry.close()
        return peak, found

    body: dict[str, bytes] = {}

    def remembered(path: str, request: dict[str, Any]) -> tuple[int, bytes]:
        """The answers are made before memory is measured."""
        key = str(request)
        body[key] = body.get(key) or store(path, request)[1]
        return 200, body[key]

    with gateway(remembered) as url:
        peak, found = asyncio.run(test(url))
    assert [entry.value for entry in found.entries if entry.name == "wanted"] == ["y"]
    assert len(found.entries) < 2100
    assert peak < 2_500_000


CALLS: dict[str, Callable[[EtcdV3Registry], Awaitable[object]]] = {
    "read_config": lambda registry: registry.read_config(),
    "snapshot": lambda registry: registry.snapshot(),
    "snapshot_of": lambda registry: registry.snapshot_of("a"),
    "create": lambda registry: registry.create("a", "v", 100),
    "compare_and_swap": lambda registry: registry.compare_and_swap("a", "v", 100, 1),
    "permanent": lambda registry: registry.compare_and_swap("a", "v", None, 1),
    "renew": lambda registry: registry.renew("a", "v", 100, 1),
    "compare_and_delete": lambda registry: registry.compare_and_delete("a", 1),
    "watch": lambda registry: registry.watch(1, 0.1),
}
KEY = encoded("/network/subnets/a")
MALFORMED = [
    b"",
    b"{",
    b"7",
    b"null",
    b"[]",
    b'"x"',
    b"\xff\xfe",
    b"[" * 600 + b"]" * 600,
    b'{"kvs":' + b"[" * 600 + b"]" * 600 + b"}",
    b"[" * 100_000,
    b'{"header":7,"kvs":7,"TTL":[],"responses":7,"result":7}',
    b'{"header":{"revision":"x","cluster_id":"1"},"kvs":[{"key":7}],"TTL":"x","responses":[{}]}',
    b'{"header":{"revision":1e400,"cluster_id":"1"},"kvs":[{"key":"?"}],"TTL":NaN,"responses":[7]}',
    b'{"header":{"revision":' + b"9" * 5000 + b'},"kvs":[{}],"TTL":' + b"9" * 5000 + b',"responses":[]}',
    b'{"header":{},"kvs":[{"key":"","value":7}],"more":true,"TTL":true,"responses":null}',
    b'{"header":{},"kvs":[],"more":true,"TTL":"1","responses":[{"response_range":{"kvs":[7]}}]}',
    b'{"header":{},"kvs":{"a":1},"TTL":"1","responses":[{"response_range":{"kvs":{"a":1}}}]}',
    b'{"error":{"code":[]},"code":"x"}',
    b'{"error":7,"code":14,"message":[[[]]]}',
]


@pytest.mark.parametrize("call", CALLS)
def test_a_malformed_answer_raises_errors_of_a_registry_only(call: str) -> None:
    answers = [(200, b"")]

    async def test(url: str) -> None:
        for answers[0] in itertools.product((200, 400, 503), MALFORMED):
            registry = EtcdV3Registry([url], "/network")
            with pytest.raises(RegistryUnavailable) as caught:
                await CALLS[call](registry)
            assert len(str(caught.value)) < 400
            await registry.close()

    with gateway(lambda path, request: answers[0]) as url:
        asyncio.run(test(url))
