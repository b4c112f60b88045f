"""Routes of other programs: which of them flanneld may have left, and how many log lines they cause."""

from __future__ import annotations

import asyncio
import struct
from ipaddress import IPv4Address, IPv4Network

import pytest
from support.fakes_machine import FakeMachine

from flannelpy.backend.foreign_routes import ForeignRoutes, leftovers, log_leftovers
from flannelpy.rtnetlink import entries, routes
from flannelpy.rtnetlink.entries import GatewayRoute
from flannelpy.rtnetlink.messages import Message, attribute
from flannelpy.rtnetlink.routes import KernelRoute

NETWORK, OWN = IPv4Network("11.1.0.0/16"), IPv4Network("11.1.5.0/24")
BOOT = 3
TOS, PRIORITY, NEXTHOP_OBJECT, MULTIPATH = 3, 6, 30, 9


def message(destination: str, more: bytes = b"", tos: int = 0, protocol: int = BOOT, host: int = 102) -> Message:
    address = IPv4Address(f"172.17.8.{host}")
    plain = entries.add_request(GatewayRoute(IPv4Network(destination), address, 2, protocol=protocol))
    body = bytearray(plain.body + more)
    body[TOS] = tos
    return Message(plain.message_type, bytes(body))


def route(destination: str, more: bytes = b"", tos: int = 0, protocol: int = BOOT) -> KernelRoute:
    return routes.parse(message(destination, more, tos, protocol))


def number(name: int, value: int) -> bytes:
    return attribute(name, struct.pack("=I", value))


LEFT = "11.1.{}.0/24 via 172.17.8.102 dev eth2 proto boot"


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


@pytest.mark.parametrize(
    ("count", "more", "remedy"),
    [
        (1, "", f"to remove it: ip route del {LEFT.format(0)}"),
        (2, f", {LEFT.format(1)}", "-cleanup lists the commands that remove them"),
        (200, f", {LEFT.format(1)}, {LEFT.format(2)} and 197 more", "-cleanup lists the commands that remove them"),
    ],
)
def test_routes_that_may_be_left_are_one_log_line(
    count: int, more: str, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    log_leftovers([route(f"11.1.{each}.0/24") for each in range(count)], lambda index: f"eth{index}")
    assert caplog.messages == [
        f"Route {LEFT.format(0)}{more} may be left from flanneld: no lease asks for it; flannelpy leaves it alone; "
        f"{remedy}"
    ]


def test_without_a_route_that_may_be_left_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    log_leftovers([], str)
    assert caplog.messages == []


SUBNET = IPv4Network("11.1.7.0/24")
WANTED = GatewayRoute(SUBNET, IPv4Address("172.17.8.102"), 2)
ELSEWHERE, STATIC, OURS = 103, 4, 85


@pytest.mark.parametrize(
    ("there", "verdict"),
    [
        ([], ""),
        ([message("11.1.7.0/24", protocol=OURS, host=ELSEWHERE)], ""),
        ([message("11.1.7.0/24", host=ELSEWHERE)], "blocking"),
        ([message("11.1.7.0/24", protocol=STATIC, host=ELSEWHERE)], "blocking"),
        ([message("11.1.7.0/24", protocol=STATIC)], "equivalent"),
        ([message("11.1.7.0/24", number(NEXTHOP_OBJECT, 1))], "equivalent"),
        ([message("11.1.7.0/24")], "adopted"),
        # A route without metric and TOS goes before one with a metric, and beside one with a TOS.
        ([message("11.1.7.0/24", number(PRIORITY, 100), host=ELSEWHERE)], ""),
        ([message("11.1.7.0/24", tos=4, host=ELSEWHERE)], ""),
        ([message("11.1.7.0/24", tos=4, host=ELSEWHERE), message("11.1.7.0/24")], "adopted"),
        ([message("11.1.7.0/24"), message("11.1.7.0/24", host=ELSEWHERE)], "adopted"),
        ([message("11.1.7.0/25", host=ELSEWHERE)], ""),
    ],
)
def test_the_first_route_without_a_metric_decides_about_ours(there: list[Message], verdict: str) -> None:
    machine, foreign = FakeMachine(), ForeignRoutes()
    machine.direct += there
    adopted = asyncio.run(foreign.judge(machine, [WANTED]))
    assert [bool(foreign.blocking), bool(foreign.equivalent), bool(adopted)] == [
        verdict == word for word in ("blocking", "equivalent", "adopted")
    ]
    machine.direct[:] = []
    assert asyncio.run(foreign.judge(machine, [WANTED])) == []
    assert (foreign.blocking, foreign.equivalent) == ({}, {})
