"""Batches of anything: nothing is raised, nothing is lost, nothing is made up."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st
from support import oracle
from support.batches import datagrams, for_the_tun, inbound_of_many, inbound_trains, outbound
from support.oracle import VnetHeader
from support.packets import (
    BOUND,
    ICMP,
    NETWORK,
    OWN_SUBNET,
    PORT,
    TCP,
    UDP,
    are_own_datagrams,
    checksum,
    hop_taken,
    ipv4_packet,
    numbers,
    one_hop_on,
    udp_datagram,
    why_not,
    why_refused,
)
from support.strategies import (
    DESTINATIONS,
    SOURCES,
    VNET_HEADERS,
    damaged,
    payloads,
    streams,
    super_packets,
    tcp_packets,
    trains,
    udp_packets,
)

from flannelpy.datapath.engine import Engine
from flannelpy.datapath.icmp_limit import BURST, PER_SECOND, TOTAL_BURST, TOTAL_PER_SECOND, IcmpLimit
from flannelpy.datapath.routes import NextHop, Routes
from flannelpy.datapath.source_check import SourceCheck
from flannelpy.packet import icmp, vnet_hdr
from flannelpy.packet.drops import DropReason

OWN = OWN_SUBNET.network_address
LEASES = {
    IPv4Network("11.0.101.0/24"): NextHop("172.17.8.102", 8285),
    IPv4Network("11.0.55.0/24"): NextHop("172.17.8.103", 8285),
    IPv4Network("11.0.101.128/25"): NextHop("172.17.8.104", 8285),
    IPv4Network("11.0.64.0/20"): NextHop("172.17.8.105", 8285),
    # Leased when SubnetLen was another: it has our own subnet in it.
    IPv4Network("11.0.48.0/20"): NextHop("172.17.8.106", 8285),
    IPv4Network("11.0.56.0/24"): NextHop("172.17.8.106", 8285),
    # And this one is in ours.
    IPv4Network("11.0.59.16/28"): NextHop("172.17.8.106", 8285),
}
ADDRESSES = st.sampled_from(
    [
        "11.0.101.2",
        "11.0.101.3",
        "11.0.101.200",
        "11.0.55.2",
        "11.0.58.2",
        "11.0.70.1",
        "11.0.254.2",
        "11.0.59.2",
        "11.0.59.17",
        "224.0.0.1",
    ]
) | st.ip_addresses(v=4).map(str)


def batches(sources: st.SearchStrategy[str], destinations: st.SearchStrategy[str]) -> st.SearchStrategy[list[bytes]]:
    """Packets between these addresses, and what is no packet."""
    packets = st.builds(
        ipv4_packet,
        sources,
        destinations,
        st.sampled_from([b"", bytes(8), bytes(100), udp_datagram(ports=(PORT, PORT))]) | st.binary(max_size=40),
        ttl=st.sampled_from([0, 1, 2, 64]),
        protocol=st.sampled_from([1, 6, 17]),
        fragment=st.sampled_from([0, 0x4000, 0x2000, 7]),
        options=st.sampled_from([b"", bytes(4), bytes(40)]),
    )
    cut = st.builds(lambda packet, at: packet[: at % len(packet)], packets, st.integers(0))
    return st.lists(packets | cut | st.binary(max_size=40), max_size=64)


BATCHES = batches(ADDRESSES | st.sampled_from([str(BOUND), str(OWN)]), ADDRESSES)
ARRIVING = batches(SOURCES | ADDRESSES, DESTINATIONS) | streams()
STRANGER = NextHop("172.17.8.150", PORT)
SENDERS = st.sampled_from([*sorted(set(LEASES.values())), STRANGER, NextHop("172.17.8.102", 40000)])
RUBBISH = st.binary(max_size=50)


def engine(source_check: SourceCheck = SourceCheck.PEER) -> Engine:
    routes = Routes()
    for subnet, next_hop in LEASES.items():
        routes.set(subnet, next_hop)
    return Engine(OWN_SUBNET, routes, network=NETWORK, bound=BOUND, port=PORT, source_check=source_check)


def scanned(address: bytes) -> NextHop | None:
    """The next hop by looking at every lease; none when it is here."""
    if IPv4Address(address) in OWN_SUBNET:
        return None
    holding = [subnet for subnet in LEASES if IPv4Address(address) in subnet]
    return LEASES[max(holding, key=lambda subnet: subnet.prefixlen)] if holding else None


def is_broadcast(address: bytes) -> bool:
    """Whether it is the last address of the network, of our subnet or of a leased one, or the network's first."""
    number = IPv4Address(address)
    holding = [subnet for subnet in LEASES if number in subnet]
    smallest = max(holding, key=lambda subnet: subnet.prefixlen, default=None)
    if number in (NETWORK.broadcast_address, OWN_SUBNET.broadcast_address):
        return True
    if smallest is None:
        return number == NETWORK.network_address
    return number == smallest.broadcast_address


@given(BATCHES, RUBBISH)
def test_outbound_each_packet_is_sent_or_dropped_exactly_once(packets: list[bytes], behind: bytes) -> None:
    sent, dropped = [], Counter[DropReason]()
    # Errors about destinations without a lease come first.
    answered: tuple[list[tuple[DropReason, bytes]], ...] = ([], [])
    for packet, is_own in zip(packets, are_own_datagrams(packets), strict=True):
        if is_own:
            dropped[DropReason.OWN_DATAGRAM] += 1
            continue
        reason = why_not(packet)
        next_hop = None if reason else scanned(packet[16:20])
        ends_here = reason is not None or packet[8] < 2 or IPv4Address(packet[16:20]) in OWN_SUBNET
        if reason is None and next_hop is None:
            reason = DropReason.NO_ROUTE
        elif reason is None and ends_here:
            reason = DropReason.TTL_EXPIRED
        if reason is None:
            assert next_hop is not None
            sent.append((next_hop, hop_taken(packet)))
        else:
            dropped[reason] += 1
            answered[ends_here].append((reason, packet))
    plan = outbound(engine(), packets, behind=behind)
    assert datagrams(plan) == sent
    assert not any(IPv4Address(datagram[16:20]) in OWN_SUBNET for _, datagram in sent)
    assert Counter(plan.drops) == dropped
    assert len(sent) + len(plan.drops) == len(packets)
    assert for_the_tun(plan) == [(vnet_hdr.PLAIN, reply) for reply in replies(answered[0] + answered[1])]


def refusal(packet: bytes, sender: NextHop, source_check: SourceCheck) -> DropReason | None:
    """Why what comes from there is dropped."""
    subnets = [subnet for subnet, next_hop in LEASES.items() if next_hop.public_ip == sender.public_ip]
    if source_check is not SourceCheck.OFF and not subnets:
        return DropReason.UNKNOWN_SENDER
    if source_check is not SourceCheck.OFF and sender.port != PORT:
        return DropReason.WRONG_SENDER_PORT
    return why_refused(packet, OWN_SUBNET, subnets if source_check is SourceCheck.STRICT else None)


@st.composite
def sent_trains(draw: st.DrawFn, packets: list[bytes]) -> list[tuple[bytes, int, NextHop]]:
    """In trains that have a sender each."""
    known = NextHop("172.17.8.102", PORT)
    most = draw(st.sampled_from([known, known, NextHop("172.17.8.106", PORT), STRANGER]))
    return [(*train, draw(st.just(most) | SENDERS)) for train in draw(trains(packets))]


def single(came: list[tuple[bytes, int, NextHop]]) -> list[tuple[bytes, NextHop]]:
    """The datagrams of trains, each with its sender."""
    return [
        (data[start : start + size], sender)
        for data, size, sender in came
        for start in range(0, len(data) or 1, size or 1)
    ]


@given(ARRIVING, RUBBISH, st.sampled_from(SourceCheck), st.data())
def test_inbound_each_datagram_is_delivered_or_dropped_exactly_once(
    packets: list[bytes], behind: bytes, source_check: SourceCheck, data: st.DataObject
) -> None:
    delivered, dropped, answered = [], Counter[DropReason](), []
    came = data.draw(sent_trains(packets))
    for packet, sender in single(came):
        reason = refusal(packet, sender, source_check)
        if reason is None:
            delivered.append(one_hop_on(packet))
        else:
            dropped[reason] += 1
            answered.append((reason, packet))
    plan = inbound_of_many(engine(source_check), came, behind=behind)
    given_on = oracle.all_written(for_the_tun(plan))
    assert list(map(oracle.as_merging_keeps_it, given_on)) == list(map(oracle.as_merging_keeps_it, delivered))
    assert Counter(plan.drops) == dropped
    assert len(delivered) + len(plan.drops) == len(packets)
    routed = [(scanned(reply[16:20]), reply) for reply in replies(answered)]
    assert datagrams(plan) == [(next_hop, reply) for next_hop, reply in routed if next_hop]


@given(ARRIVING, st.sampled_from(SourceCheck), st.data())
def test_only_packets_from_other_hosts_for_containers_here_go_to_the_device(
    packets: list[bytes], source_check: SourceCheck, data: st.DataObject
) -> None:
    plan = inbound_of_many(engine(source_check), data.draw(sent_trains(packets)))
    for packet in oracle.all_written(for_the_tun(plan)):
        assert why_not(packet) is None
        assert IPv4Address(packet[12:16]) not in OWN_SUBNET
        assert IPv4Address(packet[16:20]) in OWN_SUBNET
        assert IPv4Address(packet[16:20]) != OWN_SUBNET.broadcast_address
    for next_hop, reply in datagrams(plan):
        assert why_not(reply) is None
        assert (reply[9], reply[12:16], reply[20:22]) == (ICMP, OWN.packed, bytes(icmp.TIME_EXCEEDED))
        assert (checksum(reply[:20]), checksum(reply[20:])) == (0, 0)
        assert next_hop == scanned(reply[16:20])


def sensible(header: VnetHeader, packet: bytes) -> bool:
    """Whether the kernel could mean a super-packet, or an unfinished checksum, by this."""
    l4 = (packet[0] & 0xF) * 4
    if not header.gso_type:
        return not header.flags & 1 or (
            header.csum_start >= l4 and header.csum_start + header.csum_offset + 2 <= len(packet)
        )
    return header.gso_size > 0 and header.gso_type & 0x7F == (1 if packet[9] == TCP else 5)


def segments(header: VnetHeader, packet: bytes) -> list[bytes]:
    """What it is sent as; empty when the packet has no such header."""
    if not header.gso_type:
        finish = header.flags & 1
        return [oracle.finished(packet, header.csum_start, header.csum_offset) if finish else packet]
    l4 = (packet[0] & 0xF) * 4
    length = 8
    if packet[9] == TCP:
        length = (packet[l4 + 12] >> 4) * 4 if len(packet) > l4 + 12 else 0
    fits = packet[9] in (TCP, UDP) and length >= 8 + 12 * (packet[9] == TCP) and l4 + length < len(packet)
    return oracle.segments(packet, header.gso_size) if fits else []


TO_LEASES = st.sampled_from(
    [subnet.network_address.packed for subnet in LEASES] + [bytes((11, 0, 254, 2)), bytes((11, 0, 59, 2))]
)
LYING = st.tuples(
    VNET_HEADERS,
    super_packets(300)
    | damaged(super_packets(300))
    | damaged(tcp_packets(payloads(0, 9)) | udp_packets(payloads(0, 9))),
    TO_LEASES,
).map(lambda drawn: (drawn[0], with_destination(drawn[1], drawn[2])))


def with_destination(packet: bytes, address: bytes) -> bytes:
    return packet[:16] + address + packet[20:]


@given(st.lists(LYING, max_size=20))
def test_outbound_with_any_vnet_headers_each_packet_is_sent_or_dropped_once(
    batch: list[tuple[VnetHeader, bytes]],
) -> None:
    """And what is sent are the segments of the oracle, with one hop less."""
    sent, dropped = [], Counter[DropReason]()
    for (header, packet), is_own in zip(batch, are_own_datagrams([packet for _, packet in batch]), strict=True):
        if is_own:
            dropped[DropReason.OWN_DATAGRAM] += 1
            continue
        next_hop = None if why_not(packet) else scanned(packet[16:20])
        reason = why_not(packet)
        pieces: list[bytes] = []
        if not reason and not sensible(header, packet):
            reason = DropReason.BAD_VNET_HDR
        elif not reason and next_hop is None:
            reason = DropReason.NO_ROUTE
        elif not reason and packet[8] < 2:
            reason = DropReason.TTL_EXPIRED
        elif not reason:
            pieces = segments(header, one_hop_on(packet))
            reason = None if pieces else DropReason.BAD_VNET_HDR
        if reason:
            dropped[reason] += 1
        assert next_hop is not None or not pieces
        sent += [(next_hop, piece) for piece in pieces]
    plan = outbound(engine(), [packet for _, packet in batch], headers=[header for header, _ in batch])
    assert datagrams(plan) == sent
    assert Counter(plan.drops) == dropped


def replies(dropped: list[tuple[DropReason, bytes]]) -> list[bytes]:
    """The ICMP errors for packets that were dropped within one moment: a burst for each source."""
    kinds = {DropReason.NO_ROUTE: icmp.NET_UNREACHABLE, DropReason.TTL_EXPIRED: icmp.TIME_EXCEEDED}
    sources: Counter[bytes] = Counter()
    found: list[bytes] = []
    for reason, packet in dropped:
        if (
            reason in kinds
            and icmp.may_be_answered(packet)
            and not any(map(is_broadcast, (packet[12:16], packet[16:20])))
        ):
            sources[packet[12:16]] += 1
            if sources[packet[12:16]] <= BURST and len(found) < TOTAL_BURST:
                found.append(icmp.error(kinds[reason], packet, OWN.packed))
    return found


@given(
    st.lists(st.tuples(st.binary(max_size=10), st.binary(min_size=1, max_size=200)), max_size=20), st.integers(1, 99)
)
def test_bytes_of_any_kind_never_raise(batch: list[tuple[bytes, bytes]], segment_size: int) -> None:
    headers = [VnetHeader.decode(header.ljust(vnet_hdr.SIZE, b"\0")) for header, _ in batch]
    packets = [packet for _, packet in batch]
    decider = engine()
    outbound(decider, packets, headers=headers)
    inbound_trains(decider, [(packet, segment_size) for packet in packets])


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
        routes.set(subnet, NextHop(str(data.draw(st.integers(1, 5))), 8285))  # another one before
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
        route = routes.lookup(address)
        assert (route and route.next_hop) == (None if best is None else NextHop(str(leases[best]), 8285))
    assert {public_ip: set(sender.tallies) for public_ip, sender in routes.by_public_ip.items()} == {
        str(host): {numbers(subnet) for subnet in leases if leases[subnet] == host} for host in leases.values()
    }


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 2, allow_nan=False)), max_size=100))
def test_no_destination_gets_more_errors_than_burst_and_rate_allow(asked: list[tuple[int, float]]) -> None:
    limit = IcmpLimit()
    now = 0.0
    allowed: Counter[int] = Counter()
    for destination, pause in asked:
        now += pause
        allowed[destination] += limit.allow(destination, now)
        assert allowed[destination] <= BURST + now * PER_SECOND + 1e-6


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.floats(0, 0.01, allow_nan=False)), max_size=300))
def test_all_together_get_no_more_errors_than_total_burst_and_rate_allow(asked: list[tuple[int, float]]) -> None:
    limit = IcmpLimit()
    now = 5.0
    allowed = 0
    for destination, pause in asked:
        now += pause
        allowed += limit.allow(destination, now)
        assert allowed <= TOTAL_BURST + (now - 5.0) * TOTAL_PER_SECOND + 1e-6
