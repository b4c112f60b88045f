"""The reasons for which flannelpy drops a packet.  A packet raises no exception: its reason is counted."""

import enum


class DropReason(enum.IntEnum):
    """Reasons by number; 0 means that nothing is wrong.  drops.pxd repeats the numbers for the compiled code.

    The names, in lower case, are the words of the "Dropped packets" log line.
    """

    TRUNCATED = 1  # shorter than an IPv4 header, or than its own header length
    NOT_IPV4 = 2  # another IP version
    BAD_HEADER = 3  # a header length below 20 bytes
    BAD_LENGTH = 4  # the total length differs from the number of bytes that arrived
    NO_ROUTE = 5  # no other host leases the destination
    TTL_EXPIRED = 6  # the TTL allows no further hop
    SEND_BUFFER_FULL = 7  # the send buffer of the UDP socket is full
    TOO_BIG = 8  # larger than the underlay carries
    SEND_FAILED = 9  # the kernel rejected the datagram: no route, not permitted
    TUN_WRITE_FAILED = 10  # the kernel rejected a packet that was written to the TUN
    BAD_VNET_HDR = 11  # the vnet header describes a super-packet or an unfinished checksum that cannot be
    SOCKET_FILTERED_OR_FULL = 12  # the socket's filter or its full receive buffer dropped the datagram
    TUN_QUEUE_FULL = 13  # packets arrived at the TUN faster than flannelpy reads them
    UNKNOWN_SENDER = 14  # a datagram from an address that is no lease's public IP
    SPOOFED_SOURCE = 15  # a peer sent it, but its source is in our subnet, or not in the sender's
    WRONG_DESTINATION = 16  # a peer sent it, but its destination is no address of a host or container here
    WRONG_SENDER_PORT = 17  # a datagram from a lease's public IP, but not from the backend's port
    OWN_DATAGRAM = 18  # a datagram of our own socket, which a route led back into the TUN
