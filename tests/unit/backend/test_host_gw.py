"""Which routes the host-gw backend wants: without a kernel.  How it comes by them is in test_kernel_entries.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from support.fakes_netlink import ETH1, EXTERNAL, FakeNetlink, no_changes
from support.reports import peer_counts

from flannelpy.backend import kernel_entries, on_link
from flannelpy.backend.host_gw import HostGwBackend
from flannelpy.linux.netlink import monitor
from flannelpy.registry.base import expires_in
from flannelpy.rtnetlink import entries, routes
from flannelpy.rtnetlink.entries import GatewayRoute
from flannelpy.rtnetlink.links import Address
from flannelpy.rtnetlink.routes import RouteAnswer
from flannelpy.subnet.config import parse
from flannelpy.subnet.lease import Lease, LeaseAttrs
from flannelpy.subnet.lease_table import LeaseAdded, LeaseRemoved

CONFIG = parse('{"Network":"11.0.0.0/16","Backend":{"Type":"host-gw"}}')
OTHER = IPv4Network("11.0.2.0/24")
OWN = Lease(IPv4Network("11.0.59.0/24"), LeaseAttrs(EXTERNAL.address, "host-gw"), expires_in(86400), 1, 1)


def added(number: int, public_ip: str, backend_type: str = "host-gw") -> LeaseAdded:
    attrs = LeaseAttrs(IPv4Address(public_ip), backend_type)
    return LeaseAdded(Lease(IPv4Network(f"11.0.{number}.0/24"), attrs, expires_in(86400), 1, 1))


def route(number: int, public_ip: str) -> GatewayRoute:
    return GatewayRoute(IPv4Network(f"11.0.{number}.0/24"), IPv4Address(public_ip), ETH1)


def asked_about(netlink: FakeNetlink) -> set[IPv4Network]:
    """The subnets whose routes the kernel was asked about."""
    return {
        IPv4Network((int(one.destination) & ~255, 24)) for one in netlink.queries if one.destination in CONFIG.network
    }


def play(scenario: Callable[[HostGwBackend, FakeNetlink], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    netlink = FakeNetlink()
    for module in (kernel_entries, on_link):
        monkeypatch.setattr(module, "Netlink", lambda: netlink)
    monkeypatch.setattr(monitor, "notifications", no_changes)

    async def whole() -> None:
        backend = HostGwBackend(CONFIG, EXTERNAL, None)
        assert await backend.start(OWN) == 1500
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(backend.run())
            await scenario(backend, netlink)
            assert not task.done()
            task.cancel()

    asyncio.run(whole())


def test_routes_follow_the_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(backend: HostGwBackend, netlink: FakeNetlink) -> None:
        backend.apply([added(1, "172.17.8.102"), added(2, "172.17.8.103")])
        await netlink.settled(route(1, "172.17.8.102"), route(2, "172.17.8.103"))
        assert peer_counts(backend.report()) == ("host-gw", 2, 0)
        backend.apply([added(1, "172.17.8.104"), LeaseRemoved(IPv4Network("11.0.2.0/24"))])
        await netlink.settled(route(1, "172.17.8.104"))
        backend.apply([LeaseRemoved(IPv4Network("11.0.1.0/24"))])
        await netlink.settled()

    play(scenario, monkeypatch)


def test_only_marked_routes_into_the_network_are_ours(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that looks like flanneld's is logged once, with the command that removes it."""

    async def scenario(backend: HostGwBackend, netlink: FakeNetlink) -> None:
        elsewhere = GatewayRoute(IPv4Network("10.9.0.0/16"), IPv4Address("172.17.8.1"), ETH1)
        left = GatewayRoute(IPv4Network("11.0.8.0/24"), IPv4Address("172.17.8.108"), ETH1, protocol=3)
        inside_ours = GatewayRoute(IPv4Network("11.0.59.64/26"), IPv4Address("172.17.8.108"), ETH1, protocol=3)
        static = GatewayRoute(IPv4Network("11.0.7.0/24"), IPv4Address("172.17.8.107"), ETH1, protocol=4)
        netlink.hold(route(9, "172.17.8.109"), elsewhere, left, inside_ours, static)
        backend.apply([])  # that there are no leases is knowledge, too
        await netlink.settled(elsewhere, left, inside_ours, static)
        for _ in range(3):
            await asyncio.sleep(0.001)
            assert await backend.repair(netlink) == []

    play(scenario, monkeypatch)
    assert caplog.messages == [
        "Route 11.0.8.0/24 via 172.17.8.108 dev eth1 proto boot may be left from flanneld: no lease asks for it; "
        "flannelpy leaves it alone; to remove it: ip route del 11.0.8.0/24 via 172.17.8.108 dev eth1 proto boot"
    ]


def test_a_peer_off_the_link_is_logged_once_and_gets_a_route_on_the_link(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(backend: HostGwBackend, netlink: FakeNetlink) -> None:
        backend.apply([added(1, "172.17.8.102"), added(2, "172.17.9.103")])
        await netlink.settled(route(1, "172.17.8.102"))
        assert peer_counts(backend.report()) == ("host-gw", 1, 1)
        [chunk] = [chunk async for chunk in backend.peer_reports()]
        assert [(str(peer.subnet), str(peer.public_ip)) for peer in chunk] == [
            ("11.0.1.0/24", "172.17.8.102"),
            ("11.0.2.0/24", "172.17.9.103"),
        ]
        assert [peer.unreachable.partition(", which")[0] for peer in chunk] == ["", "it is not on the link of eth1"]
        assert all(abs(peer.since - time.time()) < 60 and peer.traffic is None for peer in chunk)
        assert await backend.repair(netlink) == []
        netlink.own_addresses.append(Address(ETH1, IPv4Address("172.17.9.101"), 24))
        assert await backend.repair(netlink) == []
        await netlink.settled(route(1, "172.17.8.102"), route(2, "172.17.9.103"))
        assert peer_counts(backend.report()) == ("host-gw", 2, 0)

    play(scenario, monkeypatch)
    [failures] = [message for message in caplog.messages if message.startswith("Ignoring")]
    assert failures == (
        "Ignoring subnet 11.0.2.0/24 via 172.17.9.103: it is not on the link of eth1, which host-gw needs: "
        "the kernel sends to it by flannel.1"
    )


def test_an_address_that_comes_and_goes_is_one_line_each_time_and_not_one_for_each_lease(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(backend: HostGwBackend, netlink: FakeNetlink) -> None:
        far = {number: f"172.17.9.{number}" for number in range(2, 102)}
        backend.apply([added(1, "172.17.8.102"), *(added(*peer) for peer in far.items())])
        await netlink.settled(route(1, "172.17.8.102"))
        for _ in range(2):
            netlink.own_addresses.append(Address(ETH1, IPv4Address("172.17.9.201"), 24))
            await backend.repair(netlink)
            await netlink.settled(route(1, "172.17.8.102"), *(route(*peer) for peer in far.items()))
            netlink.own_addresses.pop()
            await backend.repair(netlink)
            await netlink.settled(route(1, "172.17.8.102"))

    play(scenario, monkeypatch)
    lines = [message for message in caplog.messages if message.startswith("Ignoring")]
    assert len(lines) == 3
    for line in lines:
        assert line.startswith("Ignoring subnet 11.0.2.0/24 via 172.17.9.2, ")
        assert " and 97 more: it is not on the link of eth1, which host-gw needs: " in line


def test_a_peer_whose_packets_take_another_route_is_unreachable(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    away = IPv4Network("11.0.1.0/24")
    foreign = route(1, "172.17.8.1")
    found = routes.parse(entries.add_request(foreign))

    async def scenario(backend: HostGwBackend, netlink: FakeNetlink) -> None:
        backend.apply([added(1, "172.17.8.102"), added(2, "172.17.8.103"), added(3, "172.17.8.104")])
        await netlink.settled(route(1, "172.17.8.102"), route(2, "172.17.8.103"), route(3, "172.17.8.104"))
        await asyncio.sleep(0.001)
        netlink.diverted[away, False] = RouteAnswer(0, ETH1, foreign.gateway, 254, 1, 4, 0, away, found)
        assert await backend.repair(netlink) == []
        assert peer_counts(backend.report()) == ("host-gw", 2, 1)
        netlink.diverted.clear()
        assert await backend.repair(netlink) == []
        assert peer_counts(backend.report()) == ("host-gw", 3, 0)

    play(scenario, monkeypatch)
    assert [message.partition(": route")[0] for message in caplog.messages] == [
        "Packets to 11.0.1.0/24 do not take flannelpy's routes"
    ]


def test_a_subnet_whose_route_is_blocked_is_not_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    static = GatewayRoute(IPv4Network("11.0.1.0/24"), IPv4Address("172.17.8.1"), ETH1, protocol=4)

    async def scenario(backend: HostGwBackend, netlink: FakeNetlink) -> None:
        netlink.hold(static)
        backend.apply([added(1, "172.17.8.102"), added(2, "172.17.8.103")])
        await netlink.settled(static, route(2, "172.17.8.103"))
        await asyncio.sleep(0.001)
        assert await backend.repair(netlink) == []
        assert asked_about(netlink) == {OTHER}
        assert peer_counts(backend.report()) == ("host-gw", 1, 1)

    play(scenario, monkeypatch)


def test_of_overlapping_leases_the_longer_one_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    longer = LeaseAdded(replace(added(2, "172.17.8.103").lease, subnet=IPv4Network("11.0.2.0/25")))

    async def scenario(backend: HostGwBackend, netlink: FakeNetlink) -> None:
        backend.apply([added(2, "172.17.8.102"), longer])
        inside = GatewayRoute(longer.lease.subnet, IPv4Address("172.17.8.103"), ETH1)
        await netlink.settled(route(2, "172.17.8.102"), inside)
        await asyncio.sleep(0.001)
        assert await backend.repair(netlink) == []
        assert peer_counts(backend.report()) == ("host-gw", 2, 0)

    play(scenario, monkeypatch)


def test_before_the_routes_are_added_the_kernel_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(backend: HostGwBackend, netlink: FakeNetlink) -> None:
        assert await backend.repair(netlink) == []
        for number in (1, 2):
            backend.apply([added(number, "172.17.8.102")])
            assert await backend.repair(netlink) == []
            assert not asked_about(netlink)
            await netlink.settled(*(route(each, "172.17.8.102") for each in range(1, number + 1)))
        await asyncio.sleep(0.001)
        netlink.lose(route(1, "172.17.8.102"))
        assert len(await backend.repair(netlink)) == 1
        assert not asked_about(netlink)  # the next check asks
        assert await backend.repair(netlink) == []
        assert asked_about(netlink)

    play(scenario, monkeypatch)
