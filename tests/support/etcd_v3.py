"""An etcd of the v3 API and registries on it, for tests that let the two fail each other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab.etcd_server import EtcdServer
from lab.etcd_stores import Api
from support.etcd_faults import PREFIX, V3, LossyProxy

from flannelpy.registry.endpoints import Access
from flannelpy.registry.etcd_v3 import EtcdV3Registry


def connect(*urls: str, prefix: str = PREFIX, **options: str | None) -> EtcdV3Registry:
    """Return a registry of the network, as the daemon makes it."""
    return EtcdV3Registry(urls, prefix, Access(**options))


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """Return a running etcd of the module, without the v2 API."""
    with EtcdServer(tmp_path_factory.mktemp("etcd"), api=Api.V3) as server:
        yield server


@pytest.fixture
def server(shared_server: EtcdServer) -> EtcdServer:
    """Return a running, empty etcd."""
    V3.empty(shared_server)
    return shared_server


@pytest.fixture(params=["one endpoint", "two endpoints"])
def registry(request: pytest.FixtureRequest, proxy: LossyProxy, server: EtcdServer) -> EtcdV3Registry:
    """Return a registry whose first endpoint is the proxy."""
    return connect(*[proxy.url, server.url][: 1 if request.param == "one endpoint" else 2])
