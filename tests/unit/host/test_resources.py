"""What the networks of one host may not share."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.errors import ConfigError
from flannelpy.host.resources import Host
from flannelpy.linux.netlink.client import Netlink
from flannelpy.marks import ROUTE_PROTOCOL
from flannelpy.rtnetlink.rules import ProhibitRule

BLUE = IPv4Network("11.1.0.0/16")


@pytest.fixture
def host() -> Host:
    address = IPv4Address("172.17.8.101")
    host = Host(ExternalInterface("eth1", address, 1500), address)
    take(host, "blue", BLUE, "UDP port 8285")
    return host


def take(
    host: Host,
    name: str,
    network: IPv4Network,
    *exclusive_resources: str,
    withdraw: Callable[[], Awaitable[None]] | None = None,
) -> None:
    async def nothing() -> None:
        pass

    host.take(name, network, exclusive_resources, withdraw or nothing)


@pytest.mark.parametrize("network", ["11.1.0.0/16", "11.0.0.0/8", "11.1.128.0/20"])
def test_addresses(host: Host, network: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"Network {network} overlaps 11.1.0.0/16, the network blue")):
        host.check("green", IPv4Network(network), [])


def test_what_a_backend_has_for_itself(host: Host) -> None:
    with pytest.raises(ConfigError, match=r"^UDP port 8285 is the network blue's: choose another one in Backend$"):
        host.check("green", IPv4Network("11.2.0.0/16"), ["UDP port 8285"])


def test_all_else_may_be_and_a_check_takes_nothing(host: Host) -> None:
    green = IPv4Network("11.2.0.0/16")
    for name in ("green", "red"):
        host.check(name, green, ["UDP port 8286"])
    take(host, "green", green, "UDP port 8286")
    with pytest.raises(ConfigError, match="the network green"):
        host.check("red", green, ["UDP port 8287"])


def test_a_network_that_changes_frees_what_it_had(host: Host) -> None:
    host.check("blue", BLUE, ["UDP port 8285"])
    take(host, "blue", IPv4Network("11.3.0.0/16"), "VNI 1")
    host.check("green", BLUE, ["UDP port 8285"])
    with pytest.raises(ConfigError, match="VNI 1 is the network blue's"):
        host.check("green", BLUE, ["VNI 1"])


def test_what_is_taken_is_checked_at_the_same_moment(host: Host) -> None:
    """Two networks that start together have both found the way free."""
    with pytest.raises(ConfigError, match="the network blue"):
        take(host, "green", BLUE)


@pytest.mark.parametrize("name", ["blue", "red"])
def test_a_network_that_ends_frees_what_it_had(host: Host, name: str) -> None:
    host.release("blue")
    host.release("green")  # which had taken nothing
    take(host, name, BLUE, "UDP port 8285")
    with pytest.raises(ConfigError, match=f"the network {name}"):
        host.check("green", BLUE, [])


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


def test_rules_are_put_for_each_pair_and_only_a_lost_one_is_reported(host: Host) -> None:
    green, red = IPv4Network("11.2.0.0/16"), IPv4Network("11.3.0.0/16")
    one, other = ProhibitRule(BLUE, green), ProhibitRule(green, BLUE)
    foreign = ProhibitRule(red, BLUE)
    netlink = FakeNetlink()
    netlink.unmarked = [one, foreign]
    assert asyncio.run(host.isolate(netlink)) == []
    assert netlink.marked == []
    take(host, "green", green)
    assert asyncio.run(host.isolate(netlink)) == []
    assert set(netlink.marked) == {one, other}
    assert netlink.unmarked == [foreign]
    netlink.marked.remove(other)
    assert asyncio.run(host.isolate(netlink)) == [str(other)]
    assert set(netlink.marked) == {one, other}
    assert asyncio.run(host.isolate(netlink)) == []


def test_two_networks_that_start_at_the_same_moment_put_each_rule_once(host: Host) -> None:
    take(host, "green", IPv4Network("11.2.0.0/16"))
    netlink = FakeNetlink()

    async def both() -> None:
        lost = await asyncio.gather(host.isolate(netlink), host.isolate(netlink))
        assert not any(lost)

    asyncio.run(both())
    assert len(netlink.marked) == len(set(netlink.marked)) == 2


def test_rules_of_a_network_that_has_ended_stay_until_another_one_has_its_addresses(host: Host) -> None:
    """Its containers may still run; rules about addresses that are another network's would stop that one."""
    green, red, wide = (IPv4Network(text) for text in ("11.2.0.0/16", "11.3.0.0/16", "11.0.0.0/14"))
    take(host, "green", green)
    netlink = FakeNetlink()
    foreign = ProhibitRule(red, BLUE)  # another daemon's
    netlink.marked = [foreign]
    asyncio.run(host.isolate(netlink))
    pair = {ProhibitRule(BLUE, green), ProhibitRule(green, BLUE)}
    host.release("blue")
    netlink.marked.remove(ProhibitRule(BLUE, green))
    assert asyncio.run(host.isolate(netlink)) == [str(ProhibitRule(BLUE, green))]
    assert set(netlink.marked) == {foreign, *pair}
    host.release("green")
    take(host, "green", wide)
    assert asyncio.run(host.isolate(netlink)) == []
    assert netlink.marked == [foreign]


@pytest.mark.parametrize(
    ("network", "resource", "is_evicted"),
    [
        ("11.1.0.0/16", "nothing", True),
        ("11.1.128.0/17", "nothing", True),
        ("11.0.0.0/8", "nothing", True),
        ("11.2.0.0/16", "UDP port 8285", True),
        ("11.2.0.0/16", "nothing", False),
    ],
)
def test_what_a_network_has_left_goes_only_if_it_is_in_the_way(network: str, resource: str, is_evicted: bool) -> None:
    address = IPv4Address("172.17.8.101")
    host = Host(ExternalInterface("eth1", address, 1500), address)
    withdrawn: list[str] = []

    async def withdraw() -> None:
        withdrawn.append("blue")

    take(host, "blue", BLUE, "UDP port 8285", withdraw=withdraw)
    host.release("blue")
    take(host, "green", IPv4Network(network), resource)
    assert asyncio.run(host.evict("green")) == [BLUE] * is_evicted
    assert asyncio.run(host.evict("green")) == []
    assert withdrawn == ["blue"] * is_evicted


def test_a_network_that_is_started_again_takes_over_what_it_left(host: Host) -> None:
    async def fail() -> None:
        raise AssertionError

    take(host, "green", IPv4Network("11.2.0.0/16"), withdraw=fail)
    host.release("green")
    take(host, "green", IPv4Network("11.2.0.0/17"))
    assert asyncio.run(host.evict("green")) == []
