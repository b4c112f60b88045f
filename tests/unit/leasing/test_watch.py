"""How a host watches the leases of peers, through outages, overruns and a store that goes back in time."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable

import pytest
from support.fakes import HISTORY_LENGTH, FakeRegistry
from support.fakes_clock import LoopClock, run
from support.lease_world import (
    ATTRS,
    CONFIG,
    OUR_IP,
    OWN,
    OWN_NAME,
    TEXT,
    B,
    C,
    D,
    Leaderless,
    World,
    accept_any,
    play,
    summary,
)

from flannelpy.errors import RegistryUnavailable
from flannelpy.leasing.manager import MAX_GRACE_SECONDS, SubnetManager
from flannelpy.leasing.retry import FIRST_PAUSE, LONGEST_PAUSE
from flannelpy.registry.base import Changes, Schema, Snapshot, all_names
from flannelpy.subnet.lease import HostIdentity
from flannelpy.subnet.lease_policy import Terms


def test_new_changed_and_removed_peers_are_events(caplog: pytest.LogCaptureFixture) -> None:
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
            assert len(world.events) == 3
            await asyncio.sleep(2)
            assert summary(world.events) == [
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
            assert len(world.events) == 1
            await asyncio.sleep(3)
            assert summary(world.events) == [("11.0.101.0/24", "172.17.8.102"), ("11.0.101.0/24", None)]

    play(scenario)


def test_a_peer_that_recreates_its_lease_was_never_gone(caplog: pytest.LogCaptureFixture) -> None:
    """All leases run out together when the store was away for longer than they last; no packet may be lost by that."""

    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.101.0-24", B, 100)
        async with world.running():
            for _ in range(3):
                world.registry.delete_raw("11.0.101.0-24")
                await asyncio.sleep(MAX_GRACE_SECONDS - 1)
                world.registry.put_raw("11.0.101.0-24", B, 100)
                await asyncio.sleep(MAX_GRACE_SECONDS - 1)
            assert summary(world.events) == [("11.0.101.0/24", "172.17.8.102")]
            world.registry.delete_raw("11.0.101.0-24")
            world.registry.put_raw("11.0.101.0-24", C, 100)
            await asyncio.sleep(1)
            assert summary(world.events[1:]) == [("11.0.101.0/24", "172.17.8.103")]

    play(scenario)


def test_no_peer_is_removed_while_the_store_is_silent() -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.101.0-24", B, None)
        async with world.running():
            world.registry.delete_raw("11.0.101.0-24")
            await asyncio.sleep(1)
            world.registry.go_down()
            await asyncio.sleep(10_000)
            assert len(world.events) == 1
            world.registry.put_raw("11.0.101.0-24", B, None)
            world.registry.come_up()
            await asyncio.sleep(100)
            assert len(world.events) == 1

    play(scenario)


def test_a_peer_whose_grace_ends_in_an_outage_has_the_grace_again_to_recreate_its_lease() -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.101.0-24", B, None)
        async with world.running():
            world.registry.delete_raw("11.0.101.0-24")
            await asyncio.sleep(10)
            world.registry.go_down()
            await asyncio.sleep(3600)
            world.registry.come_up()
            await asyncio.sleep(50)
            assert len(world.events) == 1
            await asyncio.sleep(30)
            assert len(world.events) == 2

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
        assert len(world.events) == 1
        await asyncio.sleep(2)
        assert len(world.events) == 2
        watch.cancel()

    play(scenario)


def test_after_the_history_is_gone_only_differences_of_value_are_events(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(world: World) -> None:
        for name, value in [("11.0.101.0-24", B), ("11.0.55.0-24", C), ("11.0.77.0-24", D)]:
            world.registry.put_raw(name, value, None)
        async with world.running():
            world.events.clear()
            # All within one moment, so that the watch is asked when it is too late.
            world.registry.put_raw("11.0.101.0-24", '{"PublicIP":"172.17.8.105"}', None)
            world.registry.delete_raw("11.0.77.0-24")
            for _ in range(HISTORY_LENGTH):
                world.registry.put_raw("11.0.55.0-24", C, None)
            await asyncio.sleep(1)
            assert summary(world.events) == [("11.0.101.0/24", "172.17.8.105")]
            world.registry.put_raw("11.0.78.0-24", D, None)
            await asyncio.sleep(MAX_GRACE_SECONDS + 1)
            assert summary(world.events[1:]) == [("11.0.78.0/24", "172.17.8.104"), ("11.0.77.0/24", None)]

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
            assert summary(world.events) == [("11.0.101.0/24", "172.17.8.102"), ("11.0.101.0/24", None)]

    play(scenario)


def test_malformed_entries_are_logged_once_and_the_watch_continues(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("rubbish", "x", None)
        async with world.running():
            world.registry.put_raw("11.0.7.0-24", "{}", None)
            world.registry.put_raw("11.0.101.0-24", B, None)
            await asyncio.sleep(3 * world.registry.relist_seconds)
            world.registry.put_raw("11.0.7.0-24", "{}", None)
            world.registry.put_raw("11.0.55.0-24", C, None)
            await asyncio.sleep(1)
            assert summary(world.events) == [("11.0.101.0/24", "172.17.8.102"), ("11.0.55.0/24", "172.17.8.103")]

    play(scenario)
    assert caplog.messages[2:] == [
        "Ignoring lease rubbish: no subnet key such as 10.1.7.0-24",
        "Ignoring lease 11.0.7.0-24: no PublicIP",
    ]


def test_dual_stack_leases_are_logged_once_and_skipped(caplog: pytest.LogCaptureFixture) -> None:
    """Also the own subnet's: such a key is another one than ours."""

    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.7.0-24&fd00:0:0:7::-64", B, 86400)
        async with world.running():
            for _ in range(3):
                world.registry.put_raw("11.0.7.0-24&fd00:0:0:7::-64", B, 86400)
                await asyncio.sleep(2 * world.registry.relist_seconds)
            world.registry.put_raw("11.0.59.0-24&fd00::-64", B, 86400)
            world.registry.delete_raw("11.0.59.0-24&fd00::-64")
            await asyncio.sleep(1)
            assert world.events == []
            assert world.manager.own.version == (await world.entries())[OWN_NAME].version

    play(scenario)
    cause = "a dual-stack lease, which flannelpy does not route"
    assert caplog.messages[2:] == [
        f"Ignoring lease 11.0.7.0-24&fd00:0:0:7::-64: {cause}",
        f"Ignoring lease 11.0.59.0-24&fd00::-64: {cause}",
    ]


class Deaf(FakeRegistry):
    """A watch gets no events; snapshots are correct."""

    async def watch(self, cursor: int, timeout: float) -> Changes:
        await asyncio.sleep(timeout)
        return Changes((), cursor)


def test_a_watch_without_events_relists() -> None:
    async def scenario(world: World) -> None:
        async with world.running():
            world.registry.put_raw("11.0.101.0-24", B, None)
            await asyncio.sleep(0.75 * world.registry.relist_seconds - 1)
            assert world.events == []
            await asyncio.sleep(0.25 * world.registry.relist_seconds + 2)
            assert summary(world.events) == [("11.0.101.0/24", "172.17.8.102")]
            world.registry.delete_raw("11.0.101.0-24")
            await asyncio.sleep(world.registry.relist_seconds + MAX_GRACE_SECONDS + 1)
            assert summary(world.events[1:]) == [("11.0.101.0/24", None)]

    play(scenario, Deaf)


class Counting(FakeRegistry):
    snapshots = 0

    async def snapshot(self, is_wanted: Callable[[str], bool] = all_names) -> Snapshot:
        self.snapshots += 1
        return await super().snapshot(is_wanted)


def test_a_busy_watch_does_not_relist() -> None:
    async def scenario(world: World) -> None:
        assert isinstance(world.registry, Counting)
        async with world.running():
            before = world.registry.snapshots
            for _ in range(20):
                await asyncio.sleep(world.registry.relist_seconds / 2)
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


@pytest.mark.parametrize("schema", [Schema.V2], indirect=True)
def test_changes_elsewhere_cost_a_list_a_minute_and_no_line(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        assert isinstance(world.registry, OfPolls)
        async with world.running():
            before = world.registry.snapshots
            await asyncio.sleep(600)
            assert world.registry.snapshots - before in range(9, 13)
            world.registry.put_raw("11.0.101.0-24", B, None)
            await asyncio.sleep(LONGEST_PAUSE)
            assert summary(world.events) == [("11.0.101.0/24", "172.17.8.102")], "seen at once, between two lists"

    play(scenario, OfPolls)
    assert caplog.messages[2:] == []


@pytest.mark.parametrize("schema", [Schema.V2], indirect=True)
def test_an_overrun_in_which_leases_have_changed_is_listed_at_once() -> None:
    async def scenario(world: World) -> None:
        async with world.running():
            for number in range(5):
                world.registry.put_raw(f"11.0.{100 + number}.0-24", B, None)
                for _ in range(HISTORY_LENGTH + 1):
                    world.registry.put_raw("11.0.99.0-24", C, None)
                await asyncio.sleep(1)
                assert len({subnet for subnet, _ in summary(world.events)}) == number + 2

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


def test_an_outage_changes_no_route_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
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
            assert summary(world.events) == [("11.0.101.0/24", "172.17.8.102"), ("11.0.55.0/24", "172.17.8.103")]

    play(scenario)
    assert caplog.messages[2:] == ["Watch subnets: the fake registry is down"] * 2


class Unwatchable(FakeRegistry):
    """Lists, and refuses to be watched."""

    async def watch(self, cursor: int, timeout: float) -> Changes:
        raise RegistryUnavailable("no watching here")


def test_a_store_that_can_only_be_listed_is_logged_once_and_followed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(world: World) -> None:
        async with world.running():
            await asyncio.sleep(60)
            world.registry.put_raw("11.0.101.0-24", B, None)
            await asyncio.sleep(2)
            assert summary(world.events) == [("11.0.101.0/24", "172.17.8.102")]

    play(scenario, Unwatchable)
    assert caplog.messages[2:] == ["Watch subnets: no watching here"]


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
            assert summary(world.events)[-1] == ("11.0.200.0/24", "172.17.8.103")

    play(scenario)


def test_a_watch_that_is_far_behind_relists() -> None:
    """A store that reports changes one by one is listed once, for any number of changes."""

    class OneByOne(FakeRegistry):
        reports, lists = 0, 0

        async def watch(self, cursor: int, timeout: float) -> Changes:
            changes, after, _ = await super().watch(cursor, timeout)
            self.reports += bool(changes)
            return Changes(changes[:1], min(cursor + 1, after), after - min(cursor + 1, after))

        async def snapshot(self, is_wanted: Callable[[str], bool] = all_names) -> Snapshot:
            self.lists += 1
            return await super().snapshot(is_wanted)

    async def scenario(world: World) -> None:
        registry = world.registry
        assert isinstance(registry, OneByOne)
        async with world.running():
            registry.lists = registry.reports = 0
            for number in range(70, 220):
                registry.put_raw(f"11.0.{number}.0-24", B, 80000)
            await asyncio.sleep(1)
            assert summary(world.events) == [(f"11.0.{number}.0/24", "172.17.8.102") for number in range(70, 220)]
            assert (registry.reports, registry.lists) == (1, 1)

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
                assert world.manager.is_live()

    play(waiting)

    async def hanging(world: World) -> None:
        async with world.running():
            assert world.manager.is_live()
            await asyncio.sleep(200)
            assert not world.manager.is_live()

    play(hanging, Hanging)


def test_retries_of_the_recreation_count_as_progress() -> None:
    """Otherwise systemd would restart a host that keeps forwarding, because of an outage of etcd."""

    async def scenario(world: World) -> None:
        assert isinstance(world.registry, Leaderless)
        async with world.running():
            world.registry.creates = False
            world.registry.delete_raw(OWN_NAME)
            for _ in range(10):
                await asyncio.sleep(100)
                assert world.manager.is_live()

    play(scenario, Leaderless)
