"""The loop between device and socket: a real UDP socket, and a socket pair in place of the device."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import Counter
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Self

import pytest
from packets import hop_taken, ipv4_packet

from flannelpy.backend.udp.engine import Batch, Engine, Plan
from flannelpy.backend.udp.proxy import Proxy
from flannelpy.backend.udp.routes import NextHop, Routes
from flannelpy.errors import HostError
from flannelpy.linux.tun import Tun
from flannelpy.linux.udp_socket import UdpSocket
from flannelpy.packet.drops import DropReason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

LOCALHOST = IPv4Address("127.0.0.1")
CONTAINER, REMOTE = "11.0.59.2", "11.0.101.2"
DEADLINE = 10


class FakeTun(Tun):
    """Reads and writes one end of a socket pair as if it was the device; ``gone`` is the errno of a removed one."""

    def __init__(self, end: socket.socket) -> None:
        self.fd = end.detach()
        self.name = "flannel0"
        self.gone = False

    def read_into(self, view: memoryview) -> int:
        if self.gone:
            raise HostError("flannel0 cannot be read any more: File descriptor in bad state")
        return super().read_into(view)


class RecordingEngine(Engine):
    """Remembers how many packets each wake-up brought."""

    def __init__(self, routes: Routes) -> None:
        super().__init__(IPv4Address("11.0.59.0"), routes)
        self.batches: list[int] = []

    def outbound(self, batch: Batch, now: float) -> Plan:
        self.batches.append(len(batch.lengths))
        return super().outbound(batch, now)

    def inbound(self, batch: Batch, now: float) -> Plan:
        self.batches.append(len(batch.lengths))
        return super().inbound(batch, now)


class Bench:
    """A running proxy: ``kernel`` is the other end of its device, ``remote`` the socket of another host."""

    async def __aenter__(self) -> Self:
        self.kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.setblocking(False)
        self.remote = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.remote.bind(("127.0.0.1", 0))
        for end in (self.kernel, self.remote):
            end.setblocking(False)
        self.tun = FakeTun(ours)
        self.udp = UdpSocket(LOCALHOST, 0)
        with socket.socket(fileno=os.dup(self.udp.fileno())) as same:
            self.address = same.getsockname()
        self.routes = Routes()
        self.engine = RecordingEngine(self.routes)
        self.route(self.remote.getsockname())
        self.proxy = Proxy(self.tun, self.udp, self.engine)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.proxy.close()
        self.tun.close()
        self.udp.close()
        self.kernel.close()
        self.remote.close()

    def route(self, to: tuple[str, int]) -> None:
        self.routes.set(IPv4Network("11.0.101.0/24"), NextHop(*to))

    async def receive(self, end: socket.socket, count: int) -> list[bytes]:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(DEADLINE):
            return [await loop.sock_recv(end, 70000) for _ in range(count)]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0)


def play(scenario: Callable[[Bench], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with Bench() as bench:
            await scenario(bench)

    asyncio.run(whole())


def outgoing(number: int, length: int = 100) -> bytes:
    return ipv4_packet(CONTAINER, REMOTE, number.to_bytes(4, "big") + bytes(length - 24))


def incoming(number: int) -> bytes:
    return ipv4_packet(REMOTE, CONTAINER, number.to_bytes(4, "big") * 10)


def test_packets_of_the_device_become_datagrams_one_each_in_order() -> None:
    packets = [outgoing(number, length) for number, length in enumerate([100, 100, 60, 100, 1472, 24, 24, 20_000])]

    async def scenario(bench: Bench) -> None:
        for packet in packets:
            bench.kernel.send(packet)
        assert await bench.receive(bench.remote, len(packets)) == list(map(hop_taken, packets))
        assert not bench.proxy.drops

    play(scenario)


def test_datagrams_become_packets_of_the_device_one_each_in_order() -> None:
    packets = list(map(incoming, range(10)))

    async def scenario(bench: Bench) -> None:
        for packet in packets:
            bench.remote.sendto(packet, bench.address)
        assert await bench.receive(bench.kernel, len(packets)) == list(map(hop_taken, packets))
        assert not bench.proxy.drops

    play(scenario)


def test_a_wake_up_takes_at_most_64_packets_and_lets_others_run_in_between() -> None:
    packets = list(map(incoming, range(200)))

    async def scenario(bench: Bench) -> None:
        bench.kernel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        for packet in packets:
            bench.remote.sendto(packet, bench.address)
        received: list[bytes] = []
        turns = 0
        async with asyncio.timeout(DEADLINE):
            while len(received) < len(packets):
                turns += 1
                await asyncio.sleep(0)
                try:
                    while True:
                        received.append(bench.kernel.recv(2000))
                except BlockingIOError:
                    pass
        assert received == list(map(hop_taken, packets))
        assert bench.engine.batches[:3] == [64, 64, 64]
        assert sum(bench.engine.batches) == 200
        assert turns >= 4

    play(scenario)


def test_outbound_wake_ups_are_bounded_too() -> None:
    async def scenario(bench: Bench) -> None:
        sent = 0
        async with asyncio.timeout(DEADLINE):
            while sent < 200:
                try:
                    bench.kernel.send(outgoing(sent))
                    sent += 1
                except BlockingIOError:
                    await asyncio.sleep(0)
        assert await bench.receive(bench.remote, 200) == [hop_taken(outgoing(number)) for number in range(200)]
        assert max(bench.engine.batches) <= 64

    play(scenario)


def test_the_largest_packets_are_not_cut() -> None:
    packet = ipv4_packet(REMOTE, CONTAINER, bytes(65487))

    async def scenario(bench: Bench) -> None:
        bench.remote.sendto(packet, bench.address)
        assert await bench.receive(bench.kernel, 1) == [hop_taken(packet)]

    play(scenario)


def test_an_icmp_error_goes_back_into_the_device() -> None:
    async def scenario(bench: Bench) -> None:
        bench.kernel.send(ipv4_packet(CONTAINER, "11.0.254.2", bytes(20)))
        [reply] = await bench.receive(bench.kernel, 1)
        assert (reply[9], reply[20:22], reply[16:20]) == (1, b"\x03\x00", IPv4Address(CONTAINER).packed)
        assert bench.proxy.drops == Counter({DropReason.NO_ROUTE: 1})

    play(scenario)


def test_what_is_no_packet_is_counted_and_the_next_is_carried() -> None:
    async def scenario(bench: Bench) -> None:
        for datagram in (b"", b"rubbish", b"\x60" + bytes(47), incoming(1)[:-1], incoming(7)):
            bench.remote.sendto(datagram, bench.address)
        assert await bench.receive(bench.kernel, 1) == [hop_taken(incoming(7))]
        assert bench.proxy.drops == Counter({DropReason.TRUNCATED: 2, DropReason.NOT_IPV4: 1, DropReason.BAD_LENGTH: 1})

    play(scenario)


@pytest.mark.parametrize(
    ("destination", "length", "reason"),
    [
        pytest.param("255.255.255.255", 100, DropReason.SEND_FAILED, id="not permitted"),
        pytest.param("127.0.0.1", 65535, DropReason.TOO_BIG, id="longer than a datagram"),
    ],
)
def test_what_the_underlay_refuses_is_counted_by_its_reason(destination: str, length: int, reason: DropReason) -> None:
    async def scenario(bench: Bench) -> None:
        bench.route((destination, 9))
        bench.kernel.send(outgoing(1, length))
        await bench.until(lambda: bool(bench.proxy.drops))
        assert bench.proxy.drops == Counter({reason: 1})
        bench.route(bench.remote.getsockname())
        bench.kernel.send(outgoing(2))
        assert await bench.receive(bench.remote, 1) == [hop_taken(outgoing(2))]

    play(scenario)


def test_a_full_socket_is_counted_for_each_packet_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: UdpSocket, datagram: memoryview | bytes, to: tuple[str, int]) -> DropReason | None:
        return DropReason.SOCKET_FULL

    async def scenario(bench: Bench) -> None:
        monkeypatch.setattr(UdpSocket, "send", full)
        for number in range(5):
            bench.kernel.send(outgoing(number))
        await bench.until(lambda: bench.proxy.drops[DropReason.SOCKET_FULL] == 5)

    play(scenario)


def test_a_device_that_takes_no_more_is_counted_and_nothing_waits_for_it() -> None:
    """The original tried again and again until the packet fitted."""

    async def scenario(bench: Bench) -> None:
        while bench.tun.write(b"fills the queue"):
            pass
        bench.remote.sendto(incoming(1), bench.address)
        await bench.until(lambda: bench.proxy.drops == Counter({DropReason.TUN_REFUSED: 1}))

    play(scenario)


async def failure_of(bench: Bench) -> str:
    with pytest.raises(HostError) as caught:
        async with asyncio.timeout(DEADLINE):
            await bench.proxy.failure()
    return str(caught.value)


def test_a_device_that_cannot_be_read_any_more_is_a_failure_and_ends_the_loop() -> None:
    """The original kept a CPU busy for ever."""

    async def scenario(bench: Bench) -> None:
        bench.tun.gone = True
        bench.kernel.send(outgoing(1))
        bench.remote.sendto(incoming(1), bench.address)
        assert await failure_of(bench) == "flannel0 cannot be read any more: File descriptor in bad state"
        wake_ups = len(bench.engine.batches)
        bench.remote.sendto(incoming(2), bench.address)
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(bench.engine.batches) == wake_ups

    play(scenario)


def test_a_device_that_vanishes_under_a_write_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def bad_state(fd: int, data: bytes) -> int:
        raise OSError(errno.EBADFD, os.strerror(errno.EBADFD))

    async def scenario(bench: Bench) -> None:
        monkeypatch.setattr(os, "write", bad_state)
        bench.remote.sendto(incoming(1), bench.address)
        assert await failure_of(bench) == "flannel0 is gone: File descriptor in bad state"
        monkeypatch.undo()

    play(scenario)


def test_nothing_is_carried_after_close() -> None:
    async def scenario(bench: Bench) -> None:
        bench.proxy.close()
        bench.kernel.send(outgoing(1))
        bench.remote.sendto(incoming(1), bench.address)
        for _ in range(10):
            await asyncio.sleep(0)
        assert bench.engine.batches == []

    play(scenario)


def test_a_port_that_is_taken_is_said_with_a_guess_why() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with pytest.raises(HostError) as caught:
            UdpSocket(LOCALHOST, port)
    assert str(caught.value) == (
        f"cannot listen on UDP 127.0.0.1:{port}: Address already in use; is another flannel running?"
    )


def test_an_address_that_is_not_ours_is_said() -> None:
    with pytest.raises(HostError) as caught:
        UdpSocket(IPv4Address("192.0.2.1"), 8285)
    assert str(caught.value) == "cannot listen on UDP 192.0.2.1:8285: Cannot assign requested address"
