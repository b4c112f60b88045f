"""When systemd gets READY=1, a status, and a keep-alive message."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from flannelpy.host import readiness
from flannelpy.host.readiness import SystemdNotifier, keep_alive
from flannelpy.linux import systemd
from flannelpy.report import DaemonReport, NetworkReport, NetworkState


class World:
    """A daemon whose networks are up or not, and the messages that systemd gets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[tuple[str, ...]] = []
        self.is_up: dict[str, bool] = {}
        self.ready_count = 0
        self.notifier = SystemdNotifier(self._report, self._render, self._on_ready)
        monkeypatch.setattr(systemd, "notify", lambda *lines: self.sent.append(lines))

    def update(self, **is_up: bool) -> None:
        self.is_up |= is_up
        self.notifier.update()

    def _report(self) -> DaemonReport:
        state = {False: NetworkState.STARTING, True: NetworkState.READY}
        return DaemonReport(tuple(NetworkReport(name, state[is_up]) for name, is_up in self.is_up.items()))

    def _render(self, report: DaemonReport) -> str:
        return ", ".join(f"{network.name} {network.state}" for network in report.networks)

    def _on_ready(self) -> None:
        self.ready_count += 1


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(5):
            await scenario()

    asyncio.run(limited())


def test_the_only_network_is_ready_once(world: World) -> None:
    async def scenario() -> None:
        world.update(blue=False)
        assert world.ready_count == 0
        world.update(blue=True)
        world.update()
        world.update(blue=False)

    play(scenario)
    assert world.sent == [
        ("STATUS=blue starting",),
        ("READY=1", "STATUS=blue ready"),
        ("STATUS=blue ready",),
        ("STATUS=blue starting",),
    ]
    assert world.ready_count == 1


@pytest.mark.parametrize(("state", "is_up"), [(NetworkState.DEGRADED, True), (NetworkState.FAILED, False)])
def test_a_degraded_network_is_up_and_a_failed_one_is_not(state: NetworkState, is_up: bool) -> None:
    assert state.is_up is is_up


def test_all_of_several_networks_are_ready_at_once(world: World) -> None:
    async def scenario() -> None:
        world.update(blue=True, green=False)
        assert world.sent == [("STATUS=blue ready, green starting",)]  # the daemon waits a while for the others
        world.sent.clear()
        world.update(green=True)

    play(scenario)
    assert world.sent == [("READY=1", "STATUS=blue ready, green ready")]


@pytest.mark.parametrize("stays_up", [True, False])
def test_some_of_several_networks_are_ready_after_a_while_unless_they_went_down(
    world: World, monkeypatch: pytest.MonkeyPatch, stays_up: bool
) -> None:
    monkeypatch.setattr(readiness, "_READY_PATIENCE", 0.02)

    async def scenario() -> None:
        world.update(blue=True, green=False)
        world.update()  # the time runs from the first network that was up
        assert [lines[0].partition("=")[0] for lines in world.sent] == ["STATUS", "STATUS"]
        world.sent.clear()
        world.is_up["blue"] = stays_up
        while world.notifier._patience is not None:  # noqa: ASYNC110 - the end of patience has no event
            await asyncio.sleep(0.001)
        assert [lines[0] for lines in world.sent] == ["READY=1"] * stays_up
        world.sent.clear()
        world.update(blue=True, green=True)
        assert [lines[0] == "READY=1" for lines in world.sent] == [not stays_up]

    play(scenario)


def test_patience_that_ends_after_all_are_ready_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "_READY_PATIENCE", 0.01)

    async def scenario() -> None:
        world.update(blue=True, green=False)
        world.sent.clear()
        world.update(green=True)
        while world.notifier._patience is not None:  # noqa: ASYNC110 - the end of patience has no event
            await asyncio.sleep(0.001)

    play(scenario)
    assert [lines[0] for lines in world.sent] == ["READY=1"]


# The watchdog


@pytest.fixture
def _watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)


@pytest.mark.usefixtures("_watchdog")
@pytest.mark.parametrize("live", [True, False])
def test_keep_alive_messages_end_when_the_daemon_is_not_live(world: World, live: bool) -> None:
    asked: list[bool] = []

    def is_live() -> bool:
        asked.append(live)
        return live

    async def scenario() -> None:
        task = asyncio.create_task(keep_alive(is_live))
        while len(asked) < 4:  # noqa: ASYNC110 - a question has no event
            await asyncio.sleep(0.001)
        task.cancel()

    play(scenario)
    assert set(world.sent) == ({("WATCHDOG=1",)} if live else set())


def test_keep_alive_messages_come_often_enough_for_one_to_be_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "9000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(keep_alive(lambda: True))
    assert pauses == [3.0]


def test_without_a_watchdog_there_are_no_keep_alive_messages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    play(lambda: keep_alive(lambda: True))
    assert world.sent == []
