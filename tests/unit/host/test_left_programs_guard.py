"""When programs that an earlier process left are stopped before this one has a config."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv4Address
from typing import Never

import pytest
from support.fakes_clock import run as run_in_virtual_time
from support.fakes_netlink import FakeNetlink

from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.backend.udp import left_peers
from flannelpy.errors import HostError
from flannelpy.host import bypass_guard, left_programs_guard
from flannelpy.host.left_programs_guard import guard_left_programs
from flannelpy.netfilter.address_ranges import AddressRanges

ALIAS = "flannelpy of a test"
PEERS = AddressRanges([(7, 7)])


class Machine:
    """A machine on which an outgoing program may be left, and the guard of its rules."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, has_sender: bool) -> None:
        self.has_sender = has_sender
        self.forbidden: str | None = None
        self.fails = False
        self.fault: Exception | None = None
        self.is_open = False
        self._changed = asyncio.Event()
        monkeypatch.setattr(left_programs_guard, "Netlink", FakeNetlink)
        monkeypatch.setattr(left_programs_guard, "has_left_sender", self._has_left_sender)
        monkeypatch.setattr(left_programs_guard, "remove_left_sender", self._remove_left_sender)
        monkeypatch.setattr(bypass_guard, "BypassGuard", self._guard)
        monkeypatch.setattr(left_peers, "left_peers", self._left_peers)

    async def _has_left_sender(self, _: FakeNetlink, alias: str) -> bool:
        assert alias == ALIAS
        if self.fault:
            raise self.fault
        return self.has_sender

    async def _remove_left_sender(self, _: FakeNetlink, alias: str) -> list[str]:
        assert alias == ALIAS
        if self.fails:
            raise HostError("cannot remove a BPF program")
        had, self.has_sender = self.has_sender, False
        return ["BPF program at flannel0"] if had else []

    async def _left_peers(self, _: FakeNetlink, alias: str) -> AddressRanges:
        assert alias == ALIAS
        return PEERS

    def _guard(self, datagrams: object, peers: Callable[[], AddressRanges | None], resync: float) -> Machine:
        assert (peers(), resync) == (PEERS, 5)
        self.is_open = True
        return self

    def reason(self) -> str | None:
        return self.forbidden

    async def check(self) -> str | None:
        return self.forbidden

    async def run(self) -> Never:
        await asyncio.Event().wait()
        raise AssertionError

    async def wait_change(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    def close(self) -> None:
        self.is_open = False

    def forbid(self, reason: str) -> None:
        self.forbidden = reason
        self._changed.set()


@asynccontextmanager
async def guarding() -> AsyncIterator[asyncio.Task[None]]:
    """Have the guard run in the block."""
    external = ExternalInterface("eth1", IPv4Address("192.0.2.1"), 1500)
    task = asyncio.create_task(guard_left_programs(ALIAS, external, 5))
    await settle()
    yield task
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_without_a_left_program_nothing_is_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        machine = Machine(monkeypatch, has_sender=False)
        async with guarding() as task:
            assert task.done()
            assert not machine.is_open

    asyncio.run(scenario())


def test_a_rule_that_comes_later_removes_the_outgoing_program(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        machine = Machine(monkeypatch, has_sender=True)
        async with guarding() as task:
            assert machine.has_sender
            machine.forbid("a rule")
            await settle()
            assert not machine.has_sender
            machine.forbid("a policy")
            await settle()
            assert not task.done()
        assert not machine.is_open

    asyncio.run(scenario())
    assert caplog.messages == ["Removed leftover BPF program at flannel0: a rule"]


def test_a_fault_of_ours_is_logged_and_the_guard_tries_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        machine = Machine(monkeypatch, has_sender=True)
        machine.fault, machine.forbidden = ValueError("a bug"), "a rule"
        async with guarding() as task:
            await asyncio.sleep(12)
            assert not task.done()
            machine.fault = None
            await asyncio.sleep(5)
            assert not machine.has_sender

    run_in_virtual_time(scenario())
    [fault, removal] = caplog.messages
    assert fault.startswith("Failed to guard programs of an earlier process: Unexpected error")
    assert removal == "Removed leftover BPF program at flannel0: a rule"


def test_a_failure_is_logged_once_and_the_guard_tries_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        machine = Machine(monkeypatch, has_sender=True)
        machine.fails, machine.forbidden = True, "a rule"
        async with guarding() as task:
            await asyncio.sleep(12)
            assert machine.has_sender
            assert not machine.is_open
            machine.fails = False
            await asyncio.sleep(5)
            assert not machine.has_sender
            assert not task.done()

    run_in_virtual_time(scenario())
    assert caplog.messages == [
        "Failed to guard programs of an earlier process: cannot remove a BPF program",
        "Removed leftover BPF program at flannel0: a rule",
    ]
