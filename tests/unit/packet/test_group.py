"""Batches from the TUN become groups that can be sent together, with checksums completed."""

from __future__ import annotations

from ipaddress import IPv4Address
from itertools import accumulate

import pytest
from support import oracle
from support.oracle import VnetHeader
from support.packet_code import grouped
from support.packets import (
    BOUND,
    DONT_FRAGMENT,
    ICMP,
    MORE_FRAGMENTS,
    OWN_SUBNET,
    PORT,
    TCP,
    hop_taken,
    ipv4_packet,
    numbers,
    tcp_segment,
    udp_datagram,
    unfinished,
    with_checksum,
)

from flannelpy.packet.drops import DropReason
from flannelpy.packet.group import Grouper

CONTAINER = "11.0.59.2"
A, ALSO_A, B = "11.0.101.2", "11.0.101.9", "11.0.55.2"
BY_24 = 0xFFFFFF00
PLAIN = VnetHeader()


def to(destination: str, length: int = 100, ttl: int = 63) -> bytes:
    return ipv4_packet(CONTAINER, destination, bytes(length - 20), ttl=ttl)


def sorted_lengths(packets: list[bytes], mask: int = BY_24) -> list[tuple[str, int, list[int]]]:
    """(first destination, segment size, lengths of the packets) of each."""
    ends = list(accumulate(map(len, packets)))
    found = []
    for destination, start, end, segment_size, gso_size in grouped([(PLAIN, packet) for packet in packets], mask)[0]:
        assert gso_size == 0
        assert end in ends
        own = [len(packet) for packet, stop in zip(packets, ends, strict=True) if start < stop <= end]
        assert sum(own) == end - start
        found.append((str(IPv4Address(destination)), segment_size, own))
    return found


@pytest.mark.parametrize(
    ("packets", "expected"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([to(A)], [(A, 100, [100])], id="one"),
        pytest.param([to(A)] * 3, [(A, 100, [100] * 3)], id="equal lengths"),
        pytest.param([to(A, ttl=2)], [(A, 100, [100])], id="the last hop but one"),
        pytest.param([to(A), to(ALSO_A), to(A)], [(A, 100, [100] * 3)], id="one subnet"),
        pytest.param([to(ALSO_A), to(A)], [(ALSO_A, 100, [100] * 2)], id="the first destination counts"),
        pytest.param([to(A), to(B), to(A)], [(A, 100, [100]), (B, 100, [100]), (A, 100, [100])], id="order is kept"),
        pytest.param([to(A), to(A, 99)], [(A, 100, [100, 99])], id="the last may be shorter"),
        pytest.param([to(A), to(A, 99), to(A, 99)], [(A, 100, [100, 99]), (A, 99, [99])], id="and is the last"),
        pytest.param([to(A), to(A, 99), to(A)], [(A, 100, [100, 99]), (A, 100, [100])], id="same length again"),
        pytest.param([to(A, 99), to(A)], [(A, 99, [99]), (A, 100, [100])], id="a longer one starts a group"),
        pytest.param([to(A), to(B, 99)], [(A, 100, [100]), (B, 99, [99])], id="a shorter one elsewhere"),
        pytest.param([to(A), to(A)[:-1], to(A)], [(A, 100, [100]), (A, 100, [100])], id="one refused in between"),
        pytest.param([to(A), to(A, ttl=1), to(A)], [(A, 100, [100]), (A, 100, [100])], id="one that expires"),
        pytest.param([to(A)] * 64, [(A, 100, [100] * 64)], id="64 segments"),
        pytest.param([to(A, 20)] * 63 + [to(B, 20)], [(A, 20, [20] * 63), (B, 20, [20])], id="63 of the least length"),
        pytest.param([to(A, 1000)] * 63 + [to(A, 21)], [(A, 1000, [1000] * 63 + [21])], id="63 and a shorter one"),
        pytest.param([to(A, 32500)] * 3, [(A, 32500, [32500] * 2), (A, 32500, [32500])], id="65,000 bytes"),
        pytest.param([to(A, 13001)] * 4 + [to(A, 12996)], [(A, 13001, [13001] * 4 + [12996])], id="with a shorter one"),
        pytest.param([to(A, 13001)] * 5, [(A, 13001, [13001] * 4), (A, 13001, [13001])], id="65,005 bytes are more"),
        pytest.param([to(A, 32501), to(A, 32500)], [(A, 32501, [32501]), (A, 32500, [32500])], id="65,001 bytes, too"),
        pytest.param([to(A, 65535), to(A, 20)], [(A, 65535, [65535]), (A, 20, [20])], id="the largest alone"),
    ],
)
def test_neighbours_are_of_one_subnet_and_length(
    packets: list[bytes], expected: list[tuple[str, int, list[int]]]
) -> None:
    assert sorted_lengths(packets) == expected


def test_more_than_64_segments_are_never_sent_together() -> None:
    assert sorted_lengths([to(A)] * 130) == [(A, 100, [100] * 64), (A, 100, [100] * 64), (A, 100, [100] * 2)]


@pytest.mark.parametrize(
    ("mask", "expected"),
    [(0, 1), (0xFF000000, 1), (0xFFFF0000, 1), (BY_24, 2), (0xFFFFFFF8, 3), (0xFFFFFFFF, 3)],
)
def test_the_mask_says_what_a_subnet_is(mask: int, expected: int) -> None:
    assert len(sorted_lengths([to(A), to(ALSO_A), to(B)], mask)) == expected


@pytest.mark.parametrize("mask", [0, 0xFFFF0000, BY_24, 0xFFFFFFFF])
def test_with_any_mask_our_own_subnet_is_left_out(mask: int) -> None:
    packets = [to("11.0.58.255"), to("11.0.59.0"), to("11.0.59.255"), to("11.0.60.0")]
    found = grouped([(PLAIN, packet) for packet in packets], mask)
    assert found.refused == [(DropReason.NO_ROUTE, 100, 200), (DropReason.NO_ROUTE, 200, 300)]
    assert [(start, end) for _, start, end, _, _ in found.groups] == [(0, 100), (300, 400)]


def test_hops_are_taken_later_and_packets_without_a_vnet_header_stay_as_they_are() -> None:
    packets = [to(A), to(B, 99), to(A, ttl=1), to(A)[:-1], unfinished(ipv4_packet(CONTAINER, A, udp_datagram(b"x")))]
    assert grouped([(PLAIN, packet) for packet in packets], BY_24).data == b"".join(packets)


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (to(A)[:19], DropReason.TRUNCATED),
        (b"\x60" + bytes(47), DropReason.NOT_IPV4),
        (b"\x44" + to(A)[1:], DropReason.BAD_HEADER),
        (to(A)[:-1], DropReason.BAD_LENGTH),
        (to(A, ttl=1), DropReason.TTL_EXPIRED),
        (to(A, ttl=0), DropReason.TTL_EXPIRED),
        (to("11.0.59.0"), DropReason.NO_ROUTE),
        (to("11.0.59.255", ttl=1), DropReason.NO_ROUTE),
    ],
)
def test_what_cannot_be_sent_is_refused_where_it_lies(packet: bytes, reason: DropReason) -> None:
    found = grouped([(PLAIN, to(A, 60)), (PLAIN, packet), (PLAIN, to(A, 60))], BY_24)
    assert found.refused == [(reason, 60, 60 + len(packet))]
    assert [(start, end) for _, start, end, _, _ in found.groups] == [
        (0, 60),
        (60 + len(packet), 120 + len(packet)),
    ]


def tcp(payload: bytes, ip_options: bytes = b"", options: bytes = b"") -> bytes:
    return ipv4_packet(CONTAINER, A, tcp_segment(payload, options=options), protocol=TCP, options=ip_options)


def udp(payload: bytes, ip_options: bytes = b"") -> bytes:
    return ipv4_packet(CONTAINER, A, udp_datagram(payload), options=ip_options)


NEEDS = VnetHeader(flags=1)


@pytest.mark.parametrize(
    ("packet", "csum_offset"),
    [
        pytest.param(tcp(b""), 16, id="tcp, no payload"),
        pytest.param(tcp(b"odd"), 16, id="tcp, odd"),
        pytest.param(tcp(bytes(range(256)) * 255), 16, id="tcp, large"),
        pytest.param(tcp(b"four", options=bytes(40)), 16, id="tcp, options"),
        pytest.param(tcp(b"four", ip_options=bytes(40)), 16, id="tcp, IP options"),
        pytest.param(udp(b""), 6, id="udp, no payload"),
        pytest.param(udp(b"odd"), 6, id="udp, odd"),
        pytest.param(udp(bytes(65507)), 6, id="udp, the largest"),
        pytest.param(udp(b"four", ip_options=bytes(40)), 6, id="udp, IP options"),
    ],
)
# Wherever in the buffer, since sums are taken by words.
@pytest.mark.parametrize("before", [20, 21, 22, 23])
def test_a_checksum_that_the_kernel_left_to_us_is_finished(packet: bytes, csum_offset: int, before: int) -> None:
    if before + len(packet) > 65535:
        before = 20
    header = NEEDS._replace(csum_start=(packet[0] & 0xF) * 4, csum_offset=csum_offset)
    found = grouped([(PLAIN, to(B, before)), (header, unfinished(packet)), (PLAIN, to(B))], BY_24)
    assert found.data == to(B, before) + with_checksum(packet) + to(B)
    assert not found.refused


def test_a_udp_checksum_of_0_becomes_ffff() -> None:
    """0 would say that there is none."""
    blank = int.from_bytes(with_checksum(udp(bytes(2)))[26:28], "big")
    packet = udp(blank.to_bytes(2, "big"))
    assert with_checksum(packet)[26:28] == b"\xff\xff"
    found = grouped([(NEEDS._replace(csum_start=20, csum_offset=6), unfinished(packet))], BY_24)
    assert found.data == with_checksum(packet)


def test_a_tcp_checksum_of_0_stays_0() -> None:
    blank = int.from_bytes(with_checksum(tcp(bytes(2)))[36:38], "big")
    packet = tcp(blank.to_bytes(2, "big"))
    assert with_checksum(packet)[36:38] == bytes(2)
    found = grouped([(NEEDS._replace(csum_start=20, csum_offset=16), unfinished(packet))], BY_24)
    assert found.data == with_checksum(packet)


@pytest.mark.parametrize(
    ("csum_start", "csum_offset"),
    [
        pytest.param(20, 2, id="icmp"),
        pytest.param(20, 8, id="sctp"),
        pytest.param(28, 16, id="tcp inside of udp"),
        pytest.param(28, 6, id="udp inside of udp"),
        pytest.param(98, 0, id="the last two bytes"),
        pytest.param(21, 77, id="the last two bytes, from an odd offset"),
    ],
)
@pytest.mark.parametrize("protocol", [ICMP, TCP, 132, 47])
def test_any_other_checksum_is_finished_where_the_header_says(csum_start: int, csum_offset: int, protocol: int) -> None:
    """A device that takes over checksums does so for tunnels, too: the field is not always that of the outer header."""
    packet = ipv4_packet(CONTAINER, A, bytes(range(80)), protocol=protocol)
    header = NEEDS._replace(csum_start=csum_start, csum_offset=csum_offset)
    assert grouped([(header, packet)], BY_24).data == oracle.finished(packet, csum_start, csum_offset)


@pytest.mark.parametrize(
    ("csum_start", "csum_offset"),
    [
        pytest.param(99, 0, id="half of the field is outside"),
        pytest.param(100, 0, id="just behind the packet"),
        pytest.param(20, 79, id="by its offset"),
        pytest.param(0xFFFF, 0xFFFF, id="far outside"),
        pytest.param(0xFFFF, 16, id="start far outside"),
        pytest.param(0, 2, id="in the IP header"),
        pytest.param(0, 10, id="the IP header's own"),
        pytest.param(19, 6, id="it covers some of the IP header"),
    ],
)
def test_a_checksum_outside_of_the_packets_payload_is_refused(csum_start: int, csum_offset: int) -> None:
    header = NEEDS._replace(csum_start=csum_start, csum_offset=csum_offset)
    found = grouped([(header, to(A)), (PLAIN, to(B))], BY_24)
    assert found.refused == [(DropReason.BAD_VNET_HDR, 0, 100)]
    assert found.data == to(A) + to(B)


TCP_SUPER = VnetHeader(1, 1, 0, 1448, 20, 16)
UDP_SUPER = VnetHeader(1, 5, 0, 1448, 20, 6)


@pytest.mark.parametrize(
    ("header", "packet"),
    [
        pytest.param(TCP_SUPER, tcp(bytes(4000)), id="tcp"),
        pytest.param(TCP_SUPER._replace(gso_type=0x81), tcp(bytes(4000)), id="tcp with ECN"),
        pytest.param(TCP_SUPER._replace(hdr_len=0xFFFF), tcp(bytes(4000)), id="hdr_len is not looked at"),
        pytest.param(UDP_SUPER, udp(bytes(4000)), id="udp"),
    ],
)
def test_a_super_packet_has_no_neighbours_and_keeps_its_unfinished_checksum(header: VnetHeader, packet: bytes) -> None:
    packet = unfinished(packet)
    size = len(packet)
    found = grouped([(PLAIN, to(A, size)), (header, packet), (header, packet), (PLAIN, to(A))], BY_24)
    destination = int(IPv4Address(A))
    assert found.groups == [
        (destination, 0, size, size, 0),
        (destination, size, 2 * size, size, 1448),
        (destination, 2 * size, 3 * size, size, 1448),
        (destination, 3 * size, 3 * size + 100, 100, 0),
    ]
    assert found.data == to(A, size) + packet * 2 + to(A)


@pytest.mark.parametrize(
    ("header", "packet"),
    [
        pytest.param(TCP_SUPER._replace(gso_size=0), tcp(bytes(4000)), id="gso_size 0"),
        pytest.param(UDP_SUPER, tcp(bytes(4000)), id="udp's type for tcp"),
        pytest.param(TCP_SUPER, udp(bytes(4000)), id="tcp's type for udp"),
        pytest.param(TCP_SUPER, to(A, 4000), id="tcp's type for what is neither"),
        pytest.param(TCP_SUPER._replace(gso_type=3), udp(bytes(4000)), id="UFO"),
        pytest.param(TCP_SUPER._replace(gso_type=4), tcp(bytes(4000)), id="TCPv6"),
        pytest.param(TCP_SUPER._replace(gso_type=0x80), tcp(bytes(4000)), id="nothing but ECN"),
        pytest.param(TCP_SUPER._replace(gso_type=0xFF), tcp(bytes(4000)), id="unknown"),
    ],
)
def test_a_super_packet_whose_header_makes_no_sense_is_refused(header: VnetHeader, packet: bytes) -> None:
    found = grouped([(header, packet), (PLAIN, to(B))], BY_24)
    assert found.refused == [(DropReason.BAD_VNET_HDR, 0, len(packet))]
    assert [destination for destination, *_ in found.groups] == [int(IPv4Address(B))]


@pytest.mark.parametrize("header", [PLAIN, TCP_SUPER, NEEDS._replace(csum_start=20, csum_offset=16)])
def test_a_packet_of_any_kind_without_a_hop_left_is_refused(header: VnetHeader) -> None:
    packet = ipv4_packet(CONTAINER, A, tcp_segment(bytes(4000)), protocol=TCP, ttl=1)
    assert grouped([(header, packet)], BY_24).refused == [(DropReason.TTL_EXPIRED, 0, len(packet))]


OWN_SOCKET, OWN_DEVICE = str(BOUND), str(OWN_SUBNET[0])
UDP_SUPER = VnetHeader(1, 5, 0, 1400, 20, 6)


def datagram(
    address: str = OWN_SOCKET,
    ports: tuple[int, int] = (PORT, PORT),
    destination: str = A,
    length: int = 100,
    fragment: int = 0,
    identification: int = 7,
    ttl: int = 64,
) -> bytes:
    payload = udp_datagram(bytes(length), ports=ports)
    return ipv4_packet(address, destination, payload, fragment=fragment, identification=identification, ttl=ttl)


@pytest.mark.parametrize("address", [OWN_SOCKET, OWN_DEVICE])
@pytest.mark.parametrize(
    ("header", "packet"),
    [
        pytest.param(PLAIN, {}, id="plain"),
        pytest.param(PLAIN, {"fragment": DONT_FRAGMENT}, id="not to be fragmented"),
        pytest.param(PLAIN, {"ttl": 1}, id="without a hop left"),
        pytest.param(PLAIN, {"destination": CONTAINER}, id="for our own subnet"),
        pytest.param(PLAIN, {"length": 0}, id="empty"),
        pytest.param(VnetHeader(1, 0, 0, 0, 20, 6), {}, id="checksum left to us"),
        pytest.param(UDP_SUPER, {"length": 4000}, id="super-packet"),
    ],
)
def test_a_datagram_of_our_own_socket_is_refused_and_left_as_it_is(
    address: str, header: VnetHeader, packet: dict[str, int | str]
) -> None:
    own = datagram(address, **packet)  # type: ignore[arg-type]
    found = grouped([(PLAIN, to(B)), (header, own), (PLAIN, to(B))], BY_24)
    assert found.refused == [(DropReason.OWN_DATAGRAM, 100, 100 + len(own))]
    assert len(found.groups) == 2
    assert found.data[100 : 100 + len(own)] == own


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(datagram(ports=(PORT, 53)), id="to another port"),
        pytest.param(datagram(ports=(53, PORT)), id="from another port"),
        pytest.param(datagram(CONTAINER), id="of a container"),
        pytest.param(datagram("172.17.8.102"), id="of another host"),
        pytest.param(datagram(fragment=100), id="a later fragment alone"),
        pytest.param(ipv4_packet(OWN_SOCKET, A, tcp_segment(ports=(PORT, PORT)), protocol=TCP), id="tcp"),
        pytest.param(ipv4_packet(OWN_SOCKET, A, b"", protocol=17), id="without ports"),
        pytest.param(ipv4_packet(OWN_SOCKET, A, PORT.to_bytes(2, "big"), protocol=17), id="with half of them"),
    ],
)
def test_what_else_the_host_sends_goes_its_way(packet: bytes) -> None:
    found = grouped([(PLAIN, packet)], BY_24)
    assert (len(found.groups), found.refused) == (1, [])


def test_ports_are_looked_for_behind_the_options() -> None:
    options = PORT.to_bytes(2, "big") * 2
    own = ipv4_packet(OWN_SOCKET, A, udp_datagram(ports=(PORT, PORT)), options=bytes(4))
    other = ipv4_packet(OWN_SOCKET, A, udp_datagram(ports=(1, 2)), options=options)
    assert grouped([(PLAIN, own), (PLAIN, other)], BY_24).refused == [(DropReason.OWN_DATAGRAM, 0, len(own))]


def test_later_fragments_of_our_own_datagram_are_refused_and_no_others() -> None:
    first = datagram(fragment=MORE_FRAGMENTS)
    middle = datagram(fragment=MORE_FRAGMENTS | 10)
    last = datagram(fragment=20)
    batch = [
        first,
        to(B),
        middle,
        datagram(fragment=MORE_FRAGMENTS | 10, address=CONTAINER),
        last,
        datagram(fragment=20),  # of an identification used again
        first,
        datagram(fragment=20, identification=8),
        first,
        datagram(fragment=20, destination=B),
        first,
        datagram(ports=(53, 53), fragment=MORE_FRAGMENTS),
        last,
    ]
    ends = list(accumulate(map(len, batch)))
    found = grouped([(PLAIN, packet) for packet in batch], BY_24)
    refused = [ends.index(end) for reason, _, end in found.refused if reason == DropReason.OWN_DATAGRAM]
    assert refused == [0, 2, 4, 6, 8, 10]


def test_a_later_batch_knows_nothing_of_an_earlier_one() -> None:
    buffer, headers = bytearray(200), bytearray(20)
    buffer[:200] = to(A) + to(A)[:50] + bytes(50)
    grouper = Grouper(buffer, headers, numbers(OWN_SUBNET), (int(BOUND), PORT))
    grouper.group([100, 50], BY_24)
    groups, refused = grouper.groups, grouper.refused
    assert (len(groups), len(refused)) == (1, 1)
    buffer[:100] = to(B)
    grouper.group([100], BY_24)
    assert [destination for destination, *_ in grouper.groups] == [int(IPv4Address(B))]
    assert grouper.refused == []
    assert (len(groups), len(refused)) == (1, 1)


@pytest.mark.parametrize(("size", "count"), [(100, 1), (100, 5), (20, 64)])
def test_one_hop_is_taken_off_each_neighbour(size: int, count: int) -> None:
    last = to(A, 20)
    buffer = bytearray(to(A, size) * count + last)
    assert len(buffer) % 4 == 0
    Grouper(buffer, bytearray(10), numbers(OWN_SUBNET), (int(BOUND), PORT)).decrement_ttls(0, len(buffer), size)
    assert buffer == hop_taken(to(A, size)) * count + hop_taken(last)
