"""What a network card makes of a super-packet, written from the RFCs: slow, plain, and of no code of the package.

Source: RFC 791 (IPv4), RFC 9293 (TCP), RFC 768 (UDP), RFC 3168 section 6.1.2 (CWR), RFC 6864 (identification), and
include/uapi/linux/virtio_net.h for the header in front.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from support.packets import (
    CWR,
    DONT_FRAGMENT,
    FIN,
    MORE_FRAGMENTS,
    PSH,
    TCP,
    UDP,
    checksum,
    pseudo_header,
    with_checksum,
)

_NEEDS_CSUM = 1
_GSO_TYPES = {1: TCP, 5: UDP}
_GSO_ECN = 0x80
_CSUM_OFFSETS = {TCP: 16, UDP: 6}


class VnetHeader(NamedTuple):
    """struct virtio_net_hdr."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    def encode(self) -> bytes:
        return struct.pack("=BBHHHH", *self)

    @classmethod
    def decode(cls, data: bytes) -> VnetHeader:
        return cls(*struct.unpack("=BBHHHH", data))


def segments(packet: bytes, gso_size: int) -> list[bytes]:
    """The wire packets of a super-packet, whose checksums are not looked at."""
    l4 = (packet[0] & 0xF) * 4
    is_tcp = packet[9] == TCP
    header = l4 + ((packet[l4 + 12] >> 4) * 4 if is_tcp else 8)
    payload = packet[header:]
    pieces = [payload[start : start + gso_size] for start in range(0, len(payload), gso_size)]
    found = []
    for number, piece in enumerate(pieces):
        ip = bytearray(packet[:l4])
        ip[2:4] = (header + len(piece)).to_bytes(2, "big")
        ip[4:6] = ((int.from_bytes(ip[4:6], "big") + number) % 2**16).to_bytes(2, "big")
        ip[10:12] = bytes(2)
        ip[10:12] = checksum(ip).to_bytes(2, "big")
        rest = bytearray(packet[l4:header])
        if is_tcp:
            rest[4:8] = ((int.from_bytes(rest[4:8], "big") + number * gso_size) % 2**32).to_bytes(4, "big")
            if number:
                rest[13] &= ~CWR
            if number < len(pieces) - 1:
                rest[13] &= ~(FIN | PSH)
        else:
            rest[4:6] = (8 + len(piece)).to_bytes(2, "big")
        found.append(with_checksum(bytes(ip + rest) + piece))
    return found


def written(header: bytes, packet: bytes) -> list[bytes]:
    """The packets that the kernel sees when this is written to a TUN, after a look at what it believes unseen."""
    vnet = VnetHeader.decode(header)
    if vnet == VnetHeader():
        return [packet]
    protocol = _GSO_TYPES[vnet.gso_type]
    assert packet[0] == 0x45
    assert packet[9] == protocol
    assert int.from_bytes(packet[2:4], "big") == len(packet)
    assert checksum(packet[:20]) == 0
    length = 20 + ((packet[32] >> 4) * 4 if protocol == TCP else 8)
    assert length < len(packet)
    assert vnet == VnetHeader(_NEEDS_CSUM, vnet.gso_type, length, vnet.gso_size, 20, _CSUM_OFFSETS[protocol])
    at = vnet.csum_start + vnet.csum_offset
    assert int.from_bytes(packet[at : at + 2], "big") == 0xFFFF - checksum(pseudo_header(packet))
    if protocol == UDP:
        assert int.from_bytes(packet[24:26], "big") == len(packet) - 20
    found = segments(packet, vnet.gso_size)
    assert 1 < len(found) <= 64
    return found


def all_written(packets: list[tuple[bytes, bytes]]) -> list[bytes]:
    """The same of what is written in turn."""
    return [segment for header, packet in packets for segment in written(header, packet)]


def finished(packet: bytes, csum_start: int, csum_offset: int) -> bytes:
    """The packet with the checksum over what follows ``csum_start``, which has its part in the field already."""
    at = csum_start + csum_offset
    value = checksum(packet[csum_start:])
    if not value and packet[9] == UDP and csum_offset == _CSUM_OFFSETS[UDP]:
        value = 0xFFFF
    return packet[:at] + value.to_bytes(2, "big") + packet[at + 2 :]


def as_merging_keeps_it(packet: bytes) -> bytes:
    """The packet without what merging need not keep: identification, and which zero its TCP checksum is."""
    return _with_one_zero(_without_identification(packet))


def _with_one_zero(packet: bytes) -> bytes:
    """The packet with a TCP checksum of 0 in place of 0xFFFF, which is the same number in one's complement.

    Who computes the checksum again, as the kernel does, gets 0.  Source: RFC 1071, section 1.
    """
    header = (packet[0] & 0xF) * 4
    at = header + _CSUM_OFFSETS[TCP]
    is_first = not int.from_bytes(packet[6:8], "big") & 0x1FFF
    if packet[9] != TCP or not is_first or packet[at : at + 2] != b"\xff\xff":
        return packet
    return packet[:at] + bytes(2) + packet[at + 2 :]


def _without_identification(packet: bytes) -> bytes:
    """The packet with an identification of 0, if that means nothing: it is whole and must not be fragmented.

    Source: RFC 6864, section 4.1.
    """
    word = int.from_bytes(packet[6:8], "big")
    if not word & DONT_FRAGMENT or word & (MORE_FRAGMENTS | 0x1FFF):
        return packet
    header = bytearray(packet[: (packet[0] & 0xF) * 4])
    before = checksum(header)
    header[4:6] = header[10:12] = bytes(2)
    if before == 0:
        header[10:12] = checksum(header).to_bytes(2, "big")
    return bytes(header) + packet[len(header) :]
