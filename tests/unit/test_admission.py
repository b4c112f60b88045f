"""The socket's filter follows the routes, and never takes much of the time."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

from flannelpy.backend.udp.admission import Admission
from flannelpy.backend.udp.routes import NextHop, Routes
from flannelpy.linux.udp_socket import UdpSocket

if TYPE_CHECKING:
    from collections.abc import Collection

DEADLINE = 10
PORT = 8285
SUBNET = IPv4Network("11.0.101.0/24")


class RecordingSocket(UdpSocket):
    """Remembers whom it was to accept."""

    def __init__(self) -> None:
        self.told: list[set[str]] = []
        self.changed = asyncio.Event()

    def accept_only(self, senders: Collection[str], port: int) -> None:
        assert port == PORT
        self.told.append(set(senders))
        self.changed.set()

    async def next(self) -> set[str]:
        async with asyncio.timeout(DEADLINE):
            await self.changed.wait()
        self.changed.clear()
        return self.told[-1]


def test_at_first_those_are_accepted_that_are_known_and_then_whoever_comes() -> None:
    async def scenario() -> None:
        routes = Routes()
        routes.set(SUBNET, NextHop("172.17.8.102", PORT))
        udp = RecordingSocket()
        admission = Admission(udp, routes, PORT)
        assert await udp.next() == {"172.17.8.102"}
        routes.set(SUBNET, NextHop("172.17.8.103", PORT))
        admission.changed()
        assert await udp.next() == {"172.17.8.103"}
        routes.remove(SUBNET)
        admission.changed()
        assert await udp.next() == set()

    asyncio.run(scenario())


def test_many_changes_become_one_and_the_more_senders_the_longer_is_the_pause() -> None:
    async def scenario() -> None:
        routes = Routes()
        udp = RecordingSocket()
        admission = Admission(udp, routes, PORT)
        began = asyncio.get_running_loop().time()
        for number in range(1000):
            routes.set(IPv4Network((int(SUBNET[0]) + 256 * number, 24)), NextHop(str(IPv4Address(number)), PORT))
        admission.changed()
        for _ in range(100):
            admission.changed()
            await asyncio.sleep(0)
        udp.changed.clear()
        assert len(await udp.next()) == 1000
        assert len(udp.told) == 2
        assert asyncio.get_running_loop().time() - began >= 0.02

    asyncio.run(scenario())


def test_after_close_the_socket_is_left_alone() -> None:
    async def scenario() -> None:
        udp = RecordingSocket()
        admission = Admission(udp, Routes(), PORT)
        admission.changed()
        admission.close()
        for _ in range(20):
            await asyncio.sleep(0)
        assert udp.told == [set()]
        Admission(udp, Routes(), PORT).close()

    asyncio.run(scenario())
