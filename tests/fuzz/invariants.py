"""Drives an engine with mutants, and holds its plans against rules that are written down here once more.

All plans are looked at by rules that are cheap; of some, the whole outcome is foretold.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

from fuzz.mutation import Given, Mutator, Train
from support import oracle
from support.batches import datagrams, for_the_tun
from support.packets import BOUND, NETWORK, OWN_SUBNET, PORT, TCP, UDP, checksum, one_hop_on, why_not, why_refused

from flannelpy.datapath.engine import BATCH_BYTES, BATCH_PACKETS, Engine, Plan
from flannelpy.datapath.icmp_limit import MAX_DESTINATIONS
from flannelpy.datapath.routes import NextHop, Routes
from flannelpy.datapath.source_check import SourceCheck
from flannelpy.packet.drops import DropReason

if TYPE_CHECKING:
    from collections.abc import Iterator

LEASES = {
    IPv4Network("11.0.101.0/24"): NextHop("172.17.8.102", 8285),
    IPv4Network("11.0.55.0/24"): NextHop("172.17.8.103", 8285),
    IPv4Network("11.0.101.128/25"): NextHop("172.17.8.104", 8285),
    # Leased when SubnetLen was another: the first has our own subnet in it, the second is in ours.
    IPv4Network("11.0.48.0/20"): NextHop("172.17.8.106", 8285),
    IPv4Network("11.0.59.16/28"): NextHop("172.17.8.106", 8285),
}
_STRANGER = NextHop("172.17.8.150", PORT)
_WRONG_PORT = NextHop("172.17.8.102", 40000)
_SENDERS = [_STRANGER] * 4 + [NextHop("172.17.8.102", PORT)] * 3 + [NextHop("172.17.8.106", PORT), _WRONG_PORT]
_REFUSED_SENDERS = {_STRANGER: DropReason.UNKNOWN_SENDER, _WRONG_PORT: DropReason.WRONG_SENDER_PORT}
_NETWORK, _MASK = int(OWN_SUBNET.network_address), int(OWN_SUBNET.netmask)
_LAST = int(OWN_SUBNET.broadcast_address)
_OWN_ADDRESS = OWN_SUBNET.network_address.packed
_GSO_HEADER_FIELDS = {1: (TCP, 16), 5: (UDP, 6)}
#: One plan in so many is foretold.
_SAMPLE = 3
_MOST_FORETOLD = 3000  # datagrams

#: Who may send, and whether the device takes super-packets.
VARIANTS = [(SourceCheck.PEER, True), (SourceCheck.STRICT, True), (SourceCheck.OFF, True), (SourceCheck.STRICT, False)]


class Fuzzer:
    """An engine under fire; ``tally`` says what became of what it was given."""

    def __init__(self, mutator: Mutator, source_check: SourceCheck, merge: bool) -> None:
        routes = Routes()
        for subnet, next_hop in LEASES.items():
            routes.set(subnet, next_hop)
        self._mutator = mutator
        self._source_check = source_check
        self._any_sender = source_check is SourceCheck.OFF
        self._engine = Engine(
            OWN_SUBNET,
            routes,
            network=NETWORK,
            bound=BOUND,
            port=PORT,
            source_check=source_check,
            merge_tcp=merge,
            merge_udp=merge,
        )
        self._now = 0.0
        self._plans = 0
        self.tally: Counter[str] = Counter()

    def table_size(self) -> int:
        """Entries of what the engine remembers."""
        return len(self._engine._icmp_limit._buckets)

    def inbound(self) -> int:
        """A batch of datagrams; returns how many of them are mutants."""
        trains = self._trains()
        data = b"".join(train.data for train, _ in trains)
        with _reported(trains):
            self._engine.udp_buffer[: len(data)] = data
            shapes = [(len(train.data), train.segment_size, sender) for train, sender in trains]
            plan = self._engine.inbound(shapes, self._tick())
            self._check_inbound(plan, trains)
            if self._is_sample():
                self._check_foretold_inbound(plan, trains)
        mutants = sum(train.mutants for train, _ in trains)
        self.tally["in: mutants"] += mutants
        return mutants

    def outbound(self) -> int:
        """A batch of packets from the TUN; returns how many."""
        batch = self._given()
        with _reported(batch):
            self._engine.tun_buffer[: sum(len(packet) for _, packet in batch)] = b"".join(packet for _, packet in batch)
            headers = b"".join(header.encode() for header, _ in batch)
            self._engine.vnet_hdrs[: len(headers)] = headers
            plan = self._engine.outbound([len(packet) for _, packet in batch], self._tick())
            self._check_outbound(plan, len(batch))
            if self._is_sample():
                self._check_foretold_outbound(plan, batch)
        self.tally["out: packets"] += len(batch)
        return len(batch)

    def _tick(self) -> float:
        self._now += 0.01
        return self._now

    def _is_sample(self) -> bool:
        self._plans += 1
        return self._plans % _SAMPLE == 0

    def _trains(self) -> list[tuple[Train, NextHop]]:
        """As many as one batch may have, from senders known and unknown."""
        mutator = self._mutator
        found: list[tuple[Train, NextHop]] = []
        size, most = 0, 1 + mutator.below(BATCH_PACKETS)
        while size < BATCH_BYTES and len(found) < most:
            train = mutator.train()
            found.append((train, mutator.pick(_SENDERS)))
            size += len(train.data)
        return found

    def _given(self) -> list[Given]:
        found: list[Given] = []
        size, most = 0, 1 + self._mutator.below(BATCH_PACKETS)
        while size < BATCH_BYTES and len(found) < most:
            found.append(self._mutator.given())
            size += len(found[-1].packet)
        return found

    # The way in

    def _check_inbound(self, plan: Plan, trains: list[tuple[Train, NextHop]]) -> None:
        count = 0
        refused = Counter[DropReason | None]()
        known: set[NextHop] = set()
        for train, sender in trains:
            arrived = -(-len(train.data) // train.segment_size) if train.data else 1
            count += arrived
            refused[_REFUSED_SENDERS.get(sender)] += arrived
            if sender not in _REFUSED_SENDERS:
                known.add(sender)
        subnets = [_numbers(subnet) for subnet, next_hop in LEASES.items() if next_hop in known]
        passed = sum(self._check_for_the_tun(header, packet, subnets) for header, packet in plan.packets)
        assert passed + len(plan.drops) == count
        for reason in _REFUSED_SENDERS.values():
            assert plan.drops.count(reason) == (0 if self._any_sender else refused[reason])
        for run in plan.runs:
            reply = bytes(run.data)
            self._check_reply(reply, (11,))
            assert (run.segment_size, run.next_hop) == (len(reply), _holder(_number(reply, 16)))
        self._count("in", plan)
        self.tally["in: datagrams"] += count
        self.tally["in: passed"] += passed

    def _check_for_the_tun(self, header: bytes, packet: bytes | memoryview, subnets: list[tuple[int, int]]) -> int:
        """Whether it may go there; returns how many datagrams it stands for."""
        length = len(packet)
        assert length >= 20
        assert 0x45 <= packet[0] <= 0x4F
        assert length >= (packet[0] & 0xF) * 4
        assert packet[2] << 8 | packet[3] == length
        assert packet[8] >= 1
        source, destination = _number(packet, 12), _number(packet, 16)
        assert destination & _MASK == _NETWORK
        assert destination != _LAST
        assert source & _MASK != _NETWORK
        if self._source_check is SourceCheck.STRICT:
            assert any(source & mask == network for network, mask in subnets)
        return self._check_super_packet(header, packet) if any(header) else 1

    def _check_super_packet(self, header: bytes, packet: bytes | memoryview) -> int:
        vnet = oracle.VnetHeader.decode(header)
        protocol, csum_offset = _GSO_HEADER_FIELDS[vnet.gso_type]
        l4_header = (packet[32] >> 4) * 4 if protocol == TCP else 8
        assert (packet[0], packet[9]) == (0x45, protocol)
        assert vnet == (1, vnet.gso_type, 20 + l4_header, vnet.gso_size, 20, csum_offset)
        assert vnet.csum_start + vnet.csum_offset + 2 <= vnet.hdr_len < len(packet)
        assert vnet.gso_size > 0
        segments = -(-(len(packet) - vnet.hdr_len) // vnet.gso_size)
        assert 2 <= segments <= 64
        self.tally["in: merged"] += segments
        return segments

    def _check_foretold_inbound(self, plan: Plan, trains: list[tuple[Train, NextHop]]) -> None:
        """Every datagram, in order, to its last byte."""
        arrived = [(datagram, sender) for train, sender in trains for datagram in train.datagrams()]
        if len(arrived) > _MOST_FORETOLD:
            return
        reasons = [self._why_refused(datagram, sender) for datagram, sender in arrived]
        passed = [one_hop_on(datagram) for (datagram, _), why in zip(arrived, reasons, strict=True) if not why]
        given_on = oracle.all_written(for_the_tun(plan))
        assert list(map(oracle.as_merging_keeps_it, given_on)) == list(map(oracle.as_merging_keeps_it, passed))
        assert Counter(plan.drops) == Counter(filter(None, reasons))
        self.tally["in: foretold"] += len(arrived)

    def _why_refused(self, datagram: bytes, sender: NextHop) -> DropReason | None:
        if sender in _REFUSED_SENDERS and not self._any_sender:
            return _REFUSED_SENDERS[sender]
        subnets = [subnet for subnet, next_hop in LEASES.items() if next_hop.public_ip == sender.public_ip]
        return why_refused(datagram, OWN_SUBNET, subnets if self._source_check is SourceCheck.STRICT else None)

    # The way out

    def _check_outbound(self, plan: Plan, count: int) -> None:
        assert len(plan.drops) <= count
        for run in plan.runs:
            data = bytes(run.data)
            size = run.segment_size
            assert 0 < len(data) <= 65535
            starts = range(0, len(data), size)
            assert len(starts) == 1 or (len(starts) <= 64 and len(data) <= 65000)
            for start in starts:
                _check_sent(data[start : start + size], run.next_hop)
            self.tally["out: sent"] += len(starts)
        for header, packet in plan.packets:
            assert not any(header)
            self._check_reply(bytes(packet), (3, 11))
        self._count("out", plan)

    def _check_foretold_outbound(self, plan: Plan, batch: list[Given]) -> None:
        """Every packet, in order, to its last byte."""
        sent: list[tuple[NextHop, bytes]] = []
        drops: Counter[DropReason] = Counter()
        for given in batch:
            outcome = _foretold(given)
            if isinstance(outcome, DropReason):
                drops[outcome] += 1
            else:
                sent += outcome
        assert datagrams(plan) == sent
        assert Counter(plan.drops) == drops
        self.tally["out: foretold"] += len(batch)

    def _check_reply(self, reply: bytes, types: tuple[int, ...]) -> None:
        """An ICMP error of ours to one host."""
        assert (reply[0], reply[9], reply[12:16]) == (0x45, 1, _OWN_ADDRESS)
        assert reply[2] << 8 | reply[3] == len(reply)
        assert reply[20] in types
        assert (checksum(reply[:20]), checksum(reply[20:])) == (0, 0)
        assert 0 < reply[16] < 224
        assert reply[16] != 127
        assert reply[8] >= 1

    def _count(self, way: str, plan: Plan) -> None:
        for reason in plan.drops:
            self.tally[f"{way}: {reason.name}"] += 1
        self.tally[f"{way}: ICMP errors"] += len(plan.packets if way == "out" else plan.runs)
        assert self.table_size() <= MAX_DESTINATIONS


def _check_sent(packet: bytes, next_hop: NextHop) -> None:
    assert len(packet) >= 20
    assert packet[0] >> 4 == 4
    assert packet[2] << 8 | packet[3] == len(packet)
    assert packet[8] >= 1
    assert _holder(_number(packet, 16)) == next_hop


def _foretold(given: Given) -> list[tuple[NextHop, bytes]] | DropReason:
    """What is sent for one packet, or why nothing is."""
    header, packet = given
    if reason := why_not(packet):
        return reason
    if not _makes_sense(header, packet):
        return DropReason.BAD_VNET_HDR
    next_hop = _holder(_number(packet, 16))
    if next_hop is None:
        return DropReason.NO_ROUTE
    if packet[8] < 2:
        return DropReason.TTL_EXPIRED
    pieces = _pieces(header, one_hop_on(packet))
    return [(next_hop, piece) for piece in pieces] if pieces else DropReason.BAD_VNET_HDR


def _makes_sense(header: oracle.VnetHeader, packet: bytes) -> bool:
    """Whether the kernel could mean a super-packet, or an unfinished checksum, by this."""
    if header.gso_type:
        return header.gso_size > 0 and header.gso_type & 0x7F == (1 if packet[9] == TCP else 5)
    end = header.csum_start + header.csum_offset + 2
    return not header.flags & 1 or ((packet[0] & 0xF) * 4 <= header.csum_start and end <= len(packet))


def _pieces(header: oracle.VnetHeader, packet: bytes) -> list[bytes]:
    """What it is sent as; empty when its own headers are not whole."""
    if not header.gso_type:
        return [oracle.finished(packet, header.csum_start, header.csum_offset) if header.flags & 1 else packet]
    l4 = (packet[0] & 0xF) * 4
    least = {TCP: 20, UDP: 8}.get(packet[9], len(packet))
    if l4 + least >= len(packet):
        return []
    length = (packet[l4 + 12] >> 4) * 4 if packet[9] == TCP else 8
    return oracle.segments(packet, header.gso_size) if least <= length < len(packet) - l4 else []


@lru_cache(maxsize=4096)
def _holder(address: int) -> NextHop | None:
    """The peer that leases it, by a search of all leases; None if it is ours."""
    if IPv4Address(address) in OWN_SUBNET:
        return None
    holding = [subnet for subnet in LEASES if IPv4Address(address) in subnet]
    return LEASES[max(holding, key=lambda subnet: subnet.prefixlen)] if holding else None


def _numbers(subnet: IPv4Network) -> tuple[int, int]:
    return int(subnet.network_address), int(subnet.netmask)


def _number(packet: bytes | memoryview, at: int) -> int:
    return int.from_bytes(packet[at : at + 4], "big")


@contextmanager
def _reported(batch: object) -> Iterator[None]:
    """Add the input to the message of every failed assertion."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"This was the batch: {batch!r}")
        raise
