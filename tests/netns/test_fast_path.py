"""The programs that are attached forward what the engine would send, to the byte, and leave all else untouched."""

from __future__ import annotations

import asyncio
import os

import pytest
from support.bpf_programs import Comparison, Traffic, attached, config, own_namespace, own_tun

from flannelpy.backend.udp.fast_path import FastPath
from flannelpy.datapath.fast_path.checks import Incoming, Outgoing
from flannelpy.datapath.source_check import SourceCheck
from flannelpy.linux.netlink.client import Netlink

#: Of each direction and source check.
PACKETS = int(os.environ.get("FLANNELPY_BPF_PACKETS", 50_000))
SEED = int(os.environ.get("FLANNELPY_SEED", 15))

#: What no packet of BPF_PROG_TEST_RUN fails: it wants an IPv4 header, and its super-packets are of no protocol.
NEVER = {
    *(Outgoing.DEADLINE, Outgoing.TRUNCATED, Outgoing.NOT_FORWARDING, Outgoing.OTHER_WAY),
    *(Incoming.DEADLINE, Incoming.NO_DEVICE),
}


@pytest.mark.parametrize("source_check", list(SourceCheck))
def test_generated_packets(source_check: SourceCheck) -> None:
    async def scenario() -> None:
        async with Netlink() as netlink:
            fast_path = FastPath(config(tun.name, source_check))
            await attached(fast_path, netlink)
            assert await fast_path.flaws(netlink) == []  # the programs are those that are attached
            comparison, traffic = Comparison(fast_path, source_check), Traffic(SEED)
            for _ in range(PACKETS):
                comparison.send(*traffic.leaving())
                comparison.receive(*traffic.arriving())
            assert min(comparison.forwarded.values()) > PACKETS / 20
            assert {check for check in (*Outgoing, *Incoming) if not comparison.left[check]} <= NEVER | {
                Incoming.SENDER_PORT if source_check is SourceCheck.OFF else None
            }
            comparison.compare_tallies()
            await fast_path.close(netlink)

    with own_namespace(), own_tun() as tun:
        asyncio.run(scenario())
