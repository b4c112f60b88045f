"""The messages that systemd gets, over a real socket."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flannelpy.linux import systemd

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["path", "abstract"])
def supervisor(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """The socket that NOTIFY_SOCKET names, as systemd would have made it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@flannelpy-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0", 1))
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield sock


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (("READY=1",), b"READY=1"),
        (("READY=1", "STATUS=subnet 11.0.59.0/24"), b"READY=1\nSTATUS=subnet 11.0.59.0/24"),
        (("STATUS=\u2026",), b"STATUS=\xe2\x80\xa6"),
    ],
)
def test_assignments_arrive_in_one_datagram(supervisor: socket.socket, lines: tuple[str, ...], expected: bytes) -> None:
    systemd.notify(*lines)
    assert supervisor.recv(4096) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("STATUS=a\nWATCHDOG=trigger", b"STATUS=a\\nWATCHDOG=trigger"),
        ("STATUS=a\r\x00\x1b[2J", b"STATUS=a\\r\\x00\\x1b[2J"),
        ("STATUS=\ud800\u2028", b"STATUS=\\ud800\\u2028"),
        ("STATUS=" + "x" * 100_000, b"STATUS=" + b"x" * 993 + b"... (100007 characters)"),
    ],
)
def test_a_value_is_no_assignment_of_its_own(supervisor: socket.socket, line: str, expected: bytes) -> None:
    systemd.notify("READY=1", line)
    assert supervisor.recv(1 << 17) == b"READY=1\n" + expected


def test_each_call_is_a_datagram(supervisor: socket.socket) -> None:
    systemd.notify("READY=1")
    systemd.notify("STOPPING=1")
    assert [supervisor.recv(4096), supervisor.recv(4096)] == [b"READY=1", b"STOPPING=1"]


@pytest.mark.parametrize("value", [None, "", "/nowhere/at/all", "@flannelpy-missing", "/" + "x" * 200])
def test_a_missing_supervisor_is_no_failure(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    if value is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", value)
    before = sorted(Path("/proc/self/fd").iterdir())
    systemd.notify("READY=1")
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_a_supervisor_that_reads_nothing_is_not_waited_for(supervisor: socket.socket) -> None:
    """The queue takes some messages; the alarm would interrupt a send that waits for space."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(5)
    try:
        for number in range(1000):
            systemd.notify(f"STATUS={number}")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    received = []
    with suppress(BlockingIOError):
        while True:
            received.append(supervisor.recv(4096).decode())
    assert received == [f"STATUS={number}" for number in range(len(received))]
    assert 0 < len(received) < 1000


def test_messages_arrive_once_the_supervisor_is_back(
    monkeypatch: pytest.MonkeyPatch, supervisor: socket.socket
) -> None:
    name = os.environ["NOTIFY_SOCKET"]
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")
    systemd.notify("STATUS=lost")
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    systemd.notify("READY=1")
    assert supervisor.recv(4096) == b"READY=1"


@pytest.mark.parametrize(
    ("usec", "seconds"),
    [
        ("60000000", 60.0),
        ("1500000", 1.5),
        ("1", 0.000001),
        (None, None),
        ("", None),
        ("0", None),
        ("-1", None),
        ("60s", None),
        ("6e7", None),
        (" 60000000", None),
        ("60000000\n", None),
        ("٦٠", None),
        (str(2**64 - 2), (2**64 - 2) / 1_000_000),
        (str(2**64 - 1), None),
        (str(2**64), None),
        ("9" * 5000, None),
    ],
)
def test_the_watchdog_sets_the_interval_of_keep_alive_messages(
    monkeypatch: pytest.MonkeyPatch, usec: str | None, seconds: float | None
) -> None:
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if usec is None:
        monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    else:
        monkeypatch.setenv("WATCHDOG_USEC", usec)
    assert systemd.watchdog_seconds() == seconds


@pytest.mark.parametrize(
    ("pid", "seconds"),
    [(str(os.getpid()), 60.0), (str(os.getppid()), None), ("", None), ("x", None)],
    ids=["own", "parent", "empty", "malformed"],  # the same in every process, as pytest-xdist asks for
)
def test_a_watchdog_of_another_process_is_not_ours(
    monkeypatch: pytest.MonkeyPatch, pid: str, seconds: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert systemd.watchdog_seconds() == seconds
