"""The daemon around its networks: signals and exit codes, restarts, and what systemd gets to know."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import signal
import socket
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Self

import pytest
from support.fakes_netlink import no_changes

from flannelpy import cli, logs
from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.backend import repair_loop
from flannelpy.commands import daemon
from flannelpy.control import client
from flannelpy.errors import AlreadyRunning, ExternalAddressChanged, FlannelError, HostError, LeaseLost, UsageError
from flannelpy.host import external_endpoint
from flannelpy.host.external_interface_monitor import ExternalInterfaceMonitor
from flannelpy.host.readiness import SystemdNotifier
from flannelpy.host.shared import Host
from flannelpy.linux.netlink import monitor
from flannelpy.linux.netlink.client import Netlink
from flannelpy.network import Network
from flannelpy.options import Options
from flannelpy.report import BackendReport, DaemonReport, LeaseReport, NetworkReport, NetworkState
from flannelpy.serving.status_line import status_line

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class FakeNetwork(Network):
    """A network whose state the test sets; each ``run`` raises the next of ``failures``, the last one waits."""

    def __init__(self, name: str = "", *failures: Exception, up: bool = False, live: bool = True) -> None:
        self.name = name
        self.on_change: Callable[[], None] = lambda: None
        self.up = up
        self.live = live
        self.runs = self.underlay_checks = 0
        self._failures = list(failures)

    def report(self) -> NetworkReport:
        if not self.up:
            return NetworkReport(self.name, NetworkState.STARTING)
        lease = LeaseReport(IPv4Network("11.0.59.0/24"), None)
        return NetworkReport(self.name, NetworkState.READY, "", lease, BackendReport("udp", 1, 0))

    def is_live(self) -> bool:
        return self.live

    async def refresh(self) -> None:
        pass

    def underlay_changed(self) -> None:
        self.underlay_checks += 1

    async def run(self) -> Any:
        logs.network.set(f"not {self.name}")  # as tasks of a network's own have their context
        self.runs += 1
        if self._failures:
            raise self._failures.pop(0)
        await asyncio.Event().wait()


@pytest.fixture
def notified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """The messages that came to NOTIFY_SOCKET since the last call."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        def read() -> list[str]:
            found = []
            with suppress(BlockingIOError):
                while True:
                    found.append(sock.recv(4096).decode())
            return found

        yield read


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    """The daemon turns automatic collections off, and sets objects aside."""
    yield
    gc.unfreeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """As at the start of a process in the foreground; in the background, these tests inherit an ignored SIGINT."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number in STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def control_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the control socket of the daemons."""
    monkeypatch.setenv("FLANNELD_SUBNET_FILE", str(tmp_path / "subnet.env"))
    monkeypatch.setenv("FLANNELD_SUBNET_DIR", str(tmp_path))
    return tmp_path / "control.sock"


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)


def within(seconds: float, scenario: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(seconds) as limit:
            await scenario()
        assert not limit.expired()  # a scenario may be one that takes a cancellation for its end

    asyncio.run(limited())


# Signals and exit codes


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_cancels_the_work_and_the_next_one_kills(
    number: signal.Signals, notified: Callable[[], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="flannelpy")
    ended: list[object] = []

    async def work() -> None:
        os.kill(os.getpid(), number)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            # A second signal now ends the process, as without any handler.
            ended.extend(signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))

    within(5, lambda: daemon._until_signalled(work()))
    # A terminal that is closed may send SIGHUP twice.
    assert ended == [signal.SIG_DFL, signal.default_int_handler, signal.SIG_IGN]
    assert caplog.messages == ["Installing signal handlers", "Exiting..."]
    assert notified() == ["STOPPING=1"]


@pytest.mark.parametrize(
    ("ignored", "handled"),
    [
        ([signal.SIGHUP], [signal.SIGINT, signal.SIGTERM]),
        ([signal.SIGINT], [signal.SIGTERM, signal.SIGHUP]),
        ([signal.SIGINT, signal.SIGHUP], [signal.SIGTERM]),
        ([signal.SIGTERM], list(STOP_SIGNALS)),  # systemd and init stop a daemon by it
    ],
)
def test_what_was_ignored_at_the_start_stays_ignored(
    ignored: list[signal.Signals], handled: list[signal.Signals]
) -> None:
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)

    async def work() -> None:
        await asyncio.sleep(0)
        found = [each for each in STOP_SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
        assert found == handled

    within(5, lambda: daemon._until_signalled(work()))


def test_work_that_fails_is_no_end_by_signal(notified: Callable[[], list[str]]) -> None:
    async def work() -> None:
        raise HostError("no device")

    with pytest.raises(HostError, match="no device"):
        within(5, lambda: daemon._until_signalled(work()))
    assert notified() == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (UsageError("flag"), 2),
        (HostError("device"), 1),
        (LeaseLost("lease"), 3),
        (ExternalAddressChanged("ip"), 1),
    ],
)
def test_exit_codes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: FlannelError | None, code: int
) -> None:
    async def serve(_: Options) -> None:
        if error:
            raise error

    verbosities: list[int] = []
    monkeypatch.setattr(daemon, "_serve", serve)
    monkeypatch.setattr(logs, "configure", verbosities.append)
    assert daemon.run(cli.parse(["-v=3"])) == code
    assert verbosities == [3]
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert errors == ([str(error)] if error else [])


@pytest.mark.parametrize("verbosity", [0, 1])
@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(24, "Too many open files"), "OSError: [Errno 24] Too many open files"),
        (RuntimeError("a fault"), "RuntimeError: a fault"),
        (RecursionError(), "RecursionError"),
        (ExceptionGroup("two", [ValueError("x"), KeyError("y")]), "ExceptionGroup: two (2 sub-exceptions)"),
    ],
)
def test_any_other_error_is_one_line_and_exit_1(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, text: str, verbosity: int
) -> None:
    async def serve(_: Options) -> None:
        raise error

    monkeypatch.setattr(daemon, "_serve", serve)
    caplog.set_level(logging.DEBUG if verbosity else logging.INFO, logger="flannelpy")
    monkeypatch.setattr(logs, "configure", lambda _: None)
    assert daemon.run(cli.parse([f"-v={verbosity}"])) == 1
    origin = rf"in daemon\.py:\d+ \({re.escape(text)}\)"
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert re.fullmatch(f"Unexpected error {origin}: report it with the traceback, which -v=1 logs", line)
    assert bool([record for record in caplog.records if record.exc_info]) is bool(verbosity)


# What it serves


class FakeMonitor(ExternalInterfaceMonitor):
    """A monitor whose next check raises ``failure``, or never returns if it ``hangs``."""

    hangs = False

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.checks = 0

    async def check(self, netlink: Netlink) -> None:
        self.checks += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.failure:
            raise self.failure

    def due(self) -> float:
        return 0.001


class FakeNetlink(Netlink):
    """No kernel is asked."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


def serve(
    monkeypatch: pytest.MonkeyPatch, networks: dict[str, FakeNetwork], *flags: str, watched: FakeMonitor | None = None
) -> Coroutine[Any, Any, None]:
    """The daemon's tasks, with these in place of its networks and its monitor."""
    watched = watched or FakeMonitor()

    def network(
        name: str, options: Options, host: Host, external: ExternalInterfaceMonitor, on_change: Callable[[], None]
    ) -> FakeNetwork:
        assert host.public_ip == IPv4Address("172.17.8.101")
        networks[name].on_change = on_change
        assert external is watched
        return networks[name]

    async def addresses(_: Options) -> tuple[ExternalInterface, IPv4Address]:
        address = IPv4Address("172.17.8.101")
        return ExternalInterface("eth1", address, 1500), address

    monkeypatch.setattr(daemon, "Network", network)
    monkeypatch.setattr(external_endpoint, "choose", addresses)
    monkeypatch.setattr(external_endpoint, "watch", lambda *_: watched)
    monkeypatch.setattr(repair_loop, "Netlink", FakeNetlink)
    monkeypatch.setattr(monitor, "notifications", no_changes)
    monkeypatch.setattr(monitor, "_PAUSE_SECONDS", 0.001)
    return daemon._serve(cli.parse(list(flags)))


def test_the_only_networks_failure_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    network = FakeNetwork("", LeaseLost("taken"))
    with pytest.raises(LeaseLost, match="taken"):
        asyncio.run(serve(monkeypatch, {"": network}))
    assert network.runs == 1


def test_one_of_several_is_started_again_while_the_others_run_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, notified: Callable[[], list[str]]
) -> None:
    monkeypatch.setattr(daemon, "_RESTART_SECONDS", 0.0)
    faults = OSError(24, "Too many open files"), RecursionError("too deep"), MemoryError()
    blue = FakeNetwork("blue", LeaseLost("taken"), *faults, HostError("busy"))
    green = FakeNetwork("green", up=True)

    async def scenario() -> None:
        task = asyncio.create_task(serve(monkeypatch, {"blue": blue, "green": green}, "-networks=blue,green"))
        await until(lambda: blue.runs == 6)
        assert not task.done()
        task.cancel()

    within(5, scenario)
    assert green.runs == 1
    first, *unexpected, last = caplog.messages
    assert (first, last) == ("taken; trying again in 0 s", "busy; trying again in 0 s")
    for line, fault in zip(unexpected, faults, strict=True):
        assert line.startswith("Unexpected error in daemon.py:")
        assert type(fault).__name__ in line
        assert line.endswith("; trying again in 0 s")


def test_the_control_socket_exists_from_the_instance_lock_to_the_end(
    monkeypatch: pytest.MonkeyPatch, control_socket: Path
) -> None:
    blue, green = FakeNetwork("blue", up=True), FakeNetwork("green")
    exists = control_socket.exists

    async def scenario() -> None:
        task = asyncio.create_task(serve(monkeypatch, {"blue": blue, "green": green}, "-networks=blue,green"))
        await until(lambda: blue.runs and green.runs)
        blue.on_change()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not exists()
        green.up = True
        green.on_change()
        await until(exists)
        report = (await asyncio.to_thread(client.fetch, control_socket, with_peers=False)).report
        assert [network.name for network in report.networks] == ["blue", "green"]
        assert report.pid == os.getpid()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert not exists()

    within(5, scenario)


def test_a_monitor_that_hangs_stops_the_watchdogs_keep_alives(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging, green = FakeMonitor(), FakeNetwork("green", up=True)
    hanging.hangs = True
    monkeypatch.setattr(repair_loop, "_STUCK_SECONDS", 0.1)
    asked: list[Callable[[], bool]] = []

    async def keep_alive(is_live: Callable[[], bool]) -> None:
        asked.append(is_live)

    monkeypatch.setattr(daemon, "keep_alive", keep_alive)

    async def scenario() -> None:
        task = asyncio.create_task(serve(monkeypatch, {"": green}, watched=hanging))
        await until(lambda: bool(asked) and asked[0]())
        await until(lambda: not asked[0]())
        task.cancel()

    within(5, scenario)


@pytest.mark.parametrize("failures", [(), (HostError("busy"),), (LeaseLost("taken"), OSError(98, "in use"))])
def test_one_monitor_follows_the_external_interface_while_networks_run_pause_or_fail(
    monkeypatch: pytest.MonkeyPatch, failures: tuple[Exception, ...]
) -> None:
    """Its verdict ends the daemon, although no network has come up."""
    blue, green, watched = FakeNetwork("blue", *failures), FakeNetwork("green", *failures), FakeMonitor()
    networks = {"blue": blue, "green": green}

    async def scenario() -> None:
        task = asyncio.create_task(serve(monkeypatch, networks, "-networks=blue,green", watched=watched))
        await until(lambda: min(blue.underlay_checks, green.underlay_checks) > 2)
        assert watched.checks >= blue.underlay_checks
        watched.failure = ExternalAddressChanged("eth1 was renamed to wan0")
        with pytest.raises(ExternalAddressChanged, match="wan0"):
            await task

    within(5, scenario)


def test_the_whole_daemon_reports_its_state_and_keeps_the_watchdog_alive(
    monkeypatch: pytest.MonkeyPatch, notified: Callable[[], list[str]]
) -> None:
    monkeypatch.setattr(daemon, "_STATUS_SECONDS", 0.001)
    monkeypatch.setenv("WATCHDOG_USEC", "3000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    came: list[str] = []

    def has_come() -> bool:
        came.extend(notified())
        return {"WATCHDOG=1", "STATUS=Starting"} <= set(came)

    async def scenario() -> None:
        task = asyncio.create_task(serve(monkeypatch, {"": FakeNetwork("")}))
        await until(has_come)
        task.cancel()

    within(5, scenario)


def test_a_failure_is_logged_under_the_networks_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "_RESTART_SECONDS", 0.0)
    names: list[str] = []

    def name(_: logging.LogRecord) -> bool:
        names.append(logs.network.get())
        return True

    async def scenario() -> None:
        blue = FakeNetwork("blue", HostError("busy"))
        task = asyncio.create_task(daemon._keep_up(blue, lambda: None))
        await until(lambda: blue.runs == 2)
        task.cancel()

    daemon.log.addFilter(name)
    try:
        within(5, scenario)
    finally:
        daemon.log.removeFilter(name)
    assert names == ["blue"]


def test_a_network_that_failed_rests_before_it_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    blue = FakeNetwork("blue", HostError("busy"))

    async def scenario() -> None:
        failures: list[int] = []
        task = asyncio.create_task(daemon._keep_up(blue, lambda: failures.append(blue.runs)))
        await until(lambda: failures)
        await asyncio.sleep(0.05)
        assert blue.runs == 1
        task.cancel()

    within(5, scenario)


@pytest.mark.parametrize("error", [UsageError("flag"), ExternalAddressChanged("address"), AlreadyRunning("runs")])
def test_what_concerns_the_whole_host_ends_all_networks(monkeypatch: pytest.MonkeyPatch, error: FlannelError) -> None:
    monkeypatch.setattr(daemon, "_RESTART_SECONDS", 0.0)
    networks = {"blue": FakeNetwork("blue", error), "green": FakeNetwork("green", up=True)}
    with pytest.raises(type(error)):
        asyncio.run(serve(monkeypatch, networks, "-networks=blue,green"))
    assert networks["blue"].runs == 1


# While it runs


def test_the_status_is_sent_again_and_again(monkeypatch: pytest.MonkeyPatch, notified: Callable[[], list[str]]) -> None:
    monkeypatch.setattr(daemon, "_STATUS_SECONDS", 0.001)
    collected: list[object] = []
    monkeypatch.setattr(gc, "collect", lambda: collected.append(None))

    async def scenario() -> None:
        task = asyncio.create_task(
            daemon._report_status(SystemdNotifier(lambda: DaemonReport(()), status_line, gc.disable))
        )
        await until(lambda: len(collected) > 2)
        task.cancel()

    within(5, scenario)
    assert len(notified()) >= 2


# Objects, of which there are two for each, and seconds.
@pytest.mark.parametrize(("count", "pause", "is_gone"), [(500, 60.0, True), (3000, 60.0, False), (3000, 0.0, True)])
def test_what_is_young_is_collected_soon_and_very_much_of_it_later(
    monkeypatch: pytest.MonkeyPatch, count: int, pause: float, is_gone: bool
) -> None:
    monkeypatch.setattr(daemon, "_FEW_YOUNG", 800)
    monkeypatch.setattr(daemon, "_MANY_YOUNG", 4000)
    monkeypatch.setattr(daemon, "_MANY_YOUNG_SECONDS", pause)
    monkeypatch.setattr(daemon, "_YOUNG_SECONDS", 0.001)

    async def scenario() -> bool:
        task = asyncio.create_task(daemon._collect_young())
        gc.collect()
        gc.disable()
        kept = [Knot() for _ in range(count)]
        seen = weakref.ref(kept[0])
        del kept
        for _ in range(20):
            await asyncio.sleep(0.001)
        task.cancel()
        return seen() is None

    assert asyncio.run(scenario()) is is_gone


class Knot:
    """Refers to itself."""

    def __init__(self) -> None:
        self.loop = [self]


@pytest.mark.parametrize(
    ("live", "is_live"), [((True,), True), ((False, True), True), ((True, False), True), ((False, False), False)]
)
def test_the_daemon_is_live_while_a_network_is(live: tuple[bool, ...], is_live: bool) -> None:
    assert daemon._is_live([FakeNetwork(live=each) for each in live]) is is_live


def test_modules_and_the_objects_of_the_start_are_not_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    async def serve(_: Options) -> None:
        assert not gc.isenabled()
        counts.append(gc.get_freeze_count())
        kept = [[number] for number in range(1000)]
        daemon._set_start_up_aside()
        counts.append(gc.get_freeze_count())
        assert len(kept) == 1000

    monkeypatch.setattr(daemon, "_serve", serve)
    monkeypatch.setattr(logs, "configure", lambda _: None)
    assert daemon.run(cli.parse([])) == 0
    assert counts[0] > 1000
    assert counts[1] > counts[0] + 1000
