"""The socket's queues follow the routes, and their program never takes much of the time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

import pytest

from flannelpy.backend.udp.sender_queues import SenderQueues
from flannelpy.datapath.routes import NextHop, Routes
from flannelpy.linux.udp_socket import UdpSocket

if TYPE_CHECKING:
    from collections.abc import Mapping

DEADLINE = 10
PORT = 8285
SUBNET = IPv4Network("11.0.101.0/24")


class RecordingSocket(UdpSocket):
    """Remembers the queue of each sender."""

    def __init__(self, queues: int = 32) -> None:
        self.queues = [self] * queues
        self.assigned: list[dict[str, int]] = []
        self.changed = asyncio.Event()
        self.samples_unknown_senders = False

    def assign(self, senders: Mapping[str, int], port: int | None) -> None:
        assert port in (PORT, None)
        self.assigned.append(dict(senders))
        self.changed.set()

    def sample_unknown_senders(self) -> None:
        self.samples_unknown_senders = True

    async def next(self) -> dict[str, int]:
        async with asyncio.timeout(DEADLINE):
            await self.changed.wait()
        self.changed.clear()
        return self.assigned[-1]


def subnet(number: int) -> IPv4Network:
    return IPv4Network((int(SUBNET[0]) + 256 * number, 24))


def test_present_peers_get_queues_and_then_new_ones() -> None:
    async def scenario() -> None:
        routes = Routes()
        routes.set(SUBNET, NextHop("172.17.8.102", PORT))
        udp = RecordingSocket()
        queues = SenderQueues(udp, routes, PORT)
        assert await udp.next() == {"172.17.8.102": 1}
        routes.set(SUBNET, NextHop("172.17.8.103", PORT))
        queues.changed()
        assert await udp.next() == {"172.17.8.103": 1}
        routes.remove(SUBNET)
        queues.changed()
        assert await udp.next() == {}

    asyncio.run(scenario())


@pytest.mark.parametrize("port", [PORT, None])
def test_unknown_senders_are_sampled_if_the_source_is_checked(port: int | None) -> None:
    async def scenario() -> None:
        udp = RecordingSocket()
        SenderQueues(udp, Routes(), port)
        assert udp.samples_unknown_senders == (port is not None)

    asyncio.run(scenario())


def test_a_host_keeps_its_queue_and_queues_are_shared_evenly() -> None:
    rng = random.Random(7)

    async def scenario() -> None:
        routes = Routes()
        udp = RecordingSocket(8)
        queues = SenderQueues(udp, routes, PORT)
        before = await udp.next()
        for _ in range(30):
            number = rng.randrange(40)
            if rng.random() < 0.3:
                routes.remove(subnet(number))
            else:
                routes.set(subnet(number), NextHop(f"172.17.8.{number}", PORT))
            queues.changed()
            found = await udp.next()
            assert set(found) == set(routes.by_public_ip)
            assert {ip: queue for ip, queue in before.items() if ip in found}.items() <= found.items()
            hosts = Counter(found.values())
            assert set(hosts) <= set(range(1, 8))
            if set(found) > set(before):
                [fresh] = set(found) - set(before)
                assert hosts[found[fresh]] - 1 == min(Counter(before.values())[queue] for queue in range(1, 8))
            before = found

    asyncio.run(scenario())


def test_up_to_the_number_of_queues_no_host_shares_one() -> None:
    async def scenario() -> None:
        routes = Routes()
        for number in range(31):
            routes.set(subnet(number), NextHop(f"172.17.8.{number}", PORT))
        udp = RecordingSocket()
        SenderQueues(udp, routes, PORT)
        assert sorted((await udp.next()).values()) == list(range(1, 32))

    asyncio.run(scenario())


def test_where_there_is_one_queue_all_share_it() -> None:
    async def scenario() -> None:
        routes = Routes()
        routes.set(SUBNET, NextHop("172.17.8.102", PORT))
        udp = RecordingSocket(1)
        SenderQueues(udp, routes, PORT)
        assert await udp.next() == {"172.17.8.102": 0}

    asyncio.run(scenario())


def test_many_changes_become_one_and_the_more_senders_the_longer_is_the_pause() -> None:
    async def scenario() -> None:
        routes = Routes()
        udp = RecordingSocket()
        queues = SenderQueues(udp, routes, PORT)
        began = asyncio.get_running_loop().time()
        for number in range(1000):
            routes.set(subnet(number), NextHop(str(IPv4Address(number)), PORT))
        queues.changed()
        for _ in range(100):
            queues.changed()
            await asyncio.sleep(0)
        udp.changed.clear()
        assert len(await udp.next()) == 1000
        assert len(udp.assigned) == 2
        assert asyncio.get_running_loop().time() - began >= 0.02

    asyncio.run(scenario())


def test_settle_updates_the_queues_at_once_if_an_update_is_due() -> None:
    async def scenario() -> None:
        routes = Routes()
        udp = RecordingSocket()
        queues = SenderQueues(udp, routes, PORT)
        routes.set(SUBNET, NextHop("172.17.8.102", PORT))
        queues.changed()
        queues.settle()
        assert udp.assigned == [{}, {"172.17.8.102": 1}]
        queues.settle()
        await asyncio.sleep(0.01)
        assert len(udp.assigned) == 2
        routes.remove(SUBNET)
        queues.changed()
        udp.changed.clear()
        assert await udp.next() == {}

    asyncio.run(scenario())


def test_after_close_the_queues_are_not_changed() -> None:
    async def scenario() -> None:
        udp = RecordingSocket()
        queues = SenderQueues(udp, Routes(), PORT)
        queues.changed()
        queues.close()
        for _ in range(20):
            await asyncio.sleep(0)
        assert udp.assigned == [{}]
        SenderQueues(udp, Routes(), PORT).close()

    asyncio.run(scenario())
