"""Logs which leases of other hosts a backend follows: one line each, in the words of flanneld, up to a limit.

Leases can come and go as often as the store takes them.
Counterpart: the log lines of handleSubnetEvents in backend/udp/udp.go, vxlan/vxlan.go and hostgw/hostgw.go.
"""

from __future__ import annotations

import logging
import time
from ipaddress import IPv4Network

from flannelpy.logs import LogLimit

# Lines that may come at once: the hosts of a small cluster, when the daemon starts.
_LINES = 50


class LeaseLog:
    """Writes to the backend's own log."""

    def __init__(self, log: logging.Logger) -> None:
        self._changes = LogLimit(log, "Subnets added or removed", _LINES)
        self._ignored = LogLimit(log, "Ignoring subnets")

    def added(self, subnet: IPv4Network, how: str = "") -> None:
        """The lease is followed from now on."""
        self._changes.message(logging.INFO, f"Subnet added: {subnet}{how}", time.monotonic())

    def removed(self, subnet: IPv4Network) -> None:
        """It is no longer."""
        self._changes.message(logging.INFO, f"Subnet removed: {subnet}", time.monotonic())

    def ignored(self, subnet: IPv4Network, cause: str) -> None:
        """It leads nowhere."""
        self._ignored.message(logging.ERROR, f"Ignoring subnet {subnet}: {cause}", time.monotonic())

    def report(self) -> None:
        """Log how many lines were left out, every two minutes."""
        self._changes.report(time.monotonic())
        self._ignored.report(time.monotonic())
