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
from support import oracle
from support.oracle import VnetHeader
from support.packets import (
    ICMP,
    NETWORK,
    OWN_SUBNET,
    TCP,
    hop_taken,
    ipv4_packet,
    tcp_segment,
    udp_datagram,
    unfinished,
    with_checksum,
)

from flannelpy.backend.udp import proxy
from flannelpy.backend.udp.proxy import Proxy
from flannelpy.datapath.engine import Engine, Plan, Train
from flannelpy.datapath.routes import NextHop, Routes
from flannelpy.errors import HostError
from flannelpy.linux import packet_loop
from flannelpy.linux.tun import Tun
from flannelpy.linux.udp_socket import UdpSocket
from flannelpy.packet import vnet_hdr
from flannelpy.packet.drops import DropReason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType

LOCALHOST = IPv4Address("127.0.0.1")
CONTAINER, REMOTE = "11.0.59.2", "11.0.101.2"
DEADLINE = 10
UDP_SEGMENT = 103


class FakeTun(Tun):
    """Reads and writes one end of a socket pair as if it was the device; ``gone`` is the errno of a removed one."""

    def __init__(self, end: socket.socket) -> None:
        self.fd = end.detach()
        self.name = "flannel0"
        self.gone = False

    def read_into(self, header: memoryview, view: memoryview) -> int:
        if self.gone:
            raise HostError("flannel0 cannot be read any more: File descriptor in bad state")
        return super().read_into(header, view)


class FullUdp(UdpSocket):
    """One end of a socket pair, which takes no more when the other end does not read."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self.gso = self.gro = False
        self.queues = [self]

    def receive_into(self, view: memoryview) -> tuple[int, int, tuple[str, int]] | None:
        try:
            length = self._socket.recv_into(view)
        except BlockingIOError:
            return None
        return length, length, ("127.0.0.1", 8285)

    def send(self, data: memoryview | bytes, segment_size: int, to: tuple[str, int]) -> DropReason | None:
        try:
            self._socket.send(data)
        except BlockingIOError:
            return DropReason.SEND_BUFFER_FULL
        return None


class RecordingEngine(Engine):
    """Remembers how many packets each batch brought."""

    def __init__(self, routes: Routes, port: int) -> None:
        super().__init__(OWN_SUBNET, routes, network=NETWORK, bound=LOCALHOST, port=port)
        self.batches: list[int] = []

    def outbound(self, lengths: list[int], now: float) -> Plan:
        self.batches.append(len(lengths))
        return super().outbound(lengths, now)

    def inbound(self, trains: Sequence[Train], now: float) -> Plan:
        self.batches.append(len(trains))
        return super().inbound(trains, now)


class Bench:
    """A running proxy: ``kernel`` is the other end of its device, ``remote`` the socket of another host."""

    def __init__(self, *, full: bool = False) -> None:
        """``full``: the way to the remote host is one that fills up."""
        self._full = full
        self.writes = 0

    async def __aenter__(self) -> Self:
        self.make_tun()
        if self._full:
            self.remote, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            end.setblocking(False)
            self.udp: UdpSocket = FullUdp(end)
            next_hop = ("127.0.0.1", 8285)
        else:
            self.remote = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.remote.bind(("127.0.0.1", 0))
            self.udp = UdpSocket(LOCALHOST, 0)
            with socket.socket(fileno=os.dup(self.udp.fileno())) as same:
                self.address = same.getsockname()
            next_hop = self.remote.getsockname()
        self.remote.setblocking(False)
        self.routes = Routes()
        self.engine = RecordingEngine(self.routes, next_hop[1])
        self.route(next_hop)
        self.proxy = Proxy(self.tun, self.udp, self.engine)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.proxy.pause()
        self.tun.close()
        self.udp.close()
        self.kernel.close()
        self.remote.close()

    def make_tun(self) -> None:
        self.kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (self.kernel, ours):
            end.setblocking(False)
        self.tun = FakeTun(ours)

    def replace_tun(self) -> None:
        self.tun.close()
        self.kernel.close()
        self.make_tun()

    def route(self, to: tuple[str, int]) -> None:
        self.routes.set(IPv4Network("11.0.101.0/24"), NextHop(*to))

    def give(self, packet: bytes, header: bytes = vnet_hdr.PLAIN) -> None:
        """Let the device have a packet for the proxy."""
        self.kernel.send(header + packet)

    async def receive(self, end: socket.socket, count: int) -> list[bytes]:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(DEADLINE):
            return [await loop.sock_recv(end, 70000) for _ in range(count)]

    async def receive_packets(self, count: int) -> list[bytes]:
        """So many packets that the device got, as the kernel behind it sees them; ``writes`` counts how they came."""
        packets: list[bytes] = []
        while len(packets) < count:
            [data] = await self.receive(self.kernel, 1)
            packets += oracle.written(data[: vnet_hdr.SIZE], data[vnet_hdr.SIZE :])
            self.writes += 1
        return packets

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0)


def play(scenario: Callable[[Bench], Awaitable[None]], *, full: bool = False) -> None:
    async def whole() -> None:
        async with Bench(full=full) as bench:
            await scenario(bench)

    packet_loop.run(whole())


async def some_turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def outgoing(number: int, length: int = 100) -> bytes:
    return ipv4_packet(CONTAINER, REMOTE, number.to_bytes(4, "big") + bytes(length - 24))


def incoming(number: int) -> bytes:
    return ipv4_packet(REMOTE, CONTAINER, number.to_bytes(4, "big") * 10)


def test_packets_of_the_device_become_datagrams_one_each_in_order() -> None:
    packets = [outgoing(number, length) for number, length in enumerate([100, 100, 60, 100, 1472, 24, 24, 20_000])]

    async def scenario(bench: Bench) -> None:
        for packet in packets:
            bench.give(packet)
        assert await bench.receive(bench.remote, len(packets)) == list(map(hop_taken, packets))
        assert not bench.proxy.drops

    play(scenario)


def test_datagrams_become_packets_of_the_device_one_each_in_order() -> None:
    packets = list(map(incoming, range(10)))

    async def scenario(bench: Bench) -> None:
        for packet in packets:
            bench.remote.sendto(packet, bench.address)
        assert await bench.receive_packets(len(packets)) == list(map(hop_taken, packets))
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
                        received.append(bench.kernel.recv(2000)[vnet_hdr.SIZE :])
                except BlockingIOError:
                    pass
        assert received == list(map(hop_taken, packets))
        assert max(bench.engine.batches) == 64
        assert sum(bench.engine.batches) == 200
        assert turns >= 4

    play(scenario)


@pytest.mark.parametrize("length", [28, 1400])
def test_a_host_that_floods_us_does_not_delay_the_others(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its own queue, and 64 datagrams of the flood are carried between two looks at the other queues."""
    order: list[bytes] = []

    def write(_: Tun, header: bytes, packet: memoryview | bytes) -> bool:
        order.append(bytes(packet[:20]))
        return True

    monkeypatch.setattr(Tun, "write", write)
    monkeypatch.setattr(proxy, "_TURN_SECONDS", 1e-9)

    async def scenario(bench: Bench) -> None:
        _, port = bench.remote.getsockname()
        for number, sender in enumerate(("127.0.0.2", "127.0.0.3"), 1):
            bench.routes.set(IPv4Network((int(IPv4Address("11.0.102.0")) + 256 * number, 24)), NextHop(sender, port))
        bench.udp.assign({"127.0.0.2": 1, "127.0.0.3": 2}, port)
        for sender, source, count in (("127.0.0.2", "11.0.103.2", 1000), ("127.0.0.3", "11.0.104.2", 3)):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
                end.bind((sender, port))
                for _ in range(count):
                    end.sendto(ipv4_packet(source, CONTAINER, bytes(length - 20), protocol=ICMP), bench.address)
        await bench.until(lambda: len(order) >= 1003)
        sources = [packet[14] for packet in order]
        assert (sources.count(103), sources.count(104)) == (1000, 3)
        assert max(at for at, source in enumerate(sources) if source == 104) < 64 * 4

    play(scenario)


def test_outbound_wake_ups_are_bounded_too() -> None:
    async def scenario(bench: Bench) -> None:
        sent = 0
        async with asyncio.timeout(DEADLINE):
            while sent < 200:
                try:
                    bench.give(outgoing(sent))
                    sent += 1
                except BlockingIOError:
                    await asyncio.sleep(0)
        assert await bench.receive(bench.remote, 200) == [hop_taken(outgoing(number)) for number in range(200)]
        assert max(bench.engine.batches) <= 64

    play(scenario)


def test_the_first_packet_after_a_sleep_does_not_wait_for_a_look_at_what_is_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handlers: dict[int, packet_loop.Handler] = {}

    async def scenario(bench: Bench) -> None:
        for number in range(5):
            bench.give(outgoing(number))
            bench.remote.sendto(incoming(number), bench.address)
        for fd in (bench.tun.fd, bench.udp.fileno()):
            bench.engine.batches.clear()
            assert not handlers[fd](True)
            assert bench.engine.batches == [1]
            assert not handlers[fd](False)
            assert bench.engine.batches == [1, 4]
        assert await bench.receive(bench.remote, 5) == [hop_taken(outgoing(number)) for number in range(5)]
        assert await bench.receive_packets(5) == [hop_taken(incoming(number)) for number in range(5)]

    monkeypatch.setattr(
        packet_loop.PacketLoop, "add_packet_reader", lambda _, fd, handler: handlers.update({fd: handler})
    )
    play(scenario)


def test_the_largest_packets_are_not_cut() -> None:
    packet = ipv4_packet(REMOTE, CONTAINER, bytes(65487))

    async def scenario(bench: Bench) -> None:
        bench.remote.sendto(packet, bench.address)
        assert await bench.receive_packets(1) == [hop_taken(packet)]

    play(scenario)


def test_an_icmp_error_goes_back_into_the_device() -> None:
    async def scenario(bench: Bench) -> None:
        bench.give(ipv4_packet(CONTAINER, "11.0.254.2", bytes(20)))
        [reply] = await bench.receive_packets(1)
        assert (reply[9], reply[20:22], reply[16:20]) == (1, b"\x03\x00", IPv4Address(CONTAINER).packed)
        assert bench.proxy.drops == Counter({DropReason.NO_ROUTE: 1})

    play(scenario)


def test_what_is_no_packet_is_counted_and_the_next_is_carried() -> None:
    async def scenario(bench: Bench) -> None:
        for datagram in (b"", b"rubbish", b"\x60" + bytes(47), incoming(1)[:-1], incoming(7)):
            bench.remote.sendto(datagram, bench.address)
        assert await bench.receive_packets(1) == [hop_taken(incoming(7))]
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
        bench.give(outgoing(1, length))
        await bench.until(lambda: bool(bench.proxy.drops))
        assert bench.proxy.drops == Counter({reason: 1})
        bench.route(bench.remote.getsockname())
        bench.give(outgoing(2))
        assert await bench.receive(bench.remote, 1) == [hop_taken(outgoing(2))]

    play(scenario)


async def fill(bench: Bench) -> int:
    """Give packets until nothing moves any more; their number."""
    given = 0
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                bench.give(outgoing(given))
                given += 1
            except BlockingIOError:
                batches = len(bench.engine.batches)
                await some_turns()
                if len(bench.engine.batches) == batches:
                    return given


def test_a_full_socket_stops_the_reading_of_the_device_and_nothing_is_lost_or_out_of_order() -> None:
    """So the packets wait where TCP notices, in the device's queue."""

    async def scenario(bench: Bench) -> None:
        given = await fill(bench)
        read = sum(bench.engine.batches)
        assert 0 < read < given
        await some_turns()
        assert sum(bench.engine.batches) == read
        assert await bench.receive(bench.remote, given) == [hop_taken(outgoing(number)) for number in range(given)]
        assert sum(bench.engine.batches) == given
        bench.give(outgoing(given))
        assert await bench.receive(bench.remote, 1) == [hop_taken(outgoing(given))]
        assert not bench.proxy.drops

    play(scenario, full=True)


def test_while_the_socket_is_full_packets_still_come_in() -> None:
    async def scenario(bench: Bench) -> None:
        await fill(bench)
        for number in range(3):
            bench.remote.send(incoming(number))
        assert await bench.receive_packets(3) == [hop_taken(incoming(number)) for number in range(3)]

    play(scenario, full=True)


def test_what_waits_for_a_full_socket_is_not_sent_after_close() -> None:
    async def scenario(bench: Bench) -> None:
        await fill(bench)
        bench.proxy.pause()
        sent = 0
        try:
            while bench.remote.recv(2000):
                sent += 1
        except BlockingIOError:
            await some_turns()
        with pytest.raises(BlockingIOError):
            bench.remote.recv(2000)
        assert sent < sum(bench.engine.batches)

    play(scenario, full=True)


class Refusing:
    """Stands in for a method of sockets, and raises ``number`` when the data is as long as ``refused`` says."""

    def __init__(self, number: int, refused: Callable[[int], bool]) -> None:
        self.lengths: list[int] = []
        self._number = number
        self._refused = refused

    def sendmsg(self, end: socket.socket, data: list[memoryview], *rest: object) -> int:
        self._ask(len(data[0]))
        return super(socket.socket, end).sendmsg(data, *rest)  # type: ignore[arg-type]

    def sendto(self, end: socket.socket, data: memoryview, to: tuple[str, int]) -> int:
        self._ask(len(data))
        return super(socket.socket, end).sendto(data, to)

    def _ask(self, length: int) -> None:
        self.lengths.append(length)
        if self._refused(length):
            raise OSError(self._number, os.strerror(self._number))

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> Self:
        for name in ("sendmsg", "sendto"):
            method = getattr(self, name)
            monkeypatch.setattr(socket.socket, name, lambda *args, method=method: method(*args), raising=False)
        return self


def test_packets_of_equal_length_are_sent_with_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(bench: Bench) -> None:
        assert bench.udp.gso
        asked = Refusing(0, lambda _: False).patch(monkeypatch)
        for number in range(8):
            bench.give(outgoing(number))
        assert await bench.receive(bench.remote, 8) == [hop_taken(outgoing(number)) for number in range(8)]
        assert asked.lengths in ([800], [100, 700])

    play(scenario)


def test_a_kernel_that_refuses_many_datagrams_at_a_time_gets_them_one_by_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A network card without checksum offload; it is found out once and for all, and nothing is lost by it."""

    async def scenario(bench: Bench) -> None:
        asked = Refusing(errno.EIO, lambda length: length > 100).patch(monkeypatch)
        for start in (0, 8):
            for packet in range(start, start + 8):
                bench.give(outgoing(packet))
            expected = [hop_taken(outgoing(packet)) for packet in range(start, start + 8)]
            assert await bench.receive(bench.remote, 8) == expected
        assert len([length for length in asked.lengths if length > 100]) == 1
        assert not bench.udp.gso
        assert not bench.proxy.drops
        assert caplog.messages == ["Kernel rejected UDP_SEGMENT: Input/output error; sending datagrams one by one"]

    play(scenario)


@pytest.mark.parametrize("number", [errno.EMSGSIZE, errno.EINVAL])
def test_a_run_that_is_too_much_for_the_path_is_sent_one_by_one(
    number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What the path cannot carry in one piece is fragmented then; the next run is tried as a whole again.

    That next hop is one of many.  EINVAL is the same from an older kernel.
    """

    async def scenario(bench: Bench) -> None:
        asked = Refusing(number, lambda length: length > 100).patch(monkeypatch)
        for start in (0, 8):
            for packet in range(start, start + 8):
                bench.give(outgoing(packet))
            expected = [hop_taken(outgoing(packet)) for packet in range(start, start + 8)]
            assert await bench.receive(bench.remote, 8) == expected
        assert len([length for length in asked.lengths if length > 100]) == 2
        assert bench.udp.gso
        assert not bench.proxy.drops
        assert not caplog.messages

    play(scenario)


def test_one_datagram_that_is_too_big_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    packets = [outgoing(0), *(outgoing(number, 200) for number in range(1, 5)), outgoing(5, 60), outgoing(6)]

    async def scenario(bench: Bench) -> None:
        Refusing(errno.EMSGSIZE, lambda length: length >= 200).patch(monkeypatch)
        for packet in packets:
            bench.give(packet)
        expected = [hop_taken(packets[number]) for number in (0, 5, 6)]
        assert await bench.receive(bench.remote, 3) == expected
        assert bench.proxy.drops == Counter({DropReason.TOO_BIG: 4})

    play(scenario)


def test_a_super_packet_of_the_device_becomes_its_segments() -> None:
    packet = unfinished(ipv4_packet(CONTAINER, REMOTE, tcp_segment(bytes(range(256)) * 20), protocol=TCP))

    async def scenario(bench: Bench) -> None:
        bench.give(packet, VnetHeader(1, 1, 0, 1000, 20, 16).encode())
        assert await bench.receive(bench.remote, 6) == oracle.segments(hop_taken(packet), 1000)
        assert not bench.proxy.drops

    play(scenario)


def test_datagrams_of_one_flow_become_one_super_packet_of_the_device() -> None:
    packets = [
        with_checksum(ipv4_packet(REMOTE, CONTAINER, udp_datagram(bytes((number,)) * 100), identification=number))
        for number in range(8)
    ]

    async def scenario(bench: Bench) -> None:
        control = (socket.IPPROTO_UDP, UDP_SEGMENT, (128).to_bytes(2, "little"))
        bench.remote.sendmsg([b"".join(packets)], [control], 0, bench.address)
        assert bench.udp.gro
        assert await bench.receive_packets(8) == list(map(hop_taken, packets))
        assert bench.writes == 1
        for packet in packets:
            bench.remote.sendto(packet, bench.address)
        assert await bench.receive_packets(8) == list(map(hop_taken, packets))
        assert bench.writes <= 3

    play(scenario)


def test_a_device_that_takes_no_more_is_counted_and_nothing_waits_for_it() -> None:
    """The original tried again and again until the packet fitted."""

    async def scenario(bench: Bench) -> None:
        while bench.tun.write(vnet_hdr.PLAIN, b"fills the queue"):
            pass
        bench.remote.sendto(incoming(1), bench.address)
        await bench.until(lambda: bench.proxy.drops == Counter({DropReason.TUN_WRITE_FAILED: 1}))

    play(scenario)


def test_a_device_that_cannot_be_read_any_more_pauses_the_proxy_without_a_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The original kept a CPU busy for ever."""

    async def scenario(bench: Bench) -> None:
        bench.tun.gone = True
        bench.give(outgoing(1))
        bench.remote.sendto(incoming(1), bench.address)
        await bench.until(lambda: bench.proxy.paused)
        wake_ups = len(bench.engine.batches)
        bench.remote.sendto(incoming(2), bench.address)
        await some_turns()
        assert len(bench.engine.batches) == wake_ups

    play(scenario)
    assert caplog.messages == ["flannel0 cannot be read any more: File descriptor in bad state"]


def test_a_device_that_vanishes_under_a_write_stalls_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bad_state(fd: int, buffers: tuple[bytes, bytes]) -> int:
        raise OSError(errno.EBADFD, os.strerror(errno.EBADFD))

    async def scenario(bench: Bench) -> None:
        monkeypatch.setattr(os, "writev", bad_state)
        bench.remote.sendto(incoming(1), bench.address)
        await bench.until(lambda: bench.proxy.paused)
        monkeypatch.undo()

    play(scenario)
    assert caplog.messages == ["flannel0 is gone: File descriptor in bad state"]


@pytest.mark.parametrize("error", [IndexError("a fault"), OSError(24, "Too many open files"), RecursionError()])
@pytest.mark.parametrize("way", ["outbound", "inbound", "again"])
def test_a_fault_of_the_packet_path_ends_its_own_network_and_not_the_loop(
    monkeypatch: pytest.MonkeyPatch, error: Exception, way: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    async def scenario(bench: Bench) -> None:
        if way == "outbound":
            monkeypatch.setattr(bench.engine, "outbound", fail)
            bench.give(outgoing(1))
        elif way == "inbound":
            monkeypatch.setattr(bench.engine, "inbound", fail)
            bench.remote.sendto(incoming(1), bench.address)
        else:
            sent = 0
            while not bench.proxy._unsent:
                bench.give(outgoing(sent))
                sent += 1
                await some_turns()
            monkeypatch.setattr(bench.udp, "send", fail)
            await bench.receive(bench.remote, sent - 1)
        with pytest.raises(type(error)):
            async with asyncio.timeout(DEADLINE):
                await bench.proxy.failure
        assert bench.proxy.paused
        bench.proxy.resume(bench.tun)  # as the repair loop may do at this very moment
        bench.give(outgoing(2))
        await some_turns()

    play(scenario, full=way == "again")


def test_a_new_device_gets_what_came_meanwhile() -> None:
    async def scenario(bench: Bench) -> None:
        bench.tun.gone = True
        bench.give(outgoing(1))
        await bench.until(lambda: bench.proxy.paused)
        bench.remote.sendto(incoming(1), bench.address)
        await some_turns()
        bench.replace_tun()
        bench.proxy.resume(bench.tun)
        assert not bench.proxy.paused
        assert await bench.receive_packets(1) == [hop_taken(incoming(1))]
        bench.give(outgoing(2))
        assert await bench.receive(bench.remote, 1) == [hop_taken(outgoing(2))]

    play(scenario)


def test_a_new_device_is_not_read_before_the_socket_takes_more() -> None:
    async def scenario(bench: Bench) -> None:
        sent = 0
        while not bench.proxy._unsent:
            bench.give(outgoing(sent))
            sent += 1
            await some_turns()
        bench.tun.gone = True
        bench.proxy.pause()
        bench.replace_tun()
        bench.proxy.resume(bench.tun)
        bench.give(outgoing(sent))
        assert await bench.receive(bench.remote, sent + 1) == [hop_taken(outgoing(n)) for n in range(sent + 1)]

    play(scenario, full=True)


def test_nothing_is_carried_after_close() -> None:
    async def scenario(bench: Bench) -> None:
        assert not bench.proxy.paused
        bench.proxy.pause()
        assert bench.proxy.paused
        bench.give(outgoing(1))
        bench.remote.sendto(incoming(1), bench.address)
        await some_turns()
        assert bench.engine.batches == []

    play(scenario)


def test_a_refused_sender_is_counted_and_named_and_the_next_is_served() -> None:
    async def scenario(bench: Bench) -> None:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as masqueraded,
        ):
            stranger.bind(("127.0.0.2", 0))
            masqueraded.bind(("127.0.0.1", 0))
            senders = stranger.getsockname(), masqueraded.getsockname()
            for number in range(3):
                stranger.sendto(incoming(number), bench.address)
            masqueraded.sendto(incoming(3), bench.address)
        bench.remote.sendto(incoming(7), bench.address)
        assert await bench.receive_packets(1) == [hop_taken(incoming(7))]
        reasons = DropReason.UNKNOWN_SENDER, DropReason.WRONG_SENDER_PORT
        assert bench.proxy.drops == Counter(dict(zip(reasons, (3, 1), strict=True)))
        assert bench.engine.refused_senders == dict(zip(reasons, senders, strict=True))

    play(scenario)
