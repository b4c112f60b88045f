"""Trying again until it works, ever more slowly, and logging why it does not: once for each cause in a row."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Protocol, TypeVar

from flannelpy.errors import FlannelError, RegistryUnavailable
from flannelpy.logs import FailureLog

log = logging.getLogger(__name__)
T = TypeVar("T")

# Seconds between two tries.  Within the longest a store that comes back is found, and a config that was corrected.
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 5.0
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


class Backoff:
    """The pauses between tries that fail in a row, each nominally twice as long as the last one, up to a limit.

    Up to half of each pause is cut off at random, so that the hosts of a fleet that lost their store at the same moment
    do not come back to it at the same moment.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._failures = 0

    def pause(self) -> float:
        """Seconds until the next try, after one more that failed."""
        nominal = min(FIRST_PAUSE * 2.0**self._failures, LONGEST_PAUSE)
        self._failures = min(self._failures + 1, 16)
        return nominal * self._rng.uniform(0.5, 1)

    def reset(self) -> None:
        """A try has succeeded."""
        self._failures = 0


async def until_done(
    clock: Clock,
    rng: random.Random,
    attempt: Callable[[], Awaitable[T]],
    what_fails: str,
    *expected: type[FlannelError],
) -> T:
    """Try until ``attempt`` works, with the pauses of ``Backoff``, and log why it does not."""
    backoff = Backoff(rng)
    failures = FailureLog(log, what_fails, _CAUSES_AT_START)
    while True:
        try:
            return await attempt()
        except expected as error:
            if failures.failed(error) and not isinstance(error, RegistryUnavailable):
                backoff.reset()  # the store answers, and an operator is at work there
            await clock.sleep(backoff.pause())
