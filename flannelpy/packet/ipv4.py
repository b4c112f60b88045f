"""The inner IPv4 header, read and changed in place in a larger buffer.  Pure.

``start`` and ``end`` are byte offsets of one packet in ``data``.  Only ``check`` may be given bytes that were not
checked yet.

Source: RFC 791 (header), RFC 1624 (checksum update).
"""

_TOTAL_LENGTH = 2
_TTL = 8
_CHECKSUM = 10
_SOURCE = 12
_DESTINATION = 16
_MIN_HEADER = 20

# DropReason by number: an enumeration costs a dictionary look-up per packet.
_TRUNCATED = 1
_NOT_IPV4 = 2
_BAD_HEADER = 3
_BAD_LENGTH = 4


def check(data: bytearray, start: int, end: int) -> int:
    """0 when ``data[start:end]`` is exactly one IPv4 packet, else the DropReason.

    The header checksum is left to the kernel that gets the packet: it is patched, never rebuilt, so a wrong one stays
    wrong.
    """
    length = end - start
    if length < _MIN_HEADER:
        return _TRUNCATED
    if data[start] >> 4 != 4:
        return _NOT_IPV4
    header = (data[start] & 0xF) * 4
    if header < _MIN_HEADER:
        return _BAD_HEADER
    if header > length:
        return _TRUNCATED
    if _word(data, start + _TOTAL_LENGTH) != length:
        return _BAD_LENGTH
    return 0


def source(data: bytearray, start: int) -> int:
    """Source address, 0..2^32-1."""
    return _word(data, start + _SOURCE) << 16 | _word(data, start + _SOURCE + 2)


def destination(data: bytearray, start: int) -> int:
    """Destination address, 0..2^32-1."""
    return _word(data, start + _DESTINATION) << 16 | _word(data, start + _DESTINATION + 2)


def ip_ttl(data: bytearray, start: int) -> int:
    """Hops left."""
    return data[start + _TTL]


def decrement_ttl(data: bytearray, start: int) -> None:
    """One off the TTL, which must be above 0, and the header checksum patched to match.

    The TTL is the high byte of its word.  Counterpart: ip_decrease_ttl of the kernel.
    """
    checksum = _word(data, start + _CHECKSUM) + 0x100
    if checksum >= 0xFFFF:
        checksum -= 0xFFFF  # the carry comes round, and 0 has one form only
    data[start + _TTL] -= 1
    data[start + _CHECKSUM] = checksum >> 8
    data[start + _CHECKSUM + 1] = checksum & 0xFF


def _word(data: bytearray, at: int) -> int:
    return data[at] << 8 | data[at + 1]
