"""What is taken for an IPv4 packet, and one hop taken off it in place."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from support.packets import hop_taken, ipv4_packet, with_ttl

from flannelpy.packet import ipv4
from flannelpy.packet.drops import DropReason

PLAIN = ipv4_packet("11.0.59.2", "11.0.101.2", b"payload")
WITH_OPTIONS = ipv4_packet("11.0.59.2", "11.0.101.2", b"payload", options=b"\x07\x07\x04\x00\x00\x00\x00\x00")
LARGEST = ipv4_packet("11.0.59.2", "11.0.101.2", bytes(65515))


def patched(packet: bytes, at: int, value: bytes) -> bytes:
    return packet[:at] + value + packet[at + len(value) :]


# Behind and in front of the packet there are others.
@pytest.mark.parametrize("surroundings", [b"", b"\x00", b"\x45" * 20])
@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        pytest.param(PLAIN, 0, id="plain"),
        pytest.param(PLAIN[:2] + b"\x00\x14" + PLAIN[4:20], 0, id="no payload"),
        pytest.param(WITH_OPTIONS, 0, id="options"),
        pytest.param(ipv4_packet("1.2.3.4", "5.6.7.8", b"", options=bytes(40)), 0, id="longest header"),
        pytest.param(LARGEST, 0, id="largest"),
        pytest.param(ipv4_packet("1.2.3.4", "5.6.7.8", ttl=0), 0, id="TTL 0 is not its business"),
        pytest.param(patched(PLAIN, 10, b"\x00\x00"), 0, id="a wrong checksum is not its business"),
        pytest.param(b"", DropReason.TRUNCATED, id="empty"),
        pytest.param(PLAIN[:1], DropReason.TRUNCATED, id="one byte"),
        pytest.param(PLAIN[:19], DropReason.TRUNCATED, id="19 bytes"),
        pytest.param(WITH_OPTIONS[:27], DropReason.TRUNCATED, id="cut in its options"),
        pytest.param(patched(PLAIN, 0, b"\x65"), DropReason.NOT_IPV4, id="version 6"),
        pytest.param(patched(PLAIN, 0, b"\x05"), DropReason.NOT_IPV4, id="version 0"),
        pytest.param(bytes(40), DropReason.NOT_IPV4, id="zeros"),
        pytest.param(patched(PLAIN, 0, b"\x44"), DropReason.BAD_HEADER, id="header of 16 bytes"),
        pytest.param(patched(PLAIN, 0, b"\x40"), DropReason.BAD_HEADER, id="header of 0 bytes"),
        pytest.param(PLAIN[:-1], DropReason.BAD_LENGTH, id="one byte missing"),
        pytest.param(PLAIN + b"\x00", DropReason.BAD_LENGTH, id="one byte too many"),
        pytest.param(patched(PLAIN, 2, b"\x00\x00"), DropReason.BAD_LENGTH, id="total length 0"),
        pytest.param(PLAIN + PLAIN, DropReason.BAD_LENGTH, id="two packets"),
    ],
)
def test_exactly_one_ipv4_packet_is_accepted(surroundings: bytes, packet: bytes, expected: int) -> None:
    data = bytearray(surroundings + packet + surroundings)
    assert ipv4.check(data, len(surroundings), len(surroundings + packet)) == expected
    assert data == surroundings + packet + surroundings


@pytest.mark.parametrize("address", ["0.0.0.0", "11.0.59.2", "127.255.0.1", "128.0.0.1", "255.255.255.255"])
def test_addresses_are_read_as_unsigned_numbers(address: str) -> None:
    data = bytearray(b"\xaa\xaa\xaa" + ipv4_packet("1.2.3.4", address))
    assert ipv4.destination(data, 3) == int(IPv4Address(address))


@pytest.mark.parametrize("packet", [PLAIN, WITH_OPTIONS], ids=["plain", "options"])
def test_hop_is_taken_with_the_checksum_that_belongs_to_it(packet: bytes) -> None:
    for ttl in range(1, 256):
        before = with_ttl(packet, ttl)
        data = bytearray(b"front" + before + b"behind")
        assert ipv4.ip_ttl(data, 5) == ttl
        ipv4.decrement_ttl(data, 5)
        assert data == b"front" + hop_taken(before) + b"behind"


def test_wrong_checksum_stays_wrong() -> None:
    wrong = bytearray(PLAIN)
    wrong[11] ^= 0x10
    ipv4.decrement_ttl(wrong, 0)
    right = hop_taken(PLAIN)
    assert bytes(wrong[:10] + wrong[12:]) == right[:10] + right[12:]
    assert wrong[10:12] != right[10:12]
