"""What a host does when its store is restored from a backup: the table of subnet/lease_policy.py decides."""

from __future__ import annotations

import asyncio

import pytest
from support.lease_world import LEASE_TTL, OURS, OWN, OWN_NAME, RENEW_MARGIN, B, C, World, play, summary

from flannelpy.errors import LeaseLost

# A host notices within this time that its store has gone back.
NOTICED = 61.0
PEER, OTHER = "11.0.101.0-24", "11.0.102.0-24"


def write_much(world: World) -> None:
    """Move the store far beyond the backup."""
    for _ in range(50):
        world.registry.put_raw(OTHER, C, LEASE_TTL)


def test_a_lease_that_is_younger_than_the_backup_is_recreated() -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw(PEER, B, LEASE_TTL)
        restore = world.registry.back_up()
        async with world.running() as watch:
            write_much(world)
            await asyncio.sleep(1)
            restore()
            await asyncio.sleep(NOTICED)
            own = (await world.entries())[OWN_NAME]
            assert (own.value, own.version) == (OURS, world.manager.own.version)
            assert not watch.done()
            await asyncio.sleep(NOTICED)
            assert summary(world.events) == [
                ("11.0.101.0/24", "172.17.8.102"),
                ("11.0.102.0/24", "172.17.8.103"),
                ("11.0.102.0/24", None),  # its host is gone, and would have recreated it
            ]

    play(scenario)


def test_an_older_version_of_the_own_lease_is_adopted_and_lives_on() -> None:
    async def scenario(world: World) -> None:
        async with world.running() as watch:
            restore = world.registry.back_up()
            world.registry.put_raw(OWN_NAME, OURS, LEASE_TTL)
            write_much(world)
            await asyncio.sleep(1000)
            restore()
            await asyncio.sleep(2 * LEASE_TTL)
            [own] = [entry for entry in (await world.entries()).values() if entry.name == OWN_NAME]
            assert (own.value, own.version) == (OURS, world.manager.own.version)
            assert (own.lifetime.seconds or 0) >= RENEW_MARGIN - 60
            assert not watch.done()

    play(scenario)


@pytest.mark.parametrize("ttl", [LEASE_TTL, None])
def test_an_older_lease_of_another_host_comes_back_and_keeps_the_subnet(ttl: int | None) -> None:
    """It may be running, and every store that was restored names it."""

    async def scenario(world: World) -> None:
        world.registry.put_raw(OWN_NAME, B, ttl)
        restore = world.registry.back_up()
        world.registry.delete_raw(OWN_NAME)
        async with world.running() as watch:
            write_much(world)
            await asyncio.sleep(1)
            restore()
            with pytest.raises(LeaseLost, match=r"subnet 11\.0\.59\.0/24 is held by 172\.17\.8\.102 now"):
                await asyncio.wait_for(watch, NOTICED)
            assert (await world.entries())[OWN_NAME].value == B

    play(scenario)


def test_an_older_lease_that_overlaps_comes_back_and_keeps_its_subnet() -> None:
    """The own lease is younger than the backup, so it is recreated, and is then the later one."""

    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.59.0-25", B, LEASE_TTL)
        restore = world.registry.back_up()
        world.registry.delete_raw("11.0.59.0-25")
        async with world.running() as watch:
            write_much(world)
            await asyncio.sleep(1)
            restore()
            with pytest.raises(LeaseLost, match=r"overlaps 11\.0\.59\.0/25, which 172\.17\.8\.102 leased earlier"):
                await asyncio.wait_for(watch, NOTICED)
            assert set(await world.entries()) == {"11.0.59.0-25"}

    play(scenario)


def test_a_former_lease_of_ours_comes_back_and_changes_nothing_also_at_the_next_start() -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.7.0-24", OURS, LEASE_TTL)
        restore = world.registry.back_up()
        world.registry.delete_raw("11.0.7.0-24")
        async with world.running() as watch:
            write_much(world)
            await asyncio.sleep(1)
            restore()
            await asyncio.sleep(NOTICED)
            assert not watch.done()
            assert world.manager.own.subnet == OWN
            assert set(await world.entries()) == {"11.0.7.0-24", OWN_NAME}
        assert (await world.acquire(OWN)).subnet == OWN

    play(scenario)
