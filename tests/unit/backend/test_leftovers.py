"""What is removed as ours, and what of it a start keeps; all else on the machine stays."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from support.fakes_machine import FakeMachine, direct, play
from support.fakes_netlink import ETH1

from flannelpy.backend.leftovers import Keep, Scope, marked, unmarked_leftovers, withdraw
from flannelpy.errors import HostError
from flannelpy.marks import ROUTE_PROTOCOL
from flannelpy.rtnetlink.entries import GatewayRoute
from flannelpy.rtnetlink.links import Address, Link
from flannelpy.rtnetlink.rules import ProhibitRule

NETWORK, OLD, FOREIGN = (IPv4Network(f"11.{number}.0.0/16") for number in (1, 2, 9))
ALIAS, FOREIGN_ALIAS = "flannelpy /run/flannel/subnet.env", "flannelpy /run/other/subnet.env"
SCOPE = Scope(ALIAS, frozenset([NETWORK, OLD]), frozenset([IPv4Interface("11.1.5.0/16")]))
TUN = Link(7, "flannel0", 1472, "tun", has_carrier=False, alias=ALIAS)
BOOT, STATIC = 3, 4


def route(destination: str, protocol: int = ROUTE_PROTOCOL, link_index: int = ETH1) -> GatewayRoute:
    return GatewayRoute(IPv4Network(destination), IPv4Address("172.17.8.102"), link_index, protocol=protocol)


def address(link: Link, text: str) -> Address:
    one = IPv4Interface(text)
    return Address(link.index, one.ip, one.network.prefixlen)


def everything(machine: FakeMachine) -> None:
    """Ours, a neighbouring daemon's, and other programs'."""
    machine.have(TUN, address(TUN, "11.1.5.0/16"))
    machine.have(Link(8, "flannel.2", 1450, "vxlan", alias=FOREIGN_ALIAS))
    machine.have(Link(9, "br0", 1500, "bridge", alias=ALIAS))
    machine.hold(route("11.1.7.0/24"), route("11.2.7.0/24"), route("11.9.7.0/24"), route("11.1.8.0/24", STATIC))
    machine.direct.append(direct(IPv4Network("11.2.9.0/24"), ETH1, ROUTE_PROTOCOL))
    machine.between = [
        ProhibitRule(NETWORK, FOREIGN),
        ProhibitRule(FOREIGN, OLD),
        ProhibitRule(FOREIGN, IPv4Network(0)),
    ]


def test_all_that_we_own_is_removed_and_named() -> None:
    async def scenario(machine: FakeMachine) -> None:
        everything(machine)
        assert await withdraw(machine, SCOPE) == [
            "route to 11.1.7.0/24 via 172.17.8.102",
            "route to 11.2.7.0/24 via 172.17.8.102",
            "route to 11.2.9.0/24",
            "device flannel0",
            f"rule against packets from {NETWORK} to {FOREIGN}",
            f"rule against packets from {FOREIGN} to {OLD}",
        ]
        assert await withdraw(machine, SCOPE) == []

    machine = play(scenario)
    assert machine.destinations == {"11.9.7.0/24", "11.1.8.0/24"}
    assert set(machine.there) == {"eth1", "flannel.2", "br0"}
    assert machine.between == [ProhibitRule(FOREIGN, IPv4Network(0))]


@pytest.mark.parametrize("keeps_routes", [True, False])
def test_a_start_keeps_what_its_backend_adopts(keeps_routes: bool) -> None:
    async def scenario(machine: FakeMachine) -> None:
        everything(machine)
        machine.hold(route("11.1.0.0/16"), route("10.0.0.0/8", STATIC, TUN.index))
        machine.have(TUN, address(TUN, "11.2.5.0/16"), address(TUN, "10.7.7.7/32"))
        removed = await withdraw(machine, SCOPE, Keep(NETWORK, "flannel0", keeps_routes))
        assert ("route to 11.1.7.0/24 via 172.17.8.102" in removed) is not keeps_routes
        assert "route to 11.2.7.0/24 via 172.17.8.102" in removed
        assert "device flannel0" not in removed
        assert machine.addresses_of("flannel0") == ["11.1.5.0", "10.7.7.7"]
        assert machine.between == [ProhibitRule(NETWORK, FOREIGN), ProhibitRule(FOREIGN, IPv4Network(0))]

    kept = {"11.1.0.0/16", "11.1.7.0/24"} if keeps_routes else {"11.1.0.0/16"}  # the latter by the device's address
    assert play(scenario).destinations == {*kept, "11.9.7.0/24", "11.1.8.0/24", "10.0.0.0/8"}


def test_routes_into_earlier_networks_are_removed_from_a_kept_device() -> None:
    async def scenario(machine: FakeMachine) -> None:
        machine.have(TUN, address(TUN, "11.1.5.0/16"))
        machine.hold(
            route("11.2.7.0/24", BOOT, TUN.index), route("11.1.7.0/24", BOOT, TUN.index), route("11.2.8.0/24", BOOT)
        )
        await withdraw(machine, SCOPE, Keep(NETWORK, "flannel0", routes=True))

    assert play(scenario).destinations == {"11.1.0.0/16", "11.1.7.0/24", "11.2.8.0/24"}


def test_a_kept_device_of_an_earlier_version_is_marked() -> None:
    async def scenario(machine: FakeMachine) -> None:
        unmarked = Link(7, "flannel0", 1472, "tun", has_carrier=False)
        machine.have(unmarked, address(unmarked, "11.1.5.0/16"))
        assert await withdraw(machine, SCOPE, Keep(NETWORK, "flannel0", routes=False)) == []
        assert machine.there["flannel0"].alias == ALIAS

    play(scenario)


@pytest.mark.parametrize(("alias", "is_refused"), [("", True), (ALIAS, False)])
def test_a_tun_device_that_a_flanneld_has_open_is_left_alone(alias: str, is_refused: bool) -> None:
    async def scenario(machine: FakeMachine) -> None:
        link = Link(7, "flannel0", 1472, "tun", has_carrier=True, alias=alias)
        machine.have(link, address(link, "11.1.5.0/16"))
        machine.hold(route("11.1.7.0/24"))
        if not is_refused:
            await withdraw(machine, SCOPE)
            return
        message = "another process, such as flanneld, has our device flannel0 open: stop that process first"
        with pytest.raises(HostError, match=f"^{re.escape(message)}$"):
            await withdraw(machine, SCOPE)

    machine = play(scenario)
    assert ("flannel0" in machine.there) is is_refused
    assert bool(machine.gateways) is is_refused


def test_no_process_can_have_a_vxlan_device_open() -> None:
    async def scenario(machine: FakeMachine) -> None:
        machine.have(Link(7, "flannel.1", 1450, "vxlan", has_carrier=True, alias=ALIAS))
        assert await withdraw(machine, SCOPE) == ["device flannel.1"]

    play(scenario)


@pytest.mark.parametrize("count", [0, 10, 11])
def test_foreign_routes_on_our_device_are_logged_before_its_removal(
    count: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(machine: FakeMachine) -> None:
        machine.have(TUN)
        for number in range(count):
            machine.hold(route(f"10.{number}.0.0/16", STATIC, TUN.index))
        machine.hold(route("11.1.8.0/24", STATIC, TUN.index), route("10.99.0.0/16", STATIC))
        await withdraw(machine, SCOPE)

    assert play(scenario).destinations == {"10.99.0.0/16"}
    assert len(caplog.messages) == bool(count)
    for message in caplog.messages:
        assert message.startswith("The removal of device flannel0 removes routes of other programs: 10.0.0.0/16 via")
        assert message.count("via") == 3
        assert message.endswith(f" and {count - 3} more")
        assert "11.1.8.0" not in message
        assert "10.99.0.0" not in message


def test_what_any_flannelpy_has_marked_is_listed() -> None:
    async def scenario(machine: FakeMachine) -> None:
        everything(machine)
        assert await marked(machine) == [
            f"device flannel0 ({ALIAS})",
            f"device flannel.2 ({FOREIGN_ALIAS})",
            "route to 11.1.7.0/24 via 172.17.8.102",
            "route to 11.2.7.0/24 via 172.17.8.102",
            "route to 11.9.7.0/24 via 172.17.8.102",
            "route to 11.2.9.0/24",
            *map(str, machine.between),
        ]

    play(scenario)


def test_what_earlier_versions_may_have_left_is_named_by_the_commands_that_remove_it() -> None:
    async def scenario(machine: FakeMachine) -> None:
        machine.hold(
            route("11.1.7.0/24", BOOT),
            route("11.1.5.0/25", BOOT),  # inside our own subnet
            route("11.1.0.0/16", BOOT),  # of the whole network: no lease has one
            route("11.1.8.0/24", STATIC),
            route("11.1.10.0/24"),
            route("11.9.7.0/24", BOOT),
            route("11.2.7.0/24", BOOT),
        )
        machine.direct.append(direct(IPv4Network("11.1.6.0/24"), ETH1, BOOT))
        machine.unmarked = [ProhibitRule(NETWORK, FOREIGN), ProhibitRule(FOREIGN, OLD), ProhibitRule(FOREIGN, FOREIGN)]
        assert await unmarked_leftovers(machine, [OLD, NETWORK], IPv4Network("11.1.5.0/24")) == [
            "ip route del 11.1.7.0/24 via 172.17.8.102 dev eth1 proto boot",
            "ip route del 11.2.7.0/24 via 172.17.8.102 dev eth1 proto boot",
            f"ip rule del from {NETWORK} to {FOREIGN} prohibit",
            f"ip rule del from {FOREIGN} to {OLD} prohibit",
        ]
        assert len(await unmarked_leftovers(machine, [NETWORK])) == 3  # without a subnet, the one inside it too
        assert await unmarked_leftovers(machine, []) == []

    assert len(play(scenario).gateways) == 7
