"""Ten million mutated datagrams, and a fifth as many packets from the TUN, break no rule, and memory does not grow."""

from __future__ import annotations

import os
import random
import resource
from itertools import cycle
from pathlib import Path

from fuzz.invariants import VARIANTS, Fuzzer
from fuzz.mutation import Mutator

DATAGRAMS = int(os.environ.get("FLANNELPY_FUZZ_DATAGRAMS", 10_000_000))
PACKETS = DATAGRAMS // 5
SEED = int(os.environ.get("FLANNELPY_SEED") or random.randrange(2**32))
#: How much more the allocator may keep at the end than at half-time, when the tables of the limits were full.
SLACK = 2 << 20


def resident() -> int:
    """Return the resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def fire(fuzzers: list[Fuzzer], datagrams: int, packets: int) -> None:
    """Process batches of both directions in turn, until each had as many mutants."""
    for fuzzer in cycle(fuzzers):
        if datagrams > 0:
            datagrams -= fuzzer.inbound()
        if packets > 0:
            packets -= fuzzer.outbound()
        if datagrams <= 0 and packets <= 0:
            return


def test_millions_of_mutants_break_no_rule_and_leave_nothing_behind() -> None:
    print(f"FLANNELPY_SEED={SEED} FLANNELPY_FUZZ_DATAGRAMS={DATAGRAMS}")
    mutator = Mutator(SEED)
    fuzzers = [Fuzzer(mutator, *variant) for variant in VARIANTS]
    half = DATAGRAMS // 2, PACKETS // 2
    fire(fuzzers, *half)
    before = resident()
    fire(fuzzers, DATAGRAMS - half[0], PACKETS - half[1])
    assert resident() - before < SLACK
