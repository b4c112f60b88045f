"""Which interface and address carry the overlay: by name, by address, by default route."""

from __future__ import annotations

import asyncio
import logging
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from flannelpy.errors import HostChanged, HostError
from flannelpy.linux.entries import Route
from flannelpy.linux.interface import ADDRESS_PATIENCE, ExternalInterface, Watch, find
from flannelpy.linux.netlink import Address, Link, Netlink, Vxlan

LO, ETH0, ETH1, ETH2 = Link(1, "lo", 65536), Link(2, "eth0", 1500), Link(3, "eth1", 9000), Link(7, "eth2", 1400)
LINKS = (LO, ETH0, ETH1, ETH2)
ADDRESSES = ((1, "127.0.0.1"), (2, "10.0.2.15"), (3, "172.17.8.101"), (3, "172.17.8.111"))


class FakeNetlink(Netlink):
    """A machine's interfaces without a kernel."""

    def __init__(
        self,
        links: tuple[Link, ...] = LINKS,
        addresses: tuple[tuple[int, str], ...] = ADDRESSES,
        defaults: tuple[tuple[int, int], ...] = (),
    ) -> None:
        self._links = links
        self._addresses = addresses
        self._defaults = defaults

    async def links(self) -> list[Link]:
        return list(self._links)

    async def addresses(self) -> list[Address]:
        return [Address(index, IPv4Address(address), 16) for index, address in self._addresses]

    async def routes(self) -> list[Route]:
        """``defaults`` are pairs of index and metric; routes to networks are in front of them and behind."""
        return [
            Route(IPv4Network("10.0.2.0/24"), 2, 0),
            *(Route(IPv4Network("0.0.0.0/0"), index, metric) for index, metric in self._defaults),
            Route(IPv4Network("172.17.8.0/24"), 3, 0),
        ]


def found(iface: str | None, netlink: Netlink) -> tuple[str, str, int]:
    chosen = asyncio.run(find(netlink, iface))
    return chosen.name, str(chosen.address), chosen.mtu


def failure(iface: str | None, netlink: Netlink) -> str:
    with pytest.raises(HostError) as caught:
        asyncio.run(find(netlink, iface))
    return str(caught.value)


def test_an_interface_that_comes_while_we_look_is_no_candidate() -> None:
    """Containers come and go while the daemon starts: it ended with a traceback."""
    came = FakeNetlink(addresses=(*ADDRESSES, (99, "192.0.2.99")), defaults=((99, 0), (2, 5)))
    assert found(None, came) == ("eth0", "10.0.2.15", 1500)
    assert found("eth1", came) == ("eth1", "172.17.8.101", 9000)


@pytest.mark.parametrize(
    ("iface", "expected"),
    [
        ("eth0", ("eth0", "10.0.2.15", 1500)),
        ("eth1", ("eth1", "172.17.8.101", 9000)),
        ("10.0.2.15", ("eth0", "10.0.2.15", 1500)),
        ("172.17.8.101", ("eth1", "172.17.8.101", 9000)),
        ("172.17.8.111", ("eth1", "172.17.8.111", 9000)),
    ],
)
def test_by_name_or_by_any_of_its_addresses(iface: str, expected: tuple[str, str, int]) -> None:
    assert found(iface, FakeNetlink()) == expected


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        pytest.param(("172.17.8.101", "172.17.8.102"), "172.17.8.101", id="the kernel's order"),
        pytest.param(("169.254.3.4", "172.17.8.101"), "172.17.8.101", id="link-local comes last"),
        pytest.param(("169.254.3.4", "169.254.3.5"), "169.254.3.4", id="but is better than none"),
        pytest.param(("127.0.0.5", "169.254.3.4"), "169.254.3.4", id="loopback never"),
        pytest.param(("224.0.0.1", "172.17.8.101"), "172.17.8.101", id="multicast never"),
        pytest.param(("8.8.8.8",), "8.8.8.8", id="a public one"),
    ],
)
def test_the_address_of_an_interface_is_the_first_that_others_reach(addresses: tuple[str, ...], expected: str) -> None:
    netlink = FakeNetlink(addresses=((2, "10.0.2.15"), *((3, address) for address in addresses)))
    assert found("eth1", netlink) == ("eth1", expected, 9000)


@pytest.mark.parametrize(
    ("defaults", "expected"),
    [
        pytest.param(((2, 0),), "eth0", id="one"),
        pytest.param(((2, 100), (3, 50)), "eth1", id="the lower metric"),
        pytest.param(((3, 50), (2, 100)), "eth1", id="whatever its place"),
        pytest.param(((2, 1024), (3, 0)), "eth1", id="no metric is 0"),
        pytest.param(((3, 100), (2, 100)), "eth1", id="equal metrics: the first"),
    ],
)
def test_by_default_the_default_route_of_the_lowest_metric(
    defaults: tuple[tuple[int, int], ...], expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="flannelpy")
    assert found(None, FakeNetlink(defaults=defaults))[0] == expected
    assert caplog.messages[0] == "Determining IP address of default interface"
    # eth0 has an address of VirtualBox's NAT.
    warning = (
        "10.0.2.15 on eth0 looks like VirtualBox's NAT, which gives every host the same address; name the interface by "
        "which hosts reach each other with -iface"
    )
    assert caplog.messages[1:] == ([warning] if expected == "eth0" else [])


def test_an_interface_that_was_named_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    found("eth0", FakeNetlink())
    assert caplog.messages == []


def test_all_candidates_are_in_the_debug_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="flannelpy")
    found(None, FakeNetlink(defaults=((2, 100), (3, 50))))
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG] == [
        "Candidate interface lo with address 127.0.0.1",
        "Candidate interface eth0 with address 10.0.2.15",
        "Candidate interface eth1 with address 172.17.8.101",
        "Candidate interface eth1 with address 172.17.8.111",
        "Candidate default route by eth1 with metric 50",
        "Candidate default route by eth0 with metric 100",
    ]


@pytest.mark.parametrize(
    ("iface", "message"),
    [
        (
            "eth9",
            "Error looking up interface eth9: no such network interface; -iface may be one of eth0, eth1, eth2, lo",
        ),
        (
            "1.2.3.4",
            "Error looking up interface 1.2.3.4: No interface with given IP found; this machine has 127.0.0.1,"
            " 10.0.2.15, 172.17.8.101, 172.17.8.111",
        ),
        ("lo", "Failed to find IPv4 address for interface lo; give it one, or choose another -iface"),
        ("eth2", "Failed to find IPv4 address for interface eth2; give it one, or choose another -iface"),
        (None, "Failed to get default interface: Unable to find default route; name the interface by -iface"),
    ],
)
def test_what_cannot_be_found_is_said_with_what_there_is(iface: str | None, message: str) -> None:
    assert failure(iface, FakeNetlink()) == message


def test_a_default_route_by_an_interface_without_an_address_is_an_error() -> None:
    assert failure(None, FakeNetlink(defaults=((7, 0),))).startswith("Failed to find IPv4 address for interface eth2")


def test_what_is_found_says_name_address_and_mtu() -> None:
    expected = ExternalInterface("eth1", IPv4Address("172.17.8.101"), 9000)
    assert asyncio.run(find(FakeNetlink(), "eth1")) == expected


# Later changes


class Changing(FakeNetlink):
    """eth1 as ``mtu`` and ``own`` say; no MTU is no eth1."""

    mtu: int | None = 1500
    own: tuple[str, ...] = ("172.17.8.101",)

    async def link(self, name: str) -> Link | None:
        return None if self.mtu is None else Link(3, name, self.mtu)

    async def addresses(self) -> list[Address]:
        return [Address(3, IPv4Address(address), 24) for address in self.own]


class Watched:
    """A watch on eth1 with 172.17.8.101, and a clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.netlink = Changing()
        external = ExternalInterface("eth1", IPv4Address("172.17.8.101"), 1500)
        self.watch = Watch(external, lambda: self.now)

    def look(self, after: float = 1) -> str:
        self.now += after
        asyncio.run(self.watch.check(self.netlink))
        return self.watch.trouble


def test_an_address_that_goes_and_comes_back_is_said_and_survived(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flannelpy")
    watched = Watched()
    assert watched.look() == ""
    watched.netlink.own = ()
    for _ in range(3):
        assert watched.look(3600) == "address 172.17.8.101 is gone from eth1"
    watched.netlink.mtu = None
    assert watched.look() == "address 172.17.8.101 is gone from eth1"
    watched.netlink.mtu, watched.netlink.own = 1500, ("172.17.8.102", "172.17.8.101")
    assert watched.look() == ""
    assert caplog.messages == [
        "Address 172.17.8.101 is gone from eth1: no packets to and from other hosts",
        "Address 172.17.8.101 is back on eth1",
    ]


def test_an_address_that_gives_way_to_another_for_good_ends_it() -> None:
    watched = Watched()
    watched.netlink.own = ("172.17.8.102",)
    assert watched.look(3600) == "address 172.17.8.101 is gone from eth1"
    watched.look(ADDRESS_PATIENCE - 1)
    with pytest.raises(HostChanged) as caught:
        watched.look(1)
    assert str(caught.value) == "eth1 has 172.17.8.102 now instead of 172.17.8.101: flannelpy has to start anew"
    assert caught.value.exit_code == 1


def test_an_address_that_the_interface_gives_itself_meanwhile_is_none() -> None:
    """While DHCP is away, some give it one of 169.254.0.0/16."""
    watched = Watched()
    watched.netlink.own = ("169.254.3.4",)
    for _ in range(3):
        assert watched.look(3600) == "address 172.17.8.101 is gone from eth1"


def test_another_mtu_is_said_each_time_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched()
    caplog.set_level(logging.INFO, logger="flannelpy")
    for mtu in (1500, 1400, 1400, 9000, 1500):
        watched.netlink.mtu = mtu
        assert watched.look() == ""
    assert caplog.messages == [
        f"MTU of eth1 is {mtu} now, it was 1500 at the start; restart flannelpy, then Docker, to follow it"
        for mtu in (1400, 9000)
    ] + ["MTU of eth1 is 1500 again"]


# Devices of flannelpy


LEASED = frozenset({IPv4Interface("11.0.59.0/16")})
VXLAN = Vxlan(1, 8472, IPv4Address("172.17.8.101"), 3)


@pytest.mark.parametrize(
    ("link", "is_own"),
    [
        (Link(9, "flannel.1", 1450, "vxlan", vxlan=VXLAN, alias="flannelpy /run/flannel/subnet.env"), True),
        (Link(9, "tunnel", 1450, "tun", alias="flannelpy /run/another.env"), True),
        (Link(9, "flannel.1", 1450, "vxlan", mac="02:00:00:00:00:01", vxlan=VXLAN), True),
        (Link(9, "flannel0", 1472, "tun"), True),
        (Link(9, "flannel0", 1472, "tun", alias="uplink"), True),
        (Link(9, "flannel.2", 1450, "vxlan", vxlan=VXLAN), False),
        (Link(9, "flannel0", 1472, "tun", mac="02:00:00:00:00:01"), False),
        (Link(9, "flannel.1", 1450, "bridge"), False),
        (Link(9, "wg0", 1420, "wireguard"), False),
    ],
)
def test_a_device_of_flannelpy_is_passed_over(link: Link, is_own: bool) -> None:
    """By name, by address and as default route; ``LEASED`` is its address."""
    addresses = (*ADDRESSES, (9, "11.0.59.0"))
    netlink = FakeNetlink((*LINKS, link), addresses, defaults=((9, 0), (3, 100)))
    assert asyncio.run(find(netlink, None, LEASED)).name == ("eth1" if is_own else link.name)
    for iface in (link.name, "11.0.59.0"):
        if is_own:
            with pytest.raises(HostError, match=f"^-iface={iface} means {link.name}, a device of flannelpy itself"):
                asyncio.run(find(netlink, iface, LEASED))
        else:
            assert asyncio.run(find(netlink, iface, LEASED)).name == link.name


def test_an_address_that_another_interface_has_too_is_that_ones() -> None:
    own = Link(1, "flannel0", 1472, "tun", alias="flannelpy /run/flannel/subnet.env")
    netlink = FakeNetlink((own, ETH1), ((1, "172.17.8.101"), (3, "172.17.8.101")))
    assert found("172.17.8.101", netlink)[0] == "eth1"
