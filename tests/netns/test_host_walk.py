"""Random walks of host events, with every backend; tests/soak has longer ones."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from lab import Lab
from support.chaos import seed
from support.host_walk import BACKENDS, WALKERS, walk

SEED = seed()
_STEPS = 3


@pytest.mark.timeout(180)
def test_a_host_is_ready_and_reachable_or_logs_the_cause_over_a_random_walk(make_lab: Callable[..., Lab]) -> None:
    """Each host of each backend has its own walk: three seeds for each backend."""
    print(f"FLANNELPY_SEED={SEED}")
    labs = [make_lab(hosts=WALKERS + 1) for _ in BACKENDS]
    with ThreadPoolExecutor(len(labs)) as threads:
        futures = [
            threads.submit(walk, lab, backend, SEED, lambda step: step < _STEPS)
            for lab, backend in zip(labs, BACKENDS, strict=True)
        ]
    for future in futures:
        print("\n".join(future.result()))
