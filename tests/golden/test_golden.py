"""flannelpy's external contracts, compared with recordings of the originals: see README.md beside this file."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import os
import random
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

import pytest
from support import oracle
from support.batches import datagrams, for_the_tun, inbound, inbound_trains, outbound
from support.fakes import FakeRegistry
from support.fakes_iptables import FakeTables
from support.packets import checksum, hop_taken
from support.pcap import RAW_IP, read, udp_datagrams

from flannelpy import cli, logs, network, service
from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.backend import catalogue, repair_loop
from flannelpy.backend.udp import backend as udp_backend
from flannelpy.backend.udp import device
from flannelpy.commands import daemon
from flannelpy.datapath.engine import BATCH_PACKETS, Engine, Plan
from flannelpy.datapath.routes import NextHop, Routes
from flannelpy.host import external_endpoint, subnet_file
from flannelpy.leasing.manager import SubnetManager
from flannelpy.linux import systemd
from flannelpy.linux.clock import BootClock
from flannelpy.linux.netlink import monitor
from flannelpy.linux.netlink.client import Netlink
from flannelpy.linux.tun import Tun
from flannelpy.linux.udp_socket import UdpSocket
from flannelpy.packet import ipv4, vnet_hdr
from flannelpy.packet.drops import DropReason
from flannelpy.registry.base import KeyValue, Schema, expires_in
from flannelpy.rtnetlink.entries import Identity, Route
from flannelpy.rtnetlink.links import Address, Link
from flannelpy.rtnetlink.routes import KernelRoute, RouteAnswer, RouteFilter, RouteQuery
from flannelpy.rtnetlink.rules import ProhibitRule
from flannelpy.subnet import config
from flannelpy.subnet.lease import HostIdentity, Lease, LeaseAttrs, format_key, parse_key
from flannelpy.subnet.lease_policy import Terms

RECORDED = Path(__file__).parent / "flanneld-v0.5.5-udp"
PREFIX = "/coreos.com/network"
PORT = 8285
HOST1, HOST2 = IPv4Address("172.17.8.101"), IPv4Address("172.17.8.102")
CONTAINER1, CONTAINER2 = IPv4Address("11.0.59.2"), IPv4Address("11.0.101.2")
SUBNET1 = IPv4Network("11.0.59.0/24")


# The store


def recorded_store() -> tuple[str, list[KeyValue]]:
    """Return a store with the recorded config and leases."""
    root = json.loads((RECORDED / "etcd.json").read_text())["node"]
    assert root["key"] == PREFIX
    configs, leases = (node for node in root["nodes"])
    assert (configs["key"], leases["key"]) == (f"{PREFIX}/config", f"{PREFIX}/subnets")
    entries = [
        KeyValue(
            node["key"].removeprefix(f"{PREFIX}/subnets/"),
            node["value"],
            expires_in(node["ttl"]),
            node["modifiedIndex"],
            node["createdIndex"],
        )
        for node in leases["nodes"]
    ]
    return configs["value"], entries


CONFIG, LEASES = recorded_store()


@pytest.mark.parametrize("entry", LEASES, ids=lambda entry: entry.name)
def test_keys_and_values_of_leases_are_read_and_written_to_the_same_bytes(entry: KeyValue) -> None:
    assert format_key(parse_key(entry.name)) == entry.name
    assert LeaseAttrs.decode(entry.value).encode() == entry.value


def test_the_config_has_the_same_meaning() -> None:
    parsed = config.parse(CONFIG)
    assert (
        f"Picking subnet in range {parsed.subnet_min} ... {parsed.subnet_max}" in (RECORDED / "host1.log").read_text()
    )
    assert all(parsed.fits(Lease.from_entry(entry).subnet) for entry in LEASES)
    assert parsed.backend.type == "udp"


def test_the_subnet_file_is_the_same() -> None:
    text = subnet_file.render(IPv4Network("11.0.0.0/16"), SUBNET1, 1472, True)
    assert text.encode() == (RECORDED / "subnet.env").read_bytes()
    assert subnet_file.previous_subnet(RECORDED / "subnet.env") == SUBNET1


# The store in etcd v3


class Recording(NamedTuple):
    """What v0.20.2 left in etcd v3: the config, the leases by key, and the granted TTL of each etcd lease by key."""

    directory: Path
    config: str
    leases: dict[str, str]
    granted: dict[str, int]


@pytest.fixture(params=["udp", "vxlan", "host-gw"])
def recording(request: pytest.FixtureRequest) -> Recording:
    directory = Path(__file__).parent / f"flanneld-v0.20.2-{request.param}"
    values = {pair["key"]: pair["value"] for pair in json.loads((directory / "etcd.json").read_text())["kvs"]}
    granted = re.findall(
        r"granted with TTL\((\d+)s\), .* attached keys\(\[(\S+)\]\)", (directory / "leases.txt").read_text()
    )
    return Recording(directory, values.pop(f"{PREFIX}/config"), values, {key: int(seconds) for seconds, key in granted})


def test_keys_and_values_in_etcd_v3_are_read_and_written_to_the_same_bytes(recording: Recording) -> None:
    assert len(recording.leases) == 2
    for key, value in recording.leases.items():
        name = key.removeprefix(f"{PREFIX}/subnets/")
        assert format_key(parse_key(name)) == name
        assert LeaseAttrs.decode(value).encode(Schema.V3) == value


def test_a_host_writes_the_same_lease_into_etcd_v3(recording: Recording) -> None:
    """flannelpy's lease has one key more: HostID, which the original ignores."""
    [(key, value)] = [(key, value) for key, value in recording.leases.items() if f'"{HOST1}"' in value]
    name = key.removeprefix(f"{PREFIX}/subnets/")

    async def acquire() -> KeyValue:
        registry = FakeRegistry(time.monotonic, Schema.V3)
        if "VtepMAC" in value:
            registry.put_raw(name, value, 100)  # a host keeps the MAC that its lease has
        parsed = config.parse(recording.config, registry.schema)
        backend = catalogue.create(parsed, ExternalInterface("eth1", HOST1, 1500), cli.parse([]), "alias")
        identity = HostIdentity(HOST1, "host-1")
        manager = SubnetManager(registry, BootClock(), random.Random(1), identity)
        await manager.acquire(parsed, partial(backend.lease_attrs, identity), parse_key(name))
        [entry] = registry.stored()
        return entry

    ours = asyncio.run(acquire())
    assert (ours.name, ours.value) == (name, f'{value[:-1]},"HostID":"host-1"}}')
    assert ours.lifetime == expires_in(recording.granted[key])


def test_the_config_in_etcd_v3_has_the_same_meaning(recording: Recording) -> None:
    parsed = config.parse(recording.config, Schema.V3)
    assert recording.directory.name.endswith(f"-{parsed.backend.type}")
    assert all(parsed.fits(parse_key(key.rpartition("/")[2])) for key in recording.leases)


def test_the_subnet_file_of_v0_20_2_is_the_same(recording: Recording) -> None:
    text = (recording.directory / "subnet.env").read_text()
    subnet = subnet_file.previous_subnet(recording.directory / "subnet.env")
    assert subnet is not None
    assert f"{PREFIX}/subnets/{format_key(subnet)}" in recording.leases
    mtu = {"udp": 1472, "vxlan": 1450, "host-gw": 1500}[recording.directory.name.partition(".2-")[2]]
    assert subnet_file.render(IPv4Network("11.0.0.0/16"), subnet, mtu, False) == text


# The wire


def host(address: IPv4Address, *, merge: bool = True) -> Engine:
    """Return the engine of a recorded host, with routes to the others; ``merge``: its device accepts super-packets."""
    routes = Routes()
    leases = list(map(Lease.from_entry, LEASES))
    [own] = [lease.subnet for lease in leases if lease.attrs.public_ip == address]
    for lease in leases:
        if lease.subnet != own:
            routes.set(lease.subnet, NextHop(str(lease.attrs.public_ip), PORT))
    return Engine(
        own, routes, network=IPv4Network("11.0.0.0/16"), bound=address, port=PORT, merge_tcp=merge, merge_udp=merge
    )


DATAGRAMS = list(udp_datagrams(RECORDED / "eth1.pcap", PORT))
ON_THE_TUN = list(read(RECORDED / "flannel0.pcap", RAW_IP))
FROM_HOST1 = [datagram.payload for datagram in DATAGRAMS if datagram.is_from(HOST1)]
FROM_HOST2 = [datagram.payload for datagram in DATAGRAMS if datagram.is_from(HOST2)]


def source(packet: bytes | bytearray) -> IPv4Address | None:
    """Return the source address, or None for what is not IPv4."""
    return IPv4Address(bytes(packet[12:16])) if packet[0] >> 4 == 4 else None


def test_the_recording_is_what_the_tests_below_take_it_for() -> None:
    assert len(FROM_HOST1) + len(FROM_HOST2) == len(DATAGRAMS) == 256
    assert len(ON_THE_TUN) == 261
    assert Counter(map(source, ON_THE_TUN)) == {CONTAINER1: 153, CONTAINER2: 106, IPv4Address("11.0.59.0"): 1, None: 1}


def test_every_datagram_is_exactly_one_packet_of_a_container_with_a_right_checksum() -> None:
    for datagram in DATAGRAMS:
        packet = bytearray(datagram.payload)
        here, there = (CONTAINER1, CONTAINER2) if datagram.is_from(HOST1) else (CONTAINER2, CONTAINER1)
        assert ipv4.check(packet, 0, len(packet)) == 0
        assert (source(packet), ipv4.destination(packet, 0)) == (here, int(there))
        assert checksum(packet[:20]) == 0


def batches(packets: list[bytes]) -> list[list[bytes]]:
    """Return the packets in batches of the largest size, in order."""
    return [packets[start : start + BATCH_PACKETS] for start in range(0, len(packets), BATCH_PACKETS)]


def test_what_the_device_gave_is_sent_as_the_same_datagrams() -> None:
    engine = host(HOST1)
    sent, drops = [], Counter[DropReason]()
    for packets in batches([packet for packet in ON_THE_TUN if source(packet) in (CONTAINER1, None)]):
        plan = outbound(engine, packets)
        sent += datagrams(plan)
        drops.update(plan.drops)
    assert sent == [(NextHop(str(HOST2), PORT), payload) for payload in FROM_HOST1]
    assert drops == {DropReason.NO_ROUTE: 2, DropReason.TTL_EXPIRED: 1, DropReason.NOT_IPV4: 1}


def trains(packets: list[bytes]) -> list[tuple[bytes, int]]:
    """Return the longest trains that UDP_GRO allows: datagrams of equal length; the last may be shorter."""
    found: list[tuple[bytes, int]] = []
    full = True
    for packet in packets:
        if full or len(packet) > found[-1][1]:
            found.append((packet, len(packet)))
            full = False
        else:
            data, size = found[-1]
            full = len(packet) < size
            found[-1] = (data + packet, size)
    return found


@pytest.mark.parametrize("gro", [False, True], ids=["one by one", "in trains"])
@pytest.mark.parametrize("merge", [False, True], ids=["whole packets", "super-packets"])
def test_what_arrived_is_given_to_the_device_as_the_same_packets(merge: bool, gro: bool) -> None:
    """Super-packets are segmented again for the comparison."""
    engine = host(HOST1, merge=merge)
    given = []
    for packets in batches(FROM_HOST2):
        came = trains(packets) if gro else [(packet, len(packet)) for packet in packets]
        plan = inbound_trains(engine, came, sender=(str(HOST2), PORT))
        given += for_the_tun(plan)
        assert plan == Plan(packets=plan.packets)
    assert oracle.all_written(given) == [packet for packet in ON_THE_TUN if source(packet) == CONTAINER2]


@pytest.mark.parametrize("merge", [False, True], ids=["whole packets", "super-packets"])
def test_the_other_host_takes_every_datagram_but_the_one_without_a_hop_left(merge: bool) -> None:
    engine = host(HOST2, merge=merge)
    given, drops = [], []
    for packets in batches(FROM_HOST1):
        plan = inbound(engine, packets, sender=(str(HOST1), PORT))
        given += for_the_tun(plan)
        drops += plan.drops
    packets = [hop_taken(data) for data in FROM_HOST1 if data[8] > 1]
    assert (len(given) < len(packets)) == merge
    assert oracle.all_written(given) == packets
    assert drops == [DropReason.TTL_EXPIRED]


def test_net_unreachable_is_the_same_byte_for_byte() -> None:
    [recorded] = [packet for packet in ON_THE_TUN if source(packet) == IPv4Address("11.0.59.0")]
    cause = ON_THE_TUN[ON_THE_TUN.index(recorded) - 1]
    assert cause[16:20] == IPv4Address("11.0.254.2").packed
    assert for_the_tun(outbound(host(HOST1), [cause])) == [(vnet_hdr.PLAIN, recorded)]


# The whole daemon, with stand-ins for kernel and store

GLOG = re.compile(r"(?P<level>[IWEF])\d{4} \d\d:\d\d:\d\d\.\d{6} \d{5,} (?P<place>\w+\.\w+:\d+)\] (?P<message>.+)")


class Store(FakeRegistry):
    """A store that can be read after the daemon has closed it."""

    async def close(self) -> None:
        pass


class Device(Tun):
    """A socket pair in place of the device."""

    open_devices = 0

    def __init__(self) -> None:
        self.kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.setblocking(False)
        self.fd = ours.detach()
        self.name = "flannel0"
        Device.open_devices += 1

    def offload(self, *, tso: bool, uso: bool) -> tuple[bool, bool]:
        return tso, uso

    def accept_own_address(self) -> None:
        pass

    def close(self) -> None:
        super().close()
        self.kernel.close()
        Device.open_devices -= 1


class Machine(Netlink):
    """The interfaces of host 1; ``brought_up`` and ``alias`` record what the daemon did to its device."""

    brought_up: ClassVar[list[str]] = []
    alias = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def links(self) -> list[Link]:
        return [Link(2, "eth1", 1500), Link(3, "flannel0", 1472, alias=self.alias)]

    async def filtering_links(self) -> set[int]:
        return set()

    async def link(self, name: str) -> Link | None:
        return next((link for link in await self.links() if link.name == name), None)

    async def has_connected_route(self, network: IPv4Network, link_index: int) -> bool:
        return True

    async def lookups(self, queries: Sequence[RouteQuery], *, matched: bool = False) -> list[RouteAnswer]:
        network = IPv4Network("11.0.0.0/16")
        return [RouteAnswer(link_index=3 if query.destination in network else 2) for query in queries]

    async def routes_of(self, wanted: RouteFilter) -> AsyncIterator[list[KernelRoute]]:
        yield []

    async def remove(self, unwanted: Sequence[Identity]) -> None:
        assert not unwanted

    async def prohibit_rules(self) -> list[ProhibitRule]:
        return []

    async def unmarked_prohibit_rules(self) -> list[ProhibitRule]:
        return []

    async def remove_rules(self, rules: Sequence[ProhibitRule], protocol: int = 85) -> None:
        assert not rules

    async def set_alias(self, link: Link, alias: str) -> None:
        assert (link.name, alias.split()[0]) == ("flannel0", "flannelpy")
        Machine.alias = alias

    async def addresses(self) -> list[Address]:
        return [Address(2, HOST1, 24), Address(3, IPv4Address("11.0.59.0"), 16)]

    async def default_routes(self) -> list[Route]:
        return []

    async def transmit_drops(self, name: str) -> int:
        return 0

    async def bring_up(self, name: str, address: IPv4Address, network: IPv4Network, mtu: int, queue: int) -> None:
        self.brought_up.extend([f"inet {address}/{network.prefixlen} scope global {name}", f"mtu {mtu} "])


async def no_changes(_: IPv4Network) -> AsyncIterator[None]:
    await asyncio.Event().wait()
    yield


class Life(NamedTuple):
    """The visible behaviour of one daemon from its start to SIGTERM."""

    exit_code: int
    log: list[str]
    notifications: list[str]
    bound_to: list[tuple[IPv4Address, int]]
    store: dict[str, KeyValue]
    directory: dict[str, bytes]


@pytest.fixture
def life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Life:
    """Run a daemon as host 1: it had its subnet before, and gets SIGTERM when it knows both peers."""
    store = Store(time.monotonic)
    store.set_config(CONFIG)
    for entry in LEASES[1:]:
        store.put_raw(entry.name, entry.value, entry.lifetime.seconds)
    subnet_file = tmp_path / "subnet.env"
    subnet_file.write_text("FLANNEL_SUBNET=11.0.59.1/24\n")
    notified: list[str] = []
    bound_to: list[tuple[IPv4Address, int]] = []

    def notify(*lines: str) -> None:
        is_first = not any(line.endswith("next hops: 2") for line in notified)
        notified.extend(lines)
        if lines[-1].endswith("next hops: 2") and is_first:
            os.kill(os.getpid(), signal.SIGTERM)

    def bind(address: IPv4Address, port: int, *, gso: bool, gro: bool) -> UdpSocket:
        bound_to.append((address, port))
        return UdpSocket(IPv4Address("127.0.0.1"), 0, gso=gso, gro=gro)

    Machine.brought_up.clear()
    Machine.alias = ""
    monkeypatch.setattr(network, "connect_host", lambda *_: store)
    monkeypatch.setattr(external_endpoint, "Netlink", Machine)
    monkeypatch.setattr(network, "Netlink", Machine)
    monkeypatch.setattr(service, "Netlink", Machine)
    monkeypatch.setattr(udp_backend, "Netlink", Machine)
    monkeypatch.setattr(repair_loop, "Netlink", Machine)
    monkeypatch.setattr(monitor, "notifications", no_changes)
    monkeypatch.setattr(device, "Tun", Device)
    monkeypatch.setattr(udp_backend, "UdpSocket", bind)
    FakeTables().install(monkeypatch)
    monkeypatch.setattr(systemd, "notify", notify)
    options = cli.parse(
        ["-iface=eth1", f"-etcd-prefix={PREFIX}", f"-subnet-file={subnet_file}", "-ip-masq", "-host-id=host-1"]
    )
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    handler.setFormatter(logs.GlogFormatter())
    ours = logging.getLogger("flannelpy")
    level = ours.level
    ours.addHandler(handler)
    deadline = threading.Timer(20, os.kill, (os.getpid(), signal.SIGTERM))
    deadline.start()
    try:
        exit_code = daemon.run(options)
    finally:
        deadline.cancel()
        gc.unfreeze()
        gc.enable()
        ours.removeHandler(handler)
        ours.setLevel(level)
    entries = {entry.name: entry for entry in asyncio.run(store.snapshot()).entries}
    directory = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    return Life(exit_code, log.getvalue().splitlines(), notified, bound_to, entries, directory)


def messages(lines: list[str]) -> list[str]:
    """Return the messages without heads; iptables rules count as one message, since flannelpy's differ on purpose."""
    found: list[str] = []
    for line in lines:
        match = GLOG.fullmatch(line)
        assert match, line
        message = re.sub(r"(?<=Adding iptables rule: ).*", "...", match["message"])
        if found[-1:] != [message] or "iptables" not in message:
            found.append(message)
    return found


def recorded_log() -> list[str]:
    """Return the recorded log, without the lines of the original's C half."""
    lines = (RECORDED / "host1.log").read_text().splitlines()
    lines += re.findall(r".*Exiting\.\.\.", (RECORDED / "after-sigterm.txt").read_text())
    return [line for line in lines if not line.startswith("Discarding IP fragment")]


def test_the_log_has_the_same_lines_in_the_same_order(life: Life) -> None:
    """flannelpy's log has one line more: the form of the packet code, and the offloads."""
    assert len(recorded_log()) == 13
    ours = messages(life.log)
    assert re.fullmatch(r"Packet code (compiled|interpreted), offloads: [a-z, -]+", ours.pop(5))
    assert ours == messages(recorded_log())


def test_the_lease_is_the_same(life: Life) -> None:
    """flannelpy's lease has one key more: HostID, which the original ignores."""
    recorded = LEASES[0]
    ours = life.store[recorded.name]
    assert (ours.name, ours.value) == (recorded.name, f'{recorded.value[:-1]},"HostID":"host-1"}}')
    assert ours.lifetime.seconds is not None
    assert recorded.lifetime.seconds is not None
    # Both were recorded some seconds after they had been created.
    assert (
        Terms().lease_ttl - 20
        < min(ours.lifetime.seconds, recorded.lifetime.seconds)
        <= max(ours.lifetime.seconds, recorded.lifetime.seconds)
        <= Terms().lease_ttl
    )


def test_the_device_gets_the_same_address_and_mtu(life: Life) -> None:
    net = (RECORDED / "host1-net.txt").read_text()
    assert len(Machine.brought_up) == 2
    assert all(fact in net for fact in Machine.brought_up)


def test_datagrams_are_sent_from_the_same_port(life: Life) -> None:
    assert life.bound_to == [(HOST1, PORT)]


def test_what_sigterm_leaves_behind_is_the_same(life: Life) -> None:
    left = (RECORDED / "after-sigterm.txt").read_text()
    assert life.exit_code == 0
    assert ("flannel0" in left, Device.open_devices) == (False, 0)
    files = [name for name in life.directory if name != ".subnet.env.lock"]  # the original has no lock
    assert re.findall(r"\d\d:\d\d (\w\S*)$", left, re.MULTILINE) == files == ["subnet.env"]
    assert life.directory["subnet.env"] == (RECORDED / "subnet.env").read_bytes()
    keys = re.findall(rf'"key": "{PREFIX}/subnets/(.*)"', left)
    assert sorted(keys) == sorted(life.store)


def test_systemd_gets_readiness_and_stop(life: Life) -> None:
    """The original sends READY=1 and nothing else."""
    assert life.notifications.count("READY=1") == 1
    ready = life.notifications.index("READY=1")
    assert life.notifications[ready + 1].startswith("STATUS=subnet 11.0.59.0/24 (")
    assert life.notifications[-1] == "STOPPING=1"
