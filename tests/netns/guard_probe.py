"""Run the guard against bypassed rules in this namespace: ``PROBE RESYNC``.

Print each change of its reason, with the time of the monotonic clock.  For each line of the input, check at once, and
print the reason.
"""

from __future__ import annotations

import asyncio
import sys
import time
from ipaddress import IPv4Address

from flannelpy.host.bypass_guard import BypassGuard
from flannelpy.netfilter.address_ranges import AddressRanges
from flannelpy.netfilter.bypassed import OuterDatagrams

DATAGRAMS = OuterDatagrams(IPv4Address("172.17.8.101"), 8285, "eth1")
PEERS = AddressRanges([(int(IPv4Address("172.17.8.102")),) * 2])


def write(reason: str | None) -> None:
    print(time.monotonic(), reason, flush=True)


async def follow(resync: float) -> None:
    guard = BypassGuard(DATAGRAMS, lambda: PEERS, resync)
    running = asyncio.create_task(guard.run())
    while not running.done():
        await guard.wait_change()
        write(guard.reason())


async def answer() -> None:
    guard = BypassGuard(DATAGRAMS, lambda: PEERS, 1)
    while await asyncio.to_thread(sys.stdin.readline):
        write(await guard.check())


if __name__ == "__main__":
    asyncio.run(follow(float(sys.argv[1])) if len(sys.argv) > 1 else answer())
