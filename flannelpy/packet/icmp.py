"""ICMP errors about dropped packets.  Pure; never compiled, since a rate limit makes errors rare.

Source: RFC 792 (messages), RFC 1122 section 3.2.2 (packets that must never be answered).
"""

import struct

from flannelpy.packet import headers as hdr
from flannelpy.packet.checksum import ones_sum

NET_UNREACHABLE = (3, 0)
TIME_EXCEEDED = (11, 0)

_ICMP_ERROR_TYPES = frozenset({3, 4, 5, 11, 12})
_IP_HEADER = struct.Struct("!BBHHHBBH4s4s")
_ICMP_HEADER = struct.Struct("!BBHI")
_QUOTED_PAYLOAD = 8
# As in the original's net unreachable; an overlay path is far shorter.
_REPLY_TTL = 8


def may_be_answered(packet: bytes | memoryview) -> bool:
    """Return whether an ICMP error about ``packet`` (a checked IPv4 packet) may be sent.

    No error is sent about an ICMP error, a later fragment, or a packet to or from an address that is not one host.
    """
    fragment_offset = (packet[hdr.IP_FRAGMENT] << 8 | packet[hdr.IP_FRAGMENT + 1]) & hdr.FRAGMENT_OFFSET
    if fragment_offset or not (_is_one_host(_source(packet)) and _is_one_host(_destination(packet))):
        return False
    header = (packet[0] & 0xF) * 4
    if packet[hdr.IP_PROTOCOL] != hdr.ICMP:
        return True
    return len(packet) > header and packet[header] not in _ICMP_ERROR_TYPES


def error(kind: tuple[int, int], packet: bytes | memoryview, sender: bytes) -> bytes:
    """Return the ICMP error about ``packet``, as an IPv4 packet to its source.

    Shapes: ``kind`` is (type, code), ``sender`` our 4-byte address.  The error quotes the IP header and 8 bytes.
    Counterpart: send_net_unreachable in the original's proxy.
    """
    header = (packet[0] & 0xF) * 4
    quoted = bytes(packet[: header + _QUOTED_PAYLOAD])
    icmp = bytearray(_ICMP_HEADER.pack(*kind, 0, 0) + quoted)
    struct.pack_into("!H", icmp, hdr.ICMP_CHECKSUM, _checksum(icmp))
    length = hdr.IP_MIN_HEADER + len(icmp)
    ip = bytearray(
        _IP_HEADER.pack(hdr.IP_VERSION_IHL, 0, length, 0, 0, _REPLY_TTL, hdr.ICMP, 0, sender, _source(quoted))
    )
    struct.pack_into("!H", ip, hdr.IP_CHECKSUM, _checksum(ip))
    return bytes(ip + icmp)


def _checksum(data: bytearray) -> int:
    return ~ones_sum(data, 0, len(data)) & 0xFFFF


def _source(packet: bytes | memoryview) -> bytes | memoryview:
    return packet[hdr.IP_SOURCE : hdr.IP_SOURCE + 4]


def _destination(packet: bytes | memoryview) -> bytes | memoryview:
    return packet[hdr.IP_DESTINATION : hdr.IP_DESTINATION + 4]


def _is_one_host(address: bytes | memoryview) -> bool:
    """Whether the address is not in 0.0.0.0/8, loopback, multicast, reserved or broadcast."""
    return 0 < address[0] < 224 and address[0] != 127
