"""What keeps packets of containers from other hosts, and how sure that is."""

from __future__ import annotations

import re
from ipaddress import IPv4Network
from typing import Any

import pytest

from flannelpy.netfilter import nft_listing, obstacles
from flannelpy.netfilter.iptables_listing import Tables
from flannelpy.netfilter.obstacles import Obstacle, Search, Traffic

ACCEPTING = "FLANNEL-A-11.0.0.0/16"
UDP = Traffic(
    IPv4Network("11.0.0.0/16"), IPv4Network("11.0.13.0/24"), ("flannel0",), "", ("docker0",), accepting=ACCEPTING
)
LOGDROP = 'LOGDROP -m comment --comment "x y" -j DROP'
HOST_GW = UDP._replace(devices=("eth1",), masquerading="eth1")
DIRECT = UDP._replace(devices=("flannel.1", "eth1"), masquerading="eth1")


def result(search: Search) -> list[Obstacle]:
    try:
        while True:
            next(search)
    except StopIteration as end:
        found: list[Obstacle] = end.value
        return found


def of_iptables(
    *rules: str, table: str = "filter", chains: str = "", policy: str = "ACCEPT", traffic: Traffic = UDP
) -> dict[str, bool]:
    """The rules that drop packets, each in its table, and whether that is certain."""
    heads = [f":FORWARD {policy} [1:2]", ":PREROUTING ACCEPT [1:2]", ":DOCKER-USER - [0:0]", f":{ACCEPTING} - [0:0]"]
    heads += [f":{name} - [0:0]" for name in chains.split()]
    text = "\n".join(["# by", f"*{table}", *heads, *(f"-A {rule}" for rule in rules), "COMMIT", ""]).encode()
    tables = Tables()
    for start in range(0, len(text), 50):
        tables.feed(text[start : start + 50])
    [found] = tables.found
    listed = result(obstacles.of_table(found, "iptables-save", traffic))
    return {re.findall("'(?:-A )?(.*)'", one.text)[0]: one.is_certain for one in listed}


@pytest.mark.parametrize(
    ("rule", "is_certain"),
    [
        ("FORWARD -j DROP", True),
        ("FORWARD -j REJECT --reject-with icmp-host-prohibited", True),
        ('FORWARD -m comment --comment "default -j ACCEPT" -j DROP', True),
        ("FORWARD -m comment --comment drop -j DROP", True),
        ("FORWARD -d 11.0.13.0/24 -j DROP", True),
        ("FORWARD -s 8.0.0.0/5 -d 11.0.0.0/16 -j DROP", True),
        ("FORWARD -i flannel0 -j DROP", True),
        ("FORWARD -i flannel+ -j DROP", True),
        ("FORWARD -o docker0 -j DROP", True),
        ("FORWARD ! -o eth0 -j DROP", True),
        ("FORWARD ! -s 192.168.0.0/16 -j DROP", True),
        ("FORWARD -m conntrack --ctstate NEW -j DROP", True),
        ("FORWARD -m conntrack --ctstate INVALID,NEW -j DROP", True),
        ("FORWARD -m state --state NEW -j DROP", True),
        ("FORWARD -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP", True),
        ("FORWARD -p tcp -j DROP", False),
        ("FORWARD -p tcp -m tcp --dport 80 -j DROP", False),
        ("FORWARD -s 11.0.7.0/24 -j DROP", False),
        ("FORWARD -d 11.0.13.2/32 -j DROP", False),
        ("FORWARD -m mark --mark 0x1 -j DROP", False),
        ("FORWARD -j NFQUEUE --queue-num 7", False),
    ],
)
def test_a_rule_that_drops_is_found(rule: str, is_certain: bool) -> None:
    found = of_iptables(rule, f"FORWARD -j {ACCEPTING}")
    assert list(found.values()) == [is_certain]


@pytest.mark.parametrize(
    "rule",
    [
        "INPUT -j DROP",
        "FORWARD -j LOG",
        "FORWARD -s 12.0.0.0/8 -j DROP",
        "FORWARD -i eth0 -j DROP",
        "FORWARD ! -s 11.0.0.0/16 -j DROP",
        "FORWARD ! -i flannel0 ! -o flannel0 -j DROP",
        "FORWARD -m conntrack --ctstate INVALID -j DROP",
        "FORWARD -m conntrack ! --ctstate NEW -j DROP",
        "DOCKER-USER -j DROP",
        "FORWARD -j DROPLIST",
        "FORWARD -j REJECT_BAD",
    ],
)
def test_what_drops_none_of_our_packets_is_none(rule: str) -> None:
    assert of_iptables(rule, f"FORWARD -j {ACCEPTING}", chains="DROPLIST REJECT_BAD INPUT", policy="DROP") == {}


@pytest.mark.parametrize(
    ("rules", "found"),
    [
        (["FORWARD -j LOGDROP", "LOGDROP -j LOG", "LOGDROP -j DROP"], {"LOGDROP -j DROP": True}),
        (["FORWARD -g LOGDROP", 'LOGDROP -m comment --comment "x y" -j DROP'], {LOGDROP: True}),
        (["FORWARD -g LOGDROP", "FORWARD -j DROP"], {}),
        (["FORWARD -j DOCKER-USER", f"FORWARD -j {ACCEPTING}", "DOCKER-USER -j DROP"], {"DOCKER-USER -j DROP": True}),
        (["FORWARD -s 11.0.0.0/16 -d 11.0.0.0/16 -j ACCEPT", "FORWARD -j DOCKER-USER", "DOCKER-USER -j DROP"], {}),
        (["FORWARD -j FLANNEL-FWD", "FORWARD -j DROP", "FLANNEL-FWD -s 11.0.0.0/16 -j ACCEPT"], {}),
        (["FORWARD -j LOG-ACCEPT", "FORWARD -j DROP", "LOG-ACCEPT -j ACCEPT"], {}),
        (["FORWARD -j DROP-x", "FORWARD -j DROP", "DROP-x -j ACCEPT"], {}),
        (["FORWARD -j MARK-x", "FORWARD -j DROP", "MARK-x -g LOG-ACCEPT", "LOG-ACCEPT -j ACCEPT"], {}),
        (["FORWARD -j MARK-x", "MARK-x -p icmp -j RETURN", "MARK-x -j DROP"], {"MARK-x -j DROP": False}),
        (
            ["FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "FORWARD -j DROP"],
            {"FORWARD -j DROP": True},
        ),
        (["FORWARD -p tcp -m tcp --dport 22 -j ACCEPT", "FORWARD -j DROP"], {"FORWARD -j DROP": True}),
        (["FORWARD -p tcp -m multiport --dports 22,80 -j ACCEPT", "FORWARD -j DROP"], {"FORWARD -j DROP": True}),
        (["FORWARD -p tcp -m tcp --dport 1:65535 -j ACCEPT", "FORWARD -j DROP"], {"FORWARD -j DROP": False}),
        (["FORWARD -p tcp -j ACCEPT", "FORWARD -j DROP"], {"FORWARD -j DROP": False}),
        (
            [
                "FORWARD -m comment --comment flannelpy -j DOCKER-USER",
                "FORWARD -j DROP",
                f"DOCKER-USER -j {ACCEPTING}",
            ],
            {},
        ),
        (["FORWARD -j FLANNEL-D-11.7.0.0/16", "FLANNEL-D-11.7.0.0/16 -j DROP"], {}),
    ],
)
def test_chains_are_followed(rules: list[str], found: dict[str, bool]) -> None:
    chains = "LOGDROP FLANNEL-FWD LOG-ACCEPT DROP-x MARK-x FLANNEL-D-11.7.0.0/16"
    assert of_iptables(*rules, chains=chains) == found


def test_a_policy_counts_where_no_rule_accepts() -> None:
    assert of_iptables(policy="DROP") == {"-P FORWARD DROP": True}
    assert of_iptables("FORWARD -p udp -j ACCEPT", policy="DROP") == {"-P FORWARD DROP": False}
    assert of_iptables(f"FORWARD -j {ACCEPTING}", policy="DROP") == {}


@pytest.mark.parametrize("table", ["mangle", "security"])
def test_each_table_counts(table: str) -> None:
    assert of_iptables("FORWARD -j DROP", table=table) == {"FORWARD -j DROP": True}
    assert of_iptables(f"FORWARD -j {ACCEPTING}", "FORWARD -j DROP", table=table) == {"FORWARD -j DROP": True}


def test_what_docker_drops_in_raw_comes_behind_our_rule() -> None:
    docker = "PREROUTING -d 11.0.13.2/32 ! -i docker0 -j DROP"
    ours = f"PREROUTING -d 11.0.13.0/24 -i flannel0 -j {ACCEPTING}"
    assert of_iptables(ours, docker, table="raw") == {}
    assert of_iptables(docker, ours, table="raw") == {docker: False}


def test_with_host_gw_packets_may_have_the_public_ip_of_a_host() -> None:
    allowed = "FORWARD -i eth1 ! -s 192.0.2.2/32 -j DROP"
    assert of_iptables(allowed, f"FORWARD -j {ACCEPTING}", traffic=HOST_GW) == {allowed: True}
    only_ours = "FORWARD -i eth1 ! -s 11.0.0.0/16 -j DROP"
    assert of_iptables(only_ours, f"FORWARD -j {ACCEPTING}", traffic=HOST_GW) == {only_ours: False}


# nftables


def match(left: dict[str, Any], right: object, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def ip(field: str) -> dict[str, Any]:
    return {"payload": {"protocol": "ip", "field": field}}


STATE: dict[str, Any] = {"ct": {"key": "state"}}
IN, OUT = {"meta": {"key": "iifname"}}, {"meta": {"key": "oifname"}}
DROP, ACCEPT = {"drop": None}, {"accept": None}
NETWORK = {"prefix": {"addr": "11.0.0.0", "len": 16}}


def of_nftables(
    *rules: list[object], policy: str = "accept", hook: str = "forward", table: str = "fw", traffic: Traffic = UDP
) -> list[Obstacle]:
    where = {"family": "inet", "table": table}
    entries: list[dict[str, Any]] = [
        {"chain": {**where, "name": "base", "type": "filter", "hook": hook, "prio": 0, "policy": policy}},
        {"chain": {**where, "name": "sub"}},
        {"rule": {**where, "chain": "sub", "expr": [DROP]}},
        *({"rule": {**where, "chain": "base", "expr": rule}} for rule in rules),
    ]
    [chain] = nft_listing.base_chains(entries)
    return result(obstacles.of_base_chain(chain, traffic))


ESTABLISHED = [match(STATE, ["established", "related"], "in"), ACCEPT]


@pytest.mark.parametrize(
    ("rules", "policy", "found"),
    [
        ([], "accept", []),
        ([], "drop", [True]),
        ([ESTABLISHED], "drop", [True]),
        ([ESTABLISHED, [{"counter": {}}, DROP]], "accept", [True]),
        ([[{"log": {"prefix": "x"}}, {"reject": {"type": "icmpx"}}]], "accept", [True]),
        ([[match({"payload": {"protocol": "tcp", "field": "dport"}}, 22), ACCEPT], [DROP]], "accept", [True]),
        ([[match({"payload": {"protocol": "tcp", "field": "dport"}}, {"set": [22, 80]}), ACCEPT]], "drop", [True]),
        ([ESTABLISHED, [match({"ct": {"key": "status"}}, "dnat", "in"), ACCEPT], [DROP]], "accept", [True]),
        ([[match({"ct": {"key": "status"}}, "assured", "in"), ACCEPT], [DROP]], "accept", [False]),
        ([[match(IN, "flannel0"), DROP]], "accept", [True]),
        ([[match(OUT, {"set": ["docker*", "eth7"]}), DROP]], "accept", [True]),
        ([[match(IN, "wlan0"), DROP]], "accept", []),
        ([[match(IN, "@some"), DROP]], "accept", [False]),
        ([[match(ip("saddr"), NETWORK), match(ip("daddr"), NETWORK), ACCEPT]], "drop", []),
        ([[match(ip("saddr"), NETWORK, "!="), DROP]], "accept", []),
        ([[match(ip("daddr"), {"range": ["11.0.0.0", "11.1.0.255"]}), DROP]], "accept", [True]),
        ([[match({"meta": {"key": "nfproto"}}, "ipv6"), DROP]], "accept", []),
        ([[{"limit": {"rate": 5}}, DROP]], "accept", [False]),
        ([[{"xt": None}, DROP]], "accept", [False]),
        ([[{"jump": {"target": "sub"}}]], "accept", [True]),
        ([[match(IN, "eth5"), {"goto": {"target": "sub"}}]], "accept", []),
        ([[{"vmap": {"key": OUT, "data": {"set": [["docker0", {"jump": {"target": "sub"}}]]}}}]], "accept", [True]),
        ([[{"vmap": {"key": STATE, "data": {"set": [["established", ACCEPT], ["invalid", DROP]]}}}]], "accept", []),
        ([[{"vmap": {"key": OUT, "data": "@map"}}]], "accept", [False]),
        ([[{"queue": {"num": 3}}]], "accept", [False]),
    ],
)
def test_a_base_chain_is_followed(rules: list[list[object]], policy: str, found: list[bool]) -> None:
    assert [one.is_certain for one in of_nftables(*rules, policy=policy)] == found


@pytest.mark.parametrize("hook", ["prerouting", "forward", "postrouting"])
def test_each_hook_counts(hook: str) -> None:
    assert [one.is_certain for one in of_nftables([match(IN, "flannel0"), DROP], hook=hook)] == [True]


def test_each_obstacle_comes_with_what_to_do() -> None:
    [firewalld] = of_nftables([DROP], table="firewalld")
    [docker] = of_nftables([DROP], table="docker-bridges")
    [mine] = of_nftables([DROP])
    [host_gw] = of_nftables([DROP], traffic=HOST_GW)
    assert "firewall-cmd --permanent --zone=trusted --add-source=11.0.0.0/16 && firewall-cmd --reload" in firewalld.text
    assert "--firewall-backend=iptables" in docker.text
    command = "nft insert rule inet fw base ip saddr 11.0.0.0/16 ip daddr 11.0.0.0/16 accept"
    assert mine.text.endswith(f"(drop in chain base); accept them: {command}")
    assert host_gw.text.endswith(f"{command} && nft insert rule inet fw base iifname eth1 ip daddr 11.0.13.0/24 accept")


@pytest.mark.parametrize(
    ("blocked", "is_host_forwarding", "text"),
    [
        ([], True, ""),
        ([], False, ""),  # somebody has set it for these devices alone, which is enough
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


@pytest.mark.parametrize(
    ("rules", "found"),
    [
        ([], {}),
        (["PREROUTING -i eth1 -j DROP"], {"PREROUTING -i eth1 -j DROP": False}),
        (["PREROUTING -d 11.0.0.0/16 -j DROP"], {"PREROUTING -d 11.0.0.0/16 -j DROP": True}),
    ],
)
def test_packets_by_several_devices_are_lost_if_none_of_them_lets_packets_pass(
    rules: list[str], found: dict[str, bool]
) -> None:
    jumps = [f"PREROUTING -d {DIRECT.subnet} -i {device} -j {ACCEPTING}" for device in DIRECT.devices]
    docker = "PREROUTING -d 11.0.13.2/32 ! -i docker0 -j DROP"
    assert of_iptables(*rules, *jumps, docker, table="raw", traffic=DIRECT) == found
