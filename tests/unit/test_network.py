"""One network's life, with stand-ins for kernel and store: the order of its start, its end, and what it reports."""

from __future__ import annotations

import asyncio
import errno
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
from support.fakes import FakeRegistry

from flannelpy import cli, network, service
from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.addressing.surroundings import NO_SURROUNDINGS, Surroundings
from flannelpy.backend import repair_loop
from flannelpy.backend.leftovers import Keep, Scope
from flannelpy.backend.underlay import Routed, Underlay
from flannelpy.datapath.traffic import Datagrams
from flannelpy.errors import AlreadyRunning, ConfigError, HostError, LeaseLost, RegistryUnavailable
from flannelpy.host import external_endpoint, subnet_file
from flannelpy.host.shared import Host
from flannelpy.leasing.manager import SubnetManager
from flannelpy.linux.instance_lock import InstanceLock, Run
from flannelpy.linux.netlink import monitor
from flannelpy.linux.netlink.client import Netlink
from flannelpy.linux.own_devices import own_alias
from flannelpy.network import Network
from flannelpy.options import Options, lock_path
from flannelpy.report import (
    TRANSITIONS,
    BackendReport,
    ConfigReport,
    ConfigState,
    Counts,
    FirewallReport,
    InterfaceReport,
    NetworkReport,
    NetworkState,
    PeerReport,
    RepairReport,
    StoreReport,
    Traffic,
)
from flannelpy.rtnetlink.links import Address, Link
from flannelpy.rtnetlink.routes import KernelRoute, RouteAnswer, RouteFilter, RouteQuery
from flannelpy.rtnetlink.rules import ProhibitRule
from flannelpy.serving.status_line import network_status
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease import HostIdentity, Lease, LeaseAttrs
from flannelpy.subnet.lease_table import LeaseAdded, LeaseEvent, LeaseRemoved

PUBLIC_IP = IPv4Address("172.17.8.101")
EXTERNAL = ExternalInterface("eth1", PUBLIC_IP, 1500)
NETWORK = IPv4Network("11.0.0.0/16")
OWN = "11.0.59.0-24"
OTHER = IPv4Network("11.0.101.0/24")


class FakeNetlink(Netlink):
    """A host with one interface; ``answer`` is the kernel's to every question about a route."""

    answer = RouteAnswer(0, 2)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def links(self) -> list[Link]:
        return [Link(2, "eth1", 1500)]

    async def filtering_links(self) -> set[int]:
        return set()

    async def link(self, name: str) -> Link | None:
        return next((link for link in await self.links() if link.name == name), None)

    async def addresses(self) -> list[Address]:
        return [Address(2, PUBLIC_IP, 24)]

    async def lookups(self, queries: Sequence[RouteQuery], *, matched: bool = False) -> list[RouteAnswer]:
        return [self.answer] * len(queries)

    def name_of(self, link_index: int) -> str:
        return "eth1"

    async def routes_of(self, wanted: RouteFilter) -> AsyncIterator[list[KernelRoute]]:
        yield []

    async def unmarked_prohibit_rules(self) -> list[ProhibitRule]:
        return []


async def no_left_programs(*_: object) -> None:
    """Replaces ``guard_left_programs``: an earlier process has left none."""


class FakeUnderlay(Underlay):
    """An underlay without conflicts, unless ``refusal`` names one."""

    refusal = ""
    unblocked: ClassVar[list[tuple[str, set[IPv4Interface]]]] = []

    async def observe(self, netlink: Netlink) -> Surroundings:
        return NO_SURROUNDINGS

    async def overlay_ways(self, netlink: Netlink, addresses: Sequence[IPv4Address]) -> dict[IPv4Address, str]:
        return dict.fromkeys(addresses, "")

    async def check(self, netlink: Netlink, network: IPv4Network, routed: Routed) -> None:
        if self.refusal:
            raise ConfigError(self.refusal)

    async def unblock(self, netlink: Netlink, alias: str, leased: Collection[IPv4Interface]) -> list[str]:  # type: ignore[override]
        FakeUnderlay.unblocked.append((alias, set(leased)))
        return ["to 11.0.0.0/16 by flannel0"]


class FakeBackend:
    """Records what is asked of it, in ``story``."""

    exclusive_resources = ("a thing",)
    forwarding = None
    device = "flannel9"
    adopts_routes = adopts_device = False
    routed = Routed.NETWORK

    def __init__(self, world: World) -> None:
        self._world = world
        self.datagrams: Datagrams | None = None
        self.failure: Exception | None = None

    def lease_attrs(self, host_identity: HostIdentity, found: LeaseAttrs | None) -> LeaseAttrs:
        return LeaseAttrs(host_identity.public_ip)

    async def start(self, lease: Lease) -> int:
        self._world.story.append(f"start {lease.subnet}")
        # Docker must not learn of a subnet before packets flow.
        assert not self._world.file.exists() or "FLANNEL_MTU" not in self._world.file.read_text()
        self._world.recorded = json.loads(lock_path(self._world.file).read_text())
        if self._world.start_failure:
            raise self._world.start_failure
        self.device = "flannel10"  # another one has taken the first name
        return 1472

    def apply(self, events: Sequence[LeaseEvent]) -> None:
        self._world.events.extend(events)

    async def settled(self) -> None:
        await self._world.settled.wait()

    def report(self) -> BackendReport:
        return replace(BackendReport("udp", 1, 0), **self._world.backend_counts)

    async def refresh(self) -> None:
        self._world.story.append("refresh")

    async def peer_reports(self) -> AsyncIterator[list[PeerReport]]:
        yield [PeerReport(OTHER, PUBLIC_IP, 1.0)]
        yield [PeerReport(NETWORK, PUBLIC_IP, 2.0)]

    async def run(self) -> None:
        self._world.runs += 1
        self._world.run_failure = asyncio.Future()
        await self._world.run_failure

    async def repair(self, netlink: Netlink) -> list[str]:
        self._world.checks += 1
        if self._world.repair_failure:
            raise self._world.repair_failure
        repaired, self._world.repaired = self._world.repaired, []
        return repaired

    async def close(self) -> None:
        self._world.story.append("close")


class World:
    """A network, and all that is around it."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
        self.file = directory / "subnet.env"
        self.ready = directory / "ready"
        self.settled = asyncio.Event()
        self.settled.set()
        self.store = FakeRegistry(time.monotonic)
        self.store.set_config('{"Network":"11.0.0.0/16"}')
        self.story: list[str] = []
        self.events: list[LeaseEvent] = []
        self.statuses: list[str] = []
        self.recorded: dict[str, object] = {}  # by an earlier run, or this one, when the backend starts
        self.adopts_routes, self.routed = False, Routed.NETWORK
        self.unadopted: list[tuple[Collection[IPv4Network], IPv4Network]] = []
        self.runs = self.checks = 0
        self.repaired: list[str] = []
        self.backend_counts: dict[str, Any] = {}
        self.run_failure: asyncio.Future[None]
        self.lost_rules: list[str] = []
        self.start_failure: Exception | None = None
        self.repair_failure: Exception | None = None
        self.leftovers: list[str] = []
        self.withdrawn: list[tuple[Scope, Keep | None]] = []
        self.host = Host(EXTERNAL, PUBLIC_IP)
        self.bell = asyncio.Event()
        self.task: asyncio.Task[Any]

        async def withdraw(_: Netlink, scope: Scope, keep: Keep | None = None) -> list[str]:
            self.story.append("withdraw" if keep is None else "take over")
            self.withdrawn.append((scope, keep))
            return self.leftovers

        async def notifications(_: IPv4Network) -> AsyncIterator[None]:
            while True:
                await self.bell.wait()
                self.bell.clear()
                yield

        def create(config: NetworkConfig, external: ExternalInterface, *_: object) -> FakeBackend:
            assert external is EXTERNAL
            backend = FakeBackend(self)
            backend.datagrams = self.datagrams
            backend.adopts_routes, backend.routed = self.adopts_routes, self.routed
            return backend

        async def unmarked_leftovers(_: Netlink, networks: Collection[IPv4Network], own: IPv4Network) -> list[str]:
            self.unadopted.append((networks, own))
            return ["ip route del 11.0.7.0/24"]

        async def masquerade(name: str) -> None:
            self.story.append(f"masquerade {name!r}")
            assert "FLANNEL_MTU" not in self.file.read_text()

        async def restore(_: Netlink) -> list[str]:
            self.story.append("isolate")
            rules, self.lost_rules = self.lost_rules, []
            return rules

        def forget(networks: Collection[IPv4Network]) -> None:
            assert self.host.resources.busy.locked()  # or a check would take the removal for another program's
            if NETWORK in networks:
                self.story.append("forget rules")

        monkeypatch.setattr(self.host.isolation, "restore", restore)
        monkeypatch.setattr(self.host.isolation, "forget", forget)
        monkeypatch.setattr(self.host.firewall, "masquerade", masquerade)
        monkeypatch.setattr(network, "withdraw", withdraw)
        monkeypatch.setattr(network, "unmarked_leftovers", unmarked_leftovers)
        monkeypatch.setattr(network, "guard_left_programs", no_left_programs)
        monkeypatch.setattr(network, "Netlink", FakeNetlink)
        monkeypatch.setattr(service, "Netlink", FakeNetlink)
        monkeypatch.setattr(network, "Underlay", FakeUnderlay)
        monkeypatch.setattr(network.catalogue, "create", create)  # type: ignore[attr-defined]
        monkeypatch.setattr(repair_loop, "Netlink", FakeNetlink)
        monkeypatch.setattr(monitor, "notifications", notifications)
        monkeypatch.setattr(monitor, "_PAUSE_SECONDS", 0.001)
        self.opened: list[str] = []

        monkeypatch.setattr(network, "connect_host", self._connect_host)
        options = cli.parse([f"-subnet-file={self.file}", "-host-id=host-1", *flags])
        self.datagrams: Datagrams | None = None
        self.monitor = external_endpoint.watch(options, EXTERNAL)
        self.network = Network("", options, self.host, self.monitor, lambda: self.statuses.append(self.status))

    def _connect_host(self, options: Options, *_: object) -> FakeRegistry:
        self.opened.append(options.etcd_api.value)
        return self.store

    @property
    def is_up(self) -> bool:
        return self.network.report().state.is_up

    @property
    def state(self) -> NetworkState:
        return self.network.report().state

    @property
    def status(self) -> str:
        return network_status(self.network.report())

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                assert not self.task.done(), self.task.exception()
                await asyncio.sleep(0.001)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def play(world: World, scenario: Callable[[asyncio.Task[Any]], Awaitable[None]]) -> None:
    """The network runs beside the scenario, and is cancelled after it, if it has not ended."""

    async def whole() -> None:
        async with asyncio.timeout(10):
            task: asyncio.Task[Any] = asyncio.create_task(world.network.run())
            world.task = task
            try:
                await scenario(task)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    asyncio.run(whole())


def lease(public_ip: str = "172.17.8.102", **more: str) -> str:
    return json.dumps({"PublicIP": public_ip, **more})


# Start and stop


def test_a_start_and_a_stop(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.file.write_text("FLANNEL_NETWORK=11.0.0.0/16\nFLANNEL_SUBNET=11.0.59.1/24\n")
    world.leftovers = ["route to 11.0.7.0/24"]

    async def scenario(_: asyncio.Task[Any]) -> None:
        assert (world.is_up, world.status, world.network.is_live()) == (False, "Starting", True)
        await world.until(lambda: world.is_up)
        await world.until(world.ready.exists)
        [entry] = (await world.store.snapshot()).entries
        assert (entry.name, json.loads(entry.value)["PublicIP"]) == (OWN, "172.17.8.101")

    play(world, scenario)
    assert world.story[:3] == ["take over", "isolate", "start 11.0.59.0/24"]
    assert world.story[-1] == "close"
    assert world.file.read_text().splitlines() == [
        "FLANNEL_NETWORK=11.0.0.0/16",
        "FLANNEL_SUBNET=11.0.59.1/24",
        "FLANNEL_MTU=1472",
        "FLANNEL_IPMASQ=false",
    ]
    assert world.statuses[:2] == ["Waiting for the network config in etcd", "Waiting for a subnet lease"]
    assert world.statuses[2].startswith("subnet 11.0.59.0/24 (")
    assert "Removed leftover route to 11.0.7.0/24" in caplog.messages
    assert not world.ready.exists()
    assert not world.is_up
    assert asyncio.run(_is_closed(world.store))


async def _is_closed(store: FakeRegistry) -> bool:
    try:
        await store.snapshot()
    except RegistryUnavailable as error:
        return "closed" in str(error)
    return False


def test_what_is_taken_over_is_that_of_this_subnet_file(world: World) -> None:
    """Its alias, its networks now and before, the addresses of its leases; this run's device stays."""
    world.file.write_text("FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.7.1/24\n")
    world.store.put_raw(OWN, lease("172.17.8.101", HostID="host-1"), None)

    async def scenario(_: asyncio.Task[Any]) -> None:
        await world.until(lambda: world.is_up)

    play(world, scenario)
    [(scope, keep)] = world.withdrawn
    assert scope.alias == own_alias(world.file)
    assert scope.networks == {NETWORK, IPv4Network("10.1.0.0/16")}
    assert scope.addresses >= {IPv4Interface("10.1.7.0/16"), IPv4Interface("11.0.59.0/16")}
    assert keep == Keep(NETWORK, "flannel9", routes=False)


def test_the_record_names_what_the_run_used(world: World) -> None:
    async def scenario(_: asyncio.Task[Any]) -> None:
        await world.until(lambda: world.is_up)

    play(world, scenario)
    lock = InstanceLock(world.file)  # free again
    assert lock.read() == Run((NETWORK,), "udp", "flannel10")
    lock.close()


@pytest.mark.parametrize("is_clean", [True, False])
def test_earlier_networks_stay_in_the_record_until_nothing_is_left_of_them(world: World, is_clean: bool) -> None:
    """A crash at any moment must not make the next run forget what this one has used or found."""
    world.file.write_text("FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.7.1/24\n")
    world.store.put_raw(OWN, lease("172.17.8.101", HostID="host-1"), None)
    networks = [str(NETWORK), "10.1.0.0/16"]

    async def scenario(_: asyncio.Task[Any]) -> None:
        await world.until(lambda: world.is_up)
        assert world.recorded == {"networks": networks, "backend": "udp", "device": "flannel9"}
        now = json.loads(lock_path(world.file).read_text())
        assert now == {"networks": networks, "backend": "udp", "device": "flannel10"}
        if is_clean:
            world.host.firewall._unchecked.clear()
            world.host.firewall._unchecked_of_other.clear()

    play(world, scenario)
    left = json.loads(lock_path(world.file).read_text())
    assert left["networks"] == (networks[:1] if is_clean else networks)


@pytest.mark.parametrize(
    ("adopts_routes", "routed", "names_own"),
    [(False, Routed.NETWORK, True), (True, Routed.NETWORK, False), (False, Routed.NOTHING, False)],
)
def test_unmarked_routes_are_named_where_no_backend_adopts_them(
    world: World, caplog: pytest.LogCaptureFixture, adopts_routes: bool, routed: Routed, names_own: bool
) -> None:
    world.file.write_text("FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.7.1/24\n")
    world.store.put_raw(OWN, lease("172.17.8.101", HostID="host-1"), None)
    world.adopts_routes, world.routed = adopts_routes, routed

    async def scenario(_: asyncio.Task[Any]) -> None:
        await world.until(lambda: world.is_up)

    play(world, scenario)
    [(networks, own)] = world.unadopted
    assert own == IPv4Network("11.0.59.0/24")
    assert set(networks) == {IPv4Network("10.1.0.0/16"), *([NETWORK] * names_own)}
    assert (
        "Kept unmarked state, since another program may have added it; to remove it: ip route del 11.0.7.0/24"
        in caplog.messages
    )


def test_masquerading_is_put_before_docker_learns_of_the_subnet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch, "-ip-masq")
    world.file.write_text("FLANNEL_NETWORK=11.0.0.0/16\nFLANNEL_SUBNET=11.0.59.1/24\n")

    async def scenario(_: asyncio.Task[Any]) -> None:
        await world.until(lambda: world.is_up)

    play(world, scenario)
    assert world.story[:4] == ["take over", "isolate", "start 11.0.59.0/24", "masquerade ''"]
    assert "FLANNEL_IPMASQ=true" in world.file.read_text()


@pytest.mark.parametrize(
    ("text", "leased"),
    [
        ("FLANNEL_NETWORK=11.0.0.0/16\nFLANNEL_SUBNET=11.0.59.1/24\n", {IPv4Interface("11.0.59.0/16")}),
        ("FLANNEL_NETWORK=11.0.0.0/16\n", set()),
        ("FLANNEL_SUBNET=11.0.59.1/24\n", set()),
        ("", set()),
    ],
)
def test_while_etcd_is_silent_our_routes_to_it_are_looked_for(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    text: str,
    leased: set[IPv4Interface],
) -> None:
    monkeypatch.setattr(FakeUnderlay, "unblocked", [])
    world.file.write_text(text)
    world.store.go_down()

    async def scenario(_: asyncio.Task[Any]) -> None:
        await world.until(lambda: FakeUnderlay.unblocked)
        assert not world.is_up

    play(world, scenario)
    assert FakeUnderlay.unblocked[0] == (own_alias(world.file), leased)
    removed = "to 11.0.0.0/16 by flannel0: no etcd endpoint answers, and the route leads to one"
    assert f"Removed own route {removed}" in caplog.messages


def test_a_second_network_with_the_subnet_file_does_not_touch_the_store(world: World) -> None:
    async def scenario(task: asyncio.Task[Any]) -> None:
        with pytest.raises(AlreadyRunning):
            await task

    lock = InstanceLock(world.file)
    play(world, scenario)
    lock.close()
    assert world.story == []
    assert world.statuses == []


@pytest.mark.parametrize("error", [HostError("no device"), HostError("port 8285 is taken")])
def test_a_start_that_fails_leaves_nothing_open_and_no_file(world: World, error: HostError) -> None:
    world.start_failure = error

    async def scenario(task: asyncio.Task[Any]) -> None:
        with pytest.raises(HostError, match=str(error)):
            await task

    play(world, scenario)
    assert world.story[-1] == "close"
    assert not world.file.exists()
    assert not world.ready.exists()
    InstanceLock(world.file).close()


# The config


def test_a_config_that_is_refused_is_waited_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeUnderlay, "refusal", "it takes the way to etcd")

    async def scenario(task: asyncio.Task[Any]) -> None:
        await world.until(lambda: world.statuses)
        await asyncio.sleep(0.05)
        assert not task.done()
        assert world.story == []
        monkeypatch.setattr(FakeUnderlay, "refusal", "")
        await world.until(lambda: world.is_up)

    play(world, scenario)


async def nothing() -> None:
    pass


def test_resources_of_another_network_are_refused_until_that_network_ends(world: World) -> None:
    world.host.resources.take("blue", NETWORK, ["another thing"], nothing)

    async def scenario(task: asyncio.Task[Any]) -> None:
        await asyncio.sleep(0.05)
        assert world.story == []
        world.host.release("blue")
        world.host.resources.take("blue", IPv4Network("11.7.0.0/16"), ["a thing"], nothing)
        await asyncio.sleep(1.1)  # until the config is read again
        assert world.story == []
        world.host.release("blue")
        await world.until(lambda: world.is_up)
        with pytest.raises(ConfigError, match="overlaps"):
            world.host.resources.check("blue", NETWORK, [])

    play(world, scenario)
    world.host.resources.check("blue", NETWORK, ["a thing"])  # what it had is free again


def test_what_an_ended_network_left_in_the_way_goes_before_the_backend_starts(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def withdraw() -> None:
        world.story.append("evict")

    world.host.resources.take("blue", IPv4Network("11.0.128.0/17"), [], withdraw)
    world.host.release("blue")

    async def scenario(_: asyncio.Task[Any]) -> None:
        await world.until(lambda: world.is_up)
        now = json.loads(lock_path(world.file).read_text())
        assert now["networks"] == ["11.0.0.0/16", "11.0.128.0/17"]  # until its iptables chains are gone

    play(world, scenario)
    assert world.story[:2] == ["evict", "take over"]
    assert "Removing the state of the ended network blue: 11.0.128.0/17 belongs to this network now" in caplog.messages


# Leases


def test_leases_of_others_reach_the_backend(world: World) -> None:
    async def scenario(_: asyncio.Task[Any]) -> None:
        await world.until(lambda: world.is_up)
        world.store.put_raw("11.0.101.0-24", lease(), 100)
        before = len(world.statuses)
        await world.until(lambda: world.events)
        assert len(world.statuses) > before
        [event] = world.events
        assert isinstance(event, LeaseAdded)
        assert (event.lease.subnet, event.lease.attrs.public_ip) == (OTHER, IPv4Address("172.17.8.102"))
        world.store.put_raw("11.0.101.0-24", lease("172.17.8.103"), 100)
        await world.until(lambda: len(world.events) == 2)

    play(world, scenario)
    assert not [event for event in world.events if isinstance(event, LeaseRemoved)]


def test_a_lost_lease_withdraws_everything(world: World) -> None:
    async def scenario(task: asyncio.Task[Any]) -> None:
        await world.until(lambda: world.is_up)
        [entry] = (await world.store.snapshot()).entries
        world.store.put_raw(entry.name, lease("172.17.8.200"), 100)
        with pytest.raises(LeaseLost):
            await task

    play(world, scenario)
    assert world.story[-4:] == ["close", "withdraw", "forget rules", "close"]  # packets cease first
    scope, keep = world.withdrawn[-1]
    assert (NETWORK in scope.networks, keep) == (True, None)
    assert not world.file.exists()
    assert not world.ready.exists()


def test_while_routes_are_removed_after_a_lost_lease_the_network_has_failed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[NetworkState, str, bool]] = []

    async def withdraw(*_: object) -> list[str]:
        seen.append((world.state, world.status, world.ready.exists()))
        return []

    async def scenario(task: asyncio.Task[Any]) -> None:
        await world.until(lambda: world.is_up and world.ready.exists())
        monkeypatch.setattr(network, "withdraw", withdraw)
        [entry] = (await world.store.snapshot()).entries
        world.store.put_raw(entry.name, lease("172.17.8.200"), 100)
        with pytest.raises(LeaseLost) as lost:
            await task
        assert seen == [(NetworkState.FAILED, f"not ready: {lost.value}", False)]
        assert str(lost.value) in world.statuses[-1]

    play(world, scenario)


def test_a_withdrawal_that_fails_still_removes_the_file(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(task: asyncio.Task[Any]) -> None:
        await world.until(lambda: world.is_up)

        async def withdraw(*_: object) -> list[str]:
            raise HostError("the kernel refuses")

        monkeypatch.setattr(network, "withdraw", withdraw)
        [entry] = (await world.store.snapshot()).entries
        world.store.put_raw(entry.name, lease("172.17.8.200"), 100)
        with pytest.raises(LeaseLost):
            await task

    play(world, scenario)
    assert "the kernel refuses" in caplog.messages
    assert not world.file.exists()


def test_a_lease_that_is_removed_is_recreated(world: World) -> None:
    async def scenario(_: asyncio.Task[Any]) -> None:
        await world.until(lambda: world.is_up)
        [entry] = (await world.store.snapshot()).entries
        await asyncio.sleep(0.01)
        world.store.delete_raw(entry.name)
        async with asyncio.timeout(5):
            while not (again := (await world.store.snapshot()).entries):  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.001)
        assert (again[0].name, again[0].value) == (entry.name, entry.value)

    play(world, scenario)


@pytest.mark.parametrize("part", ["keep_lease", "watch", "watch_config"])
def test_a_task_that_fails_ends_the_network(world: World, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    failing = asyncio.Event()

    async def fail(*_: object) -> None:
        await failing.wait()
        raise LeaseLost("it is another host's")

    monkeypatch.setattr(SubnetManager, part, fail)

    async def scenario(task: asyncio.Task[Any]) -> None:
        await world.until(lambda: world.runs)
        failing.set()
        with pytest.raises(LeaseLost):
            await task

    play(world, scenario)
    assert world.story[-1] == "close"


def test_a_subnet_file_that_cannot_be_removed_is_logged(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(task: asyncio.Task[Any]) -> None:
        await world.until(lambda: world.is_up)
        [entry] = (await world.store.snapshot()).entries
        world.store.put_raw(entry.name, lease("172.17.8.200"), 100)
        with pytest.raises(LeaseLost):
            await task

    def remove(_: Path) -> None:
        raise HostError("the disk is read-only")

    monkeypatch.setattr(subnet_file, "remove", remove)
    play(world, scenario)
    assert "the disk is read-only" in caplog.messages


# What it reports


def test_the_backend_runs_once_beside_the_watch(world: World) -> None:
    async def scenario(_: asyncio.Task[Any]) -> None:
        await world.until(lambda: world.checks)
        assert world.runs == 1

    play(world, scenario)


def test_repairs_are_counted_and_a_problem_turns_readiness_off(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(_: asyncio.Task[Any]) -> None:
        await world.until(lambda: world.ready.exists())
        world.repaired, world.lost_rules = ["Restored the device"], ["a rule"]
        world.bell.set()
        await world.until(lambda: "repairs: 2" in world.status)
        assert world.status.endswith(", repairs: 2, next hops: 1")
        world.repair_failure = HostError("no such device")
        world.bell.set()
        await world.until(lambda: not world.ready.exists())
        assert "not ready: no such device" in world.status
        assert world.state.name == "DEGRADED"
        assert world.network.is_live()  # a restart would not help
        assert world.is_up  # it only is no longer ready
        world.repair_failure = None
        await world.until(world.ready.exists)
        assert world.network.is_live()
        assert "not ready" not in world.status
        assert world.state.name == "READY"

    play(world, scenario)
    assert "Restored the device" in caplog.messages
    assert caplog.messages.count("no such device") == 1
    assert any("not ready: no such device" in status for status in world.statuses)


def test_a_ready_file_that_another_program_removes_comes_back(world: World) -> None:
    async def scenario(_: asyncio.Task[Any]) -> None:
        await world.until(lambda: world.is_up and world.ready.exists())
        world.ready.unlink()
        world.bell.set()
        await world.until(world.ready.exists)

    play(world, scenario)


def test_what_the_monitor_finds_turns_readiness_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(_: asyncio.Task[Any]) -> None:
        await world.until(world.ready.exists)
        for problem in ("eth1 is down", "", "eth1 is a port of br0", ""):
            monkeypatch.setattr(world.monitor, "_problem", problem)
            world.network.underlay_changed()
            await world.until(lambda is_ready=not problem: world.ready.exists() == is_ready)  # type: ignore[misc]
            assert ("not ready" in world.status) == bool(problem)
            assert problem in world.status

    play(world, scenario)


@pytest.mark.parametrize("sends_datagrams", [True, False])
def test_a_host_without_a_route_to_any_peer_is_not_ready(
    world: World, monkeypatch: pytest.MonkeyPatch, sends_datagrams: bool
) -> None:
    """From the first moment on; with a backend that sends none, routes to the peers are its own business."""
    world.datagrams = Datagrams("flannel0", 8285, 8285, accepts_local=True) if sends_datagrams else None
    world.store.put_raw("11.0.101.0-24", lease(), 100)
    monkeypatch.setattr(FakeNetlink, "answer", RouteAnswer(errno=errno.ENETUNREACH))

    async def scenario(_: asyncio.Task[Any]) -> None:
        await world.until(lambda: world.is_up)
        problem = "not ready: no peer is reachable, such as 172.17.8.102: the kernel has no route"
        assert (problem in world.status, world.ready.exists()) == (sends_datagrams, not sends_datagrams)
        monkeypatch.setattr(FakeNetlink, "answer", RouteAnswer(0, 2))
        world.network.underlay_changed()
        await world.until(world.ready.exists)

    play(world, scenario)


def test_a_fault_in_the_check_of_peer_routes_ends_the_network(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not the daemon: the check runs in a task of the network."""
    world.datagrams = Datagrams("flannel0", 8285, 8285, accepts_local=True)

    async def scenario(task: asyncio.Task[Any]) -> None:
        await world.until(world.ready.exists)
        monkeypatch.setattr(FakeNetlink, "lookups", None)
        world.network.underlay_changed()
        with pytest.raises(TypeError):
            await task

    play(world, scenario)


def test_readiness_waits_for_the_first_list_of_leases_in_the_kernel(world: World) -> None:
    async def scenario(_: asyncio.Task[Any]) -> None:
        world.settled.clear()
        await world.until(lambda: "waiting for the leases of other hosts" in world.status)
        assert (world.is_up, world.ready.exists()) == (False, False)
        world.settled.set()
        await world.until(lambda: world.is_up and world.ready.exists())
        assert "waiting" not in world.status

    play(world, scenario)


def test_a_failed_network_reports_the_cause_until_it_runs_again(world: World) -> None:
    world.start_failure = HostError("port 8285 is taken")

    async def scenario(task: asyncio.Task[Any]) -> None:
        with pytest.raises(HostError):
            await task

    play(world, scenario)
    assert world.status == "not ready: port 8285 is taken"
    report = world.network.report()
    assert report == NetworkReport(
        "", NetworkState.FAILED, "port 8285 is taken", since=report.since, subnet_file=world.file
    )
    assert world.network.is_live()
    world.start_failure = None
    world.store = FakeRegistry(time.monotonic)
    world.store.set_config('{"Network":"11.0.0.0/16"}')

    async def again(_: asyncio.Task[Any]) -> None:
        await world.until(lambda: world.is_up)

    play(world, again)


def test_the_api_of_the_first_run_holds_for_the_next(world: World) -> None:
    async def scenario(task: asyncio.Task[Any]) -> None:
        await world.until(lambda: world.is_up)
        task.cancel()
        await asyncio.wait([task])
        again = asyncio.create_task(world.network.run())
        await asyncio.wait([again], timeout=0.1)
        again.cancel()
        await asyncio.wait([again])

    play(world, scenario)
    assert world.opened == ["auto", world.store.schema.value]


def test_what_a_run_has_counted_stays_when_it_has_failed(world: World) -> None:
    """So that no counter of the metrics goes back."""
    world.backend_counts = {"drops": {"no_route": 2}, "carried": Traffic(5, 500, 3, 300, 1500.0)}
    world.host.firewall.repairs[""] = 4

    async def scenario(task: asyncio.Task[Any]) -> None:
        await world.until(lambda: world.is_up)
        world.repaired = ["Restored the device"]
        world.bell.set()
        await world.until(lambda: world.network.report().repairs == 5)
        world.run_failure.set_exception(HostError("port 8285 is taken"))
        with pytest.raises(HostError):
            await task

    play(world, scenario)
    report = world.network.report()
    assert (report.state, report.backend) == (NetworkState.FAILED, None)
    assert report.counts == Counts({"no_route": 2}, Traffic(5, 500, 3, 300, 1500.0), 1, 4)
    assert world.story[-2:] == ["refresh", "close"]
    world.file.unlink()
    world.bell = asyncio.Event()  # of the next event loop
    world.store = FakeRegistry(time.monotonic)
    world.store.set_config('{"Network":"11.0.0.0/16"}')

    async def again(_: asyncio.Task[Any]) -> None:
        await world.until(lambda: world.is_up)
        assert world.network.report().counts == Counts({"no_route": 4}, Traffic(10, 1000, 6, 600, 1500.0), 1, 4)

    play(world, again)


def test_the_report_has_a_part_for_each_component(world: World) -> None:
    async def scenario(_: asyncio.Task[Any]) -> None:
        await world.until(lambda: world.checks)
        report = world.network.report()
        assert report.lease is not None
        assert report.lease.subnet.subnet_of(NETWORK)
        assert report.backend == BackendReport("udp", 1, 0)
        assert report.interface == InterfaceReport("eth1", "", PUBLIC_IP, PUBLIC_IP, 1500)
        assert report.kernel_state == RepairReport()
        assert report.firewall == FirewallReport()
        assert (report.network, report.subnet_file) == (NETWORK, world.file)
        assert (report.config, report.lease_problem) == (ConfigReport(ConfigState.IN_USE), "")
        assert report.store == StoreReport(2, "http://127.0.0.1:2379", None, None)
        assert report.second_store is None

    play(world, scenario)


def test_peers_come_in_chunks_while_the_network_is_in_service(world: World) -> None:
    async def chunks() -> list[list[float]]:
        return [[peer.since for peer in chunk] async for chunk in world.network.peer_reports()]

    async def scenario(_: asyncio.Task[Any]) -> None:
        assert await chunks() == []
        await world.network.refresh()
        await world.until(lambda: world.is_up)
        assert await chunks() == [[1.0], [2.0]]
        await world.network.refresh()
        assert world.story[-1] == "refresh"

    play(world, scenario)


def test_the_time_of_a_state_is_that_of_its_entry(world: World) -> None:
    async def scenario(_: asyncio.Task[Any]) -> None:
        await world.until(lambda: world.is_up)
        since = world.network.report().since
        assert abs(since - time.time()) < 60
        world.network._enter(NetworkState.READY)
        assert world.network.report().since == since
        world.network._enter(NetworkState.DEGRADED, "eth1 is down")
        assert world.network.report().since > since

    play(world, scenario)


# The state machine


def test_the_states_on_the_way_to_ready(world: World) -> None:
    states = [world.state]
    world.network._on_change = lambda: states.append(world.state)

    async def scenario(_: asyncio.Task[Any]) -> None:
        await world.until(lambda: world.is_up)

    play(world, scenario)
    assert [state for state, _ in groupby(states)] == [
        NetworkState.STARTING,
        NetworkState.WAITING_FOR_CONFIG,
        NetworkState.WAITING_FOR_LEASE,
        NetworkState.WAITING_FOR_PEERS,
        NetworkState.READY,
    ]


@pytest.mark.parametrize("state", NetworkState)
def test_only_the_transitions_of_the_table_are_made(world: World, state: NetworkState) -> None:
    for following in NetworkState:
        world.network._state = state
        if following in {state} | TRANSITIONS[state]:
            world.network._enter(following)
            assert world.state is following
        else:
            with pytest.raises(AssertionError, match=f"{state} -> {following}"):
                world.network._enter(following)


def test_the_docstring_draws_every_state() -> None:
    assert network.__doc__ is not None
    assert [state.name for state in NetworkState if state.name not in network.__doc__] == []
