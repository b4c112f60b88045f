"""The rules of a network."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

import pytest

from flannelpy.datapath.traffic import Datagrams, Forwarding
from flannelpy.netfilter import network_rules
from flannelpy.netfilter.network_rules import NetworkRules
from flannelpy.netfilter.ruleset import Chain, Place
from flannelpy.registry.base import PERMANENT
from flannelpy.subnet.lease import Lease, LeaseAttrs
from flannelpy.subnet.lease_table import LeaseAdded, LeaseRemoved

NETWORK, OTHER = IPv4Network("11.0.0.0/16"), IPv4Network("11.7.0.0/16")
SUBNET = IPv4Network("11.0.13.0/24")
HOST = IPv4Address("172.17.8.101")
PEERS = [IPv4Address("172.17.8.102"), IPv4Address("172.17.8.103")]
UDP = Datagrams("flannel0", 8285, 8285, accepts_local=True)
VXLAN = Datagrams("flannel.1", 8472, 0, accepts_local=False)


def jumps(chain: Chain) -> list[str]:
    return [line.decode().strip() for line in chain.jump_lines()]


@pytest.mark.parametrize("table", network_rules.KINDS)
@pytest.mark.parametrize("network", [NETWORK, OTHER, IPv4Network("255.255.255.240/28"), IPv4Network("8.0.0.0/8")])
def test_names_are_the_networks_and_short_enough(table: str, network: IPv4Network) -> None:
    for name in network_rules.names(table, network):
        assert name.startswith("FLANNEL")
        assert len(name) <= 28
        assert str(network) in name


@pytest.mark.parametrize(
    ("table", "kinds", "text"),
    [
        ("raw", "Z", "the protection of the ports of this host's datagrams"),
        ("raw", "A", "the way past Docker's rules for containers"),
        (
            "raw",
            "ZA",
            "the protection of the ports of this host's datagrams, and the way past Docker's rules for containers",
        ),
        (
            "raw",
            "",
            "the protection of the ports of this host's datagrams, and the way past Docker's rules for containers",
        ),
        ("filter", "AO", "forwarding of packets of containers"),
        ("filter", "", "forwarding of packets of containers"),
        ("nat", "M", "masquerading of containers"),
    ],
)
def test_each_kind_of_chain_has_a_purpose_that_is_named_once(table: str, kinds: str, text: str) -> None:
    chains = [network_rules.chain_name(kind, NETWORK) for kind in kinds]
    assert network_rules.purposes(table, chains) == text


def test_rules_never_accept_for_others_and_never_masquerade_multicast() -> None:
    inside, leaving, entering = network_rules.masquerade_rules(NETWORK)
    assert inside.endswith("-j RETURN")
    assert "! -d 224.0.0.0/4" in leaving
    assert "! -s 11.0.0.0/16 -d 11.0.0.0/16" in entering


def test_only_what_looks_like_our_datagrams_meets_the_list_of_peers() -> None:
    lines = network_rules.drop_line(NETWORK, IPv4Address("172.17.8.102"))
    chain = network_rules.drop(NETWORK, HOST, [NETWORK, OTHER], VXLAN, lines)
    assert chain.rules == b"-A FLANNEL-D-11.0.0.0/16 -d 172.17.8.102/32 -j DROP\n"
    assert jumps(chain) == [
        "-A FORWARD -s 11.0.0.0/16 ! -o flannel.1 -p udp -m udp --dport 8472 -j FLANNEL-D-11.0.0.0/16",
        "-A FORWARD -s 11.7.0.0/16 ! -o flannel.1 -p udp -m udp --dport 8472 -j FLANNEL-D-11.0.0.0/16",
        "-A PREROUTING ! -d 172.17.8.101/32 -p udp -m udp --dport 8472 -m rpfilter --invert -j FLANNEL-D-11.0.0.0/16",
    ]


@pytest.mark.parametrize(("datagrams", "ports"), [(UDP, "--sport 8285 --dport 8285"), (VXLAN, "--dport 8472")])
def test_our_datagrams_have_a_zone_of_their_own(datagrams: Datagrams, ports: str) -> None:
    chain = network_rules.zone(NETWORK, HOST, datagrams)
    assert chain.rules == b"-A FLANNEL-Z-11.0.0.0/16 -j CT --zone 8285\n"
    assert jumps(chain) == [
        f"-A OUTPUT -s 172.17.8.101/32 -p udp -m udp {ports} -j FLANNEL-Z-11.0.0.0/16",
        f"-A PREROUTING -d 172.17.8.101/32 -p udp -m udp {ports} -j FLANNEL-Z-11.0.0.0/16",
    ]


# The rules of a network


class Carrier(NamedTuple):
    """As much of a backend as the rules ask for."""

    datagrams: Datagrams | None = None
    forwarding: Forwarding | None = None


def rules(
    datagrams: Datagrams | None = UDP, forwarding: Forwarding | None = None, *, is_masqueraded: bool = False
) -> NetworkRules:
    carrier = Carrier(datagrams, forwarding)
    return NetworkRules(NETWORK, SUBNET, HOST, carrier, (), is_masqueraded=is_masqueraded, is_forwarded=True)


def lease(subnet: str, public_ip: str) -> LeaseAdded:
    return LeaseAdded(Lease(IPv4Network(subnet), LeaseAttrs(IPv4Address(public_ip)), PERMANENT, 1, 1))


def peers(network: NetworkRules) -> list[str]:
    [chain] = network.chains("mangle", [NETWORK], is_tracking=False)
    return [line.split()[3].removesuffix("/32") for line in chain.rules.decode().splitlines()]


def test_the_list_of_peers_follows_the_leases() -> None:
    network = rules()
    assert network.chains("mangle", [NETWORK], is_tracking=False) == []
    network.apply([])
    assert peers(network) == []
    network.apply([lease("11.0.1.0/24", "1.1.1.1"), lease("11.0.2.0/24", "1.1.1.2"), lease("11.0.3.0/24", "1.1.1.1")])
    assert peers(network) == ["1.1.1.1", "1.1.1.2"]
    network.apply([LeaseRemoved(IPv4Network("11.0.1.0/24")), lease("11.0.2.0/24", "1.1.1.3")])
    assert sorted(peers(network)) == ["1.1.1.1", "1.1.1.3"]
    network.apply([LeaseRemoved(IPv4Network("11.0.1.0/24")), LeaseRemoved(IPv4Network("11.0.3.0/24"))])
    assert peers(network) == ["1.1.1.3"]


def test_what_an_earlier_run_knew_of_peers_stays_until_the_leases_are_known() -> None:
    name = "FLANNEL-D-11.0.0.0/16"
    network = rules()
    assert name not in network.obsolete("mangle")
    network.apply([])
    assert name in network.obsolete("mangle")
    assert name in rules(None).obsolete("mangle")


def test_each_backend_has_the_rules_that_it_needs() -> None:
    network = rules(None, is_masqueraded=True)
    network.apply([])
    kinds = [len(network.chains(table, [NETWORK], is_tracking=True)) for table in ("nat", "mangle", "raw")]
    assert kinds == [1, 0, 0]
    network = rules(VXLAN)
    network.apply([])
    kinds = [len(network.chains(table, [NETWORK], is_tracking=True)) for table in ("nat", "mangle", "raw")]
    assert kinds == [0, 1, 1]
    assert network.chains("raw", [NETWORK], is_tracking=False) == []


def test_what_comes_from_containers_of_other_hosts_passes_docker_s_rules_by_our_device_only() -> None:
    chain = network_rules.accept_first(NETWORK, SUBNET, Forwarding(["flannel0"], "eth1"), b"")
    assert chain.rules == b"-A FLANNEL-A-11.0.0.0/16 -s 11.0.0.0/16 -j ACCEPT\n"
    assert jumps(chain) == ["-A PREROUTING -d 11.0.13.0/24 -i flannel0 -j FLANNEL-A-11.0.0.0/16"]


def test_by_the_external_interface_hosts_that_masquerade_pass_too() -> None:
    forwarding = Forwarding(["flannel.1", "eth1"], "eth1", masquerading="eth1")
    lines = b"".join(network_rules.accept_first_line(NETWORK, peer, "eth1") for peer in PEERS)
    chain = network_rules.accept_first(NETWORK, SUBNET, forwarding, lines)
    assert chain.rules.decode().splitlines() == [
        "-A FLANNEL-A-11.0.0.0/16 -s 11.0.0.0/16 -j ACCEPT",
        "-A FLANNEL-A-11.0.0.0/16 -s 172.17.8.102/32 -i eth1 -j ACCEPT",
        "-A FLANNEL-A-11.0.0.0/16 -s 172.17.8.103/32 -i eth1 -j ACCEPT",
    ]
    assert [jump.split()[5] for jump in jumps(chain)] == ["flannel.1", "eth1"]


def accepted(chain: Chain, kind: str) -> list[str]:
    """The rules of a chain, without its name and the verdict that all of them share."""
    lines = [line.removeprefix(f"-A FLANNEL-{kind}-11.0.0.0/16 ") for line in chain.rules.decode().splitlines()]
    return [line.removesuffix(" -j ACCEPT") for line in lines]


TUNNEL = Forwarding(["flannel0"], "eth1")
GATEWAY = Forwarding(["eth1"], "eth1", masquerading="eth1")
DIRECT = Forwarding(["flannel.1", "eth1"], "eth1", masquerading="eth1")


@pytest.mark.parametrize(
    ("forwarding", "expected"),
    [
        (TUNNEL, ["-s 11.0.0.0/16 -d 11.0.13.0/24 -i flannel0"]),
        (GATEWAY, ["-s 11.0.0.0/16 -d 11.0.13.0/24 -i eth1"]),
        (DIRECT, [f"-s 11.0.0.0/16 -d 11.0.13.0/24 -i {device}" for device in DIRECT.devices]),
    ],
)
def test_packets_from_containers_of_other_hosts_are_accepted_in_docker_user_and_last(
    forwarding: Forwarding, expected: list[str]
) -> None:
    peers = PEERS if forwarding.masquerading else []
    lines = b"".join(network_rules.accept_forwarded_line(NETWORK, SUBNET, peer, "eth1") for peer in peers)
    chain = network_rules.accept_forwarded(NETWORK, SUBNET, forwarding, lines)
    assert [(jump.hook, jump.match, jump.place) for jump in chain.jumps] == [
        ("DOCKER-USER", "", Place.LAST),
        ("FORWARD", "", Place.LAST),
    ]
    assert accepted(chain, "A") == [*expected, *(f"-s {peer}/32 -d 11.0.13.0/24 -i eth1" for peer in peers)]


ANSWERS = "-s 11.0.13.0/24 -o eth1 -m conntrack --ctstate RELATED,ESTABLISHED"


@pytest.mark.parametrize(
    ("forwarding", "expected"),
    [
        (TUNNEL, ["-i flannel0 -j RETURN", "-i eth1 -j RETURN", "-s 11.0.13.0/24 -d 11.0.0.0/16 -o flannel0"]),
        (GATEWAY, ["-i eth1 -j RETURN", "-s 11.0.13.0/24 -d 11.0.0.0/16 -o eth1", ANSWERS]),
        (
            DIRECT,
            [
                *(f"-i {device} -j RETURN" for device in DIRECT.devices),
                *(f"-s 11.0.13.0/24 -d 11.0.0.0/16 -o {device}" for device in DIRECT.devices),
                ANSWERS,
            ],
        ),
    ],
)
def test_packets_to_containers_of_other_hosts_are_accepted_behind_all_other_rules(
    forwarding: Forwarding, expected: list[str]
) -> None:
    chain = network_rules.accept_outward(NETWORK, SUBNET, forwarding)
    assert [(jump.hook, jump.match, jump.place) for jump in chain.jumps] == [("FORWARD", "", Place.LAST)]
    assert accepted(chain, "O") == expected


def test_masquerading_opens_the_way_out_and_back_but_not_to_other_networks() -> None:
    chain = network_rules.accept_outward(NETWORK, SUBNET, TUNNEL, [OTHER])
    assert accepted(chain, "O") == [
        "-d 11.0.13.0/24 -m conntrack --ctstate RELATED,ESTABLISHED",
        "-i flannel0 -j RETURN",
        "-i eth1 -j RETURN",
        "-s 11.0.13.0/24 -d 11.0.0.0/16 -o flannel0",
        "-s 11.0.13.0/24 -d 11.7.0.0/16 -j RETURN",
        "-s 11.0.13.0/24 ! -d 11.0.0.0/16",
    ]


@pytest.mark.parametrize("forwarding", [TUNNEL, GATEWAY, DIRECT])
@pytest.mark.parametrize("is_masqueraded", [False, True])
def test_chains_in_docker_user_accept_only_packets_that_come_from_other_hosts(
    forwarding: Forwarding, is_masqueraded: bool
) -> None:
    """An ACCEPT in DOCKER-USER precedes Docker's isolation; Docker itself accepts what leaves by its own bridge."""
    network = rules(None, forwarding, is_masqueraded=is_masqueraded)
    network.apply([lease("11.0.1.0/24", "1.1.1.1")])
    chains = network.chains("filter", [NETWORK, OTHER], is_tracking=True)
    early, late = chains
    assert {jump.hook for jump in early.jumps} == {"DOCKER-USER", "FORWARD"}
    assert {jump.hook for jump in late.jumps} == {"FORWARD"}
    for rule in accepted(early, "A"):
        source, by = re.fullmatch(r"-s (\S+) -d 11\.0\.13\.0/24 -i (\S+)", rule).groups()  # type: ignore[union-attr]
        assert source in ("11.0.0.0/16", "1.1.1.1/32")
        assert by in forwarding.devices


@pytest.mark.parametrize("forwarding", [TUNNEL, GATEWAY, DIRECT])
@pytest.mark.parametrize("is_masqueraded", [False, True])
def test_what_leaves_has_a_source_of_this_host_and_comes_neither_from_the_link_nor_from_the_overlay(
    forwarding: Forwarding, is_masqueraded: bool
) -> None:
    """Another machine on the link can forge the source of a packet inside VXLAN, too."""
    chains = rules(None, forwarding, is_masqueraded=is_masqueraded).chains("filter", [NETWORK, OTHER], is_tracking=True)
    outward = accepted(chains[1], "O")
    returned = {f"-i {device} -j RETURN" for device in (*forwarding.devices, forwarding.external)}
    first = min(number for number, rule in enumerate(outward) if rule.startswith("-s "))
    before = set(outward[:first])
    assert returned <= before
    answers = {"-d 11.0.13.0/24 -m conntrack --ctstate RELATED,ESTABLISHED"}
    assert before - returned == (answers if is_masqueraded else set())
    assert all(rule.startswith("-s 11.0.13.0/24 ") for rule in outward[first:])


def test_forward_rules_follow_the_leases_where_hosts_masquerade() -> None:
    network = rules(None, Forwarding(["eth1"], "eth1", masquerading="eth1"))
    for events, count in (([], 0), ([lease("11.0.1.0/24", "1.1.1.1"), lease("11.0.2.0/24", "1.1.1.2")], 2)):
        network.apply(events)
        for table in ("raw", "filter"):
            chain, *_ = network.chains(table, [NETWORK], is_tracking=True)
            assert chain.rules.count(b"-s 1.1.1.") == count


def test_without_the_flag_nothing_is_forwarded() -> None:
    carrier = Carrier(UDP, Forwarding(["flannel0"], "eth1"))
    network = NetworkRules(NETWORK, SUBNET, HOST, carrier, (), is_masqueraded=True, is_forwarded=False)
    assert network.chains("filter", [NETWORK], is_tracking=True) == []
    assert [chain.name[8] for chain in network.chains("raw", [NETWORK], is_tracking=True)] == ["Z"]
