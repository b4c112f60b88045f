"""Which rules may match the datagrams between hosts, which the fast path would take past them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.listings import feed, listing, result

from flannelpy.datapath.traffic import Datagrams, Forwarding
from flannelpy.netfilter import bypassed
from flannelpy.netfilter.address_ranges import AddressRanges
from flannelpy.netfilter.bypassed import OuterDatagrams
from flannelpy.netfilter.iptables_listing import Tables
from flannelpy.netfilter.network_rules import NetworkRules
from flannelpy.netfilter.nft_listing import NftTable
from flannelpy.registry.base import PERMANENT
from flannelpy.subnet.lease import Lease, LeaseAttrs
from flannelpy.subnet.lease_table import LeaseAdded

OWN = IPv4Address("192.0.2.1")
OURS = OuterDatagrams(OWN, 8285, "eth1")
PEERS = AddressRanges((int(IPv4Address(f"192.0.2.{number}")),) * 2 for number in (7, 9))
HEADS = [f":{hook} ACCEPT [1:2]" for hook in ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")]


def searched(listings: list[Tables], nft_tables: list[NftTable], peers: AddressRanges | None = PEERS) -> str:
    return "; ".join(filter(None, map(result, bypassed.searches(listings, nft_tables, OURS, peers))))


def saved(*rules: str, table: str = "filter", chains: str = "", policies: str = "") -> bytes:
    """As iptables-save prints them; ``policies``: the hooks whose policy is DROP."""
    heads = [head.replace("ACCEPT", "DROP") if head[1:].split()[0] in policies.split() else head for head in HEADS]
    heads += [f":{name} - [0:0]" for name in chains.split()]
    return "\n".join([f"*{table}", *heads, *(f"-A {rule}" for rule in rules), "COMMIT", ""]).encode()


def of_iptables(*rules: str, peers: AddressRanges | None = PEERS, **more: str) -> str:
    return searched([listing(saved(*rules, **more), with_nat=True)], [], peers)


@pytest.mark.parametrize(
    "rule",
    [
        "INPUT -j DROP",
        "INPUT -p udp -j DROP",
        "INPUT -p 17 -j DROP",
        "INPUT ! -p tcp -j DROP",
        "INPUT -p udp -m udp --dport 8285 -j REJECT --reject-with icmp-port-unreachable",
        "INPUT -p udp -m udp --sport 8285 -j DROP",
        "INPUT -p udp -m udp ! --dport 53 -j DROP",
        "INPUT -p udp -m udp --dport 8000:9000 -j DROP",
        "INPUT -p udp -m multiport --dports 53,8285 -j DROP",
        "INPUT -p udp -m multiport --ports 53,8280:8290 -j DROP",
        "INPUT -p udp -m multiport ! --dports 53,123 -j DROP",
        "INPUT -i eth1 -j DROP",
        "INPUT -i eth+ -j DROP",
        "INPUT ! -i lo -j DROP",
        "INPUT -s 192.0.2.9/32 -j DROP",
        "INPUT -s 192.0.2.0/24 -j DROP",
        "INPUT ! -s 192.0.2.9/32 -j DROP",
        "INPUT -d 192.0.2.1/32 -j DROP",
        "INPUT -s 0.0.0.9/0.0.0.255 -j DROP",
        "INPUT -m iprange --src-range 192.0.2.5-192.0.2.8 -j DROP",
        "OUTPUT -s 192.0.2.1/32 -j DROP",
        "OUTPUT -d 192.0.2.7/32 -p udp -j DROP",
        "OUTPUT -o eth1 -j DROP",
        # Every other match may match.
        "INPUT -m conntrack --ctstate INVALID -j DROP",
        "INPUT -m state --state NEW -j DROP",
        "INPUT -m mark --mark 0x1 -j DROP",
        "OUTPUT -m mark ! --mark 0x1 -j DROP",
        "INPUT -f -j DROP",
        "INPUT -m hashlimit --hashlimit-above 10/sec --hashlimit-burst 5 --hashlimit-name x -j DROP",
        "INPUT -m set --match-set blocked src -j DROP",
        "INPUT -m rpfilter --invert -j DROP",
        "INPUT -m limit --limit 5/min -j LOG",
        "INPUT -m u32 --u32 0x0=0x0 -j DROP",
        "INPUT -m addrtype --dst-type LOCAL -j DROP",
        "OUTPUT -m addrtype --dst-type BROADCAST -j DROP",
        "OUTPUT -m addrtype ! --dst-type LOCAL -j DROP",
        "OUTPUT -m owner --uid-owner 0 -j DROP",
        "INPUT -m length --length 1500 -j DROP",
        "INPUT -p udp -m string --string x --algo bm -j DROP",
        # What a rule does to the datagrams does not matter, unless it does nothing.
        "INPUT -p udp -m udp --dport 8285",
        'INPUT -m comment --comment "-j ACCEPT"',
        'INPUT -j LOG --log-prefix "x -j ACCEPT "',
        "INPUT -j NFLOG --nflog-group 5",
        "INPUT -j NFQUEUE --queue-num 5",
        "OUTPUT -j MARK --set-xmark 0x1/0xffffffff",
        "OUTPUT -j CLASSIFY --set-class 1:1",
    ],
)
def test_a_rule_of_iptables_that_may_match_counts(rule: str) -> None:
    assert of_iptables(rule) == f"the iptables rule '-A {rule}' (table filter, listed by iptables-save)"


@pytest.mark.parametrize(
    "rule",
    [
        "INPUT -p tcp -j DROP",
        "INPUT -p icmp -j DROP",
        "INPUT -p udplite -j DROP",
        "INPUT ! -p udp -j DROP",
        "INPUT -p tcp -m tcp --dport 22 -j LOG",
        "INPUT -p tcp -m tcp ! --dport 22 -j DROP",
        "INPUT -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP",
        "INPUT -p udp -m udp --dport 53 -j DROP",
        "INPUT -p udp -m udp ! --dport 8285 -j DROP",
        "INPUT -p udp -m udp --dport 8286:9000 -j DROP",
        "INPUT -p udp -m multiport --dports 53,123,8000:8284 -j DROP",
        "INPUT -p udp -m multiport ! --dports 53,8285 -j DROP",
        "INPUT -i docker0 -j DROP",
        "INPUT -i lo -j LOG",
        "INPUT ! -i eth1 -j DROP",
        "INPUT -s 203.0.113.7/32 -j DROP",
        "INPUT ! -s 192.0.2.0/24 -j DROP",
        "INPUT -d 192.0.2.2/32 -j DROP",
        "INPUT -s 203.0.113.7/32 -m mark --mark 0x1 -j DROP",
        "INPUT -m iprange --src-range 203.0.113.1-203.0.113.9 -j DROP",
        "OUTPUT -s 10.0.0.0/8 -j DROP",
        "OUTPUT -d 203.0.113.0/24 -j LOG",
        "OUTPUT -o lo -j DROP",
        "OUTPUT -m addrtype --dst-type LOCAL -j DROP",
        "FORWARD -j DROP",
        # These do nothing by themselves.
        "INPUT -j ACCEPT",
        "INPUT -m mark --mark 0x1 -j ACCEPT",
        "INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "INPUT -j RETURN",
        "INPUT -j EMPTY",
        "INPUT -g EMPTY",
    ],
)
def test_a_rule_of_iptables_that_matches_none_or_does_nothing_does_not_count(rule: str) -> None:
    assert of_iptables(rule, chains="EMPTY") == ""


@pytest.mark.parametrize(
    ("rules", "found"),
    [
        (["INPUT -p udp -m udp --dport 8285 -j ACCEPT", "INPUT -j DROP"], ""),
        (["INPUT -p udp -m udp --dport 8285 -i eth1 -s 192.0.2.0/24 -j ACCEPT", "INPUT -j DROP"], ""),
        (["INPUT -s 192.0.2.7/32 -j ACCEPT", "INPUT -j DROP"], "INPUT -j DROP"),
        (["INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT", "INPUT -j DROP"], "INPUT -j DROP"),
        (["INPUT -p udp -m udp --dport 53 -j ACCEPT", "INPUT -j DROP"], "INPUT -j DROP"),
        (["INPUT -j ONE", "ONE -j LOG"], "ONE -j LOG"),
        (["INPUT -j ONE", "ONE -p tcp -j LOG"], ""),
        (["INPUT -p tcp -j ONE", "ONE -j LOG"], ""),
        (["INPUT -j ONE", "INPUT -j DROP", "ONE -j ACCEPT"], ""),
        (["INPUT -j ONE", "INPUT -j DROP", "ONE -j RETURN"], "INPUT -j DROP"),
        (["INPUT -g ONE", "INPUT -j DROP", "ONE -j RETURN"], ""),
        (["INPUT -m mark --mark 0x1 -g ONE", "INPUT -j DROP"], "INPUT -j DROP"),
        (["INPUT -j ONE", "ONE -g TWO", "ONE -j DROP", "TWO -p tcp -j DROP"], ""),
        (["INPUT -j ONE", "ONE -m mark --mark 0x1 -j RETURN", "ONE -j DROP"], "ONE -j DROP"),
        (["INPUT -j RETURN", "INPUT -j DROP"], ""),
    ],
)
def test_chains_are_followed(rules: list[str], found: str) -> None:
    assert of_iptables(*rules, chains="ONE TWO").partition("'-A ")[2].partition("'")[0] == found


def test_a_policy_counts_unless_all_datagrams_are_accepted() -> None:
    by = "the iptables rule '-P INPUT DROP' (table filter, listed by iptables-save)"
    assert of_iptables(policies="INPUT") == by
    assert of_iptables("INPUT -p tcp -j ACCEPT", policies="INPUT") == by
    assert of_iptables("INPUT -p udp -m udp --dport 8285 -j ACCEPT", policies="INPUT") == ""
    assert of_iptables("INPUT -j RETURN", policies="INPUT") == by
    assert of_iptables(policies="FORWARD") == ""


@pytest.mark.parametrize(
    ("table", "rule"),
    [
        ("raw", "PREROUTING -p udp -m udp --dport 8285 -j CT --notrack"),
        ("raw", "OUTPUT -j CT --notrack"),
        ("mangle", "POSTROUTING -o eth1 -j DSCP --set-dscp 0x2e"),
        ("mangle", "PREROUTING -m addrtype --dst-type LOCAL -j MARK --set-xmark 0x1/0x1"),
        ("nat", "POSTROUTING -o eth1 -j MASQUERADE"),
        ("nat", "POSTROUTING -j SNAT --to-source 192.0.2.2"),
        ("nat", "PREROUTING -p udp -m udp --dport 8285 -j DNAT --to-destination 10.0.0.1"),
        ("nat", "OUTPUT -p udp -j REDIRECT --to-ports 53"),
        ("nat", "INPUT -j SNAT --to-source 10.0.0.1"),
        ("security", "OUTPUT -j SECMARK --selctx x"),
    ],
)
def test_each_table_counts(table: str, rule: str) -> None:
    assert of_iptables(rule, table=table) == f"the iptables rule '-A {rule}' (table {table}, listed by iptables-save)"


def test_while_the_peers_are_unknown_any_address_may_be_one() -> None:
    assert of_iptables("INPUT -s 203.0.113.7/32 -j DROP", peers=None)
    assert of_iptables("INPUT -d 203.0.113.7/32 -j DROP", peers=None) == ""


def test_without_peers_there_are_no_datagrams_to_them() -> None:
    assert of_iptables("INPUT -s 203.0.113.7/32 -j DROP", peers=AddressRanges([])) == ""


#: What Docker 20 to 28 add with a bridge, a published port and a network of one's own, with and without its proxy.
DOCKER = [
    saved(
        "PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP",
        "PREROUTING -d 127.0.0.1/32 ! -i lo -p tcp -m tcp --dport 8080 -j DROP",
        table="raw",
    ),
    saved(
        "PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
        "OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER",
        "OUTPUT -m addrtype --dst-type LOCAL -j DOCKER",
        "POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
        "POSTROUTING -o docker0 -m addrtype --src-type LOCAL -j MASQUERADE",
        "POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE",
        "DOCKER -i docker0 -j RETURN",
        "DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80",
        "DOCKER ! -i docker0 -p udp -m udp --dport 5353 -j DNAT --to-destination 172.17.0.2:53",
        table="nat",
        chains="DOCKER",
    ),
    saved(
        "FORWARD -j DOCKER-USER",
        "FORWARD -j DOCKER-FORWARD",
        "DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT",
        "DOCKER ! -i docker0 -o docker0 -j DROP",
        "DOCKER-USER -j RETURN",
        chains="DOCKER DOCKER-USER DOCKER-FORWARD",
        policies="FORWARD",
    ),
]


def test_rules_of_docker_do_not_count() -> None:
    assert searched([listing(b"".join(DOCKER), with_nat=True)], [], None) == ""


def test_a_published_port_that_is_ours_counts() -> None:
    ours = [part.replace(b"--dport 5353", b"--dport 8285") for part in DOCKER]
    assert "--dport 8285 -j DNAT" in searched([listing(b"".join(ours), with_nat=True)], [])


class Carrier(NamedTuple):
    """As much of a backend as the rules depend on."""

    datagrams: Datagrams
    forwarding: Forwarding


@pytest.mark.parametrize("has_own_rules", [True, False])
def test_rules_of_flannelpy_do_not_count(has_own_rules: bool) -> None:
    network = IPv4Network("11.0.0.0/16")
    carrier = Carrier(Datagrams("flannel0", 8285, 8285, accepts_local=True), Forwarding(["flannel0"], "eth1"))
    rules = NetworkRules(network, IPv4Network("11.0.13.0/24"), OWN, carrier, (), is_masqueraded=True, is_forwarded=True)
    rules.apply([LeaseAdded(Lease(IPv4Network("11.0.7.0/24"), LeaseAttrs(IPv4Address("192.0.2.7")), PERMANENT, 1, 1))])
    text = b""
    for table in ("nat", "mangle", "raw", "filter"):
        chains = rules.chains(table, [network], is_tracking=True)
        jumps = [line.decode().removeprefix("-A ").strip() for chain in chains for line in chain.jump_lines()]
        own = [line.removeprefix("-A ") for chain in chains for line in chain.rules.decode().splitlines()]
        names = " ".join([*(chain.name for chain in chains), "DOCKER-USER"])
        text += saved(*jumps, *own, table=table, chains=names)
    assert b"-A FLANNEL-Z-11.0.0.0/16 -j CT --zone 8285" in text
    assert searched([listing(text, has_own_rules=has_own_rules, with_nat=True)], []) == ""


def test_rules_of_flanneld_do_not_count() -> None:
    rules = [
        "FLANNEL -d 11.0.0.0/16 -j ACCEPT",
        "FLANNEL ! -d 224.0.0.0/4 -j MASQUERADE",
        "POSTROUTING -s 11.0.0.0/16 -j FLANNEL",
        "POSTROUTING ! -s 11.0.0.0/16 -d 11.0.0.0/16 -j MASQUERADE",
    ]
    assert of_iptables(*rules, table="nat", chains="FLANNEL") == ""


# nftables


def match(left: dict[str, Any], right: object, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def payload(protocol: str, field: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": field}}


def meta(key: str) -> dict[str, Any]:
    return {"meta": {"key": key}}


def ranged(first: object, last: object) -> dict[str, Any]:
    return {"range": [first, last]}


DROP: dict[str, Any] = {"drop": None}
ACCEPT: dict[str, Any] = {"accept": None}
COUNTER: dict[str, Any] = {"counter": None}
PORT, TCP_PORT, ANY_PORT = payload("udp", "dport"), payload("tcp", "dport"), payload("th", "dport")
FROM, TO = payload("ip", "saddr"), payload("ip", "daddr")
DEVICES = {"concat": [meta("iifname"), PORT]}
TO_SUB: dict[str, Any] = {"jump": {"target": "sub"}}


def vmap(key: object, *elements: tuple[object, object]) -> dict[str, Any]:
    return {"vmap": {"key": key, "data": {"set": [list(each) for each in elements]}}}


@pytest.mark.parametrize(("name", "counts"), [("FLANNEL-Z-11.0.0.0/16", False), ("zones", True)])
def test_a_chain_of_flannelpy_does_not_count_before_iptables_lists_it(name: str, counts: bool) -> None:
    where = {"family": "ip", "table": "raw"}
    found = NftTable("ip", "raw")
    feed(
        found.take,
        [
            {"chain": {**where, "name": "OUTPUT", "type": "filter", "hook": "output", "prio": 0, "policy": "accept"}},
            {"chain": {**where, "name": name}},
            {"rule": {**where, "chain": name, "expr": [{"xt": {"type": "target", "name": "CT"}}]}},
            {"rule": {**where, "chain": "OUTPUT", "expr": [{"jump": {"target": name}}]}},
        ],
    )
    assert bool(searched([], [found])) is counts


def of_nftables(
    *rules: list[dict[str, Any]], hook: str = "input", policy: str = "accept", sub: list[dict[str, Any]] | None = None
) -> str:
    where = {"family": "inet", "table": "fw"}
    entries: list[dict[str, Any]] = [
        {"table": {"family": "inet", "name": "fw"}},
        {"chain": {**where, "name": "base", "type": "filter", "hook": hook, "prio": 0, "policy": policy}},
        {"chain": {**where, "name": "sub"}},
        {"rule": {**where, "chain": "sub", "expr": sub or [DROP]}},
        *({"rule": {**where, "chain": "base", "expr": rule}} for rule in rules),
    ]
    found = NftTable("inet", "fw")
    feed(found.take, entries)
    return searched([], [found])


@pytest.mark.parametrize(
    "rule",
    [
        [DROP],
        [match(PORT, 8285), DROP],
        [match(PORT, {"set": [53, 8285]}), DROP],
        [match(PORT, ranged(8000, 9000)), DROP],
        [match(PORT, {"set": [53, ranged(8000, 9000)]}), DROP],
        [match(PORT, 53, "!="), DROP],
        [match(PORT, "@ports"), DROP],
        [match(PORT, "service"), DROP],
        [match(ANY_PORT, 8285), DROP],
        [match(payload("udp", "length"), 100), DROP],
        [match(PORT, 1000, ">"), DROP],
        [match(meta("l4proto"), "udp"), DROP],
        [match(meta("l4proto"), 17), DROP],
        [match(meta("l4proto"), {"set": ["tcp", "udp"]}), DROP],
        [match(meta("l4proto"), "tcp", "!="), DROP],
        [match(meta("l4proto"), ranged(10, 20)), DROP],
        [match(payload("ip", "protocol"), "udp"), DROP],
        [match(meta("nfproto"), "ipv4"), DROP],
        [match(FROM, "192.0.2.7"), DROP],
        [match(FROM, {"prefix": {"addr": "192.0.2.0", "len": 24}}), DROP],
        [match(FROM, {"set": ["10.0.0.1", ranged("192.0.2.5", "192.0.2.8")]}), DROP],
        [match(FROM, "192.0.2.7", "!="), DROP],
        [match(FROM, "@blocked"), DROP],
        [match(meta("iifname"), "eth*"), DROP],
        [match(meta("iifname"), "lo", "!="), DROP],
        [match(meta("mark"), 1), DROP],
        [match({"ct": {"key": "state"}}, ["invalid"], "in"), DROP],
        [match({"ct": {"key": "status"}}, "dnat"), DROP],
        [match({"fib": {"result": "type", "flags": ["daddr"]}}, "local"), DROP],
        [match({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, False), DROP],
        [match({"concat": [FROM, PORT]}, {"set": [{"concat": ["192.0.2.7", 8285]}]}), DROP],
        [match({"concat": [FROM, PORT]}, "@pairs"), DROP],
        [{"limit": {"rate": 10, "per": "second", "inv": True}}, DROP],
        [vmap(PORT, (53, ACCEPT), (8285, DROP))],
        [vmap(meta("l4proto"), ("tcp", ACCEPT), ("udp", TO_SUB))],
        [vmap(DEVICES, ({"concat": ["eth1", 8285]}, DROP))],
        [vmap(PORT, (53, ACCEPT), ("*", DROP))],
        [{"vmap": {"key": PORT, "data": "@unknown"}}],
        [match(PORT, 8285), TO_SUB],
        [match(PORT, 8285), {"goto": {"target": "sub"}}],
        [match(PORT, 8285), COUNTER],
        [{"counter": "named"}, ACCEPT],
        [{"log": {"prefix": "x"}}, ACCEPT],
        [{"log": None}],
        [{"mangle": {"key": meta("mark"), "value": 1}}],
        [{"notrack": None}],
        [{"set": {"op": "add", "elem": FROM, "set": "@seen"}}],
        [{"queue": {"num": 1}}],
        [{"reject": {"type": "icmp", "expr": "port-unreachable"}}],
        [{"quota": {"val": 1, "val_unit": "mbytes"}}, DROP],
        [{"dup": {"addr": "10.0.0.1"}}],
        [{"something": "new"}],
    ],
)
def test_a_rule_of_nftables_that_may_match_counts(rule: list[dict[str, Any]]) -> None:
    assert of_nftables(rule).startswith("the nftables chain inet fw base (")


@pytest.mark.parametrize(
    "rule",
    [
        [match(PORT, 53), DROP],
        [match(PORT, {"set": [53, 123, ranged(1000, 8284)]}), DROP],
        [match(PORT, 8285, "!="), DROP],
        [match(PORT, {"set": [53, 8285]}, "!="), DROP],
        [match(TCP_PORT, 22), DROP],
        [match(TCP_PORT, 22, "!="), DROP],
        [match(TCP_PORT, 8285), COUNTER, DROP],
        [match(payload("icmp", "type"), "echo-request"), DROP],
        [match(payload("icmp", "type"), "echo-request", "!="), DROP],
        [match(payload("tcp", "flags"), "syn", "!="), DROP],
        [match({"&": [payload("tcp", "flags"), ["fin", "syn"]]}, 0), DROP],
        [match(ANY_PORT, 53), DROP],
        [match(meta("l4proto"), {"set": ["tcp", "icmp"]}), DROP],
        [match(meta("l4proto"), "udp", "!="), DROP],
        [match(payload("ip", "protocol"), "tcp"), DROP],
        [match(payload("ip6", "saddr"), "fe80::1"), DROP],
        [match(meta("nfproto"), "ipv6"), DROP],
        [match(FROM, "203.0.113.7"), DROP],
        [match(FROM, {"prefix": {"addr": "192.0.2.0", "len": 24}}, "!="), DROP],
        [match(TO, "192.0.2.1", "!="), DROP],
        [match(meta("iifname"), {"set": ["lo", "docker0"]}), DROP],
        [match(meta("oifname"), "docker0"), DROP],
        [match({"concat": [FROM, PORT]}, {"set": [{"concat": ["192.0.2.7", 53]}]}), DROP],
        [match({"concat": [FROM, TCP_PORT]}, {"set": [{"concat": ["192.0.2.7", 22]}]}, "!="), DROP],
        [vmap(PORT, (53, DROP), (8285, ACCEPT))],
        [vmap(TCP_PORT, (22, ACCEPT), ("*", DROP))],
        [vmap(PORT, (8285, {"continue": None}))],
        [vmap(meta("l4proto"), ("tcp", TO_SUB))],
        [match(PORT, 8285), ACCEPT],
        [match(PORT, 8285), COUNTER, ACCEPT],
        [match(meta("mark"), 1), COUNTER, {"return": None}],
        [{"limit": {"rate": 10, "per": "second"}}, ACCEPT],
        [match(PORT, 8285), {"continue": None}],
        [match(TCP_PORT, 22), TO_SUB],
    ],
)
def test_a_rule_of_nftables_that_matches_none_or_does_nothing_does_not_count(rule: list[dict[str, Any]]) -> None:
    assert of_nftables(rule) == ""


@pytest.mark.parametrize(("hook", "counts"), [("output", True), ("postrouting", True), ("forward", False)])
def test_hooks_of_nftables_that_datagrams_leave_by(hook: str, counts: bool) -> None:
    assert bool(of_nftables([match(TO, "192.0.2.7"), DROP], hook=hook)) is counts
    assert of_nftables([match(meta("iifname"), "docker0"), DROP], hook=hook) == ""
    assert of_nftables([match({"fib": {"result": "type", "flags": ["daddr"]}}, "local"), TO_SUB], hook=hook) == ""


def test_a_policy_of_nftables_counts_unless_all_datagrams_are_accepted() -> None:
    assert of_nftables(policy="drop") == "the nftables chain inet fw base (its policy)"
    assert of_nftables([match(PORT, {"set": [53, 8285]}), ACCEPT], policy="drop") == ""
    assert of_nftables([TO_SUB], policy="drop", sub=[match(PORT, 8285), COUNTER, ACCEPT]) == ""


def test_a_set_that_iptables_save_does_not_print_is_read_from_nft() -> None:
    """And where nft does not list the rule, no ACCEPT of such a table is certain."""
    text = b"# Generated by iptables-nft-save v1.8.9 (nf_tables)\n" + saved("INPUT -p udp -j ACCEPT", "INPUT -j DROP")
    where = {"family": "ip", "table": "filter", "chain": "INPUT"}
    ports = match(PORT, {"set": [53, 123]})
    for rules in ([], [[ports, ACCEPT], [DROP]]):
        native = NftTable("ip", "filter")
        feed(native.take, [{"rule": {**where, "expr": rule}} for rule in rules])
        assert searched([listing(text, with_nat=True)], [native])
    ours = NftTable("ip", "filter")
    feed(
        ours.take, [{"rule": {**where, "expr": rule}} for rule in ([match(PORT, {"set": [53, 8285]}), ACCEPT], [DROP])]
    )
    assert searched([listing(text, with_nat=True)], [ours]) == ""


# Random rules, against datagrams that are followed one by one.


class Datagram(NamedTuple):
    """One of those that come in."""

    source: str


DATAGRAMS = [Datagram("192.0.2.7"), Datagram("192.0.2.9")]
#: None: unknown.
CONDITIONS: dict[str, Callable[[Datagram], bool | None]] = {
    "": lambda _: True,
    "-s 192.0.2.7/32": lambda one: one.source == "192.0.2.7",
    "! -s 192.0.2.7/32": lambda one: one.source != "192.0.2.7",
    "-s 192.0.2.0/24": lambda _: True,
    "-s 10.0.0.0/8": lambda _: False,
    "-d 192.0.2.1/32": lambda _: True,
    "-i eth1": lambda _: True,
    "! -i eth+": lambda _: False,
    "-p tcp": lambda _: False,
    "-p udp": lambda _: True,
    "-p udp -m udp --dport 8285": lambda _: True,
    "-p udp -m multiport ! --sports 53,8285": lambda _: False,
    "-m mark --mark 0x1": lambda _: None,
    "-s 192.0.2.7/32 -m mark --mark 0x1": lambda one: None if one.source == "192.0.2.7" else False,
    "-m addrtype --dst-type LOCAL": lambda _: None,
}
TARGETS = ["ACCEPT", "DROP", "RETURN", "LOG", "ONE", "TWO"]
RULES = st.lists(
    st.tuples(st.sampled_from(list(CONDITIONS)), st.sampled_from("jg"), st.sampled_from(TARGETS)), max_size=5
)
Chains = dict[str, list[tuple[str, str, str]]]


def ways(chains: Chains, name: str, datagram: Datagram, at: int = 0) -> Iterator[str]:
    """Yield how a datagram may leave a chain: "accept", "return", or "effect" on its way."""
    if at == len(chains[name]):
        yield "return"
        return
    condition, way, target = chains[name][at]
    matches = CONDITIONS[condition](datagram)
    if matches is not True:
        yield from ways(chains, name, datagram, at + 1)
    if matches is not False:
        if target in ("ACCEPT", "RETURN"):
            yield target.lower()
        elif target in ("LOG", "DROP"):
            yield "effect"
        else:
            for end in set(ways(chains, target, datagram)):
                is_back = end == "return" and way == "j"
                yield from ways(chains, name, datagram, at + 1) if is_back else [end]


@given(st.tuples(RULES, RULES, RULES), st.booleans())
def test_what_is_found_is_what_may_happen_to_a_datagram(
    rules: tuple[list[tuple[str, str, str]], ...], is_dropping: bool
) -> None:
    later = {"INPUT": {"ONE", "TWO"}, "ONE": {"TWO"}, "TWO": set[str]()}
    chains: Chains = {
        name: [rule for rule in each if rule[2] not in {"ONE", "TWO"} - later[name]]
        for name, each in zip(later, rules, strict=True)
    }
    lines = [
        f"{name} {condition} -{way if target in later else 'j'} {target}"
        for name, each in chains.items()
        for condition, way, target in each
    ]
    found = of_iptables(*lines, chains="ONE TWO", policies="INPUT" if is_dropping else "")
    ends = {end for datagram in DATAGRAMS for end in ways(chains, "INPUT", datagram)}
    may_happen = "effect" in ends or (is_dropping and "return" in ends)
    assert bool(found) >= may_happen
    if not any("192.0.2.7" in line or "mark" in line or "addrtype" in line for line in lines):
        assert bool(found) == may_happen
