"""What a client makes of the answers of a daemon, and of what is no daemon: an answer, or one line and exit code 3."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from flannelpy.control import client
from flannelpy.errors import DaemonUnavailable
from flannelpy.linux.instance_lock import InstanceLock
from flannelpy.report import DaemonReport, NetworkReport, NetworkState, PeerReport
from flannelpy.serving import wire

REPORT = DaemonReport((NetworkReport("blue", NetworkState.READY), NetworkReport("green", NetworkState.READY)), "0.3.0")
PEERS = [PeerReport(IPv4Network(f"11.0.{n}.0/24"), IPv4Address(f"172.17.8.{n}"), float(n)) for n in range(1, 6)]


@contextmanager
def daemon(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[list[bytes]]:
    """Listen at ``path``, and serve one connection after its first line, which is in the list."""
    requests: list[bytes] = []

    def run() -> None:
        connection, _ = listener.accept()
        with connection:
            requests.append(connection.recv(1 << 16))
            serve(connection)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=run)
        thread.start()
        yield requests
        thread.join()


def sends(*parts: wire.Part | bytes) -> Callable[[socket.socket], None]:
    lines = [part if isinstance(part, bytes) else wire.part_line(part) for part in parts]
    return lambda connection: connection.sendall(b"".join(lines))


def refusal(path: Path, timeout: float = 5.0) -> str:
    with pytest.raises(DaemonUnavailable) as caught:
        client.fetch(path, with_peers=False, timeout=timeout)
    assert caught.value.exit_code == 3
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


def test_a_report_without_peers(path: Path) -> None:
    with daemon(path, sends(REPORT, wire.End())) as requests:
        assert client.fetch(path, with_peers=False) == wire.Answer(REPORT, {})
    assert requests == [wire.request_line(wire.GetReport())]


def test_peers_arrive_in_parts_and_by_network(path: Path) -> None:
    parts = (
        wire.Peers("blue", tuple(PEERS[:2])),
        wire.Peers("green", tuple(PEERS[2:4])),
        wire.Peers("blue", (PEERS[4],)),
    )
    with daemon(path, sends(REPORT, *parts, wire.End())) as requests:
        answer = client.fetch(path, with_peers=True)
    assert answer.peers == {"blue": [PEERS[0], PEERS[1], PEERS[4]], "green": PEERS[2:4]}
    assert requests == [wire.request_line(wire.GetReport(with_peers=True))]


def test_an_answer_may_arrive_byte_by_byte(path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        for byte in wire.part_line(REPORT) + wire.part_line(wire.End()):
            connection.send(bytes([byte]))

    with daemon(path, serve):
        assert client.fetch(path, with_peers=False).report == REPORT


def test_set_log_level_returns_when_the_daemon_has_answered(path: Path) -> None:
    with daemon(path, sends(wire.End())) as requests:
        client.set_log_level(path, 1)
    assert requests == [wire.request_line(wire.SetLogLevel(1))]


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ((wire.Refusal("too many clients"),), "the daemon at {path} refused: too many clients"),
        ((b'{"error": "a\\nb"}\n',), "the daemon at {path} refused: a\\nb"),
        ((), "the daemon at {path} closed the connection: see its log, or try again"),
        ((REPORT,), "the daemon at {path} closed the connection: see its log, or try again"),
        ((REPORT, b'{"peers": {"ne'), "the daemon at {path} closed the connection: see its log, or try again"),
        ((wire.End(),), "{path}: an answer without a report: run the flannelpy that the daemon is"),
        ((b"SSH-2.0-OpenSSH_9.2\r\n",), "{path}: not a line with a JSON object: SSH-2.0-OpenSSH_9.2"),
        (
            (b'{"report": {"schema": 2}}\n',),
            "{path}: the daemon's report has schema 2, this flannelpy reads 1: run the flannelpy that the daemon is",
        ),
        ((b"x" * (5 << 20),), "{path}: not an answer of flannelpy: a line without an end"),
    ],
)
def test_an_answer_that_is_none(parts: tuple[wire.Part | bytes, ...], text: str, path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        try:
            sends(*parts)(connection)
        except BrokenPipeError:  # the client has read enough
            assert len(parts[0]) > 1 << 20  # type: ignore[arg-type]

    with daemon(path, serve):
        assert refusal(path) == text.format(path=path)


def test_a_refusal_is_read_although_the_daemon_reads_no_request(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def refuse() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(wire.part_line(wire.Refusal("busy")))

        thread = threading.Thread(target=refuse)
        thread.start()
        assert refusal(path) == f"the daemon at {path} refused: busy"
        thread.join()


def test_no_daemon(path: Path) -> None:
    advice = "start flannelpy, or name its -subnet-file, or with -networks its -subnet-dir"
    assert refusal(path) == f"no daemon at {path}: {advice}"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert refusal(path) == f"no daemon at {path}: {advice}"


@pytest.mark.parametrize(
    ("subnet_file", "socket_name"),
    [("subnet.env", "control.sock"), ("blue.env", "control.sock"), ("other.env", "other.env.sock")],
)
def test_a_daemon_whose_socket_was_removed_or_replaced(subnet_file: str, socket_name: str, tmp_path: Path) -> None:
    path = tmp_path / socket_name
    lock = InstanceLock(tmp_path / subnet_file)
    try:
        runs = f"flannelpy runs with the PID {os.getpid()}, but"
        assert refusal(path) == (
            f"{runs} its control socket {path} is missing: try again in some seconds; if it stays missing, restart it"
        )
        path.touch()
        assert refusal(path) == (
            f"{runs} {path} is not its control socket: remove that file, then flannelpy creates the socket"
        )
    finally:
        lock.close()
    assert refusal(path).startswith(f"no daemon at {path}: start flannelpy")


def test_the_lock_of_a_daemon_with_another_socket_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "other.env.sock").touch()
    lock = InstanceLock(tmp_path / "other.env")
    assert refusal(tmp_path / "control.sock").startswith("no daemon at")
    lock.close()


@pytest.mark.parametrize("name", ["..lock", "...lock"])
def test_a_file_that_is_the_lock_of_no_subnet_file_is_not_counted(name: str, path: Path) -> None:
    path.with_name(name).touch()
    assert refusal(path).startswith("no daemon at")


def test_a_daemon_that_does_not_answer(path: Path) -> None:
    done = threading.Event()
    with daemon(path, lambda _: assert_set(done)):
        assert refusal(path, 0.05) == f"the daemon at {path} did not answer within 0.05 s: see its log"
        done.set()


def test_the_time_out_is_for_the_whole_answer(path: Path) -> None:
    done = threading.Event()

    def drip(connection: socket.socket) -> None:
        while not done.wait(0.01):
            connection.send(b" ")

    with daemon(path, drip):
        assert "did not answer within 0.2 s" in refusal(path, 0.2)
        done.set()


def assert_set(event: threading.Event) -> None:
    assert event.wait(10)


def test_a_daemon_that_accepts_no_connection(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(str(path))
            assert refusal(path, 0.1) == f"the daemon at {path} is busy with other clients: try again"


def test_a_client_connects_when_others_have_been_accepted(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as other:
        listener.bind(str(path))
        listener.listen(0)
        other.connect(str(path))

        def serve() -> None:
            time.sleep(0.05)  # the client finds no place at first
            listener.accept()[0].close()
            connection, _ = listener.accept()
            with connection:
                sends(REPORT, wire.End())(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        assert client.fetch(path, with_peers=False).report == REPORT
        thread.join()


def test_a_path_that_cannot_be_a_socket(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert "no daemon at" in refusal(file)
    assert "Not a directory" in refusal(file / "control.sock")
    assert "too long" in refusal(tmp_path / ("x" * 108))
