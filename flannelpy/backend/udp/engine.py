"""Decides what becomes of a batch of packets: batch in, plan out.  Pure: no I/O, no clock, no logging.

A packet is changed where it lies (one hop off its TTL), and the plan refers to it there, so a batch's buffer must stay
untouched until its plan is carried out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import NamedTuple

from flannelpy.backend.udp.icmp_limit import IcmpLimit
from flannelpy.backend.udp.routes import NextHop, Routes
from flannelpy.packet import icmp, ipv4
from flannelpy.packet.drops import DropReason


class Batch(NamedTuple):
    """Packets that were read in one go: they lie in ``buffer`` one after the other, from its start."""

    buffer: bytearray
    lengths: list[int]


class Run(NamedTuple):
    """Datagrams for one next hop, all of ``segment_size`` bytes but for the last, which may be shorter."""

    next_hop: NextHop
    segment_size: int
    data: memoryview | bytes


@dataclass(slots=True)
class Plan:
    """What the proxy has to do: send the runs, write the packets to the TUN, count the drops."""

    runs: list[Run] = field(default_factory=list)
    packets: list[memoryview | bytes] = field(default_factory=list)
    drops: Counter[DropReason] = field(default_factory=Counter)


class Engine:
    """The forwarding decisions of one host, whose address on the overlay is ``tun_address``."""

    def __init__(self, tun_address: IPv4Address, routes: Routes) -> None:
        self._address = tun_address.packed
        self._routes = routes
        self._icmp_limit = IcmpLimit()

    def outbound(self, batch: Batch, now: float) -> Plan:
        """Packets that came from the TUN: to the next hops that lease their destinations."""
        plan = Plan()
        runs = _RunBuilder(plan.runs, batch.buffer)
        start = 0
        for length in batch.lengths:
            end = start + length
            reason = self._send(runs, batch.buffer, start, end)
            if reason:
                plan.drops[DropReason(reason)] += 1
                reply = self._icmp_error(reason, batch.buffer, start, end, now)
                if reply:
                    plan.packets.append(reply)
            start = end
        runs.close()
        return plan

    def inbound(self, batch: Batch, now: float) -> Plan:
        """Packets that came in datagrams: to the TUN."""
        plan = Plan()
        view = memoryview(batch.buffer)
        start = 0
        for length in batch.lengths:
            end = start + length
            reason = ipv4.check(batch.buffer, start, end) or _take_hop(batch.buffer, start)
            if reason:
                plan.drops[DropReason(reason)] += 1
                self._answer_over_the_wire(plan, reason, batch.buffer, start, end, now)
            else:
                plan.packets.append(view[start:end])
            start = end
        return plan

    def _send(self, runs: _RunBuilder, buffer: bytearray, start: int, end: int) -> int:
        """Put one packet into a run; 0, or the DropReason with the packet as it was."""
        reason = ipv4.check(buffer, start, end)
        if reason:
            return reason
        next_hop = self._routes.lookup(ipv4.destination(buffer, start))
        if next_hop is None:
            return DropReason.NO_ROUTE
        reason = _take_hop(buffer, start)
        if not reason:
            runs.add(next_hop, start, end)
        return reason

    def _answer_over_the_wire(
        self, plan: Plan, reason: int, buffer: bytearray, start: int, end: int, now: float
    ) -> None:
        """An error about a packet of another host goes straight back to that host: the TUN is for our own."""
        reply = self._icmp_error(reason, buffer, start, end, now)
        next_hop = self._routes.lookup(ipv4.source(buffer, start)) if reply else None
        if next_hop is not None:
            plan.runs.append(Run(next_hop, len(reply), reply))

    def _icmp_error(self, reason: int, buffer: bytearray, start: int, end: int, now: float) -> bytes:
        """What the packet's source is told, empty when it must not or need not be told anything."""
        kind = _ICMP_ERRORS.get(reason)
        if kind is None:
            return b""
        packet = bytes(buffer[start:end])
        if not icmp.may_be_answered(packet) or not self._icmp_limit.allow(ipv4.source(buffer, start), now):
            return b""
        return icmp.error(kind, packet, self._address)


_ICMP_ERRORS: dict[int, tuple[int, int]] = {
    DropReason.NO_ROUTE: icmp.NET_UNREACHABLE,
    DropReason.TTL_EXPIRED: icmp.TIME_EXCEEDED,
}


def _take_hop(buffer: bytearray, start: int) -> int:
    """One off the TTL; 0, or TTL_EXPIRED with the packet as it was."""
    if ipv4.ip_ttl(buffer, start) <= 1:
        return DropReason.TTL_EXPIRED
    ipv4.take_hop(buffer, start)
    return 0


class _RunBuilder:
    """Groups neighbouring packets of one next hop and one length; a shorter one ends its run."""

    def __init__(self, runs: list[Run], buffer: bytearray) -> None:
        self._runs = runs
        self._view = memoryview(buffer)
        self._next_hop: NextHop | None = None
        self._segment_size = self._start = self._end = 0
        self._open = False

    def add(self, next_hop: NextHop, start: int, end: int) -> None:
        length = end - start
        fits = self._open and start == self._end and next_hop == self._next_hop and length <= self._segment_size
        if not fits:
            self.close()
            self._next_hop, self._segment_size, self._start = next_hop, length, start
        self._end = end
        self._open = length == self._segment_size

    def close(self) -> None:
        """The run so far, if any, is complete."""
        if self._next_hop is not None:
            self._runs.append(Run(self._next_hop, self._segment_size, self._view[self._start : self._end]))
        self._next_hop, self._open = None, False
