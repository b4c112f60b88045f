"""What both programs do in the same way, and the numbers of the kernel that they need.  Pure.

Source: struct __sk_buff in include/uapi/linux/bpf.h, include/uapi/linux/pkt_cls.h and if_ether.h of the kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from flannelpy.bpf.assembler import Assembler
from flannelpy.bpf.instructions import Helper, Register, Size
from flannelpy.datapath.fast_path import maps
from flannelpy.datapath.fast_path.checks import Check
from flannelpy.datapath.source_check import SourceCheck
from flannelpy.packet import headers as hdr

# Offsets in struct __sk_buff.
SKB_LEN, SKB_PKT_TYPE, SKB_MARK, SKB_QUEUE_MAPPING, SKB_PROTOCOL, SKB_VLAN_PRESENT = 0, 4, 8, 12, 16, 20
SKB_PRIORITY, SKB_IFINDEX, SKB_DATA, SKB_DATA_END, SKB_GSO_SIZE = 32, 40, 76, 80, 176

#: The next program or the stack gets the packet; so it is for packets that no program saw.
TC_ACT_UNSPEC = -1
TC_ACT_SHOT = 2
#: What the redirect helpers return.
TC_ACT_REDIRECT = 7

ETH_HEADER = 14
ETH_P_IP = 0x0800
#: The index of the loopback interface of every network namespace.
LOOPBACK = 1
OUTER_HEADERS = hdr.IP_MIN_HEADER + hdr.UDP_HEADER

BPF_ADJ_ROOM_MAC = 1
BPF_F_ADJ_ROOM_FIXED_GSO = 1 << 0
BPF_F_INGRESS = 1 << 0

#: What the kernel must find beside a program that calls ``bpf_fib_lookup``.
LICENSE = b"Dual MIT/GPL"


class Constants(NamedTuple):
    """What the programs of one network have as immediates.

    ``subnet``: our own; ``bound``, ``port``: address and port of our socket; ``ttl``: of the datagrams that it sends.
    """

    subnet: IPv4Network
    bound: IPv4Address
    port: int
    source_check: SourceCheck
    ttl: int


R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = Register


def network_order(address: IPv4Address) -> int:
    """Return the number that a 32-bit load of the address gives."""
    number: int = struct.unpack("=I", address.packed)[0]
    return number


def network_half(value: int) -> int:
    """Return what a 16-bit store must write, so that ``value`` is in network order."""
    number: int = struct.unpack("=H", struct.pack("!H", value))[0]
    return number


def check_inner_header(code: Assembler, checks: type[Check], at: int) -> None:
    """Check the inner IPv4 header, as packet/ipv4.py does: 20 bytes on the stack, and the packet's length in R7."""
    code.load(Size.BYTE, R2, R10, at)
    code.set(R3, R2)
    code.compute(R3, ">>=", 4)
    code.jump_if(R3, "!=", 4, to=checks["VERSION"].label)
    code.compute(R2, "&=", 0xF)
    code.compute(R2, "<<=", 2)
    code.jump_if(R2, "<", hdr.IP_MIN_HEADER, to=checks["HEADER_LENGTH"].label)
    code.jump_if(R2, ">", R7, to=checks["HEADER_TRUNCATED"].label)
    code.load(Size.HALF, R3, R10, at + hdr.IP_TOTAL_LENGTH)
    code.big_endian(R3, 16)
    code.jump_if(R3, "!=", R7, to=checks["LENGTH"].label)


def check_subnet(code: Assembler, address: Register, subnet: IPv4Network, operator: str, to: str) -> None:
    """Jump if the address in network order is in the subnet (``==``), or is not (``!=``); changes R4 and R5."""
    code.set(R4, address)
    code.set(R5, network_order(subnet.netmask))
    code.compute(R4, "&=", R5)
    code.set(R5, network_order(subnet.network_address))
    code.jump_if(R4, operator, R5, to=to)


def load_bytes(code: Assembler, offset: Register | int, to: int, length: int, *, missing: str) -> None:
    """Copy bytes of the packet in R6 to the stack; jump if it has not so many."""
    code.set(R1, R6)
    code.set(R2, offset)
    code.set(R3, R10)
    code.compute(R3, "+=", to)
    code.set(R4, length)
    code.call(Helper.SKB_LOAD_BYTES)
    code.jump_if(R0, "!=", 0, to=missing)


def load_head(code: Assembler, offset: int, to: int, length: int, *, missing: str) -> None:
    """Do as ``load_bytes``, without a call if the bytes are in the linear part of the packet, as headers mostly are.

    ``to`` and ``length``: multiples of 4.
    """
    code.load(Size.WORD, R2, R6, SKB_DATA)
    code.load(Size.WORD, R3, R6, SKB_DATA_END)
    code.set(R4, R2)
    code.compute(R4, "+=", offset + length)
    code.jump_if(R4, ">", R3, to=f"bytes {offset} by call")
    at = 0
    while at < length:
        size, step = (Size.DOUBLE, 8) if (to + at) % 8 == 0 and at + 8 <= length else (Size.WORD, 4)
        code.load(size, R3, R2, offset + at)
        code.store(size, R10, to + at, R3)
        at += step
    code.jump(to=f"bytes {offset} loaded")
    code.label(f"bytes {offset} by call")
    load_bytes(code, offset, to, length, missing=missing)
    code.label(f"bytes {offset} loaded")


def store_bytes(code: Assembler, offset: Register | int, start: int, length: int, *, failed: str) -> None:
    """Copy bytes of the stack into the packet in R6; jump if that fails."""
    code.set(R1, R6)
    code.set(R2, offset)
    code.set(R3, R10)
    code.compute(R3, "+=", start)
    code.set(R4, length)
    code.set(R5, 0)
    code.call(Helper.SKB_STORE_BYTES)
    code.jump_if(R0, "!=", 0, to=failed)


def store_word(code: Assembler, offset: int, start: int, *, failed: str) -> None:
    """Do as ``store_bytes`` for 4 bytes, without a call if they are in the linear part of the packet."""
    code.load(Size.WORD, R2, R6, SKB_DATA)
    code.load(Size.WORD, R3, R6, SKB_DATA_END)
    code.set(R4, R2)
    code.compute(R4, "+=", offset + 4)
    code.jump_if(R4, ">", R3, to="store by call")
    code.load(Size.WORD, R3, R10, start)
    code.store(Size.WORD, R2, offset, R3)
    code.jump(to="stored")
    code.label("store by call")
    store_bytes(code, offset, start, 4, failed=failed)
    code.label("stored")


def look_up(code: Assembler, name: str, key: int) -> None:
    """Set R0 to the address of the value in a map, or 0; ``key``: where the key is on the stack."""
    code.load_map(R1, name)
    code.set(R2, R10)
    code.compute(R2, "+=", key)
    code.call(Helper.MAP_LOOKUP_ELEM)


def check_deadline(code: Assembler, checks: type[Check]) -> None:
    """Jump if the deadline is over; leave the nanoseconds since boot in R0."""
    code.call(Helper.KTIME_GET_BOOT_NS)
    code.load_map_value(R1, "settings")
    code.load(Size.DOUBLE, R1, R1, maps.DEADLINE)
    code.jump_if(R0, ">=", R1, to=checks["DEADLINE"].label)


def decrement_ttl(code: Assembler, at: int) -> None:
    """Subtract 1 from the TTL of the header on the stack, as packet/ipv4.py does, and patch its checksum."""
    code.load(Size.BYTE, R2, R10, at + hdr.IP_TTL)
    code.compute(R2, "-=", 1)
    code.store(Size.BYTE, R10, at + hdr.IP_TTL, R2)
    code.load(Size.HALF, R2, R10, at + hdr.IP_CHECKSUM)
    code.big_endian(R2, 16)
    code.compute(R2, "+=", 0x100)
    code.jump_if(R2, "<", 0xFFFF, to="no carry")
    code.compute(R2, "-=", 0xFFFF)
    code.label("no carry")
    code.big_endian(R2, 16)
    code.store(Size.HALF, R10, at + hdr.IP_CHECKSUM, R2)


def measure_super_packet(code: Assembler, checks: type[Check], inner: int, scratch: int, l4: Register | int) -> None:
    """Set R8 to the bytes of IP and TCP header of a super-packet, or to 0 for any other packet.

    ``inner``: where the inner header is on the stack; ``scratch``: where a byte is free; ``l4``: the offset of the
    TCP header in the packet.
    """
    too_odd = checks["SUPER_PACKET"].label
    code.set(R8, 0)
    code.load(Size.WORD, R2, R6, SKB_GSO_SIZE)
    code.jump_if(R2, "==", 0, to="single packet")
    code.load(Size.BYTE, R2, R10, inner)
    code.jump_if(R2, "!=", hdr.IP_VERSION_IHL, to=too_odd)
    code.load(Size.BYTE, R2, R10, inner + hdr.IP_PROTOCOL)
    code.jump_if(R2, "!=", hdr.TCP, to=too_odd)
    code.set(R2, l4)
    code.compute(R2, "+=", hdr.TCP_DATA_OFFSET)
    load_bytes(code, R2, scratch, 1, missing=too_odd)
    code.load(Size.BYTE, R8, R10, scratch)
    code.compute(R8, ">>=", 4)
    code.compute(R8, "<<=", 2)
    code.jump_if(R8, "<", hdr.TCP_MIN_HEADER, to=too_odd)
    code.compute(R8, "+=", hdr.IP_MIN_HEADER)
    code.jump_if(R8, ">=", R7, to=too_odd)
    code.label("single packet")


def count_carried(code: Assembler, packets: int, octets: int) -> None:
    """Add the packet to the value in R0: one, or the segments of a super-packet, each with its headers.

    R7: the packet's length; R8: as ``measure_super_packet`` leaves it; ``packets``, ``octets``: members of the value.
    """
    code.set(R2, 1)
    code.set(R3, R7)
    code.jump_if(R8, "==", 0, to="counted")
    count_segments(code)
    code.compute(R3, "-=", R8)
    code.set(R4, R2)
    code.compute(R4, "*=", R8)
    code.compute(R3, "+=", R4)
    code.label("counted")
    for member, register in ((packets, R2), (octets, R3)):
        code.load(Size.DOUBLE, R1, R0, member)
        code.compute(R1, "+=", register)
        code.store(Size.DOUBLE, R0, member, R1)


def count_segments(code: Assembler) -> None:
    """Set R2 to the number of segments of a super-packet; R7 and R8 as for ``count_carried``; changes R4."""
    code.load(Size.WORD, R4, R6, SKB_GSO_SIZE)
    code.set(R2, R7)
    code.compute(R2, "-=", R8)
    code.compute(R2, "+=", R4)
    code.compute(R2, "-=", 1)
    code.compute(R2, "/=", R4)


def leave_to_loop(code: Assembler, checks: Iterable[Check], name: str) -> None:
    """Add the ends of all checks: count the packet in a map, and pass it on.

    The address of each counter is a constant: without CAP_PERFMON the kernel refuses a computed one.
    """
    for check in filter(lambda check: code.refers_to(check.label), checks):
        code.label(check.label)
        code.load_map_value(R1, name, check.index * maps.COUNTER)
        code.jump(to="leave to loop")
    code.label("leave to loop")
    code.set(R2, 1)
    code.atomic_add(R1, 0, R2)
    code.label("pass")
    code.set(R0, TC_ACT_UNSPEC)
    code.leave()
    code.label("drop")
    code.set(R0, TC_ACT_SHOT)
    code.leave()
