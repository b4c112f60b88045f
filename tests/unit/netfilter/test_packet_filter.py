"""What is certain about chains of rules holds for each packet, followed as the kernel does it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from hypothesis import example, given
from hypothesis import strategies as st
from support.listings import result

from flannelpy.netfilter.address_ranges import between, of_networks
from flannelpy.netfilter.iptables_listing import Tables
from flannelpy.netfilter.packet_filter import ESTABLISHED, NEW, Drop, Packets, Walk

NETWORK, SUBNET = IPv4Network("11.0.0.0/16"), IPv4Network("11.0.13.0/24")
PACKETS = Packets(between(NETWORK, SUBNET), of_networks(SUBNET), ("flannel0",), ("docker0",))
CHAINS = ("FORWARD", "ONE", "TWO")


class Packet(NamedTuple):
    source: str
    destination: str
    protocol: str
    port: int
    state: str = NEW


#: Those of few ports come last.
ORDINARY = [
    Packet(source, destination, protocol, 1000)
    for source in ("11.0.7.2", "11.0.200.9")
    for destination in ("11.0.13.2", "11.0.13.9")
    for protocol in ("tcp", "udp", "icmp")
]
FEW = [Packet("11.0.7.2", "11.0.13.2", "tcp", 22)]

MATCHES: dict[str, Callable[[Packet], bool]] = {
    "": lambda packet: True,
    "-s 11.0.0.0/16": lambda packet: True,
    "-s 11.0.7.0/24": lambda packet: packet.source == "11.0.7.2",
    "! -s 11.0.7.0/24": lambda packet: packet.source != "11.0.7.2",
    "-d 11.0.13.2/32": lambda packet: packet.destination == "11.0.13.2",
    "! -d 11.0.13.0/24": lambda packet: IPv4Address(packet.destination) not in SUBNET,
    "-i flannel+": lambda packet: True,
    "! -i flannel0": lambda packet: False,
    "-o eth1": lambda packet: False,
    "-p tcp": lambda packet: packet.protocol == "tcp",
    "! -p tcp": lambda packet: packet.protocol != "tcp",
    "-p tcp -m tcp --dport 22": lambda packet: packet.port == 22,
    "-m conntrack --ctstate NEW": lambda packet: packet.state == NEW,
    "-m conntrack --ctstate RELATED,ESTABLISHED": lambda packet: packet.state == ESTABLISHED,
    "-m conntrack ! --ctstate NEW": lambda packet: packet.state != NEW,
    '-m comment --comment "-j ACCEPT"': lambda packet: True,
}
# A chain jumps only to later ones: the kernel refuses loops.
TARGETS = ["-j ACCEPT", "-j DROP", "-j REJECT", "-j RETURN", "-j LOG", "-j ONE", "-g ONE", "-j TWO", "-g TWO"]
RULES = st.tuples(st.sampled_from(list(MATCHES)), st.sampled_from(TARGETS))


def passes(chains: dict[str, list[tuple[str, str]]], packet: Packet, chain: str) -> bool | None:
    """Whether a packet is accepted; None if it returns."""
    for condition, decision in chains[chain]:
        if not MATCHES[condition](packet):
            continue
        way, target = decision.split()
        if target in ("ACCEPT", "DROP", "REJECT"):
            return target == "ACCEPT"
        if target == "RETURN":
            return None
        if target in CHAINS:
            result = passes(chains, packet, target)
            if result is not None or way == "-g":
                return result
    return None


def without_loops(rules: tuple[list[tuple[str, str]], ...]) -> dict[str, list[tuple[str, str]]]:
    """Return the rules of each chain, without those that lead to the same or an earlier chain."""
    order = {"FORWARD": ("ONE", "TWO"), "ONE": ("TWO",), "TWO": ()}
    return {
        name: [rule for rule in each if rule[1].split()[1] not in set(CHAINS) - set(order[name])]
        for name, each in zip(CHAINS, rules, strict=True)
    }


def followed(chains: dict[str, list[tuple[str, str]]], policy: str, state: str) -> Drop | None:
    lines = ["*filter", *(f":{name} {'ACCEPT [0:0]' if name == 'FORWARD' else '-'}" for name in chains)]
    lines += [f"-A {name} {condition} {decision}" for name, rules in chains.items() for condition, decision in rules]
    tables = Tables("iptables-save")
    tables.feed("".join(f"{line}\n" for line in lines).encode())
    return result(Walk(tables.found[0].rules(None, {}), PACKETS._replace(state=state)).run("FORWARD", policy))


@given(
    st.tuples(*(st.lists(RULES, max_size=5) for _ in CHAINS)),
    st.sampled_from(["", "-P FORWARD DROP"]),
    st.sampled_from([NEW, ESTABLISHED]),
)
@example(  # a few packets return to an ACCEPT or a DROP
    (
        [("", "-j ONE"), ("", "-j DROP")],
        [("-p tcp -m tcp --dport 22", "-j RETURN"), ("", "-j ACCEPT")],
        [],
    ),
    "",
    NEW,
)
@example(([("", "-g ONE")], [("-p tcp -m tcp --dport 22", "-j RETURN"), ("", "-j DROP")], []), "", NEW)
def test_a_certain_drop_lets_no_packet_pass_and_no_drop_lets_all_pass(
    rules: tuple[list[tuple[str, str]], ...], policy: str, state: str
) -> None:
    chains = without_loops(rules)

    def is_passed(packet: Packet) -> bool:
        result = passes(chains, packet._replace(state=state), "FORWARD")
        return not policy if result is None else result

    found = followed(chains, policy, state)
    if found is None:
        assert all(map(is_passed, ORDINARY + FEW))
    elif found.is_certain:
        assert not any(map(is_passed, ORDINARY))


#: The conditions of which is known how many packets they match.
KNOWN = [text for text in MATCHES if text not in ("-p tcp", "! -p tcp", "-s 11.0.7.0/24", "! -s 11.0.7.0/24")]
KNOWN_RULES = st.tuples(
    st.sampled_from([text for text in KNOWN if text != "-d 11.0.13.2/32"]), st.sampled_from(TARGETS)
)


@given(
    st.tuples(*(st.lists(KNOWN_RULES, max_size=5) for _ in CHAINS)),
    st.sampled_from(["", "-P FORWARD DROP"]),
    st.sampled_from([NEW, ESTABLISHED]),
)
def test_without_unknown_conditions_a_drop_of_all_packets_is_certain(
    rules: tuple[list[tuple[str, str]], ...], policy: str, state: str
) -> None:
    """Rules for single ports make no drop uncertain, whether they accept or send back."""
    chains = without_loops(rules)
    results = [passes(chains, packet._replace(state=state), "FORWARD") for packet in ORDINARY]
    passed = [not policy if result is None else result for result in results]
    found = followed(chains, policy, state)
    assert (found is not None and found.is_certain) is not any(passed)


def test_chains_may_be_nested_by_the_hundred() -> None:
    names = [f"X{number}" for number in range(500)]
    lines = ["*filter", ":FORWARD ACCEPT [0:0]", *(f":{name} - [0:0]" for name in names), "-A FORWARD -j X0"]
    lines += [f"-A {one} -j {other}" for one, other in itertools.pairwise(names)] + ["-A X499 -j DROP", ""]
    tables = Tables("iptables-legacy-save")
    tables.feed("\n".join(lines).encode())
    assert result(Walk(tables.found[0].rules(None, {}), PACKETS).run("FORWARD", "")) == Drop(
        "-A X499 -j DROP", is_certain=True
    )
