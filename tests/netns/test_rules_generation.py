"""What changes the value by which flannelpy knows that it must list all rules again."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from lab import Host, Lab

pytestmark = pytest.mark.usefixtures("root")

_PRINT = "from flannelpy.linux import rules_generation; print(rules_generation.current())"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Lab(hosts=1) as lab:
        lab.put_config()
        yield lab.hosts[0]


def generation(host: Host) -> str:
    return host.run(sys.executable, "-c", _PRINT).stdout.strip()


@pytest.mark.parametrize(
    "change",
    [
        "iptables-nft -A FORWARD -j ACCEPT",
        "iptables-nft -P FORWARD ACCEPT",
        "iptables-nft -D FORWARD -j ACCEPT",
        "iptables-nft -t raw -N OTHER",
        "ip6tables-nft -A FORWARD -j ACCEPT",
        "nft add table inet own",
        "nft add chain inet own out { type filter hook output priority 0; policy drop; }",
        "nft add map inet own verdicts { type ipv4_addr : verdict; }",
        "nft add element inet own verdicts { 192.0.2.1 : drop }",
        "nft delete table inet own",
        "ip link add seen type bridge",
        "ip link set seen name renamed",
        "ip link delete renamed",
    ],
)
def test_each_change_changes_the_value(host: Host, change: str) -> None:
    before = generation(host)
    assert before != "None"
    assert generation(host) == before
    host.run(*change.split())
    assert generation(host) != before


def test_listings_are_no_change(host: Host) -> None:
    host.run("iptables-nft", "-A", "FORWARD", "-j", "ACCEPT")
    before = generation(host)
    for command in ("iptables-nft-save", "iptables-nft -L", "nft list ruleset", "nft --json list chains"):
        host.run(*command.split())
    assert generation(host) == before


def test_the_tables_of_iptables_legacy_are_not_counted(host: Host) -> None:
    host.run("iptables-legacy", "-L")
    assert generation(host) == "None"
