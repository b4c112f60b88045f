"""Attach a fast path in this network namespace with this process's capabilities; print ``attached``, or the cause."""

from __future__ import annotations

import asyncio

from support.bpf_programs import attached, config, own_tun

from flannelpy.backend.udp.fast_path import FastPath
from flannelpy.errors import HostError
from flannelpy.linux.netlink.client import Netlink


async def main() -> None:
    with own_tun() as tun:
        async with Netlink() as netlink:
            fast_path = FastPath(config(tun.name))
            try:
                await attached(fast_path, netlink)
            except HostError as error:
                print(error)
                return
            await fast_path.close(netlink)
    print("attached")


if __name__ == "__main__":
    asyncio.run(main())
