"""Gives each host a receive queue of its own, and has the kernel refuse most of what unknown senders send.

A host that sends more than we can take fills its own queue, and loses what it sends; the other hosts' datagrams don't
wait behind it.  With more hosts than queues, some share one.

The engine looks at every sender all the same: the kernel's program is late by a moment, and there are clusters too
large for it.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from flannelpy.datapath.queue_selection import OTHERS
from flannelpy.datapath.routes import Routes
from flannelpy.linux.udp_socket import UdpSocket

# The program is built again for each change, but takes no more than a tenth of the time, however many changes follow
# each other.
_PAUSE_PER_SENDER = 20e-6


class SenderQueues:
    """Keeps the socket's queues in step with the routes until ``close``."""

    def __init__(self, udp: UdpSocket, routes: Routes, port: int | None) -> None:
        """Needs a running event loop; ``port``: from which every host sends, None when the source is not checked."""
        self._udp = udp
        self._routes = routes
        self._port = port
        self._queues: dict[str, int] = {}  # of each public IP
        self._loop = asyncio.get_running_loop()
        self._due: asyncio.TimerHandle | None = None
        self._assign()
        if port is not None:
            udp.refuse_others()

    def changed(self) -> None:
        """The routes have changed: the queues follow within milliseconds, once for all changes."""
        if self._due is None:
            self._due = self._loop.call_later(len(self._routes.by_public_ip) * _PAUSE_PER_SENDER, self._assign)

    def settle(self) -> None:
        """Have the queues follow the routes at once, if they don't yet."""
        if self._due is not None:
            self._due.cancel()
            self._assign()

    def close(self) -> None:
        """Leave the socket alone from now on."""
        if self._due is not None:
            self._due.cancel()

    def _assign(self) -> None:
        """A host keeps its queue; a new one gets the queue that has the fewest hosts."""
        self._due = None
        self._queues = {ip: queue for ip, queue in self._queues.items() if ip in self._routes.by_public_ip}
        hosts = Counter(self._queues.values())
        shared = [queue for queue in range(len(self._udp.queues)) if queue != OTHERS] or [OTHERS]
        for public_ip in self._routes.by_public_ip:
            if public_ip not in self._queues:
                queue = min(shared, key=hosts.__getitem__)
                self._queues[public_ip] = queue
                hosts[queue] += 1
        self._udp.assign(self._queues, self._port)
