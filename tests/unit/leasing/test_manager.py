"""The life of a lease against a fake registry, on a clock that jumps: a day takes milliseconds."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import itertools
import logging
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from support.bad_configs import BAD_CONFIGS
from support.fakes import HISTORY_LENGTH, FakeRegistry
from support.fakes_clock import BOOT, LoopClock, run

from flannelpy import cli
from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.addressing.surroundings import Surroundings, surroundings
from flannelpy.backend import base as backends
from flannelpy.errors import ConfigError, HostError, KeyExists, LeaseLost, RegistryUnavailable
from flannelpy.leasing.manager import CONFIG_SECONDS, MAX_GRACE_SECONDS, QUIET_SECONDS, SubnetManager
from flannelpy.leasing.retry import FIRST_PAUSE, LONGEST_PAUSE
from flannelpy.registry.base import Changes, KeyValue, Snapshot, all_names
from flannelpy.subnet.config import NetworkConfig, parse
from flannelpy.subnet.lease import HostIdentity, Lease, LeaseAttrs
from flannelpy.subnet.lease_policy import CLAIM_SECONDS, Terms
from flannelpy.subnet.lease_table import LeaseAdded, LeaseEvent

LEASE_TTL, RENEW_MARGIN = Terms()

OUR_IP = IPv4Address("172.17.8.101")
ATTRS = LeaseAttrs(OUR_IP)
OURS, B, C, D = (f'{{"PublicIP":"172.17.8.{n}"}}' for n in (101, 102, 103, 104))
TEXT = '{"Network":"11.0.0.0/16"}'
CONFIG = parse(TEXT)
# Three subnets: 11.0.0.64, .128 and .192.
SMALL = parse('{"Network":"11.0.0.0/24","SubnetLen":26}')
EXTERNAL = ExternalInterface("eth1", OUR_IP, 1500)
OWN_NAME, OWN = "11.0.59.0-24", IPv4Network("11.0.59.0/24")


async def accept_any(config: NetworkConfig) -> NetworkConfig:
    return config


async def accept_by_backend(config: NetworkConfig) -> object:
    return backends.create(config, EXTERNAL, cli.parse([]))


class World:
    """A registry, and the manager of the host 172.17.8.101."""

    def __init__(self, registry_class: type[FakeRegistry]) -> None:
        clock = LoopClock()
        self.now = clock.now
        self.registry = registry_class(clock.now)
        self.manager = SubnetManager(self.registry, clock, random.Random(1), HostIdentity(OUR_IP))
        self.told: list[LeaseEvent] = []

    async def apply(self, events: Sequence[LeaseEvent]) -> None:
        self.told += events

    async def acquire(self, previous: IPv4Network | None = None, config: NetworkConfig = CONFIG) -> Lease:
        return await self.manager.acquire(config, lambda _: ATTRS, previous)

    async def entries(self) -> dict[str, KeyValue]:
        return {entry.name: entry for entry in (await self.registry.snapshot()).entries}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """With the own lease 11.0.59.0/24, the watch (which is yielded) and the renewal going on."""
        await self.acquire(OWN)
        watch = asyncio.create_task(self.manager.watch(self.apply))
        renewal = asyncio.create_task(self.manager.keep_lease())
        await asyncio.sleep(0.001)
        yield watch
        for task in (watch, renewal):
            task.cancel()
        failures = await asyncio.gather(watch, renewal, return_exceptions=True)
        assert {type(failure) for failure in failures} <= {asyncio.CancelledError, LeaseLost}


def play(scenario: Callable[[World], Awaitable[None]], registry_class: type[FakeRegistry] = FakeRegistry) -> None:
    async def whole() -> None:
        await scenario(World(registry_class))

    run(whole())


def summary(events: Sequence[LeaseEvent]) -> list[tuple[str, str | None]]:
    return [
        (str(event.lease.subnet), str(event.lease.attrs.public_ip))
        if isinstance(event, LeaseAdded)
        else (str(event.subnet), None)
        for event in events
    ]


@pytest.fixture(autouse=True)
def _everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="flannelpy")


# The network config


def test_a_config_that_is_there_is_read_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.registry.set_config(TEXT)
        assert await world.manager.read_config(accept_any) == CONFIG
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


def test_a_bad_config_of_any_kind_is_said_at_start_and_waited_out(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        reading = asyncio.create_task(world.manager.read_config(accept_by_backend))
        for bad in BAD_CONFIGS.values():
            world.registry.set_config(bad.text)
            await asyncio.sleep(LONGEST_PAUSE)
        world.registry.set_config(TEXT)
        await reading

    play(scenario)
    assert caplog.messages == [f"Failed to retrieve network config: {bad.message}" for bad in BAD_CONFIGS.values()]


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


# Acquiring


def test_a_new_host_takes_a_free_subnet_for_a_day(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.1.0-24", B, 86400)
        own = await world.acquire()
        assert CONFIG.fits(own.subnet)
        assert own.subnet != IPv4Network("11.0.1.0/24")
        assert own.attrs == ATTRS
        name = f"{own.subnet.network_address}-24"
        assert (await world.entries())[name] == KeyValue(name, OURS, LEASE_TTL, own.version, own.created)
        assert world.manager.own == own
        assert caplog.messages == [
            "Picking subnet in range 11.0.1.0 ... 11.0.255.0",
            f"Subnet lease acquired: {own.subnet}",
        ]

    play(scenario)


def test_a_lease_with_our_public_ip_is_ours_again_for_a_full_day(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.1.0-24", B, 86400)
        old = world.registry.put_raw("11.0.77.0-24", OURS, 100)
        own = await world.acquire(previous=OWN)
        assert own == Lease(IPv4Network("11.0.77.0/24"), ATTRS, LEASE_TTL, old.version + 1, old.created)
        assert set(await world.entries()) == {"11.0.1.0-24", "11.0.77.0-24"}

    play(scenario)
    assert caplog.messages == [
        "Found lease (11.0.77.0/24) for current IP (172.17.8.101), reusing",
        "Subnet lease acquired: 11.0.77.0/24",
    ]


def test_a_key_whose_value_is_damaged_is_not_picked() -> None:
    """The previous subnet looked free, and its create failed for ever."""

    async def scenario(world: World) -> None:
        world.registry.put_raw(OWN_NAME, "", 86400)
        own = await world.acquire(previous=OWN)
        assert own.subnet != OWN

    play(scenario)


def test_an_own_lease_that_somebody_damages_is_put_right() -> None:
    async def scenario(world: World) -> None:
        async with world.running():
            damaged = world.registry.put_raw(OWN_NAME, "", None)
            await asyncio.sleep(2)
            entry = (await world.entries())[OWN_NAME]
            assert (entry.value, entry.version) == (OURS, damaged.version + 1)
            assert entry.lease_ttl is not None
            assert world.manager.own.version == entry.version

    play(scenario)


def test_a_reused_lease_gets_our_value_also_when_another_backend_wrote_it() -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.77.0-24", OURS[:-1] + ',"BackendType":"vxlan","BackendData":{"VtepMAC":"x"}}', 9)
        own = await world.acquire()
        assert own.attrs == ATTRS
        assert (await world.entries())["11.0.77.0-24"].value == OURS

    play(scenario)


def test_a_reservation_is_used_and_stays_one() -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw(OWN_NAME, OURS, None)
        async with world.running():
            assert world.manager.own.subnet == OWN
            assert world.manager.seconds_left() is None
            version, created = world.manager.own.version, world.manager.own.created
            await asyncio.sleep(10 * LEASE_TTL)
            assert await world.entries() == {OWN_NAME: KeyValue(OWN_NAME, OURS, None, version, created)}

    play(scenario)


def test_a_lease_that_no_longer_fits_the_config_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("10.1.7.0-24", OURS, 86400)
        await world.acquire(OWN)
        assert set(await world.entries()) == {OWN_NAME}

    play(scenario)
    assert caplog.messages == [
        "Found lease (10.1.7.0/24) for current IP (172.17.8.101) but not compatible with current config, deleting",
        "Picking subnet in range 11.0.1.0 ... 11.0.255.0",
        "Subnet lease acquired: 11.0.59.0/24",
    ]


def test_a_reservation_that_does_not_fit_the_config_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        reserved = world.registry.put_raw("10.1.7.0-24", OURS, None)
        await world.acquire(OWN)
        assert (await world.entries()).keys() == {"10.1.7.0-24", OWN_NAME}
        assert (await world.entries())["10.1.7.0-24"] == reserved

    play(scenario)
    assert caplog.messages[0] == (
        "Found lease (10.1.7.0/24) for current IP (172.17.8.101) but not compatible with current config,"
        " leaving the reservation alone"
    )


def test_of_two_leases_with_our_public_ip_the_one_that_fits_is_used() -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("10.1.7.0-24", OURS, 86400)
        world.registry.put_raw("11.0.77.0-24", OURS, 86400)
        assert (await world.acquire()).subnet == IPv4Network("11.0.77.0/24")
        assert set(await world.entries()) == {"11.0.77.0-24"}

    play(scenario)


def test_the_subnet_of_the_last_run_is_taken_if_nobody_has_it() -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.60.0-24", B, 86400)
        assert (await world.acquire(OWN)).subnet == OWN

    play(scenario)


def test_the_subnet_of_the_last_run_is_left_to_whoever_has_it_now() -> None:
    async def scenario(world: World) -> None:
        theirs = world.registry.put_raw(OWN_NAME, B, 86400)
        own = await world.acquire(OWN)
        assert own.subnet != OWN
        assert (await world.entries())[OWN_NAME] == theirs

    play(scenario)


def test_malformed_entries_hinder_nobody() -> None:
    async def scenario(world: World) -> None:
        for name, value in [("rubbish", "x"), ("11.0.1.0-24", "{}"), ("11.0.2.0-99", OURS), ("11.0.3.5-24", B)]:
            world.registry.put_raw(name, value, 86400)
        assert (await world.acquire(OWN)).subnet == OWN

    play(scenario)


class Racing(FakeRegistry):
    """Somebody else is faster with each of the first fifteen creates."""

    races = 15

    async def create(self, name: str, value: str, lease_ttl: int) -> KeyValue:
        if self.races:
            self.races -= 1
            self.put_raw(name, f'{{"PublicIP":"172.17.9.{self.races}"}}', lease_ttl)
        return await super().create(name, value, lease_ttl)


def test_losing_the_race_many_times_is_normal(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        own = await world.acquire(OWN)
        entries = await world.entries()
        assert len(entries) == 16
        assert [entry.value for entry in entries.values()].count(OURS) == 1
        assert entries[f"{own.subnet.network_address}-24"].value == OURS
        assert 0 < world.now() <= 15

    play(scenario, Racing)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    assert sum(message.startswith("Subnet lease acquired") for message in caplog.messages) == 1


class Changing(FakeRegistry):
    """The first three times that an entry is to be updated or deleted, somebody changes it just before."""

    races = 3

    def interfere(self, name: str) -> None:
        self.put_raw(name, OURS, 500)

    async def compare_and_swap(self, name: str, value: str, lease_ttl: int | None, version: int) -> KeyValue:
        if self.races:
            self.races -= 1
            self.interfere(name)
        return await super().compare_and_swap(name, value, lease_ttl, version)

    async def compare_and_delete(self, name: str, version: int) -> None:
        if self.races:
            self.races -= 1
            self.interfere(name)
        await super().compare_and_delete(name, version)


class Deleting(Changing):
    races = 1

    def interfere(self, name: str) -> None:
        self.delete_raw(name)


@pytest.mark.parametrize(("registry_class", "subnet"), [(Changing, "11.0.77.0/24"), (Deleting, "11.0.59.0/24")])
def test_a_lease_that_changes_while_it_is_taken_over_is_read_again(
    registry_class: type[FakeRegistry], subnet: str
) -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.77.0-24", OURS, 500)
        own = await world.acquire(OWN)
        assert own.subnet == IPv4Network(subnet)
        [entry] = (await world.entries()).values()
        assert Lease.from_entry(entry) == own

    play(scenario, registry_class)


@pytest.mark.parametrize("registry_class", [Changing, Deleting])
def test_a_lease_that_changes_while_it_is_given_up_is_read_again(registry_class: type[FakeRegistry]) -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("10.1.7.0-24", OURS, 500)
        await world.acquire(OWN)
        assert set(await world.entries()) == {OWN_NAME}

    play(scenario, registry_class)


def test_out_of_subnets_is_said_once_and_waited_out(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        for name, value in [("11.0.0.64-26", B), ("11.0.0.128-26", C), ("11.0.0.192-26", D)]:
            world.registry.put_raw(name, value, 86400)
        acquiring = asyncio.create_task(world.acquire(config=SMALL))
        await asyncio.sleep(600)
        world.registry.delete_raw("11.0.0.128-26")
        assert (await acquiring).subnet == IPv4Network("11.0.0.128/26")
        assert world.now() <= 600 + LONGEST_PAUSE

    play(scenario)
    assert [message for message in caplog.messages if not message.startswith("Picking")] == [
        "Failed to acquire subnet: out of subnets: no /26 is free in the range 11.0.0.64 ... 11.0.0.192,"
        " there are 3 leases",
        "Subnet lease acquired: 11.0.0.128/26",
    ]


class Directories(FakeRegistry):
    """Some keys are directories: they are in no snapshot, and a create is refused."""

    names = frozenset({OWN_NAME, "11.0.0.64-26", "11.0.0.192-26"})

    async def create(self, name: str, value: str, lease_ttl: int) -> KeyValue:
        if name in self.names:
            raise KeyExists(f"{name}: key already exists")
        return await super().create(name, value, lease_ttl)


@pytest.mark.parametrize(("config", "previous"), [(CONFIG, OWN), (SMALL, IPv4Network("11.0.0.192/26")), (SMALL, None)])
def test_a_directory_where_a_lease_would_be_keeps_no_host_from_another_subnet(
    config: NetworkConfig, previous: IPv4Network | None
) -> None:
    async def scenario(world: World) -> None:
        async with asyncio.timeout(10):
            own = await world.acquire(previous, config)
        assert set(await world.entries()) == {f"{own.subnet.network_address}-{own.subnet.prefixlen}"}

    play(scenario, Directories)


def test_a_lost_reply_to_our_create_leads_to_one_lease() -> None:
    async def scenario(world: World) -> None:
        world.registry.lose_reply_of_next_write()
        own = await world.acquire()
        assert set(await world.entries()) == {f"{own.subnet.network_address}-24"}

    play(scenario)


# Renewing


def test_the_lease_is_renewed_an_hour_before_it_ends_again_and_again(caplog: pytest.LogCaptureFixture) -> None:
    """Or up to six minutes earlier, so that hosts which started together don't renew together."""

    async def scenario(world: World) -> None:
        async with world.running():
            for day in range(1, 4):
                version = world.manager.own.version
                await asyncio.sleep((world.manager.seconds_left() or 0) - 1.1 * RENEW_MARGIN - 1)
                assert world.manager.own.version == version
                await asyncio.sleep(0.1 * RENEW_MARGIN + 1)
                assert world.manager.own.version == version + 1, f"day {day}"
                assert LEASE_TTL - 0.1 * RENEW_MARGIN - 1 <= (world.manager.seconds_left() or 0) <= LEASE_TTL
                [entry] = (await world.entries()).values()
                assert (entry.value, entry.version) == (OURS, world.manager.own.version)

    play(scenario)
    renewals = [message for message in caplog.messages if "renew" in message]
    assert len(renewals) == 3
    for message, day in zip(renewals, (24, 25, 26), strict=True):
        assert re.fullmatch(
            rf"Lease renewed, new expiration: 2026-11-{day} \d\d:\d\d:\d\d\.\d{{6}} \+0000 UTC", message
        )


def test_hosts_that_started_together_renew_at_different_times() -> None:
    renewed: list[float] = []

    class Watched(FakeRegistry):
        async def compare_and_swap(self, name: str, value: str, lease_ttl: int | None, version: int) -> KeyValue:
            renewed.append(asyncio.get_running_loop().time())
            return await super().compare_and_swap(name, value, lease_ttl, version)

    async def whole() -> None:
        clock = LoopClock()
        registry = Watched(clock.now)
        managers = [
            SubnetManager(registry, clock, random.Random(n), HostIdentity(IPv4Address(f"172.17.8.{n}")))
            for n in range(1, 21)
        ]
        for manager in managers:
            await manager.acquire(CONFIG, lambda _: LeaseAttrs(OUR_IP), None)
        tasks = [asyncio.create_task(manager.keep_lease()) for manager in managers]
        await asyncio.sleep(LEASE_TTL - RENEW_MARGIN + 1)
        for task in tasks:
            task.cancel()

    run(whole())
    assert len(renewed) == 20
    assert max(renewed) - min(renewed) > 0.05 * RENEW_MARGIN
    assert max(collections.Counter(int(at) for at in renewed).values()) <= 3


def test_the_terms_are_the_operators() -> None:
    async def scenario(world: World) -> None:
        manager = SubnetManager(world.registry, LoopClock(), random.Random(1), HostIdentity(OUR_IP), Terms(60, 20))
        await manager.acquire(CONFIG, lambda _: ATTRS, OWN)
        assert (await world.entries())[OWN_NAME].lease_ttl == 60
        renewal = asyncio.create_task(manager.keep_lease())
        await asyncio.sleep(60 - 1.1 * 20 - 1)
        assert manager.own.version == 1
        await asyncio.sleep(0.1 * 20 + 1)
        assert manager.own.version == 2
        assert (await world.entries())[OWN_NAME].lease_ttl in (58, 59, 60)
        renewal.cancel()

    play(scenario)


def test_the_time_of_day_plays_no_part() -> None:
    """Regression against the original, which renews too late, or without pause, where the clock is wrong."""

    class WrongClock(LoopClock):
        def wall(self) -> datetime:
            return BOOT + timedelta(days=random.Random(self.now()).randrange(-10_000, 10_000))

    async def scenario(world: World) -> None:
        manager = SubnetManager(world.registry, WrongClock(), random.Random(1), HostIdentity(OUR_IP))
        await manager.acquire(CONFIG, lambda _: ATTRS, OWN)
        renewal = asyncio.create_task(manager.keep_lease())
        await asyncio.sleep(10 * LEASE_TTL)
        assert manager.own.version in (11, 12)
        assert (await world.entries()).keys() == {OWN_NAME}
        renewal.cancel()

    play(scenario)


def test_a_lease_whose_store_gave_it_less_time_is_renewed_accordingly() -> None:
    async def scenario(world: World) -> None:
        async with world.running():
            version = world.registry.put_raw(OWN_NAME, OURS, 600).version
            await asyncio.sleep(300 - 32)
            assert world.manager.own.version == version
            assert world.manager.seconds_left() == pytest.approx(332, abs=1)
            await asyncio.sleep(33)
            assert world.manager.own.version == version + 1
            assert (await world.entries())[OWN_NAME].lease_ttl in range(LEASE_TTL - 33, LEASE_TTL + 1)

    play(scenario)


def test_renewal_never_overwrites_what_somebody_else_wrote() -> None:
    """Without a watch to tell us: the comparison alone has to stop it, and a look shows whose it is."""

    async def scenario(world: World) -> None:
        await world.acquire(OWN)
        renewal = asyncio.create_task(world.manager.keep_lease())
        theirs = world.registry.put_raw(OWN_NAME, B, None)
        with pytest.raises(LeaseLost, match=r"subnet 11\.0\.59\.0/24 is held by 172\.17\.8\.102 now, not by us"):
            await renewal
        assert world.now() <= LEASE_TTL - RENEW_MARGIN
        assert (await world.entries())[OWN_NAME] == theirs

    play(scenario)


def test_a_lease_that_is_gone_when_it_is_to_be_renewed_is_taken_back() -> None:
    """Likewise without a watch: the machine was suspended for a week, say."""

    async def scenario(world: World) -> None:
        await world.acquire(OWN)
        world.registry.delete_raw(OWN_NAME)
        renewal = asyncio.create_task(world.manager.keep_lease())
        await asyncio.sleep(LEASE_TTL)
        assert (await world.entries())[OWN_NAME].version == world.manager.own.version
        renewal.cancel()

    play(scenario)


def test_a_renewal_that_fails_is_tried_again_each_minute_and_the_time_left_stays_true(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(world: World) -> None:
        async with world.running():
            await asyncio.sleep(LEASE_TTL - 1.1 * RENEW_MARGIN - 10)
            left = world.manager.seconds_left() or 0
            world.registry.go_down()
            await asyncio.sleep(0.1 * RENEW_MARGIN + 1800)
            assert world.manager.seconds_left() == pytest.approx(left - 0.1 * RENEW_MARGIN - 1800, abs=1)
            world.registry.come_up()
            await asyncio.sleep(61)
            assert world.manager.seconds_left() == pytest.approx(LEASE_TTL, abs=61)

    play(scenario)
    tries = [message for message in caplog.messages if message.startswith("Error renewing lease")]
    assert tries == ["Error renewing lease (trying again in 1 min): the fake registry is down"]


def test_a_short_lease_is_renewed_again_in_time_for_it_to_live(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        manager = SubnetManager(world.registry, LoopClock(), random.Random(1), HostIdentity(OUR_IP), Terms(10))
        await manager.acquire(CONFIG, lambda _: ATTRS, OWN)
        renewal = asyncio.create_task(manager.keep_lease())
        await asyncio.sleep(4)
        world.registry.go_down()
        await asyncio.sleep(3)
        world.registry.come_up()
        await asyncio.sleep(2)
        assert (await world.entries())[OWN_NAME].lease_ttl in (8, 9, 10)
        renewal.cancel()

    play(scenario)
    tries = [message.partition(": ")[0] for message in caplog.messages if message.startswith("Error")]
    assert tries == ["Error renewing lease (trying again in 0.6 s)"]


def test_after_the_lease_ran_out_there_is_no_time_left() -> None:
    async def scenario(world: World) -> None:
        async with world.running():
            world.registry.go_down()
            await asyncio.sleep(LEASE_TTL + RENEW_MARGIN)
            assert world.manager.seconds_left() == 0

    play(scenario)


# The own lease and others


def test_a_deleted_lease_is_taken_back_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        async with world.running() as watch:
            await asyncio.sleep(1000)
            before = world.now()
            world.registry.delete_raw(OWN_NAME)
            await asyncio.sleep(1)
            [entry] = (await world.entries()).values()
            assert (entry.name, entry.value) == (OWN_NAME, OURS)
            assert entry.version == world.manager.own.version
            assert world.manager.seconds_left() == pytest.approx(LEASE_TTL - (world.now() - before), abs=1)
            assert not watch.done()

    play(scenario)
    assert caplog.messages[2:] == ["Own lease 11.0.59.0/24 was deleted or has expired; recreating the lease"]


def test_a_deleted_reservation_is_taken_back_as_a_lease() -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw(OWN_NAME, OURS, None)
        async with world.running():
            world.registry.delete_raw(OWN_NAME)
            await asyncio.sleep(1)
            assert (await world.entries())[OWN_NAME].lease_ttl is not None
            assert world.manager.seconds_left() == pytest.approx(LEASE_TTL, abs=1)

    play(scenario)


def test_a_lease_that_expired_while_the_store_was_away_is_taken_back(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        async with world.running():
            world.registry.go_down()
            await asyncio.sleep(LEASE_TTL + RENEW_MARGIN)
            world.registry.come_up()
            await asyncio.sleep(2)
            assert (await world.entries())[OWN_NAME].version == world.manager.own.version

    play(scenario)
    assert "Own lease 11.0.59.0/24 was deleted or has expired; recreating the lease" in caplog.messages


@pytest.mark.parametrize("holder_ttl", [86400, None])
def test_a_lease_that_somebody_else_holds_makes_us_leave(holder_ttl: int | None) -> None:
    async def scenario(world: World) -> None:
        async with world.running() as watch:
            theirs = world.registry.put_raw(OWN_NAME, B, holder_ttl)
            await asyncio.sleep(1)
            with pytest.raises(LeaseLost) as caught:
                await watch
            assert str(caught.value) == "subnet 11.0.59.0/24 is held by 172.17.8.102 now, not by us (172.17.8.101)"
            assert await world.entries() == {
                OWN_NAME: KeyValue(OWN_NAME, B, holder_ttl and holder_ttl - 1, theirs.version, theirs.created)
            }

    play(scenario)


def test_a_lease_that_was_deleted_and_taken_by_somebody_else_makes_us_leave() -> None:
    async def scenario(world: World) -> None:
        async with world.running() as watch:
            world.registry.delete_raw(OWN_NAME)
            theirs = world.registry.put_raw(OWN_NAME, B, 86400)
            await asyncio.sleep(0.5)
            with pytest.raises(LeaseLost, match=r"172\.17\.8\.102"):
                await watch
            assert (await world.entries())[OWN_NAME].version == theirs.version

    play(scenario)


def test_a_lease_that_somebody_else_took_while_the_store_was_away_makes_us_leave() -> None:
    async def scenario(world: World) -> None:
        async with world.running() as watch:
            world.registry.go_down()
            await asyncio.sleep(5)
            world.registry.put_raw(OWN_NAME, B, 86400)
            world.registry.come_up()
            await asyncio.sleep(2)
            with pytest.raises(LeaseLost, match=r"172\.17\.8\.102"):
                await watch

    play(scenario)


# Watching


def test_other_hosts_are_told_as_they_come_change_and_go(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.101.0-24", B, 86400)
        async with world.running():
            world.registry.put_raw("11.0.55.0-24", C, 86400)
            await asyncio.sleep(1)
            world.registry.put_raw("11.0.55.0-24", C, 86400)
            world.registry.put_raw("11.0.101.0-24", D, 86400)
            await asyncio.sleep(1)
            world.registry.delete_raw("11.0.55.0-24")
            await asyncio.sleep(MAX_GRACE_SECONDS - 1)
            assert len(world.told) == 3
            await asyncio.sleep(2)
            assert summary(world.told) == [
                ("11.0.101.0/24", "172.17.8.102"),
                ("11.0.55.0/24", "172.17.8.103"),
                ("11.0.101.0/24", "172.17.8.104"),
                ("11.0.55.0/24", None),
            ]

    play(scenario)
    assert caplog.messages[2:] == []


def test_a_host_that_stays_away_for_a_day_is_gone() -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.101.0-24", B, 86400)
        async with world.running():
            await asyncio.sleep(86399 + MAX_GRACE_SECONDS)
            assert len(world.told) == 1
            await asyncio.sleep(3)
            assert summary(world.told) == [("11.0.101.0/24", "172.17.8.102"), ("11.0.101.0/24", None)]

    play(scenario)


def test_a_host_that_takes_its_lease_back_was_never_gone(caplog: pytest.LogCaptureFixture) -> None:
    """All leases run out together when the store was away for longer than they last; no packet may be lost by that."""

    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.101.0-24", B, 100)
        async with world.running():
            for _ in range(3):
                world.registry.delete_raw("11.0.101.0-24")
                await asyncio.sleep(MAX_GRACE_SECONDS - 1)
                world.registry.put_raw("11.0.101.0-24", B, 100)
                await asyncio.sleep(MAX_GRACE_SECONDS - 1)
            assert summary(world.told) == [("11.0.101.0/24", "172.17.8.102")]
            world.registry.delete_raw("11.0.101.0-24")
            world.registry.put_raw("11.0.101.0-24", C, 100)
            await asyncio.sleep(1)
            assert summary(world.told[1:]) == [("11.0.101.0/24", "172.17.8.103")]

    play(scenario)


def test_nobody_is_forgotten_while_the_store_is_silent() -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.101.0-24", B, None)
        async with world.running():
            world.registry.delete_raw("11.0.101.0-24")
            await asyncio.sleep(1)
            world.registry.go_down()
            await asyncio.sleep(10_000)
            assert len(world.told) == 1
            world.registry.put_raw("11.0.101.0-24", B, None)
            world.registry.come_up()
            await asyncio.sleep(100)
            assert len(world.told) == 1

    play(scenario)


def test_with_short_leases_the_grace_is_as_short() -> None:
    async def scenario(world: World) -> None:
        manager = SubnetManager(world.registry, LoopClock(), random.Random(1), HostIdentity(OUR_IP), Terms(10))
        await manager.acquire(CONFIG, lambda _: ATTRS, OWN)
        world.registry.put_raw("11.0.101.0-24", B, None)
        watch = asyncio.create_task(manager.watch(world.apply))
        await asyncio.sleep(1)
        world.registry.delete_raw("11.0.101.0-24")
        await asyncio.sleep(9)
        assert len(world.told) == 1
        await asyncio.sleep(2)
        assert len(world.told) == 2
        watch.cancel()

    play(scenario)


def test_after_the_history_is_gone_only_differences_of_value_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(world: World) -> None:
        for name, value in [("11.0.101.0-24", B), ("11.0.55.0-24", C), ("11.0.77.0-24", D)]:
            world.registry.put_raw(name, value, None)
        async with world.running():
            world.told.clear()
            # All within one moment, so that the watch is asked when it is too late.
            world.registry.put_raw("11.0.101.0-24", '{"PublicIP":"172.17.8.105"}', None)
            world.registry.delete_raw("11.0.77.0-24")
            for _ in range(HISTORY_LENGTH):
                world.registry.put_raw("11.0.55.0-24", C, None)
            await asyncio.sleep(1)
            assert summary(world.told) == [("11.0.101.0/24", "172.17.8.105")]
            world.registry.put_raw("11.0.78.0-24", D, None)
            await asyncio.sleep(MAX_GRACE_SECONDS + 1)
            assert summary(world.told[1:]) == [("11.0.78.0/24", "172.17.8.104"), ("11.0.77.0/24", None)]

    play(scenario)
    assert caplog.messages[2:] == []


def test_when_all_subnets_are_removed_the_own_one_comes_back() -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.101.0-24", B, None)
        async with world.running():
            world.registry.remove_subnets()
            await asyncio.sleep(1)
            assert set(await world.entries()) == {OWN_NAME}
            await asyncio.sleep(MAX_GRACE_SECONDS)
            assert summary(world.told) == [("11.0.101.0/24", "172.17.8.102"), ("11.0.101.0/24", None)]

    play(scenario)


def test_malformed_entries_are_said_once_and_the_watch_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("rubbish", "x", None)
        async with world.running():
            world.registry.put_raw("11.0.7.0-24", "{}", None)
            world.registry.put_raw("11.0.101.0-24", B, None)
            await asyncio.sleep(3 * QUIET_SECONDS)
            world.registry.put_raw("11.0.7.0-24", "{}", None)
            world.registry.put_raw("11.0.55.0-24", C, None)
            await asyncio.sleep(1)
            assert summary(world.told) == [("11.0.101.0/24", "172.17.8.102"), ("11.0.55.0/24", "172.17.8.103")]

    play(scenario)
    assert caplog.messages[2:] == [
        "Ignoring lease rubbish: no subnet key such as 10.1.7.0-24",
        "Ignoring lease 11.0.7.0-24: no PublicIP",
    ]


class Deaf(FakeRegistry):
    """A watch of it hears nothing; snapshots are right."""

    async def watch(self, cursor: int, timeout: float) -> Changes:
        await asyncio.sleep(timeout)
        return Changes((), cursor)


def test_a_watch_that_hears_nothing_lists_again() -> None:
    async def scenario(world: World) -> None:
        async with world.running():
            world.registry.put_raw("11.0.101.0-24", B, None)
            await asyncio.sleep(0.75 * QUIET_SECONDS - 1)
            assert world.told == []
            await asyncio.sleep(0.25 * QUIET_SECONDS + 2)
            assert summary(world.told) == [("11.0.101.0/24", "172.17.8.102")]
            world.registry.delete_raw("11.0.101.0-24")
            await asyncio.sleep(QUIET_SECONDS + MAX_GRACE_SECONDS + 1)
            assert summary(world.told[1:]) == [("11.0.101.0/24", None)]

    play(scenario, Deaf)


class Counting(FakeRegistry):
    snapshots = 0

    async def snapshot(self, is_wanted: Callable[[str], bool] = all_names) -> Snapshot:
        self.snapshots += 1
        return await super().snapshot(is_wanted)


def test_a_busy_watch_does_not_list_again() -> None:
    async def scenario(world: World) -> None:
        assert isinstance(world.registry, Counting)
        async with world.running():
            before = world.registry.snapshots
            for _ in range(20):
                await asyncio.sleep(QUIET_SECONDS / 2)
                world.registry.put_raw("11.0.101.0-24", B, None)
            assert world.registry.snapshots == before

    play(scenario, Counting)


class OfPolls(Counting):
    """A store whose watches are single polls, between which hundreds of changes are made elsewhere."""

    async def watch(self, cursor: int, timeout: float) -> Changes:
        changes = await super().watch(cursor, timeout)
        for _ in range(HISTORY_LENGTH + 1):
            self.set_config(TEXT)
        return changes


def test_changes_elsewhere_cost_a_list_a_minute_and_no_line(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        assert isinstance(world.registry, OfPolls)
        async with world.running():
            before = world.registry.snapshots
            await asyncio.sleep(600)
            assert world.registry.snapshots - before in range(9, 13)
            world.registry.put_raw("11.0.101.0-24", B, None)
            await asyncio.sleep(LONGEST_PAUSE)
            assert summary(world.told) == [("11.0.101.0/24", "172.17.8.102")], "seen at once, between two lists"

    play(scenario, OfPolls)
    assert caplog.messages[2:] == []


def test_an_overrun_in_which_leases_have_changed_is_listed_at_once() -> None:
    async def scenario(world: World) -> None:
        async with world.running():
            for number in range(5):
                world.registry.put_raw(f"11.0.{100 + number}.0-24", B, None)
                for _ in range(HISTORY_LENGTH + 1):
                    world.registry.put_raw("11.0.99.0-24", C, None)
                await asyncio.sleep(1)
                assert len({subnet for subnet, _ in summary(world.told)}) == number + 2

    play(scenario, Overrun)


class Overrun(FakeRegistry):
    """Each burst of changes outruns its history, whether a watch waits or not."""

    async def watch(self, cursor: int, timeout: float) -> Changes:
        await self._wait(self._clock() + timeout)
        return await super().watch(cursor, 0)


class Fleet(FakeRegistry):
    """Notes when it is asked."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.asked: list[float] = []

    async def read_config(self) -> str:
        self.asked.append(self._clock())
        return await super().read_config()


def pauses_of(seed: int) -> list[float]:
    """Between the tries of a host whose store is away for five minutes, and until the one that succeeds."""

    async def scenario() -> list[float]:
        clock = LoopClock()
        registry = Fleet(clock.now)
        registry.set_config(TEXT)
        registry.go_down()
        manager = SubnetManager(registry, clock, random.Random(seed), HostIdentity(OUR_IP))
        reading = asyncio.create_task(manager.read_config(accept_any))
        await asyncio.sleep(300)
        registry.come_up()
        await reading
        return [after - before for before, after in itertools.pairwise(registry.asked)]

    return run(scenario())


def test_retries_slow_down_to_a_limit_and_no_two_hosts_keep_step() -> None:
    hosts = [pauses_of(seed) for seed in range(20)]
    for pauses in hosts:
        assert FIRST_PAUSE / 2 <= pauses[0] <= FIRST_PAUSE
        assert all(LONGEST_PAUSE / 2 <= pause <= LONGEST_PAUSE for pause in pauses[4:])
    assert len({round(sum(pauses[:5]), 3) for pauses in hosts}) == 20
    assert pauses_of(7) == hosts[7], "the seed alone decides"


def test_an_outage_changes_no_route_and_each_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.101.0-24", B, 86400)
        async with world.running():
            for _ in range(2):
                world.registry.go_down()
                await asyncio.sleep(600)
                world.registry.come_up()
                await asyncio.sleep(2)
                world.registry.put_raw("11.0.55.0-24", C, 86400)
                await asyncio.sleep(2)
            assert summary(world.told) == [("11.0.101.0/24", "172.17.8.102"), ("11.0.55.0/24", "172.17.8.103")]

    play(scenario)
    assert caplog.messages[2:] == ["Watch subnets: the fake registry is down"] * 2


class Unwatchable(FakeRegistry):
    """Lists, and refuses to be watched."""

    async def watch(self, cursor: int, timeout: float) -> Changes:
        raise RegistryUnavailable("no watching here")


def test_a_store_that_can_only_be_listed_is_complained_about_once_and_followed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(world: World) -> None:
        async with world.running():
            await asyncio.sleep(60)
            world.registry.put_raw("11.0.101.0-24", B, None)
            await asyncio.sleep(2)
            assert summary(world.told) == [("11.0.101.0/24", "172.17.8.102")]

    play(scenario, Unwatchable)
    assert caplog.messages[2:] == ["Watch subnets: no watching here"]


class Leaderless(FakeRegistry):
    """Refuses creates while ``creates`` is false."""

    creates = True

    async def create(self, name: str, value: str, lease_ttl: int) -> KeyValue:
        if not self.creates:
            raise RegistryUnavailable("no leader")
        return await super().create(name, value, lease_ttl)


def test_taking_the_lease_back_goes_on_until_it_works_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        assert isinstance(world.registry, Leaderless)
        async with world.running():
            world.registry.creates = False
            world.registry.delete_raw(OWN_NAME)
            await asyncio.sleep(100)
            assert await world.entries() == {}
            world.registry.creates = True
            await asyncio.sleep(2)
            assert (await world.entries())[OWN_NAME].version == world.manager.own.version

    play(scenario, Leaderless)
    assert caplog.messages[2:] == [
        "Own lease 11.0.59.0/24 was deleted or has expired; recreating the lease",
        "Failed to recreate own lease: no leader",
    ]


def test_a_lost_reply_while_taking_the_lease_back_does_no_harm() -> None:
    async def scenario(world: World) -> None:
        async with world.running() as watch:
            world.registry.lose_reply_of_next_write()
            world.registry.delete_raw(OWN_NAME)
            await asyncio.sleep(3)
            [entry] = (await world.entries()).values()
            assert (entry.value, entry.version) == (OURS, world.manager.own.version)
            assert not watch.done()

    play(scenario)


def test_a_lost_reply_to_a_renewal_does_no_harm() -> None:
    async def scenario(world: World) -> None:
        async with world.running() as watch:
            await asyncio.sleep(LEASE_TTL - 1.1 * RENEW_MARGIN - 10)
            world.registry.lose_reply_of_next_write()
            await asyncio.sleep(0.1 * RENEW_MARGIN + 80)
            [entry] = (await world.entries()).values()
            assert entry.version == world.manager.own.version
            assert world.manager.seconds_left() == pytest.approx(LEASE_TTL, abs=0.1 * RENEW_MARGIN + 80)
            assert not watch.done()

    play(scenario)


# Two hosts with one public IP

FIRST, SECOND = "a-first", "b-second"


def signed(host_id: str, claim: bool = False) -> str:
    return LeaseAttrs(OUR_IP, host_id=host_id, claim=claim).encode()


class Twin(World):
    """One of two hosts that both are 172.17.8.101."""

    def __init__(self, registry: FakeRegistry, host_id: str) -> None:
        clock = LoopClock()
        self.now = clock.now
        self.registry = registry
        self.manager = SubnetManager(registry, clock, random.Random(host_id), HostIdentity(OUR_IP, host_id))
        self.told = []


def twins(scenario: Callable[[Twin, Twin], Awaitable[None]], first: str = FIRST, second: str = SECOND) -> None:
    async def whole() -> None:
        registry = FakeRegistry(LoopClock().now)
        await scenario(Twin(registry, first), Twin(registry, second))

    run(whole())


NOT_UNIQUE = (
    r"public IP 172\.17\.8\.101 is not unique: another host \({theirs}, we are {ours}\) leases 11\.0\.59\.0/24 with "
    r"it; give each its own by -iface or -public-ip"
)


@pytest.mark.parametrize(("first", "second"), [(FIRST, SECOND), (SECOND, FIRST)])
def test_a_newcomer_gives_up_when_the_holder_lives(first: str, second: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(host_identity: Twin, newcomer: Twin) -> None:
        async with host_identity.running() as watch:
            for _ in range(3):  # systemd starts it again and again
                with pytest.raises(LeaseLost, match=NOT_UNIQUE.format(theirs=first, ours=second)):
                    await newcomer.acquire()
            assert not watch.done()
            [entry] = (await host_identity.entries()).values()
            assert (entry.name, entry.value, entry.version) == (
                OWN_NAME,
                signed(first),
                host_identity.manager.own.version,
            )
            assert host_identity.told == []

    twins(scenario, first, second)
    assert (
        sum(re.fullmatch(NOT_UNIQUE.format(theirs=second, ours=first), line) is not None for line in caplog.messages)
        == 3
    )


def test_a_reinstalled_host_gets_its_subnet_after_a_short_wait(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(before: Twin, after: Twin) -> None:
        await before.acquire(OWN)
        start = after.now()
        assert (await after.acquire()).subnet == OWN
        assert after.now() - start == pytest.approx(CLAIM_SECONDS, abs=0.1)
        [entry] = (await after.entries()).values()
        assert (entry.value, entry.lease_ttl) == (signed(SECOND), LEASE_TTL)

    twins(scenario)
    assert (
        "Lease (11.0.59.0/24) may belong to a live host (host ID a-first); waiting 3 s for that host to object"
        in caplog.messages
    )


def test_a_claim_that_was_interrupted_is_made_again() -> None:
    """The store went away while the newcomer waited, so the holder could not answer."""

    async def scenario(host_identity: Twin, newcomer: Twin) -> None:
        async with host_identity.running():
            host_identity.registry.go_down()
            await asyncio.sleep(10)
            host_identity.registry.put_raw(OWN_NAME, signed(SECOND, claim=True), LEASE_TTL)
            claiming = asyncio.create_task(newcomer.acquire())
            host_identity.registry.come_up()
            with pytest.raises(LeaseLost, match="is not unique"):
                await claiming
            assert (await host_identity.entries())[OWN_NAME].value == signed(FIRST)

    twins(scenario)


def test_of_two_newcomers_at_the_same_moment_one_gets_the_subnet() -> None:
    async def scenario(one: Twin, other: Twin) -> None:
        async def start(twin: Twin) -> None:
            await twin.acquire(OWN)
            await asyncio.sleep(0.5)  # the device is made
            await twin.manager.watch(twin.apply)

        tasks = [asyncio.create_task(start(twin)) for twin in (one, other)]
        await asyncio.sleep(100)
        ended = [task.done() for task in tasks]
        assert sorted(ended) == [False, True]
        with pytest.raises(LeaseLost, match="is not unique"):
            await tasks[ended.index(True)]
        living = (one, other)[ended.index(False)]
        [entry] = (await living.entries()).values()
        assert entry.value == signed(living.manager._own.host_identity.host_id)
        tasks[ended.index(False)].cancel()

    twins(scenario)


@pytest.mark.parametrize(("first", "second"), [(FIRST, SECOND), (SECOND, FIRST)])
def test_of_two_newcomers_that_create_two_leases_one_stays(first: str, second: str) -> None:
    """At the same moment neither sees the other's, and each picks a subnet of its own."""

    async def scenario(one: Twin, other: Twin) -> None:
        async def start(twin: Twin, subnet: IPv4Network) -> None:
            await twin.acquire(subnet)
            await twin.manager.watch(twin.apply)

        twins = {FIRST: one, SECOND: other} if first == FIRST else {FIRST: other, SECOND: one}
        subnets = {FIRST: OWN, SECOND: IPv4Network("11.0.60.0/24")}
        tasks = {name: asyncio.create_task(start(twin, subnets[name])) for name, twin in twins.items()}
        await asyncio.sleep(10)
        assert not tasks[FIRST].done()
        with pytest.raises(LeaseLost, match="is not unique"):
            await tasks[SECOND]
        assert {name: entry.value for name, entry in (await one.entries()).items()} == {OWN_NAME: signed(FIRST)}
        with pytest.raises(LeaseLost, match="is not unique"):
            await twins[SECOND].acquire()
        tasks[FIRST].cancel()

    twins(scenario, first, second)


def test_a_lease_of_ours_does_not_hide_one_of_a_twin() -> None:
    async def scenario(host_identity: Twin, newcomer: Twin) -> None:
        async with host_identity.running() as watch:
            host_identity.registry.put_raw("11.0.60.0-24", signed(SECOND), LEASE_TTL)
            with pytest.raises(LeaseLost, match="is not unique"):
                await newcomer.acquire()
            assert not watch.done()

    twins(scenario)


def test_who_leaves_for_an_earlier_identity_gives_its_own_lease_back() -> None:
    """Or the holder's next start would have to ask whether that lease's host lives."""

    async def scenario(host_identity: Twin, _: Twin) -> None:
        async with host_identity.running() as watch:
            host_identity.registry.put_raw("11.0.60.0-24", signed(FIRST), LEASE_TTL)
            with pytest.raises(LeaseLost, match="is not unique"):
                await watch
            assert list(await host_identity.entries()) == ["11.0.60.0-24"]

    twins(scenario, SECOND, FIRST)


def test_dead_twins_leases_are_put_away() -> None:
    async def scenario(host: Twin, _: Twin) -> None:
        host.registry.put_raw("11.0.60.0-24", signed("dead"), 80000)
        host.registry.put_raw("11.0.61.0-24", signed("dead-too"), 80000)
        own = await host.acquire()
        assert {name: entry.value for name, entry in (await host.entries()).items()} == {"11.0.60.0-24": signed(FIRST)}
        assert str(own.subnet) == "11.0.60.0/24"

    twins(scenario)


def test_of_two_newcomers_on_a_dead_hosts_lease_one_gets_it() -> None:
    async def scenario(one: Twin, other: Twin) -> None:
        one.registry.put_raw(OWN_NAME, signed("dead"), 80000)
        results = await asyncio.gather(one.acquire(), other.acquire(), return_exceptions=True)
        assert sum(type(result) is LeaseLost for result in results) == 1
        [lease] = [result for result in results if isinstance(result, Lease)]
        [entry] = (await one.entries()).values()
        assert (lease.subnet, entry.value) == (OWN, signed(lease.attrs.host_id))

    twins(scenario)


@pytest.mark.parametrize(("ours", "stays"), [(FIRST, True), (SECOND, False)])
def test_of_two_that_both_hold_it_one_leaves(ours: str, stays: bool) -> None:
    """A holder was cut off from the store while a newcomer waited for its answer in vain."""
    theirs = FIRST if ours == SECOND else SECOND

    async def scenario(host_identity: Twin, _: Twin) -> None:
        async with host_identity.running() as watch:
            host_identity.registry.put_raw(OWN_NAME, signed(theirs), LEASE_TTL)
            await asyncio.sleep(1)
            assert watch.done() is not stays
            assert (await host_identity.entries())[OWN_NAME].value == signed(FIRST if stays else theirs)
            if not stays:
                with pytest.raises(LeaseLost, match=NOT_UNIQUE.format(theirs=theirs, ours=ours)):
                    await watch

    twins(scenario, ours, theirs)


def test_a_plain_flanneld_with_our_public_ip_is_said_and_overruled(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(host_identity: Twin, _: Twin) -> None:
        async with host_identity.running() as watch:
            host_identity.registry.put_raw(OWN_NAME, OURS, LEASE_TTL)
            await asyncio.sleep(1)
            assert not watch.done()
            assert (await host_identity.entries())[OWN_NAME].value == signed(FIRST)

    twins(scenario)
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "overwritten without a host ID, as by flanneld" in warning
    assert "172.17.8.101 is not unique" in warning


def test_a_lease_of_a_flanneld_before_us_is_taken_over_at_once() -> None:
    async def scenario(host: Twin, _: Twin) -> None:
        host.registry.put_raw(OWN_NAME, OURS, 80000)
        start = host.now()
        assert (await host.acquire()).subnet == OWN
        assert host.now() == start
        assert (await host.entries())[OWN_NAME].value == signed(FIRST)

    twins(scenario)


def test_a_host_without_identity_asks_nobody() -> None:
    async def scenario(host: Twin, _: Twin) -> None:
        host.registry.put_raw(OWN_NAME, signed(SECOND), 80000)
        start = host.now()
        assert (await host.acquire()).subnet == OWN
        assert host.now() == start

    twins(scenario, "")


def test_another_lease_with_our_public_ip_leads_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        async with world.running():
            world.registry.put_raw("11.0.77.0-24", OURS, 80000)
            world.registry.put_raw("11.0.78.0-24", B, 80000)
            await asyncio.sleep(1)
            world.registry.put_raw("11.0.78.0-24", OURS, 80000)
            await asyncio.sleep(1)
            assert summary(world.told) == [("11.0.78.0/24", "172.17.8.102"), ("11.0.78.0/24", None)]

    play(scenario)
    assert [line for line in caplog.messages if "Ignoring" in line] == [
        "Ignoring lease 11.0.77.0-24: it has our public IP",
        "Ignoring lease 11.0.78.0-24: it has our public IP",
    ]


# The config while we run


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


def test_a_config_that_changes_while_we_run_is_said_each_time(caplog: pytest.LogCaptureFixture) -> None:
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


def test_a_bad_config_of_any_kind_changes_nothing_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.registry.set_config(TEXT)
        await world.manager.read_config(accept_by_backend)
        await world.acquire(OWN)
        watching = asyncio.create_task(world.manager.watch_config(accept_by_backend))
        await asyncio.sleep(1)
        for bad in BAD_CONFIGS.values():
            world.registry.set_config(bad.text)
            await asyncio.sleep(CONFIG_SECONDS)
        assert not watching.done()
        watching.cancel()

    play(scenario)
    assert len(BAD_CONFIGS) >= 20
    assert caplog.messages[2:] == [
        f"Network config in etcd became invalid: {bad.message}; continuing with the config read at start"
        for bad in BAD_CONFIGS.values()
    ]


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


# The store goes back in time


def test_a_store_that_was_wiped_is_noticed_within_a_minute() -> None:
    async def scenario(world: World) -> None:
        for number in range(70, 100):
            world.registry.put_raw(f"11.0.{number}.0-24", B, None)
        async with world.running():
            world.registry.wipe()
            await asyncio.sleep(40)
            assert (await world.entries()).keys() == {OWN_NAME}
            world.registry.put_raw("11.0.200.0-24", C, 80000)
            await asyncio.sleep(1)
            assert summary(world.told)[-1] == ("11.0.200.0/24", "172.17.8.103")

    play(scenario)


def test_a_watch_that_is_far_behind_lists_again() -> None:
    """A store that tells changes one by one is listed once, however many there are."""

    class OneByOne(FakeRegistry):
        told, lists = 0, 0

        async def watch(self, cursor: int, timeout: float) -> Changes:
            changes, after, _ = await super().watch(cursor, timeout)
            self.told += bool(changes)
            return Changes(changes[:1], min(cursor + 1, after), after - min(cursor + 1, after))

        async def snapshot(self, is_wanted: Callable[[str], bool] = all_names) -> Snapshot:
            self.lists += 1
            return await super().snapshot(is_wanted)

    async def scenario(world: World) -> None:
        registry = world.registry
        assert isinstance(registry, OneByOne)
        async with world.running():
            registry.lists = registry.told = 0
            for number in range(70, 220):
                registry.put_raw(f"11.0.{number}.0-24", B, 80000)
            await asyncio.sleep(1)
            assert summary(world.told) == [(f"11.0.{number}.0/24", "172.17.8.102") for number in range(70, 220)]
            assert (registry.told, registry.lists) == (1, 1)

    play(scenario, OneByOne)


def test_a_watch_that_only_waits_makes_progress_and_one_that_hangs_does_not() -> None:
    class Hanging(FakeRegistry):
        async def watch(self, cursor: int, timeout: float) -> Changes:
            await asyncio.sleep(10000)
            raise AssertionError("far too late")

    async def waiting(world: World) -> None:
        async with world.running():
            for _ in range(10):
                await asyncio.sleep(100)
                assert world.manager.makes_progress()

    play(waiting)

    async def hanging(world: World) -> None:
        async with world.running():
            assert world.manager.makes_progress()
            await asyncio.sleep(200)
            assert not world.manager.makes_progress()

    play(hanging, Hanging)


def test_a_lease_that_cannot_be_taken_back_for_long_is_progress_too() -> None:
    """Or systemd would restart a host that forwards on, for an etcd that is away."""

    async def scenario(world: World) -> None:
        assert isinstance(world.registry, Leaderless)
        async with world.running():
            world.registry.creates = False
            world.registry.delete_raw(OWN_NAME)
            for _ in range(10):
                await asyncio.sleep(100)
                assert world.manager.makes_progress()

    play(scenario, Leaderless)


def test_a_misfit_of_a_twin_that_lives_is_left_to_it() -> None:
    """The config was changed while the twin ran; it acts upon that at its next start."""

    async def scenario(host_identity: Twin, newcomer: Twin) -> None:
        async with host_identity.running() as watch:
            with pytest.raises(LeaseLost, match="is not unique"):
                await newcomer.acquire(config=parse('{"Network":"12.0.0.0/16"}'))
            assert not watch.done()
            assert (await host_identity.entries())[OWN_NAME].value == signed(FIRST)

    twins(scenario)


# Leases that overlap ours


@pytest.mark.parametrize("holder_ttl", [86400, None])
@pytest.mark.parametrize("name", ["11.0.59.0-25", "11.0.56.0-21", "11.0.59.9-32"])
def test_an_overlapping_lease_that_was_created_earlier_makes_us_leave(name: str, holder_ttl: int | None) -> None:
    """It came between our look and our create; or ours was deleted, and taken back too late."""

    async def scenario(world: World) -> None:
        async with world.running() as watch:
            world.registry.delete_raw(OWN_NAME)
            world.registry.put_raw(name, B, holder_ttl)
            await asyncio.sleep(1)
            with pytest.raises(LeaseLost) as caught:
                await watch
            assert str(caught.value) == (
                f"our subnet 11.0.59.0/24 overlaps {name.replace('-', '/')}, which 172.17.8.102 leased earlier; the"
                " next start leases another one"
            )
            assert set(await world.entries()) == {name}  # or ours would be the earlier one when theirs is taken back

    play(scenario)


def test_a_reservation_that_an_earlier_lease_overlaps_stays_when_we_leave() -> None:
    async def scenario(world: World) -> None:
        async with world.running() as watch:
            world.registry.delete_raw(OWN_NAME)
            world.registry.put_raw("11.0.59.0-25", B, 86400)
            world.registry.put_raw(OWN_NAME, OURS, None)
            with pytest.raises(LeaseLost):
                await watch
            assert set(await world.entries()) == {OWN_NAME, "11.0.59.0-25"}

    play(scenario)


@pytest.mark.parametrize("name", ["11.0.59.0-25", "11.0.56.0-21", "11.0.0.0-16", "0.0.0.0-0"])
def test_an_overlapping_lease_that_was_created_later_changes_nothing_nor_does_one_of_no_network(name: str) -> None:
    async def scenario(world: World) -> None:
        if name in ("11.0.0.0-16", "0.0.0.0-0"):  # they do not keep us from a lease, either
            world.registry.put_raw(name, B, None)
        async with world.running() as watch:
            created = world.manager.own.created
            for value in (B, C):
                world.registry.put_raw(name, value, None)
                await asyncio.sleep(2 * LEASE_TTL)
            assert not watch.done()
            assert (await world.entries())[OWN_NAME].created == world.manager.own.created == created

    play(scenario)


def test_an_overlapping_lease_that_is_written_blindly_as_flanneld_does_is_a_later_one() -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.59.0-25", B, 86400)
        async with asyncio.timeout(10):
            await world.acquire(IPv4Network("11.0.60.0/24"))
        world.registry.put_raw("11.0.60.0-25", C, 86400)
        watch = asyncio.create_task(world.manager.watch(world.apply))
        await asyncio.sleep(10)
        assert not watch.done()
        watch.cancel()

    play(scenario)


@pytest.mark.parametrize("lease_ttl", [86400, None])
def test_a_lease_of_ours_that_an_earlier_one_overlaps_is_not_used_again(
    lease_ttl: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.59.128-25", B, None)
        world.registry.put_raw(OWN_NAME, OURS, lease_ttl)
        own = await world.acquire(OWN)
        assert not own.subnet.overlaps(OWN)
        assert (OWN_NAME in await world.entries()) == (lease_ttl is None)

    play(scenario)
    what = "deleting" if lease_ttl else "leaving the reservation alone"
    assert caplog.messages[0] == (
        "Found lease (11.0.59.0/24) for current IP (172.17.8.101) but it overlaps 11.0.59.128/25, which 172.17.8.102"
        f" leased earlier, {what}"
    )


def test_a_lease_of_ours_that_a_later_one_overlaps_is_used_again() -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw(OWN_NAME, OURS, 86400)
        world.registry.put_raw("11.0.59.128-25", B, None)
        assert (await world.acquire()).subnet == OWN

    play(scenario)


# What no subnet of ours may contain

ETCD = IPv4Address("11.0.77.9")


def around(*addresses: str) -> Surroundings:
    return surroundings(
        [IPv4Interface(address) for address in addresses], [IPv4Interface("11.0.59.1/24")], OUR_IP, [ETCD]
    )


@pytest.mark.parametrize("value", [OURS, '{"PublicIP":"172.17.8.101","HostID":"x"}'])
@pytest.mark.parametrize("lease_ttl", [86400, None])
def test_a_lease_of_ours_around_our_own_address_is_refused(value: str, lease_ttl: int | None) -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.5.0-24", value, lease_ttl)
        before = await world.entries()
        with pytest.raises(HostError, match=r"^our address 11.0.5.7 lies inside our own subnet 11.0.5.0/24, .*-iface"):
            await world.manager.acquire(CONFIG, lambda _: ATTRS, None, around("11.0.5.7/24"))
        assert await world.entries() == before

    play(scenario)


def test_so_is_the_subnet_of_the_last_run_around_it_but_not_of_another_network() -> None:
    async def scenario(world: World) -> None:
        with pytest.raises(HostError, match=r"^our address 11.0.59.1 lies inside our own subnet 11.0.59.0/24"):
            await world.manager.acquire(CONFIG, lambda _: ATTRS, OWN, around("11.0.59.1/24"))
        assert await world.entries() == {}
        await world.manager.acquire(CONFIG, lambda _: ATTRS, IPv4Network("11.1.59.0/24"), around("11.1.59.1/24"))

    play(scenario)


def test_a_lease_of_ours_around_etcd_is_given_up() -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.77.0-24", OURS, 86400)
        own = await world.manager.acquire(CONFIG, lambda _: ATTRS, IPv4Network("11.0.77.0/24"), around())
        assert ETCD not in own.subnet
        assert len(await world.entries()) == 1

    play(scenario)


def test_a_new_subnet_contains_no_host_and_overlaps_no_connected_network() -> None:
    """Of 11.0.0.64/26, .128 and .192 one is left: a host, etcd, or a network of this host is in the others."""

    async def scenario(world: World, connected: str, public_ip: str, left: str) -> None:
        world.registry.put_raw("11.9.0.0-24", f'{{"PublicIP":"{public_ip}"}}', None)
        near = surroundings([], [IPv4Interface(connected)], OUR_IP, [])
        assert (await world.manager.acquire(SMALL, lambda _: ATTRS, None, near)).subnet == IPv4Network(left)

    for connected, public_ip, left in (
        ("11.0.0.65/27", "11.0.0.200", "11.0.0.128/26"),
        ("11.0.0.129/32", "11.0.0.64", "11.0.0.192/26"),
        ("11.0.0.129/25", "172.17.8.102", "11.0.0.64/26"),
    ):
        play(functools.partial(scenario, connected=connected, public_ip=public_ip, left=left))


@pytest.mark.parametrize("connected", ["11.0.0.0/25", "11.0.0.64/30"])
def test_a_network_that_this_host_is_connected_to_is_named_when_nothing_is_left(
    connected: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        for name in ("11.0.0.128-26", "11.0.0.192-26"):
            world.registry.put_raw(name, B, None)
        near = surroundings([], [IPv4Interface(connected)], OUR_IP, [])
        acquiring = asyncio.create_task(world.manager.acquire(SMALL, lambda _: ATTRS, None, near))
        await asyncio.sleep(5)
        acquiring.cancel()

    play(scenario)
    assert caplog.messages == [
        "Failed to acquire subnet: out of subnets: no /26 is free in the range 11.0.0.64 ... 11.0.0.192, there are 2"
        f" leases, and this host is connected to {connected}"
    ]


def test_the_subnet_of_the_last_run_is_taken_again_though_the_bridge_is_connected_to_it() -> None:
    async def scenario(world: World) -> None:
        assert (await world.manager.acquire(CONFIG, lambda _: ATTRS, OWN, around())).subnet == OWN

    play(scenario)


def test_but_not_when_another_host_lives_in_it() -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.1.0-24", '{"PublicIP":"11.0.59.77"}', None)
        assert (await world.manager.acquire(CONFIG, lambda _: ATTRS, OWN, around())).subnet != OWN

    play(scenario)
