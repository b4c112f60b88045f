"""The stores and the backends that the contracts are tested on.

A store has the same handles for what happens behind a registry's back.  A backend needs root.
"""

from __future__ import annotations

import itertools
import time
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Protocol

import pytest
from contract.backend_host import FOREIGN, BackendHost
from lab import Host, Lab
from lab.etcd_server import EtcdServer
from lab.etcd_stores import Api, V3Store
from support.fakes import HISTORY_LENGTH, FakeRegistry
from support.lab_fixtures import pytest_runtest_makereport, root

from flannelpy.leasing.both_stores import BothStores
from flannelpy.registry.base import Schema
from flannelpy.registry.etcd_v2 import EtcdV2Registry
from flannelpy.registry.etcd_v3 import EtcdV3Registry
from flannelpy.subnet.lease import HostIdentity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flannelpy.registry.base import Registry

__all__ = ["pytest_runtest_makereport", "root"]


class Store(Protocol):
    """A registry, and the changes that an administrator makes.

    The attributes are what differs between stores.  ``has_directories``: whether the removal of a directory is one
    event.  ``keeps_creation``: whether a write without a condition does.  ``reports_renewals``: whether a renewal is an
    event.  ``reports_behind``: whether a watch reports how many changes follow.  ``reports_config``: whether the watch
    reports changes of the config.  ``history_length``: how many changes the store remembers; a few for all.
    """

    history_length: int
    has_directories: bool
    keeps_creation: bool
    reports_behind: bool
    reports_renewals: bool
    reports_config: bool

    def connect(self) -> Registry: ...
    def set_config(self, config: str) -> None: ...
    def put(self, name: str, value: str, ttl: int | None) -> object: ...
    def delete(self, name: str) -> None: ...
    def remove_subnets(self) -> None: ...
    def forget_history(self) -> None: ...
    def go_down(self) -> None: ...
    def come_up(self) -> None: ...


class FakeStore:
    history_length = HISTORY_LENGTH

    def __init__(self, schema: Schema) -> None:
        self.has_directories = self.reports_behind = self.reports_renewals = schema is Schema.V2
        self.keeps_creation = self.reports_config = schema is Schema.V3
        self._registry = FakeRegistry(time.monotonic, schema)
        self.set_config = self._registry.set_config
        self.put = self._registry.put_raw
        self.delete = self._registry.delete_raw
        self.remove_subnets = self._registry.remove_subnets
        self.go_down = self._registry.go_down
        self.come_up = self._registry.come_up

    def connect(self) -> Registry:
        return self._registry

    def forget_history(self) -> None:
        _overrun(self)
        self._registry.forget_history()


class BothFakeStores(FakeStore):
    """A fake store of v3 whose entries are in one of v2 as well, which has a network config."""

    def connect(self) -> Registry:
        second = FakeRegistry(time.monotonic)
        second.set_config("{}")
        return BothStores(self._registry, second, HostIdentity(IPv4Address("10.0.0.1"), "host1"))


class EtcdStore:
    """One network of its own, by its prefix, in the store of an API of an etcd that all tests share."""

    def __init__(self, server: EtcdServer, prefix: str, api: Api) -> None:
        self.has_directories = self.reports_behind = self.reports_renewals = api is Api.V2
        self.keeps_creation = self.reports_config = api is Api.V3
        self.history_length = 1000 if api is Api.V2 else 20
        self._server = server
        self._store = server.v2 if api is Api.V2 else server.v3
        self._kind = EtcdV2Registry if api is Api.V2 else EtcdV3Registry
        self._prefix = prefix
        self.go_down = server.kill
        self.come_up = server.start

    def connect(self) -> Registry:
        return self._kind([self._server.url], self._prefix)

    def set_config(self, config: str) -> None:
        self._store.put(f"{self._prefix}/config", config)

    def put(self, name: str, value: str, ttl: int | None) -> None:
        self._store.put(f"{self._prefix}/subnets/{name}", value, ttl)

    def delete(self, name: str) -> None:
        self._store.delete(f"{self._prefix}/subnets/{name}")

    def remove_subnets(self) -> None:
        self._store.delete(f"{self._prefix}/subnets")

    def forget_history(self) -> None:
        if isinstance(self._store, V3Store):
            self.put("11.0.9.0-24", "999", None)
            self.put("11.0.9.0-24", "1000", None)
            self._store.compact()
        else:
            _overrun(self)


def _overrun(store: FakeStore | EtcdStore) -> None:
    """Change an entry as often as the store remembers changes, and once more."""
    for number in range(store.history_length + 1):
        store.put("11.0.9.0-24", str(number), None)


@pytest.fixture(scope="session")
def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


_networks = itertools.count()


@pytest.fixture(params=["fake v2", "fake v3", "both stores", "etcd v2", "etcd v3"])
def store(request: pytest.FixtureRequest) -> Store:
    if request.param.startswith("fake"):
        return FakeStore(Schema(request.param[-1]))
    if request.param == "both stores":
        return BothFakeStores(Schema.V3)
    server, prefix = request.getfixturevalue("etcd_server"), f"/network{next(_networks)}"
    return EtcdStore(server, prefix, Api(request.param[-1]))


@pytest.fixture(scope="module")
def host(root: None) -> Iterator[Host]:
    """The only host of a lab, on which other programs have devices, routes, rules and neighbours."""
    with Lab(hosts=1) as lab:
        lab.hosts[0].configure(*FOREIGN)
        yield lab.hosts[0]


@pytest.fixture
def backend_host(host: Host, request: pytest.FixtureRequest) -> BackendHost:
    """The host with backends of the parameter's type."""
    return BackendHost(host, request.param)
