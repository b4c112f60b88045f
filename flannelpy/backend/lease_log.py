"""Logs the peers' leases that a backend follows: one line each, worded as in flanneld, within a limit.

Without a limit, a host that adds and removes leases could fill the log.
Counterpart: the log lines of handleSubnetEvents in backend/udp/udp.go, vxlan/vxlan.go and hostgw/hostgw.go.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from ipaddress import IPv4Network

from flannelpy.causes import by_cause
from flannelpy.logs import LogLimit

# Lines without a pause: enough for the peers of a small cluster when the daemon starts.
_LINES = 50


class LeaseLog:
    """The log of one backend's leases, written by the backend's own logger."""

    def __init__(self, log: logging.Logger) -> None:
        self._changes = LogLimit(log, "Subnets added or removed", _LINES)
        self._ignored = LogLimit(log, "Ignoring subnets")

    def added(self, subnet: IPv4Network, how: str = "") -> None:
        """Log that the backend follows a lease; ``how`` is appended to the line."""
        self._changes.message(logging.INFO, f"Subnet added: {subnet}{how}")

    def removed(self, subnet: IPv4Network) -> None:
        """Log that a lease is removed."""
        self._changes.message(logging.INFO, f"Subnet removed: {subnet}")

    def ignored(self, subnets: Iterable[tuple[object, str]]) -> None:
        """Log which leases are ignored, each with its cause, in one line for each cause."""
        for line in by_cause(subnets):
            self._ignored.message(logging.ERROR, f"Ignoring subnet {line}")

    def report(self) -> None:
        """Log how many lines the limit has suppressed, at most every two minutes."""
        self._changes.report()
        self._ignored.report()
