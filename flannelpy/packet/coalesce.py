"""Merges received packets into super-packets for the TUN, if no information is lost.  Pure.

A packet continues the one before it under these rules; otherwise it starts another super-packet, so that the order of
packets never changes.

=======================  ======================================================  ==============================
field                    rule                                                    source
=======================  ======================================================  ==============================
IP version, IHL          4, and no options                                       inet_gro_receive
IP TOS, all 8 bits       equal: ECN marks are kept apart                         RFC 3168, inet_gro_receive
IP total length          the packet's length (checked before)
IP identification        previous + 1, or any when DF is set                     RFC 6864, inet_gro_receive
IP flags, offset         no fragment; DF and reserved bit equal                  inet_gro_receive
IP TTL                   equal                                                   inet_gro_receive
IP protocol              TCP or UDP
IP header checksum       right: the super-packet gets a new one                  inet_gro_receive
addresses, ports         equal
TCP sequence number      previous + its payload                                  tcp_gro_receive
TCP acknowledgement      equal                                                   tcp_gro_receive
TCP data offset          equal                                                   tcp_gro_receive
TCP flags                ACK, and PSH, which ends the super-packet               RFC 9293; stricter than the kernel
TCP window               equal, so that no update is lost                        tcp_gro_receive
TCP urgent pointer       equal
TCP options              equal, byte for byte                                    tcp_gro_receive
UDP length               the rest of the packet
TCP, UDP checksum        right: the kernel does not verify it again              virtio_net.h; tcp4_gro_receive
UDP checksum 0           never: the super-packet's segments would get one        RFC 768
payload                  not empty; as long as the first's, or shorter: the end  tcp_gro_receive
total                    at most 64 segments and 65,535 bytes                    UDP_GRO_CNT_MAX, RFC 791
=======================  ======================================================  ==============================

A packet that no other continues reaches the TUN unchanged but for its TTL.

Every packet for the TUN comes from another subnet and goes to an address in our own, except its broadcast address.
"""

from collections.abc import Iterable

from flannelpy.packet import drops, vnet_hdr
from flannelpy.packet import headers as hdr
from flannelpy.packet.checksum import fold, ones_sum, wide_sum
from flannelpy.packet.ipv4 import check, decrement_ttl, ip_ttl
from flannelpy.packet.tally import Tally, count

# A literal of this size would be a Python object to Cython; coalesce.pxd gives the name a C type.
_ALL_ONES = 0xFFFFFFFF
_NO_SUBNET = 1, 0  # no address lies in it


class Coalescer:
    """Reads the packets of one buffer in order, and builds super-packets in another.

    Both buffers are bytearrays whose length is a multiple of 4; the coalescer keeps them exported.
    A subnet is (network, mask).
    """

    def __init__(
        self,
        source: bytearray,
        target: bytearray,
        subnet: tuple[int, int],
        merge_tcp: bool = True,
        merge_udp: bool = True,
    ) -> None:
        """``subnet``: our own."""
        # Each buffer in the C types that are fastest for fields (_raw), sums (_words) and copies (_bytes), and sliced
        # as a Python object (_view).
        self._buffers = source, target
        self._source_raw = source
        self._source_words = memoryview(source).cast("I")
        self._source_bytes = source
        self._source_view = memoryview(source)
        self._target_raw = target
        self._target_bytes = target
        self._target_view = memoryview(target)
        self._own, self._own_mask = subnet
        self._broadcast = self._own | ~self._own_mask & _ALL_ONES
        self._any_source = True
        self._subnets: list[tuple[int, int]] = []
        self._network, self._mask = _NO_SUBNET
        self._merge_tcp = merge_tcp
        self._merge_udp = merge_udp
        self._merges = merge_tcp or merge_udp
        self.begin()

    def begin(self, now: float = 0.0) -> None:
        """Clear the results of the last batch; the next one was received at time ``now``, in seconds.

        ``packets`` are (vnet header, packet) pairs for the TUN, ``refused`` are (DropReason, start, stop).  The packets
        are borrowed: valid until the next ``begin``.
        """
        self.packets: list[tuple[bytes, memoryview | bytes]] = []
        self.refused: list[tuple[int, int, int]] = []
        self._count = 0
        self._end = 0
        self._now = now

    def allow_sources(self, subnets: Iterable[tuple[int, int]]) -> None:
        """Refuse sources outside these subnets from now on; before the first call, only our own subnet is refused."""
        self._any_source = False
        self._subnets = list(subnets)
        self._network, self._mask = _NO_SUBNET

    def add(self, start: int, end: int, segment_size: int, tally: Tally | None = None) -> None:
        """Add adjacent datagrams of ``segment_size`` bytes each; the last may be shorter.

        ``tally``: counts those that are not refused.
        """
        self._refused_packets = self._refused_bytes = 0
        self._add_datagrams(start, end, segment_size)
        accepted = count(end - start, segment_size) - self._refused_packets
        if accepted and tally is not None:
            tally.accepted(accepted, end - start - self._refused_bytes, self._now)

    def _add_datagrams(self, start: int, end: int, segment_size: int) -> None:
        while True:
            stop = start + segment_size
            if stop > end:
                stop = end
            self._add_datagram(start, stop)
            if stop == end:  # compared last, because a datagram may be empty
                return
            start = stop

    def finish(self) -> None:
        """Complete the batch."""
        self._close()

    def _add_datagram(self, start: int, stop: int) -> None:
        reason = check(self._source_raw, start, stop)
        if not reason:
            reason = self._misdirected(start)
        if not reason and ip_ttl(self._source_raw, start) <= 1:
            reason = drops.DropReason.TTL_EXPIRED
        if reason:
            self._close()
            self.refused.append((reason, start, stop))
            self._refused_packets += 1
            self._refused_bytes += stop - start
            return
        decrement_ttl(self._source_raw, start)
        if self._merges:
            self._add_packet(start, stop)
        else:
            self.packets.append((vnet_hdr.PLAIN, self._source_view[start:stop]))

    def _misdirected(self, start: int) -> int:
        """Return the DropReason of a packet whose addresses are not allowed, else 0."""
        source = _get32(self._source_raw, start + hdr.IP_SOURCE)
        if source & self._own_mask == self._own or not (self._any_source or self._expected(source)):
            return drops.DropReason.SPOOFED_SOURCE
        destination = _get32(self._source_raw, start + hdr.IP_DESTINATION)
        if destination & self._own_mask != self._own or destination == self._broadcast:
            return drops.DropReason.WRONG_DESTINATION
        return 0

    def _expected(self, source: int) -> bool:
        """Whether the address is in one of the subnets; most often it is in the last packet's."""
        if source & self._mask == self._network:
            return True
        for network, mask in self._subnets:
            if source & mask == network:
                self._network, self._mask = network, mask
                return True
        return False

    def _add_packet(self, start: int, stop: int) -> None:
        header = self._mergeable(start, stop)
        if header and self._count and self._continues(start, stop, header):
            self._append(start, stop)
            return
        self._close()
        self._start, self._stop, self._count = start, stop, 1
        self._header = header
        self._gso_size = stop - start - header
        self._complete = not header or self._ends(start, stop)
        self._verified = False
        self._built = False

    def _mergeable(self, start: int, stop: int) -> int:
        """Bytes of IP and L4 header if the packet by itself may be part of a super-packet, else 0."""
        data = self._source_raw
        if data[start] != hdr.IP_VERSION_IHL or _get16(data, start + hdr.IP_FRAGMENT) & hdr.ANY_FRAGMENT:
            return 0
        header = 0
        if data[start + hdr.IP_PROTOCOL] == hdr.TCP:
            header = self._tcp_header(start, stop)
        elif data[start + hdr.IP_PROTOCOL] == hdr.UDP:
            header = self._udp_header(start, stop)
        return header if header < stop - start else 0

    def _tcp_header(self, start: int, stop: int) -> int:
        if not self._merge_tcp or stop - start < 40 or self._source_raw[start + hdr.IP_TCP_FLAGS] & ~hdr.PSH != hdr.ACK:
            return 0
        header = (self._source_raw[start + hdr.IP_TCP_DATA_OFFSET] >> 4) * 4
        return hdr.IP_MIN_HEADER + header if header >= 20 else 0

    def _udp_header(self, start: int, stop: int) -> int:
        if not self._merge_udp or stop - start < 28 or not _get16(self._source_raw, start + hdr.IP_UDP_CHECKSUM):
            return 0
        return 28 if _get16(self._source_raw, start + hdr.IP_UDP_LENGTH) == stop - start - hdr.IP_MIN_HEADER else 0

    def _ends(self, start: int, stop: int) -> bool:
        """Whether no packet may follow this one: it is shorter than the first, or has PSH set."""
        if (
            self._source_raw[start + hdr.IP_PROTOCOL] == hdr.TCP
            and self._source_raw[start + hdr.IP_TCP_FLAGS] & hdr.PSH
        ):
            return True
        return stop - start - self._header < self._gso_size

    def _continues(self, start: int, stop: int, header: int) -> bool:
        size = stop - start - header
        if self._complete or header != self._header or size > self._gso_size:
            return False
        if self._count >= hdr.MAX_MERGED_SEGMENTS or self._header + self._payload() + size > hdr.IP_MAX_LENGTH:
            return False
        if not self._same_flow(start):
            return False
        if not self._verified and not self._checksums_right(self._start, self._stop):
            return False
        self._verified = True
        return self._checksums_right(start, stop)

    def _payload(self) -> int:
        """Payload bytes so far; all packets are as long as the first, since a shorter one is the last."""
        return self._count * self._gso_size

    def _same_flow(self, start: int) -> bool:
        """Whether each field equals the first packet's, or is its successor where the table above asks for that."""
        data, head = self._source_raw, self._start
        if not (_equal(data, head, start, 0, 2) and _equal(data, head, start, hdr.IP_FRAGMENT, hdr.IP_CHECKSUM)):
            return False
        if not _equal(data, head, start, hdr.IP_SOURCE, hdr.IP_MIN_HEADER + 4):
            return False
        identification = (_get16(data, head + hdr.IP_ID) + self._count) & 0xFFFF
        if (
            _get16(data, start + hdr.IP_ID) != identification
            and not _get16(data, start + hdr.IP_FRAGMENT) & hdr.DONT_FRAGMENT
        ):
            return False
        if data[start + hdr.IP_PROTOCOL] == hdr.UDP:
            return True
        if (
            _get32(data, start + hdr.IP_TCP_SEQUENCE)
            != (_get32(data, head + hdr.IP_TCP_SEQUENCE) + self._payload()) & _ALL_ONES
        ):
            return False
        return (
            _equal(data, head, start, hdr.IP_TCP_ACKNOWLEDGEMENT, hdr.IP_TCP_FLAGS)
            and _equal(data, head, start, hdr.IP_TCP_WINDOW, hdr.IP_TCP_CHECKSUM)
            and _equal(data, head, start, hdr.IP_TCP_URGENT, self._header)
        )

    def _checksums_right(self, start: int, stop: int) -> bool:
        l4 = start + hdr.IP_MIN_HEADER
        if ones_sum(self._source_raw, start, l4) != 0xFFFF:
            return False
        pseudo = self._pseudo_header_sum(start, stop - l4)
        return fold(pseudo + wide_sum(self._source_raw, self._source_words, l4, stop)) == 0xFFFF

    def _pseudo_header_sum(self, start: int, l4_length: int) -> int:
        addresses = ones_sum(self._source_raw, start + hdr.IP_SOURCE, start + hdr.IP_MIN_HEADER)
        return fold(addresses + self._source_raw[start + hdr.IP_PROTOCOL] + l4_length)

    def _append(self, start: int, stop: int) -> None:
        """Append the packet's payload to the super-packet; the second packet causes the copy of the first."""
        if not self._built:
            self._built_at = self._end
            _copy(self._target_bytes, self._end, self._source_bytes, self._start, self._stop - self._start)
            self._end += self._stop - self._start
            self._built = True
        size = stop - start - self._header
        _copy(self._target_bytes, self._end, self._source_bytes, start + self._header, size)
        self._end += size
        self._count += 1
        self._complete = self._ends(start, stop)
        if self._source_raw[start + hdr.IP_PROTOCOL] == hdr.TCP:
            self._target_raw[self._built_at + hdr.IP_TCP_FLAGS] |= self._source_raw[start + hdr.IP_TCP_FLAGS]

    def _close(self) -> None:
        """Add the open packet or super-packet to ``packets``."""
        if self._count == 1:
            self.packets.append((vnet_hdr.PLAIN, self._source_view[self._start : self._stop]))
        elif self._count:
            self._finish_headers()
            gso_type, checksum = (
                (hdr.GSO_TCPV4, hdr.IP_TCP_CHECKSUM) if self._is_tcp() else (hdr.GSO_UDP_L4, hdr.IP_UDP_CHECKSUM)
            )
            header = vnet_hdr.super_packet(
                gso_type, self._header, self._gso_size, hdr.IP_MIN_HEADER, checksum - hdr.IP_MIN_HEADER
            )
            self.packets.append((header, self._target_view[self._built_at : self._end]))
        self._count = 0

    def _is_tcp(self) -> bool:
        return self._source_raw[self._start + hdr.IP_PROTOCOL] == hdr.TCP

    def _finish_headers(self) -> None:
        """Write lengths and checksums; the L4 field gets the pseudo-header's sum, and the kernel completes it."""
        target, at = self._target_raw, self._built_at
        length = self._end - at
        _put16(target, at + hdr.IP_TOTAL_LENGTH, length)
        _put16(target, at + hdr.IP_CHECKSUM, 0)
        _put16(target, at + hdr.IP_CHECKSUM, ~ones_sum(target, at, at + hdr.IP_MIN_HEADER) & 0xFFFF)
        pseudo = self._pseudo_header_sum(self._start, length - hdr.IP_MIN_HEADER)
        if self._is_tcp():
            _put16(target, at + hdr.IP_TCP_CHECKSUM, pseudo)
        else:
            _put16(target, at + hdr.IP_UDP_LENGTH, length - hdr.IP_MIN_HEADER)
            _put16(target, at + hdr.IP_UDP_CHECKSUM, pseudo)


# Private here and in segment.py: the C compiler cannot inline across extension modules.


def _get16(data: bytearray, at: int) -> int:
    return data[at] << 8 | data[at + 1]


def _get32(data: bytearray, at: int) -> int:
    return _get16(data, at) << 16 | _get16(data, at + 2)


def _put16(data: bytearray, at: int, value: int) -> None:
    data[at] = value >> 8
    data[at + 1] = value & 0xFF


def _equal(data: bytearray, one: int, other: int, start: int, end: int) -> bool:
    """Whether two packets are equal from offset ``start`` to ``end``."""
    for i in range(start, end):  # noqa: SIM110 - a generator would not compile to a plain loop
        if data[one + i] != data[other + i]:
            return False
    return True


def _copy(target: bytearray, at: int, source: bytearray, start: int, length: int) -> None:
    target[at : at + length] = source[start : start + length]
