"""When the external interface changes: what is logged, what waits, and what ends the daemon."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from math import inf

import pytest
from support.fakes_interfaces import ETH0, ETH1, LO, FakeNetlink

from flannelpy import cli
from flannelpy.addressing.interface_choice import Wanted
from flannelpy.errors import ExternalAddressChanged
from flannelpy.host.external_interface import Leased, find
from flannelpy.host.external_interface_monitor import ADDRESS_PATIENCE, ExternalInterfaceMonitor
from flannelpy.rtnetlink.links import Address, Link
from flannelpy.rtnetlink.routes import RouteAnswer

OURS, VIP, THEIRS = "172.17.8.101", "172.17.8.200", "172.17.8.102"
BR0, OVERLAY = Link(8, "br0", 1500, "bridge"), Link(9, "flannel0", 1472, "tun", alias="flannelpy /run/subnet.env")
GONE = f"address {OURS} is gone from eth1"


def held(index: int, text: str, flags: int = 0, scope: int = 0) -> Address:
    return Address(index, IPv4Address(text), 24, flags=flags, scope=scope)


class Watched:
    """A machine with eth0 and eth1, a watch on eth1 as the flags chose it, and a clock."""

    def __init__(self, *flags: str) -> None:
        self.now = 1000.0
        self.machine = FakeNetlink((LO, ETH0, ETH1), ((2, "10.0.0.5"), (3, OURS)), defaults=((3, 0),))
        self.machine.ways["10.9.9.9"] = RouteAnswer(0, 3, source=IPv4Address(OURS))
        self.prepare()
        options = cli.parse(list(flags))
        wanted = Wanted(options.iface, options.iface_regex, options.iface_can_reach, options.public_ip)
        self.external = asyncio.run(find(self.machine, wanted))
        self.leased = Leased()
        self.watch = ExternalInterfaceMonitor(self.external, wanted, lambda: self.now, lambda: self.leased)
        assert self.look() == ""

    def prepare(self) -> None:
        """What there is before the start."""

    def look(self, after: float = 1) -> str:
        self.now += after
        asyncio.run(self.watch.check(self.machine))
        return self.watch.report().problem

    def hold(self, *addresses: Address) -> None:
        """Have these, and those of eth0."""
        self.machine.held = [held(2, "10.0.0.5"), *addresses]

    def ends(self, after: float = 0) -> str:
        """What the daemon ends with; it does not end a moment before."""
        self.look(ADDRESS_PATIENCE - 0.5 - after)
        assert self.watch.due() == 0.5
        with pytest.raises(ExternalAddressChanged) as caught:
            self.look(0.5)
        assert caught.value.exit_code == 1
        return str(caught.value).removesuffix(": restart flannelpy to use it")


NAMED, BY_ADDRESS = ("-iface=eth1",), (f"-iface={OURS}",)


def renamed(watched: Watched) -> None:
    watched.machine.listed[2] = replace(ETH1, name="wan0")


def renamed_with_altname(watched: Watched) -> None:
    """As after ``ip link property add``, by which scripts can still use the old name."""
    watched.machine.listed[2] = replace(ETH1, name="wan0", altnames=("eth1",))


def bridged(watched: Watched) -> None:
    watched.machine.listed += [BR0]
    watched.machine.listed[2] = replace(ETH1, master=8)
    watched.hold(held(8, OURS))


def bonded(watched: Watched) -> None:
    watched.machine.listed += [Link(8, "bond0", 1500, "bond")]
    watched.machine.listed[2] = replace(ETH1, master=8)
    watched.hold(held(8, OURS))


def moved_to_an_old_nic(watched: Watched) -> None:
    watched.hold(held(2, OURS))


def replaced(watched: Watched) -> None:
    watched.hold(held(3, THEIRS))


def replaced_by_two(watched: Watched) -> None:
    watched.hold(held(3, VIP, flags=0x20), held(3, THEIRS))


def default_route_moved(watched: Watched) -> None:
    watched.hold()
    watched.machine.defaults = ((2, 0),)


def default_route_moved_while_an_address_stays(watched: Watched) -> None:
    watched.hold(held(3, THEIRS))
    watched.machine.defaults = ((2, 0), (3, 100))


def reached_by_another(watched: Watched) -> None:
    watched.hold()
    watched.machine.ways["10.9.9.9"] = RouteAnswer(0, 2, source=IPv4Address("10.0.0.5"))


MOVES: list[tuple[Sequence[str], Callable[[Watched], None], str]] = [
    *((flags, renamed, f"eth1 was renamed to wan0, which has {OURS}") for flags in ((), NAMED, BY_ADDRESS)),
    (NAMED, renamed_with_altname, f"eth1 was renamed to wan0, which has {OURS}"),
    *((flags, bridged, f"{OURS} moved from eth1 to br0") for flags in ((), NAMED, ("-iface-regex=^172",))),
    (NAMED, bonded, f"{OURS} moved from eth1 to bond0"),
    (NAMED, moved_to_an_old_nic, f"{OURS} moved from eth1 to eth0"),
    *(
        (flags, replaced, f"eth1 has {THEIRS} now instead of {OURS}")
        for flags in ((), NAMED, BY_ADDRESS, ("-iface-regex=eth1",))
    ),
    (("-public-ip=192.0.2.1",), replaced, f"eth1 has {THEIRS} now instead of {OURS}"),
    (NAMED, replaced_by_two, f"eth1 has {THEIRS} now instead of {OURS}"),
    ((), default_route_moved, f"{OURS} on eth1 was replaced by 10.0.0.5 on eth0"),
    ((), default_route_moved_while_an_address_stays, f"{OURS} on eth1 was replaced by 10.0.0.5 on eth0"),
    (("-iface=eth1", "-iface=eth0"), default_route_moved, f"{OURS} on eth1 was replaced by 10.0.0.5 on eth0"),
    (("-iface-can-reach=10.9.9.9",), reached_by_another, f"{OURS} on eth1 was replaced by 10.0.0.5 on eth0"),
    ((f"-public-ip={OURS}",), bridged, f"{OURS} moved from eth1 to br0"),
]


@pytest.mark.parametrize(("flags", "move", "place"), MOVES)
def test_another_address_in_place_for_15_s_ends_it(
    flags: Sequence[str], move: Callable[[Watched], None], place: str, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(*flags)
    move(watched)
    assert watched.look() == f"{GONE}: {place}"
    assert watched.ends() == place
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"Address {OURS} is gone from eth1: no packets to and from other hosts",
        f"{place}; flannelpy exits unless it is undone within 15 s",
    ]


def nothing_left(watched: Watched) -> None:
    watched.hold()


def deleted(watched: Watched) -> None:
    watched.hold()
    del watched.machine.listed[2]
    watched.machine.defaults = ()


def stopgap(watched: Watched) -> None:
    """Some interfaces give themselves such an address while DHCP does not answer."""
    watched.hold(held(3, "169.254.3.4"))


def deprecated(watched: Watched) -> None:
    watched.hold(held(3, THEIRS, flags=0x20))


def host_scope(watched: Watched) -> None:
    watched.hold(held(3, THEIRS, scope=254))


def on_another_nic(watched: Watched) -> None:
    watched.hold(held(2, THEIRS))


def on_our_own_device(watched: Watched) -> None:
    watched.machine.listed += [OVERLAY]
    watched.hold(held(9, OURS))


def default_route_by_our_own_device(watched: Watched) -> None:
    on_our_own_device(watched)
    watched.machine.defaults = ((9, 0),)


def without_a_default_route(watched: Watched) -> None:
    watched.hold(held(3, THEIRS))
    watched.machine.defaults = ()


@pytest.mark.parametrize(
    ("flags", "change"),
    [
        *(
            (flags, change)
            for flags in ((), NAMED)
            for change in (nothing_left, deleted, stopgap, deprecated, host_scope)
        ),
        *((NAMED, change) for change in (on_another_nic, on_our_own_device, default_route_moved)),
        *(((), change) for change in (on_another_nic, default_route_by_our_own_device, without_a_default_route)),
        ((f"-iface={OURS}",), on_another_nic),
        ((f"-public-ip={OURS}",), replaced),
        ((*NAMED, f"-public-ip={OURS}"), replaced),
        (("-iface-regex=eth1",), on_another_nic),
        (("-iface-can-reach=10.9.9.9",), default_route_moved),
    ],
)
def test_what_is_no_address_in_place_is_waited_out(
    flags: Sequence[str], change: Callable[[Watched], None], caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(*flags)
    before = watched.machine.held, [*watched.machine.listed], watched.machine.defaults
    change(watched)
    for _ in range(5):
        assert watched.look(3600) == GONE
        assert watched.watch.due() == inf
    watched.machine.held, watched.machine.listed, watched.machine.defaults = before
    assert watched.look() == ""
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"Address {OURS} is gone from eth1: no packets to and from other hosts"
    ]


def test_the_time_counts_from_when_another_address_is_in_place() -> None:
    """A virtual IP and a flapping link: the address of the link comes back later than the virtual IP."""
    watched = Watched(*NAMED)
    nothing_left(watched)
    assert watched.look(3600) == GONE
    watched.hold(held(3, VIP))
    assert watched.look(3600) == f"{GONE}: eth1 has {VIP} now instead of {OURS}"
    assert watched.watch.due() == ADDRESS_PATIENCE
    watched.look(14)
    watched.hold(held(3, VIP), held(3, OURS))
    assert watched.look(100) == ""
    assert watched.watch.due() == inf


def test_the_time_starts_again_when_the_other_address_was_away() -> None:
    watched = Watched(*NAMED)
    for _ in range(4):
        replaced(watched)
        watched.look(5)
        watched.look(14)
        nothing_left(watched)
        watched.look(0.5)
    replaced(watched)
    watched.look(5)
    assert watched.ends() == f"eth1 has {THEIRS} now instead of {OURS}"


def test_the_time_runs_on_while_other_addresses_follow_each_other() -> None:
    watched = Watched(*NAMED)
    watched.hold(held(3, VIP))
    watched.look()
    replaced(watched)
    watched.look(10)
    assert watched.ends(after=10) == f"eth1 has {THEIRS} now instead of {OURS}"


def test_an_interface_that_was_created_again_is_the_same(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flannelpy.host.external_interface_monitor")
    watched = Watched(*NAMED)
    deleted(watched)
    assert watched.look(3600) == GONE
    watched.machine.listed.append(replace(ETH1, index=77))
    watched.hold(held(77, OURS))
    assert watched.look() == ""
    assert caplog.messages[-1] == f"Address {OURS} is back on eth1"


def test_while_the_address_stands_nothing_else_counts(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched()
    watched.hold(held(3, THEIRS), held(3, OURS, flags=0x20), held(2, OURS))
    watched.machine.defaults = ((2, 0),)
    for _ in range(3):
        assert watched.look(3600) == ""
    assert caplog.messages == []


def test_a_link_that_is_down_is_not_ready_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flannelpy.host.external_interface_monitor")
    watched = Watched()
    for change, problem in (
        (replace(ETH1, is_up=False, has_carrier=False), "eth1 is down"),
        (replace(ETH1, has_carrier=False), "eth1 has no carrier"),
        (ETH1, ""),
    ):
        watched.machine.listed[2] = change
        for _ in range(3):
            assert watched.look(3600) == problem
    assert caplog.messages == [
        "Link eth1 is down: no packets to and from other hosts",
        "Link eth1 has no carrier: no packets to and from other hosts",
        "Link eth1 is up again",
    ]


def test_the_bridge_of_this_hosts_containers_is_in_no_place() -> None:
    """The subnet may be leased, and the bridge come, after the start."""
    for flags in (("-iface-regex=^1[17]",), ("-iface-regex=^172|docker",), ()):
        watched = Watched(*flags)
        watched.machine.listed += [replace(BR0, name="docker0")]
        watched.leased = Leased(subnets=frozenset({IPv4Network("11.0.59.0/24")}))
        watched.machine.held = [held(8, "11.0.59.1")]
        watched.machine.defaults = ((8, 0),) if flags else ()
        assert watched.look() == GONE
        assert watched.look(3600) == GONE


# An interface that is a port


MASTERS = [Link(8, "br0", 1500, "bridge"), Link(8, "bond0", 1500, "bond"), Link(8, "team0", 1500, "team")]


def enslaved(watched: Watched, master: Link = BR0) -> None:
    watched.machine.listed += [master]
    watched.machine.listed[2] = replace(ETH1, master=8)


@pytest.mark.parametrize("master", MASTERS)
def test_a_port_that_keeps_its_address_is_not_ready(master: Link, caplog: pytest.LogCaptureFixture) -> None:
    """Its frames come to the bridge, so ARP on it gets no answers."""
    caplog.set_level(logging.INFO, logger="flannelpy.host.external_interface_monitor")
    watched = Watched(*NAMED)
    enslaved(watched, master)
    fault = f"eth1 is a port of {master.name}, so its address must be on {master.name}"
    for _ in range(3):
        assert watched.look(3600) == fault
        assert watched.watch.due() == inf
    watched.machine.listed[2] = ETH1
    assert watched.look() == ""
    assert caplog.messages == [f"Link {fault}: no packets to and from other hosts", "Link eth1 is no longer a port"]


def test_an_interface_of_a_vrf_is_no_port() -> None:
    watched = Watched(*NAMED)
    enslaved(watched, Link(8, "blue", 65575, "vrf"))
    assert watched.look(3600) == ""


@pytest.mark.parametrize(
    ("flags", "address", "place"),
    [
        ((), OURS, f"{OURS} moved from eth1 to br0"),
        (NAMED, OURS, f"{OURS} moved from eth1 to br0"),
        ((f"-public-ip={OURS}",), OURS, f"{OURS} moved from eth1 to br0"),
        ((), THEIRS, f"{OURS} on eth1 was replaced by {THEIRS} on br0"),
        (("-iface-regex=^172",), THEIRS, f"{OURS} on eth1 was replaced by {THEIRS} on br0"),
        (NAMED, THEIRS, ""),
    ],
)
def test_what_the_bridge_has_is_in_place_of_what_its_port_has(flags: Sequence[str], address: str, place: str) -> None:
    watched = Watched(*flags)
    enslaved(watched)
    watched.hold(held(3, OURS), held(8, address))
    watched.machine.defaults = ((8, 0),)
    fault = "eth1 is a port of br0, so its address must be on br0"
    assert watched.look() == (f"{fault}: {place}" if place else fault)
    if place:
        assert watched.ends() == place
    else:
        assert watched.look(3600) == fault


def test_a_port_as_the_way_out_or_as_the_holder_of_another_address_is_a_fault() -> None:
    for index in (1, 2):
        watched = Watched(*NAMED, "-public-ip=10.0.0.5")
        watched.machine.listed += [BR0]
        one = watched.machine.listed[index]
        watched.machine.listed[index] = replace(one, master=8)
        assert watched.look() == f"{one.name} is a port of br0, so its address must be on br0"


# A link that stays down


DOWN, UNPLUGGED = replace(ETH1, is_up=False, has_carrier=False), replace(ETH1, has_carrier=False)


@pytest.mark.parametrize(("link", "fault"), [(DOWN, "eth1 is down"), (UNPLUGGED, "eth1 has no carrier")])
@pytest.mark.parametrize("flags", [(), ("-public-ip=192.0.2.1",), ("-iface-can-reach=10.9.9.9",)])
def test_routes_that_move_away_from_a_dead_link_end_it(
    flags: Sequence[str], link: Link, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its static address stays."""
    watched = Watched(*flags)
    watched.machine.listed[2] = link
    watched.machine.defaults = ()
    del watched.machine.ways["10.9.9.9"]
    assert watched.look(3600) == fault
    watched.machine.defaults = ((2, 0),)
    watched.machine.ways["10.9.9.9"] = RouteAnswer(0, 2, source=IPv4Address("10.0.0.5"))
    place = f"{OURS} on eth1 was replaced by 10.0.0.5 on eth0"
    assert watched.look(3600) == f"{fault}: {place}"
    assert watched.ends() == place
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING][-2:] == [
        f"Link {fault}: no packets to and from other hosts",
        f"{place}; flannelpy exits unless it is undone within 15 s",
    ]


@pytest.mark.parametrize("change", ["link", "route"])
def test_a_dead_link_that_comes_back_within_the_time_changes_nothing(change: str) -> None:
    watched = Watched()
    watched.machine.listed[2], watched.machine.defaults = DOWN, ((2, 0),)
    watched.look()
    watched.look(14)
    if change == "link":
        watched.machine.listed[2] = ETH1
    else:
        watched.machine.defaults = ((3, 0), (2, 100))
    assert watched.look() == ("" if change == "link" else "eth1 is down")
    assert watched.watch.due() == inf
    assert watched.look(3600) == ("" if change == "link" else "eth1 is down")


@pytest.mark.parametrize(
    "flags",
    [
        NAMED,
        BY_ADDRESS,
        ("-iface=eth1", "-iface=eth0"),
        ("-iface-regex=^172",),
        (f"-public-ip={OURS}",),
        ("-iface=eth1", "-public-ip=192.0.2.1"),
    ],
)
def test_a_dead_link_that_flags_name_is_waited_for(flags: Sequence[str]) -> None:
    watched = Watched(*flags)
    watched.machine.listed[2], watched.machine.defaults = DOWN, ((2, 0),)
    for _ in range(3):
        assert watched.look(3600) == "eth1 is down"
        assert watched.watch.due() == inf


# An address that another interface has than the one by which packets leave


ANYCAST = "10.255.0.1"


class OnLo(Watched):
    """Packets leave by eth1 with an address of lo."""

    def prepare(self) -> None:
        self.hold(held(1, ANYCAST), held(3, OURS))


def test_an_address_on_lo_is_watched_where_it_is() -> None:
    watched = OnLo(f"-iface={ANYCAST}")
    assert watched.external == ("eth1", IPv4Address(ANYCAST), 9000, "lo")
    watched.hold(held(1, ANYCAST))
    assert watched.look(3600) == ""
    watched.hold(held(2, ANYCAST))
    assert watched.look() == f"address {ANYCAST} is gone from lo: {ANYCAST} moved from lo to eth0"
    assert watched.ends() == f"{ANYCAST} moved from lo to eth0"


@pytest.mark.parametrize(
    ("flags", "links", "place"),
    [
        ((f"-iface={ANYCAST}",), (LO, ETH0, replace(ETH1, name="wan0")), "eth1 was renamed to wan0"),
        ((f"-iface={ANYCAST}",), (LO, ETH0), "eth1 was replaced by eth0"),
        ((*NAMED, f"-public-ip={ANYCAST}"), (LO, ETH0, replace(ETH1, name="wan0")), "eth1 was renamed to wan0"),
        ((*NAMED, f"-public-ip={ANYCAST}"), (LO, ETH0), ""),
    ],
)
def test_the_interface_by_which_packets_leave_is_watched_too(
    flags: Sequence[str], links: Sequence[Link], place: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="flannelpy.host.external_interface_monitor")
    watched = OnLo(*flags)
    before = watched.machine.listed
    watched.machine.listed = list(links)
    watched.machine.held = [held(1, ANYCAST), held(2, "10.0.0.5")]
    watched.machine.defaults = ((2, 0),)
    assert watched.look() == "interface eth1 is gone" + (f": {place}" if place else "")
    if place:
        assert watched.ends() == place
    else:
        assert watched.look(3600) == "interface eth1 is gone"
        watched.machine.listed = before
        assert watched.look() == ""
        assert caplog.messages == [
            "Interface eth1 is gone: no packets to and from other hosts",
            "Interface eth1 is back",
        ]


def test_a_public_ip_on_another_interface_is_watched_there() -> None:
    watched = Watched(*NAMED, "-public-ip=10.0.0.5")
    assert watched.external == ("eth1", IPv4Address("10.0.0.5"), 9000, "eth0")
    watched.machine.held = [held(2, "10.0.0.5")]  # eth1 loses its own
    assert watched.look(3600) == ""
    watched.machine.held = [held(3, "10.0.0.5")]
    assert watched.look() == "address 10.0.0.5 is gone from eth0: 10.0.0.5 moved from eth0 to eth1"


@pytest.mark.parametrize("holder", ["10.0.0.5", ANYCAST])
@pytest.mark.parametrize("flags", [NAMED, ("-iface-regex=^eth1$",), ("-iface-can-reach=10.9.9.9",)])
def test_a_way_out_that_flags_name_has_to_be_up_although_another_interface_has_the_address(
    flags: Sequence[str], holder: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="flannelpy.host.external_interface_monitor")
    watched = OnLo(*flags, f"-public-ip={holder}")
    watched.hold(held(1, ANYCAST), held(3, OURS))
    assert watched.external.name == "eth1"
    for change, problem in (
        (replace(ETH1, is_up=False, has_carrier=False), "eth1 is down"),
        (replace(ETH1, has_carrier=False), "eth1 has no carrier"),
        (ETH1, ""),
    ):
        watched.machine.listed[2] = change
        assert watched.look() == problem
    assert caplog.messages[-1] == "Link eth1 is up again"


@pytest.mark.parametrize("flags", [(f"-iface={ANYCAST}",), (f"-public-ip={ANYCAST}",)])
def test_where_routes_decide_the_way_out_of_an_address_one_that_is_down_is_no_fault(flags: Sequence[str]) -> None:
    watched = OnLo(*flags)
    for change in (replace(ETH1, is_up=False), replace(ETH1, has_carrier=False)):
        watched.machine.listed[2] = change
        assert watched.look(3600) == ""


def test_a_public_ip_that_comes_after_the_start_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(*NAMED, "-public-ip=192.0.2.1")
    watched.hold(held(3, OURS), held(1, "192.0.2.1"))
    for _ in range(3):
        assert watched.look(3600) == ""
    assert caplog.messages == [
        f"This machine has the public IP 192.0.2.1 now, and datagrams come from {OURS}: restart flannelpy, unless a "
        "NAT passes them on"
    ]


def test_another_mtu_is_logged_each_time_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched()
    caplog.set_level(logging.INFO, logger="flannelpy")
    for mtu in (9000, 1400, 1400, 1500, 9000):
        watched.machine.listed[2] = replace(ETH1, mtu=mtu)
        assert watched.look() == ""
    assert caplog.messages == [
        f"MTU of eth1 changed from 9000 to {mtu}: restart flannelpy, then Docker, to use it" for mtu in (1400, 1500)
    ] + ["MTU of eth1 is 9000 again"]


def test_an_mtu_and_a_public_ip_that_come_and_go_without_end_are_logged_within_a_limit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watched = Watched(*NAMED, "-public-ip=192.0.2.1")
    for number in range(100):
        watched.machine.listed[2] = replace(ETH1, mtu=1400 if number % 2 else 9000)
        watched.hold(held(3, OURS), *[held(1, "192.0.2.1")] * (number % 2))
        assert watched.look(1) == ""
    assert 2 <= len(caplog.messages) < 40
