"""What the networks of one host may not share."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Network

import pytest

from flannelpy.errors import ConfigError
from flannelpy.host.resources import Resources

BLUE = IPv4Network("11.1.0.0/16")


@pytest.fixture
def resources() -> Resources:
    resources = Resources()
    take(resources, "blue", BLUE, "UDP port 8285")
    return resources


def take(
    resources: Resources,
    name: str,
    network: IPv4Network,
    *exclusive_resources: str,
    withdraw: Callable[[], Awaitable[None]] | None = None,
) -> None:
    async def nothing() -> None:
        pass

    resources.take(name, network, exclusive_resources, withdraw or nothing)


@pytest.mark.parametrize("network", ["11.1.0.0/16", "11.0.0.0/8", "11.1.128.0/20"])
def test_addresses(resources: Resources, network: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"Network {network} overlaps 11.1.0.0/16, the network blue")):
        resources.check("green", IPv4Network(network), [])


def test_what_a_backend_has_for_itself(resources: Resources) -> None:
    with pytest.raises(
        ConfigError, match=r"^UDP port 8285 belongs to the network blue: choose another one in Backend$"
    ):
        resources.check("green", IPv4Network("11.2.0.0/16"), ["UDP port 8285"])


def test_all_else_may_be_and_a_check_takes_nothing(resources: Resources) -> None:
    green = IPv4Network("11.2.0.0/16")
    for name in ("green", "red"):
        resources.check(name, green, ["UDP port 8286"])
    take(resources, "green", green, "UDP port 8286")
    with pytest.raises(ConfigError, match="the network green"):
        resources.check("red", green, ["UDP port 8287"])


def test_a_network_that_changes_frees_what_it_had(resources: Resources) -> None:
    resources.check("blue", BLUE, ["UDP port 8285"])
    take(resources, "blue", IPv4Network("11.3.0.0/16"), "VNI 1")
    resources.check("green", BLUE, ["UDP port 8285"])
    with pytest.raises(ConfigError, match="VNI 1 belongs to the network blue"):
        resources.check("green", BLUE, ["VNI 1"])


def test_what_is_taken_is_checked_at_the_same_moment(resources: Resources) -> None:
    """Two networks that start together have both found the way free."""
    with pytest.raises(ConfigError, match="the network blue"):
        take(resources, "green", BLUE)


@pytest.mark.parametrize("name", ["blue", "red"])
def test_a_network_that_ends_frees_what_it_had(resources: Resources, name: str) -> None:
    resources.release("blue")
    resources.release("green")  # which had taken nothing
    take(resources, name, BLUE, "UDP port 8285")
    with pytest.raises(ConfigError, match=f"the network {name}"):
        resources.check("green", BLUE, [])


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
def test_the_state_of_an_ended_network_is_removed_only_if_it_conflicts(
    network: str, resource: str, is_evicted: bool
) -> None:
    resources = Resources()
    withdrawn: list[str] = []

    async def withdraw() -> None:
        withdrawn.append("blue")

    take(resources, "blue", BLUE, "UDP port 8285", withdraw=withdraw)
    resources.release("blue")
    take(resources, "green", IPv4Network(network), resource)
    assert asyncio.run(resources.evict("green")) == [BLUE] * is_evicted
    assert asyncio.run(resources.evict("green")) == []
    assert withdrawn == ["blue"] * is_evicted


def test_a_network_that_starts_again_takes_over_its_state(resources: Resources) -> None:
    async def fail() -> None:
        raise AssertionError

    take(resources, "green", IPv4Network("11.2.0.0/16"), withdraw=fail)
    resources.release("green")
    take(resources, "green", IPv4Network("11.2.0.0/17"))
    assert asyncio.run(resources.evict("green")) == []
