"""Retries of a failing operation, with growing pauses, and one log line for each cause in a row."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from datetime import datetime
from math import inf
from typing import Protocol, TypeVar

from flannelpy.errors import FlannelError, RegistryUnavailable
from flannelpy.logs import FailureLog

log = logging.getLogger(__name__)
T = TypeVar("T")

# Seconds between two tries.  flannelpy notices a recovered store, or a corrected config, within the longest pause.
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 5.0
# Of writes that are undone.  A claim is answered within three seconds, also if two stores pause one after the other.
LONGEST_PAUSE_OF_WRITES = 1.25
# A write later than this after the last one is the first one again.
_QUIET_SECONDS = 60.0
# An operator who corrects a config reads each of them.
_CAUSES_AT_START = 100


class Clock(Protocol):
    """Time, as the control plane needs it."""

    def now(self) -> float:
        """Return monotonic seconds, which also count suspended time."""

    def wall(self) -> datetime:
        """Return the time of day, for log lines."""

    async def sleep(self, seconds: float) -> None:
        """Sleep for ``seconds``, which do not count suspended time."""


class Backoff:
    """The pauses between failures in a row, each nominally twice as long as the last one, up to a limit.

    Up to half of each pause is cut off at random.  Hosts that lost their store at the same moment therefore return to
    it at different moments.
    """

    def __init__(self, rng: random.Random, longest: float = LONGEST_PAUSE) -> None:
        self._rng = rng
        self._longest = longest
        self._failures = 0

    def pause(self) -> float:
        """Count one more failure, and return the seconds until the next try."""
        nominal = min(FIRST_PAUSE * 2.0**self._failures, self._longest)
        self._failures = min(self._failures + 1, 16)
        return nominal * self._rng.uniform(0.5, 1)

    def reset(self) -> None:
        """Begin with short pauses again, after a success."""
        self._failures = 0


class RepeatedWrites:
    """The pauses between writes that another program undoes again and again.

    The first write needs none.  Times are in seconds, by any monotonic clock.
    """

    def __init__(self, rng: random.Random) -> None:
        self._backoff = Backoff(rng, LONGEST_PAUSE_OF_WRITES)
        self._last_at = self._next_at = -inf

    def pause(self, now: float) -> float:
        """Return the seconds until the next write."""
        return max(self._next_at - now, 0)

    def note(self, now: float) -> None:
        """Note a write."""
        if now - self._last_at > _QUIET_SECONDS:
            self._backoff.reset()
        self._last_at, self._next_at = now, now + self._backoff.pause()


async def until_done(
    clock: Clock,
    rng: random.Random,
    attempt: Callable[[], Awaitable[T]],
    what_fails: str,
    *expected: type[FlannelError],
) -> T:
    """Retry ``attempt`` until it succeeds, with the pauses of ``Backoff``, and log each cause of a failure."""
    backoff = Backoff(rng)
    failures = FailureLog(log, what_fails, _CAUSES_AT_START)
    while True:
        try:
            return await attempt()
        except expected as error:
            if failures.failed(error) and not isinstance(error, RegistryUnavailable):
                backoff.reset()  # the store answers: an operator is correcting its content
            await clock.sleep(backoff.pause())
