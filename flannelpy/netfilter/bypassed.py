"""What the fast path would bypass: the rules that may match the datagrams of this host and its peers.  Pure.

The programs of the fast path take datagrams before PREROUTING and INPUT, and send them behind OUTPUT and POSTROUTING.
A rule that accepts or returns changes nothing by itself, nor does a jump.  Every other one counts, also one that only
logs or counts: an operator wants to see the packets.  So does the policy of a chain, if datagrams may come to its end.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from flannelpy.marks import OWN_CHAIN
from flannelpy.netfilter import hooked_chains
from flannelpy.netfilter.address_ranges import ANYWHERE, AddressRanges, of_networks
from flannelpy.netfilter.iptables_listing import Table, Tables
from flannelpy.netfilter.nft_listing import BaseChain, NativeRules, NftTable
from flannelpy.netfilter.packet_filter import Packets, Rule, Walk

#: The hooks that datagrams of the loop pass, and those of the fast path do not.
HOOKS = ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")
_INCOMING = ("PREROUTING", "INPUT")

#: Yields after each rule; its result names what may match the datagrams, and is empty if nothing does.
Search = Generator[None, None, str]


class OuterDatagrams(NamedTuple):
    """The datagrams that the fast path sends and takes: between ``port`` here and ``port`` of each peer.

    ``address``: the bound address.  ``interface``: the external interface, by which they come and go.
    """

    address: IPv4Address
    port: int
    interface: str

    def packets(self, hook: str, peers: AddressRanges | None) -> Packets:
        """Return the datagrams at a hook; ``peers``: the public IPs of the peers, None if they are unknown."""
        own, hosts = of_networks(IPv4Network(self.address)), ANYWHERE if peers is None else peers
        if hook in _INCOMING:
            return Packets(hosts, own, (self.interface,), None, port=self.port)
        return Packets(own, hosts, None, (self.interface,), port=self.port)


def searches(
    listings: Collection[Tables],
    nft_tables: Collection[NftTable],
    datagrams: OuterDatagrams,
    peers: AddressRanges | None,
) -> Iterator[Search]:
    """Yield a search for each table of iptables and each base chain of nftables.

    ``listings``: of ``iptables-save``, with the table nat.  ``nft_tables``: all with a base chain at one of ``HOOKS``.
    """
    for table, tables, native in hooked_chains.of_iptables(listings, nft_tables):
        yield _of_table(table, tables, native, datagrams, peers)
    for chain in hooked_chains.of_nftables(listings, nft_tables, HOOKS):
        yield _of_base_chain(chain, datagrams, peers)


def _of_table(
    table: Table, tables: Tables, native: NativeRules | None, datagrams: OuterDatagrams, peers: AddressRanges | None
) -> Search:
    chains = table.rules(native, _without_effect(table.chains))
    for hook in HOOKS:
        if hook in chains:
            policy = f"-P {hook} DROP" if table.policies.get(hook) == "DROP" else ""
            walk = Walk(chains, datagrams.packets(hook, peers), is_any_effect_a_drop=True)
            if found := (yield from walk.run(hook, policy)):
                return hooked_chains.name_of_rule(found.by, table, tables)
    return ""


def _of_base_chain(chain: BaseChain, datagrams: OuterDatagrams, peers: AddressRanges | None) -> Search:
    policy = "its policy" if chain.policy == "drop" else ""
    # A chain of ours is here if it was added after iptables listed its rules.
    chains: dict[str, Iterable[Rule]] = {**chain.chains, **_without_effect(chain.chains)}
    walk = Walk(chains, datagrams.packets(chain.hook.upper(), peers), is_any_effect_a_drop=True)
    found = yield from walk.run(chain.name, policy)
    return hooked_chains.name_of_chain(chain, found.by) if found else ""


def _without_effect(chains: Iterable[str]) -> dict[str, tuple[Rule, ...]]:
    """Return those of the chains that are ours, without their rules."""
    return {name: () for name in chains if OWN_CHAIN.fullmatch(name.encode())}
