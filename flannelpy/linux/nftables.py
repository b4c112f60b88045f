"""Lists the base chains of nftables that forwarded packets pass in addition to those of iptables.

Source: nft(8), libnftables-json(5).
"""

from __future__ import annotations

import json
import shutil
from typing import Any

from flannelpy.errors import HostError
from flannelpy.linux import command
from flannelpy.netfilter import nft_listing
from flannelpy.netfilter.nft_listing import BaseChain

_FAMILIES = ("ip", "inet")
_HOOKS = ("prerouting", "forward", "postrouting")
# iptables-nft has its chains in tables of these names.
_TABLES_OF_IPTABLES = ("filter", "mangle", "raw", "nat", "security")
_CHAINS_OF_IPTABLES = tuple(hook.upper() for hook in _HOOKS)
# Parsing a longer listing would delay packets.
_MOST_BYTES = 1 << 18


async def base_chains() -> list[BaseChain]:
    """Return the chains for IPv4 that are not iptables' own; none without the command nft.  Raises HostError.

    A table whose listing is longer than 256 KB is left out.
    """
    if not shutil.which("nft"):
        return []
    heads = [chain for entry in await _listing("chains") if (chain := entry.get("chain")) and _is_passed(chain)]
    found: list[BaseChain] = []
    for family, table in sorted({(str(head["family"]), str(head["table"])) for head in heads}):
        names = {head["name"] for head in heads if (head["family"], head["table"]) == (family, table)}
        try:
            chains = nft_listing.base_chains(await _listing("table", family, table))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HostError(f"nft --json list table {family} {table} printed what flannelpy cannot read") from error
        found += [chain for chain in chains if chain.name in names]
    return found


def _is_passed(chain: dict[str, Any]) -> bool:
    """Return whether forwarded packets pass a chain, and it is not one of iptables."""
    family, table, name = chain.get("family"), chain.get("table"), chain.get("name")
    is_of_iptables = family == "ip" and table in _TABLES_OF_IPTABLES and name in _CHAINS_OF_IPTABLES
    return chain.get("hook") in _HOOKS and family in _FAMILIES and not is_of_iptables


async def _listing(*what: str) -> list[dict[str, Any]]:
    """Return the entries of a JSON listing; none if it is too long.  Raises HostError."""
    words = ("nft", "--json", "--terse", "list", *what)
    output = bytearray()
    try:
        failures = await command.run(*words, package="nftables", sink=output.extend)
        if failures:
            raise HostError(f"{' '.join(words)} failed: {failures}")
        entries = json.loads(output)["nftables"] if len(output) <= _MOST_BYTES else []
        return [entry for entry in entries if isinstance(entry, dict)]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise HostError(f"{' '.join(words)} printed no valid JSON") from error
