"""What the report counts for a peer agrees with the peer's report, the wire and the device, but for counted drops."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

import pytest
from lab import Container, Host, Lab, Node
from support.datapaths import segment_before_the_device
from support.overlay import OUTER_PORT, Capture, listening, traffic, transfer
from support.pcap import ETHERNET, beginnings, udp_datagrams

from flannelpy.control.client import fetch
from flannelpy.packet.drops import DropReason

MTU = 1472
MEGABYTE = 1 << 20
#: Of Ethernet, IP and UDP, which are around a packet on the wire.
HEADERS = 14 + 20 + 8
#: Why a packet that comes from the TUN is not sent.  An expired TTL stops packets of either direction.
OUTBOUND = {
    DropReason.NOT_IPV4,
    DropReason.NO_ROUTE,
    DropReason.SEND_BUFFER_FULL,
    DropReason.TOO_BIG,
    DropReason.SEND_FAILED,
    DropReason.BAD_VNET_HDR,
}
#: Packets that never came to the device's counter, or that were accepted and counted before.
ELSEWHERE = {DropReason.TUN_QUEUE_FULL, DropReason.TUN_WRITE_FAILED}

sizes = pytest.mark.parametrize("megabytes", [100, pytest.param(1024, marks=pytest.mark.soak)])


class Count(NamedTuple):
    """IP packets of the overlay, and their bytes."""

    packets: int
    size: int

    def since(self, before: Count) -> Count:
        """Return what was counted after ``before``."""
        return Count(self.packets - before.packets, self.size - before.size)


class Counts(NamedTuple):
    """The counters of a host: of its report, of its device as the daemon sees it, and lost on the way to the host."""

    sent: Count
    accepted: Count
    from_device: Count
    to_device: Count
    drops: Counter[DropReason]
    lost_before: int

    def dropped(self, reasons: set[DropReason]) -> int:
        return sum(self.drops[reason] for reason in reasons)

    def since(self, before: Counts) -> Counts:
        """Return what was counted after ``before``."""
        return Counts(
            self.sent.since(before.sent),
            self.accepted.since(before.accepted),
            self.from_device.since(before.from_device),
            self.to_device.since(before.to_device),
            self.drops - before.drops,
            self.lost_before - before.lost_before,
        )


@pytest.fixture(scope="module", params=["all", "off"])
def lab(request: pytest.FixtureRequest, root: None) -> Iterator[Lab]:
    """Two hosts whose network devices send datagrams singly, as cards do, so that each counter counts datagrams."""
    with Lab(hosts=2) as lab:
        lab.put_config()
        lab.start_daemons("-iface=eth1", *(["-offload=off"] if request.param == "off" else []))
        for host in lab.hosts:
            host.add_container()
            segment_before_the_device(host)
        yield lab


def counts_of(host: Host) -> Counts:
    answer = fetch(host.run_dir / "flannel/control.sock", with_peers=True)
    [peer], [network] = answer.peers[""], answer.report.networks
    assert peer.traffic
    assert network.backend
    drops = Counter({DropReason[name.upper()]: count for name, count in network.backend.drops.items()})
    sent, accepted = peer.traffic.packets_out, peer.traffic.packets_in
    return Counts(
        Count(sent, peer.traffic.bytes_out),
        Count(accepted, peer.traffic.bytes_in),
        device_count(host, "tx"),
        device_count(host, "rx"),
        drops,
        statistic(host.lab.switch, host.name, "tx_dropped")
        + sum(statistic(other, "eth1", "tx_dropped") for other in host.lab.hosts if other is not host),
    )


def is_counted_by_device(host: Host) -> bool:
    """Return whether the device sees each packet by itself: no super-packet, and none that the kernel carries."""
    [network] = fetch(host.run_dir / "flannel/control.sock", with_peers=False).report.networks
    assert network.backend
    return not network.backend.offloads and network.backend.datapath == "loop"


def device_count(host: Host, way: str) -> Count:
    return Count(statistic(host, "flannel0", f"{way}_packets"), statistic(host, "flannel0", f"{way}_bytes"))


def statistic(node: Node, device: str, name: str) -> int:
    [link] = json.loads(node.run("ip", "-j", "-s", "link", "show", "dev", device).stdout)
    way, _, what = name.partition("_")
    return int(link["stats64"][way][what])


def settled(lab: Lab) -> list[Counts]:
    """Return the counters of both hosts once they rest; the daemon reads those of the kernel once a second."""
    latest: list[Counts] = []
    for _ in range(20):
        before, latest = latest, [counts_of(host) for host in lab.hosts]
        if latest == before:
            return latest
        time.sleep(1.2)
    raise TimeoutError(f"the counters never rest: {latest}")


def assert_agree(more: Count, less: Count, missing: int) -> None:
    """Assert that ``less`` lacks as many packets of ``more``, none shorter than a header or longer than the MTU."""
    assert more.packets - less.packets == missing
    assert 20 * missing <= more.size - less.size <= MTU * missing


def captured_from(host: Host, file: Path) -> Count:
    """Return what a capture has of the host's datagrams, without outer headers."""
    sizes = [length - HEADERS for frame, length in beginnings(file, ETHERNET) if frame[26:30] == host.public_ip.packed]
    return Count(len(sizes), sum(sizes))


def both_ways(lab: Lab, size: int) -> None:
    """Send ``size`` bytes over TCP each way at the same time."""
    one, other = (host.containers[0] for host in lab.hosts)
    with ThreadPoolExecutor() as threads:
        for done in [
            threads.submit(transfer, source, sink, str(sink.address), size, 280)
            for source, sink in ((one, other), (other, one))
        ]:
            done.result()


@sizes
def test_sender_receiver_wire_and_device_agree_after_traffic_both_ways(
    lab: Lab, tmp_path: Path, megabytes: int
) -> None:
    file, before = tmp_path / "eth1.pcap", settled(lab)
    with Capture(lab.hosts[0], "eth1", f"udp port {OUTER_PORT}", file, HEADERS) as capture:
        both_ways(lab, megabytes * MEGABYTE)
        after = settled(lab)
    one, other = (now.since(then) for now, then in zip(after, before, strict=True))
    for sender, host, peer in zip(lab.hosts, (one, other), (other, one), strict=True):
        captured = captured_from(sender, file)
        print(host, captured, capture.missed)
        assert host.sent.size > megabytes * MEGABYTE
        lost = peer.lost_before if sender is lab.hosts[1] else 0  # on the way to the capture
        assert lost <= host.sent.packets - captured.packets <= lost + capture.missed
        assert_agree(host.sent, captured, host.sent.packets - captured.packets)
        assert_agree(host.sent, peer.accepted, peer.dropped(set(DropReason) - OUTBOUND - ELSEWHERE) + peer.lost_before)
        if is_counted_by_device(lab.hosts[0]):
            assert_agree(host.from_device, host.sent, host.dropped(OUTBOUND))
            assert_agree(host.accepted, host.to_device, host.dropped({DropReason.TUN_WRITE_FAILED}))


def test_a_mixture_agrees_with_a_capture_of_each_datagram(lab: Lab, tmp_path: Path) -> None:
    """Pings with fragments, datagrams of all lengths, super-packets, ICMP errors of containers and of both daemons."""
    file, [host, peer] = tmp_path / "eth1.pcap", lab.hosts
    before = settled(lab)
    with Capture(host, "eth1", f"udp port {OUTER_PORT}", file):
        mixture(host.containers[0], peer.containers[0])
        after = settled(lab)
    one, other = (now.since(then) for now, then in zip(after, before, strict=True))
    print(one, other, sep="\n")
    assert one.drops[DropReason.TTL_EXPIRED] == other.drops[DropReason.TTL_EXPIRED] == one.drops[DropReason.NO_ROUTE]
    assert one.drops[DropReason.NO_ROUTE] == ERRORS
    for source, counted in ((host, one), (peer, other)):
        payloads = [len(each.payload) for each in udp_datagrams(file, OUTER_PORT) if each.is_from(source.public_ip)]
        assert counted.sent == (len(payloads), sum(payloads))
    assert_agree(other.sent, one.accepted, 0)
    assert_agree(one.sent, other.accepted, ERRORS)  # their TTLs expire at the peer
    if is_counted_by_device(host):
        expired = one.drops[DropReason.TTL_EXPIRED]
        assert_agree(one.from_device, one.sent, one.dropped(OUTBOUND) + expired)
        assert one.to_device.packets - one.accepted.packets == ERRORS + expired  # the daemon's errors for its host
        assert other.sent.packets - other.from_device.packets == ERRORS - other.dropped(OUTBOUND)  # those for its peer
        assert other.to_device == other.accepted


#: Packets of each kind that cause an ICMP error of a daemon; a daemon sends so many at once to one address.
ERRORS = 2


def mixture(one: Container, other: Container) -> None:
    address = str(other.address)
    for length in ("0", "1", "1444", "1445", "4001", "20000"):
        assert_answered(one, "-c3", "-i0.1", f"-s{length}", address)
    with listening(other, "udp-echo", "5002"):
        assert traffic(one, "udp-lengths", address, "5002", "150") == "[]\n"
        assert traffic(one, "udp-super", address, "5002") == "[]\n"
    assert traffic(one, "udp-error", address, "5003") == "ECONNREFUSED\n"
    for ttl, destination in (("2", other.address), ("3", other.address), ("64", UNLEASED)):
        done = one.run("ping", "-n", f"-c{ERRORS}", "-i0.5", "-W2", f"-t{ttl}", str(destination), check=False)
        assert f"+{ERRORS} errors" in done.stdout


#: In the network, but of no peer.
UNLEASED = IPv4Address("11.0.255.1")


def assert_answered(container: Container, *arguments: str) -> None:
    done = container.run("ping", "-n", "-W5", *arguments, check=False)
    assert re.search(r" 0% packet loss", done.stdout), done.stdout
