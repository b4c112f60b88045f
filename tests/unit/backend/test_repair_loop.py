"""Other programs change the network: when a check runs, and what is logged and counted."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import IPv4Network
from typing import Self

import pytest
from support.fakes_clock import run

from flannelpy.backend import repair_loop
from flannelpy.backend.repair_loop import RepairLoop
from flannelpy.errors import ExternalAddressChanged, HostError
from flannelpy.linux.netlink import monitor
from flannelpy.linux.netlink.client import Netlink


class FakeNetlink(Netlink):
    """No kernel is asked."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


class Bell:
    """Rings once a minute, or all the time."""

    period = 60.0

    @classmethod
    async def notifications(cls, _: IPv4Network) -> AsyncIterator[None]:
        while True:
            await asyncio.sleep(cls.period)
            yield


class World:
    """A guard that looks at a world of which ``wrong`` says what is wrong."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.helpless = ""
        self.stuck = False
        self.looked_at: list[float] = []
        self.told = 0
        self.due: Callable[[], float] = lambda: math.inf
        self.guard = RepairLoop(self.check, IPv4Network("11.0.0.0/16"), self.tell, lambda: self.due())

    def tell(self) -> None:
        self.told += 1

    async def check(self, _: Netlink) -> list[str]:
        self.looked_at.append(asyncio.get_running_loop().time())
        if self.stuck:
            await asyncio.Event().wait()
        if self.helpless:
            raise HostError(self.helpless)
        repaired, self.wrong = self.wrong, []
        return repaired


@pytest.fixture(autouse=True)
def _no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair_loop, "Netlink", FakeNetlink)
    monkeypatch.setattr(monitor, "notifications", Bell.notifications)
    monkeypatch.setattr(Bell, "period", 60.0)


def play(scenario: Callable[[World], Awaitable[None]]) -> None:
    async def whole() -> None:
        world = World()
        task = asyncio.create_task(world.guard.run())
        await scenario(world)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(whole())


def test_without_changes_it_checks_every_ten_seconds_and_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        await asyncio.sleep(600)
        assert 50 <= len(world.looked_at) <= 70
        assert (world.told, world.guard.trouble, world.guard.repairs) == (0, "", 0)

    play(scenario)
    assert caplog.messages == []


def test_a_change_is_checked_at_once_and_each_repair_is_logged_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(world: World) -> None:
        await asyncio.sleep(59.9)
        world.wrong = ["flannel0 was set down; restored", "flannel0 lost its address; restored"]
        await asyncio.sleep(1)
        assert (world.told, world.guard.trouble, world.guard.repairs) == (1, "", 2)
        assert any(60 <= at <= 61 for at in world.looked_at)

    play(scenario)
    assert caplog.messages == ["flannel0 was set down; restored", "flannel0 lost its address; restored"]


def test_a_check_runs_when_it_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bell, "period", 3600.0)

    async def scenario(world: World) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(1)
        start = loop.time()
        world.due = lambda: max(0.0, start + 25 - loop.time())
        await asyncio.sleep(26)
        assert any(start + 25 <= at <= start + 25.6 for at in world.looked_at)

    play(scenario)


def test_endless_changes_cost_two_checks_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bell, "period", 0.001)

    async def scenario(world: World) -> None:
        await asyncio.sleep(10)
        assert 18 <= len(world.looked_at) <= 21

    play(scenario)


def test_a_failed_repair_is_logged_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.helpless = "cannot make a TUN device"
        await asyncio.sleep(100)
        assert (world.told, world.guard.trouble, world.guard.repairs) == (1, "cannot make a TUN device", 0)
        assert len(world.looked_at) >= 50
        world.helpless, world.wrong = "", ["flannel0 was removed; restored"]
        await asyncio.sleep(2)
        assert (world.told, world.guard.trouble, world.guard.repairs) == (2, "", 1)

    play(scenario)
    assert caplog.messages == ["cannot make a TUN device", "flannel0 was removed; restored"]


def test_an_overrun_of_the_socket_buffer_is_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    async def overrun(_: IPv4Network) -> AsyncIterator[None]:
        await asyncio.sleep(3)
        raise OSError(105, "No buffer space available")
        yield

    monkeypatch.setattr(monitor, "notifications", overrun)

    async def scenario(world: World) -> None:
        await asyncio.sleep(3.6)
        assert [round(at) for at in world.looked_at] == [0, 4]  # at the start, and then

    play(scenario)


def test_a_cancelled_repair_loop_leaves_no_task() -> None:
    async def whole() -> None:
        before = asyncio.all_tasks()
        task = asyncio.create_task(World().guard.run())
        await asyncio.sleep(1)
        assert len(asyncio.all_tasks() - before) > 1
        task.cancel()
        await asyncio.sleep(1)
        assert asyncio.all_tasks() == before

    run(whole())


def test_a_failed_check_is_progress_and_a_hanging_one_is_not() -> None:
    async def scenario(world: World) -> None:
        assert world.guard.makes_progress()
        world.helpless = "cannot make a TUN device"
        await asyncio.sleep(300)
        assert world.guard.makes_progress()
        world.stuck = True
        await asyncio.sleep(300)
        assert not world.guard.makes_progress()

    play(scenario)


@pytest.mark.parametrize("error", [RuntimeError("a fault"), ExternalAddressChanged("another address")])
def test_a_bug_in_a_check_or_in_the_listener_is_raised(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    async def broken(_: IPv4Network) -> AsyncIterator[None]:
        await asyncio.sleep(3)
        raise error
        yield

    async def check(_: Netlink) -> list[str]:
        raise error

    async def whole() -> None:
        with pytest.raises(type(error)):
            await RepairLoop(check, IPv4Network("11.0.0.0/16"), lambda: None).run()
        monkeypatch.setattr(monitor, "notifications", broken)
        with pytest.raises(type(error)):
            await World().guard.run()

    run(whole())
