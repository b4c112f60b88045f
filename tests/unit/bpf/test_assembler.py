"""Labels, numbers of any size, and references to maps."""

from __future__ import annotations

import pytest

from flannelpy.bpf import instructions
from flannelpy.bpf.assembler import Assembler
from flannelpy.bpf.instructions import Register

R0, R1, R2 = Register.R0, Register.R1, Register.R2


def test_jumps_lead_to_their_labels() -> None:
    code = Assembler()
    code.jump_if(R1, "==", 0, to="zero")
    code.set(R0, 1)
    code.jump(to="end")
    code.label("zero")
    code.set(R0, 2)
    code.label("end")
    code.leave()
    assert [one.offset for one in code.program().instructions] == [2, 0, 1, 0, 0]
    assert code.refers_to("end")
    assert not code.refers_to("start")


@pytest.mark.parametrize(
    ("value", "count"), [(0, 1), (-1, 1), (0x7FFFFFFF, 1), (0x80000000, 2), (0xFFFFFFFF, 2), (1 << 40, 2)]
)
def test_a_number_that_the_sign_would_change_takes_two_instructions(value: int, count: int) -> None:
    code = Assembler()
    code.set(R2, value)
    assert len(code.program().instructions) == count


def test_maps_get_their_descriptors() -> None:
    code = Assembler()
    code.load_map(R1, "routes")
    code.load_map_value(R1, "settings", 16)
    code.leave()
    encoded = code.program().encode({"routes": 7, "settings": 9})
    expected = [
        *instructions.load_64(R1, instructions.MAP, 7),
        *instructions.load_64(R1, instructions.MAP_VALUE, 16 << 32 | 9),
        instructions.leave(),
    ]
    assert encoded == b"".join(one.encode() for one in expected)


def test_mistakes_are_noticed() -> None:
    code = Assembler()
    code.label("here")
    with pytest.raises(AssertionError, match="label here occurs twice"):
        code.label("here")
    with pytest.raises(AssertionError, match="4294967295 is no 32-bit number"):
        code.jump_if(R1, "==", 0xFFFFFFFF, to="here")
    with pytest.raises(AssertionError, match="4294967296 is no 32-bit number"):
        code.compute(R1, "&=", 1 << 32)
    code.set(R0, 0)
    code.jump(to="here")
    with pytest.raises(AssertionError, match="jump to here spans -2 instructions"):
        code.program()
