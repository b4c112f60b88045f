"""ICMP errors: which packets may be answered at all, and what the answer is, byte for byte."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from support.packets import ICMP, checksum, ipv4_packet

from flannelpy.packet import icmp

CONTAINER, ELSEWHERE = "11.0.59.2", "11.0.254.2"
UDP_PACKET = ipv4_packet(CONTAINER, ELSEWHERE, b"\x9a\x42\x00\x09\x00\x0b\xa4\x1ehi\n", ttl=63)
OPTIONS = b"\x07\x07\x04\x00\x00\x00\x00\x00"


def icmp_packet(kind: int) -> bytes:
    return ipv4_packet(CONTAINER, ELSEWHERE, bytes((kind, 0)) + bytes(6), protocol=ICMP)


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        pytest.param(UDP_PACKET, True, id="udp"),
        pytest.param(ipv4_packet(CONTAINER, ELSEWHERE, protocol=6), True, id="no payload"),
        pytest.param(icmp_packet(8), True, id="echo request"),
        pytest.param(icmp_packet(0), True, id="echo reply"),
        pytest.param(icmp_packet(13), True, id="timestamp request"),
        *(pytest.param(icmp_packet(kind), False, id=f"icmp error {kind}") for kind in (3, 4, 5, 11, 12)),
        pytest.param(ipv4_packet(CONTAINER, ELSEWHERE, protocol=ICMP), False, id="icmp without a type"),
        pytest.param(
            ipv4_packet(CONTAINER, ELSEWHERE, b"\x03", protocol=ICMP, options=OPTIONS), False, id="error behind options"
        ),
        pytest.param(
            ipv4_packet(CONTAINER, ELSEWHERE, b"\x08", protocol=ICMP, options=OPTIONS), True, id="echo behind options"
        ),
        pytest.param(ipv4_packet(CONTAINER, ELSEWHERE, bytes(8), fragment=0x2000), True, id="first fragment"),
        pytest.param(ipv4_packet(CONTAINER, ELSEWHERE, bytes(8), fragment=0x2001), False, id="later fragment"),
        pytest.param(ipv4_packet(CONTAINER, ELSEWHERE, bytes(8), fragment=0x1F00), False, id="last fragment"),
        pytest.param(
            ipv4_packet(CONTAINER, ELSEWHERE, bytes(8), fragment=0x1000), False, id="highest bit of the offset"
        ),
        pytest.param(ipv4_packet(CONTAINER, ELSEWHERE, bytes(8), fragment=0x4000), True, id="don't fragment"),
        *(
            pytest.param(ipv4_packet(address, ELSEWHERE), False, id=f"from {address}")
            for address in ("0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255")
        ),
        *(
            pytest.param(ipv4_packet(CONTAINER, address), False, id=f"to {address}")
            for address in ("0.0.0.0", "127.0.0.1", "224.0.0.251", "255.255.255.255")
        ),
    ],
)
def test_only_what_rfc_1122_allows_is_answered(packet: bytes, expected: bool) -> None:
    assert icmp.may_be_answered(packet) is expected


@pytest.mark.parametrize(
    ("kind", "type_and_code"), [(icmp.NET_UNREACHABLE, b"\x03\x00"), (icmp.TIME_EXCEEDED, b"\x0b\x00")]
)
@pytest.mark.parametrize(
    ("packet", "quoted"),
    [
        pytest.param(UDP_PACKET, UDP_PACKET[:28], id="udp"),
        pytest.param(UDP_PACKET[:23], UDP_PACKET[:23], id="three bytes of payload"),
        pytest.param(
            ipv4_packet(CONTAINER, ELSEWHERE, bytes(range(20)), options=OPTIONS),
            ipv4_packet(CONTAINER, ELSEWHERE, bytes(range(20)), options=OPTIONS)[:36],
            id="options",
        ),
    ],
)
def test_error_quotes_header_and_eight_bytes(
    kind: tuple[int, int], type_and_code: bytes, packet: bytes, quoted: bytes
) -> None:
    reply = icmp.error(kind, packet, IPv4Address("11.0.59.0").packed)
    length = (28 + len(quoted)).to_bytes(2, "big")
    ip = b"\x45\x00" + length + b"\x00\x00\x00\x00\x08\x01" + reply[10:12] + bytes((11, 0, 59, 0, 11, 0, 59, 2))
    assert reply == ip + type_and_code + reply[22:24] + bytes(4) + quoted
    assert checksum(reply[:20]) == 0
    assert checksum(reply[20:]) == 0
