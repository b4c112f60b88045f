"""The BPF program that keeps unknown senders out, in a small interpreter; in the kernel it runs in test_udp_socket."""

from __future__ import annotations

import random
import struct
from ipaddress import IPv4Address

import pytest

from flannelpy.linux.sender_filter import MAX_SENDERS, ONE_IN, Instruction, encode, program

SOURCE = 0xFFF00000 + 12
RANDOM = 0xFFFFF000 + 56
WHOLE = 0xFFFFFFFF
PORT = 8285
BPF_MAXINSNS = 4096


def run(instructions: list[Instruction], source: int, chance: int = 1, port: int = PORT) -> tuple[int, int]:
    """How much of a datagram from ``source`` and ``port`` is let in, and after how many instructions.

    Source: Documentation/networking/filter.rst.
    """
    accumulator = at = steps = 0
    while True:
        steps += 1
        code, true, false, k = instructions[at]
        at += 1
        match code:
            case 0x20:
                accumulator = {SOURCE: source, RANDOM: chance}[k]
            case 0x28:
                accumulator = {0: port}[k]
            case 0x05:
                at += k
            case 0x15:
                at += true if accumulator == k else false
            case 0x35:
                at += true if accumulator >= k else false
            case 0x45:
                at += true if accumulator & k else false
            case 0x06:
                return k, steps
            case _:
                raise AssertionError(f"no such instruction: {code:#x}")


def addresses(count: int, seed: int = 0) -> list[str]:
    """So many different ones, in no order, with both ends of what there is among them."""
    found = {0, WHOLE, *random.Random(seed).sample(range(1 << 32), max(count - 2, 0))}
    return [str(IPv4Address(address)) for address in random.Random(seed).sample(sorted(found), count)]


COUNTS = [0, 1, 2, 15, 16, 17, 31, 32, 33, 100, 255, 256, 257, 1000, 2049, MAX_SENDERS]


@pytest.mark.parametrize("count", COUNTS)
def test_known_senders_come_in_whole_and_their_neighbours_do_not(count: int) -> None:
    senders = addresses(count)
    code = program(senders, PORT)
    known = {int(IPv4Address(sender)) for sender in senders}
    for address in known:
        assert run(code, address)[0] == WHOLE
    edges = {(address + step) & WHOLE for address in known for step in (-1, 1)} | {0, 1, 1 << 31, WHOLE}
    for address in edges - known:
        assert run(code, address)[0] == 0


def test_senders_beside_each_other_are_told_apart() -> None:
    senders = [str(IPv4Address("172.17.8.1") + 2 * number) for number in range(100)]
    code = program(senders, PORT)
    first = int(IPv4Address("172.17.8.0"))
    assert [run(code, first + number)[0] == WHOLE for number in range(200)] == [False, True] * 100


@pytest.mark.parametrize("count", COUNTS)
def test_known_senders_do_not_come_in_from_another_port(count: int) -> None:
    senders = addresses(count)
    code = program(senders, PORT)
    for port in (0, 1, PORT - 1, PORT + 1, PORT ^ 0x8000, 0xFFFF):
        for sender in senders[:20]:
            assert run(code, int(IPv4Address(sender)), port=port)[0] == 0
            assert run(code, int(IPv4Address(sender)), ONE_IN, port)[0] == WHOLE


@pytest.mark.parametrize("count", [0, 1, 100])
def test_some_of_what_others_send_comes_in_as_a_sample(count: int) -> None:
    code = program(addresses(count), PORT)
    taken = [chance for chance in range(10 * ONE_IN) if run(code, 0x01020304, chance)[0] == WHOLE]
    assert taken == list(range(0, 10 * ONE_IN, ONE_IN))


@pytest.mark.parametrize("count", COUNTS)
def test_the_kernel_would_take_it(count: int) -> None:
    """Jumps go forward and stay inside, and no way leads over the end.  Source: bpf_check_classic."""
    code = program(addresses(count), PORT)
    assert len(code) <= BPF_MAXINSNS
    for at, instruction in enumerate(code):
        assert 0 <= instruction.true <= 255
        assert 0 <= instruction.false <= 255
        farthest = instruction.k if instruction.code == 0x05 else max(instruction.true, instruction.false)
        assert at + 1 + farthest < len(code) or instruction.code == 0x06


def test_the_search_is_short_however_many_there_are() -> None:
    senders = addresses(MAX_SENDERS)
    code = program(senders, PORT)
    assert max(run(code, int(IPv4Address(sender)))[1] for sender in senders) < 50


def test_the_program_byte_for_byte() -> None:
    expected = [
        (0x28, 0, 0, 0),
        (0x15, 1, 0, PORT),
        (0x05, 0, 0, 4),
        (0x20, 0, 0, SOURCE),
        (0x15, 1, 0, 0xAC110865),
        (0x15, 0, 1, 0xAC110866),
        (0x06, 0, 0, WHOLE),
        (0x20, 0, 0, RANDOM),
        (0x45, 0, 1, ONE_IN - 1),
        (0x06, 0, 0, 0),
        (0x06, 0, 0, WHOLE),
    ]
    code = program(["172.17.8.102", "172.17.8.101"], PORT)
    assert encode(code) == b"".join(struct.pack("=HBBI", *instruction) for instruction in expected)
