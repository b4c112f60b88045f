"""The chains at hooks of the kernel, as the listings of iptables and nftables together show them.  Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from flannelpy.netfilter.iptables_listing import Table, Tables
from flannelpy.netfilter.nft_listing import BaseChain, NativeRules, NftTable


def of_iptables(
    listings: Collection[Tables], nft_tables: Collection[NftTable]
) -> Iterator[tuple[Table, Tables, NativeRules | None]]:
    """Yield the tables of iptables, each with its listing and its rules as nft lists them.

    The rules are empty if nft does not list them; None for iptables-legacy.
    """
    native = {(table.family, table.name): table.rules for table in nft_tables}
    for tables in listings:
        for table in tables.found:
            yield table, tables, native.get(("ip", table.name), {}) if tables.is_nft else None


def of_nftables(
    listings: Collection[Tables], nft_tables: Collection[NftTable], hooks: Collection[str]
) -> Iterator[BaseChain]:
    """Yield the base chains of nftables at these hooks, in capitals, but for those that iptables lists."""
    tables_of_nft = (table for tables in listings if tables.is_nft for table in tables.found)
    listed = {("ip", table.name, chain) for table in tables_of_nft for chain in table.policies}
    for nft_table in nft_tables:
        for chain in nft_table.base_chains():
            if chain.hook.upper() in hooks and (chain.family, chain.table, chain.name) not in listed:
                yield chain


def name_of_rule(by: str, table: Table, tables: Tables) -> str:
    """Return how a log line names a rule or policy of iptables."""
    return f"the iptables rule '{by}' (table {table.name}, listed by {tables.program})"


def name_of_chain(chain: BaseChain, by: str) -> str:
    """Return how a log line names a rule or the policy of a base chain of nftables."""
    return f"the nftables chain {chain} ({by})"
