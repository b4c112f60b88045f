"""Cuts a super-packet from the TUN into the packets that go over the wire.  Pure.

The kernel passes up to 64 KB with one header and leaves the segmentation to the reader, as to a network card:

========================  ====================================================================
field                     in segment i of n
========================  ====================================================================
IP total length           its own
IP identification         that of the super-packet + i, mod 2^16
IP header checksum        its own
TCP sequence number       that of the super-packet + i * gso_size, mod 2^32
TCP FIN, PSH              only in the last
TCP CWR                   only in the first (RFC 3168, section 6.1.2)
TCP other flags, options  unchanged
UDP length                its own
TCP, UDP checksum         its own; a UDP checksum that comes out as 0 is sent as 0xffff (RFC 768)
========================  ====================================================================

The kernel's ``hdr_len`` is never used: for forwarded packets it is the length of the first buffer, not of the headers.

Source: inet_gso_segment, tcp_gso_segment and __udp_gso_segment of the kernel.
"""

from flannelpy.packet import headers as hdr
from flannelpy.packet.checksum import fold, ones_sum, wide_sum

# A literal of this size would be a Python object to Cython; segment.pxd gives the name a C type.
_ALL_ONES = 0xFFFFFFFF


class Segmenter:
    """Cuts super-packets in one buffer into segments in another.

    Both buffers are bytearrays whose length is a multiple of 4; the segmenter keeps them exported.
    """

    def __init__(self, source: bytearray, target: bytearray) -> None:
        # Each buffer in the C types that are fastest for fields (_raw), sums (_words) and copies (_bytes).
        self._buffers = source, target
        self._source_raw = source
        self._source_words = memoryview(source).cast("I")
        self._source_bytes = source
        self._target_raw = target
        self._target_bytes = target
        self._target_size = len(target)

    def segment(self, start: int, end: int, gso_size: int, at: int) -> int:
        """Write the segments of the checked packet ``[start:end]`` without gaps, from ``at`` on, and return their end.

        Return 0 if header or ``gso_size`` are invalid, or the segments exceed the buffer.  All segments but the last
        have ``header_length(start) + gso_size`` bytes.  The super-packet's own header is overwritten.
        """
        header = self.header_length(start)
        payload = end - start - header
        if not header or payload <= 0 or gso_size <= 0:
            return 0
        count = (payload + gso_size - 1) // gso_size
        if at + count * header + payload > self._target_size:
            return 0
        return self._segment(start, start + header, end, gso_size, at)

    def header_length(self, start: int) -> int:
        """Return the bytes of IP and L4 header together; 0 for a protocol other than TCP and UDP, or a short header."""
        ip_header = (self._source_raw[start] & 0xF) * 4
        if self._source_raw[start + hdr.IP_PROTOCOL] == hdr.UDP:
            return ip_header + 8
        if self._source_raw[start + hdr.IP_PROTOCOL] != hdr.TCP:
            return 0
        tcp_header = (self._source_raw[start + ip_header + hdr.TCP_DATA_OFFSET] >> 4) * 4
        return ip_header + tcp_header if tcp_header >= 20 else 0

    def _segment(self, start: int, payload: int, end: int, gso_size: int, at: int) -> int:
        """Sum the header only once for all checksums, after setting the fields that differ to 0."""
        data = self._source_raw
        l4 = (data[start] & 0xF) * 4
        header = payload - start
        identification = _get16(data, start + hdr.IP_ID)
        is_tcp = data[start + hdr.IP_PROTOCOL] == hdr.TCP
        sequence = _get16(data, start + l4 + hdr.TCP_SEQUENCE) << 16 | _get16(data, start + l4 + hdr.TCP_SEQUENCE + 2)
        flags = data[start + l4 + hdr.TCP_FLAGS] if is_tcp else 0
        dropped_flags = hdr.FIN | hdr.PSH
        self._clear(start, start + l4, is_tcp)
        ip_sum = ones_sum(data, start, start + l4)
        l4_sum = self._pseudo_header_sum(start) + ones_sum(data, start + l4, payload)
        while payload < end:
            length = gso_size
            if payload + length >= end:
                length = end - payload
                dropped_flags &= ~(hdr.FIN | hdr.PSH)
            _copy(self._target_bytes, at, self._source_bytes, start, header)
            _copy(self._target_bytes, at + header, self._source_bytes, payload, length)
            self._finish_ip(at, header + length, identification, ip_sum)
            total = l4_sum + header - l4 + length + wide_sum(data, self._source_words, payload, payload + length)
            if is_tcp:
                self._finish_tcp(at + l4, sequence, flags & ~dropped_flags, total)
            else:
                self._finish_udp(at + l4, header - l4 + length, total)
            sequence = (sequence + length) & _ALL_ONES
            identification = (identification + 1) & 0xFFFF
            dropped_flags |= hdr.CWR
            payload += length
            at += header + length
        return at

    def _clear(self, ip: int, l4: int, is_tcp: int) -> None:
        """Set the fields to 0 that differ between segments."""
        _put16(self._source_raw, ip + hdr.IP_TOTAL_LENGTH, 0)
        _put16(self._source_raw, ip + hdr.IP_ID, 0)
        _put16(self._source_raw, ip + hdr.IP_CHECKSUM, 0)
        if is_tcp:
            _put16(self._source_raw, l4 + hdr.TCP_SEQUENCE, 0)
            _put16(self._source_raw, l4 + hdr.TCP_SEQUENCE + 2, 0)
            self._source_raw[l4 + hdr.TCP_FLAGS] = 0
            _put16(self._source_raw, l4 + hdr.TCP_CHECKSUM, 0)
        else:
            _put16(self._source_raw, l4 + hdr.UDP_LENGTH, 0)
            _put16(self._source_raw, l4 + hdr.UDP_CHECKSUM, 0)

    def _pseudo_header_sum(self, start: int) -> int:
        """Return the sum of addresses and protocol; the length differs between segments."""
        return (
            ones_sum(self._source_raw, start + hdr.IP_SOURCE, start + hdr.IP_SOURCE + 8)
            + self._source_raw[start + hdr.IP_PROTOCOL]
        )

    def _finish_ip(self, at: int, total_length: int, identification: int, ip_sum: int) -> None:
        _put16(self._target_raw, at + hdr.IP_TOTAL_LENGTH, total_length)
        _put16(self._target_raw, at + hdr.IP_ID, identification)
        _put16(self._target_raw, at + hdr.IP_CHECKSUM, ~fold(ip_sum + total_length + identification) & 0xFFFF)

    def _finish_tcp(self, at: int, sequence: int, flags: int, total: int) -> None:
        _put16(self._target_raw, at + hdr.TCP_SEQUENCE, sequence >> 16)
        _put16(self._target_raw, at + hdr.TCP_SEQUENCE + 2, sequence & 0xFFFF)
        self._target_raw[at + hdr.TCP_FLAGS] = flags
        total += (sequence >> 16) + (sequence & 0xFFFF) + flags
        _put16(self._target_raw, at + hdr.TCP_CHECKSUM, ~fold(total) & 0xFFFF)

    def _finish_udp(self, at: int, length: int, total: int) -> None:
        _put16(self._target_raw, at + hdr.UDP_LENGTH, length)
        checksum = ~fold(total + length) & 0xFFFF
        _put16(self._target_raw, at + hdr.UDP_CHECKSUM, checksum or 0xFFFF)


# Private here and in coalesce.py: the C compiler cannot inline across extension modules.


def _get16(data: bytearray, at: int) -> int:
    return data[at] << 8 | data[at + 1]


def _put16(data: bytearray, at: int, value: int) -> None:
    data[at] = value >> 8
    data[at + 1] = value & 0xFF


def _copy(target: bytearray, at: int, source: bytearray, start: int, length: int) -> None:
    target[at : at + length] = source[start : start + length]
