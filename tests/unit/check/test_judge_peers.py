"""What peers answer, and which lines follow."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from flannelpy.check import judge_peers
from flannelpy.check.lines import Echo, Level, Line
from flannelpy.check.observations import PeerSeen, PortSeen, WaySeen
from flannelpy.check.plan import Plan

NETWORK, OURS, THEIRS = map(IPv4Network, ("11.0.0.0/16", "11.0.1.0/24", "11.0.2.0/24"))
UDP = Plan("udp", NETWORK, OURS, 1472, 8285)
HOST_GW = Plan("host-gw", NETWORK, OURS, 1500)
PEER_IP = IPv4Address("172.17.8.102")


def echo(target: str, full: int, *, received: int = 3, path_mtu: int | None = None, error: str = "") -> Echo:
    source = IPv4Address("172.17.8.101")
    times = 0.25 if received else None
    mtu = (full if path_mtu is None else path_mtu) if received else 0
    return Echo(source, IPv4Address(target), 3, received, times, full, mtu, error)


PUBLIC, TUNNEL, BRIDGE = echo("172.17.8.102", 1500), echo("11.0.2.0", 1472), echo("11.0.2.1", 1472)
NARROW_PUBLIC = echo("172.17.8.102", 1500, path_mtu=1428)
LOSSY_PUBLIC = echo("172.17.8.102", 1500, received=1)
SILENT_PUBLIC, SILENT_TUNNEL, SILENT_BRIDGE = (
    echo(target, 1472, received=0) for target in ("172.17.8.102", "11.0.2.0", "11.0.2.1")
)
REJECTING_TUNNEL = replace(SILENT_TUNNEL, is_rejected=True, error="prohibited from 11.0.2.0")
CUT_OFF: dict[str, Any] = {"tunnel": SILENT_TUNNEL, "bridge": SILENT_BRIDGE}
HEALTHY = PeerSeen(THEIRS, PEER_IP, WaySeen(), PUBLIC, TUNNEL, BRIDGE)


def lines(peer: PeerSeen, plan: Plan | None = UDP) -> list[Line]:
    return list(judge_peers.answers(peer, plan))


def codes(peer: PeerSeen, plan: Plan | None = UDP) -> list[str]:
    return [line.code for line in lines(peer, plan) if line.level is not Level.OK]


def test_a_healthy_peer_has_a_line_for_each_address_with_source_loss_time_and_mtu() -> None:
    found = lines(HEALTHY)
    assert [line.level for line in found] == [Level.OK] * 3
    assert found[1].text == "tunnel of 11.0.2.0/24: 11.0.2.0 from 172.17.8.101: 0 of 3 lost, 0.25 ms, path MTU 1472"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"way": WaySeen("the kernel has no route")}, ["no_route_to_peer"]),
        ({"public": SILENT_PUBLIC, "tunnel": SILENT_TUNNEL, "bridge": SILENT_BRIDGE}, ["peer_silent"]),
        (CUT_OFF | {"port": PortSeen.CLOSED}, ["port_closed"]),
        (CUT_OFF | {"port": PortSeen.PROHIBITED}, ["port_prohibited"]),
        (CUT_OFF | {"port": PortSeen.SILENT}, ["datagrams_lost"]),
        (CUT_OFF | {"port": PortSeen.NOT_PERMITTED}, ["datagrams_refused"]),
        (CUT_OFF, ["datagrams_lost"]),
        (CUT_OFF | {"public": LOSSY_PUBLIC}, ["loss"]),  # the silence proves nothing
        (CUT_OFF | {"public": LOSSY_PUBLIC, "is_forwarding": True}, ["loss"]),
        (CUT_OFF | {"public": LOSSY_PUBLIC, "port": PortSeen.CLOSED}, ["loss", "port_closed"]),
        ({"tunnel": SILENT_TUNNEL, "bridge": echo("11.0.2.1", 1472, received=1)}, ["loss", "loss"]),
        (CUT_OFF | {"is_forwarding": True}, ["pings_dropped"]),
        (CUT_OFF | {"public": SILENT_PUBLIC, "is_forwarding": True}, ["pings_dropped"]),
        (CUT_OFF | {"public": SILENT_PUBLIC, "tunnel": REJECTING_TUNNEL}, ["bridge_silent"]),
        (CUT_OFF | {"public": replace(SILENT_PUBLIC, is_rejected=True)}, ["datagrams_lost"]),  # the host lives
        (CUT_OFF | {"public": replace(SILENT_PUBLIC, is_stopped=True)}, ["ping_refused"]),
        (CUT_OFF | {"tunnel": replace(SILENT_TUNNEL, is_stopped=True)}, ["ping_refused"]),
        ({"bridge": SILENT_BRIDGE}, ["bridge_silent"]),
        ({"public": SILENT_PUBLIC}, []),  # pings are filtered, and the overlay works
        ({"tunnel": SILENT_TUNNEL}, []),
        ({"public": NARROW_PUBLIC, "tunnel": echo("11.0.2.0", 1472, path_mtu=1400)}, ["mtu_too_large"]),
        ({"public": NARROW_PUBLIC, "bridge": echo("11.0.2.1", 1472, path_mtu=1400)}, ["mtu_too_large"]),
        ({"public": SILENT_PUBLIC, "tunnel": echo("11.0.2.0", 1472, path_mtu=1400)}, ["mtu_too_large"]),
        ({"tunnel": echo("11.0.2.0", 1472, path_mtu=1400)}, ["long_packets_lost"]),  # no link is narrow
        ({"public": echo("172.17.8.102", 1500, path_mtu=1400)}, []),  # a router may fragment datagrams
        ({"tunnel": echo("11.0.2.0", 1472, received=2)}, ["loss"]),
        ({"tunnel": None, "bridge": None}, []),  # there is no device here, which has a line of its own
    ],
)
def test_each_fault_is_named_once(changed: dict[str, Any], expected: list[str]) -> None:
    assert codes(replace(HEALTHY, **changed)) == expected


@pytest.mark.parametrize("plan", [UDP, HOST_GW])
def test_what_routes_or_rp_filter_explain_has_no_second_line(plan: Plan) -> None:
    diverted, rejecting = WaySeen("", ("route a takes the host's packets",)), WaySeen("", (), ("eth1",))
    missing = WaySeen(missing=("neighbour 11.0.2.0 at 02:00:00:00:00:02",))
    cut_off = replace(HEALTHY, tunnel=SILENT_TUNNEL if plan is UDP else None, bridge=SILENT_BRIDGE)
    assert codes(replace(cut_off, way=diverted), plan) == []
    assert codes(replace(cut_off, way=missing), plan) == []
    assert codes(replace(cut_off, way=rejecting), plan) == []
    assert codes(replace(cut_off, way=rejecting, public=SILENT_PUBLIC), plan) == []
    # A ping of the public IP takes no route of the overlay.
    assert codes(replace(cut_off, way=diverted, public=SILENT_PUBLIC), plan) == ["peer_silent"]


@pytest.mark.parametrize("changed", [{"tunnel": SILENT_TUNNEL}, {"public": SILENT_PUBLIC}])
def test_a_silent_address_of_a_peer_that_answers_is_explained(changed: dict[str, Any]) -> None:
    texts = [line.text for line in lines(replace(HEALTHY, **changed))]
    assert not any("3 of 3 lost" in text for text in texts)
    assert any("answers no ping, and others of that host do" in text for text in texts)


@pytest.mark.parametrize("port", PortSeen)
def test_peers_are_not_blamed_while_the_own_daemon_hangs(port: PortSeen) -> None:
    peer = replace(HEALTHY, **CUT_OFF, port=port)
    found = list(judge_peers.answers(peer, UDP, is_hanging=True))
    assert [line.code for line in found if line.code] == ["daemon_hangs"]
    assert [line.code for line in judge_peers.answers(HEALTHY, UDP, is_hanging=True) if line.code] == []


def test_a_narrow_link_is_one_line_for_tunnel_and_bridge_and_names_the_mtu_on_the_wire() -> None:
    inner: dict[str, Any] = {
        "tunnel": echo("11.0.2.0", 1472, path_mtu=1372),
        "bridge": echo("11.0.2.1", 1472, path_mtu=1372),
    }
    narrow = replace(HEALTHY, public=NARROW_PUBLIC, **inner)
    [line] = [line for line in lines(narrow) if line.code]
    assert line.code == "mtu_too_large"
    assert 'set "MTU": 1400 in the Backend' in line.remedy


def test_without_a_tunnel_a_silent_bridge_is_a_warning_and_the_interface_has_the_mtu() -> None:
    peer = replace(HEALTHY, tunnel=None, bridge=SILENT_BRIDGE)
    assert codes(peer, HOST_GW) == ["bridge_silent"]
    narrow = replace(peer, public=NARROW_PUBLIC, bridge=echo("11.0.2.1", 1500, path_mtu=1400))
    [line] = [line for line in lines(narrow, HOST_GW) if line.code]
    assert "ip link set mtu 1400" in line.remedy


def test_without_a_subnet_only_the_public_ip_counts() -> None:
    peer = PeerSeen(THEIRS, PEER_IP, WaySeen(), PUBLIC)
    assert codes(peer, None) == []
    assert codes(replace(peer, public=SILENT_PUBLIC), None) == ["peer_silent"]


def test_what_the_kernel_reports_is_in_the_line() -> None:
    unreachable = echo("11.0.2.1", 1472, received=0, error="host unreachable from 11.0.2.0")
    [line] = [line for line in lines(replace(HEALTHY, bridge=unreachable)) if line.code]
    assert "3 of 3 lost (host unreachable from 11.0.2.0)" in line.text


def test_diverted_routes_and_rp_filter_are_named_for_each_peer_and_the_rest_is_counted() -> None:
    good = replace(HEALTHY, subnet=IPv4Network("11.0.3.0/24"))
    bad = replace(HEALTHY, way=WaySeen("", ("route a takes the host's packets", "rule b"), ("eth1.5",)))
    found = list(judge_peers.ways([good, bad]))
    assert [line.code for line in found] == ["route_diverted", "rp_filter"]
    assert found[0].text.endswith("route a takes the host's packets; rule b")
    assert "net.ipv4.conf.eth1/5.rp_filter=2" in found[1].remedy
    assert [line.text for line in judge_peers.ways([good])] == [
        "the kernel uses flannelpy's routes to 1 peer",
        "rp_filter accepts the packets of 1 peer",
    ]
    assert list(judge_peers.ways([])) == []


def test_without_etcd_the_port_of_the_backend_has_no_number() -> None:
    [line] = [line for line in lines(replace(HEALTHY, **CUT_OFF), UDP._replace(port=0)) if line.code]
    assert "UDP port of the backend of 172.17.8.102 cannot be asked" in line.text
    assert "drops UDP port of the backend" in line.remedy


def test_entries_that_are_missing_are_one_line_for_each_peer_unless_a_route_explains_them() -> None:
    missing = ("forwarding of 02:00:00:00:00:02 to 172.17.8.102", "neighbour 11.0.2.0 at 02:00:00:00:00:02")
    [line] = [line for line in judge_peers.ways([replace(HEALTHY, way=WaySeen(missing=missing))]) if line.code]
    assert (line.code, line.text) == (
        "entry_missing",
        "packets to 11.0.2.0/24 of 172.17.8.102: the kernel has no forwarding of 02:00:00:00:00:02 to 172.17.8.102, "
        "no neighbour 11.0.2.0 at 02:00:00:00:00:02",
    )
    both = judge_peers.ways([replace(HEALTHY, way=WaySeen(diverted=("rule b",), missing=missing))])
    assert [line.code for line in both if line.code] == ["route_diverted"]
