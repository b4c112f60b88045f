"""The BPF program that selects queues, in a small interpreter; in the kernel it runs in test_udp_socket."""

from __future__ import annotations

import random
import struct
from ipaddress import IPv4Address

import pytest

from flannelpy.datapath.queue_selection import (
    MAX_ASSIGNED,
    MAX_SENDERS,
    ONE_IN,
    SAMPLE,
    UNKNOWN_SENDERS,
    Instruction,
    encode,
    program,
    spread,
)

IP_HEADER = 0xFFF00000
SOURCE = IP_HEADER + 12
RANDOM = 0xFFFFF000 + 56
WHOLE = 0xFFFFFFFF
PORT = 8285
QUEUES = 32
BPF_MAXINSNS = 4096


def run(  # noqa: C901 - a case for each instruction
    instructions: list[Instruction], source: int, chance: int = 1, port: int = PORT, header_length: int = 20
) -> tuple[int, int]:
    """What the program returns for a datagram from ``source`` and ``port``, and after how many instructions.

    Source: Documentation/networking/filter.rst.
    """
    accumulator = index = at = steps = 0
    while True:
        steps += 1
        code, true, false, k = instructions[at]
        at += 1
        match code:
            case 0x20:
                accumulator = {SOURCE: source, RANDOM: chance}[k]
            case 0xB1:
                index = {IP_HEADER: header_length}[k]
            case 0x48:
                accumulator = {IP_HEADER + header_length: port}[index + k]
            case 0x05:
                at += k
            case 0x15:
                at += true if accumulator == k else false
            case 0x35:
                at += true if accumulator >= k else false
            case 0x45:
                at += true if accumulator & k else false
            case 0x04:
                accumulator += k
            case 0x94:
                accumulator %= k
            case 0x16:
                return accumulator, steps
            case 0x06:
                return k, steps
            case _:
                raise AssertionError(f"no such instruction: {code:#x}")


def assigned(count: int, seed: int = 0) -> dict[str, int]:
    """So many senders in no order, with both ends of what there is among them, and a queue for each."""
    rng = random.Random(seed)
    found = {0, WHOLE, *rng.sample(range(1 << 32), max(count - 2, 0))}
    return {str(IPv4Address(address)): rng.randrange(1, QUEUES) for address in rng.sample(sorted(found), count)}


COUNTS = [0, 1, 2, 23, 24, 25, 47, 48, 49, 100, 255, 256, 257, 1000, MAX_ASSIGNED, MAX_ASSIGNED + 1, 2049, MAX_SENDERS]


@pytest.mark.parametrize("port", [PORT, None])
@pytest.mark.parametrize("count", COUNTS)
def test_known_senders_have_their_queues_and_their_neighbours_do_not(count: int, port: int | None) -> None:
    senders = assigned(count)
    code = program(senders, port, QUEUES)
    known = {int(IPv4Address(sender)): queue for sender, queue in senders.items()}
    for address, queue in known.items():
        expected = queue if count <= MAX_ASSIGNED else 1 + address % (QUEUES - 1)
        assert run(code, address)[0] == expected
    edges = {(address + step) & WHOLE for address in known for step in (-1, 1)} | {0, 1, 1 << 31, WHOLE}
    for address in edges - set(known):
        assert run(code, address)[0] == UNKNOWN_SENDERS


def test_adjacent_senders_are_distinguished() -> None:
    senders = {str(IPv4Address("172.17.8.1") + 2 * number): 1 + number % 31 for number in range(100)}
    code = program(senders, PORT, QUEUES)
    first = int(IPv4Address("172.17.8.0"))
    found = [run(code, first + number)[0] for number in range(200)]
    assert found == [queue for number in range(100) for queue in (UNKNOWN_SENDERS, 1 + number % 31)]


@pytest.mark.parametrize("header_length", [20, 24, 60])
@pytest.mark.parametrize("count", COUNTS)
def test_a_known_sender_with_another_port_is_unknown(count: int, header_length: int) -> None:
    senders = assigned(count)
    checked, unchecked = program(senders, PORT, QUEUES), program(senders, None, QUEUES)
    for port in (0, 1, PORT - 1, PORT + 1, PORT ^ 0x8000, 0xFFFF):
        for sender in list(senders)[:20]:
            assert run(checked, int(IPv4Address(sender)), 1, port, header_length)[0] == UNKNOWN_SENDERS
            assert run(unchecked, int(IPv4Address(sender)), 1, port, header_length)[0] != UNKNOWN_SENDERS
    for sender in list(senders)[:20]:
        assert run(checked, int(IPv4Address(sender)), 1, PORT, header_length)[0] != UNKNOWN_SENDERS


@pytest.mark.parametrize("count", [MAX_SENDERS + 1, 70000])
def test_with_more_senders_than_a_program_can_hold_the_address_selects(count: int) -> None:
    code = program(assigned(count), PORT, QUEUES)
    assert code == spread(QUEUES)
    found = [run(code, address)[0] for address in range(10 * (QUEUES - 1))]
    assert sorted(set(found)) == list(range(1, QUEUES))
    assert {found.count(queue) for queue in found} == {10}


def test_a_sample_of_the_datagrams_of_unknown_senders_is_accepted() -> None:
    taken = [chance for chance in range(10 * ONE_IN) if run(SAMPLE, 0x01020304, chance)[0] == WHOLE]
    assert taken == list(range(0, 10 * ONE_IN, ONE_IN))


@pytest.mark.parametrize("count", COUNTS)
def test_the_kernel_would_accept_the_program(count: int) -> None:
    """Jumps go forward and stay inside, and no way leads over the end.  Source: bpf_check_classic."""
    code = program(assigned(count), PORT, QUEUES)
    assert len(code) <= BPF_MAXINSNS
    for at, instruction in enumerate(code):
        assert 0 <= instruction.true <= 255
        assert 0 <= instruction.false <= 255
        farthest = instruction.k if instruction.code == 0x05 else max(instruction.true, instruction.false)
        assert at + 1 + farthest < len(code) or instruction.code & 0x07 == 0x06


@pytest.mark.parametrize("count", [MAX_ASSIGNED, MAX_SENDERS])
def test_the_search_is_short_with_any_number_of_senders(count: int) -> None:
    senders = assigned(count)
    code = program(senders, PORT, QUEUES)
    assert max(run(code, int(IPv4Address(sender)))[1] for sender in senders) < 60


def test_the_program_byte_for_byte() -> None:
    expected = [
        (0xB1, 0, 0, IP_HEADER),
        (0x48, 0, 0, IP_HEADER),
        (0x15, 1, 0, PORT),
        (0x05, 0, 0, 5),
        (0x20, 0, 0, SOURCE),
        (0x15, 0, 1, 0xAC110865),
        (0x06, 0, 0, 2),
        (0x15, 0, 1, 0xAC110866),
        (0x06, 0, 0, 1),
        (0x06, 0, 0, 0),
    ]
    code = program({"172.17.8.102": 1, "172.17.8.101": 2}, PORT, QUEUES)
    assert encode(code) == b"".join(struct.pack("=HBBI", *instruction) for instruction in expected)
