"""A hundred thousand keys of other programs among the leases, in each store."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from pathlib import Path

import pytest
from lab.etcd_server import EtcdServer
from lab.etcd_stores import Api

from flannelpy.registry.base import Registry, Snapshot
from flannelpy.registry.etcd_v2 import EtcdV2Registry
from flannelpy.registry.etcd_v3 import EtcdV3Registry

FOREIGN_KEYS = 100_000
MOST_GROWTH = 8 << 20  # bytes, which is less than the foreign keys alone
SUBNETS = "/network/subnets"
LEASES = {f"{SUBNETS}/11.{number // 250}.{number % 250}.0-24": "x" * 100 for number in range(1000)}


@pytest.mark.parametrize(("api", "registry_class"), [(Api.V3, EtcdV3Registry), (Api.V2, EtcdV2Registry)])
def test_a_listing_finds_the_leases_and_stays_small(
    tmp_path: Path, api: Api, registry_class: type[EtcdV2Registry | EtcdV3Registry]
) -> None:
    async def listed(registry: Registry) -> Snapshot:
        try:
            return await registry.snapshot(lambda name: name.startswith("11."))
        finally:
            await registry.close()

    with EtcdServer(tmp_path, api=api) as etcd:
        foreign = {f"{SUBNETS}/foreign-{number}": "x" * 100 for number in range(FOREIGN_KEYS)}
        if api is Api.V3:
            etcd.v3.put_together(foreign)
        else:
            etcd.put_all(foreign, ttl=86400)
        etcd.put_all(LEASES, ttl=86400)
        asyncio.run(listed(registry_class([etcd.url], "/elsewhere")))  # imports what a request needs
        tracemalloc.start()
        began = time.monotonic()
        found = asyncio.run(listed(registry_class([etcd.url], "/network")))
        seconds, growth = time.monotonic() - began, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    print(f"v{api.value}: {seconds:.1f} s, {growth >> 10} KB")
    names = {entry.name for entry in found.entries}
    assert names >= {key.rpartition("/")[2] for key in LEASES}
    assert len(found.entries) < len(LEASES) + 5000
    assert growth < MOST_GROWTH
