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
from flannelpy.subnet.config import parse
from flannelpy.subnet.lease import HostIdentity, Lease, LeaseAttrs
from flannelpy.subnet.lease_policy import CLAIM_SECONDS

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


def test_a_misfit_of_a_twin_that_lives_is_left_to_it() -> None:
    """The config was changed while the twin ran; it acts upon that at its next start."""

    async def scenario(host_identity: Twin, newcomer: Twin) -> None:
        async with host_identity.running() as watch:
            with pytest.raises(LeaseLost, match="is not unique"):
                await newcomer.acquire(config=parse('{"Network":"12.0.0.0/16"}'))
            assert not watch.done()
            assert (await host_identity.entries())[OWN_NAME].value == signed(FIRST)

    twins(scenario)
