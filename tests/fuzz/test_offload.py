"""Super-packets and flows of every kind: packet code against oracle and scapy, and one form against the other.

All bytes are compared.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st
from scapy.layers import inet
from scapy.layers.inet import IP
from scapy.packet import Raw
from support import oracle
from support.oracle import VnetHeader
from support.packet_code import INSTALLED, INTERPRETED, coalesced, filled_up, grouped, segmented
from support.packets import (
    ACK,
    DONT_FRAGMENT,
    OWN_SUBNET,
    PSH,
    TCP,
    UDP,
    checksum,
    hop_taken,
    ipv4_packet,
    one_hop_on,
    tcp_segment,
    udp_datagram,
    unfinished,
    why_not,
    why_refused,
)
from support.strategies import (
    ADDRESSES,
    DESTINATIONS,
    NUMBERS,
    SOURCES,
    VNET_HEADERS,
    WORDS,
    damaged,
    payloads,
    streams,
    super_packets,
    tcp_packets,
    trains,
    udp_packets,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SUPER_PACKETS = super_packets(3000)
GSO_SIZES = st.integers(1, 200) | st.integers(1, 3100)
ANY_PACKETS = (
    SUPER_PACKETS
    | damaged(SUPER_PACKETS)
    | damaged(tcp_packets(payloads(0, 60)) | udp_packets(payloads(0, 60)))
    | st.builds(ipv4_packet, SOURCES, DESTINATIONS, st.binary(max_size=80), ttl=st.integers(0, 3))
)
MASKS = st.integers(0, 32).map(lambda length: 0xFFFFFFFF << (32 - length) & 0xFFFFFFFF)


@given(st.binary(max_size=400), st.data())
def test_sums_by_words_and_by_bytes_are_the_same_arithmetic(data: bytes, draw: st.DataObject) -> None:
    start = draw.draw(st.integers(0, len(data)))
    end = draw.draw(st.integers(start, len(data)))
    buffer = filled_up(data)
    expected = 0xFFFF - checksum(data[start:end])
    for code in (INSTALLED, INTERPRETED):
        assert code.checksum.wide_sum(buffer, memoryview(buffer).cast("I"), start, end) == expected
        assert code.checksum.ones_sum(buffer, start, end) == expected


@given(SUPER_PACKETS, GSO_SIZES, st.integers(0, 9))
def test_segments_are_those_of_the_oracle(packet: bytes, gso_size: int, before: int) -> None:
    expected = b"".join(oracle.segments(packet, gso_size))
    assert segmented(packet, gso_size, before=before, space=len(expected)) == expected


@given(ANY_PACKETS, st.integers(-1, 70000), st.integers(0, 9), st.integers(0, 6000))
def test_anything_is_segmented_or_refused(packet: bytes, gso_size: int, before: int, space: int) -> None:
    if why_not(packet):
        return
    l4 = (packet[0] & 0xF) * 4
    header = l4 + 8
    if packet[9] == TCP:
        header = l4 + (packet[l4 + 12] >> 4) * 4 if len(packet) > l4 + 12 and packet[l4 + 12] >= 0x50 else 65535
    sensible = gso_size > 0 and packet[9] in (TCP, UDP) and header < len(packet)
    expected = b"".join(oracle.segments(packet, gso_size)) if sensible else None
    if expected is not None and len(expected) > space:
        expected = None
    assert segmented(packet, gso_size, before=before, space=space) == expected


@given(streams(), st.data())
def test_coalesced_packets_segment_back_to_what_came_in(packets: list[bytes], data: st.DataObject) -> None:
    """The identification of what must not be fragmented means nothing, and is the only thing that may differ."""
    reasons = list(map(why_refused, packets))
    found = coalesced(data.draw(trains(packets)))
    assert found.refused == [(why, packet) for why, packet in zip(reasons, packets, strict=True) if why]
    given_on = oracle.all_written(found.packets)
    expected = [one_hop_on(packet) for why, packet in zip(reasons, packets, strict=True) if not why]
    assert list(map(oracle.as_merging_keeps_it, given_on)) == list(map(oracle.as_merging_keeps_it, expected))


@given(streams(), st.booleans(), st.booleans())
def test_without_merging_everything_is_given_on_as_it_came(packets: list[bytes], tcp: bool, udp: bool) -> None:
    found = coalesced([(packet, len(packet)) for packet in packets], tcp=tcp, udp=udp)
    merged = {packet[9] for header, packet in found.packets if any(header)}
    assert merged <= {protocol for protocol, merges in ((TCP, tcp), (UDP, udp)) if merges}
    if not (tcp or udp):
        expected = [one_hop_on(packet) for packet in packets if not why_refused(packet)]
        assert [packet for _, packet in found.packets] == expected


@st.composite
def mergeable(draw: st.DrawFn) -> tuple[bytes, int]:
    """A super-packet that came of a coalescer, or could have, and its gso_size."""
    gso_size = draw(st.integers(1, 300))
    payload = draw(payloads(gso_size + 1, gso_size * draw(st.integers(2, 64))))
    protocol = draw(st.sampled_from([TCP, UDP]))
    if protocol == TCP:
        options = draw(st.sampled_from([b"", b"\x01" * 12, bytes(40)]))
        flags = draw(st.sampled_from([ACK, ACK | PSH]))
        l4 = tcp_segment(payload, sequence=draw(NUMBERS), flags=flags, window=draw(WORDS), options=options)
    else:
        l4 = udp_datagram(payload)
    packet = ipv4_packet(
        "11.0.101.2",
        "11.0.59.2",
        l4,
        protocol=protocol,
        fragment=draw(st.sampled_from([0, DONT_FRAGMENT, 0x8000])),
        identification=draw(WORDS),
        ttl=draw(st.integers(2, 255)),
        tos=draw(st.integers(0, 255)),
    )
    return unfinished(packet), gso_size


@given(mergeable())
def test_a_super_packet_is_segmented_and_coalesced_to_itself(of: tuple[bytes, int]) -> None:
    packet, gso_size = of
    segments = segmented(packet, gso_size)
    assert segments is not None
    header = 28 if packet[9] == UDP else 20 + (packet[32] >> 4) * 4
    found = coalesced([(segments, header + gso_size)])
    gso_type, csum_offset = (1, 16) if packet[9] == TCP else (5, 6)
    expected = VnetHeader(1, gso_type, header, gso_size, 20, csum_offset).encode()
    assert found.packets == [(expected, hop_taken(packet))]
    assert not found.refused


@given(
    st.sampled_from([inet.TCP, inet.UDP]),
    st.fixed_dictionaries({"sport": WORDS, "dport": WORDS}),
    st.binary(max_size=60),
    st.integers(0, 3),
)
def test_checksums_are_finished_as_scapy_makes_them(
    layer: Callable[..., object], ports: dict[str, int], payload: bytes, before: int
) -> None:
    whole = bytes(IP(src="11.0.59.2", dst="11.0.101.2", ttl=64) / layer(**ports) / Raw(payload))
    header = VnetHeader(flags=1, csum_start=20, csum_offset=16 if whole[9] == TCP else 6)
    first = ipv4_packet("11.0.59.2", "11.0.55.2", bytes(before))
    found = grouped([(VnetHeader(), first), (header, unfinished(whole))], 0xFFFFFF00)
    assert found.data == first + whole


@given(ANY_PACKETS)
def test_a_packet_that_comes_alone_is_given_on_as_it_came(packet: bytes) -> None:
    if not why_refused(packet):
        assert coalesced([(packet, len(packet))]).packets == [(VnetHeader().encode(), one_hop_on(packet))]


@given(st.lists(st.tuples(VNET_HEADERS, ANY_PACKETS | st.binary(max_size=40)), max_size=12), MASKS)
def test_sorted_packets_are_neighbours_or_refused_and_cover_the_batch(
    packets: list[tuple[VnetHeader, bytes]], mask: int
) -> None:
    found = grouped(packets, mask)
    parts = [(start, end) for _, start, end, _, _ in found.groups]
    parts += [(start, end) for _, start, end in found.refused]
    covered = 0
    for start, end in sorted(parts):
        assert start == covered
        covered = end
    assert covered == sum(len(packet) for _, packet in packets)
    for destination, start, end, segment_size, gso_size in found.groups:
        assert gso_size == 0 or segment_size == end - start
        assert end - start <= max(65000, segment_size)
        assert -(-(end - start) // segment_size) <= 64
        for at in range(start, end, segment_size):
            own = found.data[at : min(at + segment_size, end)]
            assert why_not(own) is None
            assert own[8] > 1
            assert IPv4Address(own[16:20]) not in OWN_SUBNET
            assert (int.from_bytes(own[16:20], "big") ^ destination) & mask == 0


# One form against the other: the same numbers and bytes for anything.


@given(ANY_PACKETS, st.integers(-1, 70000), st.integers(0, 9), st.integers(0, 6000))
def test_both_forms_segment_alike(packet: bytes, gso_size: int, before: int, space: int) -> None:
    if why_not(packet):
        return
    one, other = (
        segmented(packet, gso_size, code=form, before=before, space=space) for form in (INSTALLED, INTERPRETED)
    )
    assert one == other


@given(st.lists(st.tuples(VNET_HEADERS, ANY_PACKETS | st.binary(max_size=40)), max_size=12), MASKS)
def test_both_forms_sort_alike(packets: list[tuple[VnetHeader, bytes]], mask: int) -> None:
    one, other = (grouped(packets, mask, code=form) for form in (INSTALLED, INTERPRETED))
    assert one == other


SUBNETS = st.builds(
    lambda address, length: IPv4Network((address, length), strict=False),
    st.sampled_from(["11.0.59.2", "11.0.101.2", "0.0.0.0", "255.255.255.255"]) | ADDRESSES,
    st.sampled_from([0, 8, 24, 30, 31, 32]),
)
BATCHES = streams() | st.lists(ANY_PACKETS | st.binary(max_size=60), max_size=12)


@given(BATCHES, st.data(), st.just(OWN_SUBNET) | SUBNETS, st.none() | st.lists(SUBNETS, max_size=3))
def test_both_forms_coalesce_alike(
    packets: list[bytes], data: st.DataObject, own: IPv4Network, subnets: list[IPv4Network] | None
) -> None:
    batch = data.draw(trains(packets))
    one, other = (coalesced(batch, code=form, own=own, subnets=subnets) for form in (INSTALLED, INTERPRETED))
    assert one == other


@given(BATCHES, SUBNETS, st.none() | st.lists(SUBNETS, max_size=3))
def test_with_any_subnets_only_packets_with_right_addresses_are_delivered(
    packets: list[bytes], own: IPv4Network, subnets: list[IPv4Network] | None
) -> None:
    reasons = [why_refused(packet, own, subnets) for packet in packets]
    found = coalesced([(packet, len(packet)) for packet in packets], tcp=False, udp=False, own=own, subnets=subnets)
    assert found.refused == [(why, packet) for why, packet in zip(reasons, packets, strict=True) if why]
    expected = [one_hop_on(packet) for why, packet in zip(reasons, packets, strict=True) if not why]
    assert [packet for _, packet in found.packets] == expected


@given(ANY_PACKETS | st.binary(max_size=60), st.integers(0, 5))
def test_both_forms_see_and_change_a_header_alike(packet: bytes, before: int) -> None:
    found = []
    for form in (INSTALLED, INTERPRETED):
        data = bytearray(b"\x45" * before + packet)
        reason = form.ipv4.check(data, before, before + len(packet))
        fields = () if reason else (form.ipv4.destination(data, before), form.ipv4.ip_ttl(data, before))
        if not reason and packet[8]:
            form.ipv4.decrement_ttl(data, before)
        found.append((reason, fields, data))
    assert found[0] == found[1]
