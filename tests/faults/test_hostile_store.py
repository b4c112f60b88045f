"""Some seconds of random keys and values beside the leases of three hosts; tests/soak runs for minutes."""

from __future__ import annotations

from collections.abc import Callable

from faults.backends import HOST_GW, UDP, VXLAN, Backend, over
from lab import Lab
from support.chaos import seed
from support.hostile_store import endure

SECONDS = 20.0
OTHERS_SECONDS = 9.0


@over(UDP, VXLAN, HOST_GW)
def test_no_host_notices_random_keys_and_values(make_lab: Callable[..., Lab], backend: Backend) -> None:
    number = seed()
    print(f"FLANNELPY_SEED={number}")
    endure(make_lab(hosts=3), SECONDS if backend is UDP else OTHERS_SECONDS, number, backend)
