"""Checks what a host has set up whenever the kernel reports a change, and has it restored.

Everything is also checked every ten seconds, in case a report did not arrive.
Counterpart: none; the original never checks again.
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
from flannelpy.linux.netlink.monitor import set_on_change
from flannelpy.logs import LogLimit
from flannelpy.tasks import run_together

log = logging.getLogger(__name__)

#: Restores what other programs changed; returns one line for each repair.  Raises HostError if a repair fails.
Check = Callable[[Netlink], Awaitable[list[str]]]

_CHECK_SECONDS = 10.0
# Between two checks, so that a program that undoes each repair costs little processor time.
_PAUSE_SECONDS = 0.5
# A check that takes longer counts as hanging.
_STUCK_SECONDS = 60.0


class RepairLoop:
    """``trouble`` is what could not be restored, empty while all is well; ``repairs`` counts what could."""

    def __init__(
        self,
        check: Check,
        network: IPv4Network,
        on_change: Callable[[], None],
        due: Callable[[], float] = lambda: math.inf,
    ) -> None:
        """``on_change`` is called whenever ``trouble`` or ``repairs`` has changed.

        Changes of routes that do not overlap ``network`` cause no check.  ``due`` returns in how many seconds the
        next check must run even without a change.
        """
        self._check = check
        self._network = network
        self._on_change = on_change
        self._due = due
        self.trouble = ""
        self.repairs = 0
        self._checked_at: float | None = None  # when the last check ended
        self._errors = LogLimit(log, "Failed to restore what was changed")

    def makes_progress(self) -> bool:
        """Return whether checks begin and end, whatever they find."""
        return self._checked_at is None or _now() - self._checked_at < _STUCK_SECONDS

    async def run(self) -> Never:
        """Check whenever something changed, and every ten seconds."""
        changed = asyncio.Event()
        await run_together(set_on_change(changed, self._network), self._check_whenever(changed))
        raise AssertionError("both run until one of them fails")

    async def _check_whenever(self, changed: asyncio.Event) -> Never:
        async with Netlink() as netlink:
            self._checked_at = _now()
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pause()):
                        await changed.wait()
                changed.clear()
                await self._check_once(netlink)
                self._checked_at = _now()
                await asyncio.sleep(_PAUSE_SECONDS)

    def _pause(self) -> float:
        """Return how many seconds the next check may wait for a change."""
        return min(self._due(), _PAUSE_SECONDS if self.trouble else _CHECK_SECONDS)

    async def _check_once(self, netlink: Netlink) -> None:
        before = self.trouble, self.repairs
        try:
            for repaired in await self._check(netlink):
                log.warning("%s", repaired)
                self.repairs += 1
            self.trouble = ""
        except HostError as error:
            if str(error) != self.trouble:
                self._errors.message(logging.ERROR, str(error), _now())
            self.trouble = str(error)
        if (self.trouble, self.repairs) != before:
            self._on_change()


def _now() -> float:
    return asyncio.get_running_loop().time()
