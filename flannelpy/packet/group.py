"""Groups a batch of packets from the TUN by what one send can take.  Pure.

The packets of a group are adjacent in the buffer, for one subnet and of one length; the last may be shorter.  The order
of packets never changes.  The grouper completes an unfinished checksum, except of a super-packet, whose segments each
get their own (segment.py).  It refuses a packet for our own subnet, so that no peer gets it, even with a lease that
overlaps.

It also refuses a datagram of our own socket, which would return through the TUN again and again.  Such a datagram has
our port as source and destination.  Its source address is the one that our socket is bound to, or the TUN's if a
masquerading rule changed it.  Later fragments have no ports: they are recognised by the identification and destination
of the first.
"""

import sys
from typing import NamedTuple

from flannelpy.packet import drops
from flannelpy.packet import headers as hdr
from flannelpy.packet.checksum import fold, wide_sum
from flannelpy.packet.ipv4 import check, decrement_ttl, destination, ip_ttl, source


class PacketGroup(NamedTuple):
    """``[start:end]`` of the buffer, to ``destination``: packets of ``segment_size`` bytes, or one super-packet.

    ``gso_size`` is 0 but for a super-packet.
    """

    destination: int
    start: int
    end: int
    segment_size: int
    gso_size: int


class Grouper:
    """Groups the packets in one buffer, whose length is a multiple of 4, by the vnet headers in another."""

    def __init__(
        self, buffer: bytearray, vnet_hdrs: bytearray, subnet: tuple[int, int], bound: tuple[int, int]
    ) -> None:
        """``subnet``: our own, as (network, mask); ``bound``: address and port of our socket."""
        self._buffers = buffer, vnet_hdrs
        self._raw = buffer
        self._words = memoryview(buffer).cast("I")
        self._vnet_raw = vnet_hdrs
        self._own, self._own_mask = subnet
        self._bound, self._port = bound
        self._refuses_fragments = False
        self.groups: list[PacketGroup] = []
        self.refused: list[tuple[int, int, int]] = []
        self._size = 0

    def group(self, lengths: list[int], mask: int) -> None:
        """Fill ``groups``, and ``refused`` with the (DropReason, start, end) of packets that cannot be sent.

        Addresses that are equal under ``mask`` are in one subnet.
        """
        self.groups = []
        self.refused = []
        start = 0
        header = 0
        for length in lengths:
            self._take(header, start, start + length, mask)
            header += hdr.VNET_HEADER
            start += length
        self._close()

    def decrement_ttls(self, start: int, end: int, segment_size: int) -> None:
        """Subtract 1 from the TTL of every packet in ``[start:end]``."""
        while start < end:
            decrement_ttl(self._raw, start)
            start += segment_size

    def _take(self, header: int, start: int, end: int, mask: int) -> None:
        gso_size = 0
        reason = check(self._raw, start, end)
        if not reason and self._raw[start + hdr.IP_PROTOCOL] == hdr.UDP and self._is_own_datagram(start, end):
            reason = drops.DropReason.OWN_DATAGRAM
        if not reason and self._vnet_raw[header + hdr.VNET_GSO_TYPE]:
            gso_size = self._gso_size(header, start)
            reason = 0 if gso_size else drops.DropReason.BAD_VNET_HDR
        elif not reason and self._vnet_raw[header] & hdr.NEEDS_CSUM:
            reason = 0 if self._finish_checksum(header, start, end) else drops.DropReason.BAD_VNET_HDR
        if not reason and destination(self._raw, start) & self._own_mask == self._own:
            reason = drops.DropReason.NO_ROUTE
        if not reason and ip_ttl(self._raw, start) <= 1:
            reason = drops.DropReason.TTL_EXPIRED
        if reason:
            self._close()
            self.refused.append((reason, start, end))
            return
        address = destination(self._raw, start)
        length = end - start
        if not self._fits(start, length, address & mask, gso_size):
            self._close()
            self._destination, self._subnet, self._start, self._size = address, address & mask, start, length
            self._gso = gso_size
        self._end = end
        self._full = length < self._size

    def _is_own_datagram(self, start: int, end: int) -> bool:
        """Whether a UDP packet is a datagram of our own socket, or a fragment of one."""
        address = source(self._raw, start)
        if address not in (self._bound, self._own):
            return False
        fragment = _get16(self._raw, start + hdr.IP_FRAGMENT)
        if fragment & hdr.FRAGMENT_OFFSET:
            found = self._follows(start)
        else:
            l4 = start + (self._raw[start] & 0xF) * 4
            found = l4 + 4 <= end and _get16(self._raw, l4) == self._port == _get16(self._raw, l4 + 2)
            self._destination_cut, self._id_cut = destination(self._raw, start), _get16(self._raw, start + hdr.IP_ID)
        self._refuses_fragments = found and bool(fragment & hdr.MORE_FRAGMENTS)
        return found

    def _follows(self, start: int) -> bool:
        """Whether a later fragment belongs to our own datagram before it."""
        if not self._refuses_fragments or destination(self._raw, start) != self._destination_cut:
            return False
        return _get16(self._raw, start + hdr.IP_ID) == self._id_cut

    def _fits(self, start: int, length: int, subnet: int, gso_size: int) -> bool:
        """Whether the packet extends the open group."""
        if not self._size or gso_size or self._gso or self._full:
            return False
        if start != self._end or subnet != self._subnet or length > self._size:
            return False
        behind = start - self._start
        return behind + length <= hdr.MAX_SEND_BYTES and behind < hdr.MAX_SEND_SEGMENTS * self._size

    def _close(self) -> None:
        """Complete the open group, if any."""
        if self._size:
            self.groups.append(PacketGroup(self._destination, self._start, self._end, self._size, self._gso))
        self._size = 0

    def _gso_size(self, header: int, start: int) -> int:
        """Payload bytes per segment of a super-packet; 0 if its vnet header is invalid."""
        gso_type = self._vnet_raw[header + hdr.VNET_GSO_TYPE] & ~hdr.GSO_ECN
        if gso_type != (hdr.GSO_TCPV4 if self._raw[start + hdr.IP_PROTOCOL] == hdr.TCP else hdr.GSO_UDP_L4):
            return 0
        return _host16(self._vnet_raw, header + hdr.VNET_GSO_SIZE)

    def _finish_checksum(self, header: int, start: int, end: int) -> bool:
        """Complete the L4 checksum, whose field holds the pseudo-header's sum; False if the vnet header is invalid."""
        l4 = start + _host16(self._vnet_raw, header + hdr.VNET_CSUM_START)
        offset = _host16(self._vnet_raw, header + hdr.VNET_CSUM_OFFSET)
        field = l4 + offset
        if l4 < start + (self._raw[start] & 0xF) * 4 or field + 2 > end:
            return False
        checksum = ~fold(wide_sum(self._raw, self._words, l4, end)) & 0xFFFF
        if not checksum and offset == hdr.UDP_CHECKSUM and self._raw[start + hdr.IP_PROTOCOL] == hdr.UDP:
            checksum = 0xFFFF
        self._raw[field] = checksum >> 8
        self._raw[field + 1] = checksum & 0xFF
        return True


def _get16(data: bytearray, at: int) -> int:
    return data[at] << 8 | data[at + 1]


_LITTLE_ENDIAN = sys.byteorder == "little"


def _host16(data: bytearray, at: int) -> int:
    """Return the 16-bit number in the host's byte order."""
    if _LITTLE_ENDIAN:
        return data[at + 1] << 8 | data[at]
    return data[at] << 8 | data[at + 1]
