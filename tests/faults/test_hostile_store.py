"""Some seconds of random keys and values beside the leases of three hosts; tests/soak runs for minutes."""

from __future__ import annotations

from collections.abc import Callable

from faults.backends import HOST_GW, UDP, VXLAN, Backend, over_stores
from lab import Lab
from lab.etcd_stores import Api
from support.chaos import seed
from support.hostile_store import endure

SECONDS = 9.0
OTHERS_SECONDS = 5.0


@over_stores(UDP, VXLAN, HOST_GW)
def test_no_host_notices_random_keys_and_values(make_lab: Callable[..., Lab], backend: Backend, api: Api) -> None:
    number = seed()
    print(f"FLANNELPY_SEED={number}")
    seconds = SECONDS if backend is UDP and api is Api.V3 else OTHERS_SECONDS
    endure(make_lab(hosts=3), seconds, number, backend, api)
