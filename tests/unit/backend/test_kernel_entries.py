"""The kernel's entries are made those that are wanted, and routes of other programs are left alone."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from support.fakes_netlink import FLANNEL1, FakeNetlink

from flannelpy.backend import kernel_entries
from flannelpy.backend.kernel_entries import EntryReconciler
from flannelpy.errors import HostError
from flannelpy.linux.netlink.client import Netlink
from flannelpy.rtnetlink.entries import Entry, FdbEntry, GatewayRoute, Identity, Neighbour, PeerEntries


def unit(number: int, host: int = 102, mac: int | None = None) -> PeerEntries:
    """What a VXLAN host with that subnet, public IP and MAC needs."""
    tunnel_address = IPv4Address(f"11.{number // 256}.{number % 256}.0")
    address = f"02:00:00:00:00:{number % 256 if mac is None else mac:02x}"
    return (
        FdbEntry(address, IPv4Address(f"172.17.8.{host}"), FLANNEL1),
        Neighbour(tunnel_address, address, FLANNEL1),
        GatewayRoute(IPv4Network(f"{tunnel_address}/24"), tunnel_address, FLANNEL1, is_onlink=True),
    )


NETWORK = IPv4Network("11.0.0.0/16")
#: Of a route that an operator or an earlier version added.
BOOT, STATIC, BIRD, DHCP = 3, 4, 12, 16


class World:
    """A kernel, and what is wanted of it."""

    def __init__(self, own_link: int) -> None:
        self.netlink = FakeNetlink()
        self.units: dict[IPv4Network, PeerEntries] = {}
        self.own_link = own_link
        self.reconciler = EntryReconciler(NETWORK, self.wanted, self.link)

    async def wanted(self, _: Netlink) -> dict[IPv4Network, PeerEntries]:
        return self.units

    async def link(self, _: Netlink) -> int:
        return self.own_link

    def want(self, *units: PeerEntries) -> None:
        gateways = [entry for unit in units for entry in unit if isinstance(entry, GatewayRoute)]
        self.units = {gateway.destination: unit for gateway, unit in zip(gateways, units, strict=True)}
        self.reconciler.changed()

    async def settled(self) -> None:
        await self.netlink.settled(*(entry for unit in self.units.values() for entry in unit))
        await self.idle()

    async def idle(self) -> None:
        """Return when the reconciler has carried everything over."""
        await asyncio.sleep(0.001)
        async with self.reconciler.lock:
            pass

    async def repair(self) -> list[str]:
        return await self.reconciler.repair(self.netlink)


def play(
    scenario: Callable[[World], Awaitable[None]], monkeypatch: pytest.MonkeyPatch, own_link: int = FLANNEL1
) -> None:
    monkeypatch.setattr(kernel_entries, "_RETRY_SECONDS", 0.001)

    async def whole() -> None:
        world = World(own_link)
        monkeypatch.setattr(kernel_entries, "Netlink", lambda: world.netlink)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(world.reconciler.run())
            await scenario(world)
            assert not task.done()
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


def test_what_another_program_removes_is_restored_and_what_it_adds_on_our_device_is_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(world: World) -> None:
        world.want(unit(1), unit(2))
        await world.settled()
        forward, neighbour, gateway = unit(1)
        world.netlink.lose(neighbour, gateway)
        bent = GatewayRoute(IPv4Network("11.0.1.0/24"), IPv4Address("172.17.8.7"), FLANNEL1, protocol=BIRD)
        added = GatewayRoute(IPv4Network("11.0.77.0/24"), IPv4Address("172.17.8.7"), FLANNEL1, protocol=STATIC)
        marked = GatewayRoute(IPv4Network("11.0.78.0/24"), IPv4Address("172.17.8.7"), 2)
        world.netlink.hold(bent, added, marked)
        assert await world.repair() == [
            f"The {neighbour} was removed by another program; restored",
            f"The {gateway} was removed by another program; restored",
            f"The {added} leads to no peer; removed",
            f"The {marked} leads to no peer; removed",
        ]
        await world.settled()
        assert await world.repair() == []
        assert str(forward) == "forwarding of 02:00:00:00:00:01 to 172.17.8.102"

    play(scenario, monkeypatch)


def by_gateway(number: int, host: int, protocol: int = 85, link_index: int = 2) -> GatewayRoute:
    """A route to such a subnet by a host on the link."""
    return GatewayRoute(
        IPv4Network(f"11.0.{number}.0/24"), IPv4Address(f"172.17.8.{host}"), link_index, protocol=protocol
    )


@pytest.mark.parametrize(
    "foreign",
    [
        by_gateway(77, 103, BOOT),
        by_gateway(77, 103, STATIC),
        GatewayRoute(IPv4Network("11.0.0.0/16"), IPv4Address("172.17.8.103"), 2, protocol=DHCP),
        GatewayRoute(IPv4Network("0.0.0.0/0"), IPv4Address("172.17.8.1"), 2, protocol=BOOT),
        GatewayRoute(IPv4Network("11.1.7.0/24"), IPv4Address("172.17.8.103"), 2),  # marked, in another network
        GatewayRoute(IPv4Network("11.1.7.0/24"), IPv4Address("172.17.8.103"), FLANNEL1, protocol=STATIC),
        GatewayRoute(IPv4Network("10.0.0.0/8"), IPv4Address("172.17.8.103"), FLANNEL1, protocol=BOOT),
    ],
)
@pytest.mark.parametrize("own_link", [0, FLANNEL1])
def test_what_is_not_ours_is_never_touched(
    monkeypatch: pytest.MonkeyPatch, foreign: GatewayRoute, own_link: int
) -> None:
    async def scenario(world: World) -> None:
        ours = by_gateway(1, 102)
        world.netlink.hold(foreign, by_gateway(9, 109))
        world.want((ours,))
        await world.netlink.settled(foreign, ours)
        await world.idle()
        assert await world.repair() == []
        world.want()
        await world.netlink.settled(foreign)
        await world.idle()
        assert await world.repair() == []
        assert world.netlink.gateways == [foreign]

    play(scenario, monkeypatch, own_link)


@pytest.mark.parametrize("protocol", [BOOT, STATIC, BIRD, DHCP, 9])
@pytest.mark.parametrize("is_there_first", [True, False])
def test_a_foreign_route_in_the_way_stays_and_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, protocol: int, is_there_first: bool
) -> None:
    """Its subnet is unreachable, the others are not; when it goes, ours comes."""
    foreign = by_gateway(2, 200, protocol)
    ours, other = by_gateway(2, 102), by_gateway(3, 103)

    async def scenario(world: World) -> None:
        if is_there_first:
            world.netlink.hold(foreign)
        world.want((ours,), (other,))
        if not is_there_first:
            await world.settled()
            world.netlink.lose(ours)
            world.netlink.hold(foreign)
            assert await world.repair() == []
        await world.netlink.settled(foreign, other)
        await world.idle()
        changes = world.netlink.changes
        for _ in range(3):
            assert await world.repair() == []
            world.want((ours,), (other,))
            await world.idle()
        assert world.netlink.changes == changes
        assert set(world.reconciler.unreachable) == set(world.reconciler.blocked) == {ours.destination}
        world.netlink.lose(foreign)
        assert await world.repair() == []
        await world.settled()
        assert not world.reconciler.unreachable

    play(scenario, monkeypatch, 0)
    name = {BOOT: "boot", STATIC: "static", BIRD: "bird", DHCP: "dhcp", 9: "ra"}[protocol]
    text = f"11.0.2.0/24 via 172.17.8.200 dev eth1 proto {name}"
    assert caplog.messages == [
        f"Subnet 11.0.2.0/24 is unreachable: flannelpy leaves the route {text} alone, which another program added; "
        f"to remove it: ip route del {text}"
    ]


def test_a_blocked_subnet_gets_no_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        foreign = by_gateway(1, 200, STATIC)
        world.netlink.hold(foreign)
        world.want(unit(1, mac=2), unit(2))  # the MAC, and so the FDB entry, is that of the other subnet
        await world.netlink.settled(foreign, *unit(2))
        await world.idle()
        assert await world.repair() == []
        await world.netlink.settled(foreign, *unit(2))

    play(scenario, monkeypatch)


def test_many_blocked_subnets_are_few_log_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        world.netlink.hold(*(by_gateway(number, 200, STATIC) for number in range(100)))
        world.want(*((by_gateway(number, 102),) for number in range(100)))
        await world.idle()
        assert len(world.reconciler.blocked) == 100

    play(scenario, monkeypatch, 0)
    [line] = caplog.messages
    assert line.startswith("Subnets 11.0.0.0/24, 11.0.1.0/24, 11.0.2.0/24 and 97 more are unreachable: ")
    assert line.endswith("; to remove it: ip route del 11.0.0.0/24 via 172.17.8.200 dev eth1 proto static")


def test_what_an_earlier_version_added_is_adopted_without_a_gap(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    async def scenario(world: World) -> None:
        left = [by_gateway(number, 100 + number, BOOT) for number in range(1, 4)]
        world.netlink.hold(*left)
        lengths: list[int] = []
        remove = world.netlink.remove

        async def remember(unwanted: Sequence[Identity]) -> None:
            lengths.append(len(world.netlink.gateways))
            await remove(unwanted)

        monkeypatch.setattr(world.netlink, "remove", remember)
        world.want(*((by_gateway(number, 100 + number),) for number in (1, 2)))
        await world.netlink.settled(by_gateway(1, 101), by_gateway(2, 102), left[2])
        await world.idle()
        assert lengths[0] == 5, "appended before anything was removed"
        assert await world.repair() == []

    play(scenario, monkeypatch, 0)
    assert caplog.messages == ["Adopted 2 routes that flanneld or an earlier version of flannelpy added"]


@pytest.mark.parametrize("protocol", [STATIC, BIRD, 186, 200])
def test_a_foreign_route_that_leads_where_the_lease_asks_counts_and_stays(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, protocol: int
) -> None:
    async def scenario(world: World) -> None:
        equivalent = by_gateway(1, 101, protocol)
        world.netlink.hold(equivalent)
        world.want((by_gateway(1, 101),), (by_gateway(2, 102),))
        await world.netlink.settled(equivalent, by_gateway(2, 102))
        await world.idle()
        assert await world.repair() == []
        assert not world.reconciler.unreachable
        world.want((by_gateway(2, 102),))
        await world.idle()
        assert await world.repair() == []
        assert world.netlink.gateways == [equivalent, by_gateway(2, 102)]

    play(scenario, monkeypatch, 0)
    assert caplog.messages == []


def test_a_foreign_route_in_place_of_ours_is_no_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was restored, so the log reports no repair and none is counted."""

    async def scenario(world: World) -> None:
        world.want((by_gateway(1, 101),), (by_gateway(2, 102),))
        await world.settled()
        equivalent = by_gateway(1, 101, STATIC)
        world.netlink.lose(by_gateway(1, 101))
        world.netlink.hold(equivalent)
        for _ in range(2):
            assert await world.repair() == []
        assert set(world.netlink.gateways) == {equivalent, by_gateway(2, 102)}
        assert not world.reconciler.unreachable

    play(scenario, monkeypatch, 0)


def test_a_new_next_hop_is_added_before_the_old_one_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        world.want((by_gateway(1, 101),))
        await world.settled()
        remove = world.netlink.remove

        async def check(unwanted: Sequence[Identity]) -> None:
            assert not unwanted or by_gateway(1, 111) in world.netlink.gateways
            await remove(unwanted)

        monkeypatch.setattr(world.netlink, "remove", check)
        world.want((by_gateway(1, 111),))
        await world.settled()

    play(scenario, monkeypatch, 0)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        (1, "was removed by the kernel, because its link was down; restored"),
        (2, "was removed by the kernel, because its link was down; restored"),
        (0, "was removed by another program; restored"),
    ],
)
def test_a_route_that_went_with_its_link_is_no_other_programs_doing(
    monkeypatch: pytest.MonkeyPatch, changes: int, cause: str
) -> None:
    async def scenario(world: World) -> None:
        world.want(unit(1))
        await world.settled()
        _, neighbour, gateway = unit(1)
        assert await world.repair() == []
        for _ in range(2):
            link = world.netlink.there["flannel.1"]
            world.netlink.there["flannel.1"] = replace(link, carrier_changes=link.carrier_changes + changes)
            world.netlink.lose(neighbour, gateway)
            assert sorted(await world.repair()) == sorted(
                [f"The {gateway} {cause}", f"The {neighbour} was removed by another program; restored"]
            )
        world.netlink.lose(gateway)  # long after the link is up again
        assert await world.repair() == [f"The {gateway} was removed by another program; restored"]

    play(scenario, monkeypatch)


def test_a_subnet_that_is_reached_another_way_is_no_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer moved to our link, and a check ran before the notification."""

    async def scenario(world: World) -> None:
        world.want(unit(1), unit(2))
        await world.settled()
        subnet = IPv4Network("11.0.1.0/24")
        world.units = {**world.units, subnet: (GatewayRoute(subnet, IPv4Address("172.17.8.102"), 2),)}
        assert await world.repair() == []
        await world.settled()

    play(scenario, monkeypatch)


def test_many_removed_entries_are_one_log_line(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        world.want(*map(unit, range(100)))
        await world.settled()
        world.netlink.lose(*world.netlink.entries)
        [line] = await world.repair()
        assert line.startswith("300 entries, such as the ")
        assert line.endswith(": each was removed by another program; restored")

    play(scenario, monkeypatch)


def test_a_peer_whose_entries_fail_gets_none_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        *_, gateway = unit(2, mac=1)
        world.netlink.rejected = {gateway: errno.ENETDOWN}
        world.want(unit(1), unit(2, mac=1), unit(3))
        # What the second shares with the first stays.
        await world.netlink.settled(*unit(1), *unit(3))
        async with asyncio.timeout(5):
            while not caplog.messages:  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0)
        await asyncio.sleep(0.05)  # it has been tried many times since
        assert caplog.messages == [
            f"Failed to update the routes to peers: the kernel rejected the {gateway}: Network is down"
        ]
        world.netlink.rejected = {}
        await world.settled()

    play(scenario, monkeypatch)


def test_a_lease_that_the_kernel_rejects_is_logged_once_and_affects_no_other_lease(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        *_, gateway = unit(2)
        world.netlink.rejected = {gateway: errno.EINVAL}
        world.want(unit(1), unit(2))
        await world.netlink.settled(*unit(1))
        changes = world.netlink.changes
        for _ in range(3):
            assert await world.repair() == []
        assert world.netlink.changes == changes, "no change that triggers a check"
        world.want(unit(1), unit(2, mac=9), unit(3))
        await world.netlink.settled(*unit(1), *unit(3))
        world.netlink.rejected = {}
        world.want(unit(1), unit(2), unit(3))
        await world.settled()

    play(scenario, monkeypatch)
    gateway = unit(2)[-1]
    line = f"Ignoring invalid lease 11.0.2.0/24: the kernel rejected the {gateway}: Invalid argument"
    assert caplog.messages == [line, line]  # two units that differ by a MAC


def test_a_rejected_lease_stays_known_after_another_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        refused, failing = unit(2)[-1], unit(3)[-1]
        world.netlink.rejected = {refused: errno.EINVAL}
        world.want(unit(1), unit(2))
        await world.netlink.settled(*unit(1))
        await world.idle()
        world.netlink.rejected = {refused: errno.EINVAL, failing: errno.ENETDOWN}
        world.netlink.lose(*unit(1))
        world.units = {**world.units, IPv4Network("11.0.3.0/24"): unit(3)}
        with pytest.raises(HostError, match="Network is down"):
            await world.repair()
        assert world.reconciler.unreachable == {IPv4Network("11.0.2.0/24")}
        world.netlink.rejected = {refused: errno.EINVAL}
        await world.repair()
        assert world.reconciler.unreachable == {IPv4Network("11.0.2.0/24")}

    play(scenario, monkeypatch)
    assert [message.partition(":")[0] for message in caplog.messages] == ["Ignoring invalid lease 11.0.2.0/24"]


def test_a_route_to_a_gateway_off_the_link_is_rejected_alone_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = unit(2)[-1]

    async def scenario(world: World) -> None:
        world.netlink.rejected = {gateway: errno.ENETUNREACH}
        world.want(unit(1), unit(2))
        await world.netlink.settled(*unit(1))
        for _ in range(3):
            assert await world.repair() == []
        assert world.reconciler.unreachable == {IPv4Network("11.0.2.0/24")}
        world.netlink.rejected = {}
        assert await world.repair() == []
        await world.netlink.settled(*unit(1), *unit(2))

    play(scenario, monkeypatch)
    reason = f"the kernel rejected the {gateway}: Network is unreachable"
    assert caplog.messages == [f"Subnet 11.0.2.0/24 is unreachable: {reason}"]


def test_if_no_gateway_is_on_the_link_the_host_lacks_something(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        world.netlink.rejected = {unit(number)[-1]: errno.ENETUNREACH for number in (1, 2)}
        world.want(unit(1), unit(2))
        async with asyncio.timeout(5):
            while not caplog.messages:  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0)
        world.netlink.rejected = {}
        await world.settled()

    play(scenario, monkeypatch)
    [line] = caplog.messages
    assert line.startswith("Failed to update the routes to peers: the kernel rejected the route to 11.0.")


def test_many_rejected_leases_are_one_log_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        world.netlink.rejected = {unit(number)[-1]: errno.EINVAL for number in range(30)}
        world.want(*map(unit, range(31)))
        await world.netlink.settled(*unit(30))

    play(scenario, monkeypatch)
    [line] = caplog.messages
    assert line.startswith("Ignoring invalid lease 11.0.0.0/24, 11.0.1.0/24, 11.0.2.0/24 and 27 more: for example, ")
    assert line.endswith(f"the kernel rejected the {unit(0)[-1]}: Invalid argument")


def test_a_route_of_ours_beside_ours_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may have two of one destination, and takes the first."""

    async def scenario(world: World) -> None:
        world.want(unit(1))
        await world.settled()
        rival = GatewayRoute(IPv4Network("11.0.1.0/24"), IPv4Address("172.17.8.7"), 2)
        world.netlink.gateways.insert(0, rival)
        assert await world.repair() == [f"The {rival} leads to no peer; removed"]

    play(scenario, monkeypatch)


def test_a_repair_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        world.want(unit(1))
        await world.settled()
        forward, *_ = unit(1)
        world.netlink.lose(forward)
        world.netlink.rejected = {forward: errno.ENETDOWN}
        with pytest.raises(HostError, match="the kernel rejected the forwarding of"):
            await world.repair()

    play(scenario, monkeypatch)


def test_after_a_failure_it_lists_what_the_kernel_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was added before it cannot be known then: the failure may have come before or after."""

    async def scenario(world: World) -> None:
        world.want(unit(1))
        await world.settled()
        add = world.netlink.add

        async def fail(wanted: Sequence[Entry]) -> list[int]:
            world.netlink.lose(*unit(1))  # with the device, as it may be
            monkeypatch.setattr(world.netlink, "add", add)
            raise HostError("the device has gone")

        monkeypatch.setattr(world.netlink, "add", fail)
        world.want(unit(1), unit(2))
        await world.settled()

    play(scenario, monkeypatch)


def test_a_check_waits_for_a_change_that_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        world.want(unit(1))
        await world.settled()
        add, began = world.netlink.add, asyncio.Event()

        async def slow(wanted: Sequence[Entry]) -> list[int]:
            began.set()
            await asyncio.sleep(0.01)
            return await add(wanted)

        monkeypatch.setattr(world.netlink, "add", slow)
        world.want(unit(1), unit(2))
        await began.wait()
        assert await world.repair() == []  # what is being added was not lost
        await world.settled()
        assert world.netlink.changes == 6

    play(scenario, monkeypatch)
