"""Runs ``iptables-save`` and ``iptables-restore``.

The commands are found by PATH: iptables-nft and iptables-legacy behave the same here.
Source: iptables-save(8), iptables-restore(8).
"""

from __future__ import annotations

from flannelpy.errors import HostError
from flannelpy.linux import command
from flannelpy.linux.ruleset import Listing

# Other programs hold the xtables lock for moments.
_WAIT = "--wait=5"


async def save(table: str, listing: Listing) -> None:
    """Feed the rules of a table to ``listing``.  Raises HostError."""
    words = ("iptables-save", "-t", table)
    try:
        complaint = await command.run(*words, package="iptables", sink=listing.feed)
    except ValueError as error:
        raise HostError(f"{' '.join(words)} printed {error} instead of rules") from error
    if complaint and "Table does not exist" not in complaint:
        raise HostError(f"{' '.join(words)} failed: {complaint}")
    if not complaint and not listing.is_complete:
        raise HostError(f"{' '.join(words)} printed no table {table}{command.readable(listing.last_line)}")


async def restore(text: bytes) -> None:
    """Change the rules of one table, all at once or not at all.  Raises HostError."""
    words = ("iptables-restore", "--noflush", _WAIT)
    if complaint := await command.run(*words, package="iptables", stdin=text):
        raise HostError(f"{' '.join(words)} failed: {complaint}")
