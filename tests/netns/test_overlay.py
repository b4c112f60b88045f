"""Three real hosts, a container on each: what travels between them arrives as it was sent."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import pytest
from lab import Container, Host, Lab, Node

TRAFFIC = str(Path(__file__).with_name("traffic.py"))
MTU = 1472
UNLEASED = "11.0.0.9"  # the first subnet is never leased


@pytest.fixture(scope="module")
def overlay() -> Iterator[Lab]:
    with Lab() as lab:
        lab.put_config()
        lab.start_daemons("-iface=eth1")
        for host in lab.hosts:
            host.add_container()
        yield lab


@pytest.fixture
def containers(overlay: Lab) -> list[Container]:
    return [host.containers[0] for host in overlay.hosts]


def listen(node: Node, *arguments: str) -> subprocess.Popen[str]:
    process = node.popen(sys.executable, TRAFFIC, *arguments)
    assert process.stdout is not None
    assert process.stdout.readline() == "listening\n"
    return process


def traffic(node: Node, *arguments: str) -> str:
    return node.run(sys.executable, TRAFFIC, *arguments, timeout=120).stdout


def test_every_container_reaches_every_other_in_four_hops(containers: list[Container]) -> None:
    for one, other in permutations(containers, 2):
        reply = one.run("ping", "-c1", "-W2", str(other.address)).stdout
        # 64, less one by each kernel that forwards and one by each daemon.
        assert "ttl=60 " in reply


def test_hosts_reach_other_hosts_containers(overlay: Lab, containers: list[Container]) -> None:
    for host, container in ((overlay.hosts[0], containers[1]), (overlay.hosts[2], containers[0])):
        assert "ttl=61 " in host.run("ping", "-c1", "-W2", str(container.address)).stdout


@pytest.mark.parametrize("megabytes", [1, 64])
def test_tcp_content_arrives_unchanged_both_ways(containers: list[Container], megabytes: int) -> None:
    for source, sink in permutations(containers[:2]):
        receiver = listen(sink, "tcp-sink", "5001")
        sent = traffic(source, "tcp-source", str(sink.address), "5001", str(megabytes << 20))
        received, _ = receiver.communicate(timeout=60)
        assert received == sent


def test_udp_of_every_length_comes_back_unchanged(containers: list[Container]) -> None:
    listen(containers[1], "udp-echo", "5002")
    # Payloads up to the MTU itself: the last 28 lengths travel as fragments.
    assert traffic(containers[0], "udp-lengths", str(containers[1].address), "5002", str(MTU)) == "[]\n"


@pytest.mark.parametrize("size", [3000, 65507])
def test_fragmented_pings_arrive(containers: list[Container], size: int) -> None:
    reply = containers[0].run("ping", "-c3", "-i0.2", "-W2", "-s", str(size), str(containers[1].address)).stdout
    assert "3 received" in reply


@pytest.mark.parametrize("probe", ["-U", "-I"])
def test_traceroute_shows_the_hops(overlay: Lab, containers: list[Container], probe: str) -> None:
    here, there = (host.subnet().network_address for host in overlay.hosts[:2])
    target = str(containers[1].address)
    # One probe a hop and at a time: the limit on ICMP errors has its own test.
    output = containers[0].run("traceroute", probe, "-n", "-q1", "-N1", "-w2", target).stdout
    hops = re.findall(r"^ *\d+ +(\S+)", output, re.MULTILINE)
    # docker0, our daemon, their daemon, their kernel, the container.
    assert hops == [str(here + 1), str(here), str(there), str(there), target]


@pytest.mark.parametrize("place", ["host", "container"])
def test_a_subnet_nobody_leases_is_unreachable_at_once(overlay: Lab, place: str) -> None:
    host = overlay.hosts[0]
    node: Node = host if place == "host" else host.containers[0]
    assert traffic(node, "udp-error", UNLEASED, "9").strip() == "ENETUNREACH"
    assert traffic(node, "tcp-error", UNLEASED, "9").strip() == "ENETUNREACH"
    assert "Destination Net Unreachable" in node.run("ping", "-c1", "-W2", UNLEASED, check=False).stdout


def test_a_datagram_larger_than_our_mtu_is_delivered_whole(overlay: Lab) -> None:
    """Regression against the original, which cuts it at its own MTU and injects the rest."""
    sender, receiver = overlay.hosts[1:3]
    with Capture(receiver, "flannel0", "udp port 4242") as packets:
        destination = str(receiver.subnet().network_address)
        # Sent as a host with a larger MTU would, past its own daemon.
        craft = (
            "import socket, sys; from scapy.all import IP, UDP, Raw;"
            "packet = bytes(IP(dst=sys.argv[2], src='11.0.0.1') / UDP(sport=4241, dport=4242) / Raw(bytes(1972)));"
            "socket.socket(type=socket.SOCK_DGRAM).sendto(packet, (sys.argv[1], 8285))"
        )
        sender.run(sys.executable, "-W", "ignore", "-c", craft, str(receiver.public_ip), destination)
        assert "length 1972" in packets.readline()


class Capture:
    """A tcpdump that is listening; ``readline`` is the next packet."""

    def __init__(self, host: Host, device: str, what: str) -> None:
        self._process = host.popen("tcpdump", "-n", "-l", "--immediate-mode", "-i", device, what)

    def __enter__(self) -> Capture:
        assert self._process.stderr is not None
        while "listening on" not in (line := self._process.stderr.readline()):
            assert line, "tcpdump has ended"
        return self

    def readline(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate(timeout=5)
