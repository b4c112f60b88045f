"""Whether datagrams to the peers leave this host, by the kernel's answers about some of them."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from support.fakes_machine import FakeMachine
from support.fakes_netlink import ETH1, EXTERNAL, NO_ROUTE

from flannelpy.backend.peer_routes import PeerRoutes
from flannelpy.linux.netlink.client import Netlink
from flannelpy.registry.base import expires_in
from flannelpy.rtnetlink.links import Link
from flannelpy.rtnetlink.routes import RouteAnswer, RouteQuery
from flannelpy.subnet.lease import Lease, LeaseAttrs
from flannelpy.subnet.lease_table import LeaseAdded, LeaseRemoved

ETH2 = Link(3, "eth2", 1500)
NEAR, FAR = IPv4Network("172.17.8.0/24"), IPv4Network("172.30.0.0/16")


def subnet(number: int) -> IPv4Network:
    return IPv4Network((f"11.{number // 256}.{number % 256}.0", 24))


def added(number: int, public_ip: str = "") -> LeaseAdded:
    address = IPv4Address(public_ip) if public_ip else IPv4Address("172.30.0.0") + number
    return LeaseAdded(Lease(subnet(number), LeaseAttrs(address), expires_in(86400), 1, 1))


class World:
    """A machine with eth1, whose network is 172.17.8.0/24, and eth2, by which all else is reached."""

    def __init__(self) -> None:
        self.machine = FakeMachine()
        self.machine.have(ETH2)
        self.machine.connected = ETH2.index
        self.routes = PeerRoutes(EXTERNAL)

    def check(self) -> str:
        asyncio.run(self.routes.check(self.machine))
        return self.routes.report().problem

    def refuse(self, network: IPv4Network, error: int = errno.ENETUNREACH) -> None:
        self.machine.diverted[network, False] = RouteAnswer(errno=error)


def test_without_peers_there_is_no_problem_and_no_question() -> None:
    world = World()
    world.refuse(NEAR)
    world.routes.follow([added(1, "172.17.8.102"), LeaseRemoved(subnet(1))])
    assert world.check() == ""
    assert world.machine.queries == []


def test_changes_of_leases_take_no_memory_until_the_next_check() -> None:
    """Only backends that send datagrams are checked, and a store may change leases without end."""
    number = 48_879  # which no other test uses
    world = World()
    for _ in range(100):
        world.routes.follow([added(number, "172.30.0.1"), LeaseRemoved(subnet(number))])
    kept = [each for each in gc.get_objects() if isinstance(each, LeaseAdded) and each.lease.subnet == subnet(number)]
    assert kept == []


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (errno.ENETUNREACH, "Network is unreachable"),
        (errno.EHOSTUNREACH, "No route to host"),
        (errno.EINVAL, "Invalid argument"),
        (errno.EACCES, "Permission denied"),
    ],
)
def test_when_the_kernel_refuses_every_peer_one_line_names_one_and_the_cause(
    error: int, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world = World()
    world.routes.follow([added(1, "172.17.8.102"), added(2, "172.17.8.103")])
    assert world.check() == ""
    world.refuse(NEAR, error)
    problem = f"no peer is reachable, such as 172.17.8.102: the kernel has no route: {cause}"
    assert [world.check() for _ in range(3)] == [problem] * 3
    del world.machine.diverted[NEAR, False]
    assert world.check() == ""
    assert caplog.messages == [problem.replace("no peer", "No peer"), "The kernel sends to peers again"]


def test_a_peer_that_can_be_reached_is_enough() -> None:
    world = World()
    world.routes.follow([added(1, "172.17.8.102"), added(2)])
    world.refuse(NEAR)
    assert world.check() == ""
    world.routes.follow([LeaseRemoved(subnet(2))])
    assert "172.17.8.102" in world.check()
    world.routes.follow([added(1)])  # with another public IP
    assert world.check() == ""


def test_the_end_of_the_last_unreachable_peer_proves_nothing_about_routes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world = World()
    world.refuse(NEAR)
    world.routes.follow([added(1, "172.17.8.102")])
    assert world.check() != ""
    world.routes.follow([LeaseRemoved(subnet(1))])
    assert world.check() == ""
    assert [message.startswith("No peer is reachable") for message in caplog.messages] == [True]
    world.routes.follow([added(1, "172.17.8.102")])
    assert world.check() != ""
    assert len(caplog.messages) == 2


def test_the_kernel_is_asked_as_the_backend_sends() -> None:
    world = World()
    world.routes.follow([added(1, "172.17.8.102")])
    world.check()
    assert world.machine.queries == [RouteQuery(IPv4Address("172.17.8.102"), EXTERNAL.address)]


def test_a_way_out_without_a_carrier_reaches_no_peer() -> None:
    """The kernel keeps the routes of an interface whose cable is out."""
    world = World()
    world.routes.follow([added(1), added(2, "172.17.8.102")])
    world.machine.change("eth2", has_carrier=False)
    assert world.check() == ""  # eth1 leads to the other one
    world.routes.follow([LeaseRemoved(subnet(2))])
    assert world.check() == "no peer is reachable, such as 172.30.0.1: the way out is eth2, which has no carrier"
    world.machine.connected = ETH1
    assert world.check() == ""


@pytest.mark.parametrize(("kind", "is_exempt"), [("vrf", True), ("bridge", False), ("bond", False)])
def test_in_a_vrf_the_main_table_decides_nothing(kind: str, is_exempt: bool) -> None:
    world = World()
    world.machine.have(Link(9, "master0", 1500, kind))
    world.machine.there["eth1"] = replace(world.machine.there["eth1"], master=9)
    world.routes.follow([added(1)])
    world.refuse(FAR)
    assert (world.check() == "") == is_exempt


@pytest.mark.parametrize("count", [1, 99, 100, 101, 1000, 10_000])
def test_a_check_asks_about_100_peers_spread_over_all_and_each_one_has_its_turn(count: int) -> None:
    world = World()
    world.routes.follow([added(number) for number in range(count)])
    asked = set()
    rounds = -(-count // 100)
    for _ in range(rounds):
        world.machine.queries.clear()
        assert world.check() == ""
        assert len(world.machine.queries) <= 100
        asked |= {query.destination for query in world.machine.queries}
    assert len(asked) == count


def test_a_region_that_is_cut_off_is_not_all_peers() -> None:
    """Its leases may stand one after another."""
    world = World()
    near = [added(number, f"172.17.8.{2 + number % 250}") for number in range(3000)]
    world.routes.follow([*near, *(added(3000 + number) for number in range(1000))])
    world.refuse(NEAR)
    assert [world.check() for _ in range(50)] == [""] * 50
    world.refuse(FAR)
    assert world.check() != ""


def test_checks_at_the_same_time_take_leases_in_in_their_order() -> None:
    """Also if the first one has thousands to take in."""
    world = World()
    world.refuse(FAR)

    async def scenario() -> None:
        world.routes.follow([added(number) for number in range(1000)])
        first = asyncio.create_task(world.routes.check(world.machine))
        await asyncio.sleep(0)
        world.routes.follow([LeaseRemoved(subnet(number)) for number in range(1000)])
        await asyncio.gather(first, world.routes.check(world.machine))

    asyncio.run(scenario())
    assert world.routes.report().problem == ""


def test_a_link_that_goes_between_two_questions_is_no_fault() -> None:
    world = World()
    world.routes.follow([added(1)])
    del world.machine.there["eth2"]
    assert world.check() == ""


def test_what_cannot_be_asked_is_raised_and_nothing_is_concluded() -> None:
    class Deaf(FakeMachine):
        async def lookups(self, queries: Sequence[RouteQuery], *, matched: bool = False) -> list[RouteAnswer]:
            raise OSError(errno.ENOBUFS, "No buffer space available")

    world = World()
    world.routes.follow([added(1)])
    netlink: Netlink = Deaf()
    with pytest.raises(OSError, match="No buffer space"):
        asyncio.run(world.routes.check(netlink))
    assert world.routes.report().problem == ""
    world.machine.diverted[FAR, False] = NO_ROUTE
    assert world.check() != ""
