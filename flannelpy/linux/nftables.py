"""Lists base chains of nftables that packets pass when they are forwarded, whatever iptables decides.

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
# To read more would keep packets waiting.
_MOST_BYTES = 1 << 18


async def base_chains() -> list[BaseChain]:
    """Those of IPv4 that are not iptables'; none without the command nft.  Raises HostError.

    A table with a longer listing than 256 KB is left out.
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
    """Whether packets that are forwarded come to a chain that is not iptables'."""
    family, table, name = chain.get("family"), chain.get("table"), chain.get("name")
    is_of_iptables = family == "ip" and table in _TABLES_OF_IPTABLES and name in _CHAINS_OF_IPTABLES
    return chain.get("hook") in _HOOKS and family in _FAMILIES and not is_of_iptables


async def _listing(*what: str) -> list[dict[str, Any]]:
    """The entries of a JSON listing; none if it is too long.  Raises HostError."""
    words = ("nft", "--json", "--terse", "list", *what)
    output = bytearray()
    try:
        failures = await command.run(*words, package="nftables", sink=output.extend)
        if failures:
            raise HostError(f"{' '.join(words)} failed: {failures}")
        entries = json.loads(output)["nftables"] if len(output) <= _MOST_BYTES else []
        return [entry for entry in entries if isinstance(entry, dict)]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise HostError(f"{' '.join(words)} printed no JSON as it should") from error
