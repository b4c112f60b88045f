"""What flannelpy status prints."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

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
from flannelpy.serving.status_text import status_text

NOW = 1_800_000_000.0
INTERFACE = InterfaceReport("eth1", "", IPv4Address("172.17.8.101"), IPv4Address("172.17.8.101"), 1500)
UDP = NetworkReport(
    "",
    NetworkState.READY,
    since=NOW - 11_520,
    subnet_file=Path("/run/flannel/subnet.env"),
    network=IPv4Network("11.0.0.0/16"),
    store=StoreReport(3, "http://172.17.8.1:2379", NOW - 2, None),
    lease=LeaseReport(IPv4Network("11.0.59.0/24"), 85_680.5, NOW - 11_520, NOW - 720, 7),
    backend=BackendReport("udp", 2, 1, {"no_route": 7, "ttl_exceeded": 0}, "flannel0", 1472, ("gro", "tso")),
    interface=INTERFACE,
    kernel_state=RepairReport(2),
    firewall=FirewallReport(1),
)
VXLAN = NetworkReport(
    "blue",
    NetworkState.DEGRADED,
    "eth1 is down",
    since=NOW - 61,
    network=IPv4Network("12.0.0.0/16"),
    store=StoreReport(2, "http://172.17.8.1:2379", NOW - 90, NOW - 65, "no answer in time"),
    lease=LeaseReport(IPv4Network("12.0.1.0/24"), None),
    backend=BackendReport("vxlan", 1, 0, {}, "flannel.1", 1450),
    interface=replace(INTERFACE, problem="eth1 is down", public_ip=IPv4Address("10.255.0.1")),
)
PEERS = {
    "": [
        PeerReport(
            IPv4Network("11.0.101.0/24"),
            IPv4Address("172.17.8.102"),
            NOW - 7200,
            "",
            Traffic(10, 1_234_567, 20, 999, NOW - 3),
        ),
        PeerReport(IPv4Network("11.0.7.0/24"), IPv4Address("172.17.8.3"), NOW - 60, "no route", Traffic()),
    ],
    "blue": [PeerReport(IPv4Network("12.0.2.0/24"), IPv4Address("172.17.8.103"), NOW - 1)],
}

FULL = """\
flannelpy 0.3.0, PID 4711, started 3 h 13 min ago, packet code compiled
network: ready for 3 h 12 min
  subnet:    11.0.59.0/24 of 11.0.0.0/16, lease renewed 12 min ago, 23 h 48 min left
  store:     etcd v3 at http://172.17.8.1:2379, answered 2 s ago
  interface: eth1, 172.17.8.101, MTU 1500
  backend:   udp, device flannel0, MTU 1472, offloads gro tso
  peers:     2 reachable, 1 unreachable
  drops:     no_route 7
  repairs:   3
  PEER           PUBLIC IP     SINCE      SENT     RECEIVED  HEARD    STATE
  11.0.7.0/24    172.17.8.3    1 min ago  0 B      0 B       never    unreachable: no route
  11.0.101.0/24  172.17.8.102  2 h ago    1.2 MiB  999 B     3 s ago  reachable
network blue: degraded for 1 min 1 s
  subnet:    12.0.1.0/24 of 12.0.0.0/16, reserved
  store:     etcd v2 at http://172.17.8.1:2379, silent for 1 min 5 s
  interface: eth1, 172.17.8.101, MTU 1500, public IP 10.255.0.1
  backend:   vxlan, device flannel.1, MTU 1450
  peers:     1 reachable
  PEER         PUBLIC IP     SINCE    STATE
  12.0.2.0/24  172.17.8.103  1 s ago  reachable
problem: 1 of 3 peers cannot be reached from this host (peers_unreachable)
  remedy: flannelpy status names the cause beside each of these peers
problem of network blue: etcd v2 has given no usable answer for 1 min 5 s: no answer in time (store_silent)
  remedy: start etcd, or restore the way to it; meanwhile packets are forwarded until the leases end
problem of network blue: eth1 is down (external_interface)
  remedy: """


def test_blocks_peers_and_problems() -> None:
    report = DaemonReport((UDP, VXLAN), "0.3.0", 4711, NOW - 11_600, "compiled", NOW)
    text = status_text(report, PEERS)
    assert text.startswith(FULL)
    assert text.endswith("\n")


@pytest.mark.parametrize(
    ("datapath", "cause", "text"),
    [
        ("kernel", "", "udp, device flannel0, MTU 1472, datapath kernel"),
        ("loop", "", "udp, device flannel0, MTU 1472, datapath loop"),
        ("loop", "an XFRM policy", "udp, device flannel0, MTU 1472, datapath loop (an XFRM policy)"),
    ],
)
def test_the_status_names_the_datapath_and_why_it_is_the_loop(datapath: str, cause: str, text: str) -> None:
    backend = BackendReport("udp", 0, 0, device="flannel0", mtu=1472, datapath=datapath, loop_cause=cause)
    report = DaemonReport((NetworkReport("", NetworkState.READY, backend=backend),), "0.3.0", at=NOW)
    assert f"  backend:   {text}" in status_text(report, {}).splitlines()


def test_without_peers_the_rest_is_the_same() -> None:
    report = DaemonReport((UDP, VXLAN), "0.3.0", 4711, NOW - 11_600, "compiled", NOW)
    whole = status_text(report, PEERS).splitlines()
    table = [line for line in whole if line.startswith(("  PEER", "  11.0", "  12.0"))]
    assert len(table) == 5
    assert status_text(report, {}).splitlines() == [line for line in whole if line not in table]


def test_a_network_that_has_just_started() -> None:
    report = DaemonReport((NetworkReport("", NetworkState.STARTING, since=NOW),), "0.3.0", at=NOW)
    lines = status_text(report, {}).splitlines()
    assert lines[:3] == ["flannelpy 0.3.0", "network: starting for 0 s", "problem: the network is starting (not_ready)"]
    assert lines[3].startswith("  remedy: ")


def test_without_problems_the_last_line_says_so() -> None:
    report = DaemonReport((NetworkReport("", NetworkState.READY, since=NOW),), "0.3.0", at=NOW)
    assert status_text(report, {}) == "flannelpy 0.3.0\nnetwork: ready for 0 s\nproblems: none\n"


def test_a_network_that_has_failed() -> None:
    report = DaemonReport(
        (NetworkReport("", NetworkState.FAILED, "port 8285 is taken", since=NOW - 5),), "0.3.0", at=NOW
    )
    lines = status_text(report, {}).splitlines()
    assert lines[1:3] == ["network: failed for 5 s", "problem: port 8285 is taken (network_failed)"]
    assert lines[3].startswith("  remedy: ")


def test_alloc_has_no_peers() -> None:
    backend = BackendReport("alloc")
    lines = status_text(DaemonReport((replace(UDP, backend=backend),), at=NOW), {"": []}).splitlines()
    assert "  backend:   alloc" in lines
    assert not [line for line in lines if "peers:" in line or "PEER" in line]


def test_foreign_text_cannot_add_a_line_or_move_the_cursor() -> None:
    network = replace(UDP, store=StoreReport(3, "http://a\n\x1b[2J", None, None))
    text = status_text(DaemonReport((network,), at=NOW), {})
    assert "  store:     etcd v3 at http://a\\n\\x1b[2J\n" in text
