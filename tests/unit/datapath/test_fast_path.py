"""The tables and layouts of the fast path; tests/netns/test_fast_path.py runs the programs."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network

import pytest
from support.batches import for_the_tun, inbound, outbound
from support.packets import BOUND, NETWORK, OWN_SUBNET, PORT

from flannelpy.datapath.engine import Engine
from flannelpy.datapath.fast_path import golden, incoming, maps, outgoing
from flannelpy.datapath.fast_path.checks import Check, Incoming, Outgoing
from flannelpy.datapath.fast_path.parts import Constants
from flannelpy.datapath.routes import NextHop, Routes
from flannelpy.datapath.source_check import SourceCheck

CONSTANTS = Constants(OWN_SUBNET, BOUND, PORT, SourceCheck.PEER, ttl=64)
PEER = IPv4Network("11.0.101.0/24")
PUBLIC_IP = IPv4Address("172.17.8.102")


@pytest.mark.parametrize("checks", [Outgoing, Incoming])
def test_a_table_counts_each_check_by_itself(checks: type[Check]) -> None:
    assert [check.index for check in checks] == list(range(len(checks)))
    assert len({check.label for check in checks}) == len(checks)


@pytest.mark.parametrize("source_check", SourceCheck)
def test_programs_are_short(source_check: SourceCheck) -> None:
    """A hundred nanoseconds are a hundred instructions; most packets need no look-up of the incoming program."""
    constants = CONSTANTS._replace(source_check=source_check)
    assert len(outgoing.program(constants).instructions) < 400
    assert len(incoming.program(constants, forgets_encapsulation=False).instructions) < 450


def test_programs_refer_to_maps_that_there_are() -> None:
    for program in (outgoing.program(CONSTANTS), incoming.program(CONSTANTS, forgets_encapsulation=False)):
        assert set(program.maps.values()) <= set(maps.MAPS)


def test_the_engine_makes_the_golden_packets() -> None:
    routes = Routes()
    routes.set(PEER, NextHop(str(PUBLIC_IP), PORT))
    engine = Engine(OWN_SUBNET, routes, network=NETWORK, bound=BOUND, port=PORT)
    sent = golden.outgoing(CONSTANTS, PEER, PUBLIC_IP)
    [run] = outbound(engine, [sent.packet[14:]]).runs
    assert sent.result[28:] == bytes(run.data)
    arrived = golden.incoming(CONSTANTS, PEER, PUBLIC_IP)
    [(_, packet)] = for_the_tun(inbound(engine, [arrived.packet[42:]]))
    assert arrived.result == packet


def test_layouts() -> None:
    assert maps.route_key(PEER) == struct.pack("=I", 24) + bytes((11, 0, 101, 0))
    assert maps.route_value(maps.subnet_key(PEER), PUBLIC_IP) == bytes(
        (11, 0, 101, 0, 255, 255, 255, 0, 172, 17, 8, 102)
    )
    assert maps.subnet_key(PEER) == bytes((11, 0, 101, 0, 255, 255, 255, 0))
    assert maps.sender_key(PUBLIC_IP, PEER) == struct.pack("=I", 56) + bytes((172, 17, 8, 102, 11, 0, 101, 0))
    assert maps.settings(1.5, 7) == struct.pack("=QII", 1_500_000_000, 7, 0)
    assert maps.settings(float("inf"), 7) == struct.pack("=QII", (1 << 64) - 1, 7, 0)
    assert maps.settings(-1.0, 7) == struct.pack("=QII", 0, 7, 0)
    for kind, value in (
        ("routes", maps.route_value(maps.subnet_key(PEER), PUBLIC_IP)),
        ("settings", maps.settings(0, 1)),
    ):
        assert maps.MAPS[kind].value_size == len(value)


def test_the_values_of_all_processors_are_added_up() -> None:
    total = maps.totals(struct.pack("=5Q", 1, 100, 2, 200, 5_000_000_000) + struct.pack("=5Q", 10, 1000, 20, 2000, 0))
    assert (total.packets_out, total.bytes_out, total.packets_in, total.bytes_in) == (11, 1100, 22, 2200)
    assert total.heard_at == 5.0


def test_the_counters_of_the_checks() -> None:
    numbers = [7 * (index == Outgoing.TTL.index) for index in range(len(Outgoing))]
    assert maps.left(struct.pack(f"={len(numbers)}Q", *numbers), Outgoing) == {Outgoing.TTL: 7}
