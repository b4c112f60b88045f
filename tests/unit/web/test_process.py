"""The process itself: that it serves, has no rights, comes back, and ends with its parent."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from lab import wait_for
from lab.etcd_server import free_ports

from flannelpy import cli
from flannelpy.report import DaemonReport, NetworkReport, NetworkState
from flannelpy.serving import wire
from flannelpy.web import listeners, process
from flannelpy.web.process import HttpProcess
from flannelpy.web.settings import Settings


async def report(request: wire.Request) -> AsyncIterator[bytes]:
    yield wire.part_line(DaemonReport((NetworkReport("", NetworkState.READY),), "1.0.0"))
    yield wire.part_line(wire.End())


def child() -> int:
    """Return the pid of the only child."""
    return int(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()[0])


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def environment_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def run(work: Callable[[tuple[str, int]], Coroutine[Any, Any, None]], answer: process.Answer = report) -> None:
    """Run ``work`` with the address of a process that serves, and asks a daemon with these answers."""
    [port] = free_ports(1)
    options = cli.parse([f"-healthz-port={port}", "-healthz-ip=127.0.0.1"])
    opened = listeners.listen(options)

    async def serve() -> None:
        serving = asyncio.create_task(HttpProcess(options, opened, answer).run())
        try:
            await work(("127.0.0.1", port))
        finally:
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving

    try:
        asyncio.run(serve())
    finally:
        listeners.close(opened)


async def response(address: tuple[str, int], page: str = "/healthz") -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(f"GET {page} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()


def test_it_serves_without_rights_and_ends_with_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    pids = []

    async def work(address: tuple[str, int]) -> None:
        assert (await response(address)).endswith(b"\r\n\r\nflanneld is running")
        pids.append(child())
        status = status_of(pids[0])
        assert status["Threads"] == "1"
        for page in ("/readyz?verbose", "/metrics", "/status.json"):
            assert b" 200 " in await response(address, page)
        for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(status[name], 16) == 0, name
        assert status["NoNewPrivs"] == "1"
        if os.geteuid() == 0:
            assert int(status["CapBnd"], 16) == 0
            assert status["Uid"].split() == ["65534"] * 4
            assert status["Gid"].split() == ["65534"] * 4
            assert status["Groups"] == ""
        assert b"FLANNELD" not in environment_of(pids[0])

    monkeypatch.setenv("FLANNELD_ETCD_USERNAME", "u")
    monkeypatch.setenv("FLANNELD_ETCD_PASSWORD", "secret")
    run(work)
    assert not Path(f"/proc/{pids[0]}").exists()


def test_it_comes_back_and_clients_wait_meanwhile(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process, "_FIRST_PAUSE", 0.1)
    caplog.set_level(logging.INFO)

    async def work(address: tuple[str, int]) -> None:
        await response(address)
        for number in (signal.SIGKILL, signal.SIGKILL):
            os.kill(child(), number)
            assert b" 200 " in await response(address)

    run(work)
    lines = [record.getMessage() for record in caplog.records if "HTTP" in record.getMessage()]
    assert lines == ["HTTP process ended: killed by SIGKILL; starting it again in 0.1 s"]  # each cause once


def test_a_probe_does_not_wait_for_the_peers_of_another_page() -> None:
    async def with_slow_peers(request: wire.Request) -> AsyncIterator[bytes]:
        assert isinstance(request, wire.GetReport)
        if request.with_peers:
            await asyncio.sleep(60)
        async for line in report(request):
            yield line

    async def work(address: tuple[str, int]) -> None:
        await response(address)
        peers = asyncio.create_task(response(address, "/status.json"))
        await asyncio.sleep(1.2)  # the last report is no longer fresh
        assert b" 200 " in await response(address)
        assert not peers.done()
        peers.cancel()
        await asyncio.wait([peers])

    run(work, with_slow_peers)


def test_signals_of_a_terminal_or_unit_are_left_to_the_daemon() -> None:
    async def work(address: tuple[str, int]) -> None:
        await response(address)
        pid = child()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
        await asyncio.sleep(0.1)
        await response(address)
        assert child() == pid

    run(work)


def test_it_ends_with_a_daemon_that_is_killed(tmp_path: Path) -> None:
    """A stand-in for the daemon starts the process and is killed."""
    script = textwrap.dedent("""
        import os, socket, subprocess, sys
        from flannelpy.web.settings import Settings
        ours, theirs = socket.socketpair()
        listener = socket.create_server(("127.0.0.1", 0))
        numbers = theirs.fileno(), os.dup(theirs.fileno()), listener.fileno()
        settings = Settings(numbers[:2], numbers[2:], os.getpid(), (), False)
        child = subprocess.Popen([sys.executable, "-P", "-m", "flannelpy.web", settings.to_text()], pass_fds=numbers)
        print(child.pid, flush=True)
        child.wait()
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout
        pid = int(daemon.stdout.readline())
        wait_for(lambda: status_of(pid)["NoNewPrivs"] == "1", 20, "the process to be confined")
        daemon.kill()
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or status_of(pid)["State"].startswith("Z"), 5, "its end")


def test_few_open_files_are_enough() -> None:
    """Idle clients, more than the process may have open files, keep no probe out and leave no line in the log."""
    script = textwrap.dedent("""
        import asyncio, os, resource, socket, subprocess, sys
        from flannelpy.report import DaemonReport
        from flannelpy.serving import wire
        from flannelpy.web.process import answer_questions
        from flannelpy.web.settings import Settings
        async def report(_):
            yield wire.part_line(DaemonReport((), "1.0.0"))
            yield wire.part_line(wire.End())
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        ours, theirs = zip(socket.socketpair(), socket.socketpair())
        listener = socket.create_server(("127.0.0.1", 0))
        numbers = theirs[0].fileno(), theirs[1].fileno(), listener.fileno()
        settings = Settings(numbers[:2], numbers[2:], os.getpid(), (), False)
        subprocess.Popen([sys.executable, "-P", "-m", "flannelpy.web", settings.to_text()], pass_fds=numbers)
        print(listener.getsockname()[1], flush=True)
        asyncio.run(answer_questions(ours[0], report))
    """)

    async def probe(port: int) -> bytes:
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(200)]
        found = await response(("127.0.0.1", port))
        for _, writer in idle:
            writer.close()
        return found

    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdout=pipe, stderr=pipe, text=True) as daemon:
        assert daemon.stdout
        try:
            assert b" 200 " in asyncio.run(probe(int(daemon.stdout.readline())))
        finally:
            daemon.kill()
        assert daemon.communicate()[1] == ""


def test_settings_survive_the_command_line() -> None:
    settings = Settings((4, 5), (6, 7), 4711, ("10.0.0.1",), True)
    assert Settings.from_text(settings.to_text()) == settings


def test_a_daemon_without_http_imports_nothing_of_it() -> None:
    names = "h11", "prometheus_client", "flannelpy.web", "flannelpy.serving.metrics", "flannelpy.control.client"
    code = f"import sys, flannelpy.cli, flannelpy.commands.daemon; print([m for m in {names!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
