"""Base chains of nftables at the hook forward: they decide about packets that iptables has accepted, too.

Source: nft(8), libnftables-json(5).
"""

from __future__ import annotations

import json
import shutil
from typing import Any, NamedTuple

from flannelpy.errors import HostError
from flannelpy.linux import command

# iptables-nft has its chains in tables of these names.
_TABLES_OF_IPTABLES = {("ip", table) for table in ("filter", "mangle", "raw", "nat", "security")}
_FAMILIES = ("ip", "inet")


class BaseChain(NamedTuple):
    """A chain at the hook forward, and what its rules can do; ``drops``: also its policy."""

    family: str
    table: str
    name: str
    drops: bool
    accepts: bool

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name}"


async def forward_chains() -> list[BaseChain]:
    """Those of IPv4 that are not iptables'; none without the command nft.  Raises HostError."""
    if not shutil.which("nft"):
        return []
    chains = [found for entry in await _listing("chains") if (found := entry.get("chain")) and _is_at_forward(found)]
    return [await _examine(str(chain["family"]), str(chain["table"]), str(chain["name"])) for chain in chains]


async def _examine(family: str, table: str, name: str) -> BaseChain:
    entries = await _listing("chain", family, table, name)
    verdicts = {verdict for entry in entries for verdict in _verdicts(entry.get("rule", {}))}
    policies = {chain.get("policy") for entry in entries if (chain := entry.get("chain"))}
    elsewhere = verdicts & {"jump", "goto", "vmap", "queue"}
    return BaseChain(
        family,
        table,
        name,
        drops=bool({"drop", "reject"} & verdicts or elsewhere or "drop" in policies),
        accepts=bool({"accept", "return"} & verdicts or elsewhere or "drop" not in policies),
    )


def _is_at_forward(chain: dict[str, Any]) -> bool:
    family, table = chain.get("family"), chain.get("table")
    is_of_iptables = (family, table) in _TABLES_OF_IPTABLES and chain.get("name") == "FORWARD"
    return chain.get("hook") == "forward" and family in _FAMILIES and not is_of_iptables


def _verdicts(rule: dict[str, Any]) -> list[str]:
    """The words that statements begin with: a verdict, or what else the rule does."""
    expressions = rule.get("expr", [])
    return [str(word) for expression in expressions if isinstance(expression, dict) for word in expression]


async def _listing(*what: str) -> list[dict[str, Any]]:
    """The entries of a JSON listing.  Raises HostError."""
    words = ("nft", "--json", "list", *what)
    output = bytearray()
    try:
        complaint = await command.run(*words, package="nftables", sink=output.extend)
        if complaint:
            raise HostError(f"{' '.join(words)} failed: {complaint}")
        entries = json.loads(output)["nftables"]
        return [entry for entry in entries if isinstance(entry, dict)]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise HostError(f"{' '.join(words)} printed no JSON as it should") from error
