"""Gives each peer a receive queue of its own, and has the kernel drop most datagrams of unknown senders.

If a peer sends more than we can process, its own queue overflows and its own datagrams are dropped; the other peers'
datagrams do not wait behind them.  With more peers than queues, some peers share one.

The engine checks every sender all the same: the kernel's program is updated with a delay, and very large clusters do
not fit into it.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from flannelpy.datapath.queue_selection import UNKNOWN_SENDERS
from flannelpy.datapath.routes import Routes
from flannelpy.linux.udp_socket import UdpSocket

# Each change builds the program again.  The pause limits that to about a tenth of the processor time.
_PAUSE_PER_SENDER = 20e-6


class SenderQueues:
    """Keeps the socket's queues in step with the routes until ``close``."""

    def __init__(self, udp: UdpSocket, routes: Routes, port: int | None) -> None:
        """Assign the queues, in a running event loop.

        ``port``: the source port of all peers; None if the source is not checked.
        """
        self._udp = udp
        self._routes = routes
        self._port = port
        self._queues: dict[str, int] = {}  # by public IP
        self._loop = asyncio.get_running_loop()
        self._due: asyncio.TimerHandle | None = None
        self._assign()
        if port is not None:
            udp.sample_unknown_senders()

    def changed(self) -> None:
        """Update the queues after a change of the routes, within milliseconds and once for several changes."""
        if self._due is None:
            self._due = self._loop.call_later(len(self._routes.by_public_ip) * _PAUSE_PER_SENDER, self._assign)

    def settle(self) -> None:
        """Update the queues at once, if an update is due."""
        if self._due is not None:
            self._due.cancel()
            self._assign()

    def close(self) -> None:
        """Stop updating the queues."""
        if self._due is not None:
            self._due.cancel()

    def _assign(self) -> None:
        """Keep the queue of each known peer, and give a new peer the queue that has the fewest."""
        self._due = None
        self._queues = {ip: queue for ip, queue in self._queues.items() if ip in self._routes.by_public_ip}
        hosts = Counter(self._queues.values())
        shared = [queue for queue in range(len(self._udp.queues)) if queue != UNKNOWN_SENDERS] or [UNKNOWN_SENDERS]
        for public_ip in self._routes.by_public_ip:
            if public_ip not in self._queues:
                queue = min(shared, key=hosts.__getitem__)
                self._queues[public_ip] = queue
                hosts[queue] += 1
        self._udp.assign(self._queues, self._port)
