"""The Internet checksum.  Pure: bytes in, numbers out.

Source: RFC 1071 (sums), RFC 1624 (incremental update).
"""


def ones_sum(data: bytearray, start: int, end: int) -> int:
    """Ones' complement sum of ``data[start:end]`` as 16-bit words in network order, folded, not inverted.

    An odd last byte counts as the high half of a word.  Shapes: offsets in bytes; result 0..0xffff.
    """
    total = 0
    last = end - 1
    i = start
    while i < last:
        total += (data[i] << 8) | data[i + 1]
        i += 2
    if i == last:
        total += data[i] << 8
    return fold(total)


def fold(total: int) -> int:
    """Carry everything above 16 bits back in, until nothing is above."""
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def update(checksum: int, old: int, new: int) -> int:
    """The header checksum after one of its 16-bit words went from ``old`` to ``new``.  Source: RFC 1624, equation 3."""
    return ~fold((~checksum & 0xFFFF) + (~old & 0xFFFF) + new) & 0xFFFF
