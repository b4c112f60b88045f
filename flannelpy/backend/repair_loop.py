"""Checks what a host has set up whenever the kernel reports a change, and has it restored.

In case a report was lost, everything is checked every ten seconds.
Counterpart: none; the original never looks again.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ipaddress import IPv4Network
from typing import Never

from flannelpy.errors import HostError
from flannelpy.linux.netlink.client import Netlink
from flannelpy.linux.netlink.monitor import notifications
from flannelpy.logs import LogLimit
from flannelpy.report import RepairReport

log = logging.getLogger(__name__)

#: Restores what is wrong; one line for each thing restored.  Raises HostError when it cannot.
Check = Callable[[Netlink], Awaitable[list[str]]]

_LOOK_SECONDS = 10.0
# Between two looks, so that somebody who fights us costs neither of us a processor.
_PAUSE_SECONDS = 0.5
# A check that takes longer does not end any more.
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

        Changes of routes that do not overlap ``network`` cause no check.  ``due``: in how many seconds the check has to
        come without any change.
        """
        self._check = check
        self._network = network
        self._on_change = on_change
        self._due = due
        self._problem = ""
        self._repairs = 0
        self._looked_at: float | None = None  # when the last check ended
        self._errors = LogLimit(log, "Failed to restore what was changed")

    def report(self) -> RepairReport:
        """Return what was restored and what could not be."""
        return RepairReport(self._repairs, self._problem)

    def is_live(self) -> bool:
        """Return whether checks still begin and end, also those that fail."""
        return self._looked_at is None or _now() - self._looked_at < _STUCK_SECONDS

    async def run(self) -> Never:
        """Look whenever something changed."""
        bell = asyncio.Event()
        listener = asyncio.create_task(_listen(bell, self._network))
        try:
            async with Netlink() as netlink:
                self._looked_at = _now()
                while True:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._pause()):
                            await bell.wait()
                    bell.clear()
                    if listener.done():
                        listener.result()
                    await self._look(netlink)
                    self._looked_at = _now()
                    await asyncio.sleep(_PAUSE_SECONDS)
        finally:
            listener.cancel()

    def _pause(self) -> float:
        """How long the next check may wait for a change."""
        return min(self._due(), _PAUSE_SECONDS if self._problem else _LOOK_SECONDS)

    async def _look(self, netlink: Netlink) -> None:
        before = self._problem, self._repairs
        try:
            for repaired in await self._check(netlink):
                log.warning("%s", repaired)
                self._repairs += 1
            self._problem = ""
        except HostError as error:
            if str(error) != self._problem:
                self._errors.message(logging.ERROR, str(error), _now())
            self._problem = str(error)
        if (self._problem, self._repairs) != before:
            self._on_change()


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _listen(bell: asyncio.Event, network: IPv4Network) -> Never:
    """Ring whenever the kernel says that something changed, and at the end, which is a fault."""
    try:
        while True:
            bell.set()  # for what changed before the socket listened
            try:
                async for _ in notifications(network):
                    bell.set()
            except OSError:  # more changes than the kernel keeps for us
                await asyncio.sleep(_PAUSE_SECONDS)
    finally:
        bell.set()
