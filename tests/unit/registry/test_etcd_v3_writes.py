"""What becomes of the lease of etcd when a write fails, and answers that do not concern the request."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from support.fake_gateway import gateway

from flannelpy.errors import KeyExists, RegistryError, RegistryUnavailable
from flannelpy.registry.base import expires_in
from flannelpy.registry.etcd_v3 import EtcdV3Registry
from flannelpy.registry.etcd_v3_messages import encoded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HEADER = {"cluster_id": "1", "revision": "9"}
THEIRS = {"key": encoded("/n/subnets/a"), "value": encoded("b"), "mod_revision": "4", "create_revision": "4"}


def ok(**fields: object) -> tuple[int, bytes]:
    return 200, json.dumps({"header": HEADER, **fields}).encode()


def refused(status: int, code: int, message: str) -> tuple[int, bytes]:
    return status, json.dumps({"error": message, "message": message, "code": code}).encode()


class Etcd:
    """Grants leases of 100 s, and answers each transaction with the next of ``transactions``."""

    def __init__(self, *transactions: tuple[int, bytes]) -> None:
        self._transactions = list(transactions)
        self.grants: list[tuple[int, bytes]] = []
        self.granted: list[str] = []
        self.revoked: list[str] = []

    def __call__(self, path: str, request: dict[str, Any]) -> tuple[int, bytes]:
        if path == "kv/txn":
            return self._transactions.pop(0)
        lease = request["ID"]
        if path == "lease/grant":
            self.granted.append(lease)
        if path == "lease/revoke":
            self.revoked.append(lease)
            return refused(404, 5, "etcdserver: requested lease not found")  # never matters
        return self.grants.pop(0) if self.grants and path == "lease/grant" else ok(ID=lease, TTL="100")

    def use(self, call: Callable[[EtcdV3Registry], Awaitable[Any]]) -> Any:
        async def test(url: str) -> Any:
            registry = EtcdV3Registry([url], "/n")
            try:
                return await call(registry)
            finally:
                await registry.close()

        with gateway(self) as url:
            return asyncio.run(test(url))


TAKEN = ok(responses=[{"response_range": {"kvs": [THEIRS], "count": "1"}}])
DENIED = refused(403, 7, "etcdserver: permission denied")
NO_LEADER = refused(503, 14, "etcdserver: no leader")
GARBAGE = (200, b"{}")


@pytest.mark.parametrize(
    ("transactions", "error", "is_revoked"),
    [
        ([TAKEN], KeyExists, True),
        ([DENIED], RegistryUnavailable, True),
        ([NO_LEADER, NO_LEADER], RegistryUnavailable, False),
        ([GARBAGE, GARBAGE], RegistryUnavailable, False),
        ([NO_LEADER, DENIED], RegistryUnavailable, False),
        ([NO_LEADER, TAKEN], KeyExists, True),
    ],
)
def test_a_lease_is_revoked_unless_the_key_may_be_attached_to_it(
    transactions: list[tuple[int, bytes]], error: type[RegistryError], is_revoked: bool
) -> None:
    etcd = Etcd(*transactions)
    with pytest.raises(error):
        etcd.use(lambda registry: registry.create("a", "v", 100))
    assert len(etcd.granted) == 1
    assert etcd.revoked == (etcd.granted if is_revoked else [])


def test_a_grant_whose_reply_was_lost_is_sent_again_with_its_id() -> None:
    etcd = Etcd(ok(succeeded=True, responses=[{}, {"response_range": {"kvs": [THEIRS]}}]))
    etcd.grants = [NO_LEADER, refused(412, 9, "etcdserver: lease already exists")]
    entry = etcd.use(lambda registry: registry.create("a", "b", 70))
    assert entry.lifetime == expires_in(100)
    assert len(etcd.granted) == 2
    assert len(set(etcd.granted)) == 1


@pytest.mark.parametrize("answer", [GARBAGE, ok(), ok(ID="7", TTL="100"), (200, b'{"ID":"7","TTL":"1"}')])
def test_an_answer_about_no_lease_or_another_one_grants_nothing(answer: tuple[int, bytes]) -> None:
    etcd = Etcd()
    etcd.grants = [answer, answer]
    with pytest.raises(RegistryUnavailable):
        etcd.use(lambda registry: registry.create("a", "v", 100))
