"""Executes plans: the asyncio loop between the TUN and the UDP socket.

Each wake-up reads what is there, at most 64 packets, and carries the engine's plan for them out, so route changes,
renewals and shutdown never wait for traffic to stop.  Buffers are allocated once.
Counterpart: proxy.c.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Never

from flannelpy.backend.udp.engine import Batch, Engine, Plan, Run
from flannelpy.errors import HostError
from flannelpy.linux.tun import Tun
from flannelpy.linux.udp_socket import UdpSocket
from flannelpy.packet.drops import DropReason

_BATCH = 64
# Any packet fits behind a full batch of any others: nothing is ever cut, also from hosts with a larger MTU.
_MAX_PACKET = 65535


class Proxy:
    """Moves packets from its making until ``close``; ``drops`` counts what went no further."""

    def __init__(self, tun: Tun, udp: UdpSocket, engine: Engine) -> None:
        """Needs a running event loop."""
        self._tun = tun
        self._udp = udp
        self._engine = engine
        self._buffer = bytearray(_BATCH * _MAX_PACKET)
        self._view = memoryview(self._buffer)
        self.drops: Counter[DropReason] = Counter()
        self._loop = asyncio.get_running_loop()
        self._failure: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(tun.fd, self._guarded, self._from_tun)
        self._loop.add_reader(udp.fileno(), self._guarded, self._from_udp)

    async def failure(self) -> Never:
        """Wait for what no later packet could overcome.  Raises HostError."""
        await self._failure
        raise AssertionError("the future holds nothing but an exception")

    def close(self) -> None:
        """Leave device and socket alone from now on."""
        self._loop.remove_reader(self._tun.fd)
        self._loop.remove_reader(self._udp.fileno())

    def _guarded(self, on_readable: Callable[[float], None]) -> None:
        """A device that is gone stays readable: stop listening, or the loop would spin."""
        try:
            on_readable(self._loop.time())
        except HostError as error:
            self.close()
            self._failure.set_exception(error)

    def _from_tun(self, now: float) -> None:
        lengths: list[int] = []
        start = 0
        while len(lengths) < _BATCH and (length := self._tun.read_into(self._view[start : start + _MAX_PACKET])):
            lengths.append(length)
            start += length
        self._execute(self._engine.outbound(Batch(self._buffer, lengths), now))

    def _from_udp(self, now: float) -> None:
        lengths: list[int] = []
        start = 0
        while len(lengths) < _BATCH:
            length = self._udp.receive_into(self._view[start : start + _MAX_PACKET])
            if length is None:
                break
            lengths.append(length)
            start += length
        self._execute(self._engine.inbound(Batch(self._buffer, lengths), now))

    def _execute(self, plan: Plan) -> None:
        for run in plan.runs:
            self._send(run)
        for packet in plan.packets:
            if not self._tun.write(packet):
                self.drops[DropReason.TUN_REFUSED] += 1
        self.drops.update(plan.drops)

    def _send(self, run: Run) -> None:
        for start in range(0, len(run.data), run.segment_size):
            reason = self._udp.send(run.data[start : start + run.segment_size], run.next_hop)
            if reason is not None:
                self.drops[reason] += 1
