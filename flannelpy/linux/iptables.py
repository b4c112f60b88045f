"""Runs ``iptables-save`` and ``iptables-restore``.

The commands are found by PATH: iptables-nft and iptables-legacy behave the same here.
Source: iptables-save(8), iptables-restore(8).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from flannelpy.errors import HostError
from flannelpy.linux import command, kernel_modules
from flannelpy.netfilter.iptables_listing import Tables
from flannelpy.netfilter.ruleset import Listing

# Other programs hold the xtables lock for short times.
_WAIT = "--wait=5"
# The tables of iptables-legacy in this network namespace.  Source: net/ipv4/netfilter/ip_tables.c of the kernel.
_LEGACY_TABLES = Path("/proc/net/ip_tables_names")
# By the program that the commands are links to.
_OTHER_FLAVOUR = {"xtables-nft-multi": "legacy", "xtables-legacy-multi": "nft"}
# What iptables-legacy prints for a table that the kernel does not have, and iptables-nft if it has no nf_tables.
# Source: nft_init of iptables, and EINVAL of nfnetlink_rcv_msg in net/netfilter/nfnetlink.c of the kernel.
_NO_TABLE = re.compile(
    "Table does not exist|Failed to initialize nft: Protocol not supported|rule set generation id: Invalid argument"
)
# Those in which the kernel accepts a DROP, and operators add one; and the others.
_TABLES = ("filter", "mangle", "raw")
_OTHER_TABLES = ("nat", "security")


def is_installed() -> bool:
    """Return whether the commands of ``iptables`` exist."""
    return bool(_program("iptables-save"))


def other_flavour() -> str:
    """Return which of "nft" and "legacy" ``iptables`` is not, if the commands of that flavour exist; otherwise ""."""
    other = _OTHER_FLAVOUR.get(_program("iptables-save"), "")
    exists = other and all(shutil.which(_command(verb, other)) for verb in ("save", "restore"))
    return other if exists else ""


def may_exist(table: str, flavour: str) -> bool:
    """Return whether a flavour may have a table.

    To list a table of iptables-legacy creates it, and loads a kernel module; iptables-nft loads nf_tables.
    """
    if flavour == "nft":
        return kernel_modules.may_be_loaded("nf_tables")
    existing = _legacy_tables()
    return kernel_modules.may_be_loaded(f"iptable_{table}") if existing is None else table in existing


def _command(verb: str, flavour: str) -> str:
    return f"iptables-{flavour}-{verb}" if flavour else f"iptables-{verb}"


async def save(table: str, listing: Listing, flavour: str = "") -> None:
    """Feed the rules of a table to ``listing``; ``flavour`` as of ``other_flavour``.  Raises HostError."""
    words = (_command("save", flavour), "-t", table)
    try:
        failures = await command.run(*words, package="iptables", sink=listing.feed)
    except ValueError as error:
        raise HostError(f"{' '.join(words)} printed {error} instead of rules") from error
    if failures and not _NO_TABLE.search(failures):
        raise HostError(f"{' '.join(words)} failed: {failures}")
    if not failures and not listing.is_complete:
        raise HostError(f"{' '.join(words)} printed no table {table}{command.readable(listing.last_line)}")


async def restore(text: bytes, flavour: str = "") -> None:
    """Change the rules of one table, all at once or not at all.  Raises HostError."""
    words = (_command("restore", flavour), "--noflush", _WAIT)
    if failures := await command.run(*words, package="iptables", stdin=text):
        raise HostError(f"{' '.join(words)} failed: {failures}")


async def tables(*, may_load: bool = True, with_nat: bool = False) -> dict[str, Tables | HostError]:
    """Return all tables that exist, by the command that lists them, or why it does not.

    ``may_load``: iptables-nft is asked also where the kernel has to load nf_tables for that.  ``with_nat``: also those
    in which nothing is dropped.
    """
    own_program = _program("iptables-save")
    found: dict[str, Tables | HostError] = {}
    for words in _list_commands((*_TABLES, *_OTHER_TABLES) if with_nat else _TABLES):
        if not (may_load or "legacy" in words[0] or may_exist("", "nft")):
            continue
        is_own = bool(own_program) and own_program == _program(words[0])
        tables = Tables(words[0], has_own_rules=is_own, with_nat=with_nat)
        found[" ".join(words)] = await _list(tables, words)
    return found


def programs() -> tuple[str, ...]:
    """Return the programs behind the commands that list rules, empty for each that is missing."""
    return tuple(map(_program, ("iptables-save", "iptables-nft-save", "iptables-legacy-save")))


def has_legacy_tables() -> bool:
    """Return whether the kernel has tables of iptables-legacy, or does not tell."""
    return _legacy_tables() != []


def unlisted_tables() -> list[str]:
    """Return the tables of iptables-legacy that the kernel has, and for which there is no command."""
    commands = {_program("iptables-legacy-save"), _program("iptables-save")} - {"", "xtables-nft-multi"}
    return [] if commands else _legacy_tables() or []


async def _list(tables: Tables, words: Sequence[str]) -> Tables | HostError:
    try:
        failures = await command.run(*words, package="iptables", sink=tables.feed)
    except HostError as error:
        return error
    except ValueError as error:
        return HostError(f"{' '.join(words)} printed {error} instead of rules")
    if failures and "Table does not exist" not in failures:
        return HostError(f"{' '.join(words)} failed: {failures}")
    if not failures and not tables.is_complete:
        return HostError(f"{' '.join(words)} printed a table without an end")
    return tables


def _program(command: str) -> str:
    """Return the name of the program behind a command, which differs between the flavours; empty if it is missing."""
    path = shutil.which(command)
    return Path(path).resolve().name if path else ""


def _list_commands(names: Sequence[str]) -> list[list[str]]:
    """Return the commands that list all tables of both flavours, which may both be in use; ``names``: if unknown."""
    legacy = _program("iptables-legacy-save")
    found = [word for word in ("iptables-nft-save", "iptables-save") if _program(word)][:1]
    return [[word] for word in found if _program(word) != legacy] + (_legacy_commands(names) if legacy else [])


def _legacy_commands(names: Sequence[str]) -> list[list[str]]:
    existing = _legacy_tables()
    if existing is None:  # without -t the command reads the names, too
        return [["iptables-legacy-save", "-t", name] for name in names if may_exist(name, "legacy")]
    return [["iptables-legacy-save"]] if existing else []


def _legacy_tables() -> list[str] | None:
    """Return the names of the tables of iptables-legacy; None if only root may read them."""
    try:
        return _LEGACY_TABLES.read_text().split()
    except PermissionError:
        return None
    except OSError:
        return []
