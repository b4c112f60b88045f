"""Which problem of its components makes a network degraded."""

from __future__ import annotations

import pytest

from flannelpy.report import (
    FirewallReport,
    InterfaceReport,
    NetworkReport,
    NetworkState,
    PeerRoutesReport,
    RepairReport,
    TrafficReport,
)


@pytest.mark.parametrize("faults", range(16))
def test_the_most_basic_problem_counts(faults: int) -> None:
    names = "interface", "peer routes", "kernel state", "traffic"
    texts = [name if faults >> number & 1 else "" for number, name in enumerate(names)]
    interface, peer_routes, kernel_state, traffic = texts
    report = NetworkReport(
        "",
        NetworkState.READY,
        interface=InterfaceReport("eth1", interface),
        peer_routes=PeerRoutesReport(peer_routes),
        kernel_state=RepairReport(1, kernel_state),
        traffic=TrafficReport(traffic),
        firewall=FirewallReport(problem="which costs no packets", obstacle="which is in the report on traffic"),
    )
    assert report.present_problem == next(filter(None, texts), "")


def test_a_network_without_a_lease_has_no_problem_of_its_components() -> None:
    assert NetworkReport("", NetworkState.STARTING).present_problem == ""
