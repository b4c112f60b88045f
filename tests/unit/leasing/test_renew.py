"""How a host renews its lease, on a clock that jumps: a day takes milliseconds."""

from __future__ import annotations

import asyncio
import collections
import random
import re
from datetime import datetime, timedelta
from ipaddress import IPv4Address
from math import inf

import pytest
from support.fakes import FakeRegistry
from support.fakes_clock import BOOT, LoopClock, run
from support.lease_world import (
    ATTRS,
    CONFIG,
    LEASE_TTL,
    OUR_IP,
    OURS,
    OWN,
    OWN_NAME,
    RENEW_MARGIN,
    B,
    World,
    play,
)

from flannelpy.errors import LeaseLost
from flannelpy.leasing.manager import SubnetManager
from flannelpy.registry.base import KeyValue, Schema
from flannelpy.subnet.lease import HostIdentity, LeaseAttrs
from flannelpy.subnet.lease_policy import Terms


@pytest.fixture
def versions(schema: Schema) -> int:
    """Return by how many versions a renewal changes the lease."""
    return 1 if schema is Schema.V2 else 0


def test_the_lease_is_renewed_an_hour_before_it_ends_again_and_again(
    versions: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Or up to six minutes earlier, so that hosts which started together don't renew together."""

    async def scenario(world: World) -> None:
        async with world.running():
            for day in range(1, 4):
                version = world.manager.own.version
                await asyncio.sleep((world.manager.report().seconds_left or 0) - 1.1 * RENEW_MARGIN - 1)
                assert world.manager.report().seconds_left == pytest.approx(1.1 * RENEW_MARGIN + 1, abs=1)
                await asyncio.sleep(0.1 * RENEW_MARGIN + 1)
                assert world.manager.own.version == version + versions, f"day {day}"
                assert LEASE_TTL - 0.1 * RENEW_MARGIN - 1 <= (world.manager.report().seconds_left or 0) <= LEASE_TTL
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
        async def renew(self, name: str, value: str, lease_ttl: int, version: int) -> KeyValue:
            renewed.append(asyncio.get_running_loop().time())
            return await super().renew(name, value, lease_ttl, version)

    async def whole() -> None:
        clock = LoopClock()
        registry = Watched(clock.now, World.schema)
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
        assert (await world.entries())[OWN_NAME].lifetime.seconds == 60
        renewal = asyncio.create_task(manager.keep_lease())
        await asyncio.sleep(60 - 1.1 * 20 - 1)
        assert (await world.entries())[OWN_NAME].lifetime.seconds in (22, 23, 24)
        await asyncio.sleep(0.1 * 20 + 1)
        assert (await world.entries())[OWN_NAME].lifetime.seconds in (58, 59, 60)
        renewal.cancel()

    play(scenario)


def test_the_time_of_day_plays_no_part(versions: int) -> None:
    """Regression against the original, which renews too late, or without pause, where the clock is wrong."""

    class WrongClock(LoopClock):
        def wall(self) -> datetime:
            return BOOT + timedelta(days=random.Random(self.now()).randrange(-10_000, 10_000))

    async def scenario(world: World) -> None:
        manager = SubnetManager(world.registry, WrongClock(), random.Random(1), HostIdentity(OUR_IP))
        await manager.acquire(CONFIG, lambda _: ATTRS, OWN)
        renewal = asyncio.create_task(manager.keep_lease())
        await asyncio.sleep(10 * LEASE_TTL)
        assert manager.own.version in (1 + 10 * versions, 1 + 11 * versions)
        assert (await world.entries()).keys() == {OWN_NAME}
        renewal.cancel()

    play(scenario)


@pytest.mark.parametrize("schema", [Schema.V2], indirect=True)
def test_a_lease_whose_store_gave_it_less_time_is_renewed_accordingly() -> None:
    async def scenario(world: World) -> None:
        async with world.running():
            version = world.registry.put_raw(OWN_NAME, OURS, 600).version
            await asyncio.sleep(300 - 32)
            assert world.manager.own.version == version
            assert world.manager.report().seconds_left == pytest.approx(332, abs=1)
            await asyncio.sleep(33)
            assert world.manager.own.version == version + 1
            assert (await world.entries())[OWN_NAME].lifetime.seconds in range(LEASE_TTL - 33, LEASE_TTL + 1)

    play(scenario)


@pytest.mark.parametrize("schema", [Schema.V3], indirect=True)
def test_a_lease_with_an_unknown_time_left_is_renewed_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """As after a write of our value by another client, of which the watch of etcd v3 does not tell the seconds."""

    async def scenario(world: World) -> None:
        async with world.running():
            await asyncio.sleep(3600)
            world.registry.put_raw(OWN_NAME, OURS, 3)
            await asyncio.sleep(2)
            [entry] = (await world.entries()).values()
            assert entry.lifetime.seconds in range(LEASE_TTL - 2, LEASE_TTL + 1)
            assert world.manager.report().seconds_left == pytest.approx(entry.lifetime.seconds, abs=1)

    play(scenario)
    assert caplog.messages[2:] == ["Lease renewed, new expiration: 2026-11-23 11:59:23.001000 +0000 UTC"]


@pytest.mark.parametrize("schema", [Schema.V3], indirect=True)
def test_no_watch_hears_of_a_renewal_in_etcd_v3() -> None:
    async def scenario(world: World) -> None:
        await world.acquire(OWN)
        cursor = (await world.registry.snapshot()).cursor
        renewal = asyncio.create_task(world.manager.keep_lease())
        assert (await world.registry.watch(cursor, 10 * LEASE_TTL)).changes == ()
        assert world.manager.own.version == (await world.entries())[OWN_NAME].version
        renewal.cancel()

    play(scenario)


class Granting(FakeRegistry):
    """Grants another time than the one that was asked for, as etcd v3 does for very short ones."""

    granted = 30

    async def create(self, name: str, value: str, lease_ttl: int) -> KeyValue:
        return await super().create(name, value, self.granted)

    async def renew(self, name: str, value: str, lease_ttl: int, version: int) -> KeyValue:
        return await super().renew(name, value, self.granted, version)


def test_the_time_that_the_store_granted_counts(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        manager = SubnetManager(world.registry, LoopClock(), random.Random(1), HostIdentity(OUR_IP), Terms(1))
        await manager.acquire(CONFIG, lambda _: ATTRS, OWN)
        renewal = asyncio.create_task(manager.keep_lease())
        await asyncio.sleep(12)
        assert manager.report().seconds_left == pytest.approx(18, abs=1)
        await asyncio.sleep(4)
        assert manager.report().seconds_left == pytest.approx(29, abs=2)
        renewal.cancel()

    play(scenario, Granting)
    [message] = [message for message in caplog.messages if "renew" in message]
    seconds = datetime.fromisoformat(message.partition(": ")[2].removesuffix(" +0000 UTC")) - BOOT.replace(tzinfo=None)
    assert seconds.total_seconds() == pytest.approx(13.5 + 30, abs=2)


@pytest.mark.parametrize("schema", [Schema.V3], indirect=True)
def test_a_change_of_etcds_leader_which_begins_each_lifetime_again_changes_nothing() -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.101.0-24", B, LEASE_TTL)
        async with world.running() as watch:
            version = world.manager.own.version
            for _ in range(5):
                await asyncio.sleep(LEASE_TTL / 3)
                world.registry.change_leader()
            assert world.manager.own.version == version
            assert len(world.events) == 1
            assert not watch.done()
            assert (world.manager.report().seconds_left or 0) > RENEW_MARGIN

    play(scenario)


def test_renewal_never_overwrites_the_write_of_a_peer() -> None:
    """There is no watch here: the comparison alone prevents the write, and reading back finds the holder."""

    async def scenario(world: World) -> None:
        await world.acquire(OWN)
        renewal = asyncio.create_task(world.manager.keep_lease())
        theirs = world.registry.put_raw(OWN_NAME, B, None)
        with pytest.raises(LeaseLost, match=r"subnet 11\.0\.59\.0/24 is held by 172\.17\.8\.102 now, not by us"):
            await renewal
        assert world.now() <= LEASE_TTL - RENEW_MARGIN
        assert (await world.entries())[OWN_NAME] == theirs

    play(scenario)


def test_a_renewal_writes_our_value_again_if_another_client_has_changed_it() -> None:
    async def scenario(world: World) -> None:
        async with world.running():
            world.registry.put_raw(OWN_NAME, OURS[:-1] + ',"BackendType":"x"}', LEASE_TTL)
            await asyncio.sleep(LEASE_TTL - RENEW_MARGIN)
            [entry] = (await world.entries()).values()
            assert (entry.value, entry.version) == (OURS, world.manager.own.version)

    play(scenario)


class Overtaken(FakeRegistry):
    """Its first reply to a renewal is so late that the lease has another version by then."""

    is_late = True

    async def renew(self, name: str, value: str, lease_ttl: int, version: int) -> KeyValue:
        renewed = await super().renew(name, value, lease_ttl, version)
        if self.is_late:
            self.is_late = False
            self.put_raw(name, value, lease_ttl)
            await asyncio.sleep(2)
        return renewed


class Slow(FakeRegistry):
    """Replies to a renewal after the watch has reported it."""

    async def renew(self, name: str, value: str, lease_ttl: int, version: int) -> KeyValue:
        renewed = await super().renew(name, value, lease_ttl, version)
        await asyncio.sleep(1)
        return renewed


@pytest.mark.parametrize("schema", [Schema.V3], indirect=True)
def test_a_renewal_that_the_watch_reports_before_its_reply_is_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        async with world.running():
            world.registry.put_raw(OWN_NAME, OURS, 600)
            await asyncio.sleep(100)

    play(scenario, Slow)
    assert len([message for message in caplog.messages if "Lease renewed" in message]) == 1


def test_a_late_reply_to_a_renewal_does_not_hide_what_the_watch_has_reported() -> None:
    async def scenario(world: World) -> None:
        async with world.running():
            await asyncio.sleep(LEASE_TTL - RENEW_MARGIN)
            assert not getattr(world.registry, "is_late", True)
            assert world.manager.own.version == (await world.entries())[OWN_NAME].version

    play(scenario, Overtaken)


def test_a_lease_that_is_gone_when_its_renewal_is_due_is_recreated() -> None:
    """There is no watch here either, as on a machine that was suspended for a week."""

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
            left = world.manager.report().seconds_left or 0
            world.registry.go_down()
            await asyncio.sleep(0.1 * RENEW_MARGIN + 1800)
            assert world.manager.report().seconds_left == pytest.approx(left - 0.1 * RENEW_MARGIN - 1800, abs=1)
            world.registry.come_up()
            await asyncio.sleep(61)
            assert world.manager.report().seconds_left == pytest.approx(LEASE_TTL, abs=61)

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
        assert (await world.entries())[OWN_NAME].lifetime.seconds in (8, 9, 10)
        renewal.cancel()

    play(scenario)
    tries = [message.partition(": ")[0] for message in caplog.messages if message.startswith("Error")]
    assert tries == ["Error renewing lease (trying again in 0.6 s)"]


def test_after_the_lease_ran_out_there_is_no_time_left() -> None:
    async def scenario(world: World) -> None:
        async with world.running():
            world.registry.go_down()
            await asyncio.sleep(LEASE_TTL + RENEW_MARGIN)
            assert world.manager.report().seconds_left == 0

    play(scenario)


def test_a_lost_reply_to_a_renewal_does_no_harm() -> None:
    async def scenario(world: World) -> None:
        async with world.running() as watch:
            await asyncio.sleep(LEASE_TTL - 1.1 * RENEW_MARGIN - 10)
            world.registry.lose_reply_of_next_write()
            await asyncio.sleep(0.1 * RENEW_MARGIN + 80)
            [entry] = (await world.entries()).values()
            assert entry.version == world.manager.own.version
            assert world.manager.report().seconds_left == pytest.approx(LEASE_TTL, abs=0.1 * RENEW_MARGIN + 80)
            assert not watch.done()

    play(scenario)


def test_the_report_of_the_lease_has_its_times_and_why_renewals_fail() -> None:
    async def scenario(world: World) -> None:
        async with world.running():
            first = world.manager.report()
            assert first.acquired_at == first.renewed_at == pytest.approx(BOOT.timestamp(), abs=10)
            assert (first.version, first.problem) == (world.manager.own.version, "")
            await asyncio.sleep(LEASE_TTL - 0.9 * RENEW_MARGIN)
            renewed = world.manager.report()
            assert renewed.acquired_at == first.acquired_at
            assert renewed.renewed_at > first.renewed_at + LEASE_TTL - 1.2 * RENEW_MARGIN
            world.registry.go_down()
            await asyncio.sleep(LEASE_TTL - 0.9 * RENEW_MARGIN)
            assert world.manager.report().problem
            world.registry.come_up()
            await asyncio.sleep(0.5 * RENEW_MARGIN)
            assert world.manager.report().problem == ""

    play(scenario)


def test_an_announced_datapath_is_written_at_once_and_kept_by_renewals() -> None:
    async def scenario(world: World) -> None:
        async with world.running():
            for in_kernel in (True, False, True):
                world.manager.announce(in_kernel=in_kernel)
                await asyncio.sleep(1)
                assert world.manager.own.attrs.in_kernel is in_kernel
                assert LeaseAttrs.decode((await world.entries())[OWN_NAME].value).in_kernel is in_kernel
            await asyncio.sleep(LEASE_TTL)
            assert LeaseAttrs.decode((await world.entries())[OWN_NAME].value).in_kernel
        assert not world.events

    play(scenario)


def test_the_last_announcement_is_written_when_the_store_is_back(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        async with world.running():
            world.registry.go_down()
            world.manager.announce(in_kernel=True)
            await asyncio.sleep(10)
            world.registry.come_up()
            await asyncio.sleep(10)
            assert LeaseAttrs.decode((await world.entries())[OWN_NAME].value).in_kernel

    play(scenario)
    assert [message for message in caplog.messages if "Failed to write own lease" in message]


def test_an_announcement_tells_since_when_the_store_has_it() -> None:
    async def scenario(world: World) -> None:
        async with world.running():
            assert await world.manager.announced() == inf
            world.registry.go_down()
            world.manager.announce(in_kernel=True)
            waiting = asyncio.create_task(world.manager.announced())
            await asyncio.sleep(60)
            assert not waiting.done()
            world.registry.come_up()
            assert await waiting < 1
            await asyncio.sleep(100)
            assert await world.manager.announced() == pytest.approx(100, abs=1)
            world.manager.announce(in_kernel=True)
            assert await world.manager.announced() == pytest.approx(100, abs=1)
            world.manager.announce(in_kernel=False)
            assert await world.manager.announced() < 1

    play(scenario)


def test_an_announcement_survives_a_write_by_another_program() -> None:
    async def scenario(world: World) -> None:
        async with world.running():
            world.manager.announce(in_kernel=True)
            world.registry.put_raw(OWN_NAME, OURS, LEASE_TTL)
            await asyncio.sleep(5)
            assert LeaseAttrs.decode((await world.entries())[OWN_NAME].value).in_kernel

    play(scenario)
