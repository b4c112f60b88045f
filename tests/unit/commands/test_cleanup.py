"""-cleanup: how it ends, and what -release does with the leases."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from support.fakes import FakeRegistry

from flannelpy import cli
from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.commands import cleanup
from flannelpy.errors import AlreadyRunning, CompareFailed, HostError, KeyNotFound, RegistryUnavailable
from flannelpy.host import external_endpoint
from flannelpy.linux.instance_lock import InstanceLock
from flannelpy.options import Options
from flannelpy.registry.base import Schema

PUBLIC_IP = IPv4Address("172.17.8.101")
KEY = "11.0.59.0-24"


class World:
    """A host with a lease in the store and nothing to remove, whose -cleanup ends with ``failure``."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, schema: Schema) -> None:
        self.file = directory / "subnet.env"
        self.store = FakeRegistry(time.monotonic, schema)
        self.store.put_raw(KEY, json.dumps({"PublicIP": str(PUBLIC_IP)}), 100)
        self.failure: Exception | None = None
        self.was_locked: list[bool] = []
        monkeypatch.setattr(cleanup, "_remove_owned", self._remove_owned)
        monkeypatch.setattr(cleanup, "connect_host", self._connect)
        monkeypatch.setattr(external_endpoint, "choose", self._choose)

    def run(self) -> int:
        return cleanup.run(cli.parse([f"-subnet-file={self.file}", "-cleanup", "-release", "-host-id=host-1"]))

    async def _remove_owned(self, *_: object) -> list[HostError]:
        if self.failure:
            raise self.failure
        return []

    async def _choose(self, _: Options) -> tuple[ExternalInterface, IPv4Address]:
        return ExternalInterface("eth1", PUBLIC_IP, 1500), PUBLIC_IP

    def _connect(self, *_: object) -> FakeRegistry:
        try:
            InstanceLock(self.file).close()
        except AlreadyRunning:
            self.was_locked.append(True)
        else:
            self.was_locked.append(False)
        return self.store


@pytest.fixture(params=[Schema.V2, Schema.V3], ids=["v2", "v3"])
def world(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> World:
    caplog.set_level(logging.DEBUG, logger="flannelpy")
    return World(tmp_path, monkeypatch, request.param)


def test_a_lease_is_released_while_no_daemon_can_start(world: World, caplog: pytest.LogCaptureFixture) -> None:
    assert world.run() == 0
    assert "Released the lease of 11.0.59.0/24" in caplog.messages
    assert world.was_locked == [True]


def test_reservations_and_leases_of_other_hosts_are_kept(world: World, caplog: pytest.LogCaptureFixture) -> None:
    for name, value, ttl in (
        ("11.0.60.0-24", {"PublicIP": str(PUBLIC_IP), "HostID": "host-1"}, None),
        ("11.0.61.0-24", {"PublicIP": str(PUBLIC_IP), "HostID": "host-2"}, 100),
        ("11.0.62.0-24", {"PublicIP": "172.17.8.102"}, 100),
        ("11.0.63.0-24&fd00::-64", {"PublicIP": str(PUBLIC_IP)}, 100),
    ):
        world.store.put_raw(name, json.dumps(value), ttl)
    assert world.run() == 0
    assert caplog.messages == [
        "Released the lease of 11.0.59.0/24",
        "Kept the reservation of 11.0.60.0/24: it belongs to the operator",
        "Kept the lease of 11.0.61.0/24: it belongs to another host (host-2)",
    ]
    assert [entry.name for entry in world.store.stored()] == [
        "11.0.60.0-24",
        "11.0.61.0-24",
        "11.0.62.0-24",
        "11.0.63.0-24&fd00::-64",
    ]


def test_a_bug_is_one_line_with_its_place(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.failure = ZeroDivisionError("division by zero")
    assert world.run() == 1
    [line] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert line.getMessage().startswith("Unexpected error in cleanup.py:")
    assert line.getMessage().endswith(
        "(ZeroDivisionError: division by zero): report it with the traceback, which -v=1 logs"
    )
    assert line.filename == "cleanup.py"
    assert line.exc_info is None


def test_an_error_of_the_host_is_its_text_alone(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.failure = HostError("cannot list links")
    assert world.run() == 1
    assert caplog.messages == ["cannot list links"]


@pytest.mark.parametrize("error", [KeyNotFound("key not found"), CompareFailed("compare failed")])
def test_a_lease_that_expires_meanwhile_is_no_error(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    async def compare_and_delete(*_: object) -> None:
        raise error

    monkeypatch.setattr(world.store, "compare_and_delete", compare_and_delete)
    assert world.run() == 0
    assert caplog.messages[-1] == "Released nothing: the lease of 11.0.59.0/24 expired or changed meanwhile"


def test_a_store_that_does_not_answer_is_an_error(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def snapshot() -> None:
        await asyncio.sleep(0)
        raise RegistryUnavailable("no endpoint answers")

    monkeypatch.setattr(world.store, "snapshot", snapshot)
    assert world.run() == 1
    assert caplog.messages[-1] == "no endpoint answers"


@pytest.mark.parametrize("is_live", [True, False])
def test_the_control_socket_is_removed_unless_another_daemon_has_it(
    is_live: bool, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    path = world.file.with_name("control.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        if is_live:
            listener.listen()
        assert world.run() == 0
    assert path.exists() is is_live
    assert (f"Removed {path}" in caplog.messages) is not is_live
