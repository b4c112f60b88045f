"""The kernel's entries are made those that are wanted: as units, only what differs, and what others did is told."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv4Network

import pytest
from fakes_netlink import FLANNEL1, FakeNetlink

from flannelpy.backend import forwarding
from flannelpy.backend.forwarding import Forwarding
from flannelpy.errors import HostError
from flannelpy.linux.entries import Entry, Forward, Gateway, Neighbour, Unit
from flannelpy.linux.netlink import Netlink


def unit(number: int, host: int = 102, mac: int | None = None) -> Unit:
    """What a VXLAN host with that subnet, public IP and MAC needs."""
    tunnel_address = IPv4Address(f"11.{number // 256}.{number % 256}.0")
    address = f"02:00:00:00:00:{number % 256 if mac is None else mac:02x}"
    return (
        Forward(address, IPv4Address(f"172.17.8.{host}"), FLANNEL1),
        Neighbour(tunnel_address, address, FLANNEL1),
        Gateway(IPv4Network(f"{tunnel_address}/24"), tunnel_address, FLANNEL1, is_onlink=True),
    )


class World:
    """A kernel, and what is wanted of it."""

    def __init__(self) -> None:
        self.netlink = FakeNetlink()
        self.units: dict[IPv4Network, Unit] = {}
        self.forwarding = Forwarding(self.wanted, self.present)

    async def wanted(self, _: Netlink) -> dict[IPv4Network, Unit]:
        return dict(self.units)

    async def present(self, _: Netlink) -> Sequence[Entry]:
        return list(self.netlink.entries.values())

    def want(self, *units: Unit) -> None:
        gateways = [entry for unit in units for entry in unit if isinstance(entry, Gateway)]
        self.units = {gateway.destination: unit for gateway, unit in zip(gateways, units, strict=True)}
        self.forwarding.changed()

    async def settled(self) -> None:
        await self.netlink.settled(*(entry for unit in self.units.values() for entry in unit))

    async def repair(self) -> list[str]:
        return await self.forwarding.repair(self.netlink)


def play(scenario: Callable[[World], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "_RETRY_SECONDS", 0.001)

    async def whole() -> None:
        world = World()
        monkeypatch.setattr(forwarding, "Netlink", lambda: world.netlink)
        task = asyncio.create_task(world.forwarding.run())
        await scenario(world)
        task.cancel()

    asyncio.run(whole())


def test_only_what_differs_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        world.netlink.hold(*unit(1), *unit(2), *unit(9))
        world.want(unit(1), unit(2), unit(3))
        await world.settled()
        assert world.netlink.changes == 6  # one unit came, one went
        world.want(unit(1), unit(2), unit(3))
        await asyncio.sleep(0.01)
        assert await world.repair() == []
        assert world.netlink.changes == 6

    play(scenario, monkeypatch)


def test_a_host_that_gets_another_public_ip_or_mac_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        world.want(unit(1), unit(2))
        await world.settled()
        for changed in (unit(1, host=199), unit(1, mac=200)):
            world.want(changed, unit(2))
            await world.settled()
        assert await world.repair() == []

    play(scenario, monkeypatch)


def test_two_subnets_of_one_host_share_an_entry_until_both_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        for units in ((unit(1, mac=1), unit(2, mac=1)), (unit(2, mac=1),), ()):
            world.want(*units)
            await world.settled()

    play(scenario, monkeypatch)


def test_before_the_leases_are_known_nothing_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        world.netlink.hold(*unit(1))
        assert await world.repair() == []
        assert world.netlink.changes == 0

    play(scenario, monkeypatch)


def test_what_others_take_bend_and_add_is_put_right_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        world.want(unit(1), unit(2))
        await world.settled()
        forward, neighbour, gateway = unit(1)
        del world.netlink.entries[neighbour.key]
        bent = Gateway(IPv4Network("11.0.1.0/24"), IPv4Address("172.17.8.7"), 2)
        foreign = Gateway(IPv4Network("11.0.77.0/24"), IPv4Address("172.17.8.7"), 2)
        world.netlink.hold(bent, foreign)
        assert await world.repair() == [
            f"{neighbour} was lost: put right",
            f"{gateway} was lost: put right",
            f"{foreign} leads to no host: removed",
        ]
        await world.settled()
        assert await world.repair() == []
        assert str(forward) == "forwarding of 02:00:00:00:00:01 to 172.17.8.102"

    play(scenario, monkeypatch)


def test_a_subnet_that_is_reached_another_way_is_no_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its host came to our link, and was looked at before anybody said so."""

    async def scenario(world: World) -> None:
        world.want(unit(1), unit(2))
        await world.settled()
        subnet = IPv4Network("11.0.1.0/24")
        world.units[subnet] = (Gateway(subnet, IPv4Address("172.17.8.102"), 2),)
        assert await world.repair() == []
        await world.settled()

    play(scenario, monkeypatch)


def test_many_that_are_lost_are_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        world.want(*map(unit, range(100)))
        await world.settled()
        world.netlink.entries.clear()
        [told] = await world.repair()
        assert told.startswith("300 entries, such as the ")
        assert told.endswith(": each was lost: put right")

    play(scenario, monkeypatch)


def test_a_unit_that_cannot_be_put_leaves_nothing_behind_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        *_, gateway = unit(2, mac=1)
        world.netlink.refused = {gateway: errno.ENETDOWN}
        world.want(unit(1), unit(2, mac=1), unit(3))
        # What the second shares with the first stays.
        await world.netlink.settled(*unit(1), *unit(3))
        async with asyncio.timeout(5):
            while not caplog.messages:  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0)
        await asyncio.sleep(0.05)  # it has been tried many times since
        assert caplog.messages == [f"Failed to lead packets to other hosts: cannot put the {gateway}: Network is down"]
        world.netlink.refused = {}
        await world.settled()

    play(scenario, monkeypatch)


def test_a_lease_of_which_the_kernel_wants_to_know_nothing_is_said_once_and_troubles_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        *_, gateway = unit(2)
        world.netlink.refused = {gateway: errno.EINVAL}
        world.want(unit(1), unit(2))
        await world.netlink.settled(*unit(1))
        changes = world.netlink.changes
        for _ in range(3):
            assert await world.repair() == []
        assert world.netlink.changes == changes, "nothing for anybody to look at"
        world.want(unit(1), unit(2, mac=9), unit(3))
        await world.netlink.settled(*unit(1), *unit(3))
        world.netlink.refused = {}
        world.want(unit(1), unit(2), unit(3))
        await world.settled()

    play(scenario, monkeypatch)
    gateway = unit(2)[-1]
    told = f"Ignoring a lease that cannot be: cannot put the {gateway}: Invalid argument"
    assert caplog.messages == [told, told]  # two units that differ by a MAC


def test_a_route_beside_ours_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may have two of one destination, and takes the first."""

    async def scenario(world: World) -> None:
        world.want(unit(1))
        await world.settled()
        rival = Gateway(IPv4Network("11.0.1.0/24"), IPv4Address("172.17.8.7"), 2)
        present = world.present

        async def both(netlink: Netlink) -> Sequence[Entry]:
            return [rival, *await present(netlink)]

        world.forwarding._list = both
        assert await world.repair() == [f"{rival} leads to no host: removed"]

    play(scenario, monkeypatch)


def test_while_it_cannot_be_put_right_that_is_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        world.want(unit(1))
        await world.settled()
        forward, *_ = unit(1)
        del world.netlink.entries[forward.key]
        world.netlink.refused = {forward: errno.ENETDOWN}
        with pytest.raises(HostError, match="cannot put the forwarding of"):
            await world.repair()

    play(scenario, monkeypatch)
