"""The gate between the watch and the backend, with a kernel that answers, fails, or changes its mind."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.addressing.surroundings import NO_SURROUNDINGS, Surroundings
from flannelpy.backend import lease_gate
from flannelpy.backend.lease_gate import LeaseGate
from flannelpy.backend.underlay import Underlay
from flannelpy.errors import HostError
from flannelpy.linux.netlink.client import Netlink
from flannelpy.registry.base import expires_in
from flannelpy.subnet.lease import Lease, LeaseAttrs
from flannelpy.subnet.lease_filter import LeaseFilter
from flannelpy.subnet.lease_table import LeaseAdded, LeaseEvent, LeaseRemoved

NETWORK, OUR_IP = IPv4Network("11.0.0.0/8"), IPv4Address("172.17.8.101")
DAY = expires_in(86400)
OWN = Lease(IPv4Network("11.0.59.0/24"), LeaseAttrs(OUR_IP), DAY, 1, 1)


class FakeUnderlay(Underlay):
    """``captured``: public IPs that an overlay device would get; None while the kernel cannot be asked."""

    def __init__(self) -> None:
        super().__init__(ExternalInterface("eth1", OUR_IP, 1500), OUR_IP, ())
        self.around = NO_SURROUNDINGS
        self.captured: set[IPv4Address] | None = set()
        self.asked: list[int] = []

    async def observe(self, netlink: Netlink) -> Surroundings:
        return self.around

    async def overlay_ways(self, netlink: Netlink, addresses: Sequence[IPv4Address]) -> dict[IPv4Address, str]:
        if self.captured is None:
            raise HostError("cannot ask this machine for its routes: No buffer space available")
        self.asked.append(len(addresses))
        return {address: "flannel0" * (address in self.captured) for address in addresses}


class World:
    def __init__(self) -> None:
        self.underlay = FakeUnderlay()
        self.forwarded: list[list[LeaseEvent]] = []
        leases = LeaseFilter(NETWORK, OWN, NO_SURROUNDINGS)
        self.gate = LeaseGate(Netlink(), leases, self.underlay, lambda events: self.forwarded.append(list(events)))


def play(scenario: Callable[[World], Awaitable[None]]) -> World:
    async def whole() -> World:
        world = World()
        await scenario(world)
        return world

    return asyncio.run(whole())


def added(number: int, public_ip: str | None = None) -> LeaseAdded:
    subnet = IPv4Network((f"11.{1 + number // 256}.{number % 256}.0", 24))
    address = IPv4Address(public_ip) if public_ip else IPv4Address("172.18.0.0") + number
    return LeaseAdded(Lease(subnet, LeaseAttrs(address), DAY, 1, 1))


@pytest.mark.parametrize("events", [[], [added(1, "127.0.0.1")]])
def test_an_empty_set_of_usable_leases_is_forwarded_once(events: list[LeaseEvent]) -> None:
    async def scenario(world: World) -> None:
        await world.gate.check()
        assert world.forwarded == []  # the watch knows nothing yet
        await world.gate.apply(events)
        await world.gate.apply([LeaseRemoved(IPv4Network("11.9.9.0/24"))])
        await world.gate.check()

    assert play(scenario).forwarded == [[]]


def test_all_leases_are_forwarded_in_one_call_and_the_kernel_is_asked_200_questions_at_a_time() -> None:
    events = [added(number) for number in range(1001)]

    async def scenario(world: World) -> None:
        await world.gate.apply(events)
        assert world.underlay.asked == [200, 200, 200, 200, 200, 1]
        for _ in range(3):
            await world.gate.check()

    world = play(scenario)
    assert world.forwarded == [events]
    assert world.underlay.asked[6:] == [200, 200, 200]


def test_other_tasks_run_while_thousands_of_leases_are_decided() -> None:
    async def turns(until: Callable[[], bool]) -> int:
        count = 0
        while not until():
            await asyncio.sleep(0)
            count += 1
        return count

    async def scenario(world: World) -> None:
        deciding = asyncio.create_task(world.gate.apply([added(number) for number in range(5000)]))
        assert await turns(lambda: bool(world.underlay.asked)) > 20
        assert await turns(deciding.done) > 20

    play(scenario)


def test_while_the_kernel_cannot_be_asked_leases_wait(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(world: World) -> None:
        world.underlay.captured = None
        await world.gate.apply([added(1)])
        await world.gate.apply([added(2)])
        with pytest.raises(HostError):
            await world.gate.check()
        assert world.forwarded == []
        world.underlay.captured = set()
        await world.gate.check()

    assert play(scenario).forwarded == [[added(1), added(2)]]
    assert caplog.messages == [
        "Failed to ask the kernel which leases are usable: cannot ask this machine for its routes: No buffer space"
        " available"
    ]


def test_a_check_withdraws_unusable_leases_and_adds_them_when_usable(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        await world.gate.apply([added(1), added(2)])
        world.underlay.captured = {IPv4Address("172.18.0.1")}
        await world.gate.check()
        await world.gate.check()
        world.underlay.captured = set()
        world.underlay.around = NO_SURROUNDINGS._replace(addresses=frozenset([IPv4Address("172.18.0.2")]))
        await world.gate.check()

    one, two = added(1), added(2)
    forwarded = play(scenario).forwarded
    assert forwarded[:2] == [[one, two], [LeaseRemoved(one.lease.subnet)]]
    assert sorted(map(str, forwarded[2])) == sorted(map(str, [one, LeaseRemoved(two.lease.subnet)]))
    assert caplog.messages == [
        "Ignoring subnet 11.1.1.0/24: the kernel would send packets for its public IP 172.18.0.1 into flannel0, an "
        "overlay device of this host",
        "Ignoring subnet 11.1.2.0/24: its public IP 172.18.0.2 is an address of this host",
    ]


def test_an_address_that_comes_and_goes_is_one_line_each_time_and_not_one_for_each_lease(
    caplog: pytest.LogCaptureFixture,
) -> None:
    public_ip = IPv4Address("172.18.0.1")

    async def scenario(world: World) -> None:
        await world.gate.apply([added(number, str(public_ip)) for number in range(1, 101)])
        for _ in range(3):
            world.underlay.around = NO_SURROUNDINGS._replace(addresses=frozenset([public_ip]))
            await world.gate.check()
            world.underlay.around = NO_SURROUNDINGS
            await world.gate.check()

    play(scenario)
    assert len(caplog.messages) == 3
    for line in caplog.messages:
        assert line.endswith(" and 97 more: its public IP 172.18.0.1 is an address of this host")


def test_thousands_of_ignored_leases_are_no_thousands_of_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def scenario(world: World) -> None:
        for number in range(1000):
            await world.gate.apply([added(number, "224.0.0.1")])

    play(scenario)
    assert 20 <= len(caplog.messages) <= 60


def test_leases_are_forwarded_in_the_order_in_which_they_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the kernel takes its time over the first ones, and a check comes in between."""
    first = LeaseAdded(Lease(IPv4Network("11.0.1.0/24"), LeaseAttrs(IPv4Address("172.17.8.102")), DAY, 2, 2))
    second = LeaseAdded(Lease(IPv4Network("11.0.2.0/24"), LeaseAttrs(IPv4Address("172.17.8.103")), DAY, 3, 3))

    async def scenario(world: World) -> None:
        answer, pauses = world.underlay.overlay_ways, iter((0.01, 0.005))

        async def slow(netlink: Netlink, addresses: Sequence[IPv4Address]) -> dict[IPv4Address, str]:
            await asyncio.sleep(next(pauses, 0))
            return await answer(netlink, addresses)

        monkeypatch.setattr(world.underlay, "overlay_ways", slow)
        await asyncio.gather(world.gate.apply([first]), world.gate.check(), world.gate.apply([second]))
        assert [event for events in world.forwarded for event in events] == [first, second]
        assert world.forwarded[0] == [first]

    play(scenario)


def test_a_check_forwards_nothing_before_all_leases_are_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend removes what the first call does not have."""
    events = [added(1), added(2)]

    async def slowly(items: Sequence[LeaseEvent]) -> AsyncIterator[Sequence[LeaseEvent]]:
        for item in items:
            yield [item]
            await asyncio.sleep(0.01)

    monkeypatch.setattr(lease_gate, "in_chunks", slowly)

    async def scenario(world: World) -> None:
        await asyncio.gather(world.gate.apply(events), world.gate.check())

    assert play(scenario).forwarded == [events]
