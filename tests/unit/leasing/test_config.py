"""The network config: waited for at the start, watched later."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from support.bad_configs import BAD_CONFIGS, BAD_CONFIGS_V3, BadConfig
from support.fakes import FakeRegistry
from support.lease_world import (
    OWN,
    TEXT,
    World,
    accept_any,
    accept_by_backend,
    play,
)

from flannelpy.errors import ConfigError, RegistryUnavailable
from flannelpy.leasing.manager import CONFIG_SECONDS
from flannelpy.leasing.retry import LONGEST_PAUSE
from flannelpy.registry.base import Schema
from flannelpy.subnet.config import NetworkConfig, parse


@pytest.fixture
def bad_configs(schema: Schema) -> list[BadConfig]:
    return list({Schema.V2: BAD_CONFIGS, Schema.V3: BAD_CONFIGS_V3}[schema].values())


def test_a_config_that_is_there_is_read_at_once(schema: Schema, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.registry.set_config(TEXT)
        assert await world.manager.read_config(accept_any) == parse(TEXT, schema)
        assert world.now() == 0

    play(scenario)
    assert caplog.messages == []


def test_a_config_that_becomes_right_step_by_step_is_waited_for_with_a_line_for_each_cause(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def accept(config: NetworkConfig) -> str:
        if config.backend.type != "udp":
            raise ConfigError(f"unknown backend type: {config.backend.type}")
        return f"accepted {config.network}"

    async def scenario(world: World) -> None:
        reading = asyncio.create_task(world.manager.read_config(accept))
        for config in ("{", '{"Network":"11.0.0.0/16","SubnetLen":31}', TEXT[:-1] + ',"Backend":{"Type":"gre"}}', TEXT):
            await asyncio.sleep(9.5)
            assert not reading.done()
            world.registry.set_config(config)
        before = world.now()
        assert await reading == "accepted 11.0.0.0/16"
        assert world.now() - before <= LONGEST_PAUSE

    play(scenario)
    assert caplog.messages == [
        "Failed to retrieve network config: config: key not found",
        "Failed to retrieve network config: network config is not JSON: Expecting property name enclosed in double"
        " quotes at line 1 column 2",
        "Failed to retrieve network config: SubnetLen 31 must be less than /31",
        "Failed to retrieve network config: unknown backend type: gre",
    ]


def test_each_kind_of_invalid_config_is_logged_at_start_and_retried(
    bad_configs: list[BadConfig], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        reading = asyncio.create_task(world.manager.read_config(accept_by_backend))
        for bad in bad_configs:
            world.registry.set_config(bad.text)
            await asyncio.sleep(LONGEST_PAUSE)
        world.registry.set_config(TEXT)
        await reading

    play(scenario)
    assert caplog.messages == [f"Failed to retrieve network config: {bad.message}" for bad in bad_configs]


def test_a_store_that_does_not_answer_at_start_is_waited_for_and_then_used(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.registry.set_config(TEXT)
        world.registry.go_down()
        reading = asyncio.create_task(world.manager.read_config(accept_any))
        await asyncio.sleep(100)
        world.registry.come_up()
        config = await reading
        world.registry.go_down()
        acquiring = asyncio.create_task(world.acquire(OWN, config))
        await asyncio.sleep(100)
        world.registry.come_up()
        assert (await acquiring).subnet == OWN

    play(scenario)
    assert caplog.messages == [
        "Failed to retrieve network config: the fake registry is down",
        "Failed to acquire subnet: the fake registry is down",
        "Picking subnet in range 11.0.1.0 ... 11.0.255.0",
        "Subnet lease acquired: 11.0.59.0/24",
    ]


def watch_config(*texts: str | None) -> Callable[[World], Awaitable[None]]:
    """Scenario: the config is each of ``texts`` for a minute; None is none."""

    async def accept(config: NetworkConfig) -> None:
        if config.backend.type != "udp":
            raise ConfigError(f"unknown backend type: {config.backend.type}")

    async def scenario(world: World) -> None:
        world.registry.set_config(TEXT)
        await world.manager.read_config(accept)
        await world.acquire(OWN)
        watching = asyncio.create_task(world.manager.watch_config(accept))
        for text in texts:
            world.registry.set_config(text)
            await asyncio.sleep(60)
        watching.cancel()

    return scenario


def test_each_change_of_the_config_while_flannelpy_runs_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    play(
        watch_config(
            TEXT, "{", '{"Network":"12.0.0.0/16"}', None, '{"Network":"11.0.0.0/16","Backend":{"Type":"gre"}}', TEXT
        )
    )
    assert caplog.messages[2:] == [
        "Network config in etcd became invalid: network config is not JSON: Expecting property name enclosed in double"
        " quotes at line 1 column 2; continuing with the config read at start",
        "Network config in etcd was changed; restart flannelpy, then Docker, to apply the change",
        "Network config in etcd was removed; continuing with the config read at start",
        "Network config in etcd became invalid: unknown backend type: gre; continuing with the config read at start",
        "Network config in etcd was changed back to the config read at start",
    ]


def test_a_config_that_is_wrong_in_another_way_is_logged_again_and_the_same_one_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    too_long, longer = (f'{TEXT[:-1]},"SubnetLen":{length}}}' for length in (31, 32))
    play(watch_config(too_long, too_long, longer, longer, too_long))
    assert caplog.messages[2:] == [
        f"Network config in etcd became invalid: SubnetLen {length} must be less than /31; continuing with the config"
        " read at start"
        for length in (31, 32, 31)
    ]


def test_a_second_change_to_another_valid_config_is_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    first, second = '{"Network":"12.0.0.0/16"}', '{"Network":"13.0.0.0/16"}'
    play(watch_config(first, first, second))
    line = "Network config in etcd was changed; restart flannelpy, then Docker, to apply the change"
    assert caplog.messages[2:] == [line, line]


def test_each_kind_of_invalid_config_while_flannelpy_runs_is_only_logged(
    bad_configs: list[BadConfig], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        world.registry.set_config(TEXT)
        await world.manager.read_config(accept_by_backend)
        await world.acquire(OWN)
        watching = asyncio.create_task(world.manager.watch_config(accept_by_backend))
        await asyncio.sleep(1)
        for bad in bad_configs:
            world.registry.set_config(bad.text)
            await asyncio.sleep(CONFIG_SECONDS)
        assert not watching.done()
        watching.cancel()

    play(scenario)
    assert len(bad_configs) >= 20
    assert caplog.messages[2:] == [
        f"Network config in etcd became invalid: {bad.message}; continuing with the config read at start"
        for bad in bad_configs
    ]


@pytest.mark.parametrize("schema", [Schema.V3], indirect=True)
def test_keys_of_ipv6_are_logged_once_the_config_is_accepted(caplog: pytest.LogCaptureFixture) -> None:
    async def accept(config: NetworkConfig) -> None:
        if config.backend.type != "udp":
            raise ConfigError(f"unknown backend type: {config.backend.type}")

    async def scenario(world: World) -> None:
        dual_stack = TEXT[:-1] + ',"EnableIPv6":true,"IPv6Network":"fd00::/48"'
        world.registry.set_config(dual_stack + ',"Backend":{"Type":"gre"}}')
        reading = asyncio.create_task(world.manager.read_config(accept))
        await asyncio.sleep(60)
        world.registry.set_config(dual_stack + "}")
        await reading

    play(scenario)
    assert caplog.messages == [
        "Failed to retrieve network config: unknown backend type: gre",
        "Ignored EnableIPv6, IPv6Network of the network config: flannelpy routes IPv4 only",
    ]


@pytest.mark.parametrize("schema", [Schema.V3], indirect=True)
def test_a_change_that_the_watch_reports_is_logged_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.registry.set_config(TEXT)
        await world.manager.read_config(accept_any)
        world.registry.set_config('{"Network":"12.0.0.0/16"}')  # before anything waits for it
        watching = asyncio.create_task(world.manager.watch_config(accept_any))
        await asyncio.sleep(0.1)
        world.registry.set_config(TEXT)
        await asyncio.sleep(0.1)
        watching.cancel()

    play(scenario)
    assert caplog.messages == [
        "Network config in etcd was changed; restart flannelpy, then Docker, to apply the change",
        "Network config in etcd was changed back to the config read at start",
    ]


def test_a_changed_config_that_cannot_be_read_is_read_again_with_pauses(caplog: pytest.LogCaptureFixture) -> None:
    class Unreadable(FakeRegistry):
        reads = 0

        async def read_config(self) -> str:
            self.reads += 1
            if self.reads in range(2, 7):
                raise RegistryUnavailable("no quorum")
            return await super().read_config()

    async def scenario(world: World) -> None:
        assert isinstance(world.registry, Unreadable)
        world.registry.set_config(TEXT)
        await world.manager.read_config(accept_any)
        world.registry.set_config("{")
        watching = asyncio.create_task(world.manager.watch_config(accept_any))
        await asyncio.sleep(4 * 0.75 * CONFIG_SECONDS)
        assert world.registry.reads <= 5
        await asyncio.sleep(20 * CONFIG_SECONDS)
        watching.cancel()

    play(scenario, Unreadable)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("Network config in etcd became invalid")


def test_an_outage_is_no_change_of_the_config(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        await watch_config(TEXT)(world)
        watching = asyncio.create_task(world.manager.watch_config(accept_any))
        world.registry.go_down()
        await asyncio.sleep(1000)
        world.registry.come_up()
        await asyncio.sleep(100)
        watching.cancel()

    play(scenario)
    assert len(caplog.messages) == 2
