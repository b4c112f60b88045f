"""Which questions the kernel is asked about packets to peers, and what its answers mean: without a kernel."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Collection, Sequence
from ipaddress import IPv4Address, IPv4Network

import pytest
from support.fakes_machine import FakeMachine, direct
from support.fakes_netlink import ETH1, FLANNEL1, FakeNetlink

from flannelpy.backend.route_check import RouteCheck, Way
from flannelpy.errors import HostError
from flannelpy.rtnetlink import entries, routes, rules
from flannelpy.rtnetlink.entries import GatewayRoute
from flannelpy.rtnetlink.links import Address
from flannelpy.rtnetlink.routes import RouteAnswer
from flannelpy.rtnetlink.rules import PolicyRule

NETWORK = IPv4Network("11.0.0.0/16")
OWN = IPv4Network("11.0.48.0/24")
ANY = IPv4Network("0.0.0.0/0")
DOCKER0 = 9
BLACKHOLE, PROHIBIT, UNREACHABLE, NO_ROUTE = errno.EINVAL, errno.EACCES, errno.EHOSTUNREACH, errno.ENETUNREACH


def subnet(number: int) -> IPv4Network:
    return IPv4Network((int(NETWORK.network_address) + number * 256, 24))


def elsewhere(text: str = "11.0.0.0/17") -> RouteAnswer:
    """By another program's route."""
    route = GatewayRoute(IPv4Network(text), IPv4Address("172.17.8.1"), ETH1, protocol=4)
    found = routes.parse(entries.add_request(route))
    return RouteAnswer(0, ETH1, route.gateway, 254, 1, 4, 0, route.destination, found)


class World:
    """A check of peers that are reached out of eth1, by gateways of their own."""

    def __init__(self) -> None:
        self.netlink = FakeNetlink()
        self.check = RouteCheck(NETWORK, OWN)

    def add_bridge(self) -> None:
        self.netlink.own_addresses.append(Address(DOCKER0, OWN[1], 24))
        self.netlink.forwarding.add(DOCKER0)

    async def ask(self, *numbers: int, own_link: int = 0, blocked: Collection[IPv4Network] = ()) -> None:
        subnets = [subnet(number) for number in numbers]
        ours = {GatewayRoute(one, one.network_address + 256, ETH1) for one in subnets}
        self.netlink.gateways = sorted(ours, key=str)
        self.netlink.queries.clear()
        await self.check.check(
            self.netlink, subnets, lambda one, _: Way(ETH1, one.network_address + 256), own_link, blocked
        )


def play(scenario: Callable[[World], Awaitable[None]]) -> None:
    asyncio.run(_play(scenario))


async def _play(scenario: Callable[[World], Awaitable[None]]) -> None:
    await scenario(World())


def test_when_all_is_well_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.add_bridge()
        for _ in range(3):
            await world.ask(1, 2, 3)
        assert not world.check.unreachable

    play(scenario)
    assert caplog.messages == []


def test_queries_are_for_the_host_and_with_a_bridge_for_its_containers() -> None:
    async def scenario(world: World) -> None:
        await world.ask(1)
        assert world.netlink.queries
        assert all(query.input_index == 0 and query.source is None for query in world.netlink.queries)
        world.add_bridge()
        await world.ask(1)
        forwarded = [query for query in world.netlink.queries if query.input_index]
        assert len(forwarded) == len(world.netlink.queries) / 2
        assert {query.input_index for query in forwarded} == {DOCKER0}
        for query in forwarded:
            assert query.source in OWN
            assert query.source != OWN[1], "the bridge's own address would be a martian"
        world.netlink.forwarding.clear()
        await world.ask(1)
        assert not any(query.input_index for query in world.netlink.queries), "it forwards nothing: that proves nothing"

    play(scenario)


def test_our_own_device_is_not_the_bridge() -> None:
    async def scenario(world: World) -> None:
        world.netlink.own_addresses.append(Address(FLANNEL1, OWN[0], 16))
        world.netlink.forwarding.add(FLANNEL1)
        await world.ask(1, own_link=FLANNEL1)
        assert not any(query.input_index for query in world.netlink.queries)

    play(scenario)


@pytest.mark.parametrize("peers", [1, 3, 50, 150, 1000])
@pytest.mark.parametrize("has_bridge", [True, False])
def test_at_most_200_questions_in_a_check_and_every_peer_in_turn(peers: int, has_bridge: bool) -> None:
    async def scenario(world: World) -> None:
        world.check = RouteCheck(IPv4Network("11.0.0.0/8"), OWN)
        if has_bridge:
            world.add_bridge()
        numbers = [number for number in range(peers + 1) if number != 48]
        seen: set[IPv4Network] = set()
        for rounds in range(1, 100):  # noqa: B007 - it is looked at afterwards
            await world.ask(*numbers)
            assert 0 < len(world.netlink.queries) <= 200
            seen |= {IPv4Network((int(query.destination) & ~255, 24)) for query in world.netlink.queries}
            if len(seen) == len(numbers):
                break
        assert len(seen) == len(numbers)
        assert rounds <= 1 + len(numbers) * 2 // 180

    play(scenario)


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (elsewhere(), "route 11.0.0.0/17 via 172.17.8.1 dev eth1 proto static"),
        (elsewhere("11.0.1.0/25"), "route 11.0.1.0/25 via 172.17.8.1 dev eth1 proto static"),
        (RouteAnswer(errno=PROHIBIT), "the kernel rejects them (Permission denied)"),
        (RouteAnswer(errno=UNREACHABLE), "the kernel rejects them (No route to host)"),
        (RouteAnswer(errno=NO_ROUTE), "the kernel rejects them (Network is unreachable)"),
    ],
)
@pytest.mark.parametrize("is_forwarded", [False, True])
def test_the_cause_for_some_peers_is_logged_once(
    caplog: pytest.LogCaptureFixture, answer: RouteAnswer, cause: str, is_forwarded: bool
) -> None:
    async def scenario(world: World) -> None:
        world.add_bridge()
        world.netlink.diverted = {(subnet(1), is_forwarded): answer}
        for _ in range(3):
            await world.ask(1, 2)
        assert world.check.unreachable == {subnet(1)}
        world.netlink.diverted = {}
        await world.ask(1, 2)
        assert not world.check.unreachable

    play(scenario)
    whose = "containers'" if is_forwarded else "the host's"
    assert caplog.messages == [f"Packets to 11.0.1.0/24 do not take flannelpy's routes: {cause} takes {whose} packets"]


@pytest.mark.parametrize("error", [errno.EXDEV, errno.ENODEV])
def test_a_rejection_by_rp_filter_proves_nothing(error: int) -> None:
    async def scenario(world: World) -> None:
        world.add_bridge()
        world.netlink.diverted = {(NETWORK, True): RouteAnswer(errno=error)}
        await world.ask(1, 2)
        assert not world.check.unreachable
        world.netlink.diverted = {(subnet(1), False): RouteAnswer(errno=error)}
        await world.ask(1, 2)
        assert world.check.unreachable == {subnet(1)}, "of the host's own packets it is an answer"

    play(scenario)


def test_a_rejection_by_rp_filter_is_no_blackhole() -> None:
    """Since Linux 6.14 both are EINVAL."""

    async def scenario(world: World) -> None:
        world.add_bridge()
        world.netlink.diverted = {(NETWORK, True): RouteAnswer(errno=BLACKHOLE)}
        await world.ask(1, 2)
        assert not world.check.unreachable
        assert not world.check.causes
        world.netlink.policy = [PolicyRule(100, OWN, subnet(1), "", rules.BLACKHOLE, 0)]
        await world.ask(1, 2)
        assert world.check.unreachable == {subnet(1)}
        assert set(world.check.causes) == {subnet(1)}

    play(scenario)


def test_a_part_of_a_peers_subnet_is_logged_and_the_peer_counts_as_reachable(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.netlink.diverted = {(IPv4Network("11.0.1.128/25"), False): elsewhere("11.0.1.128/25")}
        await world.ask(1)
        assert not world.check.unreachable

    play(scenario)
    assert len(caplog.messages) == 1


def test_many_subnets_of_one_cause_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.netlink.diverted = {(IPv4Network("11.0.0.0/17"), False): elsewhere()}
        for _ in range(3):
            await world.ask(1, 2, 3, 200)

    play(scenario)
    assert caplog.messages == [
        "Packets to 11.0.1.0/24, 11.0.2.0/24, 11.0.3.0/24 do not take flannelpy's routes: "
        "route 11.0.0.0/17 via 172.17.8.1 dev eth1 proto static takes the host's packets"
    ]


def test_without_a_reachable_peer_the_check_fails_and_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.netlink.diverted = {(NETWORK, False): elsewhere("11.0.0.0/16")}
        for _ in range(2):
            with pytest.raises(HostError, match=r"Packets to every peer .*: route 11\.0\.0\.0/16 via"):
                await world.ask(1, 2)
        world.netlink.diverted = {}
        await world.ask(1, 2)

    play(scenario)
    assert caplog.messages == []


def test_blocked_peers_count_too() -> None:
    async def scenario(world: World) -> None:
        await world.ask(1, blocked={subnet(2)})
        with pytest.raises(HostError, match="every peer"):
            await world.ask(blocked={subnet(2)})
        world.netlink.diverted = {(subnet(1), False): RouteAnswer(errno=PROHIBIT)}
        with pytest.raises(HostError, match="every peer"):
            await world.ask(1, blocked={subnet(2)})

    play(scenario)


def test_without_peers_the_network_is_asked_about_outside_our_subnet() -> None:
    async def scenario(world: World) -> None:
        await world.ask(own_link=FLANNEL1)
        asked = [query.destination for query in world.netlink.queries]
        assert len(asked) == 8
        assert all(address in NETWORK and address not in OWN for address in asked)
        assert {address in IPv4Network("11.0.128.0/17") for address in asked} == {True, False}
        await world.ask()
        assert world.netlink.queries == [], "without a device there is no route to the network"

    play(scenario)


@pytest.mark.parametrize(
    ("taken", "is_whole"),
    [("11.0.0.0/16", True), ("0.0.0.0/0", True), ("11.0.0.0/17", False), ("11.0.192.0/18", False)],
)
def test_a_check_of_the_network_fails_only_if_all_addresses_do(
    caplog: pytest.LogCaptureFixture, taken: str, is_whole: bool
) -> None:
    async def scenario(world: World) -> None:
        world.netlink.diverted = {(IPv4Network(taken), False): elsewhere(taken)}
        if is_whole:
            with pytest.raises(HostError, match=r"Packets to 11\.0\.0\.0/16 do not take flannelpy's routes: route "):
                await world.check.check_network(world.netlink, FLANNEL1)
        else:
            await world.check.check_network(world.netlink, FLANNEL1)

    play(scenario)
    assert len(caplog.messages) == (0 if is_whole else 1)


RULES: Sequence[PolicyRule] = [
    PolicyRule(0, ANY, ANY, "", 1, 255),
    PolicyRule(50, IPv4Network("10.0.0.0/8"), ANY, "", 8, 0),
    PolicyRule(60, ANY, subnet(1), "", 8, 0),
    PolicyRule(61, OWN, ANY, "", 7, 0),
    PolicyRule(62, ANY, ANY, "if9", 6, 0),
    PolicyRule(70, ANY, subnet(3), "", 1, 100),
    PolicyRule(32766, ANY, ANY, "", 1, 254),
]


@pytest.mark.parametrize(
    ("number", "is_forwarded", "answer", "cause"),
    [
        (1, False, RouteAnswer(errno=PROHIBIT), "rule 60: from all to 11.0.1.0/24 prohibit takes the host's"),
        (2, True, RouteAnswer(errno=NO_ROUTE), "rule 61: from 11.0.48.0/24 unreachable takes containers'"),
        (2, True, RouteAnswer(errno=BLACKHOLE), "rule 62: from all iif if9 blackhole takes containers'"),
        (2, False, RouteAnswer(errno=BLACKHOLE), "the kernel rejects them (Invalid argument) takes the host's"),
        (3, False, elsewhere()._replace(table=100), "proto static, by rule 70: from all to 11.0.3.0/24 lookup 100"),
        (2, False, elsewhere()._replace(table=100), "proto static takes the host's"),
    ],
)
def test_the_rule_is_named(
    caplog: pytest.LogCaptureFixture, number: int, is_forwarded: bool, answer: RouteAnswer, cause: str
) -> None:
    async def scenario(world: World) -> None:
        world.add_bridge()
        world.netlink.policy = list(RULES)
        world.netlink.diverted = {(subnet(number), is_forwarded): answer}
        await world.ask(1, 2, 3)

    play(scenario)
    [message] = caplog.messages
    assert cause in message


def test_a_cause_that_is_gone_before_it_is_named_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Another program removed our route and it was restored in between."""

    async def scenario(world: World) -> None:
        lookups = world.netlink.lookups

        async def only_at_first(queries: Sequence[routes.RouteQuery], *, matched: bool = False) -> list[RouteAnswer]:
            world.netlink.diverted = {} if matched else {(subnet(1), False): RouteAnswer(errno=NO_ROUTE)}
            return await lookups(queries, matched=matched)

        world.netlink.lookups = only_at_first  # type: ignore[method-assign]
        await world.ask(1, 2)

    play(scenario)
    assert caplog.messages == []


def test_of_the_routes_that_reject_a_packet_the_longest_is_named(caplog: pytest.LogCaptureFixture) -> None:
    blackhole, add_rules = 6, 8

    async def scenario(world: World) -> None:
        machine = FakeMachine()
        for text, kind in (("11.0.0.0/8", blackhole), ("11.0.1.0/25", blackhole), ("11.0.0.0/16", blackhole)):
            machine.direct.append(direct(IPv4Network(text), 0, 4, kind))
        machine.direct += [direct(subnet(2), 0, 4, blackhole), direct(IPv4Network("11.0.1.0/26"), 0, 4, add_rules)]
        machine.diverted = {(IPv4Network("11.0.1.0/25"), False): RouteAnswer(errno=BLACKHOLE)}
        world.netlink = machine
        await world.ask(1, 2, 3)

    play(scenario)
    assert caplog.messages == [
        "Packets to 11.0.1.0/24 do not take flannelpy's routes: route blackhole 11.0.1.0/25 proto static takes the"
        " host's packets"
    ]


def test_a_peer_stays_unreachable_until_it_is_asked_about_again(caplog: pytest.LogCaptureFixture) -> None:
    numbers = [number for number in range(256) if number != 48]

    async def scenario(world: World) -> None:
        world.netlink.diverted = {(subnet(1), False): elsewhere()}
        await world.ask(*numbers)
        for _ in range(4):
            assert world.check.unreachable == {subnet(1)}
            await world.ask(*numbers)
        world.netlink.diverted = {}
        for _ in range(2):
            await world.ask(*numbers)
        assert not world.check.unreachable
        world.netlink.diverted = {(subnet(1), False): elsewhere()}
        for _ in range(2):
            await world.ask(*numbers)
        await world.ask(2, 3)  # it is no peer any more
        assert not world.check.unreachable

    play(scenario)
    assert len(caplog.messages) == 2
