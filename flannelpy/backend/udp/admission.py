"""Has the kernel turn unknown senders away, before what they send takes the room of what others send.

The engine looks at every sender all the same: the kernel's filter is late by a moment, and not there with very many
hosts.
"""

from __future__ import annotations

import asyncio

from flannelpy.backend.udp.routes import Routes
from flannelpy.linux.udp_socket import UdpSocket

# The filter is made anew for each change, but takes no more than a tenth of the time, however many follow each other.
_PAUSE_PER_SENDER = 20e-6


class Admission:
    """Keeps the socket's filter in step with the routes, from its making until ``close``."""

    def __init__(self, udp: UdpSocket, routes: Routes, port: int) -> None:
        """Needs a running event loop; every host sends from ``port``."""
        self._udp = udp
        self._routes = routes
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._due: asyncio.TimerHandle | None = None
        self._admit()

    def changed(self) -> None:
        """The routes are not what they were: within milliseconds the filter follows, once for all changes."""
        if self._due is None:
            self._due = self._loop.call_later(len(self._routes.by_public_ip) * _PAUSE_PER_SENDER, self._admit)

    def close(self) -> None:
        """Leave the socket alone from now on."""
        if self._due is not None:
            self._due.cancel()

    def _admit(self) -> None:
        self._due = None
        self._udp.accept_only(self._routes.by_public_ip, self._port)
