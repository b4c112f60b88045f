"""The search for the highest rate of UDP datagrams at which less than 1 % is lost."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from benchmark import traffic

if TYPE_CHECKING:
    from collections.abc import Callable

_LOSS = 0.01
_LOWEST_RATE = 100.0
# The search ends when the lowest rate that failed is this close to the highest that did not.
_CLOSE = 1.1
# A sender that offers less than this share of what it is asked for can do no more.
_SENDER_AT_ITS_LIMIT = 0.95
_LARGEST_STEP = 2.0
_FIRST_RATE = 40_000.0
# From rates that are near the one sought, two trials and one between them suffice: its root is less than _CLOSE.
_NEAR_STEP = 1.2


class Trial(NamedTuple):
    """One step of a search: who, on which underlay, bytes of payload, packets a second, what came of it."""

    subject: str
    underlay: str
    size: int
    asked: float
    result: traffic.Udp

    @property
    def at_senders_limit(self) -> bool:
        """Whether nearly all arrived, and the sender could not offer what it was asked for."""
        return self.result.loss < _LOSS and _at_its_limit(self.result, self.asked)


def highest_rate(attempt: Callable[[float], traffic.Udp], trials: int, near: float | None = None) -> traffic.Udp:
    """Return the trial with the highest rate at which less than 1 % is lost.

    ``near``: what an earlier search found.  Steps up or down grow to a factor of 2, then bisection follows.  After so
    many trials the search ends as soon as one has passed.  Raises MeasurementError when no rate is low enough.
    """
    step = _NEAR_STEP if near else _LARGEST_STEP
    rate = near / math.sqrt(step) if near else _FIRST_RATE
    passed: traffic.Udp | None = None
    low, high = 0.0, math.inf
    while passed is None or trials > 0:
        trials -= 1
        result = attempt(rate)
        if result.loss >= _LOSS:
            high = rate
        else:
            passed, low = result, rate
        if passed and (high / low < _CLOSE or _at_its_limit(passed, low)):
            return passed
        rate, step = _next_rate(low, high, step), min(step * step, _LARGEST_STEP)
        if rate < _LOWEST_RATE:
            raise traffic.MeasurementError(f"more than 1 % is lost even at {high:.0f} packets/s")
    return passed


def _next_rate(low: float, high: float, step: float) -> float:
    if high == math.inf:
        return low * step
    return math.sqrt(low * high) if low else high / step


def _at_its_limit(result: traffic.Udp, asked: float) -> bool:
    """Whether the sender can offer no more."""
    return result.offered < _SENDER_AT_ITS_LIMIT * asked
