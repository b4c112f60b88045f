"""Ten minutes of random keys and values beside the leases of three hosts."""

from __future__ import annotations

import os
from collections.abc import Callable

from chaos import seed
from hostile_store import endure
from lab import Lab

SECONDS = float(os.environ.get("FLANNELPY_SOAK_SECONDS", 10 * 60))


def test_whatever_others_store_no_host_notices(make_lab: Callable[..., Lab]) -> None:
    number = seed()
    print(f"FLANNELPY_SEED={number}")
    endure(make_lab(hosts=3), SECONDS, number)
