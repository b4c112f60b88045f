"""Why a packet goes no further.  Per-packet trouble is never raised: it is one of these, and counted."""

import enum


class DropReason(enum.IntEnum):
    """Numbered so that the compiled checks can return them; 0 is kept for "nothing wrong"."""

    TRUNCATED = 1  # shorter than an IPv4 header, or than its own header length
    NOT_IPV4 = 2  # another IP version
    BAD_HEADER = 3  # a header length below 20 bytes
    BAD_LENGTH = 4  # the total length differs from what arrived
    NO_ROUTE = 5  # nobody leases the destination
    TTL_EXPIRED = 6  # the last hop was used up here
    SOCKET_FULL = 7  # the UDP socket takes no more
    TOO_BIG = 8  # larger than the underlay carries
    SEND_FAILED = 9  # the underlay refused it: no route, not permitted
    TUN_REFUSED = 10  # the kernel did not take it from us
    BAD_OFFLOAD = 11  # the kernel's word about a super-packet or an unfinished checksum made no sense
    SOCKET_REFUSED = 12  # the kernel kept a datagram from us: of an unknown sender, or faster than we read them
    TUN_OVERFLOW = 13  # packets came faster than we read them
    UNKNOWN_SENDER = 14  # a datagram from an address that is no lease's public IP
    SPOOFED_SOURCE = 15  # it came over the wire, and says that it is from here, or from a host that did not send it
    WRONG_DESTINATION = 16  # it came over the wire, and is for no host or container here
    WRONG_SENDER_PORT = 17  # a datagram from a lease's public IP, but not from the backend's port
    OWN_DATAGRAM = 18  # one of our own datagrams, which a route led back into our TUN
