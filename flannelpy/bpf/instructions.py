"""The instructions of eBPF by name, and their encoding.  Pure.

Source: Documentation/bpf/standardization/instruction-set.rst (RFC 9669) and include/uapi/linux/bpf.h of the kernel.
"""

from __future__ import annotations

import enum
import struct
import sys
from typing import NamedTuple


class Register(enum.IntEnum):
    """R0: results; R1 to R5: arguments, lost in a call; R6 to R9: kept; R10: the end of the stack, read only."""

    R0 = 0
    R1 = 1
    R2 = 2
    R3 = 3
    R4 = 4
    R5 = 5
    R6 = 6
    R7 = 7
    R8 = 8
    R9 = 9
    R10 = 10


class Size(enum.IntEnum):
    """The width of a load or store, as BPF_SIZE."""

    WORD = 0x00  # 32 bits
    HALF = 0x08  # 16 bits
    BYTE = 0x10
    DOUBLE = 0x18  # 64 bits


class Helper(enum.IntEnum):
    """The helper functions of the kernel that programs call; the version is that of the kernel that has it."""

    MAP_LOOKUP_ELEM = 1
    SKB_STORE_BYTES = 9
    REDIRECT = 23
    SKB_LOAD_BYTES = 26
    SKB_CHANGE_HEAD = 43
    SKB_ADJUST_ROOM = 50
    FIB_LOOKUP = 69  # 4.18
    JIFFIES64 = 118  # 5.6
    KTIME_GET_BOOT_NS = 125  # 5.8
    REDIRECT_NEIGH = 152  # 5.10


#: Arithmetic on 64 bits, by the operator that the kernel's disassembler prints.
ARITHMETIC = {
    "+=": 0x00,
    "-=": 0x10,
    "*=": 0x20,
    "/=": 0x30,
    "|=": 0x40,
    "&=": 0x50,
    "<<=": 0x60,
    ">>=": 0x70,
    "=": 0xB0,
}
#: Unsigned comparisons of 64 bits; ``&``: whether a common bit is set.
COMPARISONS = {"==": 0x10, ">": 0x20, ">=": 0x30, "&": 0x40, "!=": 0x50, "<": 0xA0, "<=": 0xB0}

_CLASS_LD, _CLASS_LDX, _CLASS_ST, _CLASS_STX = 0x00, 0x01, 0x02, 0x03
_CLASS_ALU, _CLASS_JMP, _CLASS_ALU64 = 0x04, 0x05, 0x07
_IMMEDIATE_MODE, _MEMORY_MODE, _ATOMIC_MODE = 0x00, 0x60, 0xC0
_SOURCE_REGISTER = 0x08
_SWAP = 0xD0  # with _SOURCE_REGISTER: to big endian
_CALL, _EXIT = 0x80, 0x90

_LOAD_64 = _CLASS_LD | Size.DOUBLE | _IMMEDIATE_MODE
#: In the source register of a 64-bit load: the first half is a map's descriptor, for the map or for its first value;
#: then the second half is an offset in the value.
MAP, MAP_VALUE = 1, 2

# struct bpf_insn { __u8 code; __u8 dst_reg:4, src_reg:4; __s16 off; __s32 imm; }
_FORMAT = struct.Struct("=BBhI")
_LITTLE_ENDIAN = sys.byteorder == "little"


class Instruction(NamedTuple):
    """struct bpf_insn; ``immediate``: 32 bits, negative or not."""

    code: int
    destination: int = 0
    source: int = 0
    offset: int = 0
    immediate: int = 0

    def encode(self) -> bytes:
        """Return the 8 bytes of the instruction in the host's byte order."""
        first, second = (self.source, self.destination) if _LITTLE_ENDIAN else (self.destination, self.source)
        return _FORMAT.pack(self.code, first << 4 | second, self.offset, self.immediate & 0xFFFFFFFF)


def arithmetic(destination: Register, operator: str, operand: Register | int) -> Instruction:
    """Return ``destination operator operand`` on 64 bits; a number is extended with its sign."""
    return _binary(_CLASS_ALU64 | ARITHMETIC[operator], destination, operand)


def jump(offset: int) -> Instruction:
    """Return a jump over ``offset`` instructions."""
    return Instruction(_CLASS_JMP, offset=offset)


def jump_if(left: Register, operator: str, right: Register | int, offset: int) -> Instruction:
    """Return a jump over ``offset`` instructions if the comparison is true."""
    return _binary(_CLASS_JMP | COMPARISONS[operator], left, right)._replace(offset=offset)


def load(size: Size, destination: Register, base: Register, offset: int) -> Instruction:
    """Return a load from ``base + offset``; the upper bits of the register become 0."""
    return Instruction(_CLASS_LDX | _MEMORY_MODE | size, destination, base, offset)


def store(size: Size, base: Register, offset: int, value: Register | int) -> Instruction:
    """Return a store of a register or a number to ``base + offset``."""
    if isinstance(value, Register):
        return Instruction(_CLASS_STX | _MEMORY_MODE | size, base, value, offset)
    return Instruction(_CLASS_ST | _MEMORY_MODE | size, base, 0, offset, value)


def atomic_add(base: Register, offset: int, operand: Register) -> Instruction:
    """Return an addition to the 64 bits at ``base + offset``, which all processors may do at once."""
    return Instruction(_CLASS_STX | _ATOMIC_MODE | Size.DOUBLE, base, operand, offset)


def big_endian(register: Register, bits: int) -> Instruction:
    """Return the conversion of the lower ``bits`` between the orders of host and network; the others become 0."""
    return Instruction(_CLASS_ALU | _SWAP | _SOURCE_REGISTER, register, immediate=bits)


def load_64(destination: Register, kind: int, immediate: int) -> list[Instruction]:
    """Return both halves of a 64-bit load; ``kind``: 0 for a number, or MAP, or MAP_VALUE."""
    low, high = immediate & 0xFFFFFFFF, immediate >> 32 & 0xFFFFFFFF
    return [Instruction(_LOAD_64, destination, kind, 0, low), Instruction(0, immediate=high)]


def call(helper: int) -> Instruction:
    """Return a call of a helper function of the kernel, by its number."""
    return Instruction(_CLASS_JMP | _CALL, immediate=helper)


def leave() -> Instruction:
    """Return the end of the program, whose result is in R0."""
    return Instruction(_CLASS_JMP | _EXIT)


def _binary(code: int, left: Register, right: Register | int) -> Instruction:
    if isinstance(right, Register):
        return Instruction(code | _SOURCE_REGISTER, left, right)
    return Instruction(code, left, 0, 0, right)
