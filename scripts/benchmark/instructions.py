"""What a packet of the udp backend costs: instructions, counted by callgrind, which the machine's load does not change.

``PYTHONPATH=scripts python -P -m benchmark.instructions`` prints the instructions in user space of each way: one packet
from the TUN (out-1) or from a peer (in-1), and 32 at once (out-32, in-32).  To compare two versions, run it with the
Python of each.  Device and socket are in memory; everything between them is the daemon's.  Needs valgrind.
"""

from __future__ import annotations

import asyncio
import os
import re
import struct
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Network
from typing import cast

from flannelpy.backend.udp.proxy import Proxy
from flannelpy.datapath.engine import BATCH_PACKETS, Engine, Train
from flannelpy.datapath.routes import NextHop, Routes
from flannelpy.linux import packet_loop
from flannelpy.linux.tun import Tun
from flannelpy.linux.udp_socket import UdpQueue, UdpSocket
from flannelpy.packet import vnet_hdr
from flannelpy.packet.checksum import fold, ones_sum

OWN, PEER = IPv4Network("11.0.59.0/24"), IPv4Network("11.0.101.0/24")
NEXT_HOP = NextHop("172.17.8.102", 8285)
SIZE, AT_ONCE = 200, 32
#: The difference of two runs, in packets or trains, has neither start nor end of the program.
FEW, MANY = 500, 2500
_COLLECTED = re.compile(r"Collected : (\d+)")


class MemoryTun:
    """Has the packets of ``waiting``, and takes all others."""

    fd, name = -1, "memory"

    def __init__(self) -> None:
        self.waiting: list[bytes] = []

    def read_into(self, header: memoryview, packet: memoryview) -> int:
        """Read a packet as Tun does; return 0 without one."""
        if not self.waiting:
            return 0
        data = self.waiting.pop()
        header[:] = vnet_hdr.PLAIN
        packet[: len(data)] = data
        return len(data)

    def write(self, *_: object) -> bool:
        """Take a packet."""
        return True


class MemorySocket:
    """Has the trains of ``waiting``, takes all datagrams, and is its own only queue."""

    gso = True

    def __init__(self) -> None:
        self.queues = [self]
        self.waiting: list[bytes] = []

    def fileno(self) -> int:
        """Return a number that is no descriptor."""
        return -1

    def send(self, *_: object) -> None:
        """Take datagrams."""

    def receive_into(self, buffer: memoryview) -> Train | None:
        """Receive a train as UdpQueue does."""
        if not self.waiting:
            return None
        data = self.waiting.pop()
        buffer[: len(data)] = data
        return len(data), SIZE, NEXT_HOP


class UnwatchedLoop(packet_loop.PacketLoop):
    """Watches no descriptor: the packets are moved by calls."""

    def add_packet_reader(self, fd: int, handler: packet_loop.Handler) -> None:
        """Do nothing."""


def packet(source: IPv4Network, destination: IPv4Network) -> bytes:
    """Return a UDP packet of SIZE bytes between the containers with number 2, without a UDP checksum."""
    addresses = source[2].packed + destination[2].packed
    data = bytearray(struct.pack("!BxHHBxBBxx8s", 0x45, SIZE, 0, 0x40, 64, 17, addresses))
    data[10:12] = (~fold(ones_sum(data, 0, len(data))) & 0xFFFF).to_bytes(2, "big")
    return bytes(data + struct.pack("!HHHxx", 1000, 2000, SIZE - 20)).ljust(SIZE, b"\0")


async def move(way: str, times: int) -> None:
    """Have the proxy move the packets of ``way`` so many times."""
    routes = Routes()
    for number in range(1, 50):
        routes.set(IPv4Network(f"11.0.{number}.0/24"), NextHop(f"172.17.9.{number}", NEXT_HOP.port))
    routes.set(PEER, NEXT_HOP)
    bound = IPv4Address("172.17.8.101")
    engine = Engine(OWN, routes, network=IPv4Network("11.0.0.0/16"), bound=bound, port=NEXT_HOP.port)
    tun, udp = MemoryTun(), MemorySocket()
    proxy = Proxy(cast(Tun, tun), cast(UdpSocket, udp), engine)
    to_peer, from_peer, count = packet(OWN, PEER), packet(PEER, OWN), int(way.partition("-")[2])
    for _ in range(times):
        if way.startswith("out"):
            tun.waiting += [to_peer] * count
            proxy.outbound(1 if count == 1 else BATCH_PACKETS)
        else:
            udp.waiting.append(from_peer * count)
            proxy.inbound(cast(UdpQueue, udp), 1)
    if proxy.drops:
        raise RuntimeError(f"packets were dropped: {proxy.drops}")


def instructions(way: str, times: int) -> int:
    """Return the instructions of a program that moves the packets of ``way`` so many times.  Raises OSError."""
    callgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    argv = [*callgrind, sys.executable, "-P", "-m", "benchmark.instructions", way, str(times)]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    [found] = _COLLECTED.findall(done.stderr)
    return int(found)


def main(arguments: list[str]) -> None:
    """Print the instructions of each way, or of those in ``arguments``; with a number behind a way, only move."""
    if len(arguments) == 2 and arguments[1].isdigit():
        with asyncio.Runner(loop_factory=UnwatchedLoop) as runner:
            runner.run(move(arguments[0], int(arguments[1])))
        return
    for way in arguments or ("out-1", "in-1", f"out-{AT_ONCE}", f"in-{AT_ONCE}"):
        print(way, (instructions(way, MANY) - instructions(way, FEW)) // (MANY - FEW), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
