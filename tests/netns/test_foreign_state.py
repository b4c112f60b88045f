"""The kernel state of other programs stays over a daemon's random life; tests/soak runs for longer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from lab import Lab
from support.chaos import seed
from support.random_life import live

SEED = seed()


@pytest.mark.parametrize("number", range(2))
def test_foreign_state_is_unchanged_over_a_random_life(make_lab: Callable[..., Lab], number: int) -> None:
    live(make_lab(hosts=1), SEED + number)
