"""The parts of a host, and which lines follow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.check import judge_host
from flannelpy.check.codes import Code
from flannelpy.check.lines import Level, Line
from flannelpy.check.observations import DeviceSeen, FileSeen, HostSeen, RulesSeen
from flannelpy.check.plan import Plan
from flannelpy.check.verdicts import found
from flannelpy.netfilter.obstacles import Obstacle
from flannelpy.report import DaemonReport, NetworkReport, NetworkState, StoreReport, TrafficReport
from flannelpy.rtnetlink.links import Address, Link
from flannelpy.subnet.lease import HostIdentity

NETWORK, OURS = IPv4Network("11.0.0.0/16"), IPv4Network("11.0.1.0/24")
PLAN = Plan("udp", NETWORK, OURS, 1472, 8285)
ETH1, FLANNEL0, DOCKER0, PORT = (
    Link(2, "eth1", 1500),
    Link(3, "flannel0", 1472, "tun"),
    Link(4, "docker0", 1472, "bridge"),
    Link(5, "veth1", 1472, "veth", master=4),
)
EXTERNAL = ExternalInterface("eth1", IPv4Address("172.17.8.101"), 1500)
UNDERLAY = Address(2, EXTERNAL.address, 24)
TUNNEL, BRIDGE = Address(3, IPv4Address("11.0.1.0"), 16), Address(4, IPv4Address("11.0.1.1"), 24)
HOST = HostSeen(
    EXTERNAL,
    HostIdentity(EXTERNAL.address, "host1"),
    ETH1,
    [ETH1, FLANNEL0, DOCKER0, PORT],
    [UNDERLAY, TUNNEL, BRIDGE],
)
FILE = FileSeen("/run/flannel/subnet.env", NETWORK, OURS, 1472, is_running=True, backend="udp")


def codes(lines: Iterable[Line]) -> list[str]:
    return [line.code for line in lines if line.level is not Level.OK]


def bridge(address: str, prefix_len: int = 24) -> Sequence[Address]:
    return [UNDERLAY, TUNNEL, Address(4, IPv4Address(address), prefix_len)]


def of_bridges(host: HostSeen, *networks: IPv4Network) -> list[str]:
    return codes(judge_host.bridges(host, PLAN, FLANNEL0.index, networks or (NETWORK,)))


@pytest.mark.parametrize("link", [None, replace(ETH1, is_up=False), replace(ETH1, has_carrier=False)])
def test_an_interface_that_carries_nothing_is_bad(link: Link | None) -> None:
    line = judge_host.interface(replace(HOST, link=link))
    assert (line.code, line.remedy.split(";")[0]) == ("interface_down", "ip link set eth1 up")


def test_a_healthy_interface_has_address_and_mtu_and_a_nat_its_public_ip() -> None:
    assert judge_host.interface(HOST).text == "eth1 with 172.17.8.101, MTU 1500"
    nat = replace(HOST, identity=HostIdentity(IPv4Address("198.51.100.7")))
    assert judge_host.interface(nat).text.endswith(", public IP 198.51.100.7 by NAT")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, []),
        ({"addresses": bridge("11.0.9.1")}, ["bridge_of_old_subnet"]),
        ({"addresses": bridge("11.0.1.1", 20)}, ["bridge_prefix"]),
        ({"addresses": bridge("11.0.1.1", 32)}, []),
        ({"addresses": bridge("172.18.0.1", 16)}, ["bridge_elsewhere"]),
        ({"links": [ETH1, FLANNEL0, replace(DOCKER0, is_up=False), PORT]}, ["bridge_down"]),
        ({"addresses": [UNDERLAY, TUNNEL]}, ["bridge_without_address"]),
        ({"links": [ETH1, FLANNEL0, DOCKER0], "addresses": [UNDERLAY, TUNNEL]}, []),
        ({"links": [ETH1, FLANNEL0, DOCKER0, replace(PORT, mtu=1500)]}, ["container_mtu"]),
        ({"links": [ETH1, FLANNEL0, replace(DOCKER0, mtu=1500), PORT]}, []),  # a bridge without ports keeps 1500
    ],
)
def test_bridges_are_compared_with_the_subnet(changed: dict[str, object], expected: list[str]) -> None:
    assert of_bridges(replace(HOST, **changed)) == expected  # type: ignore[arg-type]


def test_an_interface_that_is_no_bridge_may_have_an_address_of_the_network() -> None:
    eth2 = Link(9, "eth2", 1500)
    host = replace(
        HOST, links=[*HOST.links, eth2], addresses=[*HOST.addresses, Address(9, IPv4Address("11.0.7.9"), 24)]
    )
    assert of_bridges(host) == []


def test_docker0_of_another_network_of_this_host_is_no_flaw() -> None:
    host = replace(HOST, addresses=bridge("12.0.1.1"))
    assert of_bridges(host, NETWORK, IPv4Network("12.0.0.0/16")) == []


def test_docker0_of_another_daemon_on_this_host_is_no_flaw() -> None:
    tunnel = Address(3, IPv4Address("12.0.1.0"), 16)
    host = replace(HOST, addresses=[UNDERLAY, tunnel, Address(4, IPv4Address("12.0.1.1"), 24)])
    assert of_bridges(host) == []


def test_containers_at_no_bridge_have_one_line() -> None:
    ends = [Link(number, f"veth{number:07x}", 1450, "veth") for number in range(16, 22)]
    [line] = judge_host.containers(ends)
    assert (line.code, line.level) == ("container_unplugged", Level.WARNING)
    assert line.text.startswith("veth0000010, veth0000011, veth0000012, veth0000013 and 2 more: no port of a bridge")
    assert list(judge_host.containers([])) == []


@pytest.mark.parametrize(
    ("seen", "code"),
    [
        (DeviceSeen(None, ()), "device_missing"),
        (DeviceSeen(FLANNEL0, ("was set down", "got MTU 1400 instead of 1472")), "device_flaw"),
        (DeviceSeen(FLANNEL0, ()), ""),
    ],
)
def test_the_device_is_named_with_its_flaws(seen: DeviceSeen, code: str) -> None:
    line = judge_host.device(seen, None)
    assert line.code == code
    assert not seen.flaws or line.text == "flannel0 was set down, got MTU 1400 instead of 1472"


def test_another_device_with_our_tunnel_address_is_named_and_no_bridge() -> None:
    assert judge_host.device(DeviceSeen(None, ()), FLANNEL0).text.endswith(", and flannel0 has its address")
    assert codes(judge_host.bridges(HOST, PLAN, 0, [NETWORK])) == []


def test_a_daemon_that_does_not_run_is_bad_and_its_own_report_counts_more() -> None:
    assert codes(judge_host.daemon(FILE, None, "", [])) == ["daemon_silent"]
    assert codes(judge_host.daemon(replace(FILE, is_running=False), None, "", [])) == ["daemon_stopped"]
    failed = NetworkReport("", NetworkState.FAILED, "the subnet is taken")
    report = DaemonReport((failed,), "1.0", 4711)
    [line] = judge_host.daemon(FILE, report, "", [])
    assert (line.code, line.text) == ("daemon_problem", "the subnet is taken")
    [line] = judge_host.daemon(FILE, report, "another", [])
    assert line.text == "flannelpy 1.0 runs with PID 4711"


@pytest.mark.parametrize("state", NetworkState)
def test_what_a_network_has_only_in_service_is_no_flaw_before(state: NetworkState) -> None:
    network = NetworkReport("", state)
    missing = judge_host.device(DeviceSeen(None, ()), None)
    assert judge_host.explained(missing, network) is not state.is_up
    assert not judge_host.explained(found(Code.ETCD_SILENT, "no answer"), network)
    assert not judge_host.explained(missing, None)


def test_a_daemon_that_waits_for_what_another_line_names_runs_and_has_its_state() -> None:
    waiting = NetworkReport("", NetworkState.WAITING_FOR_CONFIG, store=StoreReport(3, "http://a:1", None, 20.0, "away"))
    report = DaemonReport((waiting,), "1.0", 4711, at=60.0)
    [line] = judge_host.daemon(FILE, report, "", [found(Code.ETCD_SILENT, "no answer")])
    assert (line.level, line.text) == (Level.OK, "flannelpy 1.0 runs with PID 4711, waiting for config")


def test_a_rule_that_is_gone_is_no_problem_of_the_daemon_any_more() -> None:
    blocked = NetworkReport("", NetworkState.DEGRADED, traffic=TrafficReport("'-A FORWARD -j DROP' drops; remove it"))
    report = DaemonReport((blocked,), "1.0", 4711)
    assert codes(judge_host.daemon(FILE, report, "", [])) == ["daemon_problem"]
    seen = list(judge_host.forwarding(RulesSeen(), has_bridge=True))
    assert codes(judge_host.daemon(FILE, report, "", seen)) == []


def test_what_another_line_names_is_not_repeated() -> None:
    silent = NetworkReport("", NetworkState.READY, store=StoreReport(3, "http://a:1", 10.0, 20.0, "no answer in time"))
    report = DaemonReport((silent,), "1.0", 4711, at=60.0)
    clock = found(Code.CLOCK_DIFFERS, "11 s behind")
    assert codes(judge_host.daemon(FILE, report, "", [clock])) == ["daemon_problem"]
    [line] = judge_host.daemon(FILE, report, "", [clock, found(Code.ETCD_SILENT, "no answer")])
    assert (line.level, line.text) == (Level.OK, "flannelpy 1.0 runs with PID 4711")


CERTAIN = Obstacle("The iptables rule '-A FORWARD -j DROP' drops packets; remove it", "the rule", True)


@pytest.mark.parametrize(
    ("rules", "has_bridge", "expected"),
    [
        (RulesSeen(), True, []),
        (RulesSeen(blocked=["docker0"], is_host_forwarding=False), True, ["forwarding_off"]),
        (RulesSeen(obstacles=[CERTAIN]), True, ["packets_dropped"]),
        (RulesSeen(obstacles=[CERTAIN]), False, ["packets_may_be_dropped"]),
        (RulesSeen(obstacles=[CERTAIN._replace(is_certain=False)]), True, ["packets_may_be_dropped"]),
        (RulesSeen(failures=["nft is missing"]), True, ["rules_unknown"]),
        (RulesSeen(missing=["chain FLANNEL-M: it was removed"]), True, ["masquerading_missing"]),
        (RulesSeen(missing=[]), True, []),
        (RulesSeen(conntrack=(950, 1000)), True, []),
        (RulesSeen(conntrack=(951, 1000)), True, ["conntrack_full"]),
    ],
)
def test_what_stops_packets_is_bad_once_there_are_containers(
    rules: RulesSeen, has_bridge: bool, expected: list[str]
) -> None:
    assert codes(judge_host.forwarding(rules, has_bridge=has_bridge)) == expected


def test_text_and_remedy_of_a_rule_are_apart() -> None:
    [line] = judge_host.forwarding(RulesSeen(obstacles=[CERTAIN]), has_bridge=True)
    assert (line.text, line.remedy) == ("The iptables rule '-A FORWARD -j DROP' drops packets", "remove it")
