"""The copies of one network between two fake stores."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from support.fakes import FakeRegistry
from support.fakes_clock import run

from flannelpy.commands.network_copy import NetworkCopy
from flannelpy.errors import ApiSwitchedOff, CompareFailed, KeyNotFound, RegistryUnavailable
from flannelpy.registry.base import Changes, KeyValue, Schema, Snapshot, all_names
from flannelpy.subnet.copied import copy_of, original
from flannelpy.subnet.copy_plan import Step

T = TypeVar("T")
CONFIG = '{"Network":"11.0.0.0/16"}'
A, B, C = "11.0.1.0-24", "11.0.2.0-24", "11.0.3.0-24"
VXLAN = '{"PublicIP":"172.17.8.101","BackendType":"vxlan","BackendData":{"VtepMAC":"%s"},"HostID":"host1"}'
ONE, TWO, THREE = (f'{{"PublicIP":"172.17.8.10{n}","HostID":"host{n}"}}' for n in (1, 2, 3))

# What a host on v3 writes into both stores.
ONE_OF_V3 = '{"PublicIP":"172.17.8.101","PublicIPv6":null,"HostID":"host1"}'
VXLAN_OF_V3 = (VXLAN % "ce:01").replace('"VtepMAC"', '"VNI":1,"VtepMAC"')


class V2(FakeRegistry):
    """A fake store whose calls take ``delay`` seconds, half of it in each direction."""

    delay = 0.0

    async def snapshot(self, is_wanted: Callable[[str], bool] = all_names) -> Snapshot:
        return await self._delayed(super().snapshot(is_wanted))

    async def snapshot_of(self, name: str) -> Snapshot:
        return await self._delayed(super().snapshot_of(name))

    async def create(self, name: str, value: str, lease_ttl: int) -> KeyValue:
        return await self._delayed(super().create(name, value, lease_ttl))

    async def compare_and_swap(self, name: str, value: str, lease_ttl: int | None, version: int) -> KeyValue:
        return await self._delayed(super().compare_and_swap(name, value, lease_ttl, version))

    async def _delayed(self, call: Awaitable[T]) -> T:
        await asyncio.sleep(self.delay / 2)
        answer = await call
        await asyncio.sleep(self.delay / 2)
        return answer


class V3(V2):
    """A fake store whose config can be written under a condition."""

    config_version = 0

    async def create(self, name: str, value: str, lease_ttl: int) -> KeyValue:
        self.before_write(name)
        return await super().create(name, value, lease_ttl)

    async def compare_and_swap(self, name: str, value: str, lease_ttl: int | None, version: int) -> KeyValue:
        self.before_write(name)
        return await super().compare_and_swap(name, value, lease_ttl, version)

    def before_write(self, name: str) -> None:
        """A test replaces this; ``name``: of an entry, or "config"."""

    def set_config(self, config: str | None) -> None:
        super().set_config(config)
        self.config_version = 0 if config is None else self._index

    async def find_config(self) -> tuple[str, int]:
        self._begin()
        return self._config or "", self.config_version

    async def write_config(self, value: str, version: int) -> None:
        self._begin()
        self.before_write("config")
        if version != self.config_version:
            raise CompareFailed("config: changed meanwhile")
        self.set_config(value)


class World:
    def __init__(self) -> None:
        self.now = asyncio.get_running_loop().time
        self.v2, self.v3 = V2(self.now), V3(self.now, Schema.V3)
        self.v2.set_config(CONFIG)
        self.lines: list[str] = []

    async def make(self) -> dict[Step, int]:
        """One run of the command; returns how often each step was made."""
        self.lines.clear()
        copy = NetworkCopy(self.v2, self.v3, say=self.lines.append)
        await copy.make()
        return dict(copy.counts)

    async def entries(self) -> dict[str, KeyValue]:
        return {entry.name: entry for entry in self.v3.stored()}

    async def values(self) -> dict[str, str]:
        self.v3.tick()
        return {name: entry.value for name, entry in (await self.entries()).items()}


def play(scenario: Callable[[World], Awaitable[None]]) -> None:
    async def whole() -> None:
        await scenario(World())

    run(whole())


class TestOnce:
    def test_config_leases_reservations_and_remaining_time_are_copied(self) -> None:
        async def scenario(world: World) -> None:
            lease = world.v2.put_raw(A, ONE, 3600)
            reservation = world.v2.put_raw(B, TWO, None)
            await asyncio.sleep(600)
            assert await world.make() == {Step.COPY: 3}
            assert await world.values() == {A: copy_of(ONE, lease.version), B: copy_of(TWO, reservation.version)}
            entries = await world.entries()
            assert (entries[A].lifetime.seconds, entries[B].lifetime.expires) == (3000, False)
            assert await world.v3.read_config() == copy_of(CONFIG, 0)
            assert world.lines == [
                "config: copied",
                f"{A}: copied, expires in 3000 s",
                f"{B}: copied, a reservation",
                "3 copied, 0 updated, 0 removed, 0 unchanged, 0 kept, 0 conflict, 0 failed, 0 ignored",
            ]

        play(scenario)

    def test_nothing_changes_in_v2(self) -> None:
        async def scenario(world: World) -> None:
            world.v2.put_raw(A, ONE, 3600)
            before = await world.v2.snapshot()
            await world.make()
            assert await world.v2.snapshot() == before

        play(scenario)

    def test_it_is_idempotent(self) -> None:
        async def scenario(world: World) -> None:
            world.v2.put_raw(A, ONE, 3600)
            world.v2.put_raw(B, TWO, None)
            await world.make()
            before = await world.v3.snapshot()
            assert await world.make() == {Step.EQUAL: 3}
            assert await world.v3.snapshot() == before

        play(scenario)

    def test_what_changed_in_v2_is_updated(self) -> None:
        async def scenario(world: World) -> None:
            for name in (A, B, C):
                world.v2.put_raw(name, ONE, 3600)
            await world.make()
            world.v2.put_raw(A, ONE, 7200)  # a renewal
            version = world.v2.put_raw(B, TWO, 3600).version
            world.v2.put_raw(C, ONE, None)
            world.v2.set_config('{"Network":"12.0.0.0/16"}')
            assert await world.make() == {Step.UPDATE: 4}
            entries = await world.entries()
            assert entries[A].lifetime.seconds == 7200
            assert original(entries[B].value) == (TWO, version)
            assert not entries[C].lifetime.expires

        play(scenario)

    def test_a_copy_whose_lease_is_gone_in_v2_is_removed(self) -> None:
        async def scenario(world: World) -> None:
            world.v2.put_raw(A, ONE, 3600)
            await world.make()
            world.v2.delete_raw(A)
            assert await world.make() == {Step.EQUAL: 1, Step.REMOVE: 1}
            assert f"{A}: removed, the lease in v2 is gone" in world.lines
            assert await world.values() == {}

        play(scenario)

    @pytest.mark.parametrize(
        "value",
        [
            TWO,
            copy_of(TWO, 1)[:-1] + ',"x":1}',
            copy_of(ONE, 1).replace("101", "109"),
            "rubbish",
            json.dumps({"PublicIP": "172.17.8.101", "HostID": "another"}),
        ],
    )
    def test_a_key_that_is_no_unchanged_copy_is_never_written(self, value: str) -> None:
        async def scenario(world: World) -> None:
            world.v2.put_raw(A, ONE, 3600)
            entry = world.v3.put_raw(A, value, 100)
            assert await world.make() == {Step.COPY: 1, Step.CONFLICT: 1}
            assert (await world.entries())[A] == entry
            world.v2.delete_raw(A)
            await world.make()
            assert (await world.entries())[A] == entry

        play(scenario)

    def test_a_conflict_names_both_holders(self) -> None:
        async def scenario(world: World) -> None:
            world.v2.put_raw(A, ONE, 3600)
            world.v3.put_raw(A, '{"PublicIP":"172.17.8.102"}', 100)
            await world.make()
            assert world.lines[1] == (
                f"{A}: conflict, v2 names 172.17.8.101 (host ID host1), v3 names 172.17.8.102 and is no copy"
            )

        play(scenario)

    def test_a_host_that_uses_v3_already_keeps_its_lease(self) -> None:
        async def scenario(world: World) -> None:
            world.v2.put_raw(A, ONE, 3600)
            entry = world.v3.put_raw(A, ONE, 100)
            assert await world.make() == {Step.COPY: 1, Step.MOVED: 1}
            assert (await world.entries())[A] == entry
            assert world.lines[1] == f"{A}: kept, its host uses v3"

        play(scenario)

    @pytest.mark.parametrize(
        ("config", "step"),
        [
            ('{ "Network": "11.0.0.0/16" }', Step.MOVED),
            ('{"Network":"12.0.0.0/16"}', Step.CONFLICT),
            ("rubbish", Step.CONFLICT),
            ("", Step.CONFLICT),
            (copy_of('{"Network":"12.0.0.0/16"}', 0).replace("12.0", "13.0"), Step.CONFLICT),
        ],
    )
    def test_a_config_that_is_no_copy_stays(self, config: str, step: Step) -> None:
        async def scenario(world: World) -> None:
            world.v3.set_config(config)
            assert await world.make() == {step: 1}
            assert await world.v3.read_config() == config

        play(scenario)

    @pytest.mark.parametrize(
        ("config", "reason"),
        [
            ("nonsense", "not JSON"),
            ("[]", "not a JSON object"),
            ("{}", "Network is missing"),
            ('{"Network":"11.0.0.0/99"}', "is not an IPv4 network"),
            ('{"Network":"11.0.0.0/16","EnableIPv4":false}', "EnableIPv4 false leaves nothing to route"),
        ],
    )
    @pytest.mark.parametrize("before", [None, copy_of(CONFIG, 0)])
    def test_a_config_that_hosts_on_v3_refuse_is_not_copied(self, config: str, reason: str, before: str | None) -> None:
        async def scenario(world: World) -> None:
            world.v2.set_config(config)
            world.v3.set_config(before)
            assert await world.make() == {Step.FAILED: 1}
            assert await world.v3.find_config() == (before or "", world.v3.config_version)
            assert world.lines[0].startswith("config: failed, hosts with -etcd-api=3 refuse the config that v2 has: ")
            assert reason in world.lines[0]

        play(scenario)

    @pytest.mark.parametrize("first", [copy_of(CONFIG, 0), CONFIG])
    def test_a_config_that_was_copied_back_to_v2_with_its_mark_is_not_marked_twice(self, first: str) -> None:
        async def scenario(world: World) -> None:
            world.v2.set_config(copy_of(CONFIG, 0))
            assert await world.make() == {Step.COPY: 1}
            assert await world.v3.read_config() == copy_of(CONFIG, 0)
            world.v3.set_config(first)
            assert await world.make() == {Step.MOVED if first == CONFIG else Step.EQUAL: 1}

        play(scenario)

    def test_malformed_keys_are_named_and_skipped(self) -> None:
        async def scenario(world: World) -> None:
            world.v2.put_raw("nonsense", ONE, 3600)
            world.v2.put_raw(A, "rubbish", 3600)
            assert await world.make() == {Step.COPY: 1, Step.IGNORE: 2}
            assert await world.values() == {}
            assert world.lines[2] == "nonsense: ignored, no subnet key such as 10.1.7.0-24"

        play(scenario)

    def test_without_a_config_in_v2_there_is_nothing_to_copy(self) -> None:
        async def scenario(world: World) -> None:
            world.v2.set_config(None)
            world.v2.put_raw(A, ONE, 3600)
            with pytest.raises(KeyNotFound):
                await world.make()
            assert await world.values() == {}

        play(scenario)

    def test_a_key_that_a_host_writes_at_the_same_moment_stays(self) -> None:
        async def scenario(world: World) -> None:
            world.v2.put_raw(A, ONE, 3600)
            create = world.v3.create

            async def late(name: str, value: str, lease_ttl: int) -> KeyValue:
                world.v3.put_raw(A, ONE, 100)
                return await create(name, value, lease_ttl)

            world.v3.create = late  # type: ignore[method-assign]
            assert await world.make() == {Step.COPY: 1, Step.MOVED: 1}
            assert await world.values() == {A: ONE}

        play(scenario)

    @pytest.mark.parametrize(
        ("second", "first", "difference"),
        [
            ((VXLAN % "ce:01", 3600), (VXLAN % "ce:02", 100), "BackendData"),
            ((VXLAN % "ce:01", 3600), (ONE, 100), "BackendType vxlan, v3 has"),
            ((ONE, 3600), (ONE_OF_V3, 100), "the host seems to use v2, where its lease has another text than in v3"),
            (('{"PublicIP":"172.17.8.101"}', 3600), (ONE, 100), "the host seems to use v2"),
            ((VXLAN % "ce:01", 3600), (VXLAN_OF_V3, 100), "the host seems to use v2"),
            ((ONE, None), (ONE, 100), "only v2 has a reservation"),
            ((ONE, 3600), (ONE, None), "only v3 has a reservation"),
        ],
    )
    def test_a_lease_in_v3_that_hides_another_state_of_its_host_is_a_conflict_with_a_remedy(
        self, second: tuple[str, int | None], first: tuple[str, int | None], difference: str
    ) -> None:
        """Such as that of a host that went back to v2, and a reservation that an operator has made in v3."""

        async def scenario(world: World) -> None:
            world.v2.put_raw(A, *second)
            entry = world.v3.put_raw(A, *first)
            assert await world.make() == {Step.COPY: 1, Step.CONFLICT: 1}
            assert (await world.entries())[A].version == entry.version
            assert difference in world.lines[1]
            assert "delete the key in v3 if the host uses v2" in world.lines[1]

        play(scenario)

    def test_a_host_that_writes_one_store_after_the_other_is_no_conflict(self) -> None:
        async def scenario(world: World) -> None:
            world.v2.put_raw(A, VXLAN % "ce:02", 3600)
            world.v3.put_raw(A, VXLAN % "ce:01", 3600)
            copying = asyncio.create_task(world.make())
            await asyncio.sleep(1)
            world.v3.put_raw(A, VXLAN % "ce:02", 3600)
            assert await copying == {Step.COPY: 1, Step.MOVED: 1}

        play(scenario)

    @pytest.mark.parametrize("value", [ONE, TWO])
    @pytest.mark.parametrize("write", [1, 2])
    def test_a_reservation_that_an_operator_makes_at_the_same_moment_stays(self, value: str, write: int) -> None:
        """A copy of a reservation takes two writes."""

        async def scenario(world: World) -> None:
            world.v2.put_raw(A, ONE, None)
            writes = itertools.count(1)

            def reserve(name: str) -> None:
                if name == A and next(writes) == write:
                    world.v3.put_raw(A, value, None)

            world.v3.before_write = reserve  # type: ignore[method-assign]
            await world.make()
            assert await world.values() == {A: value}
            assert world.lines[1].startswith(f"{A}: {'kept' if value == ONE else 'conflict'}, ")

        play(scenario)

    @pytest.mark.parametrize("name", [A, "config"])
    def test_writes_that_are_lost_again_and_again_are_reported(self, name: str) -> None:
        async def scenario(world: World) -> None:
            states = itertools.count(2)
            world.v2.put_raw(A, ONE, 3600)

            def disturb(written: str) -> None:
                if written == name == A:
                    world.v3.put_raw(A, copy_of(TWO, next(states)), 3600)
                elif written == name:
                    world.v3.set_config(copy_of(f'{{"a":{next(states)}}}', 0))

            world.v3.before_write = disturb  # type: ignore[assignment, method-assign]
            assert await world.make() == {Step.COPY: 1, Step.FAILED: 1}
            assert f"{name}: failed, another program changed it at each of 5 tries" in world.lines
            assert " 1 failed, " in world.lines[-1]

        play(scenario)

    @pytest.mark.parametrize("lease_ttl", [1, 2, 3, 5, 30, 3600])
    @pytest.mark.parametrize("v2_delay", [0, 0.4, 0.9, 1.5, 4])
    @pytest.mark.parametrize("v3_delay", [0, 0.4, 0.9, 1.5, 4])
    def test_a_copy_never_outlives_its_original_by_more_than_a_second(
        self, lease_ttl: int, v2_delay: float, v3_delay: float
    ) -> None:
        async def scenario(world: World) -> None:
            world.v2.delay, world.v3.delay = v2_delay, v3_delay
            world.v2.put_raw(A, ONE, lease_ttl)
            ends = world.now() + lease_ttl
            await world.make()
            await asyncio.sleep(max(ends + 1 - world.now(), 0))
            assert await world.values() == {}

        play(scenario)

    def test_a_lease_that_is_about_to_expire_is_not_copied(self) -> None:
        async def scenario(world: World) -> None:
            world.v2.put_raw(A, ONE, 1)
            assert await world.make() == {Step.COPY: 1, Step.IGNORE: 1}
            assert world.lines[1] == f"{A}: ignored, it expires within 2 s, the shortest lease of etcd v3"

        play(scenario)

    def test_a_copy_that_another_run_has_made_of_a_later_state_stays(self) -> None:
        """The list of v2 is read before that of v3."""

        async def scenario(world: World) -> None:
            world.v2.put_raw(A, ONE, 3600)
            snapshot = world.v2.snapshot

            async def early(is_wanted: Callable[[str], bool] = all_names) -> Snapshot:
                found = await snapshot(is_wanted)
                for name, value in ((A, TWO), (B, THREE)):
                    version = world.v2.put_raw(name, value, 3600).version
                    world.v3.put_raw(name, copy_of(value, version), 3600)
                return found

            world.v2.snapshot = early  # type: ignore[method-assign]
            assert await world.make() == {Step.COPY: 1, Step.EQUAL: 2}

        play(scenario)

    def test_of_many_conflicts_each_has_a_line(self) -> None:
        async def scenario(world: World) -> None:
            for number in range(1200):
                name = f"11.{number // 256}.{number % 256}.0-24"
                world.v2.put_raw(name, ONE, 3600)
                world.v3.put_raw(name, TWO, 3600)
            assert (await world.make())[Step.CONFLICT] == 1200
            assert sum(": conflict, " in line for line in world.lines) == 1200

        play(scenario)

    def test_several_networks_are_named(self) -> None:
        async def scenario(world: World) -> None:
            await NetworkCopy(world.v2, world.v3, "blue", world.lines.append).make()
            assert world.lines[0] == "blue: config: copied"

        play(scenario)


class TestFollow:
    """With -follow; the copies have to be equal within a second of each change."""

    def follow(self, scenario: Callable[[World], Awaitable[None]]) -> None:
        async def whole(world: World) -> None:
            world.v2.put_raw(A, ONE, 3600)
            following = asyncio.create_task(NetworkCopy(world.v2, world.v3, say=world.lines.append).follow())
            await asyncio.sleep(1)
            await scenario(world)
            following.cancel()
            with pytest.raises(asyncio.CancelledError):
                await following

        play(whole)

    def test_new_leases_changes_renewals_and_deletions_are_followed(self) -> None:
        async def scenario(world: World) -> None:
            world.v2.put_raw(B, TWO, 3600)
            await asyncio.sleep(1)
            assert set(await world.values()) == {A, B}
            await asyncio.sleep(1800)
            version = world.v2.put_raw(A, ONE, 3600).version
            await asyncio.sleep(1)
            assert original((await world.values())[A]) == (ONE, version)
            assert (await world.entries())[A].lifetime.seconds in (3599, 3600)
            world.v2.delete_raw(A)
            await asyncio.sleep(1)
            assert set(await world.values()) == {B}
            assert world.lines[-1] == f"{A}: removed, the lease in v2 is gone"

        self.follow(scenario)

    def test_an_expiration_is_followed(self) -> None:
        async def scenario(world: World) -> None:
            await asyncio.sleep(3601)
            assert await world.values() == {}

        self.follow(scenario)

    def test_a_copy_that_goes_away_in_v3_is_made_again(self) -> None:
        """As for a host that has gone back to v2: its own lease in v3 expires."""

        async def scenario(world: World) -> None:
            world.v3.put_raw(A, ONE, 10)
            await asyncio.sleep(1800)
            assert original((await world.values())[A]) == (ONE, 1 + 1)
            assert (await world.entries())[A].lifetime.seconds in range(1780, 1830)

        self.follow(scenario)

    def test_a_lease_that_its_host_has_written_over_is_left_alone(self) -> None:
        async def scenario(world: World) -> None:
            entry = world.v3.put_raw(A, ONE, 7200)
            world.v2.put_raw(A, ONE, 3600)
            await asyncio.sleep(1)
            world.v2.delete_raw(A)
            await asyncio.sleep(1)
            assert (await world.entries())[A].version == entry.version

        self.follow(scenario)

    def test_the_config_is_followed(self) -> None:
        async def scenario(world: World) -> None:
            world.v2.set_config('{"Network":"12.0.0.0/16"}')
            await asyncio.sleep(31 + 30)
            assert await world.v3.read_config() == copy_of('{"Network":"12.0.0.0/16"}', 0)

        self.follow(scenario)

    @pytest.mark.parametrize("store", ["v2", "v3"])
    def test_an_outage_is_survived(self, store: str) -> None:
        async def scenario(world: World) -> None:
            failing = getattr(world, store)
            failing.go_down()
            await asyncio.sleep(60)
            failing.come_up()
            world.v2.put_raw(B, TWO, 3600)
            world.v2.delete_raw(A)
            await asyncio.sleep(6)
            assert set(await world.values()) == {B}

        self.follow(scenario)

    def test_a_lost_history_is_survived(self) -> None:
        async def scenario(world: World) -> None:
            world.v2.remove_subnets()
            world.v2.put_raw(B, TWO, 3600)
            await asyncio.sleep(6)
            assert set(await world.values()) == {B}

        self.follow(scenario)

    def test_a_conflict_is_printed_once(self) -> None:
        async def scenario(world: World) -> None:
            world.v3.put_raw(A, TWO, 7200)
            for _ in range(3):
                world.v2.put_raw(A, ONE, 3600)
                await asyncio.sleep(1)
            assert sum(": conflict, " in line for line in world.lines) == 1

        self.follow(scenario)

    def test_a_change_that_an_unmarked_lease_hides_is_printed_when_it_happens(self) -> None:
        """As for a host that went back to v2 and got another device, while its lease in v3 has not expired."""

        async def scenario(world: World) -> None:
            world.v2.put_raw(B, VXLAN % "ce:01", 3600)
            world.v3.put_raw(B, VXLAN % "ce:01", 7200)
            await asyncio.sleep(10)
            assert not any(": conflict, " in line for line in world.lines)
            for _ in range(3):
                world.v2.put_raw(B, VXLAN % "ce:02", 3600)
                await asyncio.sleep(5)
            [line] = (line for line in world.lines if ": conflict, " in line)
            assert "ce:02" in line
            world.v3.delete_raw(B)
            await asyncio.sleep(1)
            assert original((await world.values())[B]) is not None
            assert world.lines[-1].startswith(f"{B}: copied, expires in ")

        self.follow(scenario)

    def test_a_host_that_writes_one_store_after_the_other_is_no_news(self) -> None:
        async def scenario(world: World) -> None:
            world.v3.put_raw(A, VXLAN % "ce:01", 7200)
            world.v2.put_raw(A, VXLAN % "ce:01", 7200)
            await asyncio.sleep(5)
            before = list(world.lines)
            for number in range(5):
                world.v2.put_raw(A, VXLAN % f"ce:0{number}", 7200)
                await asyncio.sleep(1)
                world.v3.put_raw(A, VXLAN % f"ce:0{number}", 7200)
                await asyncio.sleep(1)
            await asyncio.sleep(5)
            assert world.lines == before

        self.follow(scenario)

    def test_writes_that_are_lost_are_tried_again(self) -> None:
        async def scenario(world: World) -> None:
            states = itertools.count()
            is_disturbed = True

            def disturb(name: str) -> None:
                if is_disturbed:
                    world.v3.put_raw(name, copy_of(TWO, next(states)), 7200)

            world.v3.before_write = disturb  # type: ignore[method-assign]
            version = world.v2.put_raw(A, ONE, 3600).version
            await asyncio.sleep(5)
            assert f"{A}: failed, another program changed it at each of 5 tries" in world.lines
            is_disturbed = False
            await asyncio.sleep(5)
            assert original((await world.values())[A]) == (ONE, version)

        self.follow(scenario)

    def test_an_event_that_arrives_late_makes_no_copy_that_lives_longer(self) -> None:
        async def scenario(world: World) -> None:
            watch = world.v2.watch

            async def late(cursor: int, timeout: float) -> Changes:
                changes = await watch(cursor, timeout)
                await asyncio.sleep(20)
                return changes

            world.v2.watch = late  # type: ignore[method-assign]
            await asyncio.sleep(31)
            world.v2.put_raw(B, TWO, 60)
            await asyncio.sleep(30)
            assert B in await world.values()
            world.v2.go_down()  # or the expiration would be followed
            await asyncio.sleep(30 + 1)
            assert B not in await world.values()

        self.follow(scenario)

    @pytest.mark.parametrize("is_everything_deleted", [False, True])
    def test_without_a_config_in_v2_it_ends_and_the_copies_stay(self, is_everything_deleted: bool) -> None:
        async def scenario(world: World) -> None:
            world.v2.put_raw(A, ONE, 3600)
            following = asyncio.create_task(NetworkCopy(world.v2, world.v3, say=world.lines.append).follow())
            await asyncio.sleep(1)
            world.v2.set_config(None)
            if is_everything_deleted:
                world.v2.delete_raw(A)
            await asyncio.wait_for(following, 61)
            world.v2.put_raw(B, TWO, 3600)
            await asyncio.sleep(1)
            assert set(await world.values()) == {A}
            assert await world.v3.read_config() == copy_of(CONFIG, 0)

        play(scenario)


def test_without_a_config_in_v2_there_is_nothing_to_follow() -> None:
    async def scenario(world: World) -> None:
        world.v2.set_config(None)
        with pytest.raises(KeyNotFound):
            await NetworkCopy(world.v2, world.v3, say=world.lines.append).follow()
        assert world.lines == []

    play(scenario)


@pytest.mark.parametrize("seconds", [0, 10])
def test_an_endpoint_without_the_v2_api_beside_a_silent_one_does_not_end_it(seconds: float) -> None:
    """``seconds``: when that begins.  The silent endpoint may have the config."""

    async def scenario(world: World) -> None:
        read_config, is_certain = world.v2.read_config, False

        async def refuse() -> str:
            if world.now() < seconds:
                return await read_config()
            raise ApiSwitchedOff("the v2 API is switched off", is_certain)

        world.v2.read_config = refuse  # type: ignore[method-assign]
        world.v2.put_raw(A, ONE, 3600)
        following = asyncio.create_task(NetworkCopy(world.v2, world.v3, say=world.lines.append).follow())
        await asyncio.sleep(300)
        assert not following.done()
        is_certain = True
        async with asyncio.timeout(61):
            await asyncio.wait([following])
        assert isinstance(following.exception(), ApiSwitchedOff if seconds == 0 else type(None))

    play(scenario)


def test_a_first_copy_that_takes_several_tries_prints_no_line_twice() -> None:
    """As with a user that etcd lets read in v3 and not write."""

    async def scenario(world: World) -> None:
        world.v3.set_config(CONFIG)
        world.v2.put_raw(A, ONE, 3600)

        def refuse(name: str) -> None:
            if world.now() < 60:
                raise RegistryUnavailable("permission denied")

        world.v3.before_write = refuse  # type: ignore[method-assign]
        following = asyncio.create_task(NetworkCopy(world.v2, world.v3, say=world.lines.append).follow())
        await asyncio.sleep(70)
        following.cancel()
        assert world.lines[0] == "config: kept, v3 has the same"
        assert world.lines[1].startswith(f"{A}: copied, expires in ")
        assert world.lines[2:] == [
            "1 copied, 0 updated, 0 removed, 0 unchanged, 1 kept, 0 conflict, 0 failed, 0 ignored"
        ]

    play(scenario)


def test_no_answer_at_the_first_try_is_an_error() -> None:
    async def scenario(world: World) -> None:
        world.v3.go_down()
        with pytest.raises(RegistryUnavailable):
            await world.make()

    play(scenario)
