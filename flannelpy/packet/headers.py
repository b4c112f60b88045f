"""Offsets and values of the IPv4, TCP, UDP and vnet headers.  headers.pxd repeats them as C constants.

A prefix names the byte that an offset counts from:

===========  ======================================================
prefix       offset from the start of
===========  ======================================================
``IP_``      the IPv4 header
``IP_TCP_``  an IPv4 header without options, with TCP behind it
``IP_UDP_``  an IPv4 header without options, with UDP behind it
``TCP_``     the TCP header
``UDP_``     the UDP header
``L4_``      the TCP or UDP header
``ICMP_``    the ICMP header
``VNET_``    the vnet header
===========  ======================================================

Source: RFC 791, RFC 9293, RFC 768, RFC 792; include/uapi/linux/virtio_net.h.
"""

IP_TOTAL_LENGTH = 2
IP_ID = 4
IP_FRAGMENT = 6
IP_TTL = 8
IP_PROTOCOL = 9
IP_CHECKSUM = 10
IP_SOURCE = 12
IP_DESTINATION = 16

IP_MIN_HEADER = 20
IP_VERSION_IHL = 0x45  # the first byte of a header without options

# In the 16-bit word at IP_FRAGMENT.
DONT_FRAGMENT = 0x4000
MORE_FRAGMENTS = 0x2000
FRAGMENT_OFFSET = 0x1FFF
ANY_FRAGMENT = MORE_FRAGMENTS | FRAGMENT_OFFSET

# Protocol numbers.
ICMP = 1
TCP = 6
UDP = 17

TCP_SEQUENCE = 4
TCP_ACKNOWLEDGEMENT = 8
TCP_DATA_OFFSET = 12
TCP_FLAGS = 13
TCP_WINDOW = 14
TCP_CHECKSUM = 16
TCP_URGENT = 18
TCP_MIN_HEADER = 20

# In the byte at TCP_FLAGS.
FIN = 0x01
PSH = 0x08
ACK = 0x10
CWR = 0x80

UDP_LENGTH = 4
UDP_CHECKSUM = 6
UDP_HEADER = 8

ICMP_CHECKSUM = 2

IP_TCP_SEQUENCE = IP_MIN_HEADER + TCP_SEQUENCE
IP_TCP_ACKNOWLEDGEMENT = IP_MIN_HEADER + TCP_ACKNOWLEDGEMENT
IP_TCP_DATA_OFFSET = IP_MIN_HEADER + TCP_DATA_OFFSET
IP_TCP_FLAGS = IP_MIN_HEADER + TCP_FLAGS
IP_TCP_WINDOW = IP_MIN_HEADER + TCP_WINDOW
IP_TCP_CHECKSUM = IP_MIN_HEADER + TCP_CHECKSUM
IP_TCP_URGENT = IP_MIN_HEADER + TCP_URGENT
IP_UDP_LENGTH = IP_MIN_HEADER + UDP_LENGTH
IP_UDP_CHECKSUM = IP_MIN_HEADER + UDP_CHECKSUM

# Its fields of 16 bits have the host's byte order.
VNET_FLAGS = 0
VNET_GSO_TYPE = 1
VNET_GSO_SIZE = 4
VNET_CSUM_START = 6
VNET_CSUM_OFFSET = 8
VNET_HEADER = 10

# In the byte at VNET_FLAGS.
NEEDS_CSUM = 1

# In the byte at VNET_GSO_TYPE.
GSO_TCPV4 = 1
GSO_UDP_L4 = 5
GSO_ECN = 0x80

# Limits: of one IPv4 packet, of the segments that the kernel merges, and of one send with UDP_SEGMENT.
# The kernel's own limits of a send are 64 segments (UDP_MAX_SEGMENTS before Linux 6.9) and 65,494 bytes.
IP_MAX_LENGTH = 65535
MAX_MERGED_SEGMENTS = 64  # UDP_GRO_CNT_MAX
MAX_SEND_SEGMENTS = 64
MAX_SEND_BYTES = 65000
