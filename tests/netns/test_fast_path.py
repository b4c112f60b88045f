"""The programs that are attached forward what the engine would send, to the byte, and leave all else untouched."""

from __future__ import annotations

import asyncio
import os

import pytest
from support.bpf_programs import Traffic, Twins, attached, config, own_namespace, own_tun

from flannelpy.backend.udp.fast_path import FastPath
from flannelpy.datapath.source_check import SourceCheck
from flannelpy.linux.netlink.client import Netlink

#: Of each direction and source check.
PACKETS = int(os.environ.get("FLANNELPY_BPF_PACKETS", 50_000))
SEED = int(os.environ.get("FLANNELPY_SEED", 15))


@pytest.mark.parametrize("source_check", list(SourceCheck))
def test_generated_packets(source_check: SourceCheck) -> None:
    async def scenario() -> None:
        async with Netlink() as netlink:
            fast_path = FastPath(config(tun.name, source_check))
            await attached(fast_path, netlink)
            twins, traffic = Twins(fast_path, source_check), Traffic(SEED)
            for _ in range(PACKETS):
                twins.send(*traffic.leaving())
                twins.receive(traffic.arriving())
            print(twins.forwarded, twins.left)
            await fast_path.close(netlink)

    with own_namespace(), own_tun() as tun:
        asyncio.run(scenario())
