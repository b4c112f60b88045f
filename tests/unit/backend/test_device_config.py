"""The tunnel devices: their settings, what is restored, and which foreign devices are rejected."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from support.fakes_machine import FakeMachine, direct, play
from support.fakes_netlink import ETH1, EXTERNAL

from flannelpy.backend.device_config import DeviceConfig
from flannelpy.backend.udp import device as tun_device
from flannelpy.backend.vxlan.device import Device as VxlanDevice
from flannelpy.datapath.vxlan_settings import Settings
from flannelpy.errors import HostError
from flannelpy.marks import ROUTE_PROTOCOL
from flannelpy.rtnetlink.entries import GatewayRoute
from flannelpy.rtnetlink.links import Address, Link, Vxlan

NETWORK, OTHER = IPv4Network("11.0.0.0/16"), IPv4Network("11.1.0.0/16")
CONFIG = DeviceConfig(NETWORK, IPv4Address("11.0.59.0"), 1450, 1000)
ALIAS, FOREIGN_ALIAS = "flannelpy /run/flannel/subnet.env", "flannelpy /run/other/subnet.env"
MAC = "02:00:00:00:00:01"
SETTINGS = Settings(1, 8472, 1450, learning=False, gbp=False, direct_routing=False)
VXLAN = Vxlan(1, 8472, EXTERNAL.address, ETH1)
INDEX = 7
OURS = Link(INDEX, "flannel.1", 1450, "vxlan", mac=MAC, vxlan=VXLAN, alias=ALIAS)
OWN_ADDRESS = Address(INDEX, CONFIG.address, 16)


def address(text: str, prefix_len: int = 16, peer: str = "") -> Address:
    return Address(INDEX, IPv4Address(text), prefix_len, IPv4Address(peer) if peer else None)


class FakeTun:
    """A TUN device of the machine; each has the next name."""

    machine: FakeMachine
    opened: list[FakeTun]
    gives = (True, False)

    def __init__(self) -> None:
        self.name = f"flannel{len(self.opened)}"
        self.asked: list[tuple[bool, bool]] = []
        self.is_open = True
        self.accepts_own_address = False
        self.machine.have(Link(INDEX + len(self.opened), self.name, 1500, "tun", is_up=False))
        self.opened.append(self)

    def offload(self, *, tso: bool, uso: bool) -> tuple[bool, bool]:
        self.asked.append((tso, uso))
        return self.gives

    def accept_own_address(self) -> None:
        self.accepts_own_address = True

    def persist(self, *, on: bool) -> None:
        assert not on
        assert self.is_open

    def close(self) -> None:
        self.is_open = False
        if self.name in self.machine.there:
            self.machine.lose_link(self.name)


def tun(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> tun_device.Device:
    monkeypatch.setattr(FakeTun, "machine", machine, raising=False)
    monkeypatch.setattr(FakeTun, "opened", [], raising=False)
    monkeypatch.setattr(tun_device, "Tun", FakeTun)
    return tun_device.Device(CONFIG, ALIAS)


def vxlan(device_config: DeviceConfig = CONFIG) -> VxlanDevice:
    return VxlanDevice(SETTINGS, EXTERNAL, MAC, device_config, ALIAS)


# What both have


def test_a_tun_device_gets_all_that_it_has_to_have(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(machine: FakeMachine) -> None:
        device = tun(machine, monkeypatch)
        assert await device.set_up(machine) == []
        link, flaws = await device.flaws(machine)
        assert link == Link(INDEX, "flannel0", 1450, "tun", alias=ALIAS)
        assert flaws == []
        assert machine.addresses_of("flannel0") == ["11.0.59.0"]
        assert FakeTun.opened[0].accepts_own_address

    play(scenario)


def test_what_is_no_part_of_the_network_may_be_on_the_device() -> None:
    async def scenario(machine: FakeMachine) -> None:
        machine.have(OURS, OWN_ADDRESS, address("10.9.9.9"), address("12.1.1.1", 32))
        machine.own_addresses.append(Address(ETH1, IPv4Address("11.0.7.7"), 32))  # on another interface
        device = vxlan()
        assert await device.flaws(machine) == []
        assert await device.set_up(machine) == []

    assert play(scenario).addresses_of("flannel.1") == ["11.0.59.0", "10.9.9.9", "12.1.1.1"]


def down(machine: FakeMachine) -> None:
    machine.change("flannel.1", is_up=False)


def mtu(machine: FakeMachine) -> None:
    machine.change("flannel.1", mtu=1400)


def mac(machine: FakeMachine) -> None:
    machine.change("flannel.1", mac="02:00:00:00:00:99")


def alias(machine: FakeMachine) -> None:
    machine.change("flannel.1", alias="")


def lost_address(machine: FakeMachine) -> None:
    machine.own_addresses.remove(OWN_ADDRESS)


def lost_route(machine: FakeMachine) -> None:
    machine.direct.remove(direct(NETWORK, INDEX))


def more_addresses(machine: FakeMachine) -> None:
    inside, leading_inside = address("11.0.7.7", 32), address("10.9.9.9", 24, peer="11.0.9.9")
    machine.have(machine.there["flannel.1"], inside, leading_inside, address("11.0.59.0", 24))


@pytest.mark.parametrize(
    ("disturb", "flaws"),
    [
        (down, ["was set down"]),
        (mtu, ["got MTU 1400 instead of 1450"]),
        (mac, [f"got MAC 02:00:00:00:00:99 instead of {MAC}"]),
        (alias, [f'got the alias "" instead of "{ALIAS}"']),
        (lost_address, ["lost its address 11.0.59.0/16"]),
        (lost_route, ["lost the route to 11.0.0.0/16"]),
        (more_addresses, [f"got the address {one}" for one in ("11.0.7.7", "10.9.9.9", "11.0.59.0")]),
    ],
)
def test_what_another_program_changes_is_a_flaw_and_restored(
    disturb: Callable[[FakeMachine], None], flaws: list[str]
) -> None:
    async def scenario(machine: FakeMachine) -> None:
        device = vxlan()
        machine.have(OURS, OWN_ADDRESS)
        assert await device.set_up(machine) == []
        assert await device.flaws(machine) == []
        disturb(machine)
        assert await device.flaws(machine) == flaws
        assert await device.set_up(machine) == [flaw for flaw in flaws if "got the address" in flaw]
        assert await device.flaws(machine) == []
        assert machine.there["flannel.1"].index == INDEX  # the same device

    assert play(scenario).addresses_of("flannel.1") == ["11.0.59.0"]


# The TUN device


def test_a_removed_tun_device_is_recreated_with_its_offloads(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(machine: FakeMachine) -> None:
        device = tun(machine, monkeypatch)
        assert device.offload(tso=True, uso=True) == (True, False)
        await device.set_up(machine)
        machine.lose_link("flannel0")
        assert await device.flaws(machine) == (None, ["was removed"])
        with pytest.raises(HostError, match=r"^flannel0 is gone$"):
            await device.set_up(machine)
        await device.recreate(machine)
        assert (device.tun.name, FakeTun.opened[0].is_open) == ("flannel1", False)
        assert FakeTun.opened[1].asked == [(True, False)]  # what the kernel gave, not what was asked for
        assert (await device.flaws(machine))[1] == []

    play(scenario)


def test_a_renamed_tun_device_with_another_alias_is_marked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(machine: FakeMachine) -> None:
        device = tun(machine, monkeypatch)
        await device.set_up(machine)
        machine.change("flannel0", alias="the tunnel")
        assert (await device.flaws(machine))[1] == [f'got the alias "the tunnel" instead of "{ALIAS}"']
        await device.set_up(machine)
        assert machine.there["flannel0"].alias == ALIAS

    play(scenario)


def test_foreign_routes_that_a_tun_device_takes_along_are_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(machine: FakeMachine) -> None:
        device = tun(machine, monkeypatch)
        await device.set_up(machine)
        machine.hold(GatewayRoute(IPv4Network("10.7.0.0/16"), IPv4Address("11.0.3.1"), INDEX, protocol=4))
        await device.recreate(machine)

    play(scenario)
    assert caplog.messages == [
        "The removal of device flannel0 removes routes of other programs: 10.7.0.0/16 via 11.0.3.1 dev flannel0 proto"
        " static"
    ]


# The VXLAN device


def test_a_vxlan_device_is_added_once() -> None:
    async def scenario(machine: FakeMachine) -> None:
        assert await vxlan().flaws(machine) == ["was removed"]
        with pytest.raises(HostError, match=r"^flannel\.1 is gone$"):
            await vxlan().link(machine)
        await vxlan().set_up(machine)
        first = machine.there["flannel.1"]
        assert (first.vxlan, first.mac, first.alias, first.mtu, first.is_up) == (VXLAN, MAC, ALIAS, 1450, True)
        await vxlan().set_up(machine)  # by the next run
        assert machine.there["flannel.1"] == first == await vxlan().link(machine)

    assert play(scenario).addresses_of("flannel.1") == ["11.0.59.0"]


def test_without_the_external_interface_there_is_no_vxlan_device() -> None:
    async def scenario(machine: FakeMachine) -> None:
        del machine.there["eth1"]
        with pytest.raises(HostError, match=r"^eth1 is gone: no flannel\.1 without it$"):
            await vxlan().set_up(machine)
        assert machine.there == {}

    play(scenario)


@pytest.mark.parametrize(
    "other", [replace(VXLAN, port=8473), replace(VXLAN, lower_index=9), replace(VXLAN, learning=True)]
)
def test_a_vxlan_device_with_other_settings_is_recreated(other: Vxlan, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(machine: FakeMachine) -> None:
        machine.have(replace(OURS, vxlan=other), OWN_ADDRESS)
        machine.hold(GatewayRoute(IPv4Network("10.7.0.0/16"), IPv4Address("11.0.3.1"), INDEX, protocol=4))
        assert await vxlan().flaws(machine) == ["got other settings"]
        await vxlan().set_up(machine)
        assert machine.there["flannel.1"].vxlan == VXLAN
        assert machine.there["flannel.1"].index != INDEX

    play(scenario)
    assert caplog.messages == [
        "The removal of device flannel.1 removes routes of other programs: 10.7.0.0/16 via 11.0.3.1 dev flannel.1"
        " proto static",
        "Removed device flannel.1: it had other settings; adding it again",
    ]


def test_our_vxlan_device_under_another_name_is_removed(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(machine: FakeMachine) -> None:
        machine.have(replace(OURS, name="vx0"), OWN_ADDRESS)
        machine.have(Link(20, "br0", 1500, "bridge", alias=ALIAS))  # an alias of ours makes no other kind ours
        machine.have(replace(OURS, index=21, name="vx1", alias=FOREIGN_ALIAS))
        await vxlan().set_up(machine)
        assert set(machine.there) == {"eth1", "br0", "vx1", "flannel.1"}

    play(scenario)
    assert caplog.messages == ["Removed device vx0: it is our flannel.1 under another name"]


@pytest.mark.parametrize(
    ("link", "addresses"),
    [
        (replace(OURS, alias=""), [OWN_ADDRESS]),
        (replace(OURS, alias="", mac="02:00:00:00:00:99"), [OWN_ADDRESS]),
        (replace(OURS, alias=""), []),
        (OURS, [OWN_ADDRESS, address("11.0.7.7")]),
    ],
)
def test_what_an_earlier_run_left_is_adopted(link: Link, addresses: list[Address]) -> None:
    async def scenario(machine: FakeMachine) -> None:
        machine.have(link, *addresses)
        await vxlan().set_up(machine)
        adopted = machine.there["flannel.1"]
        assert (adopted.index, adopted.alias, adopted.mac) == (INDEX, ALIAS, MAC)

    assert play(scenario).addresses_of("flannel.1") == ["11.0.59.0"]


@pytest.mark.parametrize(
    ("link", "addresses", "message"),
    [
        (
            Link(INDEX, "flannel.1", 1500, "bridge"),
            [],
            "is not a VXLAN device; remove it, or choose another Backend.VNI",
        ),
        (replace(OURS, alias=FOREIGN_ALIAS), [OWN_ADDRESS], f"belongs to another daemon (alias: {FOREIGN_ALIAS});"),
        (replace(OURS, alias="", mac="02:00:00:00:00:99"), [], f"has neither our alias nor our MAC {MAC};"),
        (replace(OURS, alias=""), [address("10.1.5.0")], "flannel.1 has 10.1.5.0, of another overlay;"),
        (
            replace(OURS, alias=""),
            [address("11.0.60.0"), address("10.1.5.0")],
            "it has 11.0.60.0/16, 10.1.5.0/16 instead of 11.0.59.0/16;",
        ),
    ],
)
def test_a_foreign_device_is_rejected_and_stays(link: Link, addresses: list[Address], message: str) -> None:
    async def scenario(machine: FakeMachine) -> None:
        machine.have(link, *addresses)
        before = list(machine.own_addresses)
        with pytest.raises(HostError, match=re.escape(message)):
            await vxlan().set_up(machine)
        assert (machine.there["flannel.1"], machine.own_addresses) == (link, before)

    play(scenario)


def test_the_device_that_we_set_up_stays_ours_after_any_change() -> None:
    async def scenario(machine: FakeMachine) -> None:
        device = vxlan()
        await device.set_up(machine)
        index = machine.there["flannel.1"].index
        machine.change("flannel.1", alias=FOREIGN_ALIAS, mac="02:00:00:00:00:99")
        await device.set_up(machine)
        assert (machine.there["flannel.1"].index, machine.there["flannel.1"].alias) == (index, ALIAS)
        machine.change("flannel.1", alias=FOREIGN_ALIAS)
        with pytest.raises(HostError, match="belongs to another daemon"):
            await vxlan().set_up(machine)  # as another run that did not set it up

    play(scenario)


def test_a_route_of_ours_serves_as_the_kernels_own() -> None:
    async def scenario(machine: FakeMachine) -> None:
        device = vxlan()
        machine.have(OURS, OWN_ADDRESS)
        machine.direct[-1] = direct(NETWORK, INDEX, ROUTE_PROTOCOL)
        assert await device.flaws(machine) == []
        machine.direct[-1] = direct(OTHER, INDEX)
        assert await device.flaws(machine) == ["lost the route to 11.0.0.0/16"]
        machine.change("flannel.1", is_up=False)  # which takes all routes away: one flaw says it
        assert await device.flaws(machine) == ["was set down"]

    play(scenario)
