"""Two hosts with one public IP: the claim, the objection, and the order of host IDs."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Network

import pytest
from support.fakes import FakeRegistry
from support.fakes_clock import LoopClock, run
from support.lease_world import (
    LEASE_TTL,
    OUR_IP,
    OURS,
    OWN,
    OWN_NAME,
    B,
    World,
    play,
    summary,
)

from flannelpy.errors import LeaseLost
from flannelpy.leasing.manager import SubnetManager
from flannelpy.logs import LogLimit
from flannelpy.subnet.config import parse
from flannelpy.subnet.lease import HostIdentity, Lease, LeaseAttrs
from flannelpy.subnet.lease_policy import CLAIM_SECONDS

FIRST, SECOND = "a-first", "b-second"


def signed(host_id: str, claim: bool = False) -> str:
    return LeaseAttrs(OUR_IP, host_id=host_id, claim=claim).encode()


class Duplicate(World):
    """One of two hosts that both are 172.17.8.101."""

    def __init__(self, registry: FakeRegistry, host_id: str) -> None:
        clock = LoopClock()
        self.now = clock.now
        self.registry = registry
        self.manager = SubnetManager(registry, clock, random.Random(host_id), HostIdentity(OUR_IP, host_id))
        self.events = []


def play_duplicates(
    scenario: Callable[[Duplicate, Duplicate], Awaitable[None]], first: str = FIRST, second: str = SECOND
) -> None:
    async def whole() -> None:
        registry = FakeRegistry(LoopClock().now, World.schema)
        await scenario(Duplicate(registry, first), Duplicate(registry, second))

    run(whole())


NOT_UNIQUE = (
    r"public IP 172\.17\.8\.101 is not unique: another host \({theirs}, we are {ours}\) leases 11\.0\.59\.0/24 with "
    r"it; give each its own by -iface or -public-ip"
)


@pytest.mark.parametrize(("first", "second"), [(FIRST, SECOND), (SECOND, FIRST)])
def test_a_newcomer_gives_up_when_a_live_holder_objects(
    first: str, second: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(holder: Duplicate, newcomer: Duplicate) -> None:
        async with holder.running() as watch:
            for _ in range(3):  # systemd starts it again and again
                with pytest.raises(LeaseLost, match=NOT_UNIQUE.format(theirs=first, ours=second)):
                    await newcomer.acquire()
            assert not watch.done()
            [entry] = (await holder.entries()).values()
            assert (entry.name, entry.value, entry.version) == (
                OWN_NAME,
                signed(first),
                holder.manager.own.version,
            )
            assert holder.events == []

    play_duplicates(scenario, first, second)
    assert (
        sum(re.fullmatch(NOT_UNIQUE.format(theirs=second, ours=first), line) is not None for line in caplog.messages)
        == 3
    )


def test_a_reinstalled_host_gets_its_subnet_after_a_short_wait(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(before: Duplicate, after: Duplicate) -> None:
        await before.acquire(OWN)
        start = after.now()
        assert (await after.acquire()).subnet == OWN
        assert after.now() - start == pytest.approx(CLAIM_SECONDS, abs=0.1)
        [entry] = (await after.entries()).values()
        assert (entry.value, entry.lifetime.seconds) == (signed(SECOND), LEASE_TTL)

    play_duplicates(scenario)
    assert (
        "Lease (11.0.59.0/24) may belong to a live host (host ID a-first); waiting 3 s for that host to object"
        in caplog.messages
    )


def test_a_claim_that_was_interrupted_is_made_again() -> None:
    """The store failed while the newcomer waited, so the holder could not object."""

    async def scenario(holder: Duplicate, newcomer: Duplicate) -> None:
        async with holder.running():
            holder.registry.go_down()
            await asyncio.sleep(10)
            holder.registry.put_raw(OWN_NAME, signed(SECOND, claim=True), LEASE_TTL)
            claiming = asyncio.create_task(newcomer.acquire())
            holder.registry.come_up()
            with pytest.raises(LeaseLost, match="is not unique"):
                await claiming
            assert (await holder.entries())[OWN_NAME].value == signed(FIRST)

    play_duplicates(scenario)


def test_of_two_newcomers_at_the_same_moment_one_gets_the_subnet() -> None:
    async def scenario(one: Duplicate, other: Duplicate) -> None:
        async def start(duplicate: Duplicate) -> None:
            await duplicate.acquire(OWN)
            await asyncio.sleep(0.5)  # the device is made
            await duplicate.manager.watch(duplicate.apply)

        tasks = [asyncio.create_task(start(duplicate)) for duplicate in (one, other)]
        await asyncio.sleep(100)
        ended = [task.done() for task in tasks]
        assert sorted(ended) == [False, True]
        with pytest.raises(LeaseLost, match="is not unique"):
            await tasks[ended.index(True)]
        living = (one, other)[ended.index(False)]
        [entry] = (await living.entries()).values()
        assert entry.value == signed(living.manager._own.host_identity.host_id)
        tasks[ended.index(False)].cancel()

    play_duplicates(scenario)


@pytest.mark.parametrize(("first", "second"), [(FIRST, SECOND), (SECOND, FIRST)])
def test_of_two_newcomers_that_create_two_leases_one_stays(first: str, second: str) -> None:
    """Both start at once, so neither sees the lease of the other, and each picks a subnet."""

    async def scenario(one: Duplicate, other: Duplicate) -> None:
        async def start(duplicate: Duplicate, subnet: IPv4Network) -> None:
            await duplicate.acquire(subnet)
            await duplicate.manager.watch(duplicate.apply)

        duplicates = {FIRST: one, SECOND: other} if first == FIRST else {FIRST: other, SECOND: one}
        subnets = {FIRST: OWN, SECOND: IPv4Network("11.0.60.0/24")}
        tasks = {name: asyncio.create_task(start(duplicate, subnets[name])) for name, duplicate in duplicates.items()}
        await asyncio.sleep(10)
        assert not tasks[FIRST].done()
        with pytest.raises(LeaseLost, match="is not unique"):
            await tasks[SECOND]
        assert {name: entry.value for name, entry in (await one.entries()).items()} == {OWN_NAME: signed(FIRST)}
        with pytest.raises(LeaseLost, match="is not unique"):
            await duplicates[SECOND].acquire()
        tasks[FIRST].cancel()

    play_duplicates(scenario, first, second)


def test_a_lease_of_ours_does_not_hide_one_of_a_duplicate() -> None:
    async def scenario(holder: Duplicate, newcomer: Duplicate) -> None:
        async with holder.running() as watch:
            holder.registry.put_raw("11.0.60.0-24", signed(SECOND), LEASE_TTL)
            with pytest.raises(LeaseLost, match="is not unique"):
                await newcomer.acquire()
            assert not watch.done()

    play_duplicates(scenario)


def test_a_host_that_surrenders_to_a_lower_host_id_removes_its_lease() -> None:
    """Otherwise the holder's next start would have to claim that lease."""

    async def scenario(holder: Duplicate, _: Duplicate) -> None:
        async with holder.running() as watch:
            holder.registry.put_raw("11.0.60.0-24", signed(FIRST), LEASE_TTL)
            with pytest.raises(LeaseLost, match="is not unique"):
                await watch
            assert list(await holder.entries()) == ["11.0.60.0-24"]

    play_duplicates(scenario, SECOND, FIRST)


def test_leases_of_dead_duplicates_are_removed() -> None:
    async def scenario(host: Duplicate, _: Duplicate) -> None:
        host.registry.put_raw("11.0.60.0-24", signed("dead"), 80000)
        host.registry.put_raw("11.0.61.0-24", signed("dead-too"), 80000)
        own = await host.acquire()
        assert {name: entry.value for name, entry in (await host.entries()).items()} == {"11.0.60.0-24": signed(FIRST)}
        assert str(own.subnet) == "11.0.60.0/24"

    play_duplicates(scenario)


def test_of_two_newcomers_on_a_dead_hosts_lease_one_gets_it() -> None:
    async def scenario(one: Duplicate, other: Duplicate) -> None:
        one.registry.put_raw(OWN_NAME, signed("dead"), 80000)
        results = await asyncio.gather(one.acquire(), other.acquire(), return_exceptions=True)
        assert sum(type(result) is LeaseLost for result in results) == 1
        [lease] = [result for result in results if isinstance(result, Lease)]
        [entry] = (await one.entries()).values()
        assert (lease.subnet, entry.value) == (OWN, signed(lease.attrs.host_id))

    play_duplicates(scenario)


@pytest.mark.parametrize(("ours", "stays"), [(FIRST, True), (SECOND, False)])
def test_of_two_that_both_hold_it_one_leaves(ours: str, stays: bool) -> None:
    """A holder was cut off from the store while a newcomer waited for its objection."""
    theirs = FIRST if ours == SECOND else SECOND

    async def scenario(holder: Duplicate, _: Duplicate) -> None:
        async with holder.running() as watch:
            holder.registry.put_raw(OWN_NAME, signed(theirs), LEASE_TTL)
            await asyncio.sleep(1)
            assert watch.done() is not stays
            assert (await holder.entries())[OWN_NAME].value == signed(FIRST if stays else theirs)
            if not stays:
                with pytest.raises(LeaseLost, match=NOT_UNIQUE.format(theirs=theirs, ours=ours)):
                    await watch

    play_duplicates(scenario, ours, theirs)


def test_a_plain_flanneld_with_our_public_ip_is_logged_and_overwritten(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(holder: Duplicate, _: Duplicate) -> None:
        async with holder.running() as watch:
            holder.registry.put_raw(OWN_NAME, OURS, LEASE_TTL)
            await asyncio.sleep(1)
            assert not watch.done()
            assert (await holder.entries())[OWN_NAME].value == signed(FIRST)

    play_duplicates(scenario)
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "overwritten without a host ID, as by flanneld" in warning
    assert "172.17.8.101 is not unique" in warning


def test_a_lease_that_is_overwritten_without_end_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(holder: Duplicate, _: Duplicate) -> None:
        async with holder.running() as watch:
            for _turn in range(100):
                holder.registry.put_raw(OWN_NAME, OURS, LEASE_TTL)
                await asyncio.sleep(1)
            await asyncio.sleep(200)
            assert not watch.done()

    play_duplicates(scenario)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == LogLimit.BURST + 1
    assert warnings[-1] == "Own lease was overwritten: 80 more in the last two minutes"


def test_a_lease_of_a_flanneld_before_us_is_taken_over_at_once() -> None:
    async def scenario(host: Duplicate, _: Duplicate) -> None:
        host.registry.put_raw(OWN_NAME, OURS, 80000)
        start = host.now()
        assert (await host.acquire()).subnet == OWN
        assert host.now() == start
        assert (await host.entries())[OWN_NAME].value == signed(FIRST)

    play_duplicates(scenario)


def test_a_host_without_a_host_id_claims_nothing() -> None:
    async def scenario(host: Duplicate, _: Duplicate) -> None:
        host.registry.put_raw(OWN_NAME, signed(SECOND), 80000)
        start = host.now()
        assert (await host.acquire()).subnet == OWN
        assert host.now() == start

    play_duplicates(scenario, "")


def test_another_lease_with_our_public_ip_leads_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        async with world.running():
            world.registry.put_raw("11.0.77.0-24", OURS, 80000)
            world.registry.put_raw("11.0.78.0-24", B, 80000)
            await asyncio.sleep(1)
            world.registry.put_raw("11.0.78.0-24", OURS, 80000)
            await asyncio.sleep(1)
            assert summary(world.events) == [("11.0.78.0/24", "172.17.8.102"), ("11.0.78.0/24", None)]

    play(scenario)
    assert [line for line in caplog.messages if "Ignoring" in line] == [
        "Ignoring lease 11.0.77.0-24: it has our public IP",
        "Ignoring lease 11.0.78.0-24: it has our public IP",
    ]


def test_leases_that_are_ignored_together_are_one_line_for_each_cause(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        for number in range(10, 18):
            world.registry.put_raw(f"11.0.{number}.0-24", "{}", 80000)
        world.registry.put_raw("rubbish", "", 80000)
        async with world.running():
            await asyncio.sleep(1)
            for number in range(20, 22):
                world.registry.put_raw(f"11.0.{number}.0-24", OURS, 80000)
            await asyncio.sleep(1)

    play(scenario)
    assert [line for line in caplog.messages if "Ignoring" in line] == [
        "Ignoring lease 11.0.10.0-24, 11.0.11.0-24, 11.0.12.0-24 and 5 more: no PublicIP",
        "Ignoring lease rubbish: no subnet key such as 10.1.7.0-24",
        "Ignoring lease 11.0.20.0-24, 11.0.21.0-24: it has our public IP",
    ]


def test_an_unfit_lease_of_a_live_duplicate_is_left_alone() -> None:
    """The config changed while the duplicate ran; the duplicate applies the change at its next start."""

    async def scenario(holder: Duplicate, newcomer: Duplicate) -> None:
        async with holder.running() as watch:
            with pytest.raises(LeaseLost, match="is not unique"):
                await newcomer.acquire(config=parse('{"Network":"12.0.0.0/16"}'))
            assert not watch.done()
            assert (await holder.entries())[OWN_NAME].value == signed(FIRST)

    play_duplicates(scenario)
