# The numbers of drops.py as C constants.  There is no compiled drops.py; a test compares the two files.

cdef enum DropReason:
    TRUNCATED = 1
    NOT_IPV4 = 2
    BAD_HEADER = 3
    BAD_LENGTH = 4
    NO_ROUTE = 5
    TTL_EXPIRED = 6
    SEND_BUFFER_FULL = 7
    TOO_BIG = 8
    SEND_FAILED = 9
    TUN_WRITE_FAILED = 10
    BAD_VNET_HDR = 11
    SOCKET_FILTERED_OR_FULL = 12
    TUN_QUEUE_FULL = 13
    UNKNOWN_SENDER = 14
    SPOOFED_SOURCE = 15
    WRONG_DESTINATION = 16
    WRONG_SENDER_PORT = 17
    OWN_DATAGRAM = 18
