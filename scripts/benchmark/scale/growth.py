"""How a figure grows with the number of hosts: a power law, fitted by least squares in log-log.  Pure."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class Growth(NamedTuple):
    """``factor`` × hosts ^ ``exponent``; ``fit`` is the coefficient of determination, 1 for a perfect fit."""

    factor: float
    exponent: float
    fit: float

    def at(self, hosts: float) -> float:
        """Return the figure that so many hosts would have."""
        return self.factor * math.pow(hosts, self.exponent)


def growth(figures: Mapping[int, float]) -> Growth | None:
    """Fit ``figures``, by number of hosts.  None: fewer than two figures, or one that has no logarithm."""
    if len(figures) < 2 or min(figures.values()) <= 0:
        return None
    hosts = [math.log(count) for count in figures]
    values = [math.log(value) for value in figures.values()]
    exponent, constant = statistics.linear_regression(hosts, values)
    return Growth(math.exp(constant), exponent, _determination(hosts, values, exponent, constant))


def slope(figures: Mapping[int, float]) -> float:
    """Return by how much the figure grows with each host between the two largest numbers of hosts, of at least two."""
    fewer, more = sorted(figures)[-2:]
    return (figures[more] - figures[fewer]) / (more - fewer)


def _determination(hosts: list[float], values: list[float], exponent: float, constant: float) -> float:
    mean = statistics.fmean(values)
    around_mean = sum((value - mean) ** 2 for value in values)
    around_line = sum((value - constant - exponent * host) ** 2 for host, value in zip(hosts, values, strict=True))
    return 1 - around_line / around_mean if around_mean else 1.0
