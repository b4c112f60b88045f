"""The status text of each state of a network."""

from ipaddress import IPv4Network

import pytest

from flannelpy.report import (
    BackendReport,
    DaemonReport,
    FirewallReport,
    InterfaceReport,
    LeaseReport,
    NetworkReport,
    NetworkState,
    RepairReport,
)
from flannelpy.serving.status_line import status_line

LEASE = LeaseReport(IPv4Network("11.0.59.0/24"), 86399.6)
RESERVATION = LeaseReport(IPv4Network("11.0.59.0/24"), None)
HEALTHY = BackendReport("udp", 2, 0)


@pytest.mark.parametrize(
    ("report", "text"),
    [
        (NetworkReport("", NetworkState.STARTING), "Starting"),
        (NetworkReport("", NetworkState.WAITING_FOR_CONFIG), "Waiting for the network config in etcd"),
        (NetworkReport("", NetworkState.WAITING_FOR_LEASE), "Waiting for a subnet lease"),
        (
            NetworkReport("", NetworkState.WAITING_FOR_PEERS, "", LEASE, BackendReport("udp", 0, 0)),
            "subnet 11.0.59.0/24 (23 h 59 min left), waiting for the leases of other hosts, next hops: 0",
        ),
        (
            NetworkReport("", NetworkState.READY, "", RESERVATION, HEALTHY),
            "subnet 11.0.59.0/24 (reserved), next hops: 2",
        ),
        (
            NetworkReport("", NetworkState.READY, "", RESERVATION, BackendReport("alloc")),
            "subnet 11.0.59.0/24 (reserved), alloc: packets are not carried",
        ),
        (
            NetworkReport(
                "",
                NetworkState.DEGRADED,
                "eth1 is down",
                RESERVATION,
                BackendReport("vxlan", 1, 3, {"no_route": 7}),
                InterfaceReport("eth1", "eth1 is down"),
                RepairReport(2),
                FirewallReport(1),
            ),
            "subnet 11.0.59.0/24 (reserved), not ready: eth1 is down, repairs: 3, next hops: 1, unreachable: 3",
        ),
        (NetworkReport("", NetworkState.FAILED, "port 8285 is taken"), "not ready: port 8285 is taken"),
        (NetworkReport("", NetworkState.READY), "Stopping"),
    ],
)
def test_the_status_of_a_network(report: NetworkReport, text: str) -> None:
    assert status_line(DaemonReport((report,))) == text


def test_every_network_stands_after_its_name() -> None:
    blue = NetworkReport("blue", NetworkState.READY, "", RESERVATION, HEALTHY)
    green = NetworkReport("green", NetworkState.FAILED, "busy")
    expected = "blue: subnet 11.0.59.0/24 (reserved), next hops: 2; green: not ready: busy"
    assert status_line(DaemonReport((blue, green))) == expected
