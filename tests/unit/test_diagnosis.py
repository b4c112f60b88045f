"""Which problems a report shows: each state in which a network is not well has a code, a text and a remedy."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannelpy.diagnosis import _TABLE, ProblemCode, problems
from flannelpy.report import (
    BackendReport,
    ConfigReport,
    ConfigState,
    DaemonReport,
    FirewallReport,
    InterfaceReport,
    LeaseReport,
    NetworkReport,
    NetworkState,
    PeerRoutesReport,
    RepairReport,
    StoreReport,
    TrafficReport,
)

NOW = 1_800_000_000.0
SUBNET = IPv4Network("11.0.59.0/24")
STORE = StoreReport(3, "http://10.0.0.1:2379", NOW - 30, None)
SILENT = StoreReport(3, "http://10.0.0.1:2379", NOW - 72, NOW - 65, "http://10.0.0.1:2379: no answer in time")
HOST = IPv4Address("172.17.8.101")
WELL = NetworkReport(
    "blue",
    NetworkState.READY,
    lease=LeaseReport(SUBNET, 86000.0, NOW - 400, NOW - 400, 7),
    backend=BackendReport("udp", 2, 0, {"no_route": 3}, "flannel0", 1472, ("gro",), 28),
    interface=InterfaceReport("eth1", "", HOST, HOST, 1500),
    kernel_state=RepairReport(3),
    firewall=FirewallReport(1, "", "an obstacle before there are containers"),
    peer_routes=PeerRoutesReport(),
    traffic=TrafficReport(),
    config=ConfigReport(ConfigState.IN_USE),
    store=STORE,
)
#: Before a subnet is leased.
EARLY = NetworkReport("blue", NetworkState.WAITING_FOR_CONFIG, store=STORE)


def found(network: NetworkReport) -> list[tuple[ProblemCode, str]]:
    result = problems(DaemonReport((network,), at=NOW))
    assert all(problem.network == network.name for problem in result)
    assert all(problem.text and "\n" not in problem.text + problem.remedy for problem in result)
    assert all(problem.remedy for problem in result)
    return [(problem.code, problem.text) for problem in result]


ROWS = [
    (
        NetworkReport("blue", NetworkState.FAILED, "port 8285 is taken"),
        ProblemCode.NETWORK_FAILED,
        "port 8285 is taken",
    ),
    (
        replace(WELL, store=SILENT),
        ProblemCode.STORE_SILENT,
        "etcd v3 has given no usable answer for 1 min 5 s: http://10.0.0.1:2379: no answer in time",
    ),
    (
        replace(WELL, second_store=replace(SILENT, api=2)),
        ProblemCode.STORE_SILENT,
        "etcd v2 has given no usable answer for 1 min 5 s: http://10.0.0.1:2379: no answer in time",
    ),
    (
        replace(EARLY, store=replace(SILENT, api=None)),
        ProblemCode.STORE_SILENT,
        "etcd has given no usable answer for 1 min 5 s: http://10.0.0.1:2379: no answer in time",
    ),
    (
        replace(EARLY, config=ConfigReport(ConfigState.MISSING, "/config: key not found")),
        ProblemCode.CONFIG_MISSING,
        "/config: key not found",
    ),
    (
        replace(EARLY, config=ConfigReport(ConfigState.INVALID, "unknown backend type: 'gre'")),
        ProblemCode.CONFIG_INVALID,
        "unknown backend type: 'gre'",
    ),
    (
        replace(WELL, config=ConfigReport(ConfigState.CHANGED, "Network config in etcd was changed")),
        ProblemCode.CONFIG_CHANGED,
        "Network config in etcd was changed",
    ),
    (
        replace(EARLY, state=NetworkState.WAITING_FOR_LEASE, lease_problem="out of subnets"),
        ProblemCode.LEASE_MISSING,
        "no subnet could be leased yet: out of subnets",
    ),
    (
        replace(EARLY, state=NetworkState.WAITING_FOR_LEASE, lease_problem="no answer in time", store=SILENT),
        ProblemCode.STORE_SILENT,
        "etcd v3 has given no usable answer for 1 min 5 s: http://10.0.0.1:2379: no answer in time",
    ),
    (
        replace(WELL, lease=LeaseReport(SUBNET, 3540.4, problem="etcdserver: mvcc: database space exceeded")),
        ProblemCode.LEASE_ENDING,
        "the lease of 11.0.59.0/24 ends in 59 min, and renewals fail: etcdserver: mvcc: database space exceeded",
    ),
    (
        replace(WELL, state=NetworkState.WAITING_FOR_PEERS),
        ProblemCode.PEERS_UNKNOWN,
        "the leases of the other hosts are not in use yet",
    ),
    (
        replace(WELL, interface=InterfaceReport("eth1", "eth1 is down")),
        ProblemCode.EXTERNAL_INTERFACE,
        "eth1 is down",
    ),
    (
        replace(WELL, peer_routes=PeerRoutesReport("no peer is reachable")),
        ProblemCode.NO_ROUTE_TO_PEERS,
        "no peer is reachable",
    ),
    (
        replace(WELL, kernel_state=RepairReport(1, "flannel0 cannot be restored")),
        ProblemCode.KERNEL_STATE,
        "flannel0 cannot be restored",
    ),
    (
        replace(WELL, traffic=TrafficReport("net.ipv4.ip_forward is 0; set it: sysctl -w net.ipv4.ip_forward=1")),
        ProblemCode.CONTAINERS_BLOCKED,
        "net.ipv4.ip_forward is 0",
    ),
    (
        replace(WELL, interface=InterfaceReport("eth1", "", HOST, HOST, 1499)),
        ProblemCode.MTU,
        "packets of containers have up to 1472 bytes, which need an MTU of 1500 on eth1; it has 1499",
    ),
    (
        replace(WELL, backend=BackendReport("udp", 2, 3)),
        ProblemCode.PEERS_UNREACHABLE,
        "3 of 5 peers cannot be reached from this host",
    ),
    (
        replace(WELL, kernel_state=RepairReport(0, "route 11.0.0.0/17"), backend=BackendReport("udp", 0, 2)),
        ProblemCode.KERNEL_STATE,
        "route 11.0.0.0/17",
    ),
    (
        replace(WELL, firewall=FirewallReport(0, "Failed to check iptables rules")),
        ProblemCode.FIREWALL,
        "Failed to check iptables rules",
    ),
    (NetworkReport("blue", NetworkState.STARTING), ProblemCode.NOT_READY, "the network is starting"),
    (EARLY, ProblemCode.NOT_READY, "the network is waiting for config"),
    (
        replace(EARLY, state=NetworkState.WAITING_FOR_LEASE),
        ProblemCode.NOT_READY,
        "the network is waiting for lease",
    ),
    (replace(WELL, state=NetworkState.DEGRADED, problem="eth1 is down"), ProblemCode.NOT_READY, "eth1 is down"),
]


@pytest.mark.parametrize(("network", "code", "text"), ROWS)
def test_the_problem_of_a_state(network: NetworkReport, code: ProblemCode, text: str) -> None:
    assert found(network) == [(code, text)]


def test_each_code_has_a_row_above() -> None:
    assert {code for _, code, _ in ROWS} == set(ProblemCode)
    assert {*_TABLE, ProblemCode.NOT_READY} == set(ProblemCode)


@pytest.mark.parametrize(
    "network",
    [
        WELL,
        replace(WELL, lease=LeaseReport(SUBNET, None)),
        replace(WELL, backend=BackendReport("alloc", mtu=1500)),
        replace(WELL, backend=BackendReport("host-gw", 1, 0, mtu=1500)),
        replace(WELL, store=replace(SILENT, silent_since=NOW - 4)),  # the request is being repeated
        replace(WELL, store=None),
        replace(WELL, interface=InterfaceReport("eth1", "", HOST, HOST, 9000)),
    ],
)
def test_a_network_that_is_well_has_no_problem(network: NetworkReport) -> None:
    assert found(network) == []


@pytest.mark.parametrize("state", [state for state in NetworkState if state is not NetworkState.READY])
@pytest.mark.parametrize("silent", [False, True])
def test_a_network_that_is_not_ready_always_has_a_problem(state: NetworkState, silent: bool) -> None:
    store = SILENT if silent else STORE
    assert found(NetworkReport("blue", state, store=store))
    assert found(replace(WELL, state=state, store=store))


def test_the_most_basic_problem_comes_first_and_networks_stay_together() -> None:
    both = replace(WELL, interface=InterfaceReport("eth1", "eth1 is down"), store=SILENT)
    result = problems(DaemonReport((both, replace(both, name="green", store=STORE)), at=NOW))
    assert [(problem.network, problem.code) for problem in result] == [
        ("blue", ProblemCode.STORE_SILENT),
        ("blue", ProblemCode.EXTERNAL_INTERFACE),
        ("green", ProblemCode.EXTERNAL_INTERFACE),
    ]


@pytest.mark.parametrize("state", NetworkState)
@pytest.mark.parametrize("network", [WELL, EARLY])
def test_only_a_network_in_service_forwards_packets_while_etcd_is_silent(
    network: NetworkReport, state: NetworkState
) -> None:
    report = DaemonReport((replace(network, state=state, store=SILENT),), at=NOW)
    [remedy] = [problem.remedy for problem in problems(report) if problem.code is ProblemCode.STORE_SILENT]
    assert remedy.startswith("start etcd, or restore the way to it; ")
    assert ("packets are forwarded" in remedy) is (state in (NetworkState.READY, NetworkState.DEGRADED))


def test_an_obstacle_has_the_remedy_that_its_text_ends_in() -> None:
    blocked = replace(WELL, traffic=TrafficReport("The iptables rule 'a; b' drops packets; remove it"))
    [problem] = problems(DaemonReport((blocked,), at=NOW))
    assert (problem.text, problem.remedy) == ("The iptables rule 'a; b' drops packets", "remove it")
