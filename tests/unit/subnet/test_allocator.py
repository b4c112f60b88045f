"""Which subnet a new host takes."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannelpy.errors import OutOfSubnets
from flannelpy.subnet.allocator import free_subnets, pick_subnet
from flannelpy.subnet.config import BackendConfig, NetworkConfig, parse

WIDE = parse('{"Network":"11.0.0.0/8","SubnetLen":24}')
USUAL = parse('{"Network":"11.0.0.0/16"}')
SMALL = parse('{"Network":"11.0.0.0/24","SubnetLen":26}')
LAST = NetworkConfig(
    IPv4Network("255.255.255.0/24"),
    26,
    IPv4Address("255.255.255.64"),
    IPv4Address("255.255.255.192"),
    BackendConfig("udp", {}),
)


def nets(*texts: str) -> list[IPv4Network]:
    return list(map(IPv4Network, texts))


@pytest.mark.parametrize(
    ("taken", "free"),
    [
        ([], ["11.0.0.64/26", "11.0.0.128/26", "11.0.0.192/26"]),
        (["11.0.0.128/26"], ["11.0.0.64/26", "11.0.0.192/26"]),
        (["11.0.0.0/26"], ["11.0.0.64/26", "11.0.0.128/26", "11.0.0.192/26"]),
        (["11.0.0.130/31"], ["11.0.0.64/26", "11.0.0.192/26"]),
        (["11.0.0.127/32", "11.0.0.192/32"], ["11.0.0.128/26"]),
        (["11.0.0.128/25"], ["11.0.0.64/26"]),
        (["11.0.0.128/25", "11.0.0.128/27", "11.0.0.160/27"], ["11.0.0.64/26"]),
        (["11.0.0.0/16"], []),
        (["0.0.0.0/0"], []),
        (["12.0.0.0/8", "10.0.0.0/8"], ["11.0.0.64/26", "11.0.0.128/26", "11.0.0.192/26"]),
        (["11.0.0.64/26", "11.0.0.128/26", "11.0.0.192/26"], []),
    ],
)
def test_free_is_what_overlaps_no_lease_lowest_first(taken: list[str], free: list[str]) -> None:
    assert list(free_subnets(SMALL, nets(*taken))) == nets(*free)
    assert list(free_subnets(SMALL, nets(*taken[::-1]))) == nets(*free)


def test_the_end_of_the_address_space_is_an_end() -> None:
    assert list(free_subnets(LAST, nets("255.255.255.128/26"))) == nets("255.255.255.64/26", "255.255.255.192/26")
    assert list(free_subnets(LAST, nets("255.255.255.192/26"))) == nets("255.255.255.64/26", "255.255.255.128/26")


def test_a_new_host_takes_one_of_the_first_hundred_free_ones() -> None:
    taken = nets("11.0.0.0/17")
    picked = {pick_subnet(WIDE, taken, None, random.Random(seed)) for seed in range(2000)}
    assert picked == {IPv4Network((f"11.0.{128 + n}.0", 24)) for n in range(100)}


def test_the_subnet_of_the_last_run_is_taken_again() -> None:
    previous = IPv4Network("11.0.237.0/24")
    assert pick_subnet(USUAL, nets("11.0.236.0/24", "11.0.238.0/24"), previous, random.Random(0)) == previous


@pytest.mark.parametrize(
    ("previous", "taken"),
    [
        pytest.param("11.0.237.0/24", ["11.0.237.0/24"], id="held"),
        pytest.param("11.0.237.0/24", ["11.0.237.64/26"], id="partly held"),
        pytest.param("11.0.237.0/24", ["11.0.224.0/20"], id="inside a held one"),
        pytest.param("11.0.237.0/25", [], id="of another length"),
        pytest.param("12.0.237.0/24", [], id="of another network"),
        pytest.param("11.0.0.0/24", [], id="below SubnetMin"),
    ],
)
def test_the_subnet_of_the_last_run_is_left_when_it_cannot_be_ours(previous: str, taken: list[str]) -> None:
    picked = pick_subnet(USUAL, nets(*taken), IPv4Network(previous), random.Random(0))
    assert picked != IPv4Network(previous)
    assert USUAL.fits(picked)
    assert not any(picked.overlaps(net) for net in nets(*taken))


@pytest.mark.parametrize("previous", [None, IPv4Network("11.0.0.64/26")])
def test_a_subnet_contains_no_address_of_a_host(previous: IPv4Network | None) -> None:
    hosts = [IPv4Address("11.0.0.70"), IPv4Address("11.0.0.192"), IPv4Address("172.17.8.101")]
    picked = {pick_subnet(SMALL, [], previous, random.Random(seed), hosts) for seed in range(20)}
    assert picked == {IPv4Network("11.0.0.128/26")}


def test_a_new_subnet_overlaps_no_connected_network() -> None:
    connected = nets("11.0.0.64/27", "11.0.0.255/32", "12.0.0.0/24")
    picked = {pick_subnet(SMALL, [], None, random.Random(seed), (), connected) for seed in range(20)}
    assert picked == {IPv4Network("11.0.0.128/26")}


@pytest.mark.parametrize("wide", ["11.0.0.0/24", "11.0.0.0/8", "0.0.0.0/0"])
def test_a_connected_network_around_the_whole_network_does_not_count(wide: str) -> None:
    picked = {pick_subnet(SMALL, [], None, random.Random(seed), (), nets(wide)) for seed in range(50)}
    assert picked == set(nets("11.0.0.64/26", "11.0.0.128/26", "11.0.0.192/26"))


def test_the_subnet_of_the_last_run_may_overlap_a_connected_network() -> None:
    previous = IPv4Network("11.0.0.64/26")
    assert pick_subnet(SMALL, [], previous, random.Random(0), (), nets("11.0.0.64/27")) == previous


def test_running_out_is_an_error_with_leases_and_range() -> None:
    with pytest.raises(OutOfSubnets) as caught:
        pick_subnet(SMALL, nets("11.0.0.64/26", "11.0.0.128/25", "11.0.0.64/26"), None, random.Random(0))
    assert str(caught.value) == (
        "out of subnets: no /26 is free in the range 11.0.0.64 ... 11.0.0.192, there are 2 leases"
    )


def test_running_out_names_the_connected_networks_in_the_way() -> None:
    with pytest.raises(OutOfSubnets, match=r"there are 2 leases, and this host is connected to 11\.0\.0\.64/27$"):
        pick_subnet(
            SMALL,
            nets("11.0.0.128/26", "11.0.0.192/26"),
            None,
            random.Random(0),
            (),
            nets("11.0.0.64/27", "12.0.0.0/8"),
        )


def test_ten_thousand_leases_are_stepped_over() -> None:
    taken = list(WIDE.network.subnets(new_prefix=24))[:10_000]
    assert next(free_subnets(WIDE, taken)) == IPv4Network("11.39.16.0/24")
