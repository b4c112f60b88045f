"""Golden encodings: the bytes are those of LLVM's assembler for the same line, on a little-endian machine."""

from __future__ import annotations

import sys

import pytest

from flannelpy.bpf import instructions
from flannelpy.bpf.instructions import MAP, Helper, Instruction, Register, Size

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = Register

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="the golden bytes are of a little-endian machine")


@pytest.mark.parametrize(
    ("instruction", "encoded"),
    [
        (instructions.arithmetic(R6, "=", R1), "bf16000000000000"),  # r6 = r1
        (instructions.arithmetic(R0, "=", -1), "b7000000ffffffff"),  # r0 = -1
        (instructions.arithmetic(R2, "+=", 28), "070200001c000000"),  # r2 += 28
        (instructions.arithmetic(R7, "-=", R9), "1f97000000000000"),  # r7 -= r9
        (instructions.arithmetic(R4, "*=", R8), "2f84000000000000"),  # r4 *= r8
        (instructions.arithmetic(R2, "/=", R4), "3f42000000000000"),  # r2 /= r4
        (instructions.arithmetic(R2, "|=", 1), "4702000001000000"),  # r2 |= 1
        (instructions.arithmetic(R2, "&=", 15), "570200000f000000"),  # r2 &= 15
        (instructions.arithmetic(R2, "<<=", 2), "6702000002000000"),  # r2 <<= 2
        (instructions.arithmetic(R3, ">>=", 16), "7703000010000000"),  # r3 >>= 16
        (instructions.load(Size.WORD, R7, R6, 0), "6167000000000000"),  # r7 = *(u32 *)(r6 + 0)
        (instructions.load(Size.HALF, R2, R10, -46), "69a2d2ff00000000"),  # r2 = *(u16 *)(r10 - 46)
        (instructions.load(Size.BYTE, R2, R10, -20), "71a2ecff00000000"),  # r2 = *(u8 *)(r10 - 20)
        (instructions.load(Size.DOUBLE, R1, R0, 8), "7901080000000000"),  # r1 = *(u64 *)(r0 + 8)
        (instructions.store(Size.WORD, R10, -56, R2), "632ac8ff00000000"),  # *(u32 *)(r10 - 56) = r2
        (instructions.store(Size.DOUBLE, R10, -120, 0), "7a0a88ff00000000"),  # *(u64 *)(r10 - 120) = 0
        (instructions.store(Size.HALF, R10, -44, 7), "6a0ad4ff07000000"),  # *(u16 *)(r10 - 44) = 7
        (instructions.atomic_add(R1, 0, R2), "db21000000000000"),  # lock *(u64 *)(r1 + 0) += r2
        (instructions.big_endian(R2, 16), "dc02000010000000"),  # r2 = be16 r2
        (instructions.big_endian(R2, 32), "dc02000020000000"),  # r2 = be32 r2
        (instructions.jump(3), "0500030000000000"),  # goto +3
        (instructions.jump_if(R2, "==", 4, 2), "1502020004000000"),  # if r2 == 4 goto +2
        (instructions.jump_if(R2, "!=", R3, 2), "5d32020000000000"),  # if r2 != r3 goto +2
        (instructions.jump_if(R7, ">", R2, 9), "2d27090000000000"),  # if r7 > r2 goto +9
        (instructions.jump_if(R0, ">=", R1, 1), "3d10010000000000"),  # if r0 >= r1 goto +1
        (instructions.jump_if(R2, "<", 20, 1), "a502010014000000"),  # if r2 < 20 goto +1
        (instructions.jump_if(R2, "<=", 1, 1), "b502010001000000"),  # if r2 <= 1 goto +1
        (instructions.jump_if(R2, "&", 0x3FFF, 1), "45020100ff3f0000"),  # if r2 & 16383 goto +1
        (instructions.call(Helper.MAP_LOOKUP_ELEM), "8500000001000000"),  # call 1
        (instructions.leave(), "9500000000000000"),  # exit
    ],
)
def test_an_instruction(instruction: Instruction, encoded: str) -> None:
    assert instruction.encode().hex() == encoded


@pytest.mark.parametrize(
    ("kind", "value", "encoded"),
    [
        (0, 0x123456789ABCDEF0, "18010000f0debc9a0000000078563412"),  # r1 = 1311768467463790320 ll
        (MAP, 5, "18110000050000000000000000000000"),  # r1 = map_fd 5
    ],
)
def test_a_64_bit_load(kind: int, value: int, encoded: str) -> None:
    assert b"".join(one.encode() for one in instructions.load_64(R1, kind, value)).hex() == encoded
