"""Two hosts whose programs carry everything: no loop runs, and no socket has the port."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from ipaddress import IPv4Network
from typing import TypeVar

import pytest
from lab import Container, Host, Lab
from support.bpf_programs import ALIAS, inside, own_tun, shell
from support.overlay import throughput, transfer
from support.packets import NETWORK, PORT

from flannelpy.backend.udp.fast_path import FastPath, FastPathConfig
from flannelpy.bpf.assembler import Assembler
from flannelpy.bpf.instructions import Register
from flannelpy.datapath.fast_path.parts import LICENSE, TC_ACT_SHOT
from flannelpy.datapath.source_check import SourceCheck
from flannelpy.linux.bpf import BpfProgram
from flannelpy.linux.netlink.client import Netlink
from flannelpy.rtnetlink.filters import Hook

T = TypeVar("T")
SUBNETS = [IPv4Network("11.0.1.0/24"), IPv4Network("11.0.2.0/24")]


class KernelHost:
    """A host with a container, a fast path, and a TUN that no loop reads."""

    def __init__(self, host: Host, subnet: IPv4Network) -> None:
        self.host = host
        self.subnet = subnet
        self._config = FastPathConfig(
            subnet, NETWORK, host.public_ip, PORT, SourceCheck.STRICT, "flannel0", "eth1", ALIAS
        )
        self.fast_path = FastPath(self._config)
        (host.run_dir / "flannel").mkdir()
        (host.run_dir / "flannel" / "subnet.env").write_text(f"FLANNEL_SUBNET={subnet[1]}/24\nFLANNEL_MTU=1472\n")
        self.container: Container = host.add_container()

    def start(self, peer: KernelHost) -> FastPath:
        """Return a fast path that is attached."""
        fast_path = FastPath(self._config)
        self.do(fast_path.open)
        fast_path.set(peer.subnet, peer.host.public_ip, in_kernel=True)
        fast_path.extend(float("inf"))
        self.do(fast_path.attach)
        return fast_path

    def do(self, work: Callable[[Netlink], Awaitable[T]]) -> T:
        """Run a part of the fast path in the host's namespace."""

        async def with_netlink() -> T:
            async with Netlink() as netlink:
                return await work(netlink)

        with inside(self.host):
            return asyncio.run(with_netlink())

    def shell(self, commands: str) -> str:
        """Run commands in the host's namespace."""
        with inside(self.host):
            return shell(commands)


@pytest.fixture
def hosts(lab: Lab) -> Iterator[list[KernelHost]]:
    with ExitStack() as tuns:
        found = [KernelHost(host, subnet) for host, subnet in zip(lab.hosts, SUBNETS, strict=False)]
        for own, other in (found, found[::-1]):
            with inside(own.host):
                tuns.enter_context(own_tun(own.subnet))
            own.fast_path = own.start(other)
        yield found
        for own in found:
            own.do(own.fast_path.close)


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(hosts=2)


def lost(text: str) -> int:
    """Return how many percent of its packets ping has lost."""
    match = re.search(r"([\d.]+)% packet loss", text)
    assert match, text
    return int(float(match[1]))


def test_programs_carry_ping_and_tcp(hosts: list[KernelHost]) -> None:
    one, other = hosts
    assert lost(one.container.ping_text(other.container.address, 5)) == 0
    carried = one.fast_path.tally(other.subnet)
    assert carried
    assert (carried.packets_out, carried.bytes_out) == (carried.packets_in, carried.bytes_in) == (5, 5 * 84)
    assert throughput(one.container, other.container) > 500e6
    assert throughput(other.container, one.container) > 500e6
    assert not one.fast_path.counts()
    assert not other.fast_path.counts()


def test_a_peer_may_have_several_leases(hosts: list[KernelHost]) -> None:
    """Its checksums are unfinished; a loop that got its datagrams could do nothing with them."""
    one, other = hosts
    for subnet, in_kernel in (("11.0.250.0/24", True), ("11.0.251.0/24", False)):
        other.fast_path.set(IPv4Network(subnet), one.host.public_ip, in_kernel=in_kernel)
    assert throughput(one.container, other.container) > 500e6
    assert throughput(other.container, one.container) > 500e6
    assert not other.fast_path.counts()


def test_a_packet_waits_for_the_mac_of_its_neighbour(hosts: list[KernelHost]) -> None:
    """No loop could send it."""
    one, other = hosts
    for _ in range(3):
        for each in hosts:
            each.shell("ip neigh flush dev eth1")
        assert lost(one.container.ping_text(other.container.address, 1)) == 0


def test_no_packet_is_lost_while_processes_follow_each_other(hosts: list[KernelHost]) -> None:
    """Each loads programs with maps of its own, fills these, and swaps; the TUN stays open."""
    one, other = hosts
    ping = one.container.popen("ping", "-n", "-c200", "-i0.02", "-W2", str(other.container.address))
    swaps = 0
    while ping.poll() is None:
        for own, peer in (hosts, hosts[::-1]):
            later = own.start(peer)
            own.fast_path.release()
            own.fast_path = later
        swaps += 1
    assert ping.stdout
    assert lost(ping.stdout.read()) == 0
    assert swaps > 3


@pytest.mark.parametrize("checksums", ["on", "off"])
def test_over_a_wire_single_packets_are_merged(hosts: list[KernelHost], checksums: str) -> None:
    """As with network cards, packets of MTU size cross; the GRO pair merges them again.

    ``checksums``: whether the card completes those of the inner packets; else the kernel must.
    """
    one, other = hosts
    off = "tso off gso off tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off tx-udp-segmentation off"
    for each in hosts:
        each.shell(f"ethtool -K eth1 {off} tx {checksums}")
        each.host.lab.switch.run("ethtool", "-K", each.host.name, "tso", "off")
    crossed, delivered = packets(other, "eth1", "rx"), packets(other, "veth1", "tx")
    transfer(one.container, other.container, str(other.container.address), 100 << 20)
    assert packets(other, "veth1", "tx") - delivered < (packets(other, "eth1", "rx") - crossed) / 4


def test_the_pair_drops_no_packets_of_many_streams(hosts: list[KernelHost]) -> None:
    """Over veths super-packets arrive whole, many in one turn of the driver; five of them fill a queue of the pair."""
    one, other = hosts
    merged, delivered = packets(other, "flannel0-gro", "rx"), packets(other, "veth1", "tx")
    throughput(one.container, other.container, streams=8)
    merged = packets(other, "flannel0-gro", "rx") - merged
    assert merged > 10_000, "super-packets are not cut"
    assert packets(other, "veth1", "tx") - delivered < merged / 10
    assert dropped_by_the_pair(other) == 0


@pytest.mark.parametrize("mss", [216, 536])
def test_super_packets_of_small_segments_do_not_enter_the_pair(hosts: list[KernelHost], mss: int) -> None:
    """They have up to 303 or 122 segments; a queue of the pair has 256 places, of which NAPI empties 64 in one turn."""
    one, other = hosts
    other.container.run("ip", "route", "change", "default", "via", str(other.subnet[1]), "advmss", str(mss))
    assert throughput(one.container, other.container) > 100e6
    assert dropped_by_the_pair(other) == 0
    assert packets(other, "flannel0-gro", "rx") < 1000


def test_without_one_end_of_the_pair_packets_go_to_the_tun(hosts: list[KernelHost]) -> None:
    """What goes into one end comes out of the other."""
    one, other = hosts
    other.shell(f"ip link set flannel0-gro netns {one.host.netns} name moved")
    assert throughput(one.container, other.container) > 500e6
    one.shell("ip link del moved")


def test_udp_arrives_unchanged(hosts: list[KernelHost]) -> None:
    one, other = hosts
    script = "import socket; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(10)\n"
    echo = f"{script}s.bind(('', 7)); print(flush=True)\nfor _ in range(4): s.sendto(*s.recvfrom(9999))"
    peer = str(other.container.address), 7
    ask = f"{script}for n in 0, 1, 999, 1400: d = bytes(n % 256 for n in range(n)); s.sendto(d, {peer}); "
    ask += "assert s.recv(9999) == d"
    server = other.container.popen(sys.executable, "-c", echo)
    assert server.stdout
    server.stdout.readline()
    one.container.run(sys.executable, "-c", ask)
    assert server.wait(10) == 0
    carried = one.fast_path.tally(other.subnet)
    assert carried
    assert carried.packets_out >= 4 <= carried.packets_in


def test_a_filter_of_another_program_comes_first(hosts: list[KernelHost]) -> None:
    """What an operator's filter drops, the programs never see."""
    one, other = hosts
    code = Assembler()
    code.set(Register.R0, TC_ACT_SHOT)
    code.leave()
    dropping = BpfProgram("foreign", code.program(), {}, LICENSE)

    async def attach(netlink: Netlink) -> None:
        link = await netlink.link("eth1")
        assert link
        async with netlink._iproute("cannot attach") as route:
            await route.tc(
                "add-filter", "bpf", link.index, 1, parent=int(Hook.INGRESS), prio=7, fd=dropping.fd, direct_action=True
            )

    assert lost(one.container.ping_text(other.container.address, 3)) == 0
    other.do(attach)
    assert lost(one.container.ping_text(other.container.address, 3)) == 100
    other.shell("tc filter del dev eth1 ingress prio 7")
    assert lost(one.container.ping_text(other.container.address, 3)) == 0


def dropped_by_the_pair(host: KernelHost) -> int:
    ways = [(end, way) for end in ("flannel0-gro", "flannel0-cut") for way in ("tx", "rx")]
    return sum(packets(host, end, way, "dropped") for end, way in ways)


def packets(host: KernelHost, interface: str, direction: str, what: str = "packets") -> int:
    """Return how many packets an interface has sent (tx) or received (rx); a super-packet counts as one."""
    [link] = json.loads(host.shell(f"ip -j -s link show {interface}"))
    return int(link["stats64"][direction][what])
