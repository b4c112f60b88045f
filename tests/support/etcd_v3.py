"""An etcd of the v3 API and registries on it, for tests that let the two fail each other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest
from lab.etcd_server import EtcdServer, free_ports
from lab.etcd_stores import Api
from support.etcd_faults import LossyProxy

from flannelpy.errors import RegistryUnavailable
from flannelpy.registry import endpoints
from flannelpy.registry.base import Deleted, Put
from flannelpy.registry.endpoints import Access
from flannelpy.registry.etcd_v3 import EtcdV3Registry

Result = TypeVar("Result")

DAY = 86400
DEADLINE = 20.0
PREFIX = "/network"
SUBNETS = f"{PREFIX}/subnets"
A, B, C = "11.0.1.0-24", "11.0.2.0-24", "11.0.3.0-24"
KEY = f"{SUBNETS}/{A}"
SHORT_TIMEOUT = 0.5


def connect(*urls: str, prefix: str = PREFIX, **options: str | None) -> EtcdV3Registry:
    """Return a registry of the network, as the daemon makes it."""
    return EtcdV3Registry(urls, prefix, Access(**options))


def use(registry: EtcdV3Registry, test: Callable[[EtcdV3Registry], Awaitable[Result]]) -> Result:
    """Run ``test`` with ``registry``, and close ``registry`` afterwards."""

    async def body() -> Result:
        try:
            async with asyncio.timeout(DEADLINE):
                return await test(registry)
        finally:
            await registry.close()

    return asyncio.run(body())


async def changes_after(registry: EtcdV3Registry, cursor: int, count: int = 1) -> tuple[list[Put | Deleted], int]:
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


def empty(server: EtcdServer) -> None:
    """Remove all keys and all leases."""
    everything = "AA=="  # the key of one null byte, in base64
    server.v3.call("kv/deleterange", key=everything, range_end=everything)
    for lease in server.v3.leases():
        server.v3.revoke(lease)


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """Return a running etcd of the module, without the v2 API."""
    with EtcdServer(tmp_path_factory.mktemp("etcd"), api=Api.V3) as server:
        yield server


@pytest.fixture
def server(shared_server: EtcdServer) -> EtcdServer:
    """Return a running, empty etcd."""
    empty(shared_server)
    return shared_server


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


@pytest.fixture(params=["one endpoint", "two endpoints"])
def registry(request: pytest.FixtureRequest, proxy: LossyProxy, server: EtcdServer) -> EtcdV3Registry:
    """Return a registry whose first endpoint is the proxy."""
    return connect(*[proxy.url, server.url][: 1 if request.param == "one endpoint" else 2])
