"""Trying again until it works, and saying why it does not: once for each cause in a row."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Protocol, TypeVar

from flannelpy.errors import FlannelError

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_PAUSE = 1.0


class Clock(Protocol):
    """Time as the rooms that talk to the store need it."""

    def now(self) -> float:
        """Seconds that only ever grow, also while the machine is suspended."""

    def wall(self) -> datetime:
        """The time of day, for people."""

    async def sleep(self, seconds: float) -> None:
        """Come back after so many seconds of running time."""


class Complaint:
    """Says why something fails, once for each cause in a row."""

    def __init__(self, what_fails: str) -> None:
        self._what_fails = what_fails
        self._said = ""

    def about(self, error: FlannelError) -> None:
        """It failed by ``error``."""
        if str(error) != self._said:
            self._said = str(error)
            log.error("%s: %s", self._what_fails, error)

    def over(self) -> None:
        """It works again."""
        self._said = ""


async def until_done(
    clock: Clock, attempt: Callable[[], Awaitable[T]], what_fails: str, *expected: type[FlannelError]
) -> T:
    """Try once a second until ``attempt`` works, and say why it does not."""
    complaint = Complaint(what_fails)
    while True:
        try:
            return await attempt()
        except expected as error:
            complaint.about(error)
            await clock.sleep(RETRY_PAUSE)
