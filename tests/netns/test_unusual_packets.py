"""Packets that the programs of the fast path leave to the loop, and large ones, arrive with either datapath.

netns/test_overlay.py and test_offload.py have super-packets, fragments, ICMP errors, traceroute and a small device;
make datapath runs them with the kernel's datapath, too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import permutations

import pytest
from lab import Container, Host, Lab, wait_for
from support.datapaths import FLAGS, packets_of_loop, start, status
from support.overlay import listening, traffic, transfer

pytestmark = pytest.mark.usefixtures("root")

JUMBO, INNER = 9000, 8972
NARROW = 1300
MEGABYTE = 1 << 20
# IPv4 and ICMP.
PING_HEADERS = 28
PAIRS = {"loop": ("loop", "loop"), "kernel": ("kernel", "kernel"), "kernel-loop": ("kernel", "loop")}


@pytest.fixture(scope="module", params=PAIRS.values(), ids=list(PAIRS))
def lab(request: pytest.FixtureRequest, root: None) -> Iterator[Lab]:
    """Return two hosts with jumbo frames, whose FORWARD drops what flannelpy does not accept."""
    with Lab(hosts=2, mtu=JUMBO) as lab:
        lab.put_config()
        for host in lab.hosts:
            host.run("iptables", "-P", "FORWARD", "DROP")
        start(lab, *((*FLAGS, f"-datapath={datapath}") for datapath in request.param))
        assert tuple(status(host)["datapath"] for host in lab.hosts) == request.param
        for host in lab.hosts:
            host.add_container()
        yield lab


@pytest.fixture
def containers(lab: Lab) -> list[Container]:
    return [host.containers[0] for host in lab.hosts]


def test_jumbo_frames(lab: Lab, containers: list[Container]) -> None:
    uses_kernel = all(status(host)["datapath"] == "kernel" for host in lab.hosts)
    for one, other in permutations(containers):
        before = packets_of_loop(one.host)
        transfer(one, other, str(other.address), 64 * MEGABYTE)
        assert (packets_of_loop(one.host) - before < 50) is uses_kernel
        for size in (INNER - PING_HEADERS, 60_000):
            text = one.run("ping", "-n", "-c3", "-i0.1", "-W2", "-s", str(size), str(other.address)).stdout
            assert "3 received" in text
        with listening(other, "udp-echo", "5003"):
            assert traffic(one, "udp-super", str(other.address), "5003") == "[]\n"


def test_a_packet_larger_than_the_device_gets_an_icmp_error(containers: list[Container]) -> None:
    one, other = containers
    size = str(INNER + 1 - PING_HEADERS)
    done = one.run("ping", "-n", "-c1", "-W2", "-Mdo", "-s", size, str(other.address), check=False)
    assert "too long" in done.stderr + done.stdout  # by the container's own device
    for node in (one.host, other.host):
        node.run("ping", "-n", "-c1", "-W2", "-s", size, str(other.address if node is one.host else one.address))


ECHO_WITH_OPTIONS = """
import socket, sys
address, options = (sys.argv[1], int(sys.argv[2])), bytes.fromhex(sys.argv[3])
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.settimeout(5)
sender.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, options)
for size in (0, 1, 1000, 9000, 30000):
    data = bytes(index % 251 for index in range(size))
    sender.sendto(data, address)
    assert sender.recv(65535) == data, size
"""
#: Four no-operations; a record of the route with space for two addresses.
OPTIONS = {"no-operation": "01010101", "record route": "070b04000000000000000000"}


@pytest.mark.parametrize("options", OPTIONS)
def test_ip_options(containers: list[Container], options: str) -> None:
    for one, other in permutations(containers):
        with listening(other, "udp-echo", "5004"):
            one.run(sys.executable, "-c", ECHO_WITH_OPTIONS, str(other.address), "5004", OPTIONS[options])


def test_a_learned_path_mtu(lab: Lab, containers: list[Container]) -> None:
    """A router on the way has sent the host an ICMP error."""
    one, other = containers
    host, peer = lab.hosts
    whole = 16 * MEGABYTE // JUMBO  # about so many datagrams are needed
    before = frames_sent(host)
    with learned(host, peer):
        transfer(one, other, str(other.address), 16 * MEGABYTE)
        text = one.run("ping", "-n", "-c3", "-i0.1", "-W2", "-s", str(INNER - PING_HEADERS), str(other.address)).stdout
        assert "3 received" in text
    assert frames_sent(host) - before > 4 * whole, "the datagrams did not go out in fragments"
    before = frames_sent(host)
    transfer(one, other, str(other.address), 16 * MEGABYTE)
    assert frames_sent(host) - before < 2 * whole, "the datagrams still go out in fragments"


FRAGMENTATION_NEEDED = """
import sys
from scapy.all import ICMP, IP, UDP, send
host, peer, mtu = sys.argv[1:]
datagram = IP(src=host, dst=peer, flags="DF", len=9000) / UDP(sport=8285, dport=8285, len=8980)
send(IP(dst=host) / ICMP(type=3, code=4, nexthopmtu=int(mtu)) / datagram, verbose=False)
"""


@contextmanager
def learned(host: Host, peer: Host) -> Iterator[None]:
    """Have a host know that the path to its peer has a smaller MTU."""
    addresses = str(host.public_ip), str(peer.public_ip)
    host.lab.switch.run(sys.executable, "-W", "ignore", "-c", FRAGMENTATION_NEEDED, *addresses, str(NARROW))
    route = ("ip", "route", "get", str(peer.public_ip))
    wait_for(lambda: f"mtu {NARROW}" in host.run(*route).stdout, 5, "the MTU to be known")
    try:
        yield
    finally:
        host.run("ip", "route", "flush", "cache")


def frames_sent(host: Host) -> int:
    """Return how often eth1 has sent: one datagram, a super-packet, or a fragment."""
    return int(host.run("cat", "/sys/class/net/eth1/statistics/tx_packets").stdout)


def test_what_forward_drops_is_dropped(lab: Lab, containers: list[Container]) -> None:
    """flannelpy accepts packets of containers; an operator's rule before that wins, for either direction."""
    one, other = containers
    for host in lab.hosts:
        for interface in ("-i", "-o"):
            rule = ("FORWARD", interface, "flannel0", "-p", "icmp", "-j", "DROP")
            host.run("iptables", "-I", *rule)
            assert one.run("ping", "-nq", "-c2", "-i0.1", "-W1", str(other.address), check=False).returncode == 1
            host.run("iptables", "-D", *rule)
            assert "2 received" in one.run("ping", "-nq", "-c2", "-i0.1", "-W1", str(other.address)).stdout
