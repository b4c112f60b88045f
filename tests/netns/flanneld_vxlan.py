"""How flanneld v0.5.5 tells the kernel where containers are, run as a script on a host: it answers when asked.

flanneld_vxlan.py DEVICE SUBNET=MAC...

Prints "answering", then one line for each address that the kernel asked for.  As recorded in
tests/golden/flanneld-v0.5.5-vxlan: a neighbour that is reachable, for the container's own address.
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
