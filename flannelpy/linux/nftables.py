"""Lists the tables of nftables with base chains at some hooks, beside the rules of iptables.

Source: nft(8), libnftables-json(5).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from flannelpy.errors import HostError
from flannelpy.linux import command, kernel_modules
from flannelpy.netfilter.nft_listing import Entries, NftTable

_FAMILIES = ("ip", "inet")
#: The hooks that forwarded packets pass.
FORWARDED = ("PREROUTING", "FORWARD", "POSTROUTING")
# Where iptables-nft drops nothing; kube-proxy has tens of thousands of rules there.
_NAT_OF_IPTABLES = ("ip", "nat")
# More is not kept in memory.
_MOST_BYTES = 1 << 24
_GONE = "No such file or directory"
_MODULE = "nf_tables"


async def tables(hooks: Collection[str] = FORWARDED, *, with_nat: bool = False) -> dict[str, NftTable | HostError]:
    """Return those of IPv4 by family and name, or why a table cannot be read; none if the kernel has no nftables.

    ``hooks``: in capitals, those at one of which a table has a chain.  ``with_nat``: also the table nat of iptables, in
    which nothing is dropped.  Raises HostError if there is no list of tables.
    """
    if not shutil.which("nft"):
        if kernel_modules.may_be_loaded(_MODULE):
            raise HostError("the command nft is missing: install nftables")
        return {}
    passed: set[tuple[str, str]] = set()

    def take(entry: bytes) -> None:
        if entry.startswith(b'{"chain"') and _is_passed(chain := json.loads(entry)["chain"], hooks, with_nat=with_nat):
            passed.add((str(chain["family"]), str(chain["table"])))

    await _list(take, "chains")
    found = {f"{family} {name}": await _read(family, name) for family, name in sorted(passed)}
    return {name: table for name, table in found.items() if table}


def _is_passed(chain: dict[str, Any], hooks: Collection[str], *, with_nat: bool) -> bool:
    """Whether packets at the hooks come to the chain, and it matters."""
    family, table, name = chain["family"], chain["table"], chain["name"]
    is_left_out = not with_nat and (family, table) == _NAT_OF_IPTABLES and name in hooks
    return str(chain.get("hook", "")).upper() in hooks and family in _FAMILIES and not is_left_out


async def _read(family: str, name: str) -> NftTable | HostError | None:
    """Return a table, or why it cannot be read; None if it has been removed meanwhile."""
    table = NftTable(family, name)
    try:
        await _list(table.take, "table", family, name)
        for each in table.map_names:
            with _unless_gone():
                await _list(table.take_elements, "map", family, name, each)
        table.base_chains()
    except HostError as error:
        return None if _GONE in str(error) else error
    except (ValueError, KeyError, TypeError, AttributeError):
        return HostError(f"nft --json list table {family} {name} printed what flannelpy cannot read")
    return table


@contextmanager
def _unless_gone() -> Iterator[None]:
    """Leave a map unknown that has been removed since the listing of its table."""
    try:
        yield
    except HostError as error:
        if _GONE not in str(error):
            raise


async def _list(take: Callable[[bytes], object], *what: str) -> None:
    """Hand each entry of a JSON listing to ``take``.  Raises HostError."""
    terse = ("--terse",) if what[0] == "table" else ()  # without the elements of sets, which may be any number
    words = ("nft", "--json", "--stateless", *terse, "list", *what)
    entries, total = Entries(take), 0

    def feed(chunk: bytes) -> None:
        nonlocal total
        total += len(chunk)
        if total > _MOST_BYTES:
            raise HostError(f"{' '.join(words)} printed more than {_MOST_BYTES >> 20} MB")
        entries.feed(chunk)

    try:
        failures = await command.run(*words, package="nftables", sink=feed)
        if failures:
            raise HostError(f"{' '.join(words)} failed: {failures}")
        entries.close()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HostError(f"{' '.join(words)} printed no valid JSON") from error
