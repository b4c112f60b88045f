"""The config and the leases of a store in memory, and each cause for which there are none."""

from __future__ import annotations

import asyncio
import json
import time
from ipaddress import IPv4Address, IPv4Network

import pytest
from support.fakes import FakeRegistry

from flannelpy import cli
from flannelpy.check import gather_store
from flannelpy.check.observations import FileSeen, StoreSeen
from flannelpy.errors import RegistryUnavailable
from flannelpy.registry.base import Schema
from flannelpy.subnet.lease import HostIdentity

US = HostIdentity(IPv4Address("172.17.8.101"), "host1")
OURS = IPv4Network("11.0.59.0/24")
FILE = FileSeen("/run/flannel/subnet.env", IPv4Network("11.0.0.0/16"), OURS)


def store(*, config: str = '{"Network": "11.0.0.0/16"}') -> FakeRegistry:
    found = FakeRegistry(time.monotonic, Schema.V2)
    found.set_config(config)
    found.put_raw("11.0.59.0-24", json.dumps({"PublicIP": "172.17.8.101", "HostID": "host1"}), 100)
    found.put_raw("11.0.60.0-24", "garbage", 100)
    return found


def look(monkeypatch: pytest.MonkeyPatch, registry: object, name: str = "") -> StoreSeen:
    monkeypatch.setattr(gather_store, "connect", lambda *_: registry)
    return asyncio.run(gather_store.look(cli.parse([]), name, US, FILE))


def test_config_and_leases_are_read_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = look(monkeypatch, store())
    assert seen.config
    assert seen.config.network == FILE.network
    assert [lease.subnet for lease in seen.leases] == [OURS]
    assert seen.seconds_left
    assert 90 <= seen.seconds_left <= 100
    assert seen.key == "/coreos.com/network/config"


def test_an_invalid_config_is_a_flaw_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = look(monkeypatch, store(config="{}"), "blue")
    assert seen.flaw.startswith("Network is missing")
    assert (seen.config, seen.failure, seen.key) == (None, "", "/coreos.com/network/blue/config")


@pytest.mark.parametrize(("schema", "expected"), [(Schema.V2, []), (Schema.V3, [("8e", "NOSPACE")])])
def test_only_a_store_in_v3_is_asked_for_alarms(
    monkeypatch: pytest.MonkeyPatch, schema: Schema, expected: list[tuple[str, str]]
) -> None:
    class Details:
        async def alarms(self) -> list[tuple[str, str]]:
            return [("8e", "NOSPACE")]

        async def seconds_left(self, _: str) -> int:
            return 90

    monkeypatch.setattr(gather_store, "open_as", lambda *_: Details())
    registry = store()
    registry.schema = schema
    assert look(monkeypatch, registry).alarms == expected


def test_a_store_that_denies_its_alarms_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Denying:
        async def alarms(self, *_: object) -> list[tuple[str, str]]:
            raise RegistryUnavailable("permission denied")

        seconds_left = alarms

    monkeypatch.setattr(gather_store, "open_as", lambda *_: Denying())
    registry = store()
    registry.schema = Schema.V3
    seen = look(monkeypatch, registry)
    assert (seen.failure, seen.alarms) == ("", [])


class _Silent(FakeRegistry):
    async def read_config(self) -> str:
        await asyncio.sleep(3600)
        raise AssertionError


class _Refusing(FakeRegistry):
    async def read_config(self) -> str:
        raise RegistryUnavailable("http://a:1: connection refused")


@pytest.mark.parametrize(
    ("kind", "failure"),
    [
        (_Refusing, "http://a:1: connection refused"),
        (_Silent, "http://127.0.0.1:4001, http://127.0.0.1:2379: no answer in time"),
    ],
)
def test_a_store_that_does_not_answer_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, kind: type[FakeRegistry], failure: str
) -> None:
    monkeypatch.setattr(gather_store, "_PATIENCE", 0.05)
    seen = look(monkeypatch, kind(time.monotonic, Schema.V2))
    assert (seen.failure, seen.config, seen.flaw) == (failure, None, "")
