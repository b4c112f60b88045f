"""What keeps packets of containers from other hosts, and how sure that is."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.listings import feed, listing, result

from flannelpy.datapath.traffic import Datagrams, Forwarding
from flannelpy.netfilter import obstacles
from flannelpy.netfilter.address_ranges import AddressRanges
from flannelpy.netfilter.iptables_listing import Tables
from flannelpy.netfilter.network_rules import NetworkRules
from flannelpy.netfilter.nft_listing import Entries, NftTable
from flannelpy.netfilter.obstacles import Obstacle, Traffic
from flannelpy.registry.base import PERMANENT
from flannelpy.subnet.lease import Lease, LeaseAttrs
from flannelpy.subnet.lease_table import LeaseAdded

ACCEPTING, OUTWARD = "FLANNEL-A-11.0.0.0/16", "FLANNEL-O-11.0.0.0/16"
JUMPS = f"FORWARD -j {ACCEPTING}", f"FORWARD -j {OUTWARD}"
UDP = Traffic(IPv4Network("11.0.0.0/16"), IPv4Network("11.0.13.0/24"), ("flannel0",), "", ("docker0",))
PEERS = AddressRanges([(int(IPv4Address("192.0.2.7")),) * 2])
CONDITIONS = ("", "-i docker0", "-o docker0", "-i eth1", "-s 11.0.0.0/16", "! -i docker0", "-d 192.0.2.0/24")
LOGDROP = 'LOGDROP -m comment --comment "x y" -j DROP'
HOST_GW = UDP._replace(devices=("eth1",), masquerading="eth1")
DIRECT = UDP._replace(devices=("flannel.1", "eth1"), masquerading="eth1")


def of_iptables(
    *rules: str, table: str = "filter", chains: str = "", policy: str = "ACCEPT", traffic: Traffic = UDP
) -> dict[str, bool]:
    """The rules that drop packets, each in its table, and whether that is certain."""
    heads = [f":FORWARD {policy} [1:2]", ":PREROUTING ACCEPT [1:2]", ":DOCKER-USER - [0:0]"]
    heads += [f":{name} - [0:0]" for name in (ACCEPTING, OUTWARD, *chains.split())]
    text = "\n".join(["# by", f"*{table}", *heads, *(f"-A {rule}" for rule in rules), "COMMIT", ""]).encode()
    listed = searched([listing(text)], [], traffic)
    return {re.findall("'(?:-A )?(.*)'", one.text, re.DOTALL)[0]: one.is_certain for one in listed}


def searched(listings: list[Tables], nft_tables: list[NftTable], traffic: Traffic) -> list[Obstacle]:
    return [found for search in obstacles.searches(listings, nft_tables, traffic) for found in result(search)]


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
        ("FORWARD -m conntrack ! --ctstate NEW -j DROP", True),
        ("FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j REJECT", True),
        ("FORWARD -p tcp -j DROP", False),
        ("FORWARD -p tcp -m tcp --dport 80 -j DROP", False),
        ("FORWARD -s 11.0.7.0/24 -j DROP", False),
        ("FORWARD -d 11.0.13.2/32 -j DROP", False),
        ("FORWARD -m mark --mark 0x1 -j DROP", False),
        ("FORWARD -j NFQUEUE --queue-num 7", False),
    ],
)
def test_a_rule_that_drops_is_found(rule: str, is_certain: bool) -> None:
    found = of_iptables(rule, *JUMPS)
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
        "DOCKER-USER -j DROP",
        "FORWARD -j DROPLIST",
        "FORWARD -j REJECT_BAD",
    ],
)
def test_what_drops_none_of_our_packets_is_none(rule: str) -> None:
    assert of_iptables(rule, *JUMPS, chains="DROPLIST REJECT_BAD INPUT", policy="DROP") == {}


@pytest.mark.parametrize(
    ("rules", "found"),
    [
        (["FORWARD -j LOGDROP", "LOGDROP -j LOG", "LOGDROP -j DROP"], {"LOGDROP -j DROP": True}),
        (["FORWARD -g LOGDROP", 'LOGDROP -m comment --comment "x y" -j DROP'], {LOGDROP: True}),
        (["FORWARD -g LOGDROP", "FORWARD -j DROP"], {}),
        (["FORWARD -j DOCKER-USER", *JUMPS, "DOCKER-USER -j DROP"], {"DOCKER-USER -j DROP": True}),
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
                "FORWARD -i flannel0 -j DROP",
                f"DOCKER-USER -j {ACCEPTING}",
            ],
            {},
        ),
        (["FORWARD -j FLANNEL-D-11.7.0.0/16", "FLANNEL-D-11.7.0.0/16 -j DROP"], {}),
        (["FORWARD -j MARK-x", "MARK-x -p tcp --dport 22 -j RETURN", "MARK-x -j DROP"], {"MARK-x -j DROP": True}),
        (["FORWARD -m conntrack --ctstate NEW -j ACCEPT", "FORWARD -j DROP"], {"FORWARD -j DROP": True}),
    ],
)
def test_chains_are_followed(rules: list[str], found: dict[str, bool]) -> None:
    chains = "LOGDROP FLANNEL-FWD LOG-ACCEPT DROP-x MARK-x FLANNEL-D-11.7.0.0/16"
    assert of_iptables(*rules, chains=chains) == found


#: Rules for others, or for packets that are malformed or rare.
HARDENING = [
    "-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW -j DROP",
    "-p tcp -m tcp --tcp-flags FIN,SYN,RST,PSH,ACK,URG NONE -j DROP",
    "-p tcp -m tcp --tcp-flags SYN,RST SYN,RST -j DROP",
    "-p tcp -m tcp --tcp-flags SYN,ACK NONE -j DROP",
    "-f -j DROP",
    "-m rpfilter --invert -j DROP",
    "-m hashlimit --hashlimit-above 10/sec --hashlimit-burst 5 --hashlimit-name x -j DROP",
    "-p tcp -m connlimit --connlimit-above 10 --connlimit-mask 32 --connlimit-saddr -j REJECT",
    "-m iprange --src-range 203.0.113.1-203.0.113.9 -j DROP",
    '-m addrtype --dst-type LOCAL -m comment --comment "no endpoints" -j REJECT',
    "-m addrtype ! --dst-type UNICAST -j DROP",
]


@pytest.mark.parametrize("rule", HARDENING)
def test_a_rule_that_only_rare_packets_match_is_not_named(rule: str) -> None:
    assert of_iptables(f"FORWARD {rule}", *JUMPS) == {}


@pytest.mark.parametrize(
    ("rule", "is_certain"),
    [
        ("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP", False),
        ("-p tcp -m tcp --tcp-flags ACK ACK -j DROP", False),
        ("-p tcp -m tcp --tcp-flags ACK NONE -j DROP", False),
        ("! -f -j DROP", True),
        ("-m iprange --dst-range 11.0.13.0-11.0.14.9 -j DROP", True),
        ("-m iprange ! --src-range 12.0.0.0-12.0.0.9 -j DROP", True),
        ("-m addrtype --dst-type UNICAST,LOCAL -j DROP", True),
        ("-m hashlimit --hashlimit-upto 10/sec --hashlimit-name x -j DROP", False),
    ],
)
def test_a_rule_that_ordinary_packets_match_is_named(rule: str, is_certain: bool) -> None:
    assert list(of_iptables(f"FORWARD {rule}", *JUMPS).values()) == [is_certain]


BEFORE_BRIDGES = UDP._replace(bridges=())


@pytest.mark.parametrize(
    ("rules", "found"),
    [
        (["FORWARD -o virbr0 -j REJECT", "FORWARD -i cali+ -j DROP"], {}),
        (["FORWARD -j DROP"], {"FORWARD -j DROP": True}),
        (["FORWARD -i flannel0 -j DROP"], {"FORWARD -i flannel0 -j DROP": True}),
        (["FORWARD -i flannel0 ! -o br0 -j DROP"], {"FORWARD -i flannel0 ! -o br0 -j DROP": False}),
        (
            ["FORWARD -o docker0 -j ACCEPT", "FORWARD -i docker0 -j ACCEPT", "FORWARD -j DROP"],
            {"FORWARD -j DROP": False},
        ),
    ],
)
def test_before_there_is_a_bridge_only_rules_that_name_none_count(rules: list[str], found: dict[str, bool]) -> None:
    assert of_iptables(*rules, traffic=BEFORE_BRIDGES) == found


def test_a_comment_of_several_lines_is_no_rule() -> None:
    comment = 'FORWARD -m comment --comment "a\n-A FORWARD -j DROP\n*raw\nb \\" c" -j LOG'
    assert of_iptables(comment, *JUMPS, policy="DROP") == {}
    real = comment.replace("LOG", "DROP")
    assert of_iptables(real, *JUMPS) == {real: True}


def of_both(*rules: str, has_own_rules: bool) -> list[bool]:
    heads = ["*filter", ":FORWARD DROP [0:0]", *(f":{name} - [0:0]" for name in (ACCEPTING, OUTWARD))]
    text = "\n".join([*heads, *rules, "COMMIT", ""]).encode()
    found = searched([listing(text, "iptables-legacy-save", has_own_rules=has_own_rules)], [], UDP)
    return [each.is_certain for each in found]


def test_a_chain_of_flannelpy_counts_as_accepting_only_in_the_iptables_that_has_own_rules() -> None:
    """An earlier run may have used the other flavour, and left an empty chain there."""
    jumps = [f"-A {jump}" for jump in JUMPS]
    assert of_both(*jumps, has_own_rules=True) == []
    assert of_both(*jumps, has_own_rules=False) == [True]
    assert of_both(*jumps, f"-A {ACCEPTING} -s 11.0.0.0/16 -d 11.0.0.0/16 -j ACCEPT", has_own_rules=False) == []


@pytest.mark.parametrize(
    ("rules", "policy", "found"),
    [
        ([], "DROP", {"-P FORWARD DROP": True}),
        (JUMPS[:1], "DROP", {"-P FORWARD DROP": True}),
        (JUMPS[1:], "DROP", {"-P FORWARD DROP": True}),
        (JUMPS, "DROP", {}),
        (
            ["FORWARD -j DOCKER-USER", f"DOCKER-USER -j {ACCEPTING}", "FORWARD -i docker0 -j DROP", JUMPS[1]],
            "ACCEPT",
            {"FORWARD -i docker0 -j DROP": True},
        ),
        (
            ["FORWARD -j DOCKER-USER", f"DOCKER-USER -j {ACCEPTING}", "FORWARD ! -i docker0 -o docker0 -j DROP"],
            "ACCEPT",
            {},
        ),
    ],
)
def test_each_chain_of_flannelpy_accepts_one_way(rules: list[str], policy: str, found: dict[str, bool]) -> None:
    assert of_iptables(*rules, policy=policy) == found


@pytest.mark.parametrize("traffic", [UDP, HOST_GW, DIRECT, UDP._replace(bridges=())])
@pytest.mark.parametrize("peers", [None, PEERS])
def test_both_chains_of_flannelpy_accept_all_packets(traffic: Traffic, peers: AddressRanges | None) -> None:
    assert of_iptables(*JUMPS, policy="DROP", traffic=traffic._replace(peers=peers)) == {}


def test_in_raw_the_packets_of_containers_here_are_not_accepted() -> None:
    rules = [f"PREROUTING -j {ACCEPTING}", "PREROUTING -i docker0 -j DROP"]
    assert of_iptables(*rules, table="raw") == {rules[1]: True}


class Carrier(NamedTuple):
    """As much of a backend as the rules depend on."""

    datagrams: Datagrams | None
    forwarding: Forwarding | None


def written(traffic: Traffic) -> NetworkRules:
    forwarding = Forwarding(traffic.devices, "eth1", masquerading=traffic.masquerading)
    host = IPv4Address("192.0.2.1")
    rules = NetworkRules(
        traffic.network, traffic.subnet, host, Carrier(None, forwarding), (), is_masqueraded=False, is_forwarded=True
    )
    rules.apply([LeaseAdded(Lease(IPv4Network("11.0.7.0/24"), LeaseAttrs(IPv4Address("192.0.2.7")), PERMANENT, 1, 1))])
    return rules


@given(
    st.sampled_from([UDP, HOST_GW, DIRECT]),
    st.sampled_from(["filter", "raw"]),
    st.lists(st.sampled_from(["jumps", *CONDITIONS]), max_size=4),
    st.sampled_from(["ACCEPT", "DROP"]),
)
def test_the_rules_that_are_known_are_those_that_are_written(
    traffic: Traffic, table: str, rules: list[str], policy: str
) -> None:
    traffic = traffic._replace(peers=PEERS)
    hook = "FORWARD" if table == "filter" else "PREROUTING"
    chains = written(traffic).chains(table, [traffic.network], is_tracking=False)
    jumps = [line for chain in chains for line in chain.jump_lines() if line.startswith(f"-A {hook} ".encode())]
    lines = [f":{name} - [0:0]\n".encode() for name in (ACCEPTING, OUTWARD)]
    for rule in rules:
        lines += jumps if rule == "jumps" else [f"-A {hook} {rule} -j DROP\n".encode()]
    text = b"".join([f"*{table}\n:{hook} {policy} [0:0]\n".encode(), *lines, *(chain.rules for chain in chains)])
    known, read = (
        searched([listing(text, has_own_rules=has_own_rules)], [], traffic) for has_own_rules in (True, False)
    )
    assert known == read


def test_a_policy_counts_where_no_rule_accepts() -> None:
    assert of_iptables(policy="DROP") == {"-P FORWARD DROP": True}
    assert of_iptables("FORWARD -p udp -j ACCEPT", policy="DROP") == {"-P FORWARD DROP": False}
    assert of_iptables(*JUMPS, policy="DROP") == {}


@pytest.mark.parametrize("table", ["mangle", "security"])
def test_each_table_counts(table: str) -> None:
    assert of_iptables("FORWARD -j DROP", table=table) == {"FORWARD -j DROP": True}
    assert of_iptables(*JUMPS, "FORWARD -j DROP", table=table) == {"FORWARD -j DROP": True}


def test_what_docker_drops_in_raw_comes_behind_our_rule() -> None:
    docker = "PREROUTING -d 11.0.13.2/32 ! -i docker0 -j DROP"
    ours = f"PREROUTING -d 11.0.13.0/24 -i flannel0 -j {ACCEPTING}"
    assert of_iptables(ours, docker, table="raw") == {}
    assert of_iptables(docker, ours, table="raw") == {docker: False}


def test_with_host_gw_packets_may_have_the_public_ip_of_a_host() -> None:
    allowed = "FORWARD -i eth1 ! -s 192.0.2.2/32 -j DROP"
    assert of_iptables(allowed, *JUMPS, traffic=HOST_GW) == {allowed: True}
    only_ours = "FORWARD -i eth1 ! -s 11.0.0.0/16 -j DROP"
    assert of_iptables(only_ours, *JUMPS, traffic=HOST_GW) == {only_ours: False}


def test_addresses_of_others_stop_no_masqueraded_packet() -> None:
    peers = AddressRanges((int(IPv4Address(f"192.0.2.{number}")),) * 2 for number in (7, 9))
    traffic = HOST_GW._replace(peers=peers)
    for rule in ("FORWARD -s 203.0.113.7/32 -j REJECT", "FORWARD -i eth1 -s 10.0.0.0/8 -j DROP"):
        assert of_iptables(rule, *JUMPS, traffic=traffic) == {}
    banned = "FORWARD -s 192.0.2.9/32 -j REJECT"
    assert of_iptables(banned, *JUMPS, traffic=traffic) == {banned: False}
    assert of_iptables(banned, *JUMPS, traffic=HOST_GW._replace(peers=AddressRanges([]))) == {}


def test_replies_to_masqueraded_packets_go_to_the_public_ip_of_a_host() -> None:
    banned = "FORWARD -d 192.0.2.0/24 -j DROP"
    assert of_iptables(banned, *JUMPS, traffic=HOST_GW._replace(peers=PEERS)) == {banned: False}
    assert of_iptables(banned, *JUMPS) == {}
    new = "FORWARD -d 192.0.2.0/24 -m conntrack --ctstate NEW -j DROP"
    assert of_iptables(new, *JUMPS, traffic=HOST_GW._replace(peers=PEERS)) == {}


# nftables


def match(left: dict[str, Any], right: object, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def ip(field: str) -> dict[str, Any]:
    return {"payload": {"protocol": "ip", "field": field}}


def ip6(field: str) -> dict[str, Any]:
    return {"payload": {"protocol": "ip6", "field": field}}


STATE: dict[str, Any] = {"ct": {"key": "state"}}
IN, OUT = {"meta": {"key": "iifname"}}, {"meta": {"key": "oifname"}}
TCP_FLAGS: dict[str, Any] = {"payload": {"protocol": "tcp", "field": "flags"}}
DROP, ACCEPT, RETURN = {"drop": None}, {"accept": None}, {"return": None}
TO_EMPTY = {"jump": {"target": "empty"}}
BOTH_RETURN = [["docker0", TO_EMPTY], ["flannel0", TO_EMPTY]]
NETWORK = {"prefix": {"addr": "11.0.0.0", "len": 16}}


def of_nftables(
    *rules: list[object],
    policy: str = "accept",
    hook: str = "forward",
    table: str = "fw",
    traffic: Traffic = UDP,
    elements: list[object] | None = None,
    flags: object = None,
    size: int = 70,
) -> list[Obstacle]:
    """``elements``: of the map called map."""
    where = {"family": "inet", "table": table}
    entries: list[dict[str, Any]] = [
        {"table": {"family": "inet", "name": table, **({"flags": flags} if flags else {})}},
        {"map": {"family": "inet", "name": "map", "table": table, "type": "ifname", "map": "verdict"}},
        {"chain": {**where, "name": "base", "type": "filter", "hook": hook, "prio": 0, "policy": policy}},
        {"chain": {**where, "name": "sub"}},
        {"chain": {**where, "name": "empty"}},
        {"rule": {**where, "chain": "sub", "expr": [DROP]}},
        *({"rule": {**where, "chain": "base", "expr": rule}} for rule in rules),
    ]
    found = NftTable("inet", table)
    feed(found.take, entries)
    if elements is not None:
        assert found.map_names == ["map"]
        feed(found.take_elements, [{"map": {**entries[1]["map"], "elem": elements}}], size)
    return searched([], [found], traffic)


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
        ([[{"vmap": {"key": ip("saddr"), "data": {"set": [["*", ACCEPT], ["1.2.3.4", DROP]]}}}]], "drop", []),
        ([[match(ip("saddr"), "*"), DROP]], "accept", [True]),
        ([[match(ip("saddr"), "1.2"), DROP]], "accept", [False]),
        ([[match(STATE, "new", "!="), DROP]], "accept", [True]),
        ([[match(STATE, "new"), ACCEPT]], "drop", [True]),
        ([[match({"payload": {"protocol": "ether", "field": "type"}}, "ip6"), DROP]], "accept", []),
        ([[match({"exthdr": {"name": "hbh"}}, False), DROP]], "accept", []),
        ([[match({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, False), DROP]], "accept", []),
        ([[match({"fib": {"result": "type", "flags": ["daddr"]}}, "local"), DROP]], "accept", []),
        ([[match({"fib": {"result": "type", "flags": ["daddr"]}}, "local", "!="), DROP]], "accept", [True]),
        ([[match({"&": [{"payload": {"protocol": "ip", "field": "frag-off"}}, 8191]}, 0, "!="), DROP]], "accept", []),
        ([[match({"&": [TCP_FLAGS, ["fin", "syn"]]}, ["fin", "syn"]), DROP]], "accept", []),
        ([[match({"&": [TCP_FLAGS, ["fin", "syn", "rst", "ack"]]}, "syn"), DROP]], "accept", [False]),
        ([[match(TCP_FLAGS, ["fin", "syn"], "!"), match(STATE, "new"), DROP]], "accept", []),
        ([[match(TCP_FLAGS, "syn", "in"), DROP]], "accept", [False]),
        ([[{"limit": {"rate": 5, "inv": True}}, DROP]], "accept", []),
        ([[{"ct count": {"val": 5, "inv": True}}, DROP]], "accept", []),
        ([[match({"concat": [ip("saddr"), IN]}, {"set": [{"concat": ["9.9.9.9", "eth0"]}]}), DROP]], "accept", []),
        (
            [[match({"concat": [ip("saddr"), IN]}, {"set": [{"concat": [NETWORK, "flannel0"]}]}), DROP]],
            "accept",
            [True],
        ),
        ([[match(ip6("saddr"), {"prefix": {"addr": "fd00::", "len": 8}}, "!="), DROP]], "accept", []),
        ([[match({"payload": {"protocol": "icmpv6", "field": "type"}}, "echo-request", "!="), DROP]], "accept", []),
        ([[match({"exthdr": {"name": "hbh"}}, False, "!="), DROP]], "accept", []),
        ([[match({"concat": [ip6("saddr"), IN]}, {"set": []}, "!="), DROP]], "accept", []),
        ([[{"vmap": {"key": ip6("daddr"), "data": {"set": [["fd00::1", ACCEPT], ["*", DROP]]}}}]], "accept", []),
        ([[{"vmap": {"key": OUT, "data": {"set": [*BOTH_RETURN, ["*", DROP]]}}}]], "accept", []),
        ([[{"vmap": {"key": OUT, "data": {"set": [["docker0", TO_EMPTY], ["*", DROP]]}}}]], "accept", [True]),
        ([[{"vmap": {"key": OUT, "data": {"set": [*BOTH_RETURN, ["*", ACCEPT]]}}}], [DROP]], "accept", [True]),
        ([[{"vmap": {"key": OUT, "data": {"set": [["docker0", TO_EMPTY], ["*", ACCEPT]]}}}], [DROP]], "accept", [True]),
        ([[{"counter": None}, {"xt": {"type": "target", "name": "REJECT"}}]], "accept", [True]),
        ([[{"xt": {"type": "match", "name": "x"}}, {"xt": {"type": "target", "name": "REJECT"}}]], "accept", [False]),
        ([[{"xt": {"type": "target", "name": "NFQUEUE"}}]], "accept", [False]),
        ([[{"xt": {"type": "target", "name": "LOG"}}]], "accept", []),
        ([[{"xt": None}]], "accept", [False]),
        ([["nonsense"], [5]], "accept", []),
        ([[{"match": 7}, DROP]], "accept", [False]),
        ([[{"queue": {"num": 3}}]], "accept", [False]),
    ],
)
def test_a_base_chain_is_followed(rules: list[list[object]], policy: str, found: list[bool]) -> None:
    assert [one.is_certain for one in of_nftables(*rules, policy=policy)] == found


def test_a_map_whose_elements_are_listed_is_followed() -> None:
    """As Docker 29 has them."""
    rule: list[object] = [{"vmap": {"key": OUT, "data": "@map"}}]
    assert [one.is_certain for one in of_nftables(rule, elements=[["docker0", DROP]])] == [True]
    assert of_nftables(rule, elements=[["br-1", DROP]]) == of_nftables(rule, elements=[]) == []


@pytest.mark.parametrize(("length", "is_certain"), [(4_000, True), (6_000, False), (30_000, False)])
def test_the_elements_of_a_long_map_are_read_one_by_one(length: int, is_certain: bool) -> None:
    """A map that is too long to be read may hold any element."""
    elements: list[object] = [[f"bridge-{number}", {"goto": {"target": "sub"}}] for number in range(length)]
    elements += [["docker0", DROP], ["*", ACCEPT]]
    rule: list[object] = [{"vmap": {"key": OUT, "data": "@map"}}]
    assert [one.is_certain for one in of_nftables(rule, elements=elements, size=1 << 15)] == [is_certain]


def test_a_map_that_nft_prints_in_full_with_its_table_leaves_the_table_readable() -> None:
    head = {"family": "inet", "name": "map", "table": "fw", "type": "ifname", "map": "verdict"}
    found = NftTable("inet", "fw")
    feed(found.take, [{"map": {**head, "elem": [[f"bridge-{number}", DROP] for number in range(30_000)]}}], 1 << 15)
    assert found.map_names == ["map"]


@pytest.mark.parametrize(
    ("flags", "is_certain"),
    [(None, True), ("owner", True), (["owner", "persist"], True), ("dormant", False), ("fw", False)],
)
def test_a_table_that_may_be_dormant_drops_nothing_for_certain(flags: object, is_certain: bool) -> None:
    """nft 1.0.6 prints any text in the place of the flag."""
    assert [one.is_certain for one in of_nftables(policy="drop", flags=flags)] == [is_certain]


@pytest.mark.parametrize(("decision", "found"), [(DROP, [False]), (ACCEPT, []), ({"goto": {"target": "sub"}}, [False])])
def test_a_rule_with_a_long_set_may_match(decision: dict[str, Any], found: list[bool]) -> None:
    values = [f"10.{number >> 8}.{number & 255}.1" for number in range(20_000)]
    rule: list[object] = [match(ip("saddr"), {"set": values}), decision]
    assert [one.is_certain for one in of_nftables(rule)] == found


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"nftables": [', '{"nftables": [{"metainfo": {}}, {"chain": {"family": 5}}]}', "x" * 1_000_000],
)
def test_what_nft_does_not_print_is_an_error(text: str) -> None:
    found = NftTable("inet", "fw")
    entries = Entries(found.take)
    with pytest.raises((ValueError, KeyError)):  # noqa: PT012 - any of the steps
        entries.feed(text.encode())
        entries.close()
        found.base_chains()


def of_mixed(
    lines: list[str], native: list[list[object]], *, head: str = "", extra: list[object] | None = None
) -> list[Obstacle]:
    """The same table as iptables-nft-save and nft list it; ``extra``: a rule in a base chain that only nft lists."""
    text = ["# Generated by iptables-nft-save v1.8.9 (nf_tables)", *([head] if head else []), "*filter"]
    text += [":FORWARD ACCEPT [0:0]", *lines, "COMMIT", ""]
    where = {"family": "ip", "table": "filter"}
    base = {"type": "filter", "hook": "forward", "prio": 0, "policy": "accept"}
    table = NftTable("ip", "filter")
    rules = [{"rule": {**where, "chain": "FORWARD", "expr": rule}} for rule in native]
    chains = [{"chain": {**where, "name": "FORWARD", **base}}]
    if extra:
        chains.append({"chain": {**where, "name": "PREROUTING", **base, "hook": "prerouting"}})
        rules.append({"rule": {**where, "chain": "PREROUTING", "expr": extra}})
    feed(table.take, [*chains, *rules])
    return searched([listing("\n".join(text).encode(), "iptables-nft-save")], [table], UDP)


OTHERS: list[object] = [match(ip("saddr"), {"set": ["198.51.100.9", "203.0.113.7"]}), DROP]


def test_a_rule_with_a_set_that_iptables_does_not_print_is_taken_from_nft() -> None:
    assert of_mixed(["-A FORWARD -j DROP"], [OTHERS]) == []
    [found] = of_mixed(["-A FORWARD -j DROP", "-A FORWARD -i flannel0 -j DROP"], [OTHERS, [{"xt": None}, DROP]])
    assert found.text.startswith("The iptables rule '-A FORWARD -i flannel0 -j DROP' drops")


def test_a_chain_that_has_changed_between_the_two_listings_is_taken_from_nft() -> None:
    assert of_mixed(["-A FORWARD -j DROP", "-A FORWARD -j LOG"], [OTHERS]) == []
    [found] = of_mixed(["-A FORWARD -j DROP"], [OTHERS, [DROP]])
    assert found.is_certain


@pytest.mark.parametrize("rule", ["-j DROP", "-m comment --comment x -j DROP", "-j REJECT"])
def test_without_the_listing_of_nft_a_rule_may_have_a_set(rule: str) -> None:
    [found] = of_mixed([f"-A FORWARD {rule}"], [])
    assert not found.is_certain
    [found] = of_mixed(["-A FORWARD -i flannel0 -j DROP"], [])
    assert found.is_certain
    [found] = searched([listing(f"*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD {rule}\nCOMMIT\n".encode())], [], UDP)
    assert found.is_certain


def test_a_table_that_iptables_cannot_list_is_taken_from_nft() -> None:
    head = "# Table `filter' is incompatible, use 'nft' tool."
    [found] = of_mixed([], [[match(STATE, "established"), DROP]], head=head)
    assert found.text.startswith("The nftables chain ip filter FORWARD drops")
    assert found.is_certain


def test_a_table_with_base_chains_that_iptables_does_not_list_is_taken_from_both() -> None:
    head = "# Table `filter' contains incompatible base-chains, use 'nft' tool to list them."
    target: list[object] = [{"xt": {"type": "target", "name": "REJECT"}}]
    [found] = of_mixed(["-A FORWARD -j REJECT"], [target], head=head)
    assert found.text.startswith("The iptables rule '-A FORWARD -j REJECT' drops")
    [found] = of_mixed(["-A FORWARD -j LOG"], [[{"log": None}]], head=head, extra=[DROP])
    assert found.text.startswith("The nftables chain ip filter PREROUTING drops")


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
    [leaving] = of_nftables([DROP], traffic=HOST_GW, hook="postrouting")
    assert leaving.text.endswith(f"{command} && nft insert rule inet fw base oifname eth1 ip daddr 11.0.0.0/16 accept")
    peers = HOST_GW._replace(peers=AddressRanges([(int(IPv4Address("192.0.2.7")),) * 2]))
    [firewalld] = of_nftables([DROP], table="firewalld", traffic=peers)
    assert "--add-source=11.0.0.0/16 --add-source=192.0.2.7/32 && firewall-cmd --reload" in firewalld.text


@pytest.mark.parametrize(
    ("blocked", "is_host_forwarding", "text"),
    [
        ([], True, ""),
        ([], False, ""),  # an operator has set it for these devices alone, which is enough
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
