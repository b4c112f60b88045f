"""Super-packets of the kernel become the wire packets that they stand for: each rule of the table, and whole bytes."""

from __future__ import annotations

import random

import pytest
from support import oracle
from support.packet_code import segmented
from support.packets import (
    ACK,
    CWR,
    DONT_FRAGMENT,
    ECE,
    FIN,
    ICMP,
    PSH,
    SYN,
    TCP,
    UDP,
    URG,
    checksum,
    ipv4_packet,
    pseudo_header,
    tcp_segment,
    udp_datagram,
    unfinished,
)

ONE, OTHER = "11.0.59.2", "11.0.101.2"
PAYLOAD = random.Random(1500).randbytes(65495)
TIMESTAMPS = b"\x01\x01\x08\x0a\x00\x01\xe2\x40\x00\x09\xfb\xf1"


def tcp(
    length: int,
    *,
    options: bytes = b"",
    ip_options: bytes = b"",
    identification: int = 0x1234,
    sequence: int = 1000,
    flags: int = ACK,
    reserved: int = 0,
    urgent: int = 0,
) -> bytes:
    segment = tcp_segment(
        PAYLOAD[:length], options=options, sequence=sequence, flags=flags, reserved=reserved, urgent=urgent
    )
    return unfinished(
        ipv4_packet(
            ONE, OTHER, segment, protocol=TCP, fragment=DONT_FRAGMENT, options=ip_options, identification=identification
        )
    )


def udp(length: int, *, ip_options: bytes = b"", identification: int = 0x1234) -> bytes:
    datagram = udp_datagram(PAYLOAD[:length])
    return unfinished(ipv4_packet(ONE, OTHER, datagram, options=ip_options, identification=identification))


def cut(packet: bytes, gso_size: int) -> list[bytes]:
    """The segments, each by its own total length, with just enough space for them."""
    data = segmented(packet, gso_size, before=7, space=sum(map(len, oracle.segments(packet, gso_size))))
    assert data is not None
    found = []
    while data:
        length = int.from_bytes(data[2:4], "big")
        found.append(data[:length])
        data = data[length:]
    return found


def words(packets: list[bytes], at: int, size: int = 2) -> list[int]:
    """A field of each packet."""
    return [int.from_bytes(packet[at : at + size], "big") for packet in packets]


SUPER_PACKETS = [
    pytest.param(tcp(4000), 1448, id="tcp"),
    pytest.param(tcp(4344), 1448, id="tcp, the last as long as the others"),
    pytest.param(tcp(4345), 1448, id="tcp, the last of one byte"),
    pytest.param(tcp(4345, sequence=2**32 - 2000), 1448, id="tcp, sequence numbers that wrap"),
    pytest.param(tcp(1448), 1448, id="tcp, one segment"),
    pytest.param(tcp(100), 1448, id="tcp, one shorter segment"),
    pytest.param(tcp(1), 1, id="tcp, one byte"),
    pytest.param(tcp(63), 1, id="tcp, segments of one byte"),
    pytest.param(tcp(999), 7, id="tcp, segments shorter than their header"),
    pytest.param(tcp(65495), 1448, id="tcp, the largest"),
    pytest.param(tcp(65495), 65495, id="tcp, the largest in one segment"),
    pytest.param(tcp(4001, options=TIMESTAMPS), 1436, id="tcp with timestamps"),
    pytest.param(tcp(4001, options=TIMESTAMPS + bytes(28)), 1409, id="tcp, the longest header and odd sizes"),
    pytest.param(tcp(4001, ip_options=b"\x01" * 40), 1401, id="tcp behind IP options"),
    pytest.param(tcp(4001, ip_options=b"\x01" * 40, options=bytes(40)), 1001, id="tcp, both headers at their longest"),
    pytest.param(tcp(4000, flags=0xFF, reserved=0xF, urgent=77), 1448, id="tcp, every flag"),
    pytest.param(udp(4000), 1472, id="udp"),
    pytest.param(udp(4416), 1472, id="udp, the last as long as the others"),
    pytest.param(udp(1), 1472, id="udp, one byte"),
    pytest.param(udp(64), 1, id="udp, segments of one byte"),
    pytest.param(udp(65507), 1201, id="udp, the largest and odd sizes"),
    pytest.param(udp(4000, ip_options=b"\x01" * 40), 1400, id="udp behind IP options"),
]


@pytest.mark.parametrize(("packet", "gso_size"), SUPER_PACKETS)
def test_segments_are_those_of_the_oracle_byte_for_byte(packet: bytes, gso_size: int) -> None:
    assert cut(packet, gso_size) == oracle.segments(packet, gso_size)


@pytest.mark.parametrize(("packet", "gso_size"), SUPER_PACKETS)
def test_every_checksum_is_right_and_no_payload_is_lost(packet: bytes, gso_size: int) -> None:
    l4 = (packet[0] & 0xF) * 4
    header = l4 + ((packet[l4 + 12] >> 4) * 4 if packet[9] == TCP else 8)
    found = cut(packet, gso_size)
    for segment in found:
        assert checksum(segment[:l4]) == 0
        assert checksum(pseudo_header(segment) + segment[l4:]) == 0
    assert b"".join(segment[header:] for segment in found) == packet[header:]


@pytest.mark.parametrize(
    ("super_packet", "lengths"),
    [(tcp(250), [140, 140, 90]), (tcp(250, options=TIMESTAMPS), [152, 152, 102]), (udp(201), [128, 128, 29])],
)
def test_total_and_udp_lengths_are_each_segments_own(super_packet: bytes, lengths: list[int]) -> None:
    found = cut(super_packet, 100)
    assert words(found, 2) == lengths
    if super_packet[9] == UDP:
        assert words(found, 24) == [length - 20 for length in lengths]


@pytest.mark.parametrize(
    ("first", "expected"),
    [(0, [0, 1, 2, 3]), (0x1234, [0x1234, 0x1235, 0x1236, 0x1237]), (0xFFFE, [0xFFFE, 0xFFFF, 0, 1])],
)
def test_identifications_count_on_and_wrap(first: int, expected: list[int]) -> None:
    for packet in (tcp(400, identification=first), udp(400, identification=first)):
        assert words(cut(packet, 100), 4) == expected


@pytest.mark.parametrize(
    ("first", "expected"),
    [(0, [0, 100, 200]), (0xFFFF, [0xFFFF, 0x10063, 0x100C7]), (2**32 - 100, [2**32 - 100, 0, 100])],
)
def test_sequence_numbers_advance_by_the_payload_and_wrap(first: int, expected: list[int]) -> None:
    assert words(cut(tcp(300, sequence=first), 100), 24, 4) == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        pytest.param(ACK, [ACK, ACK, ACK], id="ACK in all"),
        pytest.param(ACK | PSH, [ACK, ACK, ACK | PSH], id="PSH in the last"),
        pytest.param(ACK | FIN, [ACK, ACK, ACK | FIN], id="FIN in the last"),
        pytest.param(ACK | CWR, [ACK | CWR, ACK, ACK], id="CWR in the first"),
        pytest.param(ACK | ECE, [ACK | ECE] * 3, id="ECE in all"),
        pytest.param(ACK | URG, [ACK | URG] * 3, id="URG in all"),
        pytest.param(SYN, [SYN] * 3, id="SYN in all"),
        pytest.param(0xFF, [0xF6, 0x76, 0x7F], id="every flag"),
    ],
)
def test_flags_go_where_they_belong(flags: int, expected: list[int]) -> None:
    found = cut(tcp(250, flags=flags, reserved=0xA, urgent=0x4321), 100)
    assert [segment[33] for segment in found] == expected
    assert [segment[32] for segment in found] == [0x5A] * 3
    assert words(found, 38) == [0x4321] * 3


@pytest.mark.parametrize("flags", [0xFF, FIN | PSH | CWR])
def test_a_single_segment_is_first_and_last(flags: int) -> None:
    assert [segment[33] for segment in cut(tcp(100, flags=flags), 100)] == [flags]


def test_options_are_in_every_segment() -> None:
    found = cut(tcp(300, options=TIMESTAMPS, ip_options=b"\x94\x04\x00\x00"), 100)
    assert [segment[20:24] for segment in found] == [b"\x94\x04\x00\x00"] * 3
    assert [segment[44:56] for segment in found] == [TIMESTAMPS] * 3


def test_a_udp_checksum_of_0_is_sent_as_ffff() -> None:
    """0 would say that there is none."""
    plain = cut(udp(200), 100)
    payload = bytearray(PAYLOAD[:200])
    for number in (0, 1):
        # Added to what is summed, the checksum brings the sum to ffff and itself to 0.
        word = int.from_bytes(payload[number * 100 : number * 100 + 2], "big") + words(plain, 26)[number]
        payload[number * 100 : number * 100 + 2] = (word % 0xFFFF).to_bytes(2, "big")
    packet = unfinished(ipv4_packet(ONE, OTHER, udp_datagram(bytes(payload))))
    assert words(cut(packet, 100), 26) == [0xFFFF, 0xFFFF]


def test_what_the_kernel_left_in_the_checksum_does_not_matter() -> None:
    packet = tcp(300)
    assert cut(packet[:36] + b"\xde\xad" + packet[38:], 100) == cut(packet, 100)


def broken(packet: bytes, at: int, value: int) -> bytes:
    return packet[:at] + bytes((value,)) + packet[at + 1 :]


@pytest.mark.parametrize(
    ("packet", "gso_size"),
    [
        pytest.param(tcp(300), 0, id="gso_size 0"),
        pytest.param(tcp(300), -1, id="gso_size below 0"),
        pytest.param(tcp(0), 100, id="tcp without payload"),
        pytest.param(udp(0), 100, id="udp without payload"),
        pytest.param(broken(tcp(300), 32, 0x40), 100, id="tcp header of 16 bytes"),
        pytest.param(broken(tcp(300), 32, 0x00), 100, id="tcp header of 0 bytes"),
        pytest.param(broken(tcp(20), 32, 0xF0), 100, id="tcp header that fills the packet"),
        pytest.param(broken(tcp(19), 32, 0xF0), 100, id="tcp header longer than the packet"),
        pytest.param(tcp(0)[:39], 100, id="tcp header that is cut"),
        pytest.param(ipv4_packet(ONE, OTHER, b"", protocol=TCP), 100, id="no tcp header"),
        pytest.param(ipv4_packet(ONE, OTHER, b"", protocol=TCP, options=bytes(40)), 100, id="nor behind options"),
        pytest.param(ipv4_packet(ONE, OTHER, b"", protocol=UDP), 100, id="no udp header"),
        pytest.param(ipv4_packet(ONE, OTHER, bytes(7), protocol=UDP), 100, id="udp header that is cut"),
        pytest.param(ipv4_packet(ONE, OTHER, bytes(300), protocol=ICMP), 100, id="neither tcp nor udp"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_written(packet: bytes, gso_size: int) -> None:
    assert segmented(packet, gso_size, before=4) is None


@pytest.mark.parametrize("packet", [tcp(300), tcp(250), udp(300), udp(201)])
def test_segments_that_find_no_room_are_refused(packet: bytes) -> None:
    needed = sum(map(len, oracle.segments(packet, 100)))
    assert segmented(packet, 100, before=4, space=needed) is not None
    assert segmented(packet, 100, before=4, space=needed - 1) is None
    assert segmented(packet, 100, before=4, space=0) is None
