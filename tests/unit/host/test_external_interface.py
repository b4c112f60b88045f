"""Which interface and address carry the overlay: by name, by address, by default route."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from support.fakes_interfaces import ADDRESSES, ETH0, ETH1, ETH2, LINKS, LO, FakeNetlink

from flannelpy import cli
from flannelpy.addressing.interface_choice import ExternalInterface, Wanted
from flannelpy.errors import HostError
from flannelpy.host.external_interface import Leased, find
from flannelpy.linux.netlink.client import Netlink
from flannelpy.rtnetlink.links import Address, Link, Vxlan
from flannelpy.rtnetlink.routes import RouteAnswer


def wanted(iface: str | None = None, **flags: object) -> Wanted:
    """What the command line makes of these flags."""
    words = [f"-iface={iface}"] if iface else []
    options = cli.parse([*words, *(f"-{name.replace('_', '-')}={value}" for name, value in flags.items())])
    etcd = [IPv4Address("172.17.8.1")]
    return Wanted(options.iface, options.iface_regex, options.iface_can_reach, options.public_ip, etcd)


def found(iface: str | None, netlink: Netlink, **flags: object) -> tuple[str, str, int]:
    chosen = asyncio.run(find(netlink, wanted(iface, **flags)))
    return chosen.name, str(chosen.address), chosen.mtu


def failure(iface: str | None, netlink: Netlink, **flags: object) -> str:
    with pytest.raises(HostError) as caught:
        asyncio.run(find(netlink, wanted(iface, **flags)))
    assert "\n" not in str(caught.value)
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
        pytest.param(((3, 50), (2, 100)), "eth1", id="in any order"),
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
        "Candidate interface lo with address 127.0.0.1, which is loopback",
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
            "Error looking up interface 'eth9': no such network interface; -iface may be one of eth0, eth1, eth2, lo",
        ),
        (
            "1.2.3.4",
            "Error looking up interface '1.2.3.4': No interface with given IP found; this machine has 127.0.0.1,"
            " 10.0.2.15, 172.17.8.101, 172.17.8.111",
        ),
        ("lo", "Failed to find IPv4 address for interface lo; give it one, or choose another -iface"),
        ("eth2", "Failed to find IPv4 address for interface eth2; give it one, or choose another -iface"),
        (None, "Failed to get default interface: Unable to find default route; name the interface by -iface"),
    ],
)
def test_an_interface_that_does_not_exist_is_an_error_with_those_that_do(iface: str | None, message: str) -> None:
    assert failure(iface, FakeNetlink()) == message


def test_a_default_route_by_an_interface_without_an_address_is_an_error() -> None:
    assert failure(None, FakeNetlink(defaults=((7, 0),))).startswith("Failed to find IPv4 address for interface eth2")


def test_the_choice_has_name_address_and_mtu() -> None:
    expected = ExternalInterface("eth1", IPv4Address("172.17.8.101"), 9000)
    assert asyncio.run(find(FakeNetlink(), wanted("eth1"))) == expected


# Devices of flannelpy


LEASED = Leased(frozenset({IPv4Interface("11.0.59.0/16")}), frozenset({IPv4Network("11.0.59.0/24")}))
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
    assert asyncio.run(find(netlink, wanted(), LEASED._replace(subnets=frozenset()))).name == (
        "eth1" if is_own else link.name
    )
    for iface in (link.name, "11.0.59.0"):
        if is_own:
            with pytest.raises(HostError, match=f"^-iface='{iface}' means {link.name}, a device of flannelpy itself"):
                asyncio.run(find(netlink, wanted(iface), LEASED))
        else:
            assert asyncio.run(find(netlink, wanted(iface), LEASED)).name == link.name


def test_an_address_that_another_interface_has_too_is_that_ones() -> None:
    own = Link(1, "flannel0", 1472, "tun", alias="flannelpy /run/flannel/subnet.env")
    netlink = FakeNetlink((own, ETH1), ((1, "172.17.8.101"), (3, "172.17.8.101")))
    assert found("172.17.8.101", netlink)[0] == "eth1"


# Which address


def address(index: int, text: str, flags: int = 0, scope: int = 0) -> Address:
    return Address(index, IPv4Address(text), 24, flags=flags, scope=scope)


DEPRECATED, TENTATIVE, DADFAILED, PERMANENT = 0x20, 0x40, 0x08, 0x80
SCOPE_LINK, SCOPE_HOST = 253, 254
FLAWS = ("deprecated", "tentative", "tentative", "of scope host")
BAD = ({"flags": DEPRECATED}, {"flags": TENTATIVE | PERMANENT}, {"flags": DADFAILED}, {"scope": SCOPE_HOST})


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("flags", [{"iface": "eth1"}, {"iface": None}, {"iface": None, "iface_regex": "eth1"}], ids=str)
def test_an_address_that_the_kernel_would_not_choose_is_not_chosen(
    bad: dict[str, int], flags: dict[str, str | None]
) -> None:
    held = (address(3, "172.17.8.101", **bad), address(3, "172.17.8.102", flags=PERMANENT))
    assert found(netlink=FakeNetlink(addresses=held, defaults=((3, 0),)), **flags)[1] == "172.17.8.102"


@pytest.mark.parametrize(("bad", "flaw"), [*zip(BAD, FLAWS, strict=True)])
def test_without_a_usable_address_the_reason_is_named(bad: dict[str, int], flaw: str) -> None:
    assert failure("eth1", FakeNetlink(addresses=(address(3, "172.17.8.101", **bad),))) == (
        f"Failed to find IPv4 address for interface eth1 (172.17.8.101 is {flaw}); give it one, or choose another "
        "-iface"
    )


@pytest.mark.parametrize("bad", BAD)
def test_an_address_that_a_flag_names_is_used_in_any_state(bad: dict[str, int]) -> None:
    held = (address(3, "172.17.8.101", **bad), address(3, "172.17.8.102"))
    assert found("172.17.8.101", FakeNetlink(addresses=held))[1] == "172.17.8.101"
    assert found("eth1", FakeNetlink(addresses=held), public_ip="172.17.8.101")[1] == "172.17.8.101"


def test_an_address_that_is_valid_on_its_link_only_is_the_last_resort() -> None:
    held = (address(3, "10.0.0.1", scope=SCOPE_LINK), address(3, "169.254.3.4"), address(3, "172.17.8.101"))
    assert found("eth1", FakeNetlink(addresses=held))[1] == "172.17.8.101"
    assert found("eth1", FakeNetlink(addresses=held[:2]))[1] == "10.0.0.1"


def test_the_port_of_a_bridge_without_an_address_names_the_bridge() -> None:
    links = (LO, replace(ETH1, master=8), Link(8, "br0", 1500, "bridge"))
    assert failure("eth1", FakeNetlink(links, ((8, "172.17.8.101"),))) == (
        "Failed to find IPv4 address for interface eth1; it is a port of br0: try -iface=br0"
    )


PORT_LINKS = (LO, replace(ETH1, master=8), Link(8, "br0", 1500, "bridge"), Link(9, "eth9", 1500))


def test_an_address_of_a_port_is_not_chosen() -> None:
    links, ours = PORT_LINKS, ((3, "172.17.8.101"),)
    remedy = "Failed to find IPv4 address for interface eth1; it is a port of br0: try -iface=br0"
    assert failure("eth1", FakeNetlink(links, ours)) == remedy
    assert failure(None, FakeNetlink(links, ours, defaults=((3, 0),))) == remedy
    assert "matches no address and no name" in failure(None, FakeNetlink(links, ours), iface_regex="^172")
    both = FakeNetlink(links, (*ours, (8, "172.17.8.101"), (9, "10.0.0.9")), defaults=((8, 0),))
    for flags in ({}, {"iface_regex": "^172"}, {"public_ip": "172.17.8.101"}):
        assert found(None, both, **flags) == ("br0", "172.17.8.101", 1500)
    assert failure("eth1", both, public_ip="10.0.0.9") == remedy
    assert found("172.17.8.101", both) == ("br0", "172.17.8.101", 1500)
    assert found("172.17.8.101", FakeNetlink(links, ours)) == ("eth1", "172.17.8.101", 9000)  # a flag names it


@pytest.mark.parametrize(("kind", "is_port"), [("bridge", True), ("bond", True), ("team", True), ("vrf", False)])
def test_the_kind_of_its_master_decides_whether_an_interface_is_a_port(kind: str, is_port: bool) -> None:
    netlink = FakeNetlink((LO, replace(ETH1, master=8), Link(8, "m0", 1500, kind)), ((3, "172.17.8.101"),))
    if is_port:
        assert "it is a port of m0" in failure("eth1", netlink)
    else:
        assert found("eth1", netlink) == ("eth1", "172.17.8.101", 9000)


@pytest.mark.parametrize("name", ["eth1", "enp3s0", "uplink-to-the-rack-switch-of-row-seven"])
def test_altnames_are_names(name: str) -> None:
    links = (LO, ETH0, replace(ETH1, altnames=("enp3s0", "uplink-to-the-rack-switch-of-row-seven")))
    assert found(name, FakeNetlink(links)) == ("eth1", "172.17.8.101", 9000)
    assert found(None, FakeNetlink(links), iface_regex=f"^{name}$") == ("eth1", "172.17.8.101", 9000)


@pytest.mark.parametrize("name", ["eth9\nE1122 fake line", "\x1b[31meth9", "eth 9", "eth9‮"])
def test_a_name_is_quoted_so_that_it_cannot_forge_the_log(name: str) -> None:
    message = failure(name, FakeNetlink())
    assert message.startswith(f"Error looking up interface {name!r}: no such")
    assert message.isprintable()


# Addresses of interfaces by which no packet leaves

DUMMY = Link(8, "dummy0", 1500, "dummy")
ANYCAST = "10.255.0.1"


@pytest.mark.parametrize("holder", [LO, DUMMY], ids=["lo", "dummy"])
@pytest.mark.parametrize(
    "flags",
    [{"iface": ANYCAST}, {"iface": None, "public_ip": ANYCAST}, {"iface": None, "iface_regex": r"^10\.255\."}],
    ids=str,
)
def test_the_way_out_of_an_address_on_lo_is_the_default_routes(holder: Link, flags: dict[str, str | None]) -> None:
    held = (*ADDRESSES, (holder.index, ANYCAST))
    netlink = FakeNetlink((*LINKS, DUMMY), held, defaults=((1, 0), (3, 10), (2, 20)))
    chosen = asyncio.run(find(netlink, wanted(**flags)))
    assert chosen == ("eth1", IPv4Address(ANYCAST), 9000, holder.name)
    assert chosen.holder == holder.name


@pytest.mark.parametrize("iface", ["lo", ANYCAST])
def test_without_a_default_route_it_is_the_way_to_etcd(iface: str) -> None:
    ways = {"172.17.8.1": RouteAnswer(0, 2)}
    netlink = FakeNetlink(addresses=((1, ANYCAST), *ADDRESSES), ways=ways)
    assert found(iface, netlink) == ("eth0", ANYCAST, 1500)


@pytest.mark.parametrize("ways", [{}, {"172.17.8.1": RouteAnswer(0, 1)}], ids=["no route", "etcd is here"])
def test_without_either_the_flags_that_help_are_named(ways: dict[str, RouteAnswer]) -> None:
    assert failure("lo", FakeNetlink(addresses=((1, ANYCAST), *ADDRESSES), ways=ways)) == (
        "No packets leave by lo, which has 10.255.0.1, and there is no default route: name the interface by which they "
        "leave with -iface, and the address with -public-ip=10.255.0.1"
    )
    netlink = FakeNetlink(addresses=((1, ANYCAST), *ADDRESSES), ways=ways)
    assert found("eth1", netlink, public_ip=ANYCAST) == ("eth1", ANYCAST, 9000)


def test_a_loopback_address_is_refused() -> None:
    assert failure("127.0.0.1", FakeNetlink()) == (
        "-iface='127.0.0.1' is a loopback address: other hosts cannot reach it"
    )


# The public IP


@pytest.mark.parametrize(
    ("iface", "public_ip", "expected"),
    [
        pytest.param(None, "172.17.8.111", ("eth1", "172.17.8.111", 9000, ""), id="a second address"),
        pytest.param(None, "192.0.2.1", ("eth0", "10.0.2.15", 1500, ""), id="NAT: the default route's"),
        pytest.param("eth1", "192.0.2.1", ("eth1", "172.17.8.101", 9000, ""), id="NAT: the named interface's"),
        pytest.param("eth1", "172.17.8.111", ("eth1", "172.17.8.111", 9000, ""), id="a second one of the named"),
        pytest.param("eth1", "10.0.2.15", ("eth1", "10.0.2.15", 9000, "eth0"), id="another interface's"),
        pytest.param("eth2", "10.0.2.15", ("eth2", "10.0.2.15", 1400, "eth0"), id="for one without an address"),
        pytest.param("172.17.8.101", "10.0.2.15", ("eth1", "10.0.2.15", 9000, "eth0"), id="named by an address"),
    ],
)
def test_a_public_ip_of_this_machine_is_where_datagrams_come_from(
    iface: str | None, public_ip: str, expected: tuple[str, str, int, str], caplog: pytest.LogCaptureFixture
) -> None:
    netlink = FakeNetlink(defaults=((2, 0),))
    chosen = asyncio.run(find(netlink, wanted(iface, public_ip=public_ip)))
    assert (chosen.name, str(chosen.address), chosen.mtu, chosen.other_holder) == expected
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_public_ip_that_two_interfaces_have_is_that_ones_by_which_packets_leave() -> None:
    held = ((1, "172.17.8.111"), *ADDRESSES)
    assert found(None, FakeNetlink(addresses=held), public_ip="172.17.8.111") == ("eth1", "172.17.8.111", 9000)


# Several flags


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["-iface=eth9", "-iface=eth1", "-iface=eth0"], ("eth1", "172.17.8.101")),
        (["-iface=eth2", "-iface=10.0.2.15"], ("eth0", "10.0.2.15")),
        (["-iface-regex=^172", "-iface=eth9", "-iface=eth0"], ("eth0", "10.0.2.15")),
        (["-iface-regex=nothing", "-iface-regex=eth[12]"], ("eth1", "172.17.8.101")),
        (["-iface-regex=111$"], ("eth1", "172.17.8.111")),
        (["-iface-regex=0"], ("eth0", "10.0.2.15")),
        (["-iface-regex=lo|eth0"], ("eth0", "10.0.2.15")),
        (["-iface=eth9", "-iface-regex=x", "-iface-can-reach=10.9.9.9"], ("eth1", "172.17.8.111")),
        (["-iface-can-reach=10.9.9.8"], ("eth1", "172.17.8.101")),
        (["-iface-can-reach=192.0.2.1", "-iface-regex=eth0"], ("eth0", "10.0.2.15")),
    ],
)
def test_the_first_that_fits_counts(flags: list[str], expected: tuple[str, str]) -> None:
    ways = {
        "10.9.9.9": RouteAnswer(0, 3, source=IPv4Address("172.17.8.111")),
        "10.9.9.8": RouteAnswer(0, 3, source=IPv4Address("192.0.2.77")),
    }
    chosen = asyncio.run(find(FakeNetlink(ways=ways), _of(flags)))
    assert (chosen.name, str(chosen.address)) == expected


def _of(flags: list[str]) -> Wanted:
    options = cli.parse(flags)
    return Wanted(options.iface, options.iface_regex, options.iface_can_reach, options.public_ip)


def test_what_does_not_fit_is_logged_before_what_fits(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flannelpy")
    asyncio.run(find(FakeNetlink(), _of(["-iface=eth9", "-iface=eth2", "-iface-regex=eth0"])))
    assert caplog.messages[:2] == [
        "Could not find valid interface: Error looking up interface 'eth9': no such network interface; -iface may be "
        "one of eth0, eth1, eth2, lo",
        "Could not find valid interface: Failed to find IPv4 address for interface eth2; give it one, or choose "
        "another -iface",
    ]


OURS = Link(9, "flannel0", 1472, "tun", alias="flannelpy /run/flannel/subnet.env")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["-iface-regex=^wan"],
            "Error looking up interface by -iface-regex='^wan': it matches no address and no name of eth0 (10.0.2.15), "
            "eth1 (172.17.8.101, 172.17.8.111)",
        ),
        (
            ["-iface-can-reach=10.9.9.9"],
            "Error looking up interface by -iface-can-reach=10.9.9.9: the kernel has no route to it",
        ),
        (
            ["-iface-can-reach=172.17.8.101"],
            "-iface-can-reach=172.17.8.101 is an address of this machine: name one that other hosts have",
        ),
        (
            ["-iface-can-reach=11.0.7.1"],
            "-iface-can-reach=11.0.7.1 is reached by flannel0, a device of flannelpy itself: name another address",
        ),
        (
            ["-iface-can-reach=10.9.9.9", "-iface=1.2.3.4"],
            "Failed to find interface to use that matches the interfaces and/or regexes provided: Error looking up "
            "interface '1.2.3.4': No interface with given IP found; this machine has 127.0.0.1, 10.0.2.15, "
            "172.17.8.101, 172.17.8.111, 11.0.59.0; Error looking up interface by -iface-can-reach=10.9.9.9: the "
            "kernel has no route to it",
        ),
    ],
)
def test_flags_that_nothing_fits_are_named(flags: list[str], message: str) -> None:
    ways = {"172.17.8.101": RouteAnswer(0, 1), "11.0.7.1": RouteAnswer(0, 9)}
    netlink = FakeNetlink((*LINKS, OURS), (*ADDRESSES, (9, "11.0.59.0")), ways=ways)
    with pytest.raises(HostError) as caught:
        asyncio.run(find(netlink, _of(flags)))
    assert str(caught.value) == message


def test_a_regular_expression_passes_over_devices_of_flannelpy() -> None:
    netlink = FakeNetlink((LO, OURS, ETH1), ((9, "11.0.59.0"), (3, "172.17.8.101")))
    assert found(None, netlink, iface_regex="^1")[0] == "eth1"
    assert found(None, netlink, iface_regex="flannel|eth")[0] == "eth1"


DOCKER0 = Link(4, "docker0", 1450, "bridge")


@pytest.mark.parametrize("bridge", [DOCKER0, replace(DOCKER0, index=1, name="cni0"), Link(4, "veth7", 1450, "veth")])
def test_the_bridge_of_this_hosts_containers_is_found_by_name_or_address_only(bridge: Link) -> None:
    held = ((bridge.index, "11.0.59.1"), (7, "172.17.8.101"))
    netlink = FakeNetlink((bridge, ETH2), held, ((bridge.index, 0), (7, 100)), {"10.9.9.9": RouteAnswer(0, 7)})

    def name(*flags: str) -> str:
        return asyncio.run(find(netlink, _of(list(flags)), LEASED)).name

    for flags in ((), ("-iface-regex=^1",), ("-iface-regex=^11", "-iface-can-reach=10.9.9.9"), ("-iface-regex=.",)):
        assert name(*flags) == "eth2"
    for flag in (f"-iface={bridge.name}", "-iface=11.0.59.1"):
        assert name(flag) == bridge.name
    netlink.held, netlink.defaults = netlink.held[:1], ()
    for flag in ("-iface-regex=^1", f"-iface-regex={bridge.name}", "-iface-regex=^1"):
        with pytest.raises(HostError, match="matches no address and no name of an interface with an IPv4 address"):
            name(flag)


def test_a_stale_subnet_file_does_not_hide_the_only_default_route() -> None:
    """The host may have moved into what once was its containers' subnet."""
    netlink = FakeNetlink((LO, ETH1), ((3, "11.0.59.7"),), ((3, 0),))
    assert asyncio.run(find(netlink, wanted(), LEASED)).name == "eth1"


def test_an_address_of_virtualbox_that_a_regular_expression_found_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found(None, FakeNetlink(), iface_regex="eth")
    assert [message.partition(",")[0] for message in caplog.messages] == [
        "10.0.2.15 on eth0 looks like VirtualBox's NAT"
    ]
