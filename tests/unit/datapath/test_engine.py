"""Plans of whole batches, byte for byte."""

from __future__ import annotations

import re
from collections import Counter
from importlib import import_module
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

import pytest
from support import oracle
from support.batches import datagrams, for_the_tun, inbound, inbound_of_many, inbound_trains, outbound
from support.oracle import VnetHeader
from support.packets import (
    BOUND,
    ICMP,
    NETWORK,
    OWN_SUBNET,
    PORT,
    TCP,
    hop_taken,
    ipv4_packet,
    tcp_segment,
    udp_datagram,
    unfinished,
    with_checksum,
    with_ttl,
)

from flannelpy.datapath import engine as engine_module
from flannelpy.datapath.engine import Engine, Plan
from flannelpy.datapath.icmp_limit import BURST, TOTAL_BURST
from flannelpy.datapath.routes import NextHop, Routes
from flannelpy.datapath.source_check import SourceCheck
from flannelpy.packet import icmp, vnet_hdr
from flannelpy.packet.drops import DropReason

OWN, CONTAINER = "11.0.59.0", "11.0.59.2"
ON_A, ON_B, NOWHERE = "11.0.101.2", "11.0.55.2", "11.0.254.2"
SUBNET_A, SUBNET_B = IPv4Network("11.0.101.0/24"), IPv4Network("11.0.55.0/24")
A, B = NextHop("172.17.8.102", PORT), NextHop("172.17.8.103", PORT)
STRANGER = NextHop("172.17.8.150", PORT)


def engine(source_check: SourceCheck = SourceCheck.PEER, *, merge_tcp: bool = True) -> Engine:
    routes = Routes()
    routes.set(SUBNET_A, A)
    routes.set(SUBNET_B, B)
    return Engine(
        OWN_SUBNET, routes, network=NETWORK, bound=BOUND, port=PORT, source_check=source_check, merge_tcp=merge_tcp
    )


class Sent(NamedTuple):
    """A run without its tally."""

    next_hop: NextHop
    segment_size: int
    data: bytes


def same(plan: Plan, runs: list[Sent], packets: list[bytes], drops: dict[DropReason, int]) -> bool:
    """Whether the plan is this one by its bytes; the packets for the TUN are whole ones."""
    found = [Sent(run.next_hop, run.segment_size, bytes(run.data)) for run in plan.runs]
    given = [(vnet_hdr.PLAIN, packet) for packet in packets]
    return (found, for_the_tun(plan), Counter(plan.drops)) == (runs, given, Counter(drops))


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
        pytest.param([to(ON_A, 60), to(ON_A)], [(A, [60]), (A, [100])], id="a longer one starts a run"),
        pytest.param([to(ON_A), to(ON_B), to(ON_A)], [(A, [100]), (B, [100]), (A, [100])], id="order is kept"),
        pytest.param([to("11.0.101.9"), to(ON_A)], [(A, [100, 100])], id="two containers on one host"),
        pytest.param([to(ON_A), BROKEN, to(ON_A)], [(A, [100]), (A, [100])], id="a gap ends it"),
        pytest.param([to(ON_A)] * 64, [(A, [100] * 64)], id="a full batch"),
    ],
)
def test_neighbours_for_one_next_hop_form_a_run(packets: list[bytes], runs: list[tuple[NextHop, list[int]]]) -> None:
    plan = outbound(engine(), packets)
    sent = iter([hop_taken(packet) for packet in packets if packet is not BROKEN])
    expected = [Sent(next_hop, lengths[0], b"".join(next(sent) for _ in lengths)) for next_hop, lengths in runs]
    assert same(plan, expected, [], {DropReason.BAD_LENGTH: 1} if BROKEN in packets else {})


@pytest.mark.parametrize(
    ("packet", "reason", "kind"),
    [
        pytest.param(to(NOWHERE), DropReason.NO_ROUTE, icmp.NET_UNREACHABLE, id="no peer leases it"),
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
def test_the_sender_behind_our_device_gets_an_icmp_error(
    packet: bytes, reason: DropReason, kind: tuple[int, int]
) -> None:
    assert same(outbound(engine(), [packet]), [], [error(kind, packet)], {reason: 1})


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
    assert same(outbound(engine(), [packet]), [], [], {reason: 1})


def test_a_dropped_packet_lies_there_unchanged() -> None:
    packets = [to(NOWHERE), to(ON_A, ttl=1), BROKEN]
    decider = engine()
    outbound(decider, packets)
    assert decider.tun_buffer.startswith(b"".join(packets))


def test_each_packet_of_a_mixed_batch_gets_what_is_its_own() -> None:
    unroutable, dying = to(NOWHERE), to(ON_B, ttl=1)
    plan = outbound(engine(), [to(ON_A), unroutable, to(ON_B, 60), to(ON_B, 60), dying, BROKEN, to(ON_A, 80)])
    assert same(
        plan,
        [
            Sent(A, 100, hop_taken(to(ON_A))),
            Sent(B, 60, hop_taken(to(ON_B, 60)) * 2),
            Sent(A, 80, hop_taken(to(ON_A, 80))),
        ],
        [error(icmp.NET_UNREACHABLE, unroutable), error(icmp.TIME_EXCEEDED, dying)],
        {DropReason.NO_ROUTE: 1, DropReason.TTL_EXPIRED: 1, DropReason.BAD_LENGTH: 1},
    )


def test_errors_are_limited_and_drops_counted_all_the_same() -> None:
    decider = engine()
    plan = outbound(decider, [to(NOWHERE)] * 20)
    assert same(plan, [], [error(icmp.NET_UNREACHABLE, to(NOWHERE))] * BURST, {DropReason.NO_ROUTE: 20})
    assert len(outbound(decider, [to(NOWHERE), to(NOWHERE)], 0.2).packets) == 1


def test_errors_are_limited_for_each_sender_on_its_own() -> None:
    decider = engine()
    outbound(decider, [to(NOWHERE)] * 20)
    assert len(outbound(decider, [ipv4_packet("11.0.59.3", NOWHERE, bytes(8))]).packets) == 1


@pytest.mark.parametrize("source", [CONTAINER, ON_A])
@pytest.mark.parametrize(
    "destination", ["11.0.255.255", "11.0.0.0", "11.0.59.255", "11.0.101.255", "11.0.55.255", "255.255.255.255"]
)
@pytest.mark.parametrize("ttl", [63, 1])
def test_no_icmp_error_answers_a_broadcast(source: str, destination: str, ttl: int) -> None:
    for packet in (ipv4_packet(source, destination, ttl=ttl), ipv4_packet(destination, ON_A, ttl=1)):
        assert not outbound(engine(), [packet]).packets
    assert not inbound(engine(), [ipv4_packet(destination, CONTAINER, ttl=1)]).runs


def test_the_networks_first_address_may_be_a_host() -> None:
    routes = Routes()
    routes.set(IPv4Network("11.0.0.0/24"), A)
    decider = Engine(OWN_SUBNET, routes, network=NETWORK, bound=BOUND, port=PORT)
    dying = ipv4_packet("11.0.0.0", CONTAINER, bytes(8), ttl=1)
    assert len(inbound(decider, [dying]).runs) == 1
    first = Engine(IPv4Network("11.0.0.0/24"), Routes(), network=NETWORK, bound=BOUND, port=PORT)
    assert len(outbound(first, [ipv4_packet("11.0.0.0", ON_A)]).packets) == 1


def test_errors_are_limited_in_total_however_sources_rotate() -> None:
    decider = engine()
    flood = [ipv4_packet(f"11.0.{number}.{step}", NOWHERE) for number in range(2, 8) for step in range(1, 51)]
    answered = sum(len(outbound(decider, flood[at : at + 50]).packets) for at in range(0, 300, 50))
    assert answered == TOTAL_BURST
    dying = [arriving(ttl=1, source=f"11.0.101.{step}") for step in range(1, 200)]
    assert not inbound(decider, dying).runs
    assert len(inbound(decider, dying, 0.02).runs) == 20


@pytest.mark.parametrize("address", [str(BOUND), OWN])
@pytest.mark.parametrize("destination", [ON_A, NOWHERE])
@pytest.mark.parametrize("ttl", [64, 1])
def test_our_own_datagram_that_comes_back_is_dropped_without_an_icmp_error(
    address: str, destination: str, ttl: int
) -> None:
    """A route of the underlay leads into the overlay: sent once more it would come back once more."""
    packet = ipv4_packet(address, destination, udp_datagram(to(ON_A), ports=(PORT, PORT)), ttl=ttl)
    plan = outbound(engine(), [to(ON_A), packet, to(ON_A)])
    runs = [Sent(A, 100, hop_taken(to(ON_A)))] * 2
    assert same(plan, runs, [], {DropReason.OWN_DATAGRAM: 1})


def test_a_route_that_comes_or_goes_counts_for_the_next_batch() -> None:
    routes = Routes()
    decider = Engine(OWN_SUBNET, routes, network=NETWORK, bound=BOUND, port=PORT)
    assert not outbound(decider, [to(ON_A)]).runs
    routes.set(IPv4Network("11.0.101.0/24"), A)
    assert outbound(decider, [to(ON_A)]).runs
    routes.remove(IPv4Network("11.0.101.0/24"))
    assert not outbound(decider, [to(ON_A)]).runs


def arriving(length: int = 100, ttl: int = 62, source: str = ON_A, destination: str = CONTAINER) -> bytes:
    return ipv4_packet(source, destination, bytes(length - 20), ttl=ttl)


def test_what_arrives_goes_to_the_device_in_its_order() -> None:
    packets = [arriving(100), arriving(60), arriving(60, source=ON_B), arriving(1500), arriving(20)]
    assert same(inbound(engine(), packets), [], list(map(hop_taken, packets)), {})


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
    assert same(inbound(engine(), [datagram, arriving()]), [], [hop_taken(arriving())], {reason: 1})


@pytest.mark.parametrize("ttl", [0, 1])
@pytest.mark.parametrize(("source", "next_hop"), [(ON_A, A), (ON_B, B)])
def test_a_remote_sender_gets_time_exceeded_over_the_wire(ttl: int, source: str, next_hop: NextHop) -> None:
    packet = arriving(ttl=ttl, source=source)
    reply = error(icmp.TIME_EXCEEDED, packet)
    assert same(inbound(engine(), [packet]), [Sent(next_hop, len(reply), reply)], [], {DropReason.TTL_EXPIRED: 1})


@pytest.mark.parametrize("source", [NOWHERE, "8.8.8.8", "0.0.0.0"])
def test_a_sender_outside_all_leases_gets_no_icmp_error(source: str) -> None:
    plan = inbound(engine(), [arriving(ttl=1, source=source)])
    assert same(plan, [], [], {DropReason.TTL_EXPIRED: 1})


def test_a_packet_loses_two_hops_on_its_way_through_two_hosts() -> None:
    packet = to(ON_A, ttl=63)
    [run] = outbound(engine(), [packet]).runs
    routes = Routes()
    routes.set(OWN_SUBNET, NextHop("172.17.8.101", PORT))
    there = Engine(SUBNET_A, routes, network=NETWORK, bound=BOUND, port=PORT)
    assert for_the_tun(inbound(there, [bytes(run.data)], sender=("172.17.8.101", PORT))) == [
        (vnet_hdr.PLAIN, with_ttl(packet, 61))
    ]


# Who may send what


@pytest.mark.parametrize("source_check", SourceCheck)
@pytest.mark.parametrize(("address", "known"), [(A.public_ip, True), (STRANGER.public_ip, False), ("0.0.0.0", False)])
def test_only_hosts_with_a_lease_may_send_unless_the_check_is_off(
    source_check: SourceCheck, address: str, known: bool
) -> None:
    taken = known or source_check is SourceCheck.OFF
    given, drops = ([hop_taken(arriving())], {}) if taken else ([], {DropReason.UNKNOWN_SENDER: 1})
    assert same(inbound(engine(source_check), [arriving()], sender=(address, PORT)), [], given, drops)


@pytest.mark.parametrize("source_check", SourceCheck)
@pytest.mark.parametrize("port", [PORT - 1, PORT + 1, 1, 1024, 40000, 65535])
def test_a_known_address_may_send_from_the_backends_port_only_unless_the_check_is_off(
    source_check: SourceCheck, port: int
) -> None:
    """From another port it is a container behind a masquerade, or another network's host."""
    decider = engine(source_check)
    sender = A.public_ip, port
    plan = inbound(decider, [arriving(), arriving(ttl=1), BROKEN], sender=sender)
    if source_check is SourceCheck.OFF:
        assert for_the_tun(plan) == [(vnet_hdr.PLAIN, hop_taken(arriving()))]
        assert not decider.refused_senders
    else:
        assert same(plan, [], [], {DropReason.WRONG_SENDER_PORT: 3})
        assert decider.refused_senders == {DropReason.WRONG_SENDER_PORT: sender}


def test_each_train_of_a_batch_is_checked_by_its_own_port() -> None:
    trains = [(arriving(), 100, (A.public_ip, port)) for port in (PORT, 40000, PORT)] + [(arriving(), 100, STRANGER)]
    plan = inbound_of_many(engine(), trains)
    drops = {DropReason.WRONG_SENDER_PORT: 1, DropReason.UNKNOWN_SENDER: 1}
    assert same(plan, [], [hop_taken(arriving())] * 2, drops)


def test_what_an_unknown_sender_sends_is_counted_by_datagrams_and_never_looked_at() -> None:
    trains = [(bytes(64 * 28), 28), (bytes(57), 28), (b"", 0), (arriving(ttl=1), 100), (bytes(65507), 65507)]
    decider = engine()
    assert not decider.refused_senders
    plan = inbound_trains(decider, trains, sender=STRANGER)
    assert same(plan, [], [], {DropReason.UNKNOWN_SENDER: 64 + 3 + 1 + 1 + 1})
    assert decider.refused_senders == {DropReason.UNKNOWN_SENDER: STRANGER}


def test_an_unknown_sender_takes_nothing_from_those_between_whom_it_comes() -> None:
    one, two, three = received(3)
    trains = [(one, 140, A), (arriving(), 100, STRANGER), (two + three, 140, A)]
    plan = inbound_of_many(engine(), trains)
    assert len(plan.packets) == 1
    assert oracle.all_written(for_the_tun(plan)) == list(map(hop_taken, (one, two, three)))
    assert plan.drops == [DropReason.UNKNOWN_SENDER]


def test_a_sender_is_known_while_it_has_a_lease() -> None:
    routes = Routes()
    decider = Engine(OWN_SUBNET, routes, network=NETWORK, bound=BOUND, port=PORT)
    assert inbound(decider, [arriving()]).drops == [DropReason.UNKNOWN_SENDER]
    routes.set(SUBNET_A, A)
    assert inbound(decider, [arriving()]).drops == []
    routes.set(SUBNET_A, B)
    assert inbound(decider, [arriving()]).drops == [DropReason.UNKNOWN_SENDER]
    assert inbound(decider, [arriving()], sender=B).drops == []
    routes.remove(SUBNET_A)
    assert inbound(decider, [arriving()], sender=B).drops == [DropReason.UNKNOWN_SENDER]


@pytest.mark.parametrize("source_check", SourceCheck)
@pytest.mark.parametrize(
    ("source", "sender", "lenient", "strict"),
    [
        pytest.param(ON_A, A, True, True, id="its own"),
        pytest.param("11.0.101.0", A, True, True, id="its own device"),
        pytest.param(ON_B, A, True, False, id="another host's"),
        pytest.param(ON_A, B, True, False, id="another host's, the other way"),
        pytest.param("11.0.100.255", A, True, False, id="just below"),
        pytest.param("11.0.102.0", A, True, False, id="just above"),
        pytest.param("11.0.7.1", B, True, True, id="its second subnet"),
        pytest.param("8.8.8.8", A, True, False, id="the world"),
        pytest.param("11.0.59.0", A, False, False, id="ours: the device"),
        pytest.param("11.0.59.3", A, False, False, id="ours: a container"),
        pytest.param("11.0.59.255", A, False, False, id="ours: broadcast"),
    ],
)
def test_sources_are_never_ours_and_if_strict_the_senders(
    source_check: SourceCheck, source: str, sender: NextHop, lenient: bool, strict: bool
) -> None:
    routes = Routes()
    for subnet, next_hop in ((SUBNET_A, A), (SUBNET_B, B), (IPv4Network("11.0.7.0/24"), B)):
        routes.set(subnet, next_hop)
    decider = Engine(OWN_SUBNET, routes, network=NETWORK, bound=BOUND, port=PORT, source_check=source_check)
    packet = arriving(source=source)
    right = strict if source_check is SourceCheck.STRICT else lenient
    given, drops = ([hop_taken(packet)], {}) if right else ([], {DropReason.SPOOFED_SOURCE: 1})
    assert same(inbound(decider, [packet], sender=sender), [], given, drops)


def test_if_strict_each_train_of_a_batch_is_checked_by_its_own_sender() -> None:
    trains = [
        (arriving(source=source), 100, next_hop)
        for source, next_hop in ((ON_A, A), (ON_B, B), (ON_A, B), (ON_B, A), (ON_A, A))
    ]
    plan = inbound_of_many(engine(SourceCheck.STRICT), trains)
    assert same(plan, [], [hop_taken(trains[at][0]) for at in (0, 1, 4)], {DropReason.SPOOFED_SOURCE: 2})


@pytest.mark.parametrize("source_check", SourceCheck)
@pytest.mark.parametrize("ttl", [62, 1])
@pytest.mark.parametrize(
    "destination",
    ["11.0.59.255", "11.0.58.255", "11.0.60.0", ON_A, NOWHERE, "8.8.8.8", "224.0.0.251", "255.255.255.255", "0.0.0.0"],
)
def test_what_is_for_no_host_here_is_dropped_without_an_icmp_error(
    source_check: SourceCheck, destination: str, ttl: int
) -> None:
    """The original hands it to the kernel, which would forward it to wherever its routes lead."""
    packet = arriving(destination=destination, ttl=ttl)
    assert same(inbound(engine(source_check), [packet]), [], [], {DropReason.WRONG_DESTINATION: 1})


@pytest.mark.parametrize("ttl", [62, 1])
def test_a_source_that_is_ours_gets_no_icmp_error(ttl: int) -> None:
    packet = arriving(source="11.0.59.9", ttl=ttl)
    assert same(inbound(engine(), [packet]), [], [], {DropReason.SPOOFED_SOURCE: 1})


@pytest.mark.parametrize("destination", ["11.0.59.0", "11.0.59.1", "11.0.59.254"])
def test_every_address_of_our_subnet_but_the_last_is_a_host_here(destination: str) -> None:
    packet = arriving(destination=destination)
    assert same(inbound(engine(), [packet]), [], [hop_taken(packet)], {})


@pytest.mark.parametrize("covered", ["11.0.0.0/16", "11.0.59.0/24", "11.0.59.0/28", "11.0.59.2/32"])
@pytest.mark.parametrize("ttl", [63, 1])
def test_what_is_for_our_own_subnet_never_goes_to_the_wire_even_if_a_peer_leases_it_too(covered: str, ttl: int) -> None:
    """SubnetLen may have been another when they leased theirs."""
    routes = Routes()
    routes.set(IPv4Network(covered), A)
    packet = ipv4_packet("11.0.101.9", CONTAINER, bytes(80), ttl=ttl)
    plan = outbound(Engine(OWN_SUBNET, routes, network=NETWORK, bound=BOUND, port=PORT), [packet])
    assert same(plan, [], [error(icmp.NET_UNREACHABLE, packet)], {DropReason.NO_ROUTE: 1})


def test_neighbours_of_our_own_subnet_are_not_sent_together_with_them() -> None:
    """With nothing but a short prefix in use, both are equal under its mask."""
    routes = Routes()
    routes.set(IPv4Network("11.0.0.0/16"), A)
    own = ipv4_packet("11.0.101.9", CONTAINER, bytes(80))
    plan = outbound(
        Engine(OWN_SUBNET, routes, network=NETWORK, bound=BOUND, port=PORT),
        [to(ON_A), own, to(ON_B), to("11.0.58.255"), own],
    )
    runs = [Sent(A, 100, hop_taken(to(ON_A))), Sent(A, 100, hop_taken(to(ON_B)) + hop_taken(to("11.0.58.255")))]
    assert same(plan, runs, [error(icmp.NET_UNREACHABLE, own)] * 2, {DropReason.NO_ROUTE: 2})


# Super-packets

TCP_SUPER = VnetHeader(1, 1, 0, 1400, 20, 16)
UDP_SUPER = VnetHeader(1, 5, 0, 1400, 20, 6)
PLAIN = VnetHeader()
PAYLOAD = bytes(range(251)) * 262


def tcp(payload: int, destination: str = ON_A, ttl: int = 63) -> bytes:
    return unfinished(ipv4_packet(CONTAINER, destination, tcp_segment(PAYLOAD[:payload]), protocol=TCP, ttl=ttl))


def udp(payload: int, destination: str = ON_A) -> bytes:
    return unfinished(ipv4_packet(CONTAINER, destination, udp_datagram(PAYLOAD[:payload]), ttl=63))


def shapes(plan: Plan) -> list[tuple[NextHop, int, int]]:
    return [(run.next_hop, run.segment_size, len(run.data)) for run in plan.runs]


@pytest.mark.parametrize(
    ("header", "packet", "runs"),
    [
        pytest.param(TCP_SUPER, tcp(3000), [(1440, 3120)], id="tcp"),
        pytest.param(UDP_SUPER, udp(3000), [(1428, 3084)], id="udp"),
        pytest.param(TCP_SUPER, tcp(1400), [(1440, 1440)], id="one segment"),
        pytest.param(TCP_SUPER, tcp(65495), [(1440, 64800), (1440, 65495 - 45 * 1400 + 2 * 40)], id="65,000 bytes"),
        pytest.param(TCP_SUPER._replace(gso_size=100), tcp(13000), [(140, 8960), (140, 8960), (140, 280)], id="64"),
        pytest.param(TCP_SUPER._replace(gso_size=40000), tcp(65495), [(40040, 40040), (40040, 25535)], id="large"),
        pytest.param(TCP_SUPER._replace(gso_size=64961), tcp(65495), [(65001, 65001), (65001, 574)], id="larger"),
        pytest.param(TCP_SUPER._replace(gso_size=65535), tcp(65495), [(65575, 65535)], id="no limit"),
    ],
)
def test_a_super_packet_becomes_runs_of_its_segments(
    header: VnetHeader, packet: bytes, runs: list[tuple[int, int]]
) -> None:
    """None of them is longer than one send may be, unless a segment is."""
    plan = outbound(engine(), [packet], headers=[header])
    assert shapes(plan) == [(A, *run) for run in runs]
    assert [data for _, data in datagrams(plan)] == oracle.segments(hop_taken(packet), header.gso_size)
    assert not plan.packets
    assert not plan.drops


def test_super_packets_and_others_keep_their_order() -> None:
    packets = [to(ON_A), tcp(3000), udp(3000, ON_B), to(ON_B), to(ON_B), tcp(2800), to(ON_A, 60)]
    headers = [PLAIN, TCP_SUPER, UDP_SUPER, PLAIN, PLAIN, TCP_SUPER, PLAIN]
    plan = outbound(engine(), packets, headers=headers)
    assert datagrams(plan) == [
        (B if packet[16:20] == IPv4Address(ON_B).packed else A, segment)
        for packet, header in zip(packets, headers, strict=True)
        for segment in (oracle.segments(hop_taken(packet), 1400) if header.gso_size else [hop_taken(packet)])
    ]
    assert [size for _, size, _ in shapes(plan)] == [100, 1440, 1428, 100, 1440, 60]


def test_a_checksum_that_the_kernel_left_to_us_is_finished_on_the_way() -> None:
    packet = ipv4_packet(CONTAINER, ON_A, tcp_segment(b"", flags=2), protocol=TCP)
    [run] = outbound(engine(), [unfinished(packet)], headers=[VnetHeader(1, 0, 0, 0, 20, 16)]).runs
    assert bytes(run.data) == hop_taken(with_checksum(packet))


@pytest.mark.parametrize(
    ("header", "packet"),
    [
        pytest.param(TCP_SUPER._replace(gso_size=0), tcp(3000), id="gso_size 0"),
        pytest.param(UDP_SUPER, tcp(3000), id="another protocol's type"),
        pytest.param(UDP_SUPER, ipv4_packet(CONTAINER, ON_A, bytes(3000), protocol=ICMP), id="neither tcp nor udp"),
        pytest.param(TCP_SUPER, tcp(0), id="no payload"),
        pytest.param(TCP_SUPER, tcp(3000)[:32] + b"\x10" + tcp(3000)[33:], id="tcp header too short"),
        pytest.param(VnetHeader(1, 0, 0, 0, 20, 0xFFF0), tcp(3000), id="a checksum outside"),
        pytest.param(TCP_SUPER._replace(gso_size=1), tcp(65495), id="more than the buffer holds"),
    ],
)
def test_a_vnet_header_that_makes_no_sense_costs_its_packet_and_no_other(header: VnetHeader, packet: bytes) -> None:
    plan = outbound(engine(), [to(ON_A), packet, tcp(3000)], headers=[PLAIN, header, TCP_SUPER])
    sent = [hop_taken(to(ON_A)), *oracle.segments(hop_taken(tcp(3000)), 1400)]
    assert datagrams(plan) == [(A, datagram) for datagram in sent]
    assert plan.drops == [DropReason.BAD_VNET_HDR]
    assert not plan.packets


@pytest.mark.parametrize(
    ("packet", "reason", "kind"),
    [
        (tcp(3000, NOWHERE), DropReason.NO_ROUTE, icmp.NET_UNREACHABLE),
        (tcp(3000, ttl=1), DropReason.TTL_EXPIRED, icmp.TIME_EXCEEDED),
        (tcp(3000, NOWHERE, ttl=1), DropReason.NO_ROUTE, icmp.NET_UNREACHABLE),
    ],
)
def test_the_sender_of_a_super_packet_gets_one_icmp_error(
    packet: bytes, reason: DropReason, kind: tuple[int, int]
) -> None:
    plan = outbound(engine(), [packet], headers=[TCP_SUPER])
    assert same(plan, [], [error(kind, packet)], {reason: 1})


def received(count: int, destination: str = CONTAINER) -> list[bytes]:
    """Packets of one TCP flow in sequence."""
    return [
        with_checksum(
            ipv4_packet(
                ON_A,
                destination,
                tcp_segment(PAYLOAD[number * 100 : number * 100 + 100], sequence=number * 100),
                protocol=TCP,
                identification=number,
                ttl=62,
            )
        )
        for number in range(count)
    ]


@pytest.mark.parametrize(("merge_tcp", "expected"), [(True, 1), (False, 5)])
def test_what_belongs_together_is_given_to_the_device_as_one_if_it_can_take_that(
    merge_tcp: bool, expected: int
) -> None:
    packets = received(5)
    for trains in ([(packet, 140) for packet in packets], [(b"".join(packets), 140)]):
        plan = inbound_trains(engine(merge_tcp=merge_tcp), trains)
        assert len(plan.packets) == expected
        assert oracle.all_written(for_the_tun(plan)) == list(map(hop_taken, packets))


def test_packets_of_a_train_are_each_checked() -> None:
    """The kernel joins datagrams by their length and sender and knows nothing of what is in them."""
    packets = [*received(2), bytes(140), *received(2)]
    packets[4] = with_ttl(packets[4], 1)
    plan = inbound_trains(engine(), [(b"".join(packets), 140)])
    reply = error(icmp.TIME_EXCEEDED, packets[4])
    assert oracle.all_written(for_the_tun(plan)) == [hop_taken(packets[number]) for number in (0, 1, 3)]
    assert datagrams(plan) == [(A, reply)]
    assert plan.drops == [DropReason.NOT_IPV4, DropReason.TTL_EXPIRED]


def test_a_super_packet_for_our_own_subnet_is_refused_too() -> None:
    routes = Routes()
    routes.set(IPv4Network("11.0.0.0/16"), A)
    packet = tcp(3000, CONTAINER)
    plan = outbound(Engine(OWN_SUBNET, routes, network=NETWORK, bound=BOUND, port=PORT), [packet], headers=[TCP_SUPER])
    assert same(plan, [], [error(icmp.NET_UNREACHABLE, packet)], {DropReason.NO_ROUTE: 1})


def test_every_step_of_start_here_exists() -> None:
    steps = re.findall(r"^\d+\. (\S+)\.py:(\w+)\.(\w+) ", engine_module.__doc__ or "", re.MULTILINE)
    assert len(steps) == 10
    for path, name, method in steps:
        assert callable(getattr(getattr(import_module(f"flannelpy.{path.replace('/', '.')}"), name), method))
