"""What flanneld and early flannelpy have left for a network is removed, and nothing else."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest
from support.fakes_iptables import FakeTables

from flannelpy.netfilter import flanneld_rules, network_rules
from flannelpy.netfilter.ruleset import Repair

NETWORK, OTHER = IPv4Network("11.0.0.0/16"), IPv4Network("11.7.0.0/16")


def flanneld(*networks: IPv4Network) -> dict[str, list[str]]:
    """What flanneld v0.5.5 has put when it ran for these networks, one after the other."""
    last = networks[-1]
    return {
        "POSTROUTING": [
            rule
            for network in networks
            for rule in (f"-s {network} -j FLANNEL", f"! -s {network} -d {network} -j MASQUERADE")
        ],
        "FLANNEL": [f"-d {last} -j ACCEPT", "! -d 224.0.0.0/4 -j MASQUERADE"],
    }


def early(*networks: IPv4Network) -> dict[str, list[str]]:
    """What flannelpy put before chains belonged to networks."""
    rules = [
        rule
        for network in networks
        for rule in (
            f"-s {network} -d {network} -j RETURN",
            f"-s {network} ! -d 224.0.0.0/4 -j MASQUERADE",
            f"! -s {network} -d {network} -j MASQUERADE",
        )
    ]
    return {"POSTROUTING": ["-j FLANNEL"], "FLANNEL": rules}


def without_shared(chains: dict[str, list[str]], network: IPv4Network = NETWORK) -> tuple[dict[str, list[str]], Repair]:
    """The table after the removal of a network's rules, as far as it is not empty."""
    tables = FakeTables()
    tables.tables["nat"].update(chains)
    listing = network_rules.listing("nat", [], [network])
    listing.feed(tables.text("nat").encode())
    repair = Repair()
    flanneld_rules.remove(listing, repair, network)
    if text := repair.text("nat"):
        tables.apply(text.decode())
    built_in = ("PREROUTING", "INPUT", "OUTPUT")
    return {name: rules for name, rules in tables.tables["nat"].items() if name not in built_in}, repair


@pytest.mark.parametrize(
    "chains",
    [
        flanneld(NETWORK),
        early(NETWORK),
        {"POSTROUTING": [*early(NETWORK)["POSTROUTING"], "-j FLANNEL"], "FLANNEL": early(NETWORK)["FLANNEL"]},
        {  # both, one after the other
            "POSTROUTING": [*flanneld(NETWORK)["POSTROUTING"], "-j FLANNEL"],
            "FLANNEL": early(NETWORK)["FLANNEL"],
        },
        {  # v0.2.0
            "POSTROUTING": [f"-s {NETWORK} -j FLANNEL"],
            "FLANNEL": [f"-d {NETWORK} -j ACCEPT", "-d 224.0.0.0/4 -j ACCEPT", "! -o flannel0 -j MASQUERADE"],
        },
        {"POSTROUTING": [], "FLANNEL": []},  # after iptables -t nat -F
        {"POSTROUTING": [f"! -s {NETWORK} -d {NETWORK} -j MASQUERADE"]},
    ],
)
def test_all_that_is_of_one_network_goes(chains: dict[str, list[str]]) -> None:
    foreign = ["-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE", '-m comment --comment "for -j FLANNEL" -j ACCEPT']
    left, _ = without_shared({**chains, "POSTROUTING": [foreign[0], *chains["POSTROUTING"], foreign[1]]})
    assert left == {"POSTROUTING": foreign}


@pytest.mark.parametrize(
    ("chains", "left"),
    [
        (early(NETWORK, OTHER), early(OTHER)),
        (flanneld(NETWORK, OTHER), flanneld(OTHER)),
        (flanneld(OTHER), flanneld(OTHER)),
        (early(OTHER), early(OTHER)),
        (
            {"POSTROUTING": ["-j FLANNEL"], "FLANNEL": [*early(NETWORK)["FLANNEL"], "-s 10.9.0.0/16 -j RETURN"]},
            {"POSTROUTING": ["-j FLANNEL"], "FLANNEL": ["-s 10.9.0.0/16 -j RETURN"]},
        ),
        (
            {"POSTROUTING": ["-j FLANNEL", "-p tcp -j FLANNEL"], "FLANNEL": early(NETWORK)["FLANNEL"]},
            {"POSTROUTING": ["-j FLANNEL", "-p tcp -j FLANNEL"], "FLANNEL": []},
        ),
        (
            {"POSTROUTING": ["! -s 12.0.0.0/16 -d 12.0.0.0/16 -j MASQUERADE"], "FLANNELX": ["-j RETURN"]},
            {"POSTROUTING": ["! -s 12.0.0.0/16 -d 12.0.0.0/16 -j MASQUERADE"], "FLANNELX": ["-j RETURN"]},
        ),
    ],
)
def test_what_is_of_another_network_stays(chains: dict[str, list[str]], left: dict[str, list[str]]) -> None:
    assert without_shared(chains)[0] == left
