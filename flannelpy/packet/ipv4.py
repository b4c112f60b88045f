"""The inner IPv4 header, read and changed in place in a larger buffer.  Pure.

``start`` and ``end`` are byte offsets of one packet in ``data``.  Only ``check`` may be given bytes that were not
checked yet.

Source: RFC 791 (header), RFC 1624 (checksum update).
"""

from flannelpy.packet import drops
from flannelpy.packet import headers as hdr


def check(data: bytearray, start: int, end: int) -> int:
    """0 when ``data[start:end]`` is exactly one IPv4 packet, else the drops.DropReason.

    The header checksum is left to the kernel that gets the packet: it is patched, never rebuilt, so a wrong one stays
    wrong.
    """
    length = end - start
    if length < hdr.IP_MIN_HEADER:
        return drops.DropReason.TRUNCATED
    if data[start] >> 4 != 4:
        return drops.DropReason.NOT_IPV4
    header = (data[start] & 0xF) * 4
    if header < hdr.IP_MIN_HEADER:
        return drops.DropReason.BAD_HEADER
    if header > length:
        return drops.DropReason.TRUNCATED
    if _word(data, start + hdr.IP_TOTAL_LENGTH) != length:
        return drops.DropReason.BAD_LENGTH
    return 0


def source(data: bytearray, start: int) -> int:
    """Source address, 0..2^32-1."""
    return _word(data, start + hdr.IP_SOURCE) << 16 | _word(data, start + hdr.IP_SOURCE + 2)


def destination(data: bytearray, start: int) -> int:
    """Destination address, 0..2^32-1."""
    return _word(data, start + hdr.IP_DESTINATION) << 16 | _word(data, start + hdr.IP_DESTINATION + 2)


def ip_ttl(data: bytearray, start: int) -> int:
    """Hops left."""
    return data[start + hdr.IP_TTL]


def decrement_ttl(data: bytearray, start: int) -> None:
    """One off the TTL, which must be above 0, and the header checksum patched to match.

    The TTL is the high byte of its word.  Counterpart: ip_decrease_ttl of the kernel.
    """
    checksum = _word(data, start + hdr.IP_CHECKSUM) + 0x100
    if checksum >= 0xFFFF:
        checksum -= 0xFFFF  # the carry comes round, and 0 has one form only
    data[start + hdr.IP_TTL] -= 1
    data[start + hdr.IP_CHECKSUM] = checksum >> 8
    data[start + hdr.IP_CHECKSUM + 1] = checksum & 0xFF


def _word(data: bytearray, at: int) -> int:
    return data[at] << 8 | data[at + 1]
