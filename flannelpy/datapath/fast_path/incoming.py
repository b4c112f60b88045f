"""The program at the ingress of the external interface: takes a peer's packet out of its datagram.  Pure.

It passes on what is no datagram to our address and port, checks the others as ``checks.Incoming`` says, removes the
outer headers, and has the kernel receive the packet from the TUN.  TCP goes there through the GRO pair, whose other end
merges packets into super-packets (gro.py); without the pair it goes to the TUN at once.

A call of a helper function costs as much as twenty instructions.  So deadline, devices and sender are looked up once in
a tick of the kernel (4 ms, or 1 to 10) as long as the same peer sends, and a change of theirs counts from the next tick
on.

The external interface has an Ethernet header.

Source: include/uapi/linux/bpf.h of the kernel, the descriptions of the helper functions.
"""

from __future__ import annotations

from flannelpy.bpf.assembler import Assembler, Program
from flannelpy.bpf.instructions import Helper, Register, Size
from flannelpy.datapath.fast_path import maps
from flannelpy.datapath.fast_path.checks import Incoming
from flannelpy.datapath.fast_path.parts import (
    BPF_ADJ_ROOM_MAC,
    BPF_F_ADJ_ROOM_FIXED_GSO,
    BPF_F_INGRESS,
    ETH_HEADER,
    ETH_P_IP,
    OUTER_HEADERS,
    R0,
    R1,
    R2,
    R3,
    R4,
    R6,
    R7,
    R8,
    R9,
    R10,
    SKB_GSO_SIZE,
    SKB_LEN,
    SKB_MARK,
    SKB_PKT_TYPE,
    SKB_PROTOCOL,
    SKB_QUEUE_MAPPING,
    SKB_VLAN_PRESENT,
    Constants,
    check_deadline,
    check_inner_header,
    check_subnet,
    count_carried,
    count_segments,
    decrement_ttl,
    leave_to_loop,
    load_head,
    look_up,
    measure_super_packet,
    network_half,
    network_order,
    store_word,
)
from flannelpy.datapath.source_check import SourceCheck
from flannelpy.packet import headers as hdr

_PACKET_HOST = 0
# Has the kernel forget that a super-packet was encapsulated, else a bridge cuts it; in kernels after 6.18.
_BPF_F_ADJ_ROOM_DECAP_L4_UDP = 1 << 10

# The packets that the kernel takes from a queue before it turns to the next: NAPI_POLL_WEIGHT.
_NAPI_WEIGHT = 64
# The longest super-packet has fewer than 64 of these.
_SMALLEST_SEGMENT = hdr.IP_MAX_LENGTH // (_NAPI_WEIGHT - 1)
#: For super-packets, a power of 2: one for each that a driver delivers in one turn.
QUEUES = 64

# The stack.  The outer headers and the inner one lie together, as in the packet.
_OUTER = -48
_UDP = _OUTER + hdr.IP_MIN_HEADER
_INNER = _OUTER + OUTER_HEADERS
_SENDER = -56
_SCRATCH = -64
_SUBNET_KEY = -80

_INNER_AT = ETH_HEADER + OUTER_HEADERS


def program(constants: Constants, *, forgets_encapsulation: bool) -> Program:
    """Return the program; ``forgets_encapsulation``: only where the kernel can, else it refuses every packet.

    R6: the packet's __sk_buff; R7: the length of the inner packet; R8: the bytes of headers of a super-packet, or 0;
    R9: the address of the value of ``recent``.
    """
    code = Assembler()
    code.set(R6, R1)
    _pass_foreign(code, constants)
    _check_outer_headers(code)
    _find_sender(code, constants)
    load_head(code, _INNER_AT, _INNER, hdr.IP_MIN_HEADER, missing=Incoming.TRUNCATED.label)
    check_inner_header(code, Incoming, _INNER)
    _check_addresses(code, constants)
    code.load(Size.BYTE, R2, R10, _INNER + hdr.IP_TTL)
    code.jump_if(R2, "<=", 1, to=Incoming.TTL.label)
    measure_super_packet(code, Incoming, _INNER, _SCRATCH, _INNER_AT + hdr.IP_MIN_HEADER)
    decrement_ttl(code, _INNER)
    _decapsulate(code, _BPF_F_ADJ_ROOM_DECAP_L4_UDP if forgets_encapsulation else 0)
    _count(code)
    _deliver(code, is_cut=not forgets_encapsulation)
    leave_to_loop(code, Incoming, "left_incoming")
    return code.program()


def _pass_foreign(code: Assembler, constants: Constants) -> None:
    """Pass on what is no datagram for our socket, which the host's other packets are; without a count.

    A packet with a VLAN tag belongs to another interface.
    """
    code.load(Size.WORD, R2, R6, SKB_PROTOCOL)
    code.jump_if(R2, "!=", network_half(ETH_P_IP), to="pass")
    code.load(Size.WORD, R2, R6, SKB_PKT_TYPE)
    code.jump_if(R2, "!=", _PACKET_HOST, to="pass")
    code.load(Size.WORD, R2, R6, SKB_VLAN_PRESENT)
    code.jump_if(R2, "!=", 0, to="pass")
    load_head(code, ETH_HEADER, _OUTER, OUTER_HEADERS, missing="pass")
    code.load(Size.BYTE, R2, R10, _OUTER)
    code.jump_if(R2, "!=", hdr.IP_VERSION_IHL, to="pass")
    code.load(Size.BYTE, R2, R10, _OUTER + hdr.IP_PROTOCOL)
    code.jump_if(R2, "!=", hdr.UDP, to="pass")
    code.load(Size.HALF, R2, R10, _UDP + 2)
    code.jump_if(R2, "!=", network_half(constants.port), to="pass")
    code.load(Size.WORD, R2, R10, _OUTER + hdr.IP_DESTINATION)
    code.set(R3, network_order(constants.bound))
    code.jump_if(R2, "!=", R3, to="pass")


def _check_outer_headers(code: Assembler) -> None:
    """Check what the kernel checks before our socket gets a datagram, and that a program may have sent it."""
    code.load(Size.HALF, R2, R10, _OUTER + hdr.IP_FRAGMENT)
    code.big_endian(R2, 16)
    code.jump_if(R2, "&", hdr.ANY_FRAGMENT, to=Incoming.FRAGMENT.label)
    code.load(Size.WORD, R7, R6, SKB_LEN)
    code.compute(R7, "-=", ETH_HEADER)
    code.load(Size.HALF, R2, R10, _OUTER + hdr.IP_TOTAL_LENGTH)
    code.big_endian(R2, 16)
    code.jump_if(R2, "!=", R7, to=Incoming.OUTER_LENGTH.label)
    code.compute(R7, "-=", hdr.IP_MIN_HEADER)
    code.load(Size.HALF, R2, R10, _UDP + hdr.UDP_LENGTH)
    code.big_endian(R2, 16)
    code.jump_if(R2, "!=", R7, to=Incoming.OUTER_LENGTH.label)
    code.compute(R7, "-=", hdr.UDP_HEADER)
    _check_ip_checksum(code)
    code.load(Size.HALF, R2, R10, _UDP + hdr.UDP_CHECKSUM)
    code.jump_if(R2, "!=", 0, to=Incoming.UDP_CHECKSUM.label)


def _check_ip_checksum(code: Assembler) -> None:
    """Sum the header by 32 bits in any byte order, and fold the sum to 16 bits (RFC 1071)."""
    code.set(R2, 0)
    for at in range(0, hdr.IP_MIN_HEADER, 4):
        code.load(Size.WORD, R3, R10, _OUTER + at)
        code.compute(R2, "+=", R3)
    for bits in (32, 16, 16):
        code.set(R3, R2)
        code.compute(R3, ">>=", bits)
        code.compute(R2, "<<=", 64 - bits)
        code.compute(R2, ">>=", 64 - bits)
        code.compute(R2, "+=", R3)
    code.jump_if(R2, "!=", 0xFFFF, to=Incoming.IP_CHECKSUM.label)


def _find_sender(code: Assembler, constants: Constants) -> None:
    """Check that programs may work now, and that a peer sent it; write down the peer's first subnet.

    A peer that announces no kernel is a sender as well: when it switches, some of its datagrams come before the lease.
    """
    code.store(Size.WORD, R10, _SCRATCH, 0)
    look_up(code, "recent", _SCRATCH)
    code.jump_if(R0, "==", 0, to="pass")  # never so, but the kernel demands the check
    code.set(R9, R0)
    code.call(Helper.JIFFIES64)
    code.load(Size.DOUBLE, R1, R9, maps.RECENT_JIFFIES)
    code.jump_if(R0, "!=", R1, to="look up")
    code.load(Size.WORD, R1, R9, maps.RECENT_SENDER)
    code.load(Size.WORD, R2, R10, _OUTER + hdr.IP_SOURCE)
    code.jump_if(R1, "==", R2, to="looked up")
    code.label("look up")
    _look_up_sender(code)
    code.label("looked up")
    _write_subnet(code, R9)
    if constants.source_check is not SourceCheck.OFF:
        code.load(Size.HALF, R2, R10, _UDP)
        code.jump_if(R2, "!=", network_half(constants.port), to=Incoming.SENDER_PORT.label)


def _look_up_sender(code: Assembler) -> None:
    """Write down time, devices and sender; without jiffies, which come last, nothing of it counts."""
    code.store(Size.DOUBLE, R9, maps.RECENT_JIFFIES, 0)
    check_deadline(code, Incoming)
    code.store(Size.DOUBLE, R9, maps.RECENT_TIME, R0)
    _look_up_device(code, maps.TUN, maps.RECENT_TUN)
    code.jump_if(R1, "==", 0, to=Incoming.NO_DEVICE.label)
    _look_up_pair(code)
    look_up(code, "senders", _OUTER + hdr.IP_SOURCE)
    code.jump_if(R0, "==", 0, to=Incoming.UNKNOWN_SENDER.label)
    for member in (maps.NETWORK, maps.MASK):
        code.load(Size.WORD, R1, R0, member)
        code.store(Size.WORD, R9, member, R1)
    code.load(Size.WORD, R1, R10, _OUTER + hdr.IP_SOURCE)
    code.store(Size.WORD, R9, maps.RECENT_SENDER, R1)
    code.call(Helper.JIFFIES64)
    code.store(Size.DOUBLE, R9, maps.RECENT_JIFFIES, R0)


def _look_up_pair(code: Assembler) -> None:
    """Write down both ends of the GRO pair, or 0 for both: what goes into one end comes out of the other."""
    _look_up_device(code, maps.GRO, maps.RECENT_GRO)
    code.jump_if(R1, "==", 0, to="no pair")
    _look_up_device(code, maps.CUT, maps.RECENT_CUT)
    code.jump_if(R1, "!=", 0, to="pair")
    code.label("no pair")
    code.set(R1, 0)
    code.store(Size.WORD, R9, maps.RECENT_GRO, R1)
    code.store(Size.WORD, R9, maps.RECENT_CUT, R1)
    code.label("pair")


def _look_up_device(code: Assembler, number: int, member: int) -> None:
    """Write down the index of a device, which is left in R1; 0 if it is gone."""
    code.store(Size.WORD, R10, _SCRATCH, number)
    look_up(code, "devices", _SCRATCH)
    code.set(R1, 0)
    code.jump_if(R0, "==", 0, to=f"device {number}")
    code.load(Size.WORD, R1, R0, 0)
    code.label(f"device {number}")
    code.store(Size.WORD, R9, member, R1)


def _check_addresses(code: Assembler, constants: Constants) -> None:
    """Check source and destination as packet/coalesce.py does."""
    code.load(Size.WORD, R2, R10, _INNER + hdr.IP_SOURCE)
    check_subnet(code, R2, constants.subnet, "==", Incoming.SOURCE.label)
    _find_subnet(code, constants)
    code.load(Size.WORD, R2, R10, _INNER + hdr.IP_DESTINATION)
    check_subnet(code, R2, constants.subnet, "!=", Incoming.DESTINATION.label)
    code.set(R3, network_order(constants.subnet.broadcast_address))
    code.jump_if(R2, "==", R3, to=Incoming.DESTINATION.label)


def _find_subnet(code: Assembler, constants: Constants) -> None:
    """Write down the peer's subnet with the source (in R2); without one, the first remains, unless ``strict``."""
    code.set(R4, R2)
    code.load(Size.WORD, R3, R10, _SENDER + maps.MASK)
    code.compute(R4, "&=", R3)
    code.load(Size.WORD, R3, R10, _SENDER + maps.NETWORK)
    code.jump_if(R4, "==", R3, to="subnet found")
    code.store(Size.WORD, R10, _SUBNET_KEY, 64)
    code.store(Size.WORD, R10, _SUBNET_KEY + 8, R2)
    code.load(Size.WORD, R2, R10, _OUTER + hdr.IP_SOURCE)
    code.store(Size.WORD, R10, _SUBNET_KEY + 4, R2)
    look_up(code, "subnets", _SUBNET_KEY)
    is_strict = constants.source_check is SourceCheck.STRICT
    code.jump_if(R0, "==", 0, to=Incoming.SOURCE.label if is_strict else "subnet found")
    _write_subnet(code, R0)
    code.label("subnet found")


def _write_subnet(code: Assembler, value: Register) -> None:
    """Copy the first members of a map's value to the stack."""
    for member in (maps.NETWORK, maps.MASK):
        code.load(Size.WORD, R2, value, member)
        code.store(Size.WORD, R10, _SENDER + member, R2)


def _decapsulate(code: Assembler, flags: int) -> None:
    """Remove the outer headers, and write TTL, protocol and checksum.  From here on the loop cannot get the packet."""
    code.set(R1, R6)
    code.set(R2, -OUTER_HEADERS)
    code.set(R3, BPF_ADJ_ROOM_MAC)
    code.set(R4, BPF_F_ADJ_ROOM_FIXED_GSO | flags)
    code.call(Helper.SKB_ADJUST_ROOM)
    code.jump_if(R0, "!=", 0, to=Incoming.REFUSED.label)
    store_word(code, ETH_HEADER + hdr.IP_TTL, _INNER + hdr.IP_TTL, failed="drop")
    code.set(R2, 0)
    code.store(Size.WORD, R6, SKB_MARK, R2)


def _count(code: Assembler) -> None:
    look_up(code, "peers", _SENDER)
    code.jump_if(R0, "==", 0, to="not counted")
    count_carried(code, maps.PACKETS_IN, maps.BYTES_IN)
    code.load(Size.DOUBLE, R2, R9, maps.RECENT_TIME)
    code.store(Size.DOUBLE, R0, maps.HEARD, R2)
    code.label("not counted")


def _deliver(code: Assembler, *, is_cut: bool) -> None:
    """Redirect TCP into the GRO pair, other packets to the TUN as if received there; the kernel merges TCP only.

    ``is_cut``: super-packets go into the pair too, which cuts them and merges them again, because the kernel still
    takes them for encapsulated, and a bridge would cut them, with checksums.
    """
    if not is_cut:
        code.jump_if(R8, "!=", 0, to="to the TUN")
    code.load(Size.BYTE, R2, R10, _INNER + hdr.IP_PROTOCOL)
    code.jump_if(R2, "!=", hdr.TCP, to="to the TUN")
    _choose_queue(code)
    code.load(Size.WORD, R1, R9, maps.RECENT_CUT)
    code.jump(to="into the pair")
    code.label("single packets alone")
    code.load(Size.WORD, R1, R9, maps.RECENT_GRO)
    code.label("into the pair")
    code.jump_if(R1, "==", 0, to="to the TUN")
    code.set(R2, 0)
    code.call(Helper.REDIRECT)
    code.leave()
    code.label("to the TUN")
    code.load(Size.WORD, R1, R9, maps.RECENT_TUN)
    code.set(R2, BPF_F_INGRESS)
    code.call(Helper.REDIRECT)
    code.leave()


def _choose_queue(code: Assembler) -> None:
    """Choose a queue of the pair such that no packet is dropped, and none overtakes another.

    A driver may deliver 64 super-packets before the kernel turns to the pair, whose queues hold 256 packets each.  The
    kernel takes 64 packets from a queue, and then turns to the next one.  So another queue is chosen before the packets
    of super-packets, and those that follow them, are 64.  If the segments of a connection are so small that a
    super-packet may have more, all its super-packets go to the TUN.
    """
    code.load(Size.WORD, R3, R9, maps.RECENT_QUEUED)
    code.jump_if(R8, "!=", 0, to="super-packet")
    code.jump_if(R3, "==", 0, to="single packets alone")
    code.compute(R3, "+=", 1)
    code.jump_if(R3, "<", _NAPI_WEIGHT, to="same queue")
    code.set(R3, 0)
    code.store(Size.WORD, R9, maps.RECENT_QUEUED, R3)
    code.jump(to="single packets alone")
    code.label("super-packet")
    code.load(Size.WORD, R2, R6, SKB_GSO_SIZE)
    code.jump_if(R2, "<", _SMALLEST_SEGMENT, to="to the TUN")
    count_segments(code)
    code.jump_if(R3, "==", 0, to="next queue")
    code.compute(R3, "+=", R2)
    code.jump_if(R3, "<", _NAPI_WEIGHT, to="same queue")
    code.label("next queue")
    code.set(R3, R2)
    code.load(Size.WORD, R2, R9, maps.RECENT_QUEUE)
    code.compute(R2, "+=", 1)
    code.store(Size.WORD, R9, maps.RECENT_QUEUE, R2)
    code.label("same queue")
    code.store(Size.WORD, R9, maps.RECENT_QUEUED, R3)
    code.load(Size.WORD, R2, R9, maps.RECENT_QUEUE)
    code.compute(R2, "&=", QUEUES - 1)
    code.compute(R2, "+=", 1)  # 0: the kernel chooses
    code.store(Size.WORD, R6, SKB_QUEUE_MAPPING, R2)
