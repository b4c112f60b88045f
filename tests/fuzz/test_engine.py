"""Batches of anything: nothing is raised, nothing is lost, nothing is made up."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st
from packets import hop_taken, ipv4_packet

from flannelpy.backend.udp.engine import Batch, Engine, Plan
from flannelpy.backend.udp.icmp_limit import BURST, PER_SECOND, IcmpLimit
from flannelpy.backend.udp.routes import NextHop, Routes
from flannelpy.packet import icmp
from flannelpy.packet.drops import DropReason

OWN = IPv4Address("11.0.59.0")
LEASES = {
    IPv4Network("11.0.101.0/24"): NextHop("172.17.8.102", 8285),
    IPv4Network("11.0.55.0/24"): NextHop("172.17.8.103", 8285),
    IPv4Network("11.0.101.128/25"): NextHop("172.17.8.104", 8285),
    IPv4Network("11.0.64.0/20"): NextHop("172.17.8.105", 8285),
}
ADDRESSES = st.sampled_from(
    ["11.0.101.2", "11.0.101.3", "11.0.101.200", "11.0.55.2", "11.0.70.1", "11.0.254.2", "11.0.59.2", "224.0.0.1"]
) | st.ip_addresses(v=4).map(str)
PACKETS = st.builds(
    ipv4_packet,
    ADDRESSES,
    ADDRESSES,
    st.sampled_from([b"", bytes(8), bytes(100)]) | st.binary(max_size=40),
    ttl=st.sampled_from([0, 1, 2, 64]),
    protocol=st.sampled_from([1, 6, 17]),
    fragment=st.sampled_from([0, 0x4000, 0x2000, 7]),
    options=st.sampled_from([b"", bytes(4), bytes(40)]),
)
CUT = st.builds(lambda packet, at: packet[: at % len(packet)], PACKETS, st.integers(0))
BATCHES = st.lists(PACKETS | CUT | st.binary(max_size=40), max_size=64)
RUBBISH = st.binary(max_size=50)


def engine() -> Engine:
    routes = Routes()
    for subnet, next_hop in LEASES.items():
        routes.set(subnet, next_hop)
    return Engine(OWN, routes)


def scanned(address: bytes) -> NextHop | None:
    """The next hop by looking at every lease."""
    holding = [subnet for subnet in LEASES if IPv4Address(address) in subnet]
    return LEASES[max(holding, key=lambda subnet: subnet.prefixlen)] if holding else None


def why_not(packet: bytes) -> DropReason | None:
    """Why these bytes are no packet."""
    if len(packet) < 20:
        return DropReason.TRUNCATED
    version, words = divmod(packet[0], 16)
    if version != 4:
        return DropReason.NOT_IPV4
    if words < 5:
        return DropReason.BAD_HEADER
    if words * 4 > len(packet):
        return DropReason.TRUNCATED
    return None if int.from_bytes(packet[2:4], "big") == len(packet) else DropReason.BAD_LENGTH


def datagrams(plan: Plan) -> list[tuple[NextHop, bytes]]:
    """Those of all runs in order, after a look at the runs' shapes."""
    found = []
    for run in plan.runs:
        data = bytes(run.data)
        assert 0 < run.segment_size <= len(data)
        pieces = [data[start : start + run.segment_size] for start in range(0, len(data), run.segment_size)]
        found += [(run.next_hop, piece) for piece in pieces]
    return found


@given(BATCHES, RUBBISH)
def test_outbound_each_packet_is_sent_or_dropped_exactly_once(packets: list[bytes], behind: bytes) -> None:
    sent, dropped, answered = [], Counter[DropReason](), []
    for packet in packets:
        reason = why_not(packet)
        next_hop = None if reason else scanned(packet[16:20])
        if reason is None and next_hop is None:
            reason = DropReason.NO_ROUTE
        elif reason is None and packet[8] < 2:
            reason = DropReason.TTL_EXPIRED
        if reason is None:
            assert next_hop is not None
            sent.append((next_hop, hop_taken(packet)))
        else:
            dropped[reason] += 1
            answered.append((reason, packet))
    buffer = bytearray(b"".join(packets) + behind)
    plan = engine().outbound(Batch(buffer, list(map(len, packets))), 0.0)
    assert datagrams(plan) == sent
    assert plan.drops == dropped
    assert len(sent) + plan.drops.total() == len(packets)
    assert list(map(bytes, plan.packets)) == replies(answered)
    assert buffer.endswith(behind)


@given(BATCHES, RUBBISH)
def test_inbound_each_datagram_is_delivered_or_dropped_exactly_once(packets: list[bytes], behind: bytes) -> None:
    delivered, dropped, answered = [], Counter[DropReason](), []
    for packet in packets:
        reason = why_not(packet) or (DropReason.TTL_EXPIRED if packet[8] < 2 else None)
        if reason is None:
            delivered.append(hop_taken(packet))
        else:
            dropped[reason] += 1
            answered.append((reason, packet))
    buffer = bytearray(b"".join(packets) + behind)
    plan = engine().inbound(Batch(buffer, list(map(len, packets))), 0.0)
    assert list(map(bytes, plan.packets)) == delivered
    assert plan.drops == dropped
    assert len(delivered) + plan.drops.total() == len(packets)
    routed = [(scanned(reply[16:20]), reply) for reply in replies(answered)]
    assert datagrams(plan) == [(next_hop, reply) for next_hop, reply in routed if next_hop]
    assert buffer.endswith(behind)


def replies(dropped: list[tuple[DropReason, bytes]]) -> list[bytes]:
    """The ICMP errors for packets that were dropped within one moment: a burst for each source."""
    kinds = {DropReason.NO_ROUTE: icmp.NET_UNREACHABLE, DropReason.TTL_EXPIRED: icmp.TIME_EXCEEDED}
    sources: Counter[bytes] = Counter()
    found = []
    for reason, packet in dropped:
        if reason in kinds and icmp.may_be_answered(packet):
            sources[packet[12:16]] += 1
            if sources[packet[12:16]] <= BURST:
                found.append(icmp.error(kinds[reason], packet, OWN.packed))
    return found


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_bytes_of_any_kind_never_raise(packets: list[bytes]) -> None:
    lengths = list(map(len, packets))
    decider = engine()
    decider.outbound(Batch(bytearray(b"".join(packets)), lengths), 0.0)
    decider.inbound(Batch(bytearray(b"".join(packets)), lengths), 0.0)


@given(
    st.dictionaries(
        st.integers(0, 32).flatmap(
            lambda length: st.integers(0, 2**32 - 1).map(lambda at: IPv4Network((at, length), strict=False))
        ),
        st.integers(1, 5),
        max_size=12,
    ),
    st.lists(st.integers(0, 2**32 - 1), max_size=10),
    st.data(),
)
def test_a_look_up_finds_what_a_scan_of_all_leases_finds(
    leases: dict[IPv4Network, int], addresses: list[int], data: st.DataObject
) -> None:
    routes = Routes()
    for subnet, host in leases.items():
        routes.set(subnet, NextHop(str(host), 8285))
    gone = data.draw(st.sets(st.sampled_from(sorted(leases)))) if leases else set()
    for subnet in gone:
        routes.remove(subnet)
        del leases[subnet]
    assert len(routes) == len(leases)
    edges = [int(end) for subnet in leases for end in (subnet.network_address, subnet.broadcast_address)]
    for address in addresses + edges:
        holding = [subnet for subnet in leases if IPv4Address(address) in subnet]
        best = max(holding, key=lambda subnet: subnet.prefixlen, default=None)
        assert routes.lookup(address) == (None if best is None else NextHop(str(leases[best]), 8285))


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 2, allow_nan=False)), max_size=100))
def test_no_destination_gets_more_errors_than_burst_and_rate_allow(asked: list[tuple[int, float]]) -> None:
    limit = IcmpLimit()
    now = 0.0
    allowed: Counter[int] = Counter()
    for destination, pause in asked:
        now += pause
        allowed[destination] += limit.allow(destination, now)
        assert allowed[destination] <= BURST + now * PER_SECOND + 1e-6
