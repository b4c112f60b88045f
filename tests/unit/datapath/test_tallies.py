"""What an engine counts for each peer, against the sum over the trace of a run."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Network

from hypothesis import given
from hypothesis import strategies as st
from support.batches import inbound_of_many, outbound
from support.packets import BOUND, NETWORK, OWN_SUBNET, PORT, ipv4_packet

from flannelpy.datapath.engine import Engine
from flannelpy.datapath.routes import NextHop, Routes
from flannelpy.datapath.source_check import SourceCheck

A, B = IPv4Network("11.0.101.0/24"), IPv4Network("11.0.102.0/24")
A_SECOND = IPv4Network("11.0.103.0/24")
CONTAINER = "11.0.59.7"
HOST_A, HOST_B = "172.17.8.102", "172.17.8.103"


def make(source_check: SourceCheck = SourceCheck.PEER) -> tuple[Routes, Engine]:
    routes = Routes()
    routes.set(A, NextHop(HOST_A, PORT))
    routes.set(B, NextHop(HOST_B, PORT))
    return routes, Engine(OWN_SUBNET, routes, network=NETWORK, bound=BOUND, port=PORT, source_check=source_check)


def counts(routes: Routes, subnet: IPv4Network) -> tuple[int, int, float]:
    route = routes.get(subnet)
    assert route is not None
    return route.tally.packets_in, route.tally.bytes_in, route.tally.heard_at


TRAINS = st.lists(
    st.tuples(
        st.sampled_from([HOST_A, HOST_B, "172.17.8.150"]),
        st.integers(40, 90),
        st.lists(st.sampled_from(["good", "dying", "misdirected"]), min_size=1, max_size=6),
    ),
    max_size=8,
)


def datagram(kind: str, host: str, size: int) -> bytes:
    source = "11.0.102.7" if host == HOST_B else "11.0.101.7"
    destination = "11.0.7.7" if kind == "misdirected" else CONTAINER
    return ipv4_packet(source, destination, ttl=1 if kind == "dying" else 9, payload=bytes(size - 20))


@given(st.lists(TRAINS, max_size=4))
def test_accepted_packets_are_counted_for_their_sender(batches: list[list[tuple[str, int, list[str]]]]) -> None:
    routes, engine = make()
    packets, size_in = Counter[str](), Counter[str]()
    heard = dict.fromkeys((HOST_A, HOST_B), 0.0)
    for now, batch in enumerate(batches, 1):
        trains = [
            (b"".join(datagram(kind, host, size) for kind in kinds), size, (host, PORT)) for host, size, kinds in batch
        ]
        inbound_of_many(engine, trains, float(now))
        for host, size, kinds in batch:
            packets[host] += kinds.count("good")
            size_in[host] += kinds.count("good") * size
            if "good" in kinds:
                heard[host] = float(now)
    assert counts(routes, A) == (packets[HOST_A], size_in[HOST_A], heard[HOST_A])
    assert counts(routes, B) == (packets[HOST_B], size_in[HOST_B], heard[HOST_B])


def test_of_several_subnets_of_one_sender_the_first_source_decides() -> None:
    routes, engine = make()
    routes.set(A_SECOND, NextHop(HOST_A, PORT))
    for source in ("11.0.103.7", "11.0.101.7", "11.0.103.7", "11.0.55.7"):
        packet = ipv4_packet(source, CONTAINER, payload=bytes(40))
        inbound_of_many(engine, [(packet, 60, (HOST_A, PORT))], 1.0)
    assert (counts(routes, A)[0], counts(routes, A_SECOND)[0]) == (2, 2)
    inbound_of_many(engine, [(b"short", 5, (HOST_A, PORT))], 2.0)
    assert (counts(routes, A)[0], counts(routes, A_SECOND)[0]) == (2, 2)


def test_without_a_source_check_the_subnet_of_the_source_counts() -> None:
    routes, engine = make(SourceCheck.OFF)
    for source in ("11.0.102.7", "11.0.200.7"):
        inbound_of_many(engine, [(ipv4_packet(source, CONTAINER, payload=bytes(40)), 60, ("192.0.2.1", 40000))], 1.0)
    assert counts(routes, B) == (1, 60, 1.0)
    assert counts(routes, A) == (0, 0, 0.0)


def test_the_counts_stay_when_the_public_ip_changes_and_go_with_the_lease() -> None:
    routes, engine = make()
    [run] = outbound(engine, [ipv4_packet(CONTAINER, "11.0.101.7", payload=bytes(40))]).runs
    run.tally.sent(len(run.data), run.segment_size)
    routes.set(A, NextHop("172.17.8.110", PORT))
    inbound_of_many(
        engine, [(ipv4_packet("11.0.101.7", CONTAINER, payload=bytes(60)), 80, ("172.17.8.110", PORT))], 3.0
    )
    route = routes.get(A)
    assert route is not None
    assert (route.tally.packets_out, route.tally.bytes_out) == (1, 60)
    assert counts(routes, A) == (1, 80, 3.0)
    routes.remove(A)
    assert routes.get(A) is None
    routes.set(A, NextHop(HOST_A, PORT))
    assert counts(routes, A) == (0, 0, 0.0)
