"""How many ICMP errors one destination gets.  Pure: the time is an argument.

A bucket of tokens per destination, like the kernel's own limit for the errors that it sends.
Source: RFC 1812 section 4.3.2.8; net/ipv4/icmp.c.
"""

from typing import NamedTuple

BURST = 6
PER_SECOND = 5.0
MAX_DESTINATIONS = 1024


class _Bucket(NamedTuple):
    tokens: float
    filled_at: float


class IcmpLimit:
    """Buckets of the destinations that were answered lately."""

    def __init__(self) -> None:
        self._buckets: dict[int, _Bucket] = {}

    def allow(self, destination: int, now: float) -> bool:
        """Whether ``destination`` may be sent one more error at ``now`` (seconds)."""
        tokens, filled_at = self._buckets.pop(destination, _Bucket(BURST, now))
        tokens = min(BURST, tokens + (now - filled_at) * PER_SECOND)
        allowed = tokens >= 1
        self._remember(destination, _Bucket(tokens - allowed, now))
        return allowed

    def _remember(self, destination: int, bucket: _Bucket) -> None:
        """Put it last; the destination that was silent for longest makes room."""
        if len(self._buckets) >= MAX_DESTINATIONS:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[destination] = bucket
