"""Classic BPF programs that select a receive queue by a datagram's sender.  Pure.

All sockets of one address and port form a group, and each of them is a queue.  The kernel runs the group's program for
each datagram: it returns the queue's number.  Known senders have queues of their own; all others share queue 0, whose
filter passes one in 64 of their datagrams, so that the reader of the queue learns that there are some, and from which
address.

Source: Documentation/networking/filter.rst of the kernel, include/uapi/linux/filter.h, net/core/sock_reuseport.c.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Address
from typing import NamedTuple, TypeAlias

#: The queue of all senders that are not known.
UNKNOWN_SENDERS = 0
#: Up to so many senders get the queue that the caller assigns, by two instructions each; BPF_MAXINSNS is 4096.
MAX_ASSIGNED = 1700
#: Up to so many senders, the program recognizes unknown ones; with more, it accepts every sender.
MAX_SENDERS = 3000
ONE_IN = 64

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_LOAD_HALF_AT_X = 0x48  # BPF_LD | BPF_H | BPF_IND
_LOAD_X_HEADER_LENGTH = 0xB1  # BPF_LDX | BPF_B | BPF_MSH
_JUMP = 0x05  # BPF_JMP | BPF_JA
_JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_JUMP_ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_ADD = 0x04  # BPF_ALU | BPF_ADD | BPF_K
_MODULO = 0x94  # BPF_ALU | BPF_MOD | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K
_RETURN_A = 0x16  # BPF_RET | BPF_A

# The program gets a datagram without its headers; these offsets reach the IP header and a random number.
_IP_HEADER = 0xFFF00000  # SKF_NET_OFF
_RANDOM = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM
_SOURCE = 12
_WHOLE = 0xFFFFFFFF
_LONGEST_CONDITIONAL_JUMP = 255
# Addresses that are compared one by one at the end of the search: more of them make the program shorter but slower.
_LEAF = 24


class Instruction(NamedTuple):
    """struct sock_filter; ``true`` and ``false``: how many instructions a jump skips in that case."""

    code: int
    true: int
    false: int
    k: int


#: Makes instructions that return the queue of each of these sorted addresses, and fall through for all others.
_Leaf: TypeAlias = Callable[[Sequence[int]], list[Instruction]]

_INSTRUCTION = struct.Struct("=HBBI")
_LOAD_SOURCE = Instruction(_LOAD, 0, 0, _IP_HEADER + _SOURCE)
_RETURN_UNKNOWN = Instruction(_RETURN, 0, 0, UNKNOWN_SENDERS)

#: A socket filter for queue 0: passes one datagram in 64, at random.
SAMPLE = [
    Instruction(_LOAD, 0, 0, _RANDOM),
    Instruction(_JUMP_ANY_BIT, 0, 1, ONE_IN - 1),
    Instruction(_RETURN, 0, 0, 0),
    Instruction(_RETURN, 0, 0, _WHOLE),
]


def program(senders: Mapping[str, int], port: int | None, queues: int) -> list[Instruction]:
    """Return a program that selects the queue of each dotted address in ``senders``, if the source port is ``port``.

    ``port``: None for any.  With more senders than MAX_ASSIGNED, an address itself selects one of the ``queues``.
    """
    if len(senders) > MAX_SENDERS:
        return spread(queues)
    by_number = {int(IPv4Address(sender)): queue for sender, queue in senders.items()}
    leaf = _assigned(by_number) if len(senders) <= MAX_ASSIGNED else _known(queues)
    search = [_LOAD_SOURCE, *_search(sorted(by_number), leaf)]
    return [*_only_from(port, len(search)), *search, _RETURN_UNKNOWN]


def spread(queues: int) -> list[Instruction]:
    """Return a program that selects a queue by the source address, for unknown senders as well."""
    return [_LOAD_SOURCE, *_by_address(queues)]


def encode(instructions: Iterable[Instruction]) -> bytes:
    """Return the instructions as an array of struct sock_filter."""
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in instructions)


def _only_from(port: int | None, count: int) -> list[Instruction]:
    """Return instructions that skip the next ``count`` unless the source port, after the IP header, is ``port``."""
    if port is None:
        return []
    return [
        Instruction(_LOAD_X_HEADER_LENGTH, 0, 0, _IP_HEADER),
        Instruction(_LOAD_HALF_AT_X, 0, 0, _IP_HEADER),
        Instruction(_JUMP_EQUAL, 1, 0, port),
        Instruction(_JUMP, 0, 0, count),
    ]


def _search(addresses: Sequence[int], leaf: _Leaf) -> list[Instruction]:
    """Return a binary search down to leaves."""
    if len(addresses) <= _LEAF:
        return leaf(addresses)
    middle = len(addresses) // 2
    lower, upper = _search(addresses[:middle], leaf), _search(addresses[middle:], leaf)
    lower.append(Instruction(_JUMP, 0, 0, len(upper)))
    return [*_skip_if_at_least(addresses[middle], len(lower)), *lower, *upper]


def _assigned(queues: Mapping[int, int]) -> _Leaf:
    """Return a leaf with the queue that was assigned to each address."""

    def leaf(addresses: Sequence[int]) -> list[Instruction]:
        pairs = (
            (Instruction(_JUMP_EQUAL, 0, 1, address), Instruction(_RETURN, 0, 0, queues[address]))
            for address in addresses
        )
        return [instruction for pair in pairs for instruction in pair]

    return leaf


def _known(queues: int) -> _Leaf:
    """Return a leaf in which the address selects the queue, with half as many instructions."""

    def leaf(addresses: Sequence[int]) -> list[Instruction]:
        if not addresses:
            return []
        *first, last = addresses
        jumps = [Instruction(_JUMP_EQUAL, len(first) - at, 0, address) for at, address in enumerate(first)]
        found = _by_address(queues)
        return [*jumps, Instruction(_JUMP_EQUAL, 0, len(found), last), *found]

    return leaf


def _by_address(queues: int) -> list[Instruction]:
    """Return instructions that select any queue but that of unknown senders by the loaded address."""
    return [
        Instruction(_MODULO, 0, 0, queues - 1),
        Instruction(_ADD, 0, 0, UNKNOWN_SENDERS + 1),
        Instruction(_RETURN_A, 0, 0, 0),
    ]


def _skip_if_at_least(address: int, count: int) -> list[Instruction]:
    if count <= _LONGEST_CONDITIONAL_JUMP:
        return [Instruction(_JUMP_AT_LEAST, count, 0, address)]
    return [Instruction(_JUMP_AT_LEAST, 0, 1, address), Instruction(_JUMP, 0, 0, count)]
