"""Finds out whether the fast path would bypass an XFRM policy or a firewall rule that may match our datagrams.

Counterpart: none; flanneld has no fast path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Never

from flannelpy.netfilter.address_ranges import AddressRanges
from flannelpy.netfilter.bypassed import OuterDatagrams


class BypassGuard:
    """The search for what the fast path would bypass; for one network."""

    def __init__(
        self,
        datagrams: OuterDatagrams,
        peers: Callable[[], AddressRanges | None],
        resync: float,
        on_blocked: Callable[[], None],
    ) -> None:
        """Take what decides.

        ``peers`` returns the public IPs of the peers, None while they are unknown; it is called at each search.
        ``resync``: seconds between two searches (-iptables-resync).
        ``on_blocked`` is called, by the event loop, at once when ``reason()`` changes from None to a text.
        """
        raise NotImplementedError

    def reason(self) -> str | None:
        """Return what forbids the fast path, as the end of a log line; None while nothing does."""
        raise NotImplementedError

    async def check(self) -> str | None:
        """Search now, and return ``reason()``."""
        raise NotImplementedError

    async def run(self) -> Never:
        """Search every resync period and when peers change, and follow the XFRM policies, until cancelled."""
        raise NotImplementedError

    async def wait_change(self) -> None:
        """Wait until ``reason()`` differs from what it was at the call."""
        raise NotImplementedError

    def peers_changed(self) -> None:
        """Search again soon, without new listings, because ``peers`` returns others."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the netlink socket."""
        raise NotImplementedError
