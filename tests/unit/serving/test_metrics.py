"""The metrics of each kind of report, as Prometheus reads them, and the lists of them in docs/monitoring.md."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flannelpy.diagnosis import ProblemCode
from flannelpy.packet.drops import DropReason
from flannelpy.report import (
    BackendReport,
    DaemonReport,
    FirewallReport,
    InterfaceReport,
    LeaseReport,
    NetworkReport,
    NetworkState,
    PeerReport,
    RepairReport,
    StoreReport,
    Traffic,
)
from flannelpy.serving.metrics import exposition, families

MONITORING = (Path(__file__).parents[3] / "docs/monitoring.md").read_text()
SUBNET = IPv4Network("11.0.59.0/24")
CARRIED = Traffic(packets_out=7, bytes_out=700, packets_in=9, bytes_in=900, heard_at=1500.5)

RUNNING = NetworkReport(
    "",
    NetworkState.READY,
    since=1010.5,
    store=StoreReport(3, "http://127.0.0.1:2379", 1400.0, None),
    lease=LeaseReport(SUBNET, 86000.0, 1001.0, 1300.25, 17),
    backend=BackendReport("udp", 3, 1, {"no_route": 4}, "flannel0", 1472, ("gro", "gso"), carried=CARRIED),
    interface=InterfaceReport("eth1"),
    kernel_state=RepairReport(2),
    firewall=FirewallReport(5),
)
PEER = PeerReport(IPv4Network("11.0.60.0/24"), IPv4Address("172.17.8.102"), 1020.0, "", CARRIED)
KERNEL_PEER = PeerReport(IPv4Network("11.0.61.0/24"), IPv4Address("172.17.8.103"), 1021.0, "no route")


def daemon(*networks: NetworkReport) -> DaemonReport:
    return DaemonReport(networks, "1.0.0", 4711, 1000.0, "compiled")


def samples(text: str) -> dict[str, float]:
    """Return the samples by name and labels, in alphabetical order; none occurs twice."""
    found = [
        (sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]
    assert len(dict(found)) == len(found)
    return dict(found)


def test_a_running_network() -> None:
    found = samples(exposition(daemon(RUNNING)))
    expected = {
        "flannelpy_up": 1,
        "flannelpy_info packet_code=compiled version=1.0.0": 1,
        "flannelpy_start_time_seconds": 1000,
        "flannelpy_problem code=external_interface network=": 0,
        "flannelpy_network_ready network=": 1,
        "flannelpy_network_state network= state=ready": 1,
        "flannelpy_network_state network= state=waiting_for_lease": 0,
        "flannelpy_network_state_timestamp_seconds network=": 1010.5,
        "flannelpy_lease_remaining_seconds network=": 86000,
        "flannelpy_lease_renewal_timestamp_seconds network=": 1300.25,
        "flannelpy_store_answer_timestamp_seconds network=": 1400,
        "flannelpy_store_silent network=": 0,
        "flannelpy_peers network= state=reachable": 3,
        "flannelpy_peers network= state=unreachable": 1,
        "flannelpy_mtu_bytes network=": 1472,
        "flannelpy_repairs_total network= part=kernel_state": 2,
        "flannelpy_repairs_total network= part=firewall": 5,
        "flannelpy_dropped_packets_total network= reason=no_route": 4,
        "flannelpy_dropped_packets_total network= reason=too_big": 0,
        "flannelpy_packets_total direction=in network=": 9,
        "flannelpy_packets_total direction=out network=": 7,
        "flannelpy_bytes_total direction=in network=": 900,
        "flannelpy_bytes_total direction=out network=": 700,
    }
    assert expected.items() <= found.items()
    assert len([name for name in found if name.startswith("flannelpy_network_state network")]) == len(NetworkState)
    assert len([name for name in found if "dropped" in name]) == len(DropReason)
    assert not [name for name in found if "peer_" in name]


@pytest.mark.parametrize(("datapath", "value"), [("kernel", 1.0), ("loop", 0.0), ("", None)])
def test_the_datapath(datapath: str, value: float | None) -> None:
    network = replace(RUNNING, backend=BackendReport("udp", 0, 0, datapath=datapath))
    assert samples(exposition(daemon(network))).get("flannelpy_datapath_kernel network=") == value


def test_a_network_that_waits_has_no_values_that_are_unknown() -> None:
    waiting = NetworkReport("", NetworkState.WAITING_FOR_CONFIG, store=StoreReport(None, "http://x", None, 1200.0))
    found = samples(exposition(daemon(waiting)))
    names = {name.split()[0] for name in found} - {"flannelpy_up", "flannelpy_info", "flannelpy_start_time_seconds"}
    assert names == {
        "flannelpy_problem",
        "flannelpy_network_ready",
        "flannelpy_network_state",
        "flannelpy_network_state_timestamp_seconds",
        "flannelpy_store_silent",
    }
    assert found["flannelpy_network_ready network="] == 0
    assert found["flannelpy_store_silent network="] == 1


def test_a_reservation_has_no_time_left_and_the_kernel_counts_no_drops() -> None:
    network = NetworkReport(
        "", NetworkState.READY, lease=LeaseReport(SUBNET, None), backend=BackendReport("vxlan", 2, mtu=1450)
    )
    found = samples(exposition(daemon(network)))
    assert not [name for name in found if re.match("flannelpy_(lease_remaining|dropped|packets|bytes)", name)]
    assert found["flannelpy_peers network= state=unreachable"] == 0


def test_each_network_has_its_own_series_and_any_name_is_escaped() -> None:
    broken = NetworkReport("green", NetworkState.DEGRADED, interface=InterfaceReport("eth1", "Link eth1 is down"))
    found = samples(exposition(daemon(NetworkReport('a"\n\\', NetworkState.READY), broken)))
    assert found['flannelpy_network_ready network=a"\n\\'] == 1
    assert found["flannelpy_network_ready network=green"] == 0
    assert found["flannelpy_problem code=external_interface network=green"] == 1
    assert found['flannelpy_problem code=external_interface network=a"\n\\'] == 0


def test_counters_continue_while_a_network_is_down_and_after_its_next_start() -> None:
    def counters(network: NetworkReport) -> dict[str, float]:
        return {name: value for name, value in samples(exposition(daemon(network))).items() if "_total" in name}

    first = counters(RUNNING)
    down = replace(NetworkReport("", NetworkState.FAILED, "port 8285 is taken"), earlier=RUNNING.counts)
    assert counters(down) == first
    again = replace(RUNNING, backend=BackendReport("udp", 3, drops={"too_big": 1}, carried=Traffic(1, 2, 3, 4)))
    second = counters(replace(again, earlier=RUNNING.counts, kernel_state=RepairReport(1), firewall=FirewallReport(1)))
    assert {name: value - first[name] for name, value in second.items() if value != first[name]} == {
        "flannelpy_dropped_packets_total network= reason=too_big": 1,
        "flannelpy_packets_total direction=out network=": 1,
        "flannelpy_bytes_total direction=out network=": 2,
        "flannelpy_packets_total direction=in network=": 3,
        "flannelpy_bytes_total direction=in network=": 4,
        "flannelpy_repairs_total network= part=kernel_state": 1,
        "flannelpy_repairs_total network= part=firewall": 1,
    }
    assert second.keys() == first.keys()


def test_series_of_peers_if_they_are_wanted() -> None:
    found = samples(exposition(daemon(RUNNING), {"": [PEER, KERNEL_PEER]}))
    first = "network= public_ip=172.17.8.102 subnet=11.0.60.0/24"
    second = "network= public_ip=172.17.8.103 subnet=11.0.61.0/24"
    expected = {
        f"flannelpy_peer_reachable {first}": 1,
        f"flannelpy_peer_reachable {second}": 0,
        f"flannelpy_peer_added_timestamp_seconds {first}": 1020,
        f"flannelpy_peer_heard_timestamp_seconds {first}": 1500.5,
        f"flannelpy_peer_packets_total direction=in {first}": 9,
        f"flannelpy_peer_bytes_total direction=out {first}": 700,
    }
    assert expected.items() <= found.items()
    assert not [name for name in found if second in name and "_total" in name]


def test_without_a_daemon() -> None:
    assert samples(exposition(None)) == {"flannelpy_up": 0}


# The documents


def table(heading: str) -> list[list[str]]:
    """Return the rows of the table below a heading of docs/monitoring.md, without those of its head."""
    text = MONITORING.split(f"# {heading}\n")[1].split("\n#")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip("`") for cell in row] for row in rows[2:]]


def test_the_manual_lists_all_metrics_with_their_labels() -> None:
    documented = {name: tuple(re.findall(r"`?(\w+)`?", labels)) for name, labels, *_ in table("Metrics")}
    assert documented == {family.name: family.labels for family in families()}


def test_the_manual_lists_all_drop_reasons() -> None:
    assert [reason for reason, *_ in table("Drop reasons")] == [reason.name.lower() for reason in DropReason]


def test_the_manual_lists_all_problems() -> None:
    assert [code for code, *_ in table("Problems")] == list(ProblemCode)


def test_names_and_help_texts_follow_the_conventions() -> None:
    for family in families():
        assert re.fullmatch(r"flannelpy(_[a-z]+)+", family.name)
        assert family.description.endswith(".")
        assert not family.name.endswith(("_count", "_sum", "_milliseconds", "_percent"))
