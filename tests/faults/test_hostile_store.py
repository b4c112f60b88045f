"""Twenty seconds of random keys and values beside the leases of three hosts; tests/soak has ten minutes of it."""

from __future__ import annotations

from collections.abc import Callable

from chaos import seed
from hostile_store import endure
from lab import Lab

SECONDS = 20.0


def test_whatever_others_store_no_host_notices(make_lab: Callable[..., Lab]) -> None:
    number = seed()
    print(f"FLANNELPY_SEED={number}")
    endure(make_lab(hosts=3), SECONDS, number)
