"""Readiness, status and watchdog keep-alive of the daemon, as systemd expects them.

Counterpart: main.go, which sends READY=1 and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from flannelpy.linux import systemd
from flannelpy.report import DaemonReport

# When the first network is up, the daemon waits this long for the others before it reports readiness.
_READY_PATIENCE = 10.0
# Keep-alive messages in each interval of the watchdog, so that two may be lost.
_KEEP_ALIVES = 3


class SystemdNotifier:
    """Sends STATUS= with each update, and READY=1 once: when all networks are up, or 10 s after the first."""

    def __init__(
        self, report: Callable[[], DaemonReport], render: Callable[[DaemonReport], str], on_ready: Callable[[], None]
    ) -> None:
        """``render`` makes the status text of a report; ``on_ready`` is called after READY=1 was sent."""
        self._report = report
        self._render = render
        self._on_ready = on_ready
        self._is_ready = False
        self._patience: asyncio.TimerHandle | None = None

    def update(self) -> None:
        """Send the daemon's present state; the caller calls it after each change."""
        report = self._report()
        are_up = [network.state.is_up for network in report.networks]
        if not self._is_ready and are_up and all(are_up):
            self._send_ready(report)
            return
        systemd.notify(self._status(report))
        if not self._is_ready and any(are_up) and self._patience is None:
            self._patience = asyncio.get_running_loop().call_later(_READY_PATIENCE, self._end_patience)

    def _end_patience(self) -> None:
        self._patience = None
        report = self._report()
        if not self._is_ready and any(network.state.is_up for network in report.networks):
            self._send_ready(report)

    def _send_ready(self, report: DaemonReport) -> None:
        self._is_ready = True
        systemd.notify("READY=1", self._status(report))
        self._on_ready()

    def _status(self, report: DaemonReport) -> str:
        return f"STATUS={self._render(report)}"


async def keep_alive(is_live: Callable[[], bool]) -> None:
    """Send keep-alive messages to systemd's watchdog while ``is_live``; return at once if there is no watchdog."""
    allowed = systemd.watchdog_seconds()
    while allowed:
        if is_live():
            systemd.notify("WATCHDOG=1")
        await asyncio.sleep(allowed / _KEEP_ALIVES)
