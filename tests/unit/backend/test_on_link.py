"""Which peers are on the link: what is asked when, without a kernel."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from support.fakes_netlink import ETH1, NO_ROUTE, FakeNetlink

from flannelpy.backend import on_link
from flannelpy.backend.on_link import OnLink
from flannelpy.errors import HostError
from flannelpy.linux.netlink import monitor
from flannelpy.rtnetlink.links import Link
from flannelpy.rtnetlink.routes import RouteAnswer

LINK = Link(ETH1, "eth1", 1500)
GATEWAY = IPv4Address("172.17.8.1")
PEERS = [IPv4Address("10.0.0.1") + number for number in range(1000)]


def run(scenario: Callable[[OnLink, FakeNetlink], Awaitable[None]], peers: list[IPv4Address]) -> None:
    """The scenario begins when the kernel was asked about all peers once; all are on the link."""

    async def whole() -> None:
        netlink = FakeNetlink()
        netlink.connected = ETH1
        netlink.own_addresses.clear()
        links = OnLink("eth1")
        await links.follow(peers, 1)
        await links.update(netlink, LINK)
        assert [query.destination for query in netlink.queries] == peers
        assert not any(map(links.obstacle, peers))
        netlink.queries.clear()
        await scenario(links, netlink)

    asyncio.run(whole())


@pytest.mark.parametrize(
    ("answer", "obstacle"),
    [
        (RouteAnswer(0, ETH1, None, 254, 1), ""),
        (RouteAnswer(0, ETH1, None, 1000, 1), ""),
        (RouteAnswer(0, ETH1, GATEWAY, 254, 1), "the kernel sends to it via 172.17.8.1 by eth1"),
        (
            RouteAnswer(0, ETH1, None, 254, 1, has_ipv6_gateway=True),
            "the kernel sends to it via a gateway with an IPv6 address by eth1",
        ),
        (RouteAnswer(0, 3, None, 254, 1), "the kernel sends to it by if3"),
        (RouteAnswer(0, ETH1, None, 255, 3), ""),  # a broadcast address: LeaseFilter withdraws the lease
        (RouteAnswer(0, 1, None, 255, 2), ""),  # our own: the same
        (NO_ROUTE, "the kernel has no route to it: Network is unreachable"),
        (RouteAnswer(errno=13), "the kernel has no route to it: Permission denied"),
    ],
)
def test_on_the_link_are_those_without_a_gateway_by_the_external_interface(answer: RouteAnswer, obstacle: str) -> None:
    async def scenario(links: OnLink, netlink: FakeNetlink) -> None:
        netlink.diverted[IPv4Network("0.0.0.0/0"), False] = answer
        before = links.version
        await links.update(netlink, LINK)
        assert links.obstacle(PEERS[0]) == obstacle
        assert (links.version != before) == bool(obstacle)

    run(scenario, PEERS[:1])


def test_a_check_asks_about_200_peers_again_in_turn() -> None:
    async def scenario(links: OnLink, netlink: FakeNetlink) -> None:
        for number in range(7):
            await links.update(netlink, LINK)
            turn = number % 5 * 200
            assert [query.destination for query in netlink.queries] == PEERS[turn : turn + 200]
            netlink.queries.clear()

    run(scenario, PEERS)


def test_a_change_that_concerns_many_is_followed_at_once() -> None:
    async def scenario(links: OnLink, netlink: FakeNetlink) -> None:
        netlink.diverted[IPv4Network("0.0.0.0/0"), False] = NO_ROUTE
        await links.update(netlink, LINK)
        assert all(map(links.obstacle, PEERS))
        assert len(netlink.queries) == len(PEERS)

    run(scenario, PEERS)


def test_an_answer_that_changes_all_the_time_costs_200_questions_more() -> None:
    async def scenario(links: OnLink, netlink: FakeNetlink) -> None:
        netlink.diverted[IPv4Network("10.0.0.1/32"), False] = NO_ROUTE
        await links.update(netlink, LINK)
        assert [peer for peer in PEERS if links.obstacle(peer)] == PEERS[:1]
        assert len(netlink.queries) == 400

    run(scenario, PEERS)


def test_new_peers_are_asked_about_and_removed_ones_are_not() -> None:
    async def scenario(links: OnLink, netlink: FakeNetlink) -> None:
        await links.follow(PEERS[1:4], 2)
        await links.follow(PEERS, 2)  # the same version: not looked at
        await links.update(netlink, LINK)
        assert {query.destination for query in netlink.queries} == set(PEERS[1:4])
        netlink.queries.clear()
        await links.update(netlink, LINK)
        assert [query.destination for query in netlink.queries] == PEERS[1:4]

    run(scenario, PEERS[:3])


def test_an_interface_that_was_replaced_is_another_one() -> None:
    async def scenario(links: OnLink, netlink: FakeNetlink) -> None:
        await links.update(netlink, replace(LINK, index=9))
        assert all(map(links.obstacle, PEERS))

    run(scenario, PEERS)


def test_while_the_link_is_down_nothing_is_asked() -> None:
    async def scenario(links: OnLink, netlink: FakeNetlink) -> None:
        with pytest.raises(HostError, match=r"^eth1 is down: no routes to other hosts$"):
            await links.update(netlink, replace(LINK, is_up=False))
        assert netlink.queries == []

    run(scenario, PEERS)


def test_a_change_in_the_kernel_triggers_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """``on_change`` is called only if an answer is another one; an error is left to the checks."""

    async def scenario(links: OnLink, netlink: FakeNetlink) -> None:
        reported, noticed = asyncio.Queue[None](), asyncio.Event()

        async def notifications(_: IPv4Network):  # type: ignore[no-untyped-def]
            while True:
                await reported.get()
                yield

        monkeypatch.setattr(on_link, "Netlink", lambda: netlink)
        monkeypatch.setattr(monitor, "notifications", notifications)
        monkeypatch.setattr(monitor, "_PAUSE_SECONDS", 0)
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(links.watch(noticed.set))
            for link in (LINK, replace(LINK, is_up=False), LINK):
                netlink.there["eth1"] = link
                asked = len(netlink.queries)
                reported.put_nowait(None)
                while link.is_up and len(netlink.queries) == asked:  # noqa: ASYNC110 - it has no event
                    await asyncio.sleep(0)
            assert not noticed.is_set()
            netlink.diverted[IPv4Network("10.0.0.1/32"), False] = NO_ROUTE
            reported.put_nowait(None)
            await noticed.wait()
            watch.cancel()

    run(scenario, PEERS[:3])
