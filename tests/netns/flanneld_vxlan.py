"""Answer the kernel's questions about containers as flanneld v0.5.5 does; a script that runs on a host.

flanneld_vxlan.py DEVICE SUBNET=MAC...

Print "answering", then one line for each address for which the kernel asks.  The answer is the one recorded in
tests/golden/flanneld-v0.5.5-vxlan: a reachable neighbour for the container's own address.
"""

from __future__ import annotations

import socket
import sys
from ipaddress import IPv4Address, IPv4Network

from pyroute2 import IPRoute
from pyroute2.netlink.rtnl import RTMGRP_NEIGH


def main(device: str, *hosts: str) -> None:
    macs = {IPv4Network(subnet): mac for subnet, mac in (host.split("=") for host in hosts)}
    with IPRoute() as kernel:
        index = socket.if_nametoindex(device)
        kernel.bind(groups=RTMGRP_NEIGH)
        print("answering", flush=True)
        while True:
            for message in kernel.get():
                if message["event"] == "RTM_GETNEIGH" and message["ifindex"] == index:
                    answer(index, IPv4Address(message.get("dst")), macs)


def answer(index: int, address: IPv4Address, macs: dict[IPv4Network, str]) -> None:
    for subnet, mac in macs.items():
        if address in subnet:
            with IPRoute() as kernel:
                kernel.neigh("set", dst=str(address), lladdr=mac, ifindex=index, state="reachable")
            print(address, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
