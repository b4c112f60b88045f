"""Builds IPv4 packets, with checksums by another road than the code under test."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

UDP = 17
ICMP = 1


def checksum(data: bytes | bytearray) -> int:
    """The Internet checksum by arithmetic: 2^16 is 1 modulo 65535, so the words' sum is the number's remainder."""
    number = int.from_bytes(data + bytes(len(data) % 2), "big")
    return 0xFFFF - (number % 0xFFFF or (0xFFFF if number else 0))


def ipv4_packet(
    source: str,
    destination: str,
    payload: bytes = b"",
    *,
    ttl: int = 64,
    protocol: int = UDP,
    fragment: int = 0,
    options: bytes = b"",
) -> bytes:
    """``fragment`` is the 16-bit word of flags and offset; ``options`` must fill whole words."""
    words = 5 + len(options) // 4
    header = bytearray(
        struct.pack(
            "!BBHHHBBH4s4s",
            0x40 | words,
            0,
            words * 4 + len(payload),
            0x1234,
            fragment,
            ttl,
            protocol,
            0,
            IPv4Address(source).packed,
            IPv4Address(destination).packed,
        )
        + options
    )
    struct.pack_into("!H", header, 10, checksum(header))
    return bytes(header) + payload


def with_ttl(packet: bytes, ttl: int) -> bytes:
    """The same packet with another TTL and the header checksum that belongs to it."""
    header = bytearray(packet[: (packet[0] & 0xF) * 4])
    header[8] = ttl
    struct.pack_into("!H", header, 10, 0)
    struct.pack_into("!H", header, 10, checksum(header))
    return bytes(header) + packet[len(header) :]


def hop_taken(packet: bytes) -> bytes:
    """The same packet one hop further on."""
    return with_ttl(packet, packet[8] - 1)
