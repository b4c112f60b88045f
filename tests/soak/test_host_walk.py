"""Random walks of host events for minutes, with one backend after the other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from faults.backends import Backend, over
from lab import Lab
from support.chaos import seed
from support.host_walk import BACKENDS, WALKERS, walk

SECONDS = float(os.environ.get("FLANNELPY_SOAK_SECONDS", 2 * 60))
# As many as happen in some minutes: after them the kernel and the lab are restarted.
_STEPS = 60


@over(*BACKENDS)
def test_hosts_are_ready_and_reachable_or_log_the_cause_over_random_walks(
    make_lab: Callable[..., Lab], backend: Backend
) -> None:
    first, end = seed(), time.monotonic() + SECONDS
    for number in range(1 << 32):
        print(f"FLANNELPY_SEED={first + number}")
        walk(
            make_lab(hosts=WALKERS + 1), backend, first + number, lambda step: step < _STEPS and time.monotonic() < end
        )
        if time.monotonic() > end:
            break
