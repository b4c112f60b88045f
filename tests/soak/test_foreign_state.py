"""The kernel state of other programs stays over random lives of a daemon, one after the other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from lab import Lab
from support.chaos import seed
from support.random_life import live

SECONDS = float(os.environ.get("FLANNELPY_SOAK_SECONDS", 6 * 60))


def test_foreign_state_is_unchanged_over_random_lives(make_lab: Callable[..., Lab]) -> None:
    first, end = seed(), time.monotonic() + SECONDS
    for number in range(1 << 32):
        live(make_lab(hosts=1), first + number)
        if time.monotonic() > end:
            break
