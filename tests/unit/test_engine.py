"""What becomes of batches: whole plans, byte for byte."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address, IPv4Network

import pytest
from packets import ICMP, hop_taken, ipv4_packet, with_ttl

from flannelpy.backend.udp.engine import Batch, Engine, Plan, Run
from flannelpy.backend.udp.icmp_limit import BURST
from flannelpy.backend.udp.routes import NextHop, Routes
from flannelpy.packet import icmp
from flannelpy.packet.drops import DropReason

OWN, CONTAINER = "11.0.59.0", "11.0.59.2"
ON_A, ON_B, NOWHERE = "11.0.101.2", "11.0.55.2", "11.0.254.2"
A, B = NextHop("172.17.8.102", 8285), NextHop("172.17.8.103", 8285)


def engine() -> Engine:
    routes = Routes()
    routes.set(IPv4Network("11.0.101.0/24"), A)
    routes.set(IPv4Network("11.0.55.0/24"), B)
    return Engine(IPv4Address(OWN), routes)


def batch(*packets: bytes) -> Batch:
    """The packets, and rubbish of an earlier batch behind them."""
    return Batch(bytearray(b"".join(packets) + b"\xa5" * 100), list(map(len, packets)))


def same(plan: Plan, expected: Plan) -> bool:
    """Views are compared by their bytes."""
    runs = [Run(run.next_hop, run.segment_size, bytes(run.data)) for run in plan.runs]
    return Plan(runs, list(map(bytes, plan.packets)), plan.drops) == expected


def to(destination: str, length: int = 100, ttl: int = 63) -> bytes:
    return ipv4_packet(CONTAINER, destination, bytes(length - 20), ttl=ttl)


def error(kind: tuple[int, int], packet: bytes) -> bytes:
    return icmp.error(kind, packet, IPv4Address(OWN).packed)


BROKEN = to(ON_A)[:-1]


@pytest.mark.parametrize(
    ("packets", "runs"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([to(ON_A)], [(A, [100])], id="one"),
        pytest.param([to(ON_A)] * 3, [(A, [100, 100, 100])], id="equal lengths"),
        pytest.param([to(ON_A), to(ON_A, 60)], [(A, [100, 60])], id="the last may be shorter"),
        pytest.param([to(ON_A), to(ON_A, 60), to(ON_A, 60)], [(A, [100, 60]), (A, [60])], id="a shorter one ends"),
        pytest.param([to(ON_A, 60), to(ON_A)], [(A, [60]), (A, [100])], id="a longer one begins anew"),
        pytest.param([to(ON_A), to(ON_B), to(ON_A)], [(A, [100]), (B, [100]), (A, [100])], id="order is kept"),
        pytest.param([to("11.0.101.9"), to(ON_A)], [(A, [100, 100])], id="two containers on one host"),
        pytest.param([to(ON_A), BROKEN, to(ON_A)], [(A, [100]), (A, [100])], id="a gap ends it"),
        pytest.param([to(ON_A)] * 64, [(A, [100] * 64)], id="a full batch"),
    ],
)
def test_neighbours_for_one_next_hop_form_a_run(packets: list[bytes], runs: list[tuple[NextHop, list[int]]]) -> None:
    plan = engine().outbound(batch(*packets), 0.0)
    sent = iter([hop_taken(packet) for packet in packets if packet is not BROKEN])
    expected = [Run(next_hop, lengths[0], b"".join(next(sent) for _ in lengths)) for next_hop, lengths in runs]
    assert same(
        plan, Plan(expected, [], Counter({DropReason.BAD_LENGTH: packets.count(BROKEN)} if BROKEN in packets else {}))
    )


@pytest.mark.parametrize(
    ("packet", "reason", "kind"),
    [
        pytest.param(to(NOWHERE), DropReason.NO_ROUTE, icmp.NET_UNREACHABLE, id="nobody leases it"),
        pytest.param(to(NOWHERE, ttl=1), DropReason.NO_ROUTE, icmp.NET_UNREACHABLE, id="nor with TTL 1"),
        pytest.param(to(ON_A, ttl=1), DropReason.TTL_EXPIRED, icmp.TIME_EXCEEDED, id="last hop"),
        pytest.param(to(ON_A, ttl=0), DropReason.TTL_EXPIRED, icmp.TIME_EXCEEDED, id="no hop"),
        pytest.param(
            ipv4_packet(CONTAINER, NOWHERE, b"\x08\x00" + bytes(62), protocol=ICMP),
            DropReason.NO_ROUTE,
            icmp.NET_UNREACHABLE,
            id="ping",
        ),
    ],
)
def test_the_sender_behind_our_device_is_told_why(packet: bytes, reason: DropReason, kind: tuple[int, int]) -> None:
    plan = engine().outbound(batch(packet), 0.0)
    assert same(plan, Plan([], [error(kind, packet)], Counter({reason: 1})))


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        pytest.param(b"", DropReason.TRUNCATED, id="empty"),
        pytest.param(to(ON_A)[:19], DropReason.TRUNCATED, id="truncated"),
        pytest.param(b"\x60" + bytes(47), DropReason.NOT_IPV4, id="ipv6"),
        pytest.param(b"\x44" + to(ON_A)[1:], DropReason.BAD_HEADER, id="short header"),
        pytest.param(BROKEN, DropReason.BAD_LENGTH, id="cut"),
        pytest.param(
            ipv4_packet(CONTAINER, NOWHERE, b"\x03\x00" + bytes(30), protocol=ICMP),
            DropReason.NO_ROUTE,
            id="icmp error",
        ),
        pytest.param(ipv4_packet(CONTAINER, NOWHERE, bytes(8), fragment=1), DropReason.NO_ROUTE, id="later fragment"),
        pytest.param(ipv4_packet(CONTAINER, "224.0.0.251", bytes(8)), DropReason.NO_ROUTE, id="multicast"),
        pytest.param(ipv4_packet("0.0.0.0", NOWHERE, bytes(8)), DropReason.NO_ROUTE, id="no source"),
    ],
)
def test_what_must_not_be_answered_is_only_counted(packet: bytes, reason: DropReason) -> None:
    assert same(engine().outbound(batch(packet), 0.0), Plan([], [], Counter({reason: 1})))


def test_a_dropped_packet_lies_there_unchanged() -> None:
    packets = [to(NOWHERE), to(ON_A, ttl=1), BROKEN]
    given = batch(*packets)
    engine().outbound(given, 0.0)
    assert given == batch(*packets)


def test_each_packet_of_a_mixed_batch_gets_what_is_its_own() -> None:
    unroutable, dying = to(NOWHERE), to(ON_B, ttl=1)
    plan = engine().outbound(batch(to(ON_A), unroutable, to(ON_B, 60), to(ON_B, 60), dying, BROKEN, to(ON_A, 80)), 0.0)
    assert same(
        plan,
        Plan(
            [
                Run(A, 100, hop_taken(to(ON_A))),
                Run(B, 60, hop_taken(to(ON_B, 60)) * 2),
                Run(A, 80, hop_taken(to(ON_A, 80))),
            ],
            [error(icmp.NET_UNREACHABLE, unroutable), error(icmp.TIME_EXCEEDED, dying)],
            Counter({DropReason.NO_ROUTE: 1, DropReason.TTL_EXPIRED: 1, DropReason.BAD_LENGTH: 1}),
        ),
    )


def test_errors_are_limited_and_drops_counted_all_the_same() -> None:
    decider = engine()
    plan = decider.outbound(batch(*[to(NOWHERE)] * 20), 0.0)
    assert same(plan, Plan([], [error(icmp.NET_UNREACHABLE, to(NOWHERE))] * BURST, Counter({DropReason.NO_ROUTE: 20})))
    assert len(decider.outbound(batch(to(NOWHERE), to(NOWHERE)), 0.2).packets) == 1


def test_errors_are_limited_for_each_sender_on_its_own() -> None:
    decider = engine()
    decider.outbound(batch(*[to(NOWHERE)] * 20), 0.0)
    assert len(decider.outbound(batch(ipv4_packet("11.0.59.3", NOWHERE, bytes(8))), 0.0).packets) == 1


def test_a_route_that_comes_or_goes_counts_for_the_next_batch() -> None:
    routes = Routes()
    decider = Engine(IPv4Address(OWN), routes)
    assert not decider.outbound(batch(to(ON_A)), 0.0).runs
    routes.set(IPv4Network("11.0.101.0/24"), A)
    assert decider.outbound(batch(to(ON_A)), 0.0).runs
    routes.remove(IPv4Network("11.0.101.0/24"))
    assert not decider.outbound(batch(to(ON_A)), 0.0).runs


def arriving(length: int = 100, ttl: int = 62, source: str = ON_A, destination: str = CONTAINER) -> bytes:
    return ipv4_packet(source, destination, bytes(length - 20), ttl=ttl)


def test_what_arrives_goes_to_the_device_in_its_order() -> None:
    packets = [arriving(100), arriving(60), arriving(60, source=ON_B), arriving(1500), arriving(20)]
    plan = engine().inbound(batch(*packets), 0.0)
    assert same(plan, Plan([], list(map(hop_taken, packets)), Counter()))


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (b"", DropReason.TRUNCATED),
        (b"\x45", DropReason.TRUNCATED),
        (b"\x60" + bytes(47), DropReason.NOT_IPV4),
        (b"\x42" + bytes(30), DropReason.BAD_HEADER),
        (arriving() + b"\x00", DropReason.BAD_LENGTH),
        (arriving()[:-1], DropReason.BAD_LENGTH),
    ],
)
def test_a_datagram_that_is_no_packet_is_only_counted(datagram: bytes, reason: DropReason) -> None:
    plan = engine().inbound(batch(datagram, arriving()), 0.0)
    assert same(plan, Plan([], [hop_taken(arriving())], Counter({reason: 1})))


@pytest.mark.parametrize("ttl", [0, 1])
@pytest.mark.parametrize(("source", "next_hop"), [(ON_A, A), (ON_B, B)])
def test_a_remote_sender_is_told_over_the_wire_that_its_hops_are_used_up(
    ttl: int, source: str, next_hop: NextHop
) -> None:
    packet = arriving(ttl=ttl, source=source)
    reply = error(icmp.TIME_EXCEEDED, packet)
    plan = engine().inbound(batch(packet), 0.0)
    assert same(plan, Plan([Run(next_hop, len(reply), reply)], [], Counter({DropReason.TTL_EXPIRED: 1})))


@pytest.mark.parametrize("source", [NOWHERE, "8.8.8.8", "0.0.0.0"])
def test_a_sender_that_nobody_leases_is_told_nothing(source: str) -> None:
    plan = engine().inbound(batch(arriving(ttl=1, source=source)), 0.0)
    assert same(plan, Plan([], [], Counter({DropReason.TTL_EXPIRED: 1})))


def test_a_packet_loses_two_hops_on_its_way_through_two_hosts() -> None:
    packet = to(ON_A, ttl=63)
    [run] = engine().outbound(batch(packet), 0.0).runs
    there = Engine(IPv4Address("11.0.101.0"), Routes())
    [delivered] = there.inbound(batch(bytes(run.data)), 0.0).packets
    assert bytes(delivered) == with_ttl(packet, 61)
