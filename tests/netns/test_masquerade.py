"""Masquerading rules in a real kernel, with both flavours of iptables, are added and removed completely."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab import Lab, wait_for
from support.firewalls import FLAVOURS, Flavour

NETWORK = "11.0.0.0/16"
CHAIN = f"FLANNEL-M-{NETWORK}"
ALL_CHAINS = {
    "nat": {CHAIN},
    "mangle": {f"FLANNEL-D-{NETWORK}"},
    "raw": {f"FLANNEL-Z-{NETWORK}", f"FLANNEL-A-{NETWORK}"},
    "filter": {f"FLANNEL-A-{NETWORK}", f"FLANNEL-O-{NETWORK}"},
}
OURS = [
    f"-N {CHAIN}",
    f"-A POSTROUTING -j {CHAIN}",
    f"-A {CHAIN} -s {NETWORK} -d {NETWORK} -j RETURN",
    f"-A {CHAIN} -s {NETWORK} ! -d 224.0.0.0/4 -j MASQUERADE",
    f"-A {CHAIN} ! -s {NETWORK} -d {NETWORK} -j MASQUERADE",
]
# The rules that flanneld v0.5.5 and early versions of flannelpy add for -ip-masq.
FLANNELD = f"""*nat
:FLANNEL - [0:0]
-A FLANNEL -d {NETWORK} -j ACCEPT
-A FLANNEL ! -d 224.0.0.0/4 -j MASQUERADE
-A POSTROUTING -s {NETWORK} -j FLANNEL
-A POSTROUTING ! -s {NETWORK} -d {NETWORK} -j MASQUERADE
COMMIT
"""
EARLY = f"""*nat
:FLANNEL - [0:0]
-A FLANNEL -s {NETWORK} -d {NETWORK} -j RETURN
-A FLANNEL -s {NETWORK} ! -d 224.0.0.0/4 -j MASQUERADE
-A FLANNEL ! -s {NETWORK} -d {NETWORK} -j MASQUERADE
-A POSTROUTING -j FLANNEL
COMMIT
"""
OTHERS = """*nat
:DOCKER - [0:0]
:FLANNELX - [0:0]
:FLANNEL-POSTRTG - [0:0]
-A DOCKER -i docker0 -j RETURN
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -m comment --comment "not for -j FLANNEL" -j DOCKER
-A POSTROUTING -m comment --comment "-j FLANNEL-M-11.0.0.0/16"
-A POSTROUTING -j FLANNELX
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A POSTROUTING ! -s 12.0.0.0/16 -d 12.0.0.0/16 -j MASQUERADE
COMMIT
*raw
-A PREROUTING -s 192.0.2.0/24 -m comment --comment FLANNEL-Z-11.0.0.0/16 -j DROP
COMMIT
*mangle
-A FORWARD -p tcp -m comment --comment "FLANNEL -j FLANNEL-D-11.0.0.0/16" -j ACCEPT
COMMIT
"""
#: Rules of another network in the chain FLANNEL.
ANOTHER_NETWORK = (
    "*nat\n-A FLANNEL -s 12.0.0.0/16 -d 12.0.0.0/16 -j RETURN\n-A POSTROUTING -s 12.0.0.0/16 -j FLANNEL\nCOMMIT\n"
)


@pytest.fixture(scope="module", params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> Iterator[Flavour]:
    """Return a host on which other programs have rules."""
    with Lab(hosts=1) as lab:
        lab.put_config()
        flavour = Flavour(lab.hosts[0], request.param)
        flavour.restore(OTHERS)
        yield flavour


def test_our_rules_are_removed_and_others_stay(flavour: Flavour) -> None:
    before = flavour.all_rules()
    daemon = flavour.start_daemon("-ip-masq")
    assert [line for line in flavour.rules("nat") if CHAIN in line and "comment" not in line] == OURS
    wait_for(lambda: {table: flavour.chains(table) for table in ALL_CHAINS} == ALL_CHAINS, 5, "all chains")
    daemon.stop()
    assert {table: flavour.chains(table) for table in ALL_CHAINS} == ALL_CHAINS
    messages = flavour.clean_up()
    assert f"Removed iptables chain {CHAIN} in table nat" in messages
    assert flavour.all_rules() == before
    assert [message for message in flavour.clean_up() if not message.startswith("Removed nothing: ")] == []


@pytest.mark.parametrize("left", [FLANNELD, EARLY])
def test_rules_of_flanneld_or_an_early_version_are_replaced(flavour: Flavour, left: str) -> None:
    before = flavour.rules("nat")
    flavour.restore(left)
    daemon = flavour.start_daemon("-ip-masq")
    assert sorted(flavour.rules("nat")) == sorted([*before, *OURS])
    daemon.stop()
    flavour.restore(left)
    messages = flavour.clean_up()
    assert "Removed iptables chain FLANNEL in table nat" in messages
    assert flavour.rules("nat") == before


@pytest.mark.parametrize("left", [FLANNELD, EARLY])
def test_rules_of_another_network_in_its_chain_stay(flavour: Flavour, left: str) -> None:
    before = flavour.rules("nat")
    flavour.restore(left)
    flavour.restore(ANOTHER_NETWORK)
    flavour.start_daemon("-ip-masq").stop()
    flavour.clean_up()
    kept = [line for line in flavour.rules("nat") if line not in before]
    assert "-A FLANNEL -s 12.0.0.0/16 -d 12.0.0.0/16 -j RETURN" in kept
    assert "-A POSTROUTING -s 12.0.0.0/16 -j FLANNEL" in kept
    assert not any(NETWORK in line for line in kept)
    for line in reversed(kept):
        if line.startswith("-A"):
            flavour.run("-t", "nat", "-D", *line.split()[1:])
    flavour.run("-t", "nat", "-X", "FLANNEL")
    assert flavour.rules("nat") == before


def test_without_the_files_of_a_run_chains_are_only_listed(flavour: Flavour) -> None:
    before = flavour.all_rules()
    flavour.restore("*nat\n:FLANNEL-M-12.0.0.0/16 - [0:0]\n-A POSTROUTING -j FLANNEL-M-12.0.0.0/16\nCOMMIT\n")
    messages = flavour.clean_up("-subnet-file=/run/never.env")
    assert messages == [
        "Removed nothing: there is neither /run/never.env nor a record of its last run",
        "Found state marked by flannelpy: iptables chain FLANNEL-M-12.0.0.0/16 in table nat",
    ]
    flavour.restore("*nat\n-D POSTROUTING -j FLANNEL-M-12.0.0.0/16\n-X FLANNEL-M-12.0.0.0/16\nCOMMIT\n")
    assert flavour.all_rules() == before
