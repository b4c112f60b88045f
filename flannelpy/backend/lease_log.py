"""Logs the peers' leases that a backend follows: one line each, worded as in flanneld, within a limit.

Without a limit, a host that adds and removes leases could fill the log.
Counterpart: the log lines of handleSubnetEvents in backend/udp/udp.go, vxlan/vxlan.go and hostgw/hostgw.go.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from ipaddress import IPv4Network

from flannelpy.causes import listed
from flannelpy.logs import FailureLog, LogLimit, SubjectT

# Lines without a pause: enough for the peers of a small cluster when the daemon starts.
_LINES = 50


class LeaseLog:
    """The log of one backend's leases, written by the backend's own logger."""

    def __init__(self, log: logging.Logger) -> None:
        self._changes = LogLimit(log, "Subnets added or removed", _LINES)
        self._ignored = FailureLog(log, "Ignoring subnets")

    def added(self, subnet: IPv4Network, how: str = "") -> None:
        """Log that the backend follows a lease; ``how`` is appended to the line."""
        self._changes.message(logging.INFO, f"Subnet added: {subnet}{how}")

    def removed(self, subnet: IPv4Network) -> None:
        """Log that a lease is removed."""
        self._changes.message(logging.INFO, f"Subnet removed: {subnet}")

    def ignored(self, causes: Mapping[SubjectT, str]) -> None:
        """Log the ignored leases whose cause is a new one, in one line for each cause; no other lease is ignored."""
        self._ignored.note_all(causes, lambda subnets, cause: f"Ignoring subnet {listed(subnets)}: {cause}")

    def report(self) -> None:
        """Log how many lines the limit has suppressed, at most every two minutes."""
        self._changes.report()
        self._ignored.report()
