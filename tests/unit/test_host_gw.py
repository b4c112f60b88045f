"""Which routes the host-gw backend wants, and what it does to have them: without a kernel."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Self

import pytest

from flannelpy.backend import host_gw
from flannelpy.backend.host_gw import HostGwBackend
from flannelpy.errors import HostError
from flannelpy.linux.interface import ExternalInterface
from flannelpy.linux.netlink import Address, Gateway, Link, Netlink
from flannelpy.subnet.config import parse
from flannelpy.subnet.lease import Lease, LeaseAttrs
from flannelpy.subnet.lease_table import Added, Gone

EXTERNAL = ExternalInterface("eth1", IPv4Address("172.17.8.101"), 1500)
CONFIG = parse('{"Network":"11.0.0.0/16","Backend":{"Type":"host-gw"}}')
OWN = Lease(IPv4Network("11.0.59.0/24"), LeaseAttrs(EXTERNAL.address, "host-gw"), 86400, 1)


class FakeNetlink(Netlink):
    """A kernel's routes; ``done`` is how often they were changed."""

    def __init__(self) -> None:
        self.present: dict[IPv4Network, Gateway] = {}
        self.done = 0
        self.fails = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def link(self, name: str) -> Link | None:
        return Link(2, "eth1", 1500)

    async def addresses(self) -> list[Address]:
        return [Address(2, EXTERNAL.address, 24), Address(3, IPv4Address("10.0.0.1"), 8)]

    async def gateways(self) -> list[Gateway]:
        return list(self.present.values())

    async def set_gateways(self, gateways: Sequence[Gateway]) -> None:
        if self.fails:
            raise HostError("no")
        self.present.update({gateway.destination: gateway for gateway in gateways})
        self.done += len(gateways)

    async def remove_gateways(self, gateways: Sequence[Gateway]) -> None:
        for gateway in gateways:
            del self.present[gateway.destination]
        self.done += len(gateways)


def added(number: int, host: int) -> Added:
    attrs = LeaseAttrs(IPv4Address(f"172.17.8.{host}"), "host-gw")
    return Added(Lease(IPv4Network(f"11.0.{number}.0/24"), attrs, 86400, 1))


def route(number: int, host: int) -> Gateway:
    return Gateway(IPv4Network(f"11.0.{number}.0/24"), IPv4Address(f"172.17.8.{host}"), 2)


def play(scenario: Callable[[HostGwBackend, FakeNetlink], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    netlink = FakeNetlink()
    monkeypatch.setattr(host_gw, "Netlink", lambda: netlink)
    monkeypatch.setattr(host_gw, "_RETRY_SECONDS", 0.001)

    async def whole() -> None:
        backend = HostGwBackend(CONFIG, EXTERNAL, None)
        assert await backend.start(OWN) == 1500
        task = asyncio.create_task(backend.run())
        await scenario(backend, netlink)
        task.cancel()

    asyncio.run(whole())


async def settled(netlink: FakeNetlink, routes: set[Gateway]) -> None:
    async with asyncio.timeout(5):
        while set(netlink.present.values()) != routes:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)


def test_routes_follow_the_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(backend: HostGwBackend, netlink: FakeNetlink) -> None:
        backend.apply([added(1, 102), added(2, 103)])
        await settled(netlink, {route(1, 102), route(2, 103)})
        assert backend.describe() == "routes: 2"
        backend.apply([added(1, 104), Gone(IPv4Network("11.0.2.0/24"))])
        await settled(netlink, {route(1, 104)})
        assert netlink.done == 4

    play(scenario, monkeypatch)


def test_what_is_left_of_an_earlier_run_is_kept_or_goes_with_the_first_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(backend: HostGwBackend, netlink: FakeNetlink) -> None:
        elsewhere = Gateway(IPv4Network("10.9.0.0/16"), IPv4Address("172.17.8.1"), 2)
        netlink.present = {one.destination: one for one in (route(1, 102), route(9, 109), elsewhere)}
        assert await backend.repair(netlink) == []  # nobody knows yet whose they are
        assert len(netlink.present) == 3
        backend.apply([added(1, 102)])
        await settled(netlink, {route(1, 102), elsewhere})
        assert netlink.done == 1

    play(scenario, monkeypatch)


def test_that_there_are_no_leases_is_knowledge_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(backend: HostGwBackend, netlink: FakeNetlink) -> None:
        netlink.present = {route(9, 109).destination: route(9, 109)}
        backend.apply([])
        await settled(netlink, set())

    play(scenario, monkeypatch)


def test_leases_that_are_as_they_were_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(backend: HostGwBackend, netlink: FakeNetlink) -> None:
        events = [added(number % 250, 102 + number % 100) for number in range(250)]
        backend.apply(events)
        await settled(netlink, {route(number % 250, 102 + number % 100) for number in range(250)})
        before = netlink.done
        backend.apply(events)
        assert await backend.repair(netlink) == []
        await asyncio.sleep(0)
        assert netlink.done == before

    play(scenario, monkeypatch)


def test_what_somebody_changes_is_put_right_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(backend: HostGwBackend, netlink: FakeNetlink) -> None:
        backend.apply([added(1, 102), added(2, 103)])
        await settled(netlink, {route(1, 102), route(2, 103)})
        netlink.present = {route(2, 103).destination: route(2, 199)}
        assert await backend.repair(netlink) == [
            f"route to 11.0.{number}.0/24 was lost: put right" for number in (1, 2)
        ]
        assert await backend.repair(netlink) == []

    play(scenario, monkeypatch)


def test_what_the_kernel_refuses_is_said_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(backend: HostGwBackend, netlink: FakeNetlink) -> None:
        netlink.fails = True
        backend.apply([added(1, 102)])
        async with asyncio.timeout(5):
            while "no" not in caplog.messages:  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0)
        netlink.fails = False
        await settled(netlink, {route(1, 102)})

    play(scenario, monkeypatch)
