"""Checks what a host has set up whenever the kernel reports a change, and has it restored.

Everything is also checked every ten seconds, in case a report did not arrive.
Counterpart: none; the original never checks again.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from functools import partial
from ipaddress import IPv4Network
from typing import Never

from flannelpy.errors import HostError
from flannelpy.linux.netlink.client import Netlink
from flannelpy.linux.netlink.monitor import check_whenever_changed
from flannelpy.logs import FailureLog
from flannelpy.report import RepairReport

log = logging.getLogger(__name__)

#: Restores what other programs changed; returns one line for each repair.  Raises HostError if a repair fails.
Check = Callable[[Netlink], Awaitable[list[str]]]

_CHECK_SECONDS = 10.0
# After a check that failed.
_RETRY_SECONDS = 0.5
# A check that takes longer counts as hanging.
_STUCK_SECONDS = 60.0


class RepairLoop:
    """Restores what other programs change of the devices, routes and rules of one network."""

    def __init__(
        self,
        check: Check,
        network: IPv4Network,
        on_change: Callable[[], None],
        due: Callable[[], float] = lambda: math.inf,
    ) -> None:
        """``on_change`` is called whenever the report has changed.

        Changes of routes that do not overlap ``network`` cause no check.  ``due`` returns in how many seconds the
        next check must run even without a change.
        """
        self._check = check
        self._network = network
        self._on_change = on_change
        self._due = due
        self._problem = ""
        self._repairs = 0
        self._checked_at: float | None = None  # when the last check ended
        self._failures = FailureLog(log, "Failed to restore what was changed")

    def report(self) -> RepairReport:
        """Return what was restored and what could not be."""
        return RepairReport(self._repairs, self._problem)

    def is_live(self) -> bool:
        """Return whether checks still begin and end, also those that fail."""
        return self._checked_at is None or _now() - self._checked_at < _STUCK_SECONDS

    async def run(self) -> Never:
        """Check whenever something changed, and every ten seconds."""
        async with Netlink() as netlink:
            self._checked_at = _now()
            await check_whenever_changed(partial(self._check_once, netlink), self._network, self._longest_wait)
        raise AssertionError("it checks until a check fails")

    def _longest_wait(self) -> float:
        """Return how many seconds the next check may wait for a change."""
        return min(self._due(), _RETRY_SECONDS if self._problem else _CHECK_SECONDS)

    async def _check_once(self, netlink: Netlink) -> None:
        before = self._problem, self._repairs
        try:
            for repaired in await self._check(netlink):
                log.warning("%s", repaired)
                self._repairs += 1
            self._problem = ""
            self._failures.recovered()
        except HostError as error:
            self._failures.failed(error, str(error))
            self._problem = str(error)
        self._checked_at = _now()
        if (self._problem, self._repairs) != before:
            self._on_change()


def _now() -> float:
    return asyncio.get_running_loop().time()
