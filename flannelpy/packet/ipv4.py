"""The inner IPv4 header, read and changed in place in a larger buffer.  Pure.

``start`` and ``end`` are byte offsets of one packet in ``data``.  Only ``check`` accepts bytes that were not
checked.

Source: RFC 791 (header), RFC 1624 (checksum update).
"""

from flannelpy.packet import drops
from flannelpy.packet import headers as hdr


def check(data: bytearray, start: int, end: int) -> int:
    """Return 0 if ``data[start:end]`` is exactly one IPv4 packet, else the DropReason.

    The kernel that receives the packet verifies the header checksum: flannelpy only patches it, so a wrong one stays
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
    """Return the source address, 0..2^32-1."""
    return _word(data, start + hdr.IP_SOURCE) << 16 | _word(data, start + hdr.IP_SOURCE + 2)


def destination(data: bytearray, start: int) -> int:
    """Return the destination address, 0..2^32-1."""
    return _word(data, start + hdr.IP_DESTINATION) << 16 | _word(data, start + hdr.IP_DESTINATION + 2)


def ip_ttl(data: bytearray, start: int) -> int:
    """Return the TTL."""
    return data[start + hdr.IP_TTL]


def decrement_ttl(data: bytearray, start: int) -> None:
    """Subtract 1 from the TTL, which must be above 0, and patch the header checksum to match.

    The TTL is the high byte of its 16-bit word.  Counterpart: ip_decrease_ttl of the kernel.
    """
    checksum = _word(data, start + hdr.IP_CHECKSUM) + 0x100
    if checksum >= 0xFFFF:
        checksum -= 0xFFFF  # end-around carry; 0 has only one form
    data[start + hdr.IP_TTL] -= 1
    data[start + hdr.IP_CHECKSUM] = checksum >> 8
    data[start + hdr.IP_CHECKSUM + 1] = checksum & 0xFF


def _word(data: bytearray, at: int) -> int:
    return data[at] << 8 | data[at + 1]
