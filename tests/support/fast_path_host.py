"""One host with a fast path, in a namespace of its own: fixtures, and questions about its state in the kernel."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from support.bpf_programs import ETHERNET, PEERS, outer_headers, own_namespace, own_tun, shell
from support.packets import BOUND, ICMP, ipv4_packet

from flannelpy.backend.udp.fast_path import FastPath
from flannelpy.linux.netlink.client import Netlink

PEER = PEERS[0]
LEAVING = ETHERNET + ipv4_packet("11.0.59.2", "11.0.101.2", bytes(8), protocol=ICMP)
_INNER = ipv4_packet("11.0.101.2", "11.0.59.2", bytes(8), protocol=ICMP)
ARRIVING = ETHERNET + outer_headers(PEER.public_ip, str(BOUND), len(_INNER)) + _INNER
#: Changes with each tick; the time module has no name for it.
CLOCK_MONOTONIC_COARSE = 6
#: As tc(8) lists them: of everything but the interfaces of flannelpy.
STATE = (
    "for i in eth1 switch; do tc qdisc show dev $i; tc filter show dev $i ingress; tc filter show dev $i egress; done"
)


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with own_namespace():
        yield


@pytest.fixture
def tun(namespace: None) -> Iterator[str]:
    with own_tun() as tun:
        yield tun.name


def run(work: Callable[[Netlink], Awaitable[Any]]) -> None:
    async def with_netlink() -> None:
        async with Netlink() as netlink:
            await work(netlink)

    asyncio.run(with_netlink())


def results(fast_path: FastPath) -> tuple[int, int]:
    """Return what the programs do with a packet for a peer, and from it, in the next tick of the kernel."""
    next_tick()
    programs = fast_path._programs
    return programs["outgoing"].test_run(LEAVING).result, programs["incoming"].test_run(ARRIVING).result


def next_tick() -> None:
    """Wait until all earlier changes of maps count for the incoming program."""
    start = time.clock_gettime(CLOCK_MONOTONIC_COARSE)
    while time.clock_gettime(CLOCK_MONOTONIC_COARSE) == start:
        pass


def own_links() -> list[str]:
    return re.findall(r"\d+: (flannel0-\w+)@", shell("ip -o link"))
