"""Limits the ICMP errors that are sent, in all and for each destination.  Pure: the time is an argument.

Two buckets of tokens, like the kernel's own limits for the errors that it sends: one for all errors, and one for each
destination.  An error that the destination's bucket does not allow takes no token of the common bucket, so a
flood from one address does not suppress the errors to all others.
Source: RFC 1812 section 4.3.2.8; net/ipv4/icmp.c, icmp_msgs_per_sec and icmp_msgs_burst.
"""

from typing import NamedTuple

BURST = 6
PER_SECOND = 5.0
TOTAL_BURST = 50
TOTAL_PER_SECOND = 1000.0
MAX_DESTINATIONS = 1024


class _Bucket(NamedTuple):
    tokens: float
    filled_at: float


class IcmpLimit:
    """The common bucket, and those of the most recent destinations."""

    def __init__(self) -> None:
        self._total = TOTAL_BURST + 0.0
        self._total_at = 0.0
        self._buckets: dict[int, _Bucket] = {}

    def is_spent(self, now: float) -> bool:
        """Return whether the common bucket is empty at ``now`` (seconds), so no error may be sent."""
        passed = now - self._total_at
        if passed > 0:
            self._total = min(TOTAL_BURST, self._total + passed * TOTAL_PER_SECOND)
            self._total_at = now
        return self._total < 1

    def allow(self, destination: int, now: float) -> bool:
        """Return whether ``destination`` may be sent one more error at ``now`` (seconds)."""
        if self.is_spent(now):
            return False
        tokens, filled_at = self._buckets.pop(destination, _Bucket(BURST, now))
        tokens = min(BURST, tokens + (now - filled_at) * PER_SECOND)
        allowed = tokens >= 1
        self._remember(destination, _Bucket(tokens - allowed, now))
        self._total -= allowed
        return allowed

    def _remember(self, destination: int, bucket: _Bucket) -> None:
        """Store a bucket as the most recent one; drop the least recent one if there are too many."""
        if len(self._buckets) >= MAX_DESTINATIONS:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[destination] = bucket
