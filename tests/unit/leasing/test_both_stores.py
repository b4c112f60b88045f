"""A host whose lease is in etcd v3 and, while v2 has a config, in v2 as well, on two fake stores."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.fakes import FakeRegistry
from support.fakes_clock import LoopClock, run

from flannelpy import cli
from flannelpy.errors import (
    ApiSwitchedOff,
    CompareFailed,
    ConfigError,
    KeyExists,
    KeyNotFound,
    LeaseLost,
    RegistryUnavailable,
)
from flannelpy.leasing import host_registry, second_lease
from flannelpy.leasing.both_stores import BothStores
from flannelpy.leasing.manager import SubnetManager
from flannelpy.leasing.retry import LONGEST_PAUSE_OF_WRITES
from flannelpy.leasing.second_lease import CONFIG_SECONDS, LOOK_AGAIN_SECONDS
from flannelpy.registry.base import KeyValue, Schema
from flannelpy.registry.etcd_v2 import EtcdV2Registry
from flannelpy.registry.etcd_v3 import EtcdV3Registry
from flannelpy.subnet.config import parse
from flannelpy.subnet.copied import MARK, copy_of, original
from flannelpy.subnet.lease import HostIdentity, Lease, LeaseAttrs
from flannelpy.subnet.lease_policy import Terms

TEXT = '{"Network":"11.0.0.0/16"}'
CONFIG = parse(TEXT)
OUR_IP, OTHER_IP = IPv4Address("172.17.8.101"), IPv4Address("172.17.8.102")
US = HostIdentity(OUR_IP, "host1")
ATTRS = LeaseAttrs(OUR_IP)
OWN, NAME = IPv4Network("11.0.59.0/24"), "11.0.59.0-24"
TERMS = Terms(lease_ttl=600, renew_margin=300)
OURS = '{"PublicIP":"172.17.8.101","PublicIPv6":null,"HostID":"host1"}'
OURS_BEFORE = '{"PublicIP":"172.17.8.101","HostID":"host1"}'
FLANNELDS = '{"PublicIP":"172.17.8.101"}'
OTHERS = '{"PublicIP":"172.17.8.102","HostID":"host2"}'


@pytest.fixture(autouse=True)
def schema() -> None:
    """Replace the fixture by which other tests run over either store: these have both."""


class Store(FakeRegistry):
    """Counts the writes of hosts; ``undo``, if there is one, acts after each.  Grants ``shortest`` seconds at least."""

    writes = 0
    shortest = 0
    undo: Callable[[str], None] | None = None

    def _extend(self, name: str, lease_ttl: int) -> None:
        super()._extend(name, max(lease_ttl, self.shortest))

    def _reply(self) -> None:
        super()._reply()
        self.writes += 1
        if self.undo:
            asyncio.get_running_loop().call_soon(self.undo, NAME)


class V2(Store):
    """Counts its calls; ``is_off``: answers 404 to all of them, ``is_certain``: at each endpoint.

    ``is_directory``: there is one in the place of the config, ``is_blocked``: in that of each lease.
    """

    is_off = False
    is_certain = True
    is_directory = False
    is_blocked = False
    calls = 0

    async def read_config(self) -> str:
        if self.is_directory:
            raise ConfigError("/coreos.com/network/config is a directory instead of the network config")
        return await super().read_config()

    async def create(self, name: str, value: str, lease_ttl: int) -> KeyValue:
        if self.is_blocked:
            raise KeyExists(f"{name}: key already exists")
        return await super().create(name, value, lease_ttl)

    def _begin(self) -> None:
        self.calls += 1
        if self.is_off:
            raise ApiSwitchedOff("the v2 API is switched off", self.is_certain)
        super()._begin()


class World:
    """The host 172.17.8.101 on two stores, of which v2 has a config."""

    def __init__(self) -> None:
        clock = LoopClock()
        self.v2, self.v3 = V2(clock.now), Store(clock.now, Schema.V3)
        self.v2.set_config(TEXT)
        self.v3.set_config(TEXT)
        self.use("3")

    def use(self, api: str) -> None:
        """Open the stores by -etcd-api."""
        stores = {EtcdV2Registry: self.v2, EtcdV3Registry: self.v3}
        with mock.patch.object(host_registry, "open_as", lambda kind, *_: stores[kind]):
            self.registry = host_registry.connect_host(cli.parse([f"-etcd-api={api}"]), "", US)
        self.manager = SubnetManager(self.registry, LoopClock(), random.Random(1), US, TERMS)

    async def acquire(self, previous: IPv4Network | None = None) -> Lease:
        return await self.manager.acquire(CONFIG, lambda _: ATTRS, previous)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """With the own lease 11.0.59.0/24; yields the watch."""
        await self.acquire(OWN)
        watch = asyncio.create_task(self.manager.watch(self._apply))
        renewal = asyncio.create_task(self.manager.keep_lease())
        await asyncio.sleep(0.1)
        yield watch
        for task in (watch, renewal):
            task.cancel()
        await asyncio.gather(watch, renewal, return_exceptions=True)

    async def _apply(self, _: object) -> None:
        pass


def play(scenario: Callable[[World], Awaitable[None]]) -> None:
    async def whole() -> None:
        world = World()
        try:
            await scenario(world)
        finally:
            await world.registry.close()

    run(whole())


async def entries(store: FakeRegistry) -> dict[str, KeyValue]:
    await store.snapshot()  # removes what has expired
    return {entry.name: entry for entry in store.stored()}


async def are_reserved(world: World) -> list[bool]:
    """Whether the lease in each store is a reservation."""
    return [not (await entries(store))[NAME].lifetime.expires for store in (world.v2, world.v3)]


async def values(store: FakeRegistry) -> dict[str, str]:
    return {name: entry.value for name, entry in (await entries(store)).items()}


class TestAcquiring:
    def test_a_new_host_has_its_lease_in_both_stores(self) -> None:
        async def scenario(world: World) -> None:
            lease = await world.acquire(OWN)
            assert lease.subnet == OWN
            assert await values(world.v2) == await values(world.v3) == {NAME: OURS}
            assert (await entries(world.v2))[NAME].lifetime.seconds == TERMS.lease_ttl

        play(scenario)

    def test_without_a_config_in_v2_nothing_is_written_there(self) -> None:
        async def scenario(world: World) -> None:
            world.v2.set_config(None)
            async with world.running():
                await asyncio.sleep(10_000)
                assert 10_000 / LOOK_AGAIN_SECONDS <= world.v2.calls <= 1 + 10_000 / (0.75 * LOOK_AGAIN_SECONDS)
                assert await values(world.v2) == {}
                assert await values(world.v3) == {NAME: OURS}

        play(scenario)

    def test_the_v2_api_is_asked_for_at_the_start_and_every_ten_minutes(self) -> None:
        async def scenario(world: World) -> None:
            world.v2.is_off = True
            await world.acquire(OWN)
            assert world.v2.calls == 1
            await asyncio.sleep(10_000)
            assert world.v2.calls <= 1 + 10_000 / (0.75 * LOOK_AGAIN_SECONDS)

        play(scenario)

    def test_the_create_in_v2_decides_a_race(self) -> None:
        async def scenario(world: World) -> None:
            world.v2.put_raw(NAME, OTHERS, 600)
            lease = await world.acquire(OWN)
            assert lease.subnet != OWN
            assert (await values(world.v2))[NAME] == OTHERS
            assert set(await values(world.v3)) == set(await values(world.v2))
            assert original((await values(world.v3))[NAME]) is not None

        play(scenario)

    def test_the_lease_in_v2_is_given_back_if_v3_names_another_holder(self) -> None:
        async def scenario(world: World) -> None:
            world.v3.put_raw(NAME, OTHERS, 600)
            with pytest.raises(KeyExists):
                await world.registry.create(NAME, OURS, 600)
            assert await values(world.v2) == {}

        play(scenario)

    def test_the_lease_in_v2_is_given_back_if_v3_does_not_answer(self) -> None:
        async def scenario(world: World) -> None:
            world.v3.go_down()
            with pytest.raises(RegistryUnavailable):
                await world.registry.create(NAME, OURS, 600)
            assert await values(world.v2) == {}

        play(scenario)

    def test_a_v2_without_an_answer_is_waited_for(self) -> None:
        async def scenario(world: World) -> None:
            world.v2.go_down()
            acquiring = asyncio.create_task(world.acquire(OWN))
            await asyncio.sleep(60)
            assert await values(world.v3) == {}
            world.v2.come_up()
            assert (await acquiring).subnet == OWN
            assert await values(world.v2) == {NAME: OURS}

        play(scenario)

    @pytest.mark.parametrize("is_config_known", [False, True])
    @pytest.mark.parametrize(
        ("found", "line"),
        [
            (None, "Picking subnet in range 11.0.1.0 ... 11.0.255.0"),
            (OURS, "Found lease (11.0.59.0/24) for current IP (172.17.8.101), reusing"),
        ],
    )
    def test_a_v2_without_an_answer_is_named_and_nothing_is_logged_at_each_try(
        self, found: str | None, line: str, is_config_known: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def scenario(world: World) -> None:
            if found:
                world.v3.put_raw(NAME, found, 600)
            if is_config_known:
                await world.registry.snapshot()
                caplog.clear()
            world.v2.go_down()
            acquiring = asyncio.create_task(world.acquire(OWN))
            await asyncio.sleep(60)
            what = "the lease in etcd v2" if is_config_known else "etcd v2, which may have a network config"
            failed = f"Failed to acquire subnet: the fake registry is down ({what})"
            assert caplog.messages == ([line, failed] if is_config_known else [failed])
            world.v2.come_up()
            await acquiring
            assert caplog.messages.count(line) == 1

        play(scenario)

    def test_a_copy_of_the_own_fresh_lease_in_v2_is_written_over(self) -> None:
        """copy-to-v3 -follow may be faster than the second create."""

        async def scenario(world: World) -> None:
            world.v3.put_raw(NAME, copy_of(OURS, 1), 600)
            await world.registry.create(NAME, OURS, 600)
            assert await values(world.v3) == await values(world.v2) == {NAME: OURS}

        play(scenario)

    def test_the_last_lease_is_taken_by_one_of_a_v2_and_a_v3_host(self) -> None:
        async def scenario(world: World) -> None:
            other = SubnetManager(world.v2, LoopClock(), random.Random(2), HostIdentity(OTHER_IP, "host2"), TERMS)
            describe = LeaseAttrs(OTHER_IP)
            leases = await asyncio.gather(world.acquire(OWN), other.acquire(CONFIG, lambda _: describe, OWN))
            assert len({lease.subnet for lease in leases}) == 2
            assert len(await values(world.v2)) == 2

        play(scenario)


class TestMoving:
    @pytest.mark.parametrize("before", [OURS_BEFORE, FLANNELDS], ids=["flannelpy", "flanneld"])
    def test_a_moved_host_keeps_its_subnet_and_adopts_both_leases(self, before: str) -> None:
        async def scenario(world: World) -> None:
            theirs = world.v2.put_raw(NAME, before, 300)
            world.v3.put_raw(NAME, copy_of(before, theirs.version), 300)
            lease = await world.acquire()
            assert lease.subnet == OWN
            assert await values(world.v2) == await values(world.v3) == {NAME: OURS}
            entry = (await entries(world.v2))[NAME]
            assert (entry.created, entry.lifetime.seconds) == (theirs.created, TERMS.lease_ttl)

        play(scenario)

    def test_a_lease_that_expired_in_v2_meanwhile_is_created_there_again(self) -> None:
        async def scenario(world: World) -> None:
            world.v3.put_raw(NAME, copy_of(OURS_BEFORE, 1), 300)
            assert (await world.acquire()).subnet == OWN
            assert await values(world.v2) == {NAME: OURS}

        play(scenario)

    def test_a_subnet_that_another_host_has_leased_in_v2_meanwhile_is_not_kept(self) -> None:
        async def scenario(world: World) -> None:
            world.v2.put_raw(NAME, OTHERS, 300)
            world.v3.put_raw(NAME, copy_of(OURS_BEFORE, 1), 300)
            assert (await world.acquire(OWN)).subnet != OWN
            assert (await values(world.v2))[NAME] == OTHERS
            assert original((await values(world.v3))[NAME]) is not None
            assert LeaseAttrs.decode((await values(world.v3))[NAME]).public_ip == OTHER_IP

        play(scenario)

    def test_a_reservation_in_v3_that_another_host_has_leased_in_v2_is_replaced_and_named(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def scenario(world: World) -> None:
            world.v2.put_raw(NAME, OTHERS, 300)
            world.v3.put_raw(NAME, FLANNELDS, None)
            assert (await world.acquire(OWN)).subnet != OWN
            assert original((await values(world.v3))[NAME]) is not None

        play(scenario)
        lines = [record.getMessage() for record in caplog.records if "Reservation" in record.getMessage()]
        assert lines == [f"Reservation {NAME} in etcd v3 was replaced by the lease that etcd v2 has"]

    def test_a_reservation_stays_one_in_both(self) -> None:
        async def scenario(world: World) -> None:
            world.v2.put_raw(NAME, FLANNELDS, None)
            world.v3.put_raw(NAME, copy_of(FLANNELDS, 1), None)
            async with world.running():
                await asyncio.sleep(10 * TERMS.lease_ttl)
                for store in (world.v2, world.v3):
                    entry = (await entries(store))[NAME]
                    assert (entry.value, entry.lifetime.expires) == (OURS, False)

        play(scenario)

    def test_a_reservation_in_v3_alone_becomes_one_in_v2(self) -> None:
        async def scenario(world: World) -> None:
            world.v3.put_raw(NAME, FLANNELDS, None)
            async with world.running():
                await asyncio.sleep(10 * TERMS.lease_ttl)
                assert not (await entries(world.v2))[NAME].lifetime.expires

        play(scenario)

    def test_a_reservation_in_v2_alone_becomes_one_in_v3(self) -> None:
        async def scenario(world: World) -> None:
            world.v2.put_raw(NAME, FLANNELDS, None)
            world.v3.put_raw(NAME, FLANNELDS, 300)
            async with world.running():
                await asyncio.sleep(10 * TERMS.lease_ttl)
                assert await are_reserved(world) == [True, True]

        play(scenario)

    def test_a_host_goes_back_to_v2_and_keeps_its_subnet(self) -> None:
        async def scenario(world: World) -> None:
            await world.acquire(OWN)
            await world.registry.close()
            v2 = FakeRegistry(LoopClock().now)
            v2.put_raw(NAME, (await values_after_close(world.v2))[NAME], 300)
            manager = SubnetManager(v2, LoopClock(), random.Random(2), US, TERMS)
            assert (await manager.acquire(CONFIG, lambda _: ATTRS, None)).subnet == OWN
            assert await values(v2) == {NAME: OURS_BEFORE}

        play(scenario)


async def values_after_close(store: FakeRegistry) -> dict[str, str]:
    return {name: stored.value for name, stored in store._stored.items()}


class TestClaiming:
    """A reinstalled host finds a lease with its public IP and another host ID."""

    HOLDER = '{"PublicIP":"172.17.8.101","HostID":"host0"}'

    def test_without_an_objection_the_lease_is_taken_over_in_both(self) -> None:
        async def scenario(world: World) -> None:
            theirs = world.v2.put_raw(NAME, self.HOLDER, 300)
            world.v3.put_raw(NAME, copy_of(self.HOLDER, theirs.version), 300)
            assert (await world.acquire()).subnet == OWN
            assert await values(world.v2) == await values(world.v3) == {NAME: OURS}

        play(scenario)

    def test_a_holder_on_v2_sees_the_claim_and_its_objection_counts(self) -> None:
        async def scenario(world: World) -> None:
            holder = SubnetManager(world.v2, LoopClock(), random.Random(2), HostIdentity(OUR_IP, "host0"), TERMS)
            await holder.acquire(CONFIG, lambda _: ATTRS, OWN)
            entry = (await entries(world.v2))[NAME]
            world.v3.put_raw(NAME, copy_of(entry.value, entry.version), 300)
            watch = asyncio.create_task(holder.watch(world._apply))
            with pytest.raises(LeaseLost, match="not unique"):
                await world.acquire()
            watch.cancel()
            assert await values(world.v2) == {NAME: self.HOLDER}
            assert LeaseAttrs.decode((await values(world.v3))[NAME]).host_id == "host0"

        play(scenario)


class TestKeeping:
    def test_the_lease_is_renewed_in_both(self) -> None:
        async def scenario(world: World) -> None:
            async with world.running():
                for _ in range(50):
                    await asyncio.sleep(TERMS.lease_ttl / 5)
                    for store in (world.v2, world.v3):
                        seconds = (await entries(store))[NAME].lifetime.seconds
                        assert seconds is not None
                        assert seconds > 100

        play(scenario)

    def test_v3_is_renewed_while_v2_does_not_answer_and_v2_as_soon_as_it_does(self) -> None:
        async def scenario(world: World) -> None:
            async with world.running():
                await asyncio.sleep(1)
                world.v2.go_down()
                await asyncio.sleep(400)
                assert (await entries(world.v3))[NAME].lifetime.seconds in range(450, 601)
                world.v2.come_up()
                await asyncio.sleep(6)
                assert (await entries(world.v2))[NAME].lifetime.seconds in range(590, 601)

        play(scenario)

    @pytest.mark.parametrize("store", ["v2", "v3"])
    def test_what_an_operator_reserves_in_either_store_is_reserved_in_both(
        self, store: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def scenario(world: World) -> None:
            async with world.running():
                getattr(world, store).put_raw(NAME, OURS, None)
                await asyncio.sleep(1)
                assert await are_reserved(world) == [True, True]
                writes = world.v2.writes, world.v3.writes
                await asyncio.sleep(10 * TERMS.lease_ttl)
                assert (world.v2.writes, world.v3.writes) == writes
                assert await values(world.v2) == await values(world.v3) == {NAME: OURS}
                assert world.manager.own.is_reservation

        play(scenario)
        assert not any("recreated" in message for message in caplog.messages)

    def test_a_reservation_in_v2_becomes_one_in_v3_as_soon_as_that_answers(self) -> None:
        async def scenario(world: World) -> None:
            async with world.running():
                world.v3.go_down()
                world.v2.put_raw(NAME, OURS, None)
                await asyncio.sleep(30)
                world.v3.come_up()
                await asyncio.sleep(6)
                assert await are_reserved(world) == [True, True]

        play(scenario)

    def test_a_reservation_ends_in_v3_first_then_in_v2(self) -> None:
        async def scenario(world: World) -> None:
            async with world.running():
                world.v3.put_raw(NAME, OURS, None)
                await asyncio.sleep(1)
                world.v2.put_raw(NAME, OURS, 300)
                await asyncio.sleep(1)
                assert await are_reserved(world) == [True, True]
                for store in (world.v3, world.v2):
                    store.put_raw(NAME, OURS, 300)
                    await asyncio.sleep(70)
                assert await are_reserved(world) == [False, False]
                await asyncio.sleep(10 * TERMS.lease_ttl)
                assert await values(world.v2) == await values(world.v3) == {NAME: OURS}

        play(scenario)

    def test_a_lease_whose_time_in_v2_was_cut_short_is_renewed_there(self, caplog: pytest.LogCaptureFixture) -> None:
        async def scenario(world: World) -> None:
            async with world.running():
                world.v2.put_raw(NAME, OURS, 20)
                await asyncio.sleep(2)
                assert (await entries(world.v2))[NAME].lifetime.seconds in range(590, 601)

        play(scenario)
        assert not any("recreated" in message for message in caplog.messages)

    def test_the_shorter_of_the_times_that_the_stores_grant_counts(self, caplog: pytest.LogCaptureFixture) -> None:
        """An etcd with a long election time-out grants no shorter lease in v3."""

        async def scenario(world: World) -> None:
            world.v3.shortest = 3 * TERMS.lease_ttl
            async with world.running():
                await asyncio.sleep(10 * TERMS.lease_ttl)
                assert (world.manager.report().seconds_left or 0) <= TERMS.lease_ttl

        play(scenario)
        assert not any("recreated" in message for message in caplog.messages)
        assert len([message for message in caplog.messages if "Lease renewed" in message]) >= 10

    def test_a_lease_in_whose_place_a_directory_was_is_recreated(self, caplog: pytest.LogCaptureFixture) -> None:
        async def scenario(world: World) -> None:
            async with world.running():
                world.v2.is_blocked = True
                world.v2.delete_raw(NAME)
                await asyncio.sleep(60)
                assert await values(world.v2) == {}
                world.v2.is_blocked = False
                await asyncio.sleep(6)
                assert await values(world.v2) == {NAME: OURS}

        play(scenario)
        errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert errors[:1] == [f"Error keeping the lease in etcd v2: {NAME}: key already exists"]

    def test_a_lease_that_vanished_in_v2_is_recreated_there(self, caplog: pytest.LogCaptureFixture) -> None:
        async def scenario(world: World) -> None:
            async with world.running():
                world.v2.delete_raw(NAME)
                await asyncio.sleep(0.1)
                assert await values(world.v2) == {NAME: OURS}

        play(scenario)
        assert any("recreated the lease" in message for message in caplog.messages)

    def test_a_lease_that_vanished_in_v2_during_an_outage_is_recreated_there(self) -> None:
        async def scenario(world: World) -> None:
            async with world.running():
                world.v2.go_down()
                await asyncio.sleep(2 * TERMS.lease_ttl)
                world.v2.come_up()
                await asyncio.sleep(6)
                assert await values(world.v2) == await values(world.v3) == {NAME: OURS}

        play(scenario)

    def test_a_lease_that_vanished_in_v3_is_recreated_there(self) -> None:
        async def scenario(world: World) -> None:
            async with world.running() as watch:
                world.v3.delete_raw(NAME)
                await asyncio.sleep(0.1)
                assert await values(world.v2) == await values(world.v3) == {NAME: OURS}
                assert not watch.done()

        play(scenario)

    def test_both_stores_wiped(self) -> None:
        async def scenario(world: World) -> None:
            async with world.running() as watch:
                for store in (world.v2, world.v3):
                    store.wipe()
                    store.set_config(TEXT)
                await asyncio.sleep(60)
                assert await values(world.v2) == await values(world.v3) == {NAME: OURS}
                assert not watch.done()

        play(scenario)

    @pytest.mark.parametrize("text", [FLANNELDS, "rubbish", '{"PublicIP":"172.17.8.101","HostID":"host9"}'])
    @pytest.mark.parametrize("store", ["v2", "v3"])
    def test_what_the_policy_restores_is_restored_in_both(self, store: str, text: str) -> None:
        async def scenario(world: World) -> None:
            async with world.running() as watch:
                getattr(world, store).put_raw(NAME, text, 300)
                await asyncio.sleep(2)
                assert await values(world.v2) == await values(world.v3) == {NAME: OURS}
                assert not watch.done()
                await asyncio.sleep(2 * TERMS.lease_ttl)
                assert await values(world.v2) == await values(world.v3) == {NAME: OURS}

        play(scenario)

    @pytest.mark.parametrize("store", ["v2", "v3"])
    def test_another_holder_in_either_store_ends_the_lease_in_both(self, store: str) -> None:
        async def scenario(world: World) -> None:
            async with world.running() as watch:
                getattr(world, store).put_raw(NAME, OTHERS, 300)
                done, _ = await asyncio.wait([watch], timeout=30)
                assert done
                with pytest.raises(LeaseLost, match=r"is held by 172\.17\.8\.102 now"):
                    watch.result()
                for each in (world.v2, world.v3):
                    for value in (await values(each)).values():
                        assert LeaseAttrs.decode(value).public_ip == OTHER_IP

        play(scenario)

    def test_another_holder_that_came_while_v2_did_not_answer(self) -> None:
        async def scenario(world: World) -> None:
            async with world.running() as watch:
                world.v2.go_down()
                await asyncio.sleep(60)
                world.v2.come_up()
                world.v2.put_raw(NAME, OTHERS, 300)
                done, _ = await asyncio.wait([watch], timeout=30)
                assert done
                with pytest.raises(LeaseLost):
                    watch.result()

        play(scenario)

    def test_another_holder_in_v2_while_v3_does_not_answer(self) -> None:
        async def scenario(world: World) -> None:
            async with world.running() as watch:
                world.v3.go_down()
                world.v2.put_raw(NAME, OTHERS, 2000)
                await asyncio.sleep(60)
                world.v3.come_up()
                done, _ = await asyncio.wait([watch], timeout=30)
                assert done
                with pytest.raises(LeaseLost, match=r"is held by 172\.17\.8\.102 now"):
                    watch.result()

        play(scenario)

    def test_a_subnet_that_was_leased_in_v2_after_the_lease_had_expired_in_both(self) -> None:
        """As while this host was suspended; no copy-to-v3 shows the other lease in v3."""

        async def scenario(world: World) -> None:
            async with world.running() as watch:
                world.v2.put_raw(NAME, OTHERS, 300)
                world.v3.delete_raw(NAME)
                done, _ = await asyncio.wait([watch], timeout=30)
                assert done
                with pytest.raises(LeaseLost, match=r"is held by 172\.17\.8\.102 now"):
                    watch.result()

        play(scenario)

    def test_a_fault_of_the_task_ends_the_watch(self) -> None:
        async def scenario(world: World) -> None:
            async def broken(cursor: int, timeout: float) -> None:
                raise ZeroDivisionError

            async with world.running() as watch:
                world.v2.watch = broken  # type: ignore[method-assign, assignment]
                done, _ = await asyncio.wait([watch], timeout=120)
                assert done
                with pytest.raises(ZeroDivisionError):
                    watch.result()

        play(scenario)


class TestEnd:
    @pytest.mark.parametrize("is_off", [False, True], ids=["config deleted", "API switched off"])
    def test_without_a_config_in_v2_the_lease_there_is_left_to_expire(
        self, is_off: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def scenario(world: World) -> None:
            async with world.running() as watch:
                world.v2.set_config(None)
                world.v2.is_off = is_off
                await asyncio.sleep(2 * CONFIG_SECONDS + 10)
                world.v2.is_off = False
                assert await values(world.v2) == {NAME: OURS}
                calls = world.v2.calls
                await asyncio.sleep(10 * TERMS.lease_ttl)
                assert world.v2.calls - calls <= 1 + 10 * TERMS.lease_ttl / (0.75 * LOOK_AGAIN_SECONDS)
                assert await values(world.v2) == {}
                assert await values(world.v3) == {NAME: OURS}
                assert not watch.done()

        play(scenario)
        ends = [message for message in caplog.messages if "gone from etcd v2" in message]
        assert len(ends) == 1
        assert not [record for record in caplog.records if record.levelname == "ERROR"]

    @pytest.mark.parametrize("is_left", [False, True], ids=["expired", "left"])
    @pytest.mark.parametrize("is_off", [False, True], ids=["config deleted", "API switched off"])
    def test_a_config_that_comes_back_to_v2_brings_the_lease_back(self, is_off: bool, is_left: bool) -> None:
        """The way back of a change-over, and an endpoint that was wrong about v2 for a while."""

        async def scenario(world: World) -> None:
            async with world.running():
                world.v2.is_off = is_off
                world.v2.set_config(TEXT if is_off else None)
                await asyncio.sleep((1 if is_left else 3) * TERMS.lease_ttl / 2)
                world.v2.is_off = False
                world.v2.set_config(TEXT)
                assert (NAME in await values(world.v2)) == is_left
                await asyncio.sleep(LOOK_AGAIN_SECONDS)
                for _ in range(20):
                    await asyncio.sleep(TERMS.lease_ttl / 3)
                    assert await values(world.v2) == await values(world.v3) == {NAME: OURS}

        play(scenario)

    def test_a_renewal_that_v2_missed_without_a_config_follows(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(second_lease, "LOOK_AGAIN_SECONDS", 20)

        async def scenario(world: World) -> None:
            async with world.running():
                await asyncio.sleep(200)
                world.v2.set_config(None)
                await asyncio.sleep(110)
                assert (await entries(world.v3))[NAME].lifetime.seconds in range(550, 601)
                assert (await entries(world.v2))[NAME].lifetime.seconds in range(280, 300)
                world.v2.set_config(TEXT)
                await asyncio.sleep(25)
                assert (await entries(world.v2))[NAME].lifetime.seconds in range(570, 601)

        play(scenario)
        assert not any("recreated" in message for message in caplog.messages)

    def test_a_config_that_comes_back_to_v2_beside_another_holder_of_the_subnet(self) -> None:
        async def scenario(world: World) -> None:
            world.v2.set_config(None)
            async with world.running() as watch:
                world.v2.set_config(TEXT)
                world.v2.put_raw(NAME, OTHERS, 2000)
                done, _ = await asyncio.wait([watch], timeout=LOOK_AGAIN_SECONDS + 10)
                assert done
                with pytest.raises(LeaseLost, match=r"is held by 172\.17\.8\.102 now"):
                    watch.result()

        play(scenario)

    def test_a_host_without_a_lease_asks_v2_nothing(self) -> None:
        async def scenario(world: World) -> None:
            lease = await world.acquire(OWN)
            await asyncio.sleep(100)
            await world.registry.compare_and_delete(NAME, lease.version)
            await asyncio.sleep(60)
            calls = world.v2.calls
            await asyncio.sleep(10_000)
            assert world.v2.calls == calls

        play(scenario)

    def test_the_directory_of_v2_is_deleted_as_a_whole(self) -> None:
        async def scenario(world: World) -> None:
            async with world.running():
                world.v2.set_config(None)
                world.v2.remove_subnets()
                await asyncio.sleep(100)
                assert await values(world.v2) == {}

        play(scenario)

    @pytest.mark.parametrize("had_config", [False, True])
    def test_a_directory_in_the_place_of_the_config_is_no_end(self, had_config: bool) -> None:
        async def scenario(world: World) -> None:
            world.v2.set_config(TEXT if had_config else None)
            async with world.running() as watch:
                world.v2.is_directory = True
                await asyncio.sleep(2 * LOOK_AGAIN_SECONDS)
                assert not watch.done()
                assert (await values(world.v3)) == {NAME: OURS}
                world.v2.is_directory = False
                world.v2.set_config(TEXT)
                await asyncio.sleep(LOOK_AGAIN_SECONDS)
                assert await values(world.v2) == {NAME: OURS}

        play(scenario)

    def test_a_directory_in_the_place_of_the_config_is_waited_for(self) -> None:
        async def scenario(world: World) -> None:
            world.v2.is_directory = True
            acquiring = asyncio.create_task(world.acquire(OWN))
            await asyncio.sleep(60)
            assert not acquiring.done()
            world.v2.is_directory = False
            assert (await acquiring).subnet == OWN

        play(scenario)

    def test_a_v2_api_that_only_some_endpoints_are_without_is_no_end(self, caplog: pytest.LogCaptureFixture) -> None:
        """The others do not answer: v2 and its config may be there."""

        async def scenario(world: World) -> None:
            async with world.running():
                world.v2.is_off, world.v2.is_certain = True, False
                await asyncio.sleep(10 * CONFIG_SECONDS)
                assert world.registry.store_reports()[1].api == 2
                world.v2.is_off = False
                await asyncio.sleep(6)
                assert (await entries(world.v2))[NAME].lifetime.seconds in range(TERMS.lease_ttl - 320, 601)

        play(scenario)
        assert not any("gone from etcd v2" in message for message in caplog.messages)

    def test_a_start_needs_no_answer_of_every_endpoint(self) -> None:
        async def scenario(world: World) -> None:
            world.v2.is_off, world.v2.is_certain = True, False
            await world.acquire(OWN)
            assert await values(world.v3) == {NAME: OURS}

        play(scenario)

    def test_a_v2_without_an_answer_is_no_end(self) -> None:
        async def scenario(world: World) -> None:
            async with world.running():
                world.v2.go_down()
                await asyncio.sleep(10 * CONFIG_SECONDS)
                world.v2.come_up()
                await asyncio.sleep(6)
                assert NAME in await values(world.v2)

        play(scenario)

    @pytest.mark.parametrize("has_restarted", [False, True])
    def test_a_lease_is_released_in_both(self, has_restarted: bool) -> None:
        async def scenario(world: World) -> None:
            lease = await world.acquire(OWN)
            registry = BothStores(world.v3, world.v2, US) if has_restarted else world.registry
            await registry.compare_and_delete(NAME, lease.version)
            await asyncio.sleep(100)
            assert await values(world.v2) == await values(world.v3) == {}

        play(scenario)

    def test_a_lease_of_another_host_in_v2_is_not_released(self) -> None:
        async def scenario(world: World) -> None:
            entry = world.v3.put_raw(NAME, OURS, 300)
            world.v2.put_raw(NAME, OTHERS, 300)
            await world.registry.compare_and_delete(NAME, entry.version)
            assert await values(world.v2) == {NAME: OTHERS}
            assert await values(world.v3) == {}

        play(scenario)

    def test_a_reservation_in_v2_is_not_released(self) -> None:
        async def scenario(world: World) -> None:
            entry = world.v3.put_raw(NAME, OURS, 300)
            world.v2.put_raw(NAME, OURS, None)
            await world.registry.compare_and_delete(NAME, entry.version)
            assert await values(world.v2) == {NAME: OURS}

        play(scenario)

    @pytest.mark.parametrize("write", ["compare_and_swap", "compare_and_delete"])
    def test_a_refused_write_changes_nothing_in_v2(self, write: str) -> None:
        async def scenario(world: World) -> None:
            registry = world.registry
            call = (
                partial(registry.compare_and_swap, NAME, "b", 600)
                if "swap" in write
                else partial(registry.compare_and_delete, NAME)
            )
            with pytest.raises(KeyNotFound):
                await call(version=1)
            world.v2.put_raw(NAME, OURS, 300)
            entry = world.v3.put_raw(NAME, OURS, 300)
            with pytest.raises(CompareFailed):
                await call(version=entry.version + 1)
            assert await values(world.v2) == {NAME: OURS}

        play(scenario)


class TestAuto:
    """-etcd-api=auto that has chosen v3."""

    def test_a_config_that_comes_back_to_v2_brings_the_lease(self, caplog: pytest.LogCaptureFixture) -> None:
        async def scenario(world: World) -> None:
            world.v2.set_config(None)
            world.use("auto")
            assert await world.registry.read_config() == TEXT
            async with world.running():
                assert await values(world.v2) == {}
                calls = world.v2.calls
                await asyncio.sleep(3600)
                assert world.v2.calls - calls <= 3600 / (0.75 * LOOK_AGAIN_SECONDS)
                world.v2.set_config(TEXT)
                await asyncio.sleep(LOOK_AGAIN_SECONDS)
                assert await values(world.v2) == await values(world.v3) == {NAME: OURS}

        play(scenario)
        found = [message.split(":")[0] for message in caplog.messages if "Found network config" in message]
        assert found == ["Found network config in etcd v3", "Found network config in etcd v2, too"]

    def test_v2_is_used_alone_while_it_has_a_config(self) -> None:
        async def scenario(world: World) -> None:
            world.use("auto")
            await world.registry.read_config()
            async with world.running():
                assert await values(world.v2) == {NAME: OURS_BEFORE}
                assert await values(world.v3) == {}

        play(scenario)


def test_a_quiet_host_asks_v2_twice_a_minute_for_its_config_and_for_its_changes() -> None:
    async def scenario(world: World) -> None:
        async with world.running():
            await asyncio.sleep(60)
            calls = world.v2.calls
            await asyncio.sleep(180)
            assert world.v2.calls - calls <= 3 * (2 + 2 * 2)  # the fake counts a watch at its begin and at its end

    play(scenario)


def test_the_mark_is_not_part_of_what_a_host_writes() -> None:
    assert MARK not in OURS


# Values of a lease that any program may write, and what copy-to-v3 makes of them.
_WRITTEN = [
    OURS,
    OURS_BEFORE,
    FLANNELDS,
    OTHERS,
    '{"PublicIP":"172.17.8.101","HostID":"host0"}',
    '{"PublicIP":"172.17.8.101","HostID":"host9"}',
    '{"PublicIP":"172.17.8.101","HostID":"host9","Claim":true}',
    '{"PublicIP":"172.17.8.102","HostID":"host1:1","Claim":true}',
    '{"PublicIP":"oops"}',
    '{"PublicIP":"172.17.8.102","PublicIP":"172.17.8.101","publicip":"oops"}',
    '{"PublicIP":"172.17.8.101\x00"}',
    '{"PublicIP":"172.17.8.101","HostID":"a\\u0000b"}',
    "{}",
    "[]",
    "",
    "rubbish",
    "\x00",
    "{" * 100,
    '{"PublicIP":"' + "x" * 70_000 + '"}',
]
VALUES = [f"{before}{value}{after}" for value in _WRITTEN for before, after in (("", ""), ("", "\n"), (" ", " \t\r\n"))]
_SECONDS = 120


def _copies() -> Iterator[str]:
    for value in VALUES:
        with contextlib.suppress(ValueError):  # what is no JSON object cannot be marked
            yield copy_of(value, 7)


SHOWN = [*VALUES, *_copies()]


async def _outcome(world: World, watch: asyncio.Task[None]) -> tuple[int, int]:
    """Let the host run; return how often it writes to v2 and v3."""
    before = world.v2.writes, world.v3.writes
    await asyncio.wait([watch], timeout=_SECONDS)
    if watch.done():
        with pytest.raises(LeaseLost):
            watch.result()
    return world.v2.writes - before[0], world.v3.writes - before[1]


class TestNumberOfWrites:
    @given(second=st.sampled_from(VALUES), first=st.sampled_from([None, *SHOWN]), ttl=st.sampled_from([None, 300]))
    @settings(max_examples=300, deadline=None, derandomize=True)
    @example(second='{"PublicIP":"oops"}\n', first=None, ttl=300)
    def test_of_any_two_values_the_host_makes_one_within_a_few_writes(
        self, second: str, first: str | None, ttl: int | None
    ) -> None:
        async def scenario(world: World) -> None:
            async with world.running() as watch:
                world.v2.put_raw(NAME, second, ttl)
                if first is not None:
                    world.v3.put_raw(NAME, first, ttl)
                writes = await _outcome(world, watch)
                assert max(writes) <= 4, writes
                if not watch.done():
                    holders = {
                        LeaseAttrs.decode(value)
                        for store in (world.v2, world.v3)
                        for value in (await values(store)).values()
                    }
                    assert len(holders) == 1
                    assert holders.pop().public_ip == OUR_IP

        play(scenario)

    @given(value=st.sampled_from([None, *SHOWN]), store=st.sampled_from(["v2", "v3", "both"]))
    @settings(max_examples=60, deadline=None, derandomize=True)
    def test_writes_that_are_undone_each_time_have_pauses_in_between(self, value: str | None, store: str) -> None:
        async def scenario(world: World) -> None:
            stores = [world.v2, world.v3] if store == "both" else [getattr(world, store)]

            def undo(each: Store, name: str) -> None:
                if value is not None:
                    each.put_raw(name, value, 300)
                elif any(entry.name == name for entry in each.stored()):
                    each.delete_raw(name)

            async with world.running() as watch:
                for each in stores:
                    each.undo = partial(undo, each)
                    undo(each, NAME)
                writes = await _outcome(world, watch)
                for each in stores:
                    each.undo = None
                shortest = LONGEST_PAUSE_OF_WRITES / 2
                assert max(writes) <= 2 * _SECONDS / shortest + 10, writes  # in v3 a copy of v2's, and a restore

        play(scenario)
