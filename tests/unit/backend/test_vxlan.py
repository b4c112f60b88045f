"""What the vxlan backend reads from the config, writes into its lease, and wants of the kernel."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from support.fakes_netlink import ETH1, EXTERNAL, FLANNEL1, FakeNetlink, no_changes
from support.reports import peer_counts

from flannelpy.backend import kernel_entries, on_link
from flannelpy.backend.vxlan import backend as vxlan_backend
from flannelpy.backend.vxlan.backend import VxlanBackend
from flannelpy.backend.vxlan.device import Device
from flannelpy.backend.vxlan.port_probe import PortProbe
from flannelpy.datapath import vtep, vxlan_settings
from flannelpy.datapath.traffic import Datagrams
from flannelpy.datapath.vxlan_settings import Settings
from flannelpy.errors import ConfigError, HostError
from flannelpy.linux.netlink import monitor
from flannelpy.linux.netlink.client import Netlink
from flannelpy.registry.base import Schema, expires_in
from flannelpy.rtnetlink.entries import Entry, FdbEntry, GatewayRoute, Neighbour
from flannelpy.rtnetlink.links import Address
from flannelpy.subnet import config
from flannelpy.subnet.lease import HostIdentity, Lease, LeaseAttrs
from flannelpy.subnet.lease_table import LeaseAdded, LeaseRemoved

US = HostIdentity(EXTERNAL.address, "host1")
ALIAS = "flannelpy /run/flannel/subnet.env"
OTHER_MAC = "2e:40:72:2d:6b:e3"
SWAPPED_WITHOUT_PORT = (
    "Backend.PortSwapped true needs Backend.Port: without it, every flanneld uses port 8472; leave PortSwapped out, or "
    "name the Port that the hosts of flanneld up to v0.5.5 have in their config"
)


# The config


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, Settings(1, 8472, 1450, learning=False, gbp=False, direct_routing=False)),
        ({"Port": 7890}, Settings(1, 7890, 1450, learning=False, gbp=False, direct_routing=False, other_port=53790)),
        (
            {"Port": 7890, "PortSwapped": True},
            Settings(1, 53790, 1450, learning=False, gbp=False, direct_routing=False, other_port=7890),
        ),
        (
            {"portswapped": True, "Port": 8472},
            Settings(1, 6177, 1450, learning=False, gbp=False, direct_routing=False, other_port=8472),
        ),
        (
            {"Port": 1, "PortSwapped": True},
            Settings(1, 256, 1450, learning=False, gbp=False, direct_routing=False, other_port=1),
        ),
        ({"Port": 257, "PortSwapped": True}, Settings(1, 257, 1450, learning=False, gbp=False, direct_routing=False)),
        ({"PortSwapped": False}, Settings(1, 8472, 1450, learning=False, gbp=False, direct_routing=False)),
        ({"Port": 0, "VNI": 0}, Settings(0, 8472, 1450, learning=False, gbp=False, direct_routing=False)),
        ({"vni": 9999999, "mtu": 1400}, Settings(9999999, 8472, 1350, learning=False, gbp=False, direct_routing=False)),
        (
            {"Learning": True, "GBP": True, "DirectRouting": True, "Unknown": []},
            Settings(1, 8472, 1450, learning=True, gbp=True, direct_routing=True),
        ),
    ],
)
def test_settings(options: dict[str, object], expected: Settings) -> None:
    assert vxlan_settings.parse(options, 1500) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"VNI": -1}, "Backend.VNI -1 is not a number from 0 to 9999999"),
        ({"VNI": 10_000_000}, "Backend.VNI 10000000 is not a number from 0 to 9999999"),
        ({"VNI": "1"}, 'Backend.VNI "1" is not a number from 0 to 9999999'),
        ({"Port": 65536}, "Backend.Port 65536 is not a number from 0 to 65535"),
        ({"Port": True}, "Backend.Port true is not a number from 0 to 65535"),
        ({"MTU": 1501}, "Backend.MTU 1501 is not a number from 118 to 1500"),
        ({"MTU": 100}, "Backend.MTU 100 is not a number from 118 to 1500"),
        ({"GBP": 1}, "Backend.GBP 1 is not true or false"),
        ({"Learning": "no"}, 'Backend.Learning "no" is not true or false'),
        ({"PortSwapped": 1, "Port": 7890}, "Backend.PortSwapped 1 is not true or false"),
        ({"PortSwapped": "true"}, 'Backend.PortSwapped "true" is not true or false'),
        ({"PortSwapped": True}, SWAPPED_WITHOUT_PORT),
        ({"PortSwapped": True, "Port": 0}, SWAPPED_WITHOUT_PORT),
        ({"PortSwapped": True, "Port": None}, SWAPPED_WITHOUT_PORT),
        ({"DirectRouting": None, "MTU": []}, "Backend.MTU [] is not a number from 118 to 1500"),
    ],
)
def test_invalid_options_are_rejected(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        vxlan_settings.parse(options, 1500)
    assert str(caught.value) == message


# The lease


def test_the_mac_is_always_the_same_and_of_this_host_alone() -> None:
    macs = {
        vtep.read(vtep.attrs(host_identity, vni, Schema.V2, None))
        for host_identity in (
            US,
            HostIdentity(EXTERNAL.address, "host2"),
            HostIdentity(IPv4Address("172.17.8.102"), "host1"),
        )
        for vni in (1, 2)
    }
    assert len(macs - {None}) == 6
    assert all(mac and int(mac[:2], 16) & 3 == 2 for mac in macs), "local, and of one host"
    assert vtep.attrs(US, 1, Schema.V2, None) == vtep.attrs(US, 1, Schema.V2, None)


def test_the_mac_in_the_lease_is_kept() -> None:
    found = LeaseAttrs(EXTERNAL.address, "vxlan", {"VNI": 1, "VtepMAC": "8A:34:91:DD:7C:C7"})
    attrs = vtep.attrs(US, 1, Schema.V2, found)
    assert attrs.encode() == (
        '{"PublicIP":"172.17.8.101","BackendType":"vxlan","BackendData":{"VtepMAC":"8a:34:91:dd:7c:c7"}}'
    )


@pytest.mark.parametrize(("vni", "leased"), [(1, 1), (0, 0), (65535, 65535), (65536, 0), (9_999_999, 38527)])
def test_a_lease_in_etcd_v3_has_the_lower_16_bits_of_the_vni(vni: int, leased: int) -> None:
    text = json.dumps({"Network": "11.0.0.0/16", "Backend": {"Type": "vxlan", "VNI": vni}})
    in_v3, in_v2 = (
        VxlanBackend(config.parse(text, schema), EXTERNAL, ALIAS).lease_attrs(US, None)
        for schema in (Schema.V3, Schema.V2)
    )
    mac = vtep.read(in_v2)
    assert in_v3.encode(Schema.V3) == (
        '{"PublicIP":"172.17.8.101","PublicIPv6":null,"BackendType":"vxlan",'
        f'"BackendData":{{"VNI":{leased},"VtepMAC":"{mac}"}}}}'
    )
    assert in_v2.encode() == f'{{"PublicIP":"172.17.8.101","BackendType":"vxlan","BackendData":{{"VtepMAC":"{mac}"}}}}'


@pytest.mark.parametrize(
    "found",
    [
        LeaseAttrs(EXTERNAL.address),
        LeaseAttrs(EXTERNAL.address, "udp", {"VtepMAC": OTHER_MAC}),
        LeaseAttrs(EXTERNAL.address, "vxlan", {"VtepMAC": ""}),
        LeaseAttrs(EXTERNAL.address, "vxlan", "VtepMAC"),
    ],
)
def test_a_lease_without_a_mac_gets_the_derived_one(found: LeaseAttrs) -> None:
    assert vtep.attrs(US, 1, Schema.V2, found) == vtep.attrs(US, 1, Schema.V2, None)


@pytest.mark.parametrize(
    ("data", "mac"),
    [
        ({"VtepMAC": OTHER_MAC}, OTHER_MAC),
        ({"vtepmac": "2E-40-72-2D-6B-E3", "VNI": 1}, OTHER_MAC),
        ({"VtepMAC": "00:00:00:00:00:00"}, None),  # the default entry of the kernel's FDB
        ({"VtepMAC": "01:00:5e:00:00:01"}, None),
        ({"VtepMAC": "ff:ff:ff:ff:ff:ff"}, None),
        ({"VtepMAC": "2e:40:72:2d:6b"}, None),
        ({"VtepMAC": 1}, None),
        ({}, None),
        (None, None),
        ([OTHER_MAC], None),
    ],
)
def test_the_mac_of_others(data: object, mac: str | None) -> None:
    assert vtep.read(LeaseAttrs(IPv4Address("172.17.8.102"), "vxlan", data)) == mac


# What the kernel is to have


def added(number: int, host: int, mac: str = "", backend_type: str = "vxlan") -> LeaseAdded:
    attrs = LeaseAttrs(IPv4Address(f"172.17.8.{host}"), backend_type, {"VtepMAC": mac or f"02:00:00:00:00:{host:02x}"})
    return LeaseAdded(Lease(IPv4Network(f"11.0.{number}.0/24"), attrs, expires_in(86400), 1, 1))


def by_vxlan(number: int, host: int) -> tuple[Entry, ...]:
    mac, address = f"02:00:00:00:00:{host:02x}", IPv4Address(f"11.0.{number}.0")
    return (
        FdbEntry(mac, IPv4Address(f"172.17.8.{host}"), FLANNEL1),
        Neighbour(address, mac, FLANNEL1),
        GatewayRoute(IPv4Network((int(address), 24)), address, FLANNEL1, is_onlink=True),
    )


def direct(number: int, host: int) -> GatewayRoute:
    return GatewayRoute(IPv4Network(f"11.0.{number}.0/24"), IPv4Address(f"172.17.8.{host}"), ETH1)


def play(
    scenario: Callable[[VxlanBackend, FakeNetlink], Awaitable[None]], monkeypatch: pytest.MonkeyPatch, **options: bool
) -> None:
    netlink = FakeNetlink()
    for module in (kernel_entries, on_link, vxlan_backend):
        monkeypatch.setattr(module, "Netlink", lambda: netlink)
    monkeypatch.setattr(monitor, "notifications", no_changes)

    async def nothing(self: Device, _: Netlink) -> list[str]:
        return []

    for name in ("set_up", "flaws"):  # a device is the real kernel's business
        monkeypatch.setattr(Device, name, nothing)
    text = json.dumps({"Network": "11.0.0.0/16", "Backend": {"Type": "vxlan", **options}})

    async def whole() -> None:
        backend = VxlanBackend(config.parse(text), EXTERNAL, ALIAS)
        own = Lease(IPv4Network("11.0.48.0/24"), backend.lease_attrs(US, None), expires_in(86400), 1, 1)
        assert await backend.start(own) == 1450
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(backend.run())
            await scenario(backend, netlink)
            assert not task.done()
            task.cancel()

    asyncio.run(whole())


def test_entries_follow_the_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(backend: VxlanBackend, netlink: FakeNetlink) -> None:
        backend.apply([added(1, 102), added(2, 103)])
        await netlink.settled(*by_vxlan(1, 102), *by_vxlan(2, 103))
        assert peer_counts(backend.report()) == ("vxlan", 2, 0)
        backend.apply([added(1, 104), LeaseRemoved(IPv4Network("11.0.2.0/24"))])
        await netlink.settled(*by_vxlan(1, 104))

    play(scenario, monkeypatch)


def test_leases_are_logged_and_the_port_probe_follows_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    followed: list[object] = []
    monkeypatch.setattr(PortProbe, "follow", lambda _, lease: followed.append(lease.subnet))
    monkeypatch.setattr(PortProbe, "forget", lambda _, subnet: followed.append(("forget", subnet)))
    first, second = IPv4Network("11.0.1.0/24"), IPv4Network("11.0.2.0/24")

    async def scenario(backend: VxlanBackend, netlink: FakeNetlink) -> None:
        backend.apply([added(1, 102), added(2, 103)])
        backend.apply([added(1, 102, mac="02:00"), LeaseRemoved(second)])
        await netlink.settled()

    caplog.set_level(logging.INFO, logger="flannelpy")
    play(scenario, monkeypatch)
    assert followed == [first, second, ("forget", first), ("forget", second)]
    assert [message for message in caplog.messages if message.startswith("Subnet")] == [
        "Subnet added: 11.0.1.0/24",
        "Subnet added: 11.0.2.0/24",
        "Subnet removed: 11.0.2.0/24",
    ]


def test_a_peer_without_a_mac_is_logged_and_its_entries_are_removed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(backend: VxlanBackend, netlink: FakeNetlink) -> None:
        backend.apply([added(1, 102), added(2, 103), added(3, 104)])
        await netlink.settled(*by_vxlan(1, 102), *by_vxlan(2, 103), *by_vxlan(3, 104))
        backend.apply([added(1, 102, mac="02:00"), LeaseRemoved(IPv4Network("11.0.2.0/24"))])
        await netlink.settled(*by_vxlan(3, 104))
        backend.apply([LeaseRemoved(IPv4Network("11.0.1.0/24"))])
        assert peer_counts(backend.report()) == ("vxlan", 1, 0)

    play(scenario, monkeypatch)
    assert [message for message in caplog.messages if message.startswith("Ignoring")] == [
        "Ignoring subnet 11.0.1.0/24: its BackendData has no VtepMAC of a host",
    ]


def test_peers_without_a_mac_are_one_log_line_and_one_more_if_a_lease_returns_to_that_state(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(backend: VxlanBackend, netlink: FakeNetlink) -> None:
        without_mac = [added(number, 100 + number, mac="02:00") for number in range(1, 6)]
        backend.apply([*without_mac, added(6, 106)])
        await netlink.settled(*by_vxlan(6, 106))
        backend.apply([added(1, 101)])
        await netlink.settled(*by_vxlan(1, 101), *by_vxlan(6, 106))
        backend.apply(without_mac[:1])
        await netlink.settled(*by_vxlan(6, 106))

    play(scenario, monkeypatch)
    cause = "its BackendData has no VtepMAC of a host"
    assert [message for message in caplog.messages if message.startswith("Ignoring")] == [
        f"Ignoring subnet 11.0.1.0/24, 11.0.2.0/24, 11.0.3.0/24 and 2 more: {cause}",
        f"Ignoring subnet 11.0.1.0/24: {cause}",
    ]


def test_of_two_peers_with_one_mac_the_earlier_keeps_its_entries(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(backend: VxlanBackend, netlink: FakeNetlink) -> None:
        backend.apply([added(1, 102), added(2, 103, mac="02:00:00:00:00:66"), added(3, 102)])
        await netlink.settled(*by_vxlan(1, 102), *by_vxlan(3, 102))
        changes = netlink.changes
        for _ in range(3):
            assert await backend.repair(netlink) == []
        assert netlink.changes == changes
        assert peer_counts(backend.report()) == ("vxlan", 2, 1)

    play(scenario, monkeypatch)
    assert [message for message in caplog.messages if message.startswith("Ignoring")] == [
        "Ignoring subnet 11.0.2.0/24 via 172.17.8.103: it has the VtepMAC 02:00:00:00:00:66 of 172.17.8.102"
    ]


@pytest.mark.parametrize("length", [23, 25, 32])
def test_of_two_leases_with_one_tunnel_address_the_earlier_one_keeps_it(
    length: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel knows one MAC for an address: the host of the later lease would get the packets of the other one."""
    earlier = added(2, 102).lease
    later = replace(added(2, 103).lease, subnet=IPv4Network(f"11.0.2.0/{length}"), created=earlier.created + 1)

    async def scenario(backend: VxlanBackend, netlink: FakeNetlink) -> None:
        backend.apply([LeaseAdded(later), LeaseAdded(earlier)])
        await netlink.settled(*by_vxlan(2, 102))
        backend.apply([LeaseRemoved(earlier.subnet)])
        backend.apply([LeaseAdded(earlier)])
        await netlink.settled(*by_vxlan(2, 102))

    play(scenario, monkeypatch)
    cause = "its first address is the tunnel address of 11.0.2.0/24"
    assert f"Ignoring subnet 11.0.2.0/{length} via 172.17.8.103: {cause}" in caplog.messages


def test_direct_routing_follows_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(backend: VxlanBackend, netlink: FakeNetlink) -> None:
        backend.apply([added(1, 102), added(2, 203)])
        await netlink.settled(direct(1, 102), direct(2, 203))
        assert backend.forwarding.unused == ("flannel.1",)
        for prefix_len, entries in ((25, by_vxlan(2, 203)), (24, (direct(2, 203),))):
            netlink.own_addresses[0] = Address(ETH1, EXTERNAL.address, prefix_len)
            assert await backend.repair(netlink) == []
            await netlink.settled(direct(1, 102), *entries)
            assert backend.forwarding.unused == (("flannel.1",) if prefix_len == 24 else ())

    play(scenario, monkeypatch, DirectRouting=True)


def test_without_direct_routing_every_peer_is_reached_by_vxlan(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(backend: VxlanBackend, netlink: FakeNetlink) -> None:
        backend.apply([added(1, 102)])
        await netlink.settled(*by_vxlan(1, 102))

    play(scenario, monkeypatch, DirectRouting=False)


def test_a_failed_repair_is_remembered_until_one_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is there again, but a foreign route to the network prevents the rest of the repair."""

    async def scenario(backend: VxlanBackend, netlink: FakeNetlink) -> None:
        looks = iter([["was removed"], [], [], []])
        tries = iter([HostError("rival"), HostError("rival"), None])

        async def flaws(self: Device, _: Netlink) -> list[str]:
            return next(looks)

        async def set_up(self: Device, _: Netlink) -> list[str]:
            if error := next(tries):
                raise error
            return []

        monkeypatch.setattr(Device, "flaws", flaws)
        monkeypatch.setattr(Device, "set_up", set_up)
        for _ in range(2):
            with pytest.raises(HostError, match="rival"):
                await backend.repair(netlink)
        assert await backend.repair(netlink) == ["flannel.1 was removed; restored"]
        assert await backend.repair(netlink) == []

    play(scenario, monkeypatch)


def test_the_port_is_the_same_on_all_hosts_and_the_kernel_chooses_the_source_port() -> None:
    backend = VxlanBackend(
        config.parse('{"Network":"11.0.0.0/16","Backend":{"Type":"vxlan","VNI":7,"Port":4789}}'), EXTERNAL, ALIAS
    )
    assert backend.datagrams == Datagrams("flannel.7", 4789, 0, accepts_local=False)
    assert (backend.device, backend.exclusive_resources) == ("flannel.7", ["VNI 7"])


def test_before_the_entries_are_added_the_kernel_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(backend: VxlanBackend, netlink: FakeNetlink) -> None:
        netlink.queries.clear()  # about the network, at the start
        assert await backend.repair(netlink) == []
        backend.apply([added(1, 102)])
        assert await backend.repair(netlink) == []
        assert netlink.queries == []
        await netlink.settled(*by_vxlan(1, 102))
        await asyncio.sleep(0.001)
        netlink.lose(*by_vxlan(1, 102))
        assert len(await backend.repair(netlink)) == 3
        assert netlink.queries == []  # the next check asks
        assert await backend.repair(netlink) == []
        assert netlink.queries != []

    play(scenario, monkeypatch)


def test_a_route_that_flanneld_may_have_left_is_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(backend: VxlanBackend, netlink: FakeNetlink) -> None:
        left = GatewayRoute(IPv4Network("11.0.8.0/24"), IPv4Address("172.17.8.108"), ETH1, protocol=3)
        asked_for = replace(direct(1, 108), protocol=3)
        netlink.hold(left)
        backend.apply([added(1, 102)])
        await netlink.settled(left, *by_vxlan(1, 102))
        await asyncio.sleep(0.001)
        netlink.hold(asked_for)
        for _ in range(3):
            assert await backend.repair(netlink) == []

    play(scenario, monkeypatch)
    [message] = [message for message in caplog.messages if "may be left" in message]
    assert message.startswith("Route 11.0.8.0/24 via 172.17.8.108 dev eth1 proto boot may be left from flanneld")
