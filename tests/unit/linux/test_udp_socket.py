"""The UDP socket, on loopback: runs arrive as their datagrams, trains as what they were, and errors by their reason."""

from __future__ import annotations

import errno
import os
import random
import select
import socket
import struct
from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest

from flannelpy.datapath.queue_selection import MAX_ASSIGNED, MAX_SENDERS
from flannelpy.errors import HostError
from flannelpy.linux.udp_socket import UdpQueue, UdpSocket
from flannelpy.packet.drops import DropReason

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCALHOST = IPv4Address("127.0.0.1")
DATA = random.Random(8285).randbytes(65507)
DEADLINE = 10
#: From which senders send; no ephemeral one.
PORT = 18285
SO_ATTACH_REUSEPORT_CBPF = 51


@contextmanager
def udp(*, gso: bool = True, gro: bool = True) -> Iterator[tuple[UdpSocket, tuple[str, int]]]:
    """A socket and its address."""
    found = UdpSocket(LOCALHOST, 0, gso=gso, gro=gro)
    try:
        with same_socket(found) as same:
            address = same.getsockname()
        yield found, address
    finally:
        found.close()


def same_socket(of: UdpSocket) -> socket.socket:
    return socket.socket(fileno=os.dup(of.fileno()))


@contextmanager
def plain_socket() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.bind(("127.0.0.1", 0))
        end.settimeout(DEADLINE)
        yield end


def receive(end: UdpQueue) -> tuple[bytes, int]:
    """(data, segment size) of what comes next."""
    assert select.select([end.fileno()], [], [], DEADLINE)[0]
    buffer = bytearray(65535)
    train = end.receive_into(memoryview(buffer))
    assert train is not None
    length, segment_size, sender = train
    assert sender[0] == "127.0.0.1"
    assert not any(buffer[length:])
    return bytes(buffer[:length]), segment_size


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


SHAPES = [
    pytest.param(1000, 100, id="ten"),
    pytest.param(1001, 100, id="and a shorter one"),
    pytest.param(200, 100, id="two"),
    pytest.param(101, 100, id="two of which one has one byte"),
    pytest.param(64, 1, id="64 of one byte"),
    pytest.param(64 * 1000, 1000, id="64"),
    pytest.param(44 * 1472, 1472, id="almost 65,000 bytes"),
    pytest.param(65000, 32500, id="65,000 bytes"),
    pytest.param(65000, 1111, id="an odd length"),
]


@pytest.mark.parametrize(("length", "size"), SHAPES)
def test_a_run_arrives_as_its_datagrams(length: int, size: int) -> None:
    with udp() as (sender, address), plain_socket() as receiver:
        assert sender.gso
        assert sender.send(memoryview(DATA)[:length], size, receiver.getsockname()) is None
        expected = pieces(DATA[:length], size)
        assert [receiver.recvfrom(65535) for _ in expected] == [(piece, address) for piece in expected]


@pytest.mark.parametrize(("length", "size"), SHAPES)
def test_a_train_arrives_in_one_piece_with_its_segment_size(length: int, size: int) -> None:
    with udp() as (sender, _), udp() as (receiver, to):
        assert receiver.gro
        assert sender.send(DATA[:length], size, to) is None
        assert receive(receiver) == (DATA[:length], size)


@pytest.mark.parametrize(("length", "size"), SHAPES)
def test_without_gro_the_same_run_arrives_one_by_one(length: int, size: int) -> None:
    with udp() as (sender, _), udp(gro=False) as (receiver, to):
        assert not receiver.gro
        assert sender.send(DATA[:length], size, to) is None
        assert [receive(receiver) for _ in pieces(DATA[:length], size)] == [
            (piece, len(piece)) for piece in pieces(DATA[:length], size)
        ]


@pytest.mark.parametrize("length", [0, 1, 1472, 9000, 65507])
@pytest.mark.parametrize("gro", [True, False])
@pytest.mark.parametrize("gso", [True, False])
def test_a_datagram_by_itself_is_sent_and_received_whole(length: int, gro: bool, gso: bool) -> None:
    """Fragmented on the way where it must be."""
    with udp(gso=gso) as (sender, _), udp(gro=gro) as (receiver, to):
        assert sender.gso == gso
        assert sender.send(DATA[:length], max(length, 1), to) is None
        assert receive(receiver) == (DATA[:length], length)


def test_a_run_of_one_is_not_one_for_the_kernel() -> None:
    """With UDP_SEGMENT a single datagram that is too long for the path would be refused."""
    with udp() as (sender, _), plain_socket() as receiver:
        assert sender.send(DATA, 65507, receiver.getsockname()) is None
        assert sender.send(DATA[:100], 65507, receiver.getsockname()) is None
        assert (receiver.recv(65535), receiver.recv(65535)) == (DATA, DATA[:100])


@pytest.mark.parametrize("gro", [True, False])
def test_without_datagrams_nothing_is_received(gro: bool) -> None:
    with udp(gro=gro) as (receiver, _):
        assert receiver.receive_into(memoryview(bytearray(65535))) is None


def refusing(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    for name in ("sendto", "sendmsg"):
        monkeypatch.setattr(socket.socket, name, refuse, raising=False)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EAGAIN, DropReason.SOCKET_FULL),
        (errno.ENOBUFS, DropReason.SOCKET_FULL),
        (errno.EMSGSIZE, DropReason.TOO_BIG),
        (errno.EPERM, DropReason.SEND_FAILED),
        (errno.ENETUNREACH, DropReason.SEND_FAILED),
        (errno.EIO, DropReason.SEND_FAILED),
        (errno.EINVAL, DropReason.SEND_FAILED),
    ],
)
@pytest.mark.parametrize("length", [100, 1000])
def test_a_datagram_that_cannot_be_sent_has_a_reason(
    number: int, reason: DropReason, length: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Only a run of several datagrams can show that the kernel rejects UDP_SEGMENT."""
    refusing(number, monkeypatch)
    with udp() as (sender, _):
        assert sender.send(DATA[:length], 100, ("127.0.0.1", 9)) is reason
        refused = length > 100 and number == errno.EIO
        assert sender.gso is not refused
        assert len(caplog.messages) == refused


def test_a_full_receive_buffer_is_counted() -> None:
    with udp() as (receiver, to), plain_socket() as sender:
        assert receiver.kernel_drops() == 0
        with same_socket(receiver) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for _ in range(100):
            sender.sendto(DATA[:1000], to)
        received = 0
        while receiver.receive_into(memoryview(bytearray(65535))):
            received += 1
        assert received > 0
        assert received + receiver.kernel_drops() == 100


def test_the_error_for_a_taken_port_suggests_a_cause() -> None:
    with plain_socket() as other:
        port = other.getsockname()[1]
        with pytest.raises(HostError) as caught:
            UdpSocket(LOCALHOST, port)
    assert str(caught.value) == (
        f"cannot listen on UDP 127.0.0.1:{port}: Address already in use; is another flannel running?"
    )


def test_an_address_of_another_host_is_an_error() -> None:
    with pytest.raises(HostError) as caught:
        UdpSocket(IPv4Address("192.0.2.1"), 8285)
    assert str(caught.value) == "cannot listen on UDP 192.0.2.1:8285: Cannot assign requested address"


def test_a_kernel_without_offloads_costs_only_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = socket.socket.setsockopt

    def without(end: socket.socket, level: int, *rest: int) -> None:
        if level == socket.IPPROTO_UDP:
            raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
        original(end, level, *rest)

    monkeypatch.setattr(socket.socket, "setsockopt", without, raising=False)
    with udp() as (sender, _), udp() as (receiver, to):
        assert (sender.gso, sender.gro) == (False, False)
        assert sender.send(DATA[:100], 100, to) is None
        assert receive(receiver) == (DATA[:100], 100)


def test_buffers_are_as_large_as_the_user_may_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the system's limit only root's."""
    original = socket.socket.setsockopt

    def as_user(end: socket.socket, level: int, option: int, value: int) -> None:
        if (level, option) in {(socket.SOL_SOCKET, 32), (socket.SOL_SOCKET, 33)}:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        original(end, level, option, value)

    def sizes(of: socket.socket) -> list[int]:
        return [of.getsockopt(socket.SOL_SOCKET, option) for option in (socket.SO_RCVBUF, socket.SO_SNDBUF)]

    with plain_socket() as ordinary:
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            ordinary.setsockopt(socket.SOL_SOCKET, option, 4 << 20)
        monkeypatch.setattr(socket.socket, "setsockopt", as_user, raising=False)
        with udp() as (found, _), same_socket(found) as same:
            assert sizes(same) == sizes(ordinary)


@pytest.mark.parametrize("gro", [True, False])
def test_a_datagram_comes_with_its_sender(gro: bool) -> None:
    with udp(gro=gro) as (receiver, to), plain_socket() as sender:
        for address in ("127.0.0.2", "127.255.0.7"):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.bind((address, 0))
                other.sendto(DATA[:100], to)
                source = other.getsockname()
            assert select.select([receiver.fileno()], [], [], DEADLINE)[0]
            assert receiver.receive_into(memoryview(bytearray(65535))) == (100, 100, source)
        sender.sendto(DATA[:7], to)
        assert receive(receiver) == (DATA[:7], 7)


def received_from(receiver: UdpSocket, *queues: int) -> list[str]:
    """The senders of all that is in these queues, or in any; on loopback nothing is on its way any more."""
    senders = []
    for number in queues or range(len(receiver.queues)):
        while train := receiver.queues[number].receive_into(memoryview(bytearray(65535))):
            senders.append(train[2][0])
    return senders


def send_from(address: str, to: tuple[str, int], count: int, port: int = PORT) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((address, port))
        for _ in range(count):
            sender.sendto(DATA[:28], to)


def test_until_senders_are_assigned_everything_comes_to_the_socket_itself() -> None:
    with udp() as (receiver, to):
        for number in range(2, 200):
            send_from(f"127.0.0.{number}", to, 1)
        assert len(received_from(receiver, 0)) == 198
        assert received_from(receiver) == []


@pytest.mark.parametrize("sample_unknown_senders", [True, False])
def test_each_sender_fills_its_own_queue_only(sample_unknown_senders: bool) -> None:
    """And what others send is mostly refused, but for one in 64, so that they are noticed."""
    with udp() as (receiver, to):
        receiver.assign({"127.0.0.2": 1, "127.0.0.4": 7, "127.0.0.5": 7}, PORT)
        if sample_unknown_senders:
            receiver.sample_unknown_senders()
        send_from("127.0.0.2", to, 60_000)
        for sender in ("127.0.0.3", "127.0.0.4", "127.0.0.5"):
            send_from(sender, to, 4000)
        flooding = received_from(receiver, 1)
        assert 1000 < len(flooding) < 60_000
        assert set(flooding) == {"127.0.0.2"}
        assert received_from(receiver, 7) == ["127.0.0.4"] * 4000 + ["127.0.0.5"] * 4000
        others = received_from(receiver)
        assert set(others) == {"127.0.0.3"}
        assert 10 < len(others) < 200 if sample_unknown_senders else len(others) == 4000
        assert len(flooding) + len(others) + receiver.kernel_drops() == 64_000


@pytest.mark.parametrize("gro", [True, False])
@pytest.mark.parametrize("port", [PORT - 1, 40007])
def test_most_datagrams_of_a_known_address_from_another_port_are_dropped(port: int, gro: bool) -> None:
    known = "127.0.0.2"
    with udp(gro=gro) as (receiver, to):
        receiver.assign({known: 1}, PORT)
        receiver.sample_unknown_senders()
        send_from(known, to, 4000, port)
        received = received_from(receiver, 0)
        assert 10 < len(received) < 200
        assert len(received) + receiver.kernel_drops() == 4000
        send_from(known, to, 100)
        assert received_from(receiver, 1) == [known] * 100
        receiver.assign({known: 1}, None)
        send_from(known, to, 100, port)
        assert received_from(receiver, 1) == [known] * 100


def test_the_assignment_of_queues_can_change() -> None:
    with udp() as (receiver, to):
        receiver.sample_unknown_senders()
        for count in (0, 1, 300, MAX_ASSIGNED):
            senders = {f"127.0.{number // 256}.{number % 256}": 1 + number % 31 for number in range(2, 2 + count)}
            receiver.assign(senders, PORT)
            send_from("127.0.0.2", to, 100)
            assert (received_from(receiver, 3) == ["127.0.0.2"] * 100) == bool(senders)
            received_from(receiver)


def test_trains_of_unknown_senders_are_dropped_whole() -> None:
    with udp() as (receiver, to), udp() as (sender, _):
        with same_socket(sender) as same:
            _, port = same.getsockname()
        receiver.sample_unknown_senders()
        for senders, wanted in (({"127.0.0.2": 1}, port), ({"127.0.0.1": 1}, port ^ 1)):
            receiver.assign(senders, wanted)
            for _ in range(100):
                assert sender.send(DATA[: 64 * 28], 28, to) is None
            assert len(received_from(receiver)) < 30
        receiver.assign({"127.0.0.1": 1}, port)
        assert sender.send(DATA[: 64 * 28], 28, to) is None
        assert receive(receiver.queues[1]) == (DATA[: 64 * 28], 28)


@pytest.mark.parametrize("count", [MAX_SENDERS + 1, 70000])
@pytest.mark.parametrize("before", [True, False])
def test_with_more_senders_than_a_program_can_hold_all_are_accepted(count: int, before: bool) -> None:
    with udp() as (receiver, to):
        if before:
            receiver.assign({}, PORT)
        receiver.sample_unknown_senders()
        receiver.assign({str(IPv4Address(number)): 1 for number in range(count)}, PORT)
        send_from("127.0.0.3", to, 100)
        assert received_from(receiver) == ["127.0.0.3"] * 100
        assert receiver.kernel_drops() == 0


@pytest.mark.parametrize("optmem", [20480, 1024])
def test_if_the_program_is_too_large_addresses_select_the_queue(monkeypatch: pytest.MonkeyPatch, optmem: int) -> None:
    """Source: net.core.optmem_max, which counts 8 bytes an instruction."""
    original = socket.socket.setsockopt

    def limited(end: socket.socket, level: int, option: int, value: int | bytes) -> None:
        if isinstance(value, bytes) and struct.unpack("HP", value)[0] * 8 > optmem:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        original(end, level, option, value)

    monkeypatch.setattr(socket.socket, "setsockopt", limited, raising=False)
    with udp() as (receiver, to):
        receiver.sample_unknown_senders()
        receiver.assign({f"127.1.{number // 256}.{number % 256}": 1 for number in range(1500)}, PORT)
        for number in range(20):
            send_from(f"127.1.0.{number}", to, 10)
        assert len(received_from(receiver)) == 200
        assert receiver.kernel_drops() == 0


@pytest.mark.parametrize("missing", [socket.SO_REUSEPORT, SO_ATTACH_REUSEPORT_CBPF])
def test_a_kernel_that_cannot_select_has_one_queue(monkeypatch: pytest.MonkeyPatch, missing: int) -> None:
    original = socket.socket.setsockopt

    def without(end: socket.socket, level: int, option: int, value: int | bytes) -> None:
        if level == socket.SOL_SOCKET and option == missing:
            raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
        original(end, level, option, value)

    monkeypatch.setattr(socket.socket, "setsockopt", without, raising=False)
    with udp() as (receiver, to):
        assert receiver.queues == [receiver]
        receiver.assign({"127.0.0.2": 0}, PORT)
        receiver.sample_unknown_senders()
        for sender in ("127.0.0.2", "127.0.0.3"):
            send_from(sender, to, 100)
        assert received_from(receiver) == ["127.0.0.2"] * 100 + ["127.0.0.3"] * 100


def test_the_port_of_another_socket_of_ours_is_taken_all_the_same() -> None:
    """Also with SO_REUSEPORT, which has the queues share it."""
    with udp() as (receiver, to):
        with pytest.raises(HostError, match=r"is another flannel running\?"):
            UdpSocket(LOCALHOST, to[1])
        send_from("127.0.0.2", to, 1)
        assert received_from(receiver) == ["127.0.0.2"]


def test_close_frees_the_port() -> None:
    with udp() as (receiver, to):
        receiver.close()
        UdpSocket(LOCALHOST, to[1]).close()
