"""Decides what happens to a batch of packets: batch in, plan out.  Pure: no I/O, no clock, no logging.

Start here.  The way of a packet, in the order of the calls, each as file:function in flannelpy/:

Outbound, from a container to a peer; linux/packet_loop.py calls step 1 when the TUN is readable.

1. backend/udp/proxy.py:Proxy.outbound           reads a batch from the TUN into ``tun_buffer``
2. datapath/engine.py:Engine.outbound            looks up next hops and makes the plan
3. packet/group.py:Grouper.group                 checks packets, and groups those for one subnet
4. packet/segment.py:Segmenter.segment           cuts super-packets into the packets of the wire
5. linux/udp_socket.py:UdpSocket.send            sends each run of the plan with one system call

Inbound, from a peer to a container; linux/packet_loop.py calls step 6 when a queue of the socket is readable.

6. backend/udp/proxy.py:Proxy.inbound            asks for a batch, and executes its plan
7. linux/udp_socket.py:UdpQueue.receive_into     receives one train of datagrams into ``udp_buffer``
8. datapath/engine.py:Engine.inbound             checks the senders and makes the plan
9. packet/coalesce.py:Coalescer.add              checks packets, and merges them into super-packets
10. linux/tun.py:Tun.write                       writes each packet of the plan to the TUN

The engine owns the buffers that packets are read into, and changes packets there.  A plan is borrowed: its views point
into these buffers, and are valid until the next call for the same direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple, TypeAlias

from flannelpy.datapath.icmp_limit import IcmpLimit
from flannelpy.datapath.routes import NextHop, Route, Routes, Sender
from flannelpy.datapath.source_check import SourceCheck
from flannelpy.packet import headers as hdr
from flannelpy.packet import icmp, vnet_hdr
from flannelpy.packet.coalesce import Coalescer
from flannelpy.packet.drops import DropReason
from flannelpy.packet.group import Grouper, PacketGroup
from flannelpy.packet.segment import Segmenter
from flannelpy.packet.tally import Tally, count

MAX_PACKET = 65535
#: A batch ends with this many packets or bytes, so that it fits into the processor's cache.
BATCH_PACKETS = 64
BATCH_BYTES = 65536

# A full batch and the packet that filled it, and spare bytes behind it: a wrong header length may point there.
_BUFFER = BATCH_BYTES + MAX_PACKET + 65
# All segments of a batch, unless its gso_size is absurdly small.
_SEGMENTS_BUFFER = 1 << 20


#: (length, segment_size, sender) of equal datagrams that the kernel delivered as one; sender is (public IP, port).
Train: TypeAlias = tuple[int, int, tuple[str, int]]


class Run(NamedTuple):
    """Datagrams for one next hop, all of ``segment_size`` bytes but for the last, which may be shorter.

    ``data`` is borrowed from the engine: valid until the next call for the same direction.  ``tally``: counts those
    that are sent.
    """

    next_hop: NextHop
    segment_size: int
    data: memoryview | bytes
    tally: Tally


@dataclass(slots=True)
class Plan:
    """What the proxy has to do: send the runs, write the packets (with vnet headers) to the TUN, count the drops.

    Runs and packets are borrowed from the engine: valid until the next call for the same direction.
    """

    runs: list[Run] = field(default_factory=list)
    packets: list[tuple[bytes, memoryview | bytes]] = field(default_factory=list)
    drops: list[DropReason] = field(default_factory=list)


class Engine:
    """The forwarding decisions of the host that leases ``subnet``; its own address there is the first one.

    The caller reads packets from the TUN into ``tun_buffer``, without gaps from its start, their vnet headers into
    ``vnet_hdrs`` in the same way, and received datagrams into ``udp_buffer``.
    """

    def __init__(
        self,
        subnet: IPv4Network,
        routes: Routes,
        *,
        network: IPv4Network,
        bound: IPv4Address,
        port: int,
        source_check: SourceCheck = SourceCheck.PEER,
        merge_tcp: bool = True,
        merge_udp: bool = True,
    ) -> None:
        """``bound``: the address of our own socket; ``port``: the port from which every peer sends.

        ``merge_tcp``, ``merge_udp``: whether the plans may write super-packets of that protocol to the TUN.
        """
        own = int(subnet.network_address), int(subnet.netmask)
        self._address = subnet.network_address.packed
        self._own_address = own[0]
        self._routes = routes
        self._port = port
        self._any_sender = source_check is SourceCheck.OFF
        self._strict = source_check is SourceCheck.STRICT
        self._icmp_limit = IcmpLimit()
        self._broadcasts = {int(network.broadcast_address), int(subnet.broadcast_address)}
        self._all_zeros = int(network.network_address)
        #: The last sender, as (address, port), whose datagrams were dropped for UNKNOWN_SENDER or WRONG_SENDER_PORT.
        self.refused_senders: dict[DropReason, tuple[str, int]] = {}
        self._allocate(own, (int(bound), port), merge_tcp, merge_udp)

    def _allocate(self, own: tuple[int, int], socket: tuple[int, int], merge_tcp: bool, merge_udp: bool) -> None:
        """Allocate the buffers, and create what works in them; ``own`` and ``socket`` are pairs of numbers."""
        self.tun_buffer = bytearray(_BUFFER)
        self.vnet_hdrs = bytearray(BATCH_PACKETS * vnet_hdr.SIZE)
        self.udp_buffer = bytearray(_BUFFER)
        segments = bytearray(_SEGMENTS_BUFFER)
        self._tun_view = memoryview(self.tun_buffer)
        self._udp_view = memoryview(self.udp_buffer)
        self._segments_view = memoryview(segments)
        self._grouper = Grouper(self.tun_buffer, self.vnet_hdrs, own, socket)
        self._segmenter = Segmenter(self.tun_buffer, segments)
        self._coalescer = Coalescer(self.udp_buffer, bytearray(_BUFFER), own, merge_tcp, merge_udp)

    def outbound(self, lengths: list[int], now: float) -> Plan:
        """Return the plan for packets of these ``lengths`` that were read from the TUN at time ``now``, in seconds."""
        plan = Plan()
        self._grouper.group(lengths, self._routes.mask)
        segments_end = 0
        for group in self._grouper.groups:
            route = self._routes.lookup(group.destination)
            if route is None:
                self._drop_group(plan, group, now)
            elif group.gso_size:
                segments_end = self._send_super_packet(plan, route, group, segments_end)
            else:
                _, start, end, segment_size, _ = group
                self._grouper.decrement_ttls(start, end, segment_size)
                plan.runs.append(Run(route.next_hop, segment_size, self._tun_view[start:end], route.tally))
        for reason, start, end in self._grouper.refused:
            self._drop(plan, reason, start, end, now)
        return plan

    def inbound(self, trains: Sequence[Train], now: float) -> Plan:
        """Return the plan for the ``trains`` that were received at time ``now``, in seconds."""
        coalescer = self._coalescer
        coalescer.begin(now)
        plan = Plan([], coalescer.packets, [])
        start = 0
        for length, segment_size, sender in trains:
            peer = self._routes.by_public_ip.get(sender[0])
            if (peer is not None and sender[1] == self._port) or self._any_sender:
                tally = None if peer is None else peer.tally
                if tally is None:
                    tally = self._tally_of_first(peer, start, length)
                if self._strict and peer is not None:
                    coalescer.allow_sources(peer.tallies)
                coalescer.add(start, start + length, segment_size, tally)
            else:
                reason = DropReason.UNKNOWN_SENDER if peer is None else DropReason.WRONG_SENDER_PORT
                self.refused_senders[reason] = sender
                plan.drops += [reason] * count(length, segment_size)
            start += length
        coalescer.finish()
        for number, start, end in coalescer.refused:
            plan.drops.append(_REASONS[number])
            self._answer_peer(plan, number, start, end, now)
        return plan

    def _tally_of_first(self, peer: Sender | None, start: int, length: int) -> Tally | None:
        """Return the tally for a train by the source of its first packet, if the sender has no or several subnets."""
        if length < hdr.IP_MIN_HEADER:
            return None
        source = _address(self._udp_view, start + hdr.IP_SOURCE)
        if peer:
            return peer.tally_of(source)
        route = self._routes.lookup(source)
        return route.tally if route else None

    def _send_super_packet(self, plan: Plan, route: Route, packet: PacketGroup, at: int) -> int:
        """Write the segments behind those of earlier super-packets, and add their runs; return where they end."""
        _, start, end, size, gso_size = packet
        self._grouper.decrement_ttls(start, end, size)
        segment_size = self._segmenter.header_length(start) + gso_size
        segments_end = self._segmenter.segment(start, end, gso_size, at)
        if not segments_end:
            plan.drops.append(DropReason.BAD_VNET_HDR)
            return at
        step = max(1, min(hdr.MAX_SEND_SEGMENTS, hdr.MAX_SEND_BYTES // segment_size)) * segment_size
        for run_start in range(at, segments_end, step):
            run_end = min(run_start + step, segments_end)
            data = self._segments_view[run_start:run_end]
            plan.runs.append(Run(route.next_hop, segment_size, data, route.tally))
        return segments_end

    def _drop_group(self, plan: Plan, group: PacketGroup, now: float) -> None:
        """Drop packets for a destination that no peer leases."""
        for start in range(group.start, group.end, group.segment_size):
            end = min(start + group.segment_size, group.end)
            self._drop(plan, DropReason.NO_ROUTE, start, end, now)

    def _drop(self, plan: Plan, reason: int, start: int, end: int, now: float) -> None:
        """Drop a packet from the TUN, and write an ICMP error for its sender to the TUN."""
        if (
            reason == DropReason.TTL_EXPIRED
            and self._routes.lookup(_address(self._tun_view, start + hdr.IP_DESTINATION)) is None
        ):
            reason = DropReason.NO_ROUTE
        plan.drops.append(_REASONS[reason])
        if reason in _ICMP_ERRORS and not self._icmp_limit.is_spent(now):
            reply = self._icmp_error(reason, self._tun_view[start:end], now)
            if reply:
                plan.packets.append((vnet_hdr.PLAIN, reply))

    def _answer_peer(self, plan: Plan, reason: int, start: int, end: int, now: float) -> None:
        """Send the ICMP error about a peer's packet straight back to that peer; the TUN is for packets to this host."""
        if reason in _ICMP_ERRORS and not self._icmp_limit.is_spent(now):
            packet = self._udp_view[start:end]
            reply = self._icmp_error(reason, packet, now)
            route = self._routes.lookup(_address(packet, hdr.IP_SOURCE)) if reply else None
            if route is not None:
                plan.runs.append(Run(route.next_hop, len(reply), reply, route.tally))

    def _icmp_error(self, reason: int, packet: memoryview, now: float) -> bytes:
        """Return the ICMP error for the packet's source; empty if RFC 1122 or the rate limit forbids one."""
        source, destination = _address(packet, hdr.IP_SOURCE), _address(packet, hdr.IP_DESTINATION)
        if not icmp.may_be_answered(packet) or self._is_broadcast(source) or self._is_broadcast(destination):
            return b""
        if not self._icmp_limit.allow(source, now):
            return b""
        return icmp.error(_ICMP_ERRORS[reason], packet, self._address)

    def _is_broadcast(self, address: int) -> bool:
        """Whether it is the broadcast address of the network, our subnet or a peer's, or all zeros and no host's."""
        if address in self._broadcasts or self._routes.is_broadcast(address):
            return True
        return address == self._all_zeros != self._own_address and self._routes.lookup(address) is None


_REASONS = {int(reason): reason for reason in DropReason}
_ICMP_ERRORS: dict[int, tuple[int, int]] = {
    DropReason.NO_ROUTE: icmp.NET_UNREACHABLE,
    DropReason.TTL_EXPIRED: icmp.TIME_EXCEEDED,
}


def _address(packet: memoryview, at: int) -> int:
    return int.from_bytes(packet[at : at + 4], "big")
