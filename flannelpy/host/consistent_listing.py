"""Keeps a listing of all firewall rules up to date, by as few commands as possible.

iptables and nft list the rules one after the other.  If a rule changes meanwhile, one of them shows what the other does
not know.  The kernel counts the changes of nftables, so an unchanged count makes a listing consistent, and a later one
needless for a minute.  Where the kernel does not count, a listing is consistent if the next one is equal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from flannelpy.linux import rules_generation

# The last listing of rules that change all the time counts.
_MOST_LISTINGS = 3
# What ends without being counted, such as an element with a timeout, is noticed after this time.
_LONGEST_SECONDS = 60.0


class ConsistentListing:
    """Remembers the generation of the rules that were listed last."""

    def __init__(self) -> None:
        self._listed: object | None = None
        self._until = 0.0  # by the event loop's clock

    async def update(self, list_all: Callable[[], Awaitable[bool]]) -> None:
        """Call ``list_all`` until its listing is consistent; not at all if the last one is, and is not a minute old.

        ``list_all`` returns whether it found the same as before.  Raises what it raises.
        """
        now = asyncio.get_running_loop().time()
        if now >= self._until:
            self._listed, self._until = None, now + _LONGEST_SECONDS
        for _ in range(_MOST_LISTINGS):
            generation = rules_generation.current()
            if generation is not None and generation == self._listed:
                return
            self._listed = None
            is_same = await list_all()
            self._listed = generation
            if is_same:
                return

    def expire(self) -> None:
        """List again at the next update, because a part of this listing failed."""
        self._listed = None
