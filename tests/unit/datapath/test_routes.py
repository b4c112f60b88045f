"""Destination subnet to next hop."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from flannelpy.datapath.routes import NextHop, Routes

A, B, C = (NextHop(f"172.17.8.{n}", 8285) for n in (101, 102, 103))


def routes(*entries: tuple[str, NextHop]) -> Routes:
    table = Routes()
    for subnet, next_hop in entries:
        table.set(IPv4Network(subnet), next_hop)
    return table


def lookup(table: Routes, address: str) -> NextHop | None:
    route = table.lookup(int(IPv4Address(address)))
    return route.next_hop if route else None


NESTED = [("11.0.0.0/16", A), ("11.0.64.0/20", B), ("11.0.65.0/24", C)]


@pytest.mark.parametrize("entries", [NESTED, NESTED[::-1]], ids=["short first", "long first"])
@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("11.0.65.0", C),
        ("11.0.65.255", C),
        ("11.0.64.255", B),
        ("11.0.66.0", B),
        ("11.0.79.255", B),
        ("11.0.63.255", A),
        ("11.0.80.0", A),
        ("11.0.0.0", A),
        ("10.255.255.255", None),
        ("11.1.0.0", None),
        ("255.255.255.255", None),
        ("0.0.0.0", None),
    ],
)
def test_the_longest_prefix_wins_in_any_order(
    entries: list[tuple[str, NextHop]], address: str, expected: NextHop | None
) -> None:
    assert lookup(routes(*entries), address) == expected


@pytest.mark.parametrize("address", ["0.0.0.0", "11.0.65.1", "255.255.255.255"])
def test_shortest_and_longest_prefix(address: str) -> None:
    table = routes(("0.0.0.0/0", A))
    assert lookup(table, address) == A
    table.set(IPv4Network(f"{address}/32"), B)
    assert lookup(table, address) == B
    assert lookup(table, "1.2.3.4") == A


def test_a_host_with_a_new_public_ip_replaces_its_next_hop() -> None:
    table = routes(("11.0.65.0/24", A), ("11.0.65.0/24", B))
    assert lookup(table, "11.0.65.7") == B
    assert len(table) == 1


def test_after_a_removal_the_shorter_prefix_counts_again() -> None:
    table = routes(*NESTED)
    table.remove(IPv4Network("11.0.65.0/24"))
    assert lookup(table, "11.0.65.7") == B
    table.remove(IPv4Network("11.0.64.0/20"))
    table.remove(IPv4Network("11.0.0.0/16"))
    assert lookup(table, "11.0.65.7") is None
    assert len(table) == 0


@pytest.mark.parametrize("subnet", ["11.0.65.0/25", "11.0.66.0/24", "12.0.0.0/8"])
def test_removing_what_is_not_there_changes_nothing(subnet: str) -> None:
    table = routes(*NESTED)
    table.remove(IPv4Network(subnet))
    assert len(table) == 3
    assert lookup(table, "11.0.65.7") == C


def test_there_are_no_next_hops_at_first() -> None:
    assert len(Routes()) == 0
    assert lookup(Routes(), "11.0.65.7") is None


def known(table: Routes) -> dict[str, set[str]]:
    """The subnets of each public IP."""
    return {
        public_ip: {str(IPv4Network((network, str(IPv4Address(mask))))) for network, mask in sender.tallies}
        for public_ip, sender in table.by_public_ip.items()
    }


def test_each_public_ip_is_known_with_its_subnets() -> None:
    assert known(Routes()) == {}
    assert known(routes(*NESTED)) == {
        A.public_ip: {"11.0.0.0/16"},
        B.public_ip: {"11.0.64.0/20"},
        C.public_ip: {"11.0.65.0/24"},
    }


def test_a_public_ip_is_known_until_its_last_subnet_is_removed() -> None:
    table = routes(("11.0.65.0/24", A), ("11.0.66.0/24", A), ("11.0.66.0/28", A))
    assert known(table) == {A.public_ip: {"11.0.65.0/24", "11.0.66.0/24", "11.0.66.0/28"}}
    table.remove(IPv4Network("11.0.66.0/24"))
    table.remove(IPv4Network("11.0.65.0/24"))
    assert known(table) == {A.public_ip: {"11.0.66.0/28"}}
    table.remove(IPv4Network("11.0.66.0/28"))
    assert known(table) == {}


def test_a_subnet_with_a_new_next_hop_is_no_more_that_of_the_old_one() -> None:
    table = routes(("11.0.65.0/24", A), ("11.0.66.0/24", A), ("11.0.65.0/24", B))
    assert known(table) == {A.public_ip: {"11.0.66.0/24"}, B.public_ip: {"11.0.65.0/24"}}
    table.set(IPv4Network("11.0.66.0/24"), B)
    assert known(table) == {B.public_ip: {"11.0.65.0/24", "11.0.66.0/24"}}
    table.set(IPv4Network("11.0.66.0/24"), B)
    assert known(table) == {B.public_ip: {"11.0.65.0/24", "11.0.66.0/24"}}


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("11.0.66.255", True),
        ("11.0.66.254", False),
        ("11.0.66.15", True),  # of the /28 in it
        ("11.0.66.31", False),
        ("11.0.67.255", False),
        ("11.0.70.3", True),
        ("11.0.71.1", False),
        ("11.0.72.9", False),
    ],
)
def test_the_last_address_of_a_leased_subnet_is_a_broadcast(address: str, expected: bool) -> None:
    table = routes(
        ("11.0.66.0/24", A), ("11.0.66.0/28", B), ("11.0.70.0/30", A), ("11.0.71.0/31", A), ("11.0.72.9/32", A)
    )
    assert table.is_broadcast(int(IPv4Address(address))) is expected


def test_removing_an_unknown_subnet_keeps_all_public_ips() -> None:
    table = routes(*NESTED)
    for subnet in ("11.0.65.0/25", "11.0.66.0/24", "12.0.0.0/8"):
        table.remove(IPv4Network(subnet))
    assert known(table) == known(routes(*NESTED))


def test_the_counts_of_removed_subnets_are_kept() -> None:
    table = routes(("11.0.65.0/24", A), ("11.0.66.0/24", B))
    for subnet, length in (("11.0.65.0/24", 100), ("11.0.66.0/24", 50)):
        route = table.get(IPv4Network(subnet))
        assert route
        route.tally.sent(length, 1400)
        route.tally.accepted(2, length, 1.5)
    table.remove(IPv4Network("11.0.65.0/24"))
    table.remove(IPv4Network("11.0.65.0/24"))
    assert [tally.bytes_out for tally in table.tallies()] == [50]
    kept = table.removed
    assert (kept.packets_out, kept.bytes_out, kept.packets_in, kept.bytes_in) == (1, 100, 2, 100)
    assert kept.heard_at == 1.5
