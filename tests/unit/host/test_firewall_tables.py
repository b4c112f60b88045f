"""The removal of what flannelpy has put into iptables: all of one network, in both flavours, and nothing else."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import NamedTuple

import pytest
from support.fakes_clock import run
from support.fakes_iptables import FakeTables

from flannelpy.datapath.traffic import Datagrams, Forwarding
from flannelpy.errors import HostError
from flannelpy.host import firewall_tables
from flannelpy.host.firewall import Firewall
from flannelpy.host.firewall_tables import Removal
from flannelpy.netfilter.network_rules import KINDS, NetworkRules
from flannelpy.netfilter.ruleset import Listing

BLUE, GREEN = IPv4Network("11.1.0.0/16"), IPv4Network("11.2.0.0/16")
HOST = IPv4Address("172.17.8.101")
NOTHING = Removal([], [])


class Carrier(NamedTuple):
    """As much of a backend as the rules ask for."""

    datagrams: Datagrams | None = Datagrams("flannel0", 8285, 8285, accepts_local=True)
    forwarding: Forwarding | None = None


def test_a_networks_rules_are_removed_and_those_of_others_stay(tables: FakeTables) -> None:
    async def story() -> None:
        firewall = Firewall(5)
        for name, network in (("blue", BLUE), ("green", GREEN)):
            subnet = next(network.subnets(new_prefix=24))
            rules = NetworkRules(network, subnet, HOST, Carrier(), [], is_masqueraded=True, is_forwarded=True)
            firewall.add(name, rules, lambda: None)
            await firewall.masquerade(name)
            firewall.apply(name, [])
        checks = asyncio.create_task(firewall.run())
        await asyncio.sleep(3)
        checks.cancel()
        assert await firewall_tables.remove(BLUE) == Removal(
            [
                "iptables rule: POSTROUTING -j FLANNEL-M-11.1.0.0/16",
                "iptables chain FLANNEL-M-11.1.0.0/16 in table nat",
                "iptables rule: PREROUTING ! -d 172.17.8.101/32 -p udp -m udp --dport 8285 -m rpfilter --invert "
                "-j FLANNEL-D-11.1.0.0/16",
                *(
                    f"iptables rule: FORWARD -s {source} ! -o flannel0 -p udp -m udp --dport 8285 "
                    "-j FLANNEL-D-11.1.0.0/16"
                    for source in (GREEN, BLUE)
                ),
                "iptables chain FLANNEL-D-11.1.0.0/16 in table mangle",
                *(
                    f"iptables rule: {hook} -{way} 172.17.8.101/32 -p udp -m udp --sport 8285 --dport 8285 "
                    "-j FLANNEL-Z-11.1.0.0/16"
                    for hook, way in (("PREROUTING", "d"), ("OUTPUT", "s"))
                ),
                "iptables chain FLANNEL-Z-11.1.0.0/16 in table raw",
            ],
            [],
        )
        assert await firewall_tables.remove(BLUE) == NOTHING
        assert await firewall_tables.chains() == [
            f"iptables chain FLANNEL-{kind}-11.2.0.0/16 in table {table}"
            for kind, table in (("M", "nat"), ("D", "mangle"), ("Z", "raw"))
        ]
        assert len((await firewall_tables.remove(GREEN)).removed) == 9
        assert tables.tables == FakeTables().tables

    run(story())


@pytest.mark.parametrize("failing", KINDS)
def test_tables_that_fail_do_not_keep_the_others_and_what_is_removed_is_reported(
    tables: FakeTables, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    async def save(table: str, listing: Listing, flavour: str = "") -> None:
        if table == failing:
            raise HostError(f"{table} failed")
        await tables.save(table, listing, flavour)

    chains = {table: [f"FLANNEL-{kind}-{BLUE}" for kind in sorted(kinds)] for table, kinds in KINDS.items()}
    for table, names in chains.items():
        tables.tables[table].update({name: [] for name in names})
    monkeypatch.setattr("flannelpy.linux.iptables.save", save)
    removed, failures = asyncio.run(firewall_tables.remove(BLUE))
    assert [str(failure) for failure in failures] == [f"{failing} failed"]
    others = {table: names for table, names in chains.items() if table != failing}
    assert removed == [f"iptables chain {name} in table {table}" for table, names in others.items() for name in names]
    for table, names in chains.items():
        assert all((name in tables.tables[table]) == (table == failing) for name in names)


def test_both_flavours_of_iptables_are_searched(tables: FakeTables) -> None:
    other = tables.other = FakeTables()
    del other.tables["raw"]
    for each, network in ((tables, BLUE), (other, BLUE), (other, GREEN)):
        each.apply(f"*filter\n:FLANNEL-A-{network} - [0:0]\n-A FORWARD -j FLANNEL-A-{network}\nCOMMIT\n")
    assert asyncio.run(firewall_tables.chains()) == [
        f"iptables chain FLANNEL-A-{BLUE} in table filter",
        f"iptables-legacy chain FLANNEL-A-{BLUE} in table filter",
        f"iptables-legacy chain FLANNEL-A-{GREEN} in table filter",
    ]
    assert asyncio.run(firewall_tables.remove(BLUE)).removed == [
        f"iptables rule: FORWARD -j FLANNEL-A-{BLUE}",
        f"iptables chain FLANNEL-A-{BLUE} in table filter",
        f"iptables-legacy rule: FORWARD -j FLANNEL-A-{BLUE}",
        f"iptables-legacy chain FLANNEL-A-{BLUE} in table filter",
    ]
    assert tables.tables == FakeTables().tables
    assert other.tables["filter"]["FORWARD"] == [f"-j FLANNEL-A-{GREEN}"]


def test_a_failure_of_the_other_flavour_is_a_failure_of_each_table(tables: FakeTables) -> None:
    """Otherwise -cleanup would drop its record of the network, whose chains stay."""
    tables.other = FakeTables()
    tables.other.failure = "iptables-legacy-save failed: exit code 4"
    removed, failures = asyncio.run(firewall_tables.remove(BLUE))
    assert removed == []
    assert [str(failure) for failure in failures] == [tables.other.failure] * len(KINDS)


def test_without_the_command_there_is_nothing_to_remove(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert asyncio.run(firewall_tables.remove(BLUE)) == NOTHING
    assert asyncio.run(firewall_tables.chains()) == []
