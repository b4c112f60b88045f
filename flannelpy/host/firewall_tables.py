"""Compares the iptables tables of this host with the chains of networks, and removes chains of earlier runs.

``flavour``: "nft" or "legacy" for the tables of iptables-nft or iptables-legacy, empty for those of ``iptables``.
Counterpart: network/ipmasq.go, which removes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from ipaddress import IPv4Network
from typing import NamedTuple

from flannelpy.errors import HostError
from flannelpy.linux import iptables
from flannelpy.netfilter import docker_chains, flanneld_rules, network_rules
from flannelpy.netfilter.network_rules import KINDS
from flannelpy.netfilter.ruleset import Chain, Repair


class Removal(NamedTuple):
    """The rules and chains that were removed, and the errors of tables that could not be changed."""

    removed: list[str]
    failures: list[HostError]


async def remove(network: IPv4Network) -> Removal:
    """Remove all rules that flannelpy or flanneld added for a network; a table that fails does not stop the others."""
    removal = Removal([], [])
    for table, flavour in _tables():
        try:
            repair = await remove_chains(table, network_rules.names(table, network), [network], flavour)
        except HostError as error:
            removal.failures.append(error)
            continue
        removal.removed.extend(f"{program(flavour)} rule: {rule}" for rule in repair.removed_rules())
        removal.removed.extend(f"{program(flavour)} chain {name} in table {table}" for name in repair.removed)
    return removal


async def chains() -> list[str]:
    """Return the iptables chains of any network, each with its table.  Raises HostError."""
    found: list[str] = []
    for table, flavour in _tables():
        listing = network_rules.listing(table, [], [])
        try:
            await iptables.save(table, listing, flavour)
        except HostError:
            if not flavour:
                raise
        found += [f"{program(flavour)} chain {name.decode()} in table {table}" for name in listing.own_chains]
    return found


def _tables() -> list[tuple[str, str]]:
    """Return all tables that may hold chains of flannelpy, each with the flavour of its commands."""
    if not iptables.is_installed():
        return []
    other = iptables.other_flavour()
    others = [(table, other) for table in KINDS if other and iptables.may_exist(table, other)]
    return [*((table, "") for table in KINDS), *others]


def program(flavour: str) -> str:
    """Return the name of the command, for a log line."""
    return f"iptables-{flavour}" if flavour else "iptables"


async def remove_chains(table: str, names: Collection[str], networks: Collection[IPv4Network], flavour: str) -> Repair:
    """Remove chains, and the rules of flanneld for ``networks``; return what was removed.  Raises HostError."""
    repair = await compare(table, [], names, networks, flavour)
    if text := repair.text(table):
        await iptables.restore(text, flavour)
    return repair


async def compare(
    table: str,
    chains: Sequence[Chain],
    obsolete: Collection[str],
    networks: Collection[IPv4Network],
    flavour: str = "",
) -> Repair:
    """Return the commands that add or restore ``chains`` in a table, and remove ``obsolete``.  Raises HostError.

    The commands also remove the rules of flanneld for ``networks``.
    """
    names = {chain.name for chain in chains}.union(obsolete)
    listing = network_rules.listing(table, names, networks)
    await iptables.save(table, listing, flavour)
    repair = Repair()
    for chain in chains:
        repair.keep(listing, chain)
    for name in sorted(obsolete):
        repair.remove(listing, name)
    if table == "filter":
        (docker_chains.keep if chains else docker_chains.remove)(listing, repair)
    if table == "nat":
        for network in networks:
            flanneld_rules.remove(listing, repair, network)
    return repair
