"""Puts eBPF programs together: instructions, labels, and references to maps by name.  Pure.

A program that returns 1 for a packet of at least 34 bytes, and 0 for any other::

  code = Assembler()
  code.load(Size.WORD, R2, R1, 0)
  code.set(R0, 0)
  code.jump_if(R2, "<", 34, to="short")
  code.set(R0, 1)
  code.label("short")
  code.leave()
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from flannelpy.bpf import instructions
from flannelpy.bpf.instructions import MAP, MAP_VALUE, Helper, Instruction, Register, Size

# Numbers of this size and above do not fit into an immediate, which is extended with its sign.
_SIGN = 1 << 31


class Program(NamedTuple):
    """An assembled program; ``maps``: the names of the maps, by the index of the instruction that refers to them."""

    instructions: tuple[Instruction, ...]
    maps: Mapping[int, str]

    def encode(self, descriptors: Mapping[str, int]) -> bytes:
        """Return the program as an array of struct bpf_insn; ``descriptors``: those of the maps by name."""
        encoded = []
        for index, instruction in enumerate(self.instructions):
            name = self.maps.get(index)
            patched = instruction if name is None else instruction._replace(immediate=descriptors[name])
            encoded.append(patched.encode())
        return b"".join(encoded)


class Assembler:
    """Collects the instructions of one program."""

    def __init__(self) -> None:
        self._instructions: list[Instruction] = []
        self._labels: dict[str, int] = {}
        self._jumps: dict[int, str] = {}
        self._maps: dict[int, str] = {}

    def label(self, name: str) -> None:
        """Name the next instruction."""
        assert name not in self._labels, f"label {name} occurs twice"
        self._labels[name] = len(self._instructions)

    def refers_to(self, label: str) -> bool:
        """Return whether a jump to that label was added; the kernel refuses a program with unreachable instructions."""
        return label in self._jumps.values()

    def set(self, register: Register, value: Register | int) -> None:
        """Set a register to another one's value, or to a number of up to 64 bits."""
        if isinstance(value, Register) or -_SIGN <= value < _SIGN:
            self.compute(register, "=", value)
        else:
            self._instructions += instructions.load_64(register, 0, value)

    def compute(self, register: Register, operator: str, operand: Register | int) -> None:
        """Add ``register operator operand``, with an operator such as ``+=``."""
        assert isinstance(operand, Register) or -_SIGN <= operand < _SIGN, f"{operand} is no 32-bit number"
        self._instructions.append(instructions.arithmetic(register, operator, operand))

    def big_endian(self, register: Register, bits: int) -> None:
        """Convert the lower ``bits`` of a register between the orders of host and network."""
        self._instructions.append(instructions.big_endian(register, bits))

    def load(self, size: Size, register: Register, base: Register, offset: int) -> None:
        """Load from ``base + offset``."""
        self._instructions.append(instructions.load(size, register, base, offset))

    def store(self, size: Size, base: Register, offset: int, value: Register | int) -> None:
        """Store to ``base + offset``."""
        self._instructions.append(instructions.store(size, base, offset, value))

    def atomic_add(self, base: Register, offset: int, operand: Register) -> None:
        """Add a register to the 64 bits at ``base + offset``, which all processors may do at once."""
        self._instructions.append(instructions.atomic_add(base, offset, operand))

    def load_map(self, register: Register, name: str) -> None:
        """Load the address of a map, as helper functions want it."""
        self._refer_to_map(register, MAP, name, 0)

    def load_map_value(self, register: Register, name: str, offset: int = 0) -> None:
        """Load the address of a byte of an array's first value."""
        self._refer_to_map(register, MAP_VALUE, name, offset)

    def jump(self, *, to: str) -> None:
        """Jump to a label that follows."""
        self._jump(instructions.jump(0), to)

    def jump_if(self, left: Register, operator: str, right: Register | int, *, to: str) -> None:
        """Jump to a label that follows if the unsigned comparison is true."""
        assert isinstance(right, Register) or -_SIGN <= right < _SIGN, f"{right} is no 32-bit number"
        self._jump(instructions.jump_if(left, operator, right, 0), to)

    def call(self, helper: Helper) -> None:
        """Call a helper function; the result is in R0, and R1 to R5 are lost."""
        self._instructions.append(instructions.call(helper))

    def leave(self) -> None:
        """End the program with the result in R0."""
        self._instructions.append(instructions.leave())

    def program(self) -> Program:
        """Return the program, with all jumps resolved."""
        resolved = list(self._instructions)
        for index, name in self._jumps.items():
            offset = self._labels[name] - index - 1
            assert 0 <= offset < 1 << 15, f"jump to {name} spans {offset} instructions"
            resolved[index] = resolved[index]._replace(offset=offset)
        return Program(tuple(resolved), dict(self._maps))

    def _jump(self, instruction: Instruction, to: str) -> None:
        self._jumps[len(self._instructions)] = to
        self._instructions.append(instruction)

    def _refer_to_map(self, register: Register, kind: int, name: str, offset: int) -> None:
        self._maps[len(self._instructions)] = name
        self._instructions += instructions.load_64(register, kind, offset << 32)
