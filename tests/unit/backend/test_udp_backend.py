"""The udp backend: which port, which next hops, and its life with a socket pair in place of the device."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from support.fakes_netlink import NO_ROUTE, FakeNetlink
from support.reports import peer_counts

from flannelpy import cli
from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.backend import catalogue as backends
from flannelpy.backend.alloc import AllocBackend
from flannelpy.backend.device_config import DeviceConfig
from flannelpy.backend.udp import backend as udp_backend
from flannelpy.backend.udp.backend import UdpBackend
from flannelpy.backend.udp.sender_queues import SenderQueues
from flannelpy.datapath.engine import Engine
from flannelpy.datapath.offloads import ALL
from flannelpy.datapath.source_check import SourceCheck
from flannelpy.datapath.traffic import Datagrams
from flannelpy.errors import ConfigError, HostError
from flannelpy.linux import packet_loop
from flannelpy.linux.netlink.client import Netlink
from flannelpy.linux.tun import Tun
from flannelpy.packet.drops import DropReason
from flannelpy.registry.base import expires_in
from flannelpy.report import PeerReport, Traffic
from flannelpy.rtnetlink.links import Link
from flannelpy.subnet.config import NetworkConfig, parse
from flannelpy.subnet.lease import HostIdentity, Lease, LeaseAttrs
from flannelpy.subnet.lease_table import LeaseAdded, LeaseRemoved

EXTERNAL = ExternalInterface("eth1", IPv4Address("172.17.8.101"), 1500)
SUBNET = IPv4Network("11.0.101.0/24")
DAY = expires_in(86400)
ALIAS = "flannelpy /run/flannel/subnet.env"


def config(**backend: object) -> NetworkConfig:
    return parse(json.dumps({"Network": "11.0.0.0/16", "Backend": {"Type": "udp"} | backend}))


def added(public_ip: str) -> LeaseAdded:
    return LeaseAdded(Lease(SUBNET, LeaseAttrs(IPv4Address(public_ip)), DAY, 1, 1))


@pytest.mark.parametrize("text", ['{"Network":"11.0.0.0/16"}', '{"Network":"11.0.0.0/16","Backend":{"Type":"UDP"}}'])
def test_udp_is_the_default_and_its_name_may_have_any_case(text: str) -> None:
    assert isinstance(backends.create(parse(text), EXTERNAL, cli.parse([]), "alias"), UdpBackend)


def test_an_unknown_backend_is_rejected_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        backends.create(config(Type="gre"), EXTERNAL, cli.parse([]), "alias")
    assert str(caught.value) == "unknown backend type: 'gre'; Backend.Type may be alloc, host-gw, udp, vxlan"


@pytest.mark.parametrize("port", [1, 8285, 65535, None])
def test_a_port_may_be_named_or_left_out(port: int | None) -> None:
    assert UdpBackend(config(Port=port), EXTERNAL, ALIAS, None).exclusive_resources == [f"UDP port {port or 8285}"]


@pytest.mark.parametrize(
    ("port", "shown"),
    [(0, "0"), (-1, "-1"), (65536, "65536"), ("8285", '"8285"'), (1.5, "1.5"), (True, "true"), ([], "[]")],
)
def test_an_invalid_port_is_rejected(port: object, shown: str) -> None:
    with pytest.raises(ConfigError) as caught:
        UdpBackend(config(port=port), EXTERNAL, ALIAS, None)
    assert str(caught.value) == f"Backend.Port {shown} is not a number from 1 to 65535"


@pytest.mark.parametrize("mtu", [96, 1500, None])
def test_an_mtu_may_be_named_or_left_out(mtu: int | None) -> None:
    UdpBackend(config(mtu=mtu), EXTERNAL, ALIAS, None)


@pytest.mark.parametrize(
    ("mtu", "shown"),
    [(95, "95"), (1501, "1501"), (0, "0"), (-1, "-1"), ("1400", '"1400"'), (1.5, "1.5"), (True, "true")],
)
def test_an_mtu_above_that_of_the_interface_is_rejected(mtu: object, shown: str) -> None:
    with pytest.raises(ConfigError) as caught:
        UdpBackend(config(MTU=mtu), EXTERNAL, ALIAS, None)
    assert str(caught.value) == f"Backend.MTU {shown} is not a number from 96 to 1500"


def test_other_hosts_learn_the_public_ip_and_nothing_else() -> None:
    attrs = UdpBackend(config(), EXTERNAL, ALIAS, None).lease_attrs(HostIdentity(IPv4Address("1.2.3.4")), None)
    assert attrs.encode() == '{"PublicIP":"1.2.3.4"}'


def test_next_hops_follow_the_leases(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flannelpy")
    backend = UdpBackend(config(), EXTERNAL, ALIAS, None)
    assert peer_counts(backend.report()) == ("udp", 0, 0)
    backend.apply([added("172.17.8.102")])
    assert peer_counts(backend.report()) == ("udp", 1, 0)
    backend.apply([added("172.17.8.103")])
    assert peer_counts(backend.report()) == ("udp", 1, 0)
    backend.apply([LeaseRemoved(SUBNET)])
    assert peer_counts(backend.report()) == ("udp", 0, 0)
    assert caplog.messages == [
        "Subnet added: 11.0.101.0/24",
        "Subnet added: 11.0.101.0/24",
        "Subnet removed: 11.0.101.0/24",
    ]


def test_a_backend_that_never_started_can_be_closed() -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    backend = UdpBackend(config(), EXTERNAL, ALIAS, None)
    backend.apply([added("172.17.8.102")])
    asyncio.run(backend.close())
    asyncio.run(backend.close())
    assert peer_counts(backend.report()) == ("udp", 1, 0)
    assert sorted(Path("/proc/self/fd").iterdir()) == before


# Its life

LOOPBACK = ExternalInterface("eth1", IPv4Address("127.0.0.1"), 1500)
OWN = Lease(IPv4Network("11.0.59.0/24"), LeaseAttrs(LOOPBACK.address), DAY, 1, 1)


class FakeTun(Tun):
    """One end of a socket pair; ``refuses_super_packets``: as a kernel without them."""

    def __init__(self, name: str) -> None:
        self.kernel, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        end.setblocking(False)
        self.fd, self.name = end.detach(), name
        self.refuses_super_packets = False

    def write(self, header: Any, packet: Any) -> bool:
        return not self.refuses_super_packets

    def close(self) -> None:
        super().close()
        self.kernel.close()


class FakeDevice:
    """Flaws are what the test says."""

    def __init__(self, device_config: DeviceConfig, alias: str, adopted: Tun | None) -> None:
        assert alias == ALIAS
        self.device_config = device_config
        self.tun = FakeTun("flannel0")
        self.found: list[str] = []
        self.is_there = True
        self.set_ups = 0
        self.comes_meanwhile: list[str] = []
        self.gives = (True, True)
        self.is_open = True

    async def set_up(self, netlink: Netlink) -> list[str]:
        self.set_ups += 1
        self.found = []
        return self.comes_meanwhile

    def offload(self, *, tso: bool, uso: bool) -> tuple[bool, bool]:
        return tso and self.gives[0], uso and self.gives[1]

    async def flaws(self, netlink: Netlink) -> tuple[Link | None, list[str]]:
        return (Link(7, self.tun.name, 1472, "tun") if self.is_there else None), list(self.found)

    async def recreate(self, netlink: Netlink) -> None:
        self.tun.close()
        self.tun = FakeTun("flannel1")
        self.is_there, self.found = True, []

    def close(self) -> None:
        self.is_open = False
        self.tun.close()


class Life:
    """A started backend on a free port."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, source_check: SourceCheck, offload: frozenset[str]) -> None:
        self.netlink = FakeNetlink()
        self.netlink.there |= {f"flannel{number}": Link(7, f"flannel{number}", 1472, "tun") for number in (0, 1)}
        self.expected_ports: list[int | None] = []
        self.changed = 0
        life = self

        class Queues(SenderQueues):
            def __init__(self, udp: Any, routes: Any, port: int | None) -> None:
                life.expected_ports.append(port)
                super().__init__(udp, routes, port)

            def changed(self) -> None:
                life.changed += 1
                super().changed()

        monkeypatch.setattr(udp_backend, "check_access", lambda: None)
        monkeypatch.setattr(udp_backend, "SenderQueues", Queues)
        monkeypatch.setattr(udp_backend, "Device", FakeDevice)
        monkeypatch.setattr(udp_backend, "Netlink", lambda: self.netlink)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.backend = UdpBackend(config(Port=self.port), LOOPBACK, ALIAS, offload, source_check)

    @property
    def device(self) -> FakeDevice:
        device = self.backend._device
        assert isinstance(device, FakeDevice)
        return device

    async def repair(self) -> list[str]:
        return await self.backend.repair(self.netlink)


def live(
    monkeypatch: pytest.MonkeyPatch,
    scenario: Callable[[Life], Awaitable[None]],
    source_check: SourceCheck = SourceCheck.PEER,
    offload: frozenset[str] = ALL,
) -> None:
    async def whole() -> None:
        life = Life(monkeypatch, source_check, offload)
        try:
            await scenario(life)
        finally:
            await life.backend.close()

    packet_loop.run(whole())


def test_the_backend_is_settled_when_the_receive_queues_follow_the_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(life: Life) -> None:
        await life.backend.start(OWN)
        queues = life.backend._sender_queues
        assert queues is not None
        life.backend.apply([added("172.17.8.102")])
        await life.backend.settled()
        assert queues._due is None
        assert queues._queues == {"172.17.8.102": 1}

    live(monkeypatch, scenario)


@pytest.mark.parametrize("source_check", list(SourceCheck))
def test_only_an_unchecked_sender_may_have_any_port(monkeypatch: pytest.MonkeyPatch, source_check: SourceCheck) -> None:
    async def scenario(life: Life) -> None:
        assert await life.backend.start(OWN) == 1472
        assert life.expected_ports == [None if source_check is SourceCheck.OFF else life.port]
        assert life.device.device_config == DeviceConfig(
            IPv4Network("11.0.0.0/16"), IPv4Address("11.0.59.0"), 1472, 1000
        )
        assert life.backend.datagrams == Datagrams("flannel0", life.port, life.port, accepts_local=True)
        assert life.backend.device == "flannel0"
        life.backend.apply([added("172.17.8.102")])
        assert life.changed == 1

    live(monkeypatch, scenario, source_check)


def test_a_port_that_is_taken_leaves_no_device_and_a_stop_leaves_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(life: Life) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", life.port))
            with pytest.raises(HostError, match=r"cannot listen on UDP 127\.0\.0\.1"):
                await life.backend.start(OWN)
            assert life.backend.device == ""
        await life.backend.start(OWN)
        await life.backend.close()
        assert not life.device.is_open
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", life.port))

    live(monkeypatch, scenario)


def test_a_start_fails_when_packets_would_not_come_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(life: Life) -> None:
        life.netlink.diverted = {(IPv4Network("11.0.0.0/16"), False): NO_ROUTE}
        with pytest.raises(HostError, match=r"Packets to 11\.0\.0\.0/16 do not take flannelpy's routes"):
            await life.backend.start(OWN)

    live(monkeypatch, scenario)


@pytest.mark.parametrize(
    ("asked", "gives", "refuses", "missing"),
    [
        (ALL, (True, True), False, ""),
        (ALL, (True, False), False, "uso"),
        (ALL, (False, False), False, "tso, uso"),
        (ALL, (True, True), True, "merge-tcp, merge-udp"),
        (frozenset({"tso"}), (True, True), True, ""),
        (frozenset(), (True, True), True, ""),
    ],
)
def test_offloads_that_the_kernel_lacks_are_logged_and_not_used(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    asked: frozenset[str],
    gives: tuple[bool, bool],
    refuses: bool,
    missing: str,
) -> None:
    caplog.set_level(logging.INFO, logger="flannelpy")
    merges: list[tuple[bool, bool]] = []

    class RecordedEngine(Engine):
        def __init__(self, *args: Any, merge_tcp: bool, merge_udp: bool, **more: Any) -> None:
            merges.append((merge_tcp, merge_udp))
            super().__init__(*args, merge_tcp=merge_tcp, merge_udp=merge_udp, **more)

    async def scenario(life: Life) -> None:
        set_up = FakeDevice.set_up

        async def prepared(self: FakeDevice, netlink: Netlink) -> list[str]:
            self.gives, self.tun.refuses_super_packets = gives, refuses
            return await set_up(self, netlink)

        monkeypatch.setattr(FakeDevice, "set_up", prepared)
        await life.backend.start(OWN)
        hints = [message for message in caplog.messages if message.startswith("Kernel lacks offload ")]
        assert hints == ([f"Kernel lacks offload {missing}; throughput is reduced"] if missing else [])
        used = sorted(asked - set(missing.split(", ")))
        assert caplog.messages[-1].endswith(f", offloads: {', '.join(used) or 'none'}")
        assert merges == [("merge-tcp" in used, "merge-udp" in used)]

    monkeypatch.setattr(udp_backend, "Engine", RecordedEngine)
    live(monkeypatch, scenario, offload=asked)


def test_a_changed_device_is_restored_and_a_removed_one_recreated(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(life: Life) -> None:
        await life.backend.start(OWN)
        life.backend.apply([added("172.17.8.102")])
        assert await life.repair() == []
        asked = len(life.netlink.queries)
        life.device.found, life.device.comes_meanwhile = ["was set down"], ["was set down", "got the address 11.0.7.7"]
        assert await life.repair() == [
            "flannel0 was set down; restored",
            "flannel0 got the address 11.0.7.7; restored",
        ]
        assert len(life.netlink.queries) == asked  # the next check asks
        assert life.device.set_ups == 2
        life.device.is_there, life.device.found = False, ["was removed"]
        assert await life.repair() == ["flannel0 was removed; restored"]
        assert life.backend.device == "flannel1"
        assert not life.backend._proxy.paused
        life.backend._proxy.pause()  # as when the device can be read no longer
        assert await life.repair() == ["flannel1 could no longer be used; restored"]
        assert await life.repair() == []
        assert life.device.set_ups == 2

    live(monkeypatch, scenario)


def test_a_peer_whose_packets_go_elsewhere_counts_as_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(life: Life) -> None:
        await life.backend.start(OWN)
        other = LeaseAdded(Lease(IPv4Network("11.0.102.0/24"), LeaseAttrs(IPv4Address("172.17.8.103")), DAY, 1, 1))
        life.backend.apply([added("172.17.8.102"), other])
        life.netlink.diverted = {(SUBNET, False): NO_ROUTE}
        await life.repair()
        assert peer_counts(life.backend.report()) == ("udp", 1, 1)
        life.backend.apply([LeaseRemoved(SUBNET)])
        await life.repair()
        assert peer_counts(life.backend.report()) == ("udp", 1, 0)

    live(monkeypatch, scenario)


def test_peers_are_reported_with_their_traffic_until_their_lease_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def peers(life: Life) -> list[PeerReport]:
        return [peer async for chunk in life.backend.peer_reports() for peer in chunk]

    async def transmit_drops(_: str) -> int:
        return 0

    async def scenario(life: Life) -> None:
        await life.backend.start(OWN)
        life.backend.apply([added("172.17.8.102")])
        [peer] = await peers(life)
        assert (peer.subnet, str(peer.public_ip), peer.unreachable) == (SUBNET, "172.17.8.102", "")
        assert peer.traffic == Traffic()
        route = life.backend._routes.get(SUBNET)
        assert route is not None
        route.tally.sent(250, 100)
        route.tally.accepted(2, 180, asyncio.get_running_loop().time())
        life.backend.apply([added("172.17.8.103")])
        life.netlink.diverted = {(SUBNET, False): NO_ROUTE}
        with pytest.raises(HostError):
            await life.repair()
        [later] = await peers(life)
        assert (str(later.public_ip), later.since) == ("172.17.8.103", peer.since)
        assert later.unreachable.startswith("packets do not take flannelpy's route: ")
        traffic = later.traffic
        assert traffic is not None
        assert (traffic.packets_out, traffic.bytes_out, traffic.packets_in, traffic.bytes_in) == (3, 250, 2, 180)
        assert abs((traffic.heard_at or 0) - time.time()) < 60
        life.backend.apply([LeaseRemoved(SUBNET)])
        assert await peers(life) == []
        monkeypatch.setattr(life.netlink, "transmit_drops", transmit_drops)
        await life.backend.refresh()
        carried = life.backend.report().carried
        assert carried is not None
        assert (carried.packets_out, carried.bytes_out, carried.packets_in, carried.bytes_in) == (3, 250, 2, 180)
        assert abs((carried.heard_at or 0) - time.time()) < 60

    live(monkeypatch, scenario)


def test_drops_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def transmit_drops(_: str) -> int:
        return 5

    async def scenario(life: Life) -> None:
        await life.backend.start(OWN)
        monkeypatch.setattr(life.netlink, "transmit_drops", transmit_drops)
        life.backend._proxy.drops[DropReason.NO_ROUTE] += 2
        assert life.backend.report().drops == {"no_route": 2}
        await life.backend.refresh()
        report = life.backend.report()
        assert report.drops == {"no_route": 2, "tun_queue_full": 5}
        assert (report.device, report.mtu, report.overhead) == ("flannel0", 1472, 28)
        assert "gro" in report.offloads

    live(monkeypatch, scenario)


def test_drops_are_logged_once_a_minute_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="flannelpy")
    monkeypatch.setattr(udp_backend, "_DROP_REPORT_SECONDS", 0.01)

    async def transmit_drops(name: str) -> int:
        assert name == "flannel0"
        return 0

    async def scenario(life: Life) -> None:
        await life.backend.start(OWN)
        monkeypatch.setattr(life.netlink, "transmit_drops", transmit_drops)
        caplog.clear()
        drops = life.backend._proxy.drops
        drops.update(
            Counter({DropReason.UNKNOWN_SENDER: 3, DropReason.WRONG_SENDER_PORT: 2, DropReason.TUN_WRITE_FAILED: 1})
        )
        life.backend._engine.refused_senders |= {
            DropReason.UNKNOWN_SENDER: ("172.17.8.200", 9),
            DropReason.WRONG_SENDER_PORT: ("172.17.8.102", 8286),
        }
        task = asyncio.create_task(life.backend.run())
        async with asyncio.timeout(10):
            while not caplog.messages:  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.01)
        port = f"172.17.8.102:8286, not port {life.port}; -source-check=off if a NAT changes ports"
        lines = [
            "Dropped packets: unknown_sender 3 (last from 172.17.8.200), "
            f"wrong_sender_port 2 (last from {port}), tun_write_failed 1"
        ]
        assert caplog.messages == lines
        monkeypatch.setattr(udp_backend, "_DROP_REPORT_SECONDS", 60)
        await asyncio.sleep(0.02)
        drops[DropReason.TUN_WRITE_FAILED] += 4
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert caplog.messages == [*lines, "Dropped packets: tun_write_failed 4"]
        assert life.backend.report().drops == {"unknown_sender": 3, "wrong_sender_port": 2, "tun_write_failed": 5}

    live(monkeypatch, scenario)


@pytest.mark.parametrize(
    "error", [HostError("cannot open a netlink socket: Too many open files"), OSError(24, "Too many open files")]
)
def test_a_counter_that_cannot_be_read_keeps_its_value_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(udp_backend, "_DROP_REPORT_SECONDS", 0.01)
    answers: list[int | Exception] = [7, error]

    refused = asyncio.Event()

    async def transmit_drops(_: str) -> int:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            refused.set()
            raise answer
        return answer

    async def scenario(life: Life) -> None:
        await life.backend.start(OWN)
        monkeypatch.setattr(life.netlink, "transmit_drops", transmit_drops)
        task = asyncio.create_task(life.backend.run())
        async with asyncio.timeout(10):
            await refused.wait()
        assert not task.done()
        assert life.backend.report().drops == {"tun_queue_full": 7}
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    live(monkeypatch, scenario)


def test_drops_are_counted_on_when_the_device_is_recreated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="flannelpy")
    counters = {"flannel0": 7, "flannel1": 2}

    async def transmit_drops(name: str) -> int:
        return counters[name]

    async def scenario(life: Life) -> None:
        await life.backend.start(OWN)
        monkeypatch.setattr(life.netlink, "transmit_drops", transmit_drops)
        await life.backend._log_drops()
        life.device.is_there = False
        await life.repair()
        await life.backend._log_drops()
        assert life.backend.report().drops == {"tun_queue_full": 9}
        assert [line for line in caplog.messages if "Dropped" in line] == [
            "Dropped packets: tun_queue_full 7",
            "Dropped packets: tun_queue_full 2",
        ]

    live(monkeypatch, scenario)


def test_an_error_of_the_packet_path_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(life: Life) -> None:
        await life.backend.start(OWN)
        monkeypatch.setattr(life.netlink, "transmit_drops", lambda _: asyncio.sleep(0, 0))
        task = asyncio.create_task(life.backend.run())
        await asyncio.sleep(0)
        life.backend._proxy.failure.set_exception(IndexError("a fault"))
        with pytest.raises(IndexError, match="a fault"):
            await task

    live(monkeypatch, scenario)


def test_alloc_leases_with_the_public_ip_and_sets_up_nothing() -> None:
    backend = AllocBackend(EXTERNAL)
    assert backend.lease_attrs(HostIdentity(IPv4Address("1.2.3.4")), None) == LeaseAttrs(IPv4Address("1.2.3.4"))
    assert asyncio.run(backend.start(OWN)) == EXTERNAL.mtu
    assert asyncio.run(backend.repair(FakeNetlink())) == []
