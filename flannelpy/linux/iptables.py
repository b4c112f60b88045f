"""Runs ``iptables-save`` and ``iptables-restore``.

The commands are found by PATH: iptables-nft and iptables-legacy behave the same here.
Source: iptables-save(8), iptables-restore(8).
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from flannelpy.errors import HostError
from flannelpy.linux import command
from flannelpy.netfilter.iptables_listing import Table, Tables
from flannelpy.netfilter.ruleset import Listing

# Other programs hold the xtables lock for short times.
_WAIT = "--wait=5"
# The tables of iptables-legacy in this network namespace.  Source: net/ipv4/netfilter/ip_tables.c of the kernel.
_LEGACY_TABLES = Path("/proc/net/ip_tables_names")
_MODULES = Path("/proc/modules")
# By the program that the commands are links to.
_OTHER_FLAVOUR = {"xtables-nft-multi": "legacy", "xtables-legacy-multi": "nft"}


def other_flavour() -> str:
    """Return which of "nft" and "legacy" ``iptables`` is not, if the commands of that flavour exist; otherwise ""."""
    path = shutil.which("iptables-save")
    other = _OTHER_FLAVOUR.get(Path(path).resolve().name, "") if path else ""
    exists = other and all(shutil.which(_command(verb, other)) for verb in ("save", "restore"))
    return other if exists else ""


def may_exist(table: str, flavour: str) -> bool:
    """Whether a flavour may have a table: to list one of iptables-legacy creates it, and loads a kernel module."""
    if flavour != "legacy":
        return True
    try:
        return table in _LEGACY_TABLES.read_text().split()
    except PermissionError:  # only root may read the names
        with suppress(OSError):
            return f"iptable_{table} " in _MODULES.read_text()
    except OSError:
        pass
    return False


def _command(verb: str, flavour: str) -> str:
    return f"iptables-{flavour}-{verb}" if flavour else f"iptables-{verb}"


async def save(table: str, listing: Listing, flavour: str = "") -> None:
    """Feed the rules of a table to ``listing``; ``flavour`` as of ``other_flavour``.  Raises HostError."""
    words = (_command("save", flavour), "-t", table)
    try:
        failures = await command.run(*words, package="iptables", sink=listing.feed)
    except ValueError as error:
        raise HostError(f"{' '.join(words)} printed {error} instead of rules") from error
    if failures and "Table does not exist" not in failures:
        raise HostError(f"{' '.join(words)} failed: {failures}")
    if not failures and not listing.is_complete:
        raise HostError(f"{' '.join(words)} printed no table {table}{command.readable(listing.last_line)}")


async def restore(text: bytes, flavour: str = "") -> None:
    """Change the rules of one table, all at once or not at all.  Raises HostError."""
    words = (_command("restore", flavour), "--noflush", _WAIT)
    if failures := await command.run(*words, package="iptables", stdin=text):
        raise HostError(f"{' '.join(words)} failed: {failures}")


async def tables() -> dict[str, list[Table]]:
    """Return all tables that exist, by the command that lists them; none is created.  Raises HostError."""
    found: dict[str, list[Table]] = {}
    for word in _list_commands():
        tables = Tables()
        try:
            failures = await command.run(word, package="iptables", sink=tables.feed)
        except ValueError as error:
            raise HostError(f"{word} printed {error} instead of rules") from error
        if failures:
            raise HostError(f"{word} failed: {failures}")
        found[word] = tables.found
    return found


def _list_commands() -> list[str]:
    """Return the listing commands of both kinds of iptables; of the legacy kind only if it has tables.

    Otherwise the command itself would load kernel modules.
    """
    commands = [word for word in ("iptables-nft-save", "iptables-save") if shutil.which(word)][:1]
    with suppress(OSError):
        if _LEGACY_TABLES.read_text().strip() and shutil.which("iptables-legacy-save"):
            commands.append("iptables-legacy-save")
    return commands
