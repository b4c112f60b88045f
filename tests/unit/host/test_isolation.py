"""The ip rules between the networks of one host."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Network

import pytest

from flannelpy.host.isolation import Isolation
from flannelpy.host.resources import Resources
from flannelpy.linux.netlink.client import Netlink
from flannelpy.marks import ROUTE_PROTOCOL
from flannelpy.rtnetlink.rules import ProhibitRule

BLUE = IPv4Network("11.1.0.0/16")


def take(resources: Resources, name: str, network: IPv4Network) -> None:
    async def withdraw() -> None:
        pass

    resources.take(name, network, [], withdraw)


@pytest.fixture
def resources() -> Resources:
    resources = Resources()
    take(resources, "blue", BLUE)
    return resources


@pytest.fixture
def isolation(resources: Resources) -> Isolation:
    return Isolation(resources)


class FakeNetlink(Netlink):
    """The rules between networks, marked and unmarked, without a kernel."""

    def __init__(self) -> None:
        self.marked: list[ProhibitRule] = []
        self.unmarked: list[ProhibitRule] = []

    async def prohibit_rules(self) -> list[ProhibitRule]:
        found = list(self.marked)
        await asyncio.sleep(0)  # as while the kernel answers
        return found

    async def unmarked_prohibit_rules(self) -> list[ProhibitRule]:
        return list(self.unmarked)

    async def add_rules(self, rules: Sequence[ProhibitRule]) -> None:
        self.marked += rules

    async def remove_rules(self, rules: Sequence[ProhibitRule], protocol: int = ROUTE_PROTOCOL) -> None:
        for rule in rules:
            (self.marked if protocol else self.unmarked).remove(rule)


def test_each_pair_gets_rules_and_only_a_lost_rule_is_reported(resources: Resources, isolation: Isolation) -> None:
    green, red = IPv4Network("11.2.0.0/16"), IPv4Network("11.3.0.0/16")
    one, other = ProhibitRule(BLUE, green), ProhibitRule(green, BLUE)
    foreign = ProhibitRule(red, BLUE)
    netlink = FakeNetlink()
    netlink.unmarked = [one, foreign]
    assert asyncio.run(isolation.restore(netlink)) == []
    assert netlink.marked == []
    take(resources, "green", green)
    assert asyncio.run(isolation.restore(netlink)) == []
    assert set(netlink.marked) == {one, other}
    assert netlink.unmarked == [foreign]
    netlink.marked.remove(other)
    assert asyncio.run(isolation.restore(netlink)) == [str(other)]
    assert set(netlink.marked) == {one, other}
    assert asyncio.run(isolation.restore(netlink)) == []


def test_two_networks_that_start_at_once_add_each_rule_once(resources: Resources, isolation: Isolation) -> None:
    take(resources, "green", IPv4Network("11.2.0.0/16"))
    netlink = FakeNetlink()

    async def both() -> None:
        lost = await asyncio.gather(isolation.restore(netlink), isolation.restore(netlink))
        assert not any(lost)

    asyncio.run(both())
    assert len(netlink.marked) == len(set(netlink.marked)) == 2


def test_rules_that_the_daemon_itself_removed_are_no_repair(resources: Resources, isolation: Isolation) -> None:
    """A network that lost its lease removes its rules; its containers may still run, so they are added again."""
    green, red = IPv4Network("11.2.0.0/16"), IPv4Network("11.3.0.0/16")
    take(resources, "green", green)
    take(resources, "red", red)
    netlink = FakeNetlink()
    asyncio.run(isolation.restore(netlink))
    everything = set(netlink.marked)
    other = ProhibitRule(green, red)
    netlink.marked = [rule for rule in netlink.marked if BLUE not in (rule.source, rule.destination) and rule != other]
    isolation.forget([BLUE])
    assert asyncio.run(isolation.restore(netlink)) == [str(other)]
    assert set(netlink.marked) == everything
    netlink.marked.remove(ProhibitRule(BLUE, red))
    assert asyncio.run(isolation.restore(netlink)) == [str(ProhibitRule(BLUE, red))]


def test_rules_of_an_ended_network_stay_until_another_has_its_addresses(
    resources: Resources, isolation: Isolation
) -> None:
    """Its containers may still run; rules about addresses that are another network's would stop that one."""
    green, red, wide = (IPv4Network(text) for text in ("11.2.0.0/16", "11.3.0.0/16", "11.0.0.0/14"))
    take(resources, "green", green)
    netlink = FakeNetlink()
    foreign = ProhibitRule(red, BLUE)  # another daemon's
    netlink.marked = [foreign]
    asyncio.run(isolation.restore(netlink))
    pair = {ProhibitRule(BLUE, green), ProhibitRule(green, BLUE)}
    resources.release("blue")
    netlink.marked.remove(ProhibitRule(BLUE, green))
    assert asyncio.run(isolation.restore(netlink)) == [str(ProhibitRule(BLUE, green))]
    assert set(netlink.marked) == {foreign, *pair}
    resources.release("green")
    take(resources, "green", wide)
    assert asyncio.run(isolation.restore(netlink)) == []
    assert netlink.marked == [foreign]
