"""The Internet checksum.  Pure: bytes in, numbers out.

Large sums are taken four bytes at a time, which is four times as fast when compiled.  For such a sum the caller gives
two views of a buffer: ``data`` by bytes, and ``words`` by 32-bit numbers in the host's byte order.

Source: RFC 1071 (sums, byte order independence).
"""

import sys

_LITTLE_ENDIAN = sys.byteorder == "little"


def ones_sum(data: bytearray, start: int, end: int) -> int:
    """Return the ones' complement sum of ``data[start:end]`` as 16-bit words in network order, folded, not inverted.

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


def wide_sum(data: bytearray, words: memoryview, start: int, end: int) -> int:
    """Return ``ones_sum(data, start, end)``, summed four bytes at a time."""
    first = (start + 3) >> 2
    last = end >> 2
    if first >= last:
        return ones_sum(data, start, end)
    total = 0
    for i in range(first, last):
        total += words[i]
    total = fold(total)
    if _LITTLE_ENDIAN:
        total = _swapped(total)
    total = fold(total + ones_sum(data, last << 2, end))
    # Up to here the bytes at even offsets are the high ones; the caller's are the first, third, …
    if start & 1:
        total = _swapped(total)
    return fold(total + ones_sum(data, start, first << 2))


def fold(total: int) -> int:
    """Add everything above 16 bits back in, until the sum has 16 bits."""
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _swapped(total: int) -> int:
    return (total & 0xFF) << 8 | total >> 8
