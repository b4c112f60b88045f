"""Ten million mutated packets: the attached programs forward what the engine would send, and leave all else alone."""

from __future__ import annotations

import asyncio
import os
import random

import pytest
from support.bpf_programs import Comparison, Traffic, attached, config, own_namespace, own_tun

from flannelpy.backend.udp.fast_path import FastPath
from flannelpy.datapath.source_check import SourceCheck
from flannelpy.linux.netlink.client import Netlink

#: Of both directions and all source checks together.
PACKETS = int(os.environ.get("FLANNELPY_BPF_PACKETS", 10_000_000))
SEED = int(os.environ.get("FLANNELPY_SEED") or random.randrange(2**32))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("source_check", list(SourceCheck))
def test_millions_of_packets(root: None, source_check: SourceCheck) -> None:
    print(f"FLANNELPY_SEED={SEED} FLANNELPY_BPF_PACKETS={PACKETS}")

    async def scenario() -> None:
        async with Netlink() as netlink:
            fast_path = FastPath(config(tun.name, source_check))
            await attached(fast_path, netlink)
            comparison, traffic = Comparison(fast_path, source_check), Traffic(SEED)
            for _ in range(PACKETS // 2 // len(SourceCheck)):
                comparison.send(*traffic.leaving())
                comparison.receive(*traffic.arriving())
            comparison.compare_tallies()
            await fast_path.close(netlink)

    with own_namespace(), own_tun() as tun:
        asyncio.run(scenario())
