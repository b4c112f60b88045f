"""DOCKER-USER exists, has a jump to it once Docker runs, and -cleanup removes it only if no other program uses it."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Network

import pytest
from support.fakes_iptables import FakeTables

from flannelpy.datapath.traffic import Forwarding
from flannelpy.netfilter import docker_chains, network_rules
from flannelpy.netfilter.ruleset import Listing, Repair

Change = Callable[[dict[str, list[str]]], None]
NETWORK, SUBNET = IPv4Network("11.0.0.0/16"), IPv4Network("11.0.13.0/24")
OTHER = "FLANNEL-A-11.7.0.0/16"
CHAIN = network_rules.accept_forwarded(NETWORK, SUBNET, Forwarding(["flannel0"], "eth1"), b"")
NAME = CHAIN.name
OWN_JUMP = "-m comment --comment flannelpy -j DOCKER-USER"


def listed(tables: FakeTables) -> Listing:
    listing = network_rules.listing("filter", [NAME], [])
    listing.feed(tables.text("filter").encode())
    return listing


def keep(tables: FakeTables) -> str:
    """Repair once; what is written the second time."""
    texts = []
    for _ in range(2):
        repair = Repair()
        repair.keep(listed(tables), CHAIN)
        docker_chains.keep(listed(tables), repair)
        texts.append(repair.text("filter").decode())
        if texts[-1]:
            tables.apply(texts[-1])
    return texts[-1]


def remove(tables: FakeTables) -> None:
    repair = Repair()
    repair.remove(listed(tables), NAME)
    docker_chains.remove(listed(tables), repair)
    if text := repair.text("filter").decode():
        tables.apply(text)


def tables_with(**chains: list[str]) -> FakeTables:
    tables = FakeTables()
    tables.tables["filter"].update({name.replace("_", "-"): rules for name, rules in chains.items()})
    return tables


def test_the_chain_is_created_before_docker_comes() -> None:
    tables = FakeTables()
    assert keep(tables) == ""
    found = tables.tables["filter"]
    assert (found["DOCKER-USER"], found["FORWARD"]) == ([f"-j {NAME}"], [f"-j {NAME}"])


@pytest.mark.parametrize(
    ("forward", "jump"),
    [
        (["-j DOCKER-USER", "-j DOCKER-FORWARD"], ["-j DOCKER-USER", "-j DOCKER-FORWARD"]),
        (["-o docker0 -j DOCKER"], [OWN_JUMP, "-o docker0 -j DOCKER"]),
        ([OWN_JUMP, "-o docker0 -j DOCKER"], [OWN_JUMP, "-o docker0 -j DOCKER"]),
        (["-j DOCKER-USER", OWN_JUMP], ["-j DOCKER-USER"]),
    ],
)
def test_a_docker_that_does_not_jump_there_gets_a_jump(forward: list[str], jump: list[str]) -> None:
    tables = tables_with(DOCKER=["-d 11.0.13.2/32 -j ACCEPT"], DOCKER_USER=["-j RETURN"], FORWARD=forward)
    assert keep(tables) == ""
    found = tables.tables["filter"]
    assert found["DOCKER-USER"] == [f"-j {NAME}", "-j RETURN"]
    assert found["FORWARD"] == [*jump, f"-j {NAME}"]
    remove(tables)
    assert found is not tables.tables["filter"]
    assert tables.tables["filter"]["FORWARD"] == [rule for rule in jump if rule != OWN_JUMP]
    assert tables.tables["filter"]["DOCKER-USER"] == ["-j RETURN"]


def test_rules_of_an_operator_come_first() -> None:
    tables = tables_with(DOCKER_USER=["-s 11.0.7.0/24 -j DROP", "-j RETURN"], FORWARD=["-p tcp -j ACCEPT"])
    assert keep(tables) == ""
    assert tables.tables["filter"]["DOCKER-USER"] == ["-s 11.0.7.0/24 -j DROP", f"-j {NAME}", "-j RETURN"]
    tables.tables["filter"]["DOCKER-USER"].insert(2, "-s 11.0.8.0/24 -j DROP")
    assert keep(tables) == ""
    assert tables.tables["filter"]["DOCKER-USER"][2:] == [f"-j {NAME}", "-j RETURN"]


def flush(*names: str) -> Change:
    """``iptables -F`` of some chains; without names, of the table."""

    def change(chains: dict[str, list[str]]) -> None:
        for name in names or chains:
            chains[name].clear()

    return change


def delete_chain(chains: dict[str, list[str]]) -> None:
    flush("DOCKER-USER")(chains)
    del chains["DOCKER-USER"]


@pytest.mark.parametrize("change", [flush("FORWARD"), flush("DOCKER-USER"), flush(NAME), flush(), delete_chain])
def test_a_chain_that_only_we_used_goes(change: Change) -> None:
    """Also after what an operator does between stop and -cleanup."""
    tables = FakeTables()
    keep(tables)
    remove(tables)
    assert tables.tables == FakeTables().tables
    keep(tables)
    change(tables.tables["filter"])
    remove(tables)
    assert tables.tables == FakeTables().tables


@pytest.mark.parametrize("rule", ["-j RETURN", "-s 1.1.1.1/32 -j DROP"])
def test_a_chain_of_ours_that_others_use_by_now_stays_and_becomes_theirs(rule: str) -> None:
    tables = FakeTables()
    keep(tables)
    tables.tables["filter"]["DOCKER-USER"].append(rule)
    remove(tables)
    found = tables.tables["filter"]
    assert {name: rules for name, rules in found.items() if rules or "-" in name} == {"DOCKER-USER": [rule]}


def test_a_chain_of_ours_stays_as_long_as_another_network_of_ours_is_there() -> None:
    tables = FakeTables()
    keep(tables)
    tables.apply(f"*filter\n:{OTHER} - [0:0]\n-A DOCKER-USER -j {OTHER}\nCOMMIT\n")
    flush("DOCKER-USER")(tables.tables["filter"])
    remove(tables)
    assert {"DOCKER-USER", OTHER} <= set(tables.tables["filter"])
    repair = Repair()
    listing = network_rules.listing("filter", [OTHER], [])
    listing.feed(tables.text("filter").encode())
    repair.remove(listing, OTHER)
    docker_chains.remove(listing, repair)
    tables.apply(repair.text("filter").decode())
    assert tables.tables == FakeTables().tables


@pytest.mark.parametrize(
    "chains",
    [
        {"DOCKER_USER": ["-j RETURN"]},
        {"DOCKER_USER": ["-s 1.1.1.1/32 -j DROP"]},
        {"DOCKER_USER": []},
        {"DOCKER_USER": [], "FORWARD": ["-j DOCKER-USER"]},
        {"DOCKER_USER": [], "INPUT": ["-p tcp -j DOCKER-USER"]},
        {"DOCKER_USER": [f"-j {OTHER}"], "FORWARD": [f"-j {OTHER}"]},
    ],
)
def test_a_chain_that_others_use_stays(chains: dict[str, list[str]]) -> None:
    tables = tables_with(**{name: list(rules) for name, rules in chains.items()})
    before = tables_with(**chains).tables
    keep(tables)
    remove(tables)
    assert tables.tables == before
    remove(tables)
    assert tables.tables == before
