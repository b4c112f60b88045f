"""How a host reacts to changes of its own lease: adopt, restore, recreate, surrender."""

from __future__ import annotations

import asyncio

import pytest
from support.lease_world import (
    LEASE_TTL,
    OURS,
    OWN,
    OWN_NAME,
    RENEW_MARGIN,
    B,
    C,
    Leaderless,
    World,
    play,
)

from flannelpy.errors import LeaseLost
from flannelpy.registry.base import PERMANENT, KeyValue, Schema, expires_in


def test_a_deleted_lease_is_recreated_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        async with world.running() as watch:
            await asyncio.sleep(1000)
            before = world.now()
            world.registry.delete_raw(OWN_NAME)
            await asyncio.sleep(1)
            [entry] = (await world.entries()).values()
            assert (entry.name, entry.value) == (OWN_NAME, OURS)
            assert entry.version == world.manager.own.version
            assert world.manager.report().seconds_left == pytest.approx(LEASE_TTL - (world.now() - before), abs=1)
            assert not watch.done()

    play(scenario)
    assert caplog.messages[2:] == ["Own lease 11.0.59.0/24 was deleted or has expired; recreating the lease"]


def test_a_deleted_reservation_is_recreated_as_a_lease() -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw(OWN_NAME, OURS, None)
        async with world.running():
            world.registry.delete_raw(OWN_NAME)
            await asyncio.sleep(1)
            assert (await world.entries())[OWN_NAME].lifetime.seconds is not None
            assert world.manager.report().seconds_left == pytest.approx(LEASE_TTL, abs=1)

    play(scenario)


def test_a_lease_that_expired_during_an_outage_is_recreated(caplog: pytest.LogCaptureFixture) -> None:
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
def test_a_host_surrenders_a_lease_that_a_peer_holds(holder_ttl: int | None) -> None:
    async def scenario(world: World) -> None:
        async with world.running() as watch:
            theirs = world.registry.put_raw(OWN_NAME, B, holder_ttl)
            await asyncio.sleep(1)
            with pytest.raises(LeaseLost) as caught:
                await watch
            assert str(caught.value) == "subnet 11.0.59.0/24 is held by 172.17.8.102 now, not by us (172.17.8.101)"
            lifetime = expires_in(holder_ttl - 1) if holder_ttl else PERMANENT
            assert await world.entries() == {OWN_NAME: KeyValue(OWN_NAME, B, lifetime, theirs.version, theirs.created)}

    play(scenario)


def test_a_host_surrenders_a_deleted_lease_that_a_peer_created() -> None:
    async def scenario(world: World) -> None:
        async with world.running() as watch:
            world.registry.delete_raw(OWN_NAME)
            theirs = world.registry.put_raw(OWN_NAME, B, 86400)
            await asyncio.sleep(0.5)
            with pytest.raises(LeaseLost, match=r"172\.17\.8\.102"):
                await watch
            assert (await world.entries())[OWN_NAME].version == theirs.version

    play(scenario)


def test_a_host_surrenders_a_lease_that_a_peer_took_during_an_outage() -> None:
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


def test_recreating_the_lease_is_retried_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
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


def test_a_lost_reply_to_the_recreation_does_no_harm() -> None:
    async def scenario(world: World) -> None:
        async with world.running() as watch:
            world.registry.lose_reply_of_next_write()
            world.registry.delete_raw(OWN_NAME)
            await asyncio.sleep(3)
            [entry] = (await world.entries()).values()
            assert (entry.value, entry.version) == (OURS, world.manager.own.version)
            assert not watch.done()

    play(scenario)


@pytest.mark.parametrize("holder_ttl", [86400, None])
@pytest.mark.parametrize("name", ["11.0.59.0-25", "11.0.56.0-21", "11.0.59.9-32"])
def test_a_host_surrenders_to_an_overlapping_lease_that_was_created_earlier(name: str, holder_ttl: int | None) -> None:
    """It was created between our list and our create, or before our deleted lease was recreated."""

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


@pytest.mark.sample("name", 2)
@pytest.mark.parametrize("name", ["11.0.59.0-25", "11.0.56.0-21", "11.0.0.0-16", "0.0.0.0-0"])
def test_an_overlapping_lease_that_was_created_later_changes_nothing_nor_does_one_of_no_network(name: str) -> None:
    async def scenario(world: World) -> None:
        if name in ("11.0.0.0-16", "0.0.0.0-0"):  # they do not keep us from a lease, either
            world.registry.put_raw(name, B, None)
        async with world.running() as watch:
            created = world.manager.own.created
            for value in (B, C):
                world.registry.put_raw(name, value, None)
                await asyncio.sleep(LEASE_TTL)
            assert not watch.done()
            assert (await world.entries())[OWN_NAME].created == world.manager.own.created == created

    play(scenario)


def test_an_overlapping_lease_that_flanneld_renews_counts_as_later_in_v2_and_as_before_in_v3(schema: Schema) -> None:
    """flanneld sets the key without a condition: v2 creates it again, v3 keeps its creation."""

    async def scenario(world: World) -> None:
        await world.acquire(OWN)
        world.registry.delete_raw(OWN_NAME)
        world.registry.put_raw("11.0.59.0-25", B, 86400)
        world.registry.put_raw(OWN_NAME, OURS, 86400)
        world.registry.put_raw("11.0.59.0-25", B, 86400)  # the renewal
        watch = asyncio.create_task(world.manager.watch(world.apply))
        await asyncio.sleep(10)
        assert watch.done() is (schema is Schema.V3)
        watch.cancel()
        with pytest.raises((LeaseLost, asyncio.CancelledError)):
            await watch

    play(scenario)


def test_an_own_lease_that_flanneld_overwrites_counts_as_later_in_v2_and_as_before_in_v3(schema: Schema) -> None:
    async def scenario(world: World) -> None:
        async with world.running() as watch:
            world.registry.put_raw("11.0.59.0-25", B, 86400)
            await asyncio.sleep(1)
            assert not watch.done()
            world.registry.put_raw(OWN_NAME, OURS, 86400)
            await asyncio.sleep(1)
            assert watch.done() is (schema is Schema.V2)

    play(scenario)
