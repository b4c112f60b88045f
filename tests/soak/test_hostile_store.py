"""Minutes of random keys and values beside the leases of three hosts."""

from __future__ import annotations

import os
from collections.abc import Callable

from faults.backends import HOST_GW, UDP, VXLAN, Backend, over_stores
from lab import Lab
from lab.etcd_stores import Api
from support.chaos import seed
from support.hostile_store import endure

SECONDS = float(os.environ.get("FLANNELPY_SOAK_SECONDS", 4 * 60))


@over_stores(UDP, VXLAN, HOST_GW, v2=[UDP])
def test_no_host_notices_random_keys_and_values(make_lab: Callable[..., Lab], backend: Backend, api: Api) -> None:
    number = seed()
    print(f"FLANNELPY_SEED={number}")
    endure(make_lab(hosts=3), SECONDS if backend is UDP and api is Api.V3 else SECONDS / 4, number, backend, api)
