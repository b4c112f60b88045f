"""Mutants by the ten thousands: nothing is raised, lost or let through.  tests/soak has the same with millions."""

from __future__ import annotations

import os
import random
from itertools import cycle

from fuzz.invariants import VARIANTS, Fuzzer
from fuzz.mutation import Mutator

from flannelpy import packet

_COMPILED = packet.build() == "compiled"
DATAGRAMS = 200_000 if _COMPILED else 60_000
PACKETS = 50_000 if _COMPILED else 10_000
SEED = int(os.environ.get("FLANNELPY_SEED") or (1 if os.environ.get("CI") else random.randrange(2**32)))


def fuzzers() -> list[Fuzzer]:
    mutator = Mutator(SEED)
    print(f"FLANNELPY_SEED={SEED}")
    return [Fuzzer(mutator, *variant) for variant in VARIANTS]


def test_mutated_datagrams_break_no_rule() -> None:
    done = 0
    for fuzzer in cycle(fuzzers()):
        done += fuzzer.inbound()
        if done >= DATAGRAMS:
            break


def test_mutated_packets_and_vnet_headers_break_no_rule() -> None:
    done = 0
    for fuzzer in cycle(fuzzers()):
        done += fuzzer.outbound()
        if done >= PACKETS:
            break
