"""Executes plans: the asyncio loop between the TUN and the UDP socket.

On each wake-up the proxy reads what is there, in batches and with at most 64 reads in all, so that route changes,
renewals and shutdown never wait for traffic to stop.  The proxy never waits for further packets.  If the send buffer of
the socket is full, the proxy stops reading the TUN until the buffer has space: the TUN's queue fills, and TCP slows
down.  Buffers are allocated once.  If the device is gone, the proxy pauses until ``resume`` brings a new one, and
datagrams wait in the socket meanwhile.
Counterpart: proxy.c.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
from functools import partial

from flannelpy.datapath.engine import BATCH_BYTES, BATCH_PACKETS, MAX_PACKET, Engine, Plan, Run, Train
from flannelpy.errors import HostError
from flannelpy.linux.packet_loop import PacketLoop
from flannelpy.linux.tun import Tun
from flannelpy.linux.udp_socket import UdpQueue, UdpSocket
from flannelpy.packet import vnet_hdr
from flannelpy.packet.drops import DropReason

log = logging.getLogger(__name__)

# How long one queue is read before the others get their turn: a few batches.
_TURN_SECONDS = 0.0002


class Proxy:
    """Moves packets between the TUN and the socket from its construction until ``pause``.

    ``drops`` counts dropped packets by reason.  ``paused``: no packet moves until ``resume``; the proxy pauses itself
    when the device can be neither read nor written.  ``failure`` gets the exception of a fault in the packet path,
    which pauses the proxy, too.

    The engine's buffers and plans are borrowed: the proxy executes a plan, or keeps its unsent runs, before it reads
    into the same buffer again.
    """

    def __init__(self, tun: Tun, udp: UdpSocket, engine: Engine) -> None:
        """Needs a running PacketLoop."""
        self._udp = udp
        self._engine = engine
        self._tun_view = memoryview(engine.tun_buffer)
        headers = memoryview(engine.vnet_hdrs)
        self._header_views = [headers[at : at + vnet_hdr.SIZE] for at in range(0, len(headers), vnet_hdr.SIZE)]
        self._udp_view = memoryview(engine.udp_buffer)
        self._unsent: deque[Run] = deque()
        self.drops: Counter[DropReason] = Counter()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, PacketLoop)
        self._loop = loop
        self.failure: asyncio.Future[None] = loop.create_future()
        self.resume(tun)

    def resume(self, tun: Tun) -> None:
        """Move packets between ``tun`` and the socket, from now on."""
        self._tun = tun
        self.paused = False
        for queue in self._udp.queues:
            self._loop.add_packet_reader(queue.fileno(), partial(self._guarded, partial(self.inbound, queue)))
        if self._unsent:
            self._wait_for_send_buffer()
        else:
            self._read_tun()

    def pause(self) -> None:
        """Read and write neither device nor socket until ``resume``."""
        self.paused = True
        self._loop.remove_packet_reader(self._tun.fd)
        for queue in self._udp.queues:
            self._loop.remove_packet_reader(queue.fileno())
        self._loop.remove_writer(self._udp.fileno())

    def _read_tun(self) -> None:
        self._loop.add_packet_reader(self._tun.fd, partial(self._guarded, self.outbound))

    def _guarded(self, work: Callable[[int], None], fresh: bool) -> bool:
        """Do ``work`` and return False, or pause and return True on failure: a removed device stays readable.

        A packet that comes alone does not wait for the read that finds nothing behind it.
        """
        try:
            work(1 if fresh else BATCH_PACKETS)
        except HostError as error:
            log.error("%s", error)
            self.pause()
            return True
        except Exception as error:
            self.pause()
            if not self.failure.done():
                self.failure.set_exception(error)
            return True
        return False

    # From the TUN to the peers.

    def outbound(self, budget: int) -> None:
        """Read, plan and send until the TUN is empty, the send buffer is full or ``budget`` packets were read."""
        more = True
        while more and budget:
            lengths, more = self._read_batch(budget)
            budget -= len(lengths)
            if lengths:
                plan = self._engine.outbound(lengths, self._loop.time())
                self._unsent.extend(plan.runs)
                more = self._send_or_wait() and more
                self._write_to_tun(plan)

    def _read_batch(self, budget: int) -> tuple[list[int], bool]:
        """Read packets; return their lengths, and whether there may be more."""
        lengths: list[int] = []
        start = 0
        while start < BATCH_BYTES and len(lengths) < budget:
            length = self._tun.read_into(self._header_views[len(lengths)], self._tun_view[start : start + MAX_PACKET])
            if not length:
                return lengths, False
            lengths.append(length)
            start += length
        return lengths, True

    def _send_or_wait(self) -> bool:
        """Send the unsent runs; False if the send buffer is full, and then the TUN is not read until they are sent."""
        while self._unsent:
            run = self._unsent.popleft()
            length = len(run.data)
            several = length > run.segment_size
            if several and not self._udp.gso:
                self._unsent.extendleft(_one_by_one(run))
                continue
            reason = self._udp.send(run.data, run.segment_size, run.next_hop)
            if reason is None:
                run.tally.sent(length, run.segment_size)
            elif reason is DropReason.SEND_BUFFER_FULL:
                self._unsent.appendleft(run)
                self._wait_for_send_buffer()
                return False
            elif several:
                # One of its datagrams is too large for the path, or all together are for the network card.
                self._unsent.extendleft(_one_by_one(run))
            else:
                self.drops[reason] += 1
        return True

    def _wait_for_send_buffer(self) -> None:
        self._loop.remove_packet_reader(self._tun.fd)
        self._loop.add_writer(self._udp.fileno(), self._guarded, self._send_unsent, True)

    def _send_unsent(self, _: int) -> None:
        self._loop.remove_writer(self._udp.fileno())
        if self._send_or_wait():
            self._read_tun()

    # From the peers to the TUN.

    def inbound(self, queue: UdpQueue, budget: int) -> None:
        """Receive, plan and write until ``queue`` is empty, after ``budget`` trains, or when its turn is over."""
        now = self._loop.time()
        end = now + _TURN_SECONDS
        more = True
        while more and budget > 0 and now < end:
            trains, more = self._receive_batch(queue, budget)
            budget -= len(trains)
            if trains:
                plan = self._engine.inbound(trains, now)
                self._write_to_tun(plan)
                if plan.runs:
                    self._send_errors(plan)
                now = self._loop.time()

    def _receive_batch(self, queue: UdpQueue, budget: int) -> tuple[list[Train], bool]:
        """Receive trains; return them, and whether there may be more."""
        trains: list[Train] = []
        start = datagrams = 0
        while start < BATCH_BYTES and datagrams < BATCH_PACKETS and len(trains) < budget:
            train = queue.receive_into(self._udp_view[start : start + MAX_PACKET])
            if train is None:
                return trains, False
            trains.append(train)
            length, segment_size, _ = train
            start += length
            datagrams += length // segment_size if segment_size else 1
            if length > segment_size:
                budget = BATCH_PACKETS  # the rest of a super-packet follows its first train
        return trains, True

    def _write_to_tun(self, plan: Plan) -> None:
        for header, packet in plan.packets:
            if not self._tun.write(header, packet):
                self.drops[DropReason.TUN_WRITE_FAILED] += 1
        if plan.drops:
            self.drops.update(plan.drops)

    def _send_errors(self, plan: Plan) -> None:
        """Send ICMP errors; those that the send buffer has no space for are dropped."""
        for run in plan.runs:
            reason = self._udp.send(run.data, run.segment_size, run.next_hop)
            if reason is None:
                run.tally.sent(len(run.data), run.segment_size)
            else:
                self.drops[reason] += 1


def _one_by_one(run: Run) -> list[Run]:
    """Return the run's datagrams as runs of their own, last first."""
    starts = range(0, len(run.data), run.segment_size)
    return [run._replace(data=run.data[start : start + run.segment_size]) for start in reversed(starts)]
