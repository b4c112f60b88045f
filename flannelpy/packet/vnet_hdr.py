"""The header in front of each packet that a TUN with offloads reads and writes.  Pure.

struct virtio_net_hdr {
    __u8 flags;         1 NEEDS_CSUM: the L4 checksum is unfinished, the next hop has to complete it
    __u8 gso_type;      0 none, 1 TCPV4, 5 UDP_L4; plus 0x80 when the TCP flow uses ECN
    __u16 hdr_len;      a hint, not to be trusted: see segment.py
    __u16 gso_size;     L4 payload bytes per segment
    __u16 csum_start;   offset of the L4 header
    __u16 csum_offset;  of the checksum behind it
};

Byte order is the host's.  Source: include/uapi/linux/virtio_net.h.
"""

import struct

from flannelpy.packet import headers as hdr

SIZE = hdr.VNET_HEADER

_HEADER = struct.Struct("=BBHHHH")

PLAIN = bytes(SIZE)


def super_packet(gso_type: int, header_length: int, gso_size: int, csum_start: int, csum_offset: int) -> bytes:
    """Return the vnet header of a super-packet whose L4 checksum field holds the folded pseudo-header sum.

    Units: ``header_length`` bytes of IP and L4 headers together.
    """
    return _HEADER.pack(hdr.NEEDS_CSUM, gso_type, header_length, gso_size, csum_start, csum_offset)
