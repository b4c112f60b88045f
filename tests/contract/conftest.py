"""The stores that the contract is tested on, each with the same handles for what happens behind a registry's back."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Protocol

import pytest
from lab.etcd_server import EtcdServer
from support.fakes import FakeRegistry

from flannelpy.registry.etcd_v2 import EtcdV2Registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flannelpy.registry.base import Registry


class Store(Protocol):
    """A registry, and the changes that an administrator makes."""

    def connect(self) -> Registry: ...
    def set_config(self, config: str) -> None: ...
    def put(self, name: str, value: str, ttl: int | None) -> object: ...
    def delete(self, name: str) -> None: ...
    def remove_subnets(self) -> None: ...
    def go_down(self) -> None: ...
    def come_up(self) -> None: ...


class FakeStore:
    def __init__(self) -> None:
        self._registry = FakeRegistry(time.monotonic)
        self.set_config = self._registry.set_config
        self.put = self._registry.put_raw
        self.delete = self._registry.delete_raw
        self.remove_subnets = self._registry.remove_subnets
        self.go_down = self._registry.go_down
        self.come_up = self._registry.come_up

    def connect(self) -> Registry:
        return self._registry


class EtcdStore:
    """One network of its own, by its prefix, in an etcd that all tests share."""

    def __init__(self, server: EtcdServer, prefix: str) -> None:
        self._server = server
        self._prefix = prefix
        self.go_down = server.kill
        self.come_up = server.start

    def connect(self) -> Registry:
        return EtcdV2Registry([self._server.url], self._prefix)

    def set_config(self, config: str) -> None:
        self._server.put(f"{self._prefix}/config", config)

    def put(self, name: str, value: str, ttl: int | None) -> None:
        self._server.put(f"{self._prefix}/subnets/{name}", value, ttl)

    def delete(self, name: str) -> None:
        self._server.delete(f"{self._prefix}/subnets/{name}")

    def remove_subnets(self) -> None:
        self._server.delete(f"{self._prefix}/subnets")


@pytest.fixture(scope="session")
def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


_networks = itertools.count()


@pytest.fixture(params=["fake", "etcd v2"])
def store(request: pytest.FixtureRequest) -> Store:
    if request.param == "fake":
        return FakeStore()
    return EtcdStore(request.getfixturevalue("etcd_server"), f"/network{next(_networks)}")
