"""The data path under strain: loss, disorder, underlays with small MTUs or errors, floods.

Every packet that arrives is right, every lost packet is counted, and the rest of the daemon is unaffected.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import struct
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain, permutations
from pathlib import Path

import pytest
from lab import ETCD_PREFIX, UNDERLAY, Container, Daemon, Host, Lab, Node, wait_connected, wait_for
from support.datapaths import SEGMENTATION, segment_before_the_device
from support.overlay import OUTER_PORT, Capture, listening, running, traffic, transfer
from support.packets import checksum
from support.pcap import ETHERNET, read, udp_datagrams

RELAY = str(Path(__file__).with_name("relay.py"))
GIGABYTE = 1 << 30
MEGABYTE = 1 << 20
MTU = 1500
SLOW_MBITS = 200
ICMP = 1
TCP = 6
UDP = 17
#: The number of datagrams of one flow in which no identification repeats.
ID_WINDOW = 4096

_serial = itertools.count(1)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(hosts=2) as lab:
        lab.put_config()
        for daemon in lab.start_daemons("-iface=eth1"):
            daemon.host.add_container()
            daemon.stop()
        yield lab


@pytest.fixture
def daemons(lab: Lab) -> Iterator[list[Daemon]]:
    """Return new daemons, which must still run at the end of the test."""
    daemons = lab.start_daemons("-iface=eth1")
    yield daemons
    for daemon in daemons:
        if daemon.process.returncode is None:
            assert daemon.stop() == 0


@pytest.fixture
def containers(lab: Lab, daemons: list[Daemon]) -> list[Container]:
    return [host.containers[0] for host in lab.hosts]


# Content


def test_a_gigabyte_arrives(containers: list[Container]) -> None:
    one, other = containers
    transfer(one, other, str(other.address), GIGABYTE)


@pytest.mark.sample("gro", 1)
@pytest.mark.parametrize("gro", ["off", "on"])
def test_a_gigabyte_arrives_with_every_hundredth_datagram_lost(lab: Lab, containers: list[Container], gro: str) -> None:
    """``gro``: whether the receiving device merges the remaining datagrams, as network cards do."""
    one, other = containers
    with datagrams_travel_singly(lab), every_hundredth_lost(lab.switch) as counted:
        for host in lab.hosts:
            host.run("ethtool", "-K", "eth1", "gro", gro)
        transfer(one, other, str(other.address), GIGABYTE)
        datagrams, size = counted("datagrams")
        lost, _ = counted("lost")
    assert size / datagrams <= MTU, "the losses were of many datagrams at a time"
    assert 0.009 < lost / datagrams < 0.011


@pytest.mark.soak
def test_a_gigabyte_arrives_with_datagrams_reordered_and_duplicated(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=2)
    lab.put_config()
    public = [str(UNDERLAY.ip + 200 + number) for number in (1, 2)]
    lab.switch.configure(*(f"address add {address}/{UNDERLAY.network.prefixlen} dev br0" for address in public))
    [one, other] = lab.hosts
    daemons = [
        host.start_daemon("-iface=eth1", f"-public-ip={address}")
        for host, address in zip(lab.hosts, public, strict=True)
    ]
    wait_connected(daemons)
    ways = (public[0], str(one.public_ip), public[1], str(other.public_ip))
    relay = lab.switch.popen(sys.executable, RELAY, *ways)
    assert relay.stdout is not None
    assert relay.stdout.readline() == "listening\n"
    source, sink = one.add_container(), other.add_container()
    transfer(source, sink, str(sink.address), GIGABYTE)
    relay.terminate()
    output, _ = relay.communicate(timeout=5)
    counts = json.loads(output)
    datagrams = GIGABYTE // MTU
    assert counts["delayed"] > datagrams / 200
    assert counts["duplicated"] > datagrams / 200


@contextmanager
def datagrams_travel_singly(lab: Lab) -> Iterator[None]:
    """Have the hosts segment before their network devices: datagrams of one call then travel singly."""
    for host in lab.hosts:
        segment_before_the_device(host)
    try:
        yield
    finally:
        for host in lab.hosts:
            host.run("ethtool", "-K", "eth1", "tx", "on", *chain.from_iterable((each, "on") for each in SEGMENTATION))
            host.run("ethtool", "-K", "eth1", "gro", "off")


@contextmanager
def every_hundredth_lost(switch: Node) -> Iterator[Callable[[str], tuple[int, int]]]:
    """Drop every hundredth datagram at the switch; yield a function for (packets, bytes) of a counter."""
    rules = f"""
        table netdev underlay {{
            counter datagrams {{ }}
            counter lost {{ }}
            chain ingress {{
                type filter hook ingress devices = {{ host1, host2 }} priority 0
                udp dport {OUTER_PORT} counter name datagrams numgen random mod 100 == 0 counter name lost drop
            }}
        }}"""

    def counted(name: str) -> tuple[int, int]:
        listing = json.loads(switch.run("nft", "-j", "list", "counter", "netdev", "underlay", name).stdout)
        [counter] = [item["counter"] for item in listing["nftables"] if "counter" in item]
        return counter["packets"], counter["bytes"]

    switch.run("nft", "-f", "-", input=rules)
    try:
        yield counted
    finally:
        switch.run("nft", "delete table netdev underlay")


# The wire


@pytest.mark.parametrize("checksums", [pytest.param("on", marks=pytest.mark.loop), "off"])
def test_each_datagram_fits_and_is_one_inner_packet_that_is_right(
    lab: Lab, containers: list[Container], tmp_path: Path, checksums: str
) -> None:
    """``checksums``: whether the device completes them; those of the kernel's datapath, a veth leaves unfinished."""
    one, other = containers
    file = tmp_path / "underlay.pcap"
    address = str(other.address)
    with datagrams_travel_singly(lab), Capture(lab.switch, "host1", f"udp port {OUTER_PORT}", file):
        for host in lab.hosts:
            host.run("ethtool", "-K", "eth1", "tx", checksums)
        transfer(one, other, address, 32 * MEGABYTE)
        with listening(other, "udp-echo", "5002"):
            assert traffic(one, "udp-super", address, "5002") == "[]\n"
            for size, count in ((1400, 40), (700, 1), (64, 64)):
                with running(one, "udp-flood", address, "5002", str(size), str(count)):
                    enough = file.stat().st_size + 4 * MEGABYTE
                    wait_for(partial(larger, file, enough), 10, "more datagrams")
    assert max(len(frame) for frame in read(file, ETHERNET)) == 14 + MTU
    latest: dict[bytes, deque[int]] = defaultdict(lambda: deque(maxlen=ID_WINDOW))
    protocols: dict[int, int] = defaultdict(int)
    for datagram in udp_datagrams(file, OUTER_PORT):
        flow, protocol, identification = inspect(datagram.payload)
        protocols[protocol] += 1
        # The kernel counts a super-packet of UDP as one packet, so these identifications overlap anyway.
        # A segment without data, such as a reset, belongs to no super-packet; the kernel numbers some of them 0.
        if protocol == TCP and has_data(datagram.payload):
            assert identification not in latest[flow]
            latest[flow].append(identification)
    assert protocols[TCP] > 20_000
    assert protocols[UDP] > 5_000


def larger(file: Path, size: int) -> bool:
    return file.stat().st_size > size


def has_data(segment: bytes) -> bool:
    """Return whether a TCP segment in an IPv4 packet without options has data."""
    return len(segment) > 20 + (segment[32] >> 4) * 4


def inspect(packet: bytes) -> tuple[bytes, int, int]:
    """Return (flow, protocol, identification) of one complete, valid packet: TCP, UDP or ICMP."""
    version_ihl, _, length, identification, fragment, _, protocol = struct.unpack_from("!BBHHHBB", packet)
    assert version_ihl == 0x45
    assert length == len(packet)
    assert not fragment & 0x3FFF
    assert protocol in (ICMP, TCP, UDP)
    assert checksum(packet[:20]) == 0
    pseudo_header = b"" if protocol == ICMP else packet[12:20] + struct.pack("!HH", protocol, length - 20)
    assert checksum(pseudo_header + packet[20:]) == 0
    if protocol == UDP:
        udp_length, udp_checksum = struct.unpack_from("!HH", packet, 24)
        assert udp_length == length - 20
        assert udp_checksum
    return packet[9:10] + packet[12:24], protocol, identification


# What the underlay cannot do


def test_a_card_without_checksums_costs_speed_only(lab: Lab, containers: list[Container]) -> None:
    one, other = containers
    for host in lab.hosts:
        host.run("ethtool", "-K", "eth1", "tx", "off")
    try:
        transfer(one, other, str(other.address), 64 * MEGABYTE)
    finally:
        for host in lab.hosts:
            host.run("ethtool", "-K", "eth1", "tx", "on", "tso", "on", "tx-udp-segmentation", "on")
    assert lab.hosts[0].log().count("rejected UDP_SEGMENT") <= 1


@pytest.mark.parametrize("narrow", [pytest.param("route", marks=pytest.mark.loop), "locked route", "device"])
def test_a_narrow_path_costs_speed_only_and_while_it_is_narrow(
    lab: Lab, containers: list[Container], daemons: list[Daemon], narrow: str
) -> None:
    one, other = containers
    host = lab.hosts[0]
    whole = 16 * MEGABYTE // MTU  # about so many datagrams are needed
    before = frames_sent(host)
    with narrowed(host, narrow):
        transfer(one, other, str(other.address), 16 * MEGABYTE)
    assert frames_sent(host) - before > 2 * whole, "the datagrams did not go out as two fragments each"
    before = frames_sent(host)
    transfer(one, other, str(other.address), 16 * MEGABYTE)
    assert frames_sent(host) - before < whole / 4, "the datagrams still go out one by one"
    assert "UDP_SEGMENT" not in daemons[0].log()


@pytest.mark.timed
@pytest.mark.parametrize("refusal", ["forbidden", "no route", "no link"])
def test_packets_that_the_underlay_rejects_are_counted_and_other_packets_travel(
    lab: Lab, containers: list[Container], daemons: list[Daemon], refusal: str
) -> None:
    one, other = containers
    lines = len(daemons[0].log().splitlines())
    with running(one, "udp-flood", str(other.address), "5002", "1400", "20"), refused(lab.hosts[0], refusal):
        assert "0 received" in one.run("ping", "-c3", "-i0.1", "-W1", str(other.address), check=False).stdout
        if refusal != "no link":  # the host cannot reach etcd then either
            assert_control_is_alive(lab, daemons[0])
    assert len(daemons[0].log().splitlines()) < lines + 10, "it logs without end"
    wait_for(lambda: one.run("ping", "-c1", "-W1", str(other.address), check=False).returncode == 0, 5, "a reply")
    before = processor_seconds(daemons[0])
    one.run("ping", "-c5", "-i0.2", "-W2", str(other.address))
    assert processor_seconds(daemons[0]) - before < 0.2, "it is busy with nothing"
    transfer(one, other, str(other.address), MEGABYTE)
    assert daemons[0].stop() == 0
    assert re.search(r"Dropped packets: .*send_failed \d", daemons[0].log())


@contextmanager
def narrowed(host: Host, how: str) -> Iterator[None]:
    """Give the path to the other host a smaller MTU than a full datagram."""
    route = f"{UNDERLAY.network} dev eth1 src {host.public_ip}"
    narrow, wide = {
        "route": (f"route replace {route} mtu 1300", f"route replace {route}"),
        "locked route": (f"route replace {route} mtu lock 1300", f"route replace {route}"),
        "device": ("link set eth1 mtu 1300", f"link set eth1 mtu {MTU}"),
    }[how]
    host.configure(narrow)
    try:
        yield
    finally:
        host.configure(wide)


@contextmanager
def refused(host: Host, how: str) -> Iterator[None]:
    """Have the underlay reject all packets, each time for another reason."""
    chain = f"chain output {{ type filter hook output priority 0; udp dport {OUTER_PORT} drop; }};"
    begin, end = {
        "forbidden": (f"nft 'table inet refusal {{ {chain} }}'", "nft delete table inet refusal"),
        "no route": ("ip route add unreachable 172.17.8.102", "ip route delete unreachable 172.17.8.102"),
        "no link": ("ip link set eth1 down", "ip link set eth1 up"),
    }[how]
    host.run("sh", "-c", begin)
    try:
        yield
    finally:
        host.run("sh", "-c", end)


def frames_sent(host: Host) -> int:
    """Return how often eth1 has sent: one datagram, a super-packet, or a fragment."""
    return int(host.run("cat", "/sys/class/net/eth1/statistics/tx_packets").stdout)


def processor_seconds(daemon: Daemon) -> float:
    fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# Under load


@pytest.fixture(params=["tcp", "udp", "full socket"])
def load(lab: Lab, containers: list[Container], request: pytest.FixtureRequest) -> Iterator[str]:
    """Have the first host's container send to the other as fast as possible, over a fast or a slow underlay."""
    one, other = containers
    load: str = request.param
    with ExitStack() as cleanup:
        if load == "full socket":
            cleanup.enter_context(slowed(lab.hosts[0]))
        if load == "tcp":
            cleanup.enter_context(listening(other, "tcp-sink", "5001"))
            cleanup.enter_context(running(one, "tcp-source", str(other.address), "5001", str(1 << 40)))
        else:
            cleanup.enter_context(listening(other, "udp-echo", "5002"))
            cleanup.enter_context(running(one, "udp-flood", str(other.address), "5002", "1400", "40"))
        await_traffic(lab.hosts[0], "eth1", 4 * MEGABYTE)
        if load == "full socket":
            wait_for(lambda: bytes_unsent(lab.hosts[0]) > 6 * MEGABYTE, 5, load)
        yield load


@pytest.mark.timed
def test_a_new_lease_has_its_route_within_a_second(lab: Lab, daemons: list[Daemon], load: str) -> None:
    for daemon in daemons:
        assert_control_is_alive(lab, daemon)


@pytest.mark.timed
def test_a_signal_ends_the_daemon_within_two_seconds(daemons: list[Daemon], load: str) -> None:
    for daemon in daemons:
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 2


def test_memory_and_descriptors_stay_as_they_are(containers: list[Container], daemons: list[Daemon]) -> None:
    put_under_load(containers, 32)
    before = [(peak_memory(daemon), descriptors(daemon)) for daemon in daemons]
    put_under_load(containers, 512)
    for daemon, (memory, files) in zip(daemons, before, strict=True):
        assert peak_memory(daemon) < 80 * MEGABYTE
        assert peak_memory(daemon) - memory < 2 * MEGABYTE
        # The config is read every half minute, beside the watch, by a connection that stays open.
        assert descriptors(daemon) - files in (0, 1)


@pytest.mark.sample("streams", 1)
@pytest.mark.timed
@pytest.mark.parametrize("streams", [1, 8])
def test_tcp_slows_down_to_what_the_underlay_takes(lab: Lab, containers: list[Container], streams: int) -> None:
    one, other = containers
    with slowed(lab.hosts[0]):
        server = other.popen("iperf3", "-s", "-1", "--forceflush")
        assert server.stdout is not None
        while "listening" not in (line := server.stdout.readline()):
            assert line, "iperf3 has ended"
        # Reno accelerates until a packet is lost, or the window is full; it ignores a growing round-trip time.
        how = ("-t3", "-J", "-C", "reno", "-P", str(streams))
        client = one.popen("iperf3", "-c", str(other.address), *how)
        if streams > 1:
            wait_for(lambda: bytes_unsent(lab.hosts[0]) > 6 * MEGABYTE, 3, "a full socket")
        output, _ = client.communicate(timeout=20)
    report = json.loads(output)["end"]
    assert report["sum_received"]["bits_per_second"] > 0.8 * SLOW_MBITS * 1e6
    assert report["sum_sent"]["retransmits"] < 50


def put_under_load(containers: list[Container], megabytes: int) -> None:
    """Start TCP both ways, and floods of UDP in three shapes."""
    one, other = containers
    for source, sink in permutations(containers):
        transfer(source, sink, str(sink.address), megabytes * MEGABYTE)
    with listening(other, "udp-echo", "5002"):
        for size, count in ((1400, 40), (1400, 1), (64, 64)):
            with running(one, "udp-flood", str(other.address), "5002", str(size), str(count)):
                await_traffic(one, "eth0", megabytes * MEGABYTE // 4)


def await_traffic(node: Node, device: str, size: int) -> None:
    """Return when the device has sent so many more bytes."""
    file = f"/sys/class/net/{device}/statistics/tx_bytes"
    end = int(node.run("cat", file).stdout) + size
    wait_for(lambda: int(node.run("cat", file).stdout) > end, 30, "traffic")


@contextmanager
def slowed(host: Host) -> Iterator[None]:
    """Give the underlay a longer queue than the socket's, so that the socket becomes full."""
    tbf = ("tbf", "rate", f"{SLOW_MBITS}mbit", "burst", "64kb", "limit", "64mb")
    host.run("tc", "qdisc", "add", "dev", "eth1", "root", *tbf)
    try:
        yield
    finally:
        host.run("tc", "qdisc", "delete", "dev", "eth1", "root")


def assert_control_is_alive(lab: Lab, daemon: Daemon) -> None:
    """Assert that a lease in etcd has its route within a second."""
    subnet = f"11.0.0.{4 * next(_serial)}/30"
    lab.etcd_request("PUT", f"{ETCD_PREFIX}/subnets/{subnet.replace('/', '-')}", value='{"PublicIP":"192.0.2.1"}')
    daemon.wait_for_log(f"Subnet added: {re.escape(subnet)}$", 1)


def bytes_unsent(host: Host) -> int:
    """Return the unsent bytes of the daemon's UDP sockets.  Source: proc(5), /proc/net/udp."""
    sockets = host.run("cat", "/proc/net/udp").stdout
    found = re.findall(rf":{OUTER_PORT:04X} 00000000:0000 \w\w (\w+):\w+ ", sockets)
    assert found
    return sum(int(count, 16) for count in found)


def peak_memory(daemon: Daemon) -> int:
    """Return the largest number of resident bytes."""
    [kilobytes] = re.findall(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{daemon.pid}/status").read_text(), re.MULTILINE)
    return int(kilobytes) * 1024


def descriptors(daemon: Daemon) -> int:
    """Return the smallest number of descriptors of a second: while a command runs, its pipes are open."""
    counts = []
    for _ in range(50):
        counts.append(len(list(Path(f"/proc/{daemon.pid}/fd").iterdir())))
        time.sleep(0.02)
    return min(counts)
