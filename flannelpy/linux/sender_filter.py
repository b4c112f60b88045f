"""A socket filter that lets datagrams of known senders in: a binary search as a classic BPF program.  Pure.

One in 64 of the others comes in too, so that whoever reads the socket sees that there are some, and who sends them.

Source: Documentation/networking/filter.rst of the kernel, include/uapi/linux/filter.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import NamedTuple

#: Their program has less than BPF_MAXINSNS instructions, 4096.
MAX_SENDERS = 3000
ONE_IN = 64

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_LOAD_HALF = 0x28  # BPF_LD | BPF_H | BPF_ABS
_JUMP = 0x05  # BPF_JMP | BPF_JA
_JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_JUMP_ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K

# The filter of a UDP socket gets the datagram from its UDP header on; this is where the IP header is.
_IP_HEADER = 0xFFF00000  # SKF_NET_OFF
_RANDOM = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM
_SOURCE = 12
_SOURCE_PORT = 0
_WHOLE = 0xFFFFFFFF
_LONGEST_CONDITIONAL_JUMP = 255
# Addresses that are compared one by one at the end of the search: more make a shorter program, and a slower one.
_LEAF = 16


class Instruction(NamedTuple):
    """struct sock_filter: jumps are over so many instructions, for true and false."""

    code: int
    true: int
    false: int
    k: int


_INSTRUCTION = struct.Struct("=HBBI")
_ACCEPT = Instruction(_RETURN, 0, 0, _WHOLE)
_REFUSE = Instruction(_RETURN, 0, 0, 0)
_OTHERS = [
    Instruction(_LOAD, 0, 0, _RANDOM),
    Instruction(_JUMP_ANY_BIT, 0, 1, ONE_IN - 1),
    _REFUSE,
    _ACCEPT,
]


def program(senders: Iterable[str], port: int) -> list[Instruction]:
    """Lets in what these dotted addresses send from ``port``; no kernel takes it for many more than MAX_SENDERS."""
    addresses = sorted(int(IPv4Address(sender)) for sender in senders)
    by_address = [Instruction(_LOAD, 0, 0, _IP_HEADER + _SOURCE), *_search(addresses)]
    return [
        Instruction(_LOAD_HALF, 0, 0, _SOURCE_PORT),
        Instruction(_JUMP_EQUAL, 1, 0, port),
        Instruction(_JUMP, 0, 0, len(by_address)),
        *by_address,
        *_OTHERS,
    ]


def encode(instructions: Iterable[Instruction]) -> bytes:
    """An array of struct sock_filter."""
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in instructions)


def _search(addresses: list[int]) -> list[Instruction]:
    """Accepts what is one of these sorted addresses, else goes on behind its end."""
    if len(addresses) <= _LEAF:
        return _compare(addresses)
    middle = len(addresses) // 2
    lower, upper = _search(addresses[:middle]), _search(addresses[middle:])
    lower.append(Instruction(_JUMP, 0, 0, len(upper)))
    return [*_skip_if_at_least(addresses[middle], len(lower)), *lower, *upper]


def _compare(addresses: list[int]) -> list[Instruction]:
    """The same, one address after the other."""
    if not addresses:
        return []
    *others, last = addresses
    jumps = [Instruction(_JUMP_EQUAL, len(others) - at, 0, address) for at, address in enumerate(others)]
    return [*jumps, Instruction(_JUMP_EQUAL, 0, 1, last), _ACCEPT]


def _skip_if_at_least(address: int, count: int) -> list[Instruction]:
    if count <= _LONGEST_CONDITIONAL_JUMP:
        return [Instruction(_JUMP_AT_LEAST, count, 0, address)]
    return [Instruction(_JUMP_AT_LEAST, 0, 1, address), Instruction(_JUMP, 0, 0, count)]
