"""Builds IPv4 packets; computes checksums by another method than the code under test."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

from flannelpy.packet.drops import DropReason

UDP = 17
TCP = 6
ICMP = 1
UDP_LITE = 136

# Flags of TCP, and those of the IPv4 header's fragment word.
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
DONT_FRAGMENT, MORE_FRAGMENTS = 0x4000, 0x2000

#: The subnet of the host that packets are tested on.
OWN_SUBNET = IPv4Network("11.0.59.0/24")
#: The whole network, and where that host's own socket is bound.
NETWORK = IPv4Network("11.0.0.0/16")
BOUND = IPv4Address("172.17.8.101")
PORT = 8285

_CHECKSUM_AT = {TCP: 16, UDP: 6, UDP_LITE: 6}


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
    tos: int = 0,
    identification: int = 0x1234,
) -> bytes:
    """``fragment`` is the 16-bit word of flags and offset; ``options`` must fill whole words."""
    words = 5 + len(options) // 4
    header = bytearray(
        struct.pack(
            "!BBHHHBBH4s4s",
            0x40 | words,
            tos,
            words * 4 + len(payload),
            identification,
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


def tcp_segment(
    payload: bytes = b"",
    *,
    ports: tuple[int, int] = (40000, 5201),
    sequence: int = 1000,
    acknowledgement: int = 2000,
    flags: int = ACK,
    reserved: int = 0,
    window: int = 500,
    urgent: int = 0,
    options: bytes = b"",
) -> bytes:
    """TCP header without checksum, and payload; ``options`` must fill whole words, ``reserved`` is of 4 bits."""
    words = 5 + len(options) // 4
    header = struct.pack(
        "!HHIIBBHHH", *ports, sequence, acknowledgement, words << 4 | reserved, flags, window, 0, urgent
    )
    return header + options + payload


def udp_datagram(payload: bytes = b"", *, ports: tuple[int, int] = (40000, 5201)) -> bytes:
    """UDP header without checksum, and payload."""
    return struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload


def pseudo_header(packet: bytes) -> bytes:
    """What the checksum of TCP and UDP covers beside the segment itself.  Source: RFC 9293 section 3.1, RFC 768."""
    l4_length = len(packet) - (packet[0] & 0xF) * 4
    return packet[12:20] + bytes((0, packet[9])) + l4_length.to_bytes(2, "big")


def with_checksum(packet: bytes, value: int | None = None) -> bytes:
    """The packet with that TCP or UDP checksum; with the right one if none is given."""
    l4 = (packet[0] & 0xF) * 4
    at = l4 + _CHECKSUM_AT[packet[9]]
    if value is None:
        value = checksum(pseudo_header(packet) + packet[l4:at] + bytes(2) + packet[at + 2 :])
        if packet[9] == UDP and not value:
            value = 0xFFFF
    return packet[:at] + value.to_bytes(2, "big") + packet[at + 2 :]


def unfinished(packet: bytes) -> bytes:
    """The packet as the kernel gives it when the rest of the checksum is left to others: the pseudo-header's sum."""
    return with_checksum(packet, 0xFFFF - checksum(pseudo_header(packet)))


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


def one_hop_on(packet: bytes) -> bytes:
    """The same, also of a packet whose header checksum is wrong: it stays wrong by as much.  Source: RFC 1624."""
    value = (int.from_bytes(packet[10:12], "big") + 0x100) % 0xFFFF
    return packet[:8] + bytes((packet[8] - 1,)) + packet[9:10] + value.to_bytes(2, "big") + packet[12:]


def why_not(packet: bytes) -> DropReason | None:
    """The reason why these bytes are no packet."""
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


def why_refused(
    packet: bytes, own: IPv4Network = OWN_SUBNET, subnets: Iterable[IPv4Network] | None = None
) -> DropReason | None:
    """The reason why a received packet is dropped; ``subnets``: those of its sender, if its source is checked."""
    if reason := why_not(packet):
        return reason
    source, destination = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
    if source in own or not (subnets is None or any(source in subnet for subnet in subnets)):
        return DropReason.SPOOFED_SOURCE
    if destination not in own or destination == own.broadcast_address:
        return DropReason.WRONG_DESTINATION
    return DropReason.TTL_EXPIRED if packet[8] < 2 else None


def are_own_datagrams(packets: list[bytes]) -> list[bool]:
    """Which of these packets from the TUN are datagrams of our own socket, or fragments of such."""
    found = []
    fragments_of: tuple[bytes, bytes] | None = None
    for packet in packets:
        if why_not(packet) or packet[9] != UDP or packet[12:16] not in (BOUND.packed, OWN_SUBNET[0].packed):
            found.append(False)
            continue
        flags = int.from_bytes(packet[6:8], "big")
        datagram = packet[16:20], packet[4:6]
        if flags & 0x1FFF:
            found.append(datagram == fragments_of)
        else:
            l4 = (packet[0] & 0xF) * 4
            found.append(packet[l4 : l4 + 4] == PORT.to_bytes(2, "big") * 2)
        fragments_of = datagram if found[-1] and flags & MORE_FRAGMENTS else None
    return found


def numbers(subnet: IPv4Network) -> tuple[int, int]:
    """(network, mask), as the packet code takes it."""
    return int(subnet.network_address), int(subnet.netmask)
