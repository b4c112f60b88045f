"""The program at the egress of the TUN: puts a packet into a datagram, and sends it to the peer's host.  Pure.

It checks the packet as ``checks.Outgoing`` says, asks the kernel for the next hop, puts an IPv4 and a UDP header in
front as the socket's would be, and has the kernel send the result by the external interface, resolving the neighbour if
it has to.  The UDP checksum is 0: the packet may hold a checksum that is to be completed by the hardware.

A TUN has no link header.  Under BPF_PROG_TEST_RUN, whose interface is the loopback one, a packet has an Ethernet
header; the program then works behind that.

Source: include/uapi/linux/bpf.h of the kernel, the descriptions of the helper functions.
"""

from __future__ import annotations

from flannelpy.bpf.assembler import Assembler, Program
from flannelpy.bpf.instructions import Helper, Size
from flannelpy.datapath.fast_path import maps
from flannelpy.datapath.fast_path.checks import Outgoing
from flannelpy.datapath.fast_path.parts import (
    BPF_ADJ_ROOM_MAC,
    BPF_F_ADJ_ROOM_FIXED_GSO,
    ETH_HEADER,
    LOOPBACK,
    OUTER_HEADERS,
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
    SKB_GSO_SIZE,
    SKB_IFINDEX,
    SKB_LEN,
    SKB_MARK,
    SKB_PRIORITY,
    Constants,
    check_deadline,
    check_inner_header,
    check_subnet,
    count_carried,
    decrement_ttl,
    leave_to_loop,
    load_bytes,
    look_up,
    measure_super_packet,
    network_half,
    network_order,
    store_bytes,
)
from flannelpy.packet import headers as hdr

_BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, _BPF_F_ADJ_ROOM_ENCAP_L4_UDP = 1 << 1, 1 << 4
_FIB_SUCCESS, _FIB_FWD_DISABLED, _FIB_NO_NEIGH, _FIB_FRAG_NEEDED = 0, 5, 7, 8
_AF_INET = 2
# SKB_MAX_ALLOC with pages of 4 KB, less what the kernel itself needs there, and less our headers.
_LONGEST_SINGLE = 15_000

# The stack.  The outer headers and the inner one lie together, as they are written into the packet.
_HEADERS = -48
_INNER = _HEADERS + OUTER_HEADERS
_KEY = -56
# struct bpf_fib_lookup, and the offsets of its members.
_FIB, _FIB_SIZE = -120, 64
_FIB_PROTOCOL, _FIB_SOURCE_PORT, _FIB_DESTINATION_PORT, _FIB_TOTAL_LENGTH = 1, 2, 4, 6
_FIB_INDEX, _FIB_SOURCE, _FIB_DESTINATION = 8, 16, 32
# struct bpf_redir_neigh: the family, and an address of up to 16 bytes.
_NEIGHBOUR, _NEIGHBOUR_SIZE = -144, 20
_SCRATCH = -152
_LOOK_UP_RESULT = -160


def program(constants: Constants) -> Program:
    """Return the program.

    R6: the packet's __sk_buff; R7: its length without a link header; R8: the bytes of headers of a super-packet, or 0;
    R9: the length of the link header.
    """
    code = Assembler()
    _start(code)
    check_deadline(code, Outgoing)
    load_bytes(code, R9, _INNER, hdr.IP_MIN_HEADER, missing=Outgoing.TRUNCATED.label)
    check_inner_header(code, Outgoing, _INNER)
    _check_own_datagram(code, constants)
    code.set(R5, R9)
    code.compute(R5, "+=", hdr.IP_MIN_HEADER)
    measure_super_packet(code, Outgoing, _INNER, _SCRATCH, R5)
    code.load(Size.WORD, R3, R10, _INNER + hdr.IP_DESTINATION)
    check_subnet(code, R3, constants.subnet, "==", Outgoing.OWN_SUBNET.label)
    _check_length(code)
    _find_peer(code)
    code.load(Size.BYTE, R2, R10, _INNER + hdr.IP_TTL)
    code.jump_if(R2, "<=", 1, to=Outgoing.TTL.label)
    _find_next_hop(code, constants)
    _write_outer_headers(code, constants)
    decrement_ttl(code, _INNER)
    _encapsulate(code)
    _send(code)
    leave_to_loop(code, Outgoing, "left_outgoing")
    return code.program()


def _start(code: Assembler) -> None:
    code.set(R6, R1)
    code.set(R9, 0)
    code.load(Size.WORD, R2, R6, SKB_IFINDEX)
    code.jump_if(R2, "!=", LOOPBACK, to="no link header")
    code.set(R9, ETH_HEADER)
    code.label("no link header")
    code.load(Size.WORD, R7, R6, SKB_LEN)
    code.compute(R7, "-=", R9)


def _check_own_datagram(code: Assembler, constants: Constants) -> None:
    """Leave to the loop what a route may have led back: the engine recognises later fragments by the first."""
    code.load(Size.BYTE, R2, R10, _INNER + hdr.IP_PROTOCOL)
    code.jump_if(R2, "!=", hdr.UDP, to="not own")
    code.load(Size.WORD, R2, R10, _INNER + hdr.IP_SOURCE)
    code.set(R3, network_order(constants.bound))
    code.jump_if(R2, "==", R3, to="own address")
    code.set(R3, network_order(constants.subnet.network_address))
    code.jump_if(R2, "!=", R3, to="not own")
    code.label("own address")
    code.load(Size.HALF, R2, R10, _INNER + hdr.IP_FRAGMENT)
    code.big_endian(R2, 16)
    code.jump_if(R2, "&", hdr.ANY_FRAGMENT, to=Outgoing.OWN_DATAGRAM.label)
    code.load(Size.BYTE, R5, R10, _INNER)
    code.compute(R5, "&=", 0xF)
    code.compute(R5, "<<=", 2)
    code.compute(R5, "+=", R9)
    load_bytes(code, R5, _SCRATCH, 4, missing=Outgoing.OWN_DATAGRAM.label)
    code.load(Size.WORD, R2, R10, _SCRATCH)
    code.big_endian(R2, 32)
    code.set(R3, constants.port << 16 | constants.port)
    code.jump_if(R2, "==", R3, to=Outgoing.OWN_DATAGRAM.label)
    code.label("not own")


def _check_length(code: Assembler) -> None:
    code.set(R2, hdr.IP_MAX_LENGTH - OUTER_HEADERS)
    code.jump_if(R8, "!=", 0, to="limit")
    code.set(R2, _LONGEST_SINGLE)
    code.label("limit")
    code.jump_if(R7, ">", R2, to=Outgoing.TOO_LONG.label)


def _find_peer(code: Assembler) -> None:
    """Write the public IP into the outer header, and the peer's subnet to the stack, as the key of ``peers``."""
    code.store(Size.WORD, R10, _KEY, 32)
    code.load(Size.WORD, R2, R10, _INNER + hdr.IP_DESTINATION)
    code.store(Size.WORD, R10, _KEY + 4, R2)
    look_up(code, "routes", _KEY)
    code.jump_if(R0, "==", 0, to=Outgoing.NO_PEER.label)
    code.load(Size.WORD, R2, R0, maps.PUBLIC_IP)
    code.jump_if(R2, "==", 0, to=Outgoing.NO_PEER.label)
    code.store(Size.WORD, R10, _HEADERS + hdr.IP_DESTINATION, R2)
    for member in (maps.NETWORK, maps.MASK):
        code.load(Size.WORD, R2, R0, member)
        code.store(Size.WORD, R10, _KEY + member, R2)


def _find_next_hop(code: Assembler, constants: Constants) -> None:
    """Have the kernel look up the underlay's route, as for a packet of this host, and compare the MTU."""
    for at in range(_FIB, _FIB + _FIB_SIZE, 8):
        code.store(Size.DOUBLE, R10, at, 0)
    code.store(Size.BYTE, R10, _FIB, _AF_INET)
    code.store(Size.BYTE, R10, _FIB + _FIB_PROTOCOL, hdr.UDP)
    for port in (_FIB_SOURCE_PORT, _FIB_DESTINATION_PORT):
        code.store(Size.HALF, R10, _FIB + port, network_half(constants.port))
    # With the loopback interface as input, the look-up is the one that a socket would do.
    code.store(Size.WORD, R10, _FIB + _FIB_INDEX, LOOPBACK)
    code.set(R2, network_order(constants.bound))
    code.store(Size.WORD, R10, _FIB + _FIB_SOURCE, R2)
    code.load(Size.WORD, R2, R10, _HEADERS + hdr.IP_DESTINATION)
    code.store(Size.WORD, R10, _FIB + _FIB_DESTINATION, R2)
    code.set(R2, R7)
    code.jump_if(R8, "==", 0, to="largest")
    code.load(Size.WORD, R2, R6, SKB_GSO_SIZE)
    code.compute(R2, "+=", R8)
    code.label("largest")
    code.compute(R2, "+=", OUTER_HEADERS)
    code.jump_if(R2, ">", hdr.IP_MAX_LENGTH, to=Outgoing.TOO_LONG.label)
    code.store(Size.HALF, R10, _FIB + _FIB_TOTAL_LENGTH, R2)
    code.set(R1, R6)
    code.set(R2, R10)
    code.compute(R2, "+=", _FIB)
    code.set(R3, _FIB_SIZE)
    code.set(R4, 0)
    code.call(Helper.FIB_LOOKUP)
    code.store(Size.WORD, R10, _LOOK_UP_RESULT, R0)
    code.jump_if(R0, "==", _FIB_SUCCESS, to="found")
    code.jump_if(R0, "==", _FIB_FRAG_NEEDED, to=Outgoing.TOO_BIG.label)
    code.jump_if(R0, "==", _FIB_FWD_DISABLED, to=Outgoing.NOT_FORWARDING.label)
    code.jump_if(R0, "!=", _FIB_NO_NEIGH, to=Outgoing.OTHER_WAY.label)
    code.label("found")
    code.load(Size.BYTE, R2, R10, _FIB)
    code.jump_if(R2, "!=", _AF_INET, to=Outgoing.OTHER_WAY.label)
    code.load(Size.WORD, R2, R10, _FIB + _FIB_INDEX)
    code.load_map_value(R1, "settings")
    code.load(Size.WORD, R1, R1, maps.EXTERNAL)
    code.jump_if(R2, "!=", R1, to=Outgoing.OTHER_WAY.label)


def _write_outer_headers(code: Assembler, constants: Constants) -> None:
    """Write the headers to the stack: DF, identification 0, TOS 0 and the TTL, as the socket's."""
    code.set(R2, R7)
    code.compute(R2, "+=", OUTER_HEADERS)
    code.set(R3, R2)
    code.big_endian(R2, 16)
    code.store(Size.HALF, R10, _HEADERS, network_half(hdr.IP_VERSION_IHL << 8))
    code.store(Size.HALF, R10, _HEADERS + hdr.IP_TOTAL_LENGTH, R2)
    code.store(Size.HALF, R10, _HEADERS + hdr.IP_ID, 0)
    code.store(Size.HALF, R10, _HEADERS + hdr.IP_FRAGMENT, network_half(hdr.DONT_FRAGMENT))
    code.store(Size.HALF, R10, _HEADERS + hdr.IP_TTL, network_half(constants.ttl << 8 | hdr.UDP))
    code.set(R2, network_order(constants.bound))
    code.store(Size.WORD, R10, _HEADERS + hdr.IP_SOURCE, R2)
    _write_checksum(code, constants)
    udp = _HEADERS + hdr.IP_MIN_HEADER
    code.store(Size.HALF, R10, udp, network_half(constants.port))
    code.store(Size.HALF, R10, udp + 2, network_half(constants.port))
    code.set(R2, R7)
    code.compute(R2, "+=", hdr.UDP_HEADER)
    code.big_endian(R2, 16)
    code.store(Size.HALF, R10, udp + hdr.UDP_LENGTH, R2)
    code.store(Size.HALF, R10, udp + hdr.UDP_CHECKSUM, 0)


def _write_checksum(code: Assembler, constants: Constants) -> None:
    """Sum the fixed fields here, and length (in R3) and destination in the program."""
    bound = int(constants.bound)
    fixed = (
        (hdr.IP_VERSION_IHL << 8)
        + hdr.DONT_FRAGMENT
        + (constants.ttl << 8 | hdr.UDP)
        + (bound >> 16)
        + (bound & 0xFFFF)
    )
    code.compute(R3, "+=", fixed)
    for half in (0, 2):
        code.load(Size.HALF, R2, R10, _HEADERS + hdr.IP_DESTINATION + half)
        code.big_endian(R2, 16)
        code.compute(R3, "+=", R2)
    for _ in range(2):
        code.set(R2, R3)
        code.compute(R2, ">>=", 16)
        code.compute(R3, "&=", 0xFFFF)
        code.compute(R3, "+=", R2)
    code.set(R2, 0xFFFF)
    code.compute(R2, "-=", R3)
    code.big_endian(R2, 16)
    code.store(Size.HALF, R10, _HEADERS + hdr.IP_CHECKSUM, R2)


def _encapsulate(code: Assembler) -> None:
    """Make room behind the link header, and write all headers.  From here on the packet cannot go to the loop."""
    code.set(R1, R6)
    code.set(R2, OUTER_HEADERS)
    code.set(R3, BPF_ADJ_ROOM_MAC)
    # Without the marks of an encapsulation, the kernel would complete a checksum at the wrong place.
    code.set(R4, BPF_F_ADJ_ROOM_FIXED_GSO | _BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | _BPF_F_ADJ_ROOM_ENCAP_L4_UDP)
    code.call(Helper.SKB_ADJUST_ROOM)
    code.jump_if(R0, "!=", 0, to=Outgoing.REFUSED.label)
    store_bytes(code, R9, _HEADERS, OUTER_HEADERS + hdr.IP_MIN_HEADER, failed="drop")
    code.jump_if(R9, "!=", 0, to="has link header")
    # redirect_neigh replaces the link header of a packet, which must have one.
    code.set(R1, R6)
    code.set(R2, ETH_HEADER)
    code.set(R3, 0)
    code.call(Helper.SKB_CHANGE_HEAD)
    code.jump_if(R0, "!=", 0, to="drop")
    code.label("has link header")


def _send(code: Assembler) -> None:
    look_up(code, "peers", _KEY)
    code.jump_if(R0, "==", 0, to="not counted")
    count_carried(code, maps.PACKETS_OUT, maps.BYTES_OUT)
    code.label("not counted")
    # The marks of the inner packet mean nothing for the outer one; our socket sets none.
    code.set(R2, 0)
    code.store(Size.WORD, R6, SKB_MARK, R2)
    code.store(Size.WORD, R6, SKB_PRIORITY, R2)
    _redirect(code)


def _redirect(code: Assembler) -> None:
    """Name the next hop only if its neighbour entry is valid.

    While the kernel resolves a neighbour, the packet waits, and then goes the way of its route, which is still that to
    the TUN.  Without a next hop, redirect_neigh looks up a route for the datagram, and gives it to the packet.
    """
    code.load(Size.WORD, R1, R10, _FIB + _FIB_INDEX)
    code.set(R2, 0)
    code.set(R3, 0)
    code.load(Size.WORD, R4, R10, _LOOK_UP_RESULT)
    code.jump_if(R4, "!=", _FIB_SUCCESS, to="unresolved")
    code.store(Size.DOUBLE, R10, _NEIGHBOUR + 8, 0)
    code.store(Size.WORD, R10, _NEIGHBOUR + 16, 0)
    code.store(Size.WORD, R10, _NEIGHBOUR, _AF_INET)
    code.load(Size.WORD, R2, R10, _FIB + _FIB_DESTINATION)
    code.store(Size.WORD, R10, _NEIGHBOUR + 4, R2)
    code.set(R2, R10)
    code.compute(R2, "+=", _NEIGHBOUR)
    code.set(R3, _NEIGHBOUR_SIZE)
    code.label("unresolved")
    code.set(R4, 0)
    code.call(Helper.REDIRECT_NEIGH)
    code.leave()
