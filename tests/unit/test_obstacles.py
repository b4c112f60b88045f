"""What keeps packets of containers from other hosts, and how sure that is."""

from __future__ import annotations

import re
from ipaddress import IPv4Network

import pytest

from flannelpy import obstacles
from flannelpy.backend.base import Forwarding
from flannelpy.linux.nftables import BaseChain
from flannelpy.obstacles import DropSearch

NETWORK, SUBNET = IPv4Network("11.0.0.0/16"), IPv4Network("11.0.13.0/24")


def searched(rules: list[str], *devices: str, chunks: int = 1) -> dict[str, bool]:
    """The drops that are found among rules, and whether each is certain; so many rules come at a time."""
    search = DropSearch(NETWORK, SUBNET, Forwarding(devices or ["flannel0"], "eth1"))
    for start in range(0, len(rules), chunks):
        search.feed("".join(f"-A {rule}\n" for rule in rules[start : start + chunks]).encode())
    return {drop.rule.removeprefix("-A "): drop.is_certain for drop in search.found}


@pytest.mark.parametrize(
    "rule",
    [
        "FORWARD -j DROP",
        "FORWARD -j REJECT --reject-with icmp-host-prohibited",
        "FORWARD -d 11.0.13.0/24 -j DROP",
        "FORWARD -s 11.0.0.0/16 -j DROP",
        "FORWARD -s 8.0.0.0/5 -d 11.0.0.0/16 -j DROP",
        "FORWARD -i flannel0 -j DROP",
        "FORWARD -s 11.0.13.0/24 -o flannel0 -j DROP",
        "FORWARD -d 11.0.0.0/16 -j DROP",
        "DOCKER-USER -d 11.0.13.0/24 -i flannel0 -j REJECT --reject-with icmp-port-unreachable",
    ],
)
@pytest.mark.parametrize("chunks", [1, 99])
def test_a_rule_that_drops_all_packets_of_one_way_is_found(rule: str, chunks: int) -> None:
    assert searched(["INPUT -j ACCEPT", rule, "FORWARD -j DROP"], chunks=chunks)[rule] is True


@pytest.mark.parametrize(
    "rule",
    [
        "INPUT -j DROP",
        "FORWARD -j ACCEPT",
        "FORWARD -j LOG",
        "FORWARD -p tcp -j DROP",
        "FORWARD -s 11.0.7.0/24 -j DROP",
        "FORWARD -d 11.0.13.2/32 -j DROP",
        "FORWARD -s 12.0.0.0/8 -j DROP",
        "FORWARD -i eth0 -j DROP",
        "FORWARD ! -s 11.0.0.0/16 -j DROP",
        "FORWARD -m comment --comment drop -j DROP",
        "FORWARD-X -j DROP",
        "DOCKER -j DROP",
    ],
)
def test_other_rules_are_none(rule: str) -> None:
    assert searched([rule]) == {}


@pytest.mark.parametrize(
    ("before", "is_certain"),
    [
        ("FORWARD -j LOG --log-prefix x", True),
        ("FORWARD -p tcp -j DROP", True),
        ("FORWARD -j FLANNEL-A-11.7.0.0/16", True),
        ("INPUT -j ACCEPT", True),
        ("FORWARD -p tcp -j ACCEPT", False),
        ("FORWARD -j ufw-before-forward", False),
        ("FORWARD -s 1.1.1.1/32 -j RETURN", False),
        ("FORWARD -g elsewhere", False),
    ],
)
@pytest.mark.parametrize("chunks", [1, 99])
def test_a_rule_before_it_that_may_accept_makes_it_uncertain(before: str, is_certain: bool, chunks: int) -> None:
    assert searched([before, "FORWARD -j DROP"], chunks=chunks) == {"FORWARD -j DROP": is_certain}


@pytest.mark.parametrize("chunks", [1, 99])
def test_a_drop_behind_the_jump_to_docker_user_comes_too_late(chunks: int) -> None:
    assert searched(["FORWARD -j DOCKER-USER", "FORWARD -j DROP"], chunks=chunks) == {}
    assert searched(["FORWARD -j DROP", "FORWARD -j DOCKER-USER"], chunks=chunks) == {"FORWARD -j DROP": True}


def test_each_obstacle_says_what_drops_and_what_to_do() -> None:
    chains = [
        BaseChain("inet", "firewalld", "filter_FORWARD", drops=True, accepts=True),
        BaseChain("ip", "docker-bridges", "filter-FORWARD", drops=True, accepts=True),
        BaseChain("inet", "mine", "forward", drops=True, accepts=False),
        BaseChain("inet", "harmless", "forward", drops=False, accepts=True),
    ]
    firewalld, docker, mine = obstacles.of_nftables(chains, NETWORK)
    assert "firewall-cmd --permanent --zone=trusted --add-source=11.0.0.0/16 && firewall-cmd --reload" in firewalld.text
    assert "--firewall-backend=iptables" in docker.text
    assert "The nftables chain inet mine forward drops packets" in mine.text
    assert [one.is_certain for one in (firewalld, docker, mine)] == [False, False, True]
    [rule] = obstacles.of_iptables([obstacles.Drop("-A FORWARD -j DROP", is_certain=True)])
    assert "The iptables rule '-A FORWARD -j DROP' drops packets" in rule.text


@pytest.mark.parametrize(
    ("blocked", "is_host_forwarding", "text"),
    [
        ([], True, ""),
        ([], False, ""),  # the devices' own settings are enough
        (["docker0"], False, "net.ipv4.ip_forward is 0.*: sysctl -w net.ipv4.ip_forward=1"),
        (["docker0"], True, "Forwarding is 0 for docker0, .*: sysctl -w net.ipv4.conf.docker0.forwarding=1"),
        (["flannel.1"], True, "Forwarding is 0 for flannel.1, .*: sysctl -w net.ipv4.conf.flannel/1.forwarding=1"),
        (["a", "b"], True, "Forwarding is 0 for a, b, .*: sysctl -w net.ipv4.conf.a.forwarding=1 net.*b.forwarding=1"),
        (list("abcde"), True, "Forwarding is 0 for a, b, c and 2 more devices, .*c.forwarding=1"),
    ],
)
def test_a_setting_of_the_kernel_comes_with_the_command_that_cures_it(
    blocked: list[str], is_host_forwarding: bool, text: str
) -> None:
    assert re.fullmatch(text, obstacles.of_sysctls(blocked, is_host_forwarding=is_host_forwarding))
