"""Passes the peers' leases on to the backend, usable ones only, so that a backend applies every lease that it gets.

``LeaseFilter`` decides.  The gate asks the kernel what the filter needs to know, logs the ignored leases, and keeps
each turn of the event loop short.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address

from flannelpy.backend.underlay import Underlay
from flannelpy.chunks import in_chunks
from flannelpy.errors import HostError
from flannelpy.linux.netlink.client import Netlink
from flannelpy.logs import FailureLog, LogLimit
from flannelpy.subnet.lease_filter import LeaseFilter
from flannelpy.subnet.lease_table import LeaseEvent

log = logging.getLogger(__name__)

# Leases to decide, and queries to the kernel, between two turns of the event loop.
_AT_A_TIME = 200
# Lines about ignored leases without a pause.
_LINES = 50


class LeaseGate:
    """Feeds ``forward``, the backend's ``apply``, whose first call gets all usable leases."""

    def __init__(
        self,
        netlink: Netlink,
        leases: LeaseFilter,
        underlay: Underlay,
        forward: Callable[[Sequence[LeaseEvent]], None],
    ) -> None:
        self._netlink = netlink
        self._leases = leases
        self._underlay = underlay
        self._forward = forward
        self._is_fed = self._is_complete = False  # by the watch; whether the backend has had its first call
        self._events: list[LeaseEvent] = []  # decided, and not forwarded yet
        self._failures = FailureLog(log, "Failed to ask the kernel which leases are usable")
        self._ignored = LogLimit(log, "Ignoring subnets", _LINES)
        self._busy = asyncio.Lock()

    async def apply(self, events: Sequence[LeaseEvent]) -> None:
        """Take in the events of the watch; the first call has all leases."""
        async with self._busy:
            self._is_fed = True
            async for chunk in in_chunks(events):
                self._leases.update(chunk)
            try:
                await self._decide()
                self._failures.recovered()
            except HostError as error:  # the next check asks again
                self._failures.failed(error)

    async def check(self) -> None:
        """Check whether this host's changed addresses or routes make other leases usable.  Raises HostError."""
        self._ignored.report()
        self._failures.report()
        async with self._busy:
            if self._is_fed:
                self._leases.observe(await self._underlay.observe(self._netlink))
                self._leases.answer(await self._ask(self._leases.oldest_answers(_AT_A_TIME)))
                await self._decide()

    async def _decide(self) -> None:
        while self._leases.has_work or self._leases.unasked(1):
            self._leases.answer(await self._ask(self._leases.unasked(_AT_A_TIME)))
            events, ignored = self._leases.decide(_AT_A_TIME)
            self._events += events
            self._ignored.message_by_cause(logging.WARNING, "Ignoring subnet", ignored)
            await asyncio.sleep(0)
        if self._events or not self._is_complete:
            self._is_complete = True
            events, self._events = self._events, []
            self._forward(events)

    async def _ask(self, addresses: Sequence[IPv4Address]) -> dict[IPv4Address, str]:
        return await self._underlay.overlay_ways(self._netlink, addresses) if addresses else {}
