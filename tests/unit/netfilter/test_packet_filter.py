"""What is certain about chains of rules holds for each packet, followed as the kernel does it."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from flannelpy.netfilter.iptables_listing import Tables
from flannelpy.netfilter.packet_filter import Addresses, Drop, Packets, Walk

NETWORK, SUBNET = IPv4Network("11.0.0.0/16"), IPv4Network("11.0.13.0/24")
PACKETS = Packets(Addresses(NETWORK, outside=SUBNET), Addresses(SUBNET), ("flannel0",), ("docker0",))
CHAINS = ("FORWARD", "ONE", "TWO")


class Packet(NamedTuple):
    source: str
    destination: str
    protocol: str
    port: int


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
    "-m conntrack --ctstate NEW": lambda packet: True,
    "-m conntrack --ctstate RELATED,ESTABLISHED": lambda packet: False,
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


def followed(chains: dict[str, list[tuple[str, str]]], policy: str) -> Drop | None:
    lines = ["*filter", *(f":{name} {'ACCEPT [0:0]' if name == 'FORWARD' else '-'}" for name in chains)]
    lines += [f"-A {name} {condition} {decision}" for name, rules in chains.items() for condition, decision in rules]
    tables = Tables()
    tables.feed("".join(f"{line}\n" for line in lines).encode())
    walk = Walk(tables.found[0].rules({}), PACKETS).run("FORWARD", policy)
    try:
        while True:
            next(walk)
    except StopIteration as end:
        found: Drop | None = end.value
        return found


@given(st.tuples(*(st.lists(RULES, max_size=5) for _ in CHAINS)), st.sampled_from(["", "-P FORWARD DROP"]))
def test_a_certain_drop_lets_no_packet_pass_and_no_drop_lets_all_pass(
    rules: tuple[list[tuple[str, str]], ...], policy: str
) -> None:
    order = {"FORWARD": ("ONE", "TWO"), "ONE": ("TWO",), "TWO": ()}
    chains = {
        name: [rule for rule in each if rule[1].split()[1] not in set(CHAINS) - set(order[name])]
        for name, each in zip(CHAINS, rules, strict=True)
    }

    def is_passed(packet: Packet) -> bool:
        result = passes(chains, packet, "FORWARD")
        return not policy if result is None else result

    found = followed(chains, policy)
    if found is None:
        assert all(map(is_passed, ORDINARY + FEW))
    elif found.is_certain:
        assert not any(map(is_passed, ORDINARY))
