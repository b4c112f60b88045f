"""Trying again until it works, and saying why it does not: once for each cause in a row."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Protocol, TypeVar

from flannelpy.errors import FlannelError
from flannelpy.logs import LogLimit

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_PAUSE = 1.0
# An operator who corrects a config reads each of them.
_CAUSES_AT_START = 100


class Clock(Protocol):
    """Time as the rooms that talk to the store need it."""

    def now(self) -> float:
        """Seconds that only ever grow, also while the machine is suspended."""

    def wall(self) -> datetime:
        """The time of day, for people."""

    async def sleep(self, seconds: float) -> None:
        """Come back after so many seconds of running time."""


class Complaint:
    """Logs why something fails: once for each cause in a row, and not without end when causes alternate."""

    def __init__(self, what_fails: str, burst: int = LogLimit.BURST) -> None:
        """``burst``: how many causes are logged before there is a limit (``LogLimit``)."""
        self._what_fails = what_fails
        self._limit = LogLimit(log, what_fails, burst)
        self._said = ""

    def about(self, error: FlannelError) -> None:
        """It failed by ``error``."""
        if str(error) != self._said:
            self._said = str(error)
            self._limit.message(logging.ERROR, f"{self._what_fails}: {error}", time.monotonic())

    def over(self) -> None:
        """It works again."""
        self._said = ""


async def until_done(
    clock: Clock, attempt: Callable[[], Awaitable[T]], what_fails: str, *expected: type[FlannelError]
) -> T:
    """Try once a second until ``attempt`` works, and say why it does not."""
    complaint = Complaint(what_fails, _CAUSES_AT_START)
    while True:
        try:
            return await attempt()
        except expected as error:
            complaint.about(error)
            await clock.sleep(RETRY_PAUSE)
