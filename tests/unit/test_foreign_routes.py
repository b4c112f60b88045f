"""Routes of other programs: which of them flanneld may have left, and how many lines are said about them."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannelpy.backend.foreign_routes import leftovers, log_leftovers
from flannelpy.linux import entries, routes
from flannelpy.linux.entries import Gateway
from flannelpy.linux.routes import KernelRoute
from flannelpy.linux.rtnetlink import Message, attribute

NETWORK, OWN = IPv4Network("11.1.0.0/16"), IPv4Network("11.1.5.0/24")
BOOT = 3
TOS, PRIORITY, NEXTHOP_OBJECT, MULTIPATH = 3, 6, 30, 9


def route(destination: str, more: bytes = b"", tos: int = 0, protocol: int = BOOT) -> KernelRoute:
    message = entries.addition(Gateway(IPv4Network(destination), IPv4Address("172.17.8.102"), 2, protocol=protocol))
    body = bytearray(message.body + more)
    body[TOS] = tos
    return routes.parse(Message(message.message_type, bytes(body)))


def number(name: int, value: int) -> bytes:
    return attribute(name, struct.pack("=I", value))


@pytest.mark.parametrize(
    ("found", "is_left"),
    [
        (route("11.1.7.0/24"), True),
        (route("11.1.0.0/17"), True),
        (route("11.1.7.0/24", protocol=4), False),
        (route("11.1.7.0/24", number(PRIORITY, 100)), False),
        (route("11.1.7.0/24", tos=4), False),
        (route("11.1.7.0/24", number(NEXTHOP_OBJECT, 1)), False),
        (route("11.1.7.0/24", attribute(MULTIPATH, struct.pack("=HBBi", 8, 0, 0, 2))), False),
        (route("11.1.0.0/16"), False),
        (route("11.0.0.0/8"), False),
        (route("11.1.5.0/24"), False),
        (route("11.1.5.128/25"), False),
        (route("11.1.9.0/24"), False),
    ],
)
def test_flanneld_s_routes_are_known_by_all_that_it_gives_them(found: KernelRoute, is_left: bool) -> None:
    assert leftovers([found], NETWORK, OWN, {IPv4Network("11.1.9.0/24")}) == [found] * is_left


@pytest.mark.parametrize(("count", "lines"), [(1, 1), (10, 10), (11, 11), (500, 11)])
def test_ten_are_named_and_the_others_counted(count: int, lines: int, caplog: pytest.LogCaptureFixture) -> None:
    log_leftovers([route(f"11.1.{each % 256}.0/24") for each in range(count)], lambda index: f"eth{index}")
    assert len(caplog.messages) == lines
    text = "11.1.0.0/24 via 172.17.8.102 dev eth2 proto boot"
    assert caplog.messages[0] == (
        f"Route {text} may be left from flanneld: no lease asks for it; flannelpy leaves it alone; to remove it: "
        f"ip route del {text}"
    )
    if count > 10:
        assert caplog.messages[-1] == (f"{count - 10} more routes may be left from flanneld; -cleanup lists them")
