"""Datagrams of hosts without a lease, and packets with impossible addresses: which are accepted, and what is logged.

The tests wait only for a last, valid packet: an earlier one that was accepted would have arrived before it.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address
from typing import NamedTuple

import pytest
from lab import Container, Daemon, Host, Lab, Node, wait_connected, wait_for
from support.datapaths import backend_report
from support.overlay import OUTER_PORT, Capture
from support.packets import ipv4_packet, udp_datagram

pytestmark = pytest.mark.usefixtures("root")

INNER_PORT = 4242
#: The kernel passes 1 in 64 datagrams of an unknown host.
MANY = 2000
#: Sends UDP datagrams with hand-made headers, because their source port may be in use.
_SEND = (
    "import socket, sys;"
    "sender = socket.socket(type=socket.SOCK_RAW, proto=socket.IPPROTO_UDP);"
    "[sender.sendto(bytes.fromhex(line), (sys.argv[1], 0)) for line in sys.stdin]"
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Return two hosts with a container each, and a host without a daemon."""
    with Lab(hosts=3) as lab:
        lab.put_config()
        with serving(lab) as daemons:
            for daemon in daemons:
                daemon.host.add_container()
        yield lab


@contextmanager
def serving(lab: Lab, *flags: str) -> Iterator[list[Daemon]]:
    """Run daemons on the first two hosts."""
    daemons = [host.start_daemon("-iface=eth1", *flags) for host in lab.hosts[:2]]
    try:
        wait_connected(daemons)
        yield daemons
    finally:
        codes = [daemon.stop() for daemon in daemons if daemon.process.poll() is None]
    assert not any(codes)


def packet(source: IPv4Address | str, destination: IPv4Address | str, length: int) -> bytes:
    """Return a UDP packet that tcpdump shows with this length."""
    return ipv4_packet(str(source), str(destination), udp_datagram(bytes(length), ports=(4241, INNER_PORT)))


def send(host: Host, to: Host, packets: list[bytes], port: int = OUTER_PORT) -> None:
    """Send datagrams from ``port`` to the port of the receiver's daemon, without a daemon here."""
    lines = "".join(f"{udp_datagram(data, ports=(port, OUTER_PORT)).hex()}\n" for data in packets)
    host.run(sys.executable, "-I", "-S", "-c", _SEND, str(to.public_ip), input=lines)


def lengths_until(seen: Capture, last: int) -> list[int]:
    """Return the lengths of the packets that arrived, up to one of this length."""
    found: list[int] = []
    while not found or found[-1] != last:
        line = seen.readline()
        assert line, "tcpdump has ended"
        found.append(int(line.rpartition(" ")[2]))
    return found


def dropped(daemon: Daemon) -> Counter[str]:
    """Return the drop counters that the daemon logs at its end."""
    assert daemon.stop() == 0
    reports = re.findall("Dropped packets: (.*)$", daemon.log(), re.MULTILINE)
    return Counter({reason: int(count) for line in reports for reason, count in re.findall(r"(\w+) (\d+)(?!\.)", line)})


def watching(node: Node, device: str) -> Capture:
    return Capture(node, device, f"udp port {INNER_PORT}")


def test_an_unknown_host_reaches_no_container_and_is_named(lab: Lab) -> None:
    peer, host, stranger = lab.hosts
    one, other = containers(lab)
    with serving(lab) as (_, daemon):
        with watching(other, "eth0") as seen:
            send(stranger, host, [packet(one.address, other.address, 11)] * MANY)
            send(peer, host, [packet(one.address, other.address, 77)])
            assert lengths_until(seen, 77) == [77]
        drops = dropped(daemon)
        assert f"(last from {stranger.public_ip})" in daemon.log()
    assert 0 < drops["unknown_sender"] < MANY / 10
    assert drops["unknown_sender"] + drops["socket_filtered_or_full"] == MANY


@pytest.mark.parametrize(("flag", "port"), [("peer", OUTER_PORT + 1), ("strict", 40007), ("off", 1024)])
def test_datagrams_of_a_known_host_from_another_port_are_dropped_and_named(lab: Lab, flag: str, port: int) -> None:
    """A container that its host masquerades sends such datagrams."""
    peer, host, _ = lab.hosts
    one, other = containers(lab)
    with serving(lab, f"-source-check={flag}") as (_, daemon):
        with watching(other, "eth0") as seen:
            send(peer, host, [packet(one.address, other.address, 11)] * (3 if flag == "off" else MANY), port)
            send(peer, host, [packet(one.address, other.address, 77)])
            assert set(lengths_until(seen, 77)) == ({11, 77} if flag == "off" else {77})
        drops = dropped(daemon)
        hint = f"(last from {peer.public_ip}:{port}, not port {OUTER_PORT}; -source-check=off if a NAT changes ports)"
        assert (hint in daemon.log()) == (flag != "off")
    if flag != "off":
        assert 0 < drops["wrong_sender_port"] < MANY / 10
        assert drops["wrong_sender_port"] + drops["socket_filtered_or_full"] == MANY


def test_an_unknown_host_is_accepted_as_long_as_it_has_a_lease(lab: Lab) -> None:
    peer, host, newcomer = lab.hosts
    one, other = containers(lab)
    come = packet(one.address, other.address, 11)
    # With short leases, so that deleted leases are soon forgotten.
    with serving(lab, "-subnet-lease-ttl=5s") as (_, daemon), watching(host, "flannel0") as seen:
        third = newcomer.start_daemon("-iface=eth1")
        third.wait_ready()
        third.wait_for_log(f"Subnet added: {re.escape(str(host.subnet()))}$")
        subnet = newcomer.subnet()
        daemon.wait_for_log(f"Subnet added: {re.escape(str(subnet))}$")
        newcomer.run("ping", "-c1", "-W2", str(host.subnet().network_address))
        send(newcomer, host, [come] * 3)
        send(peer, host, [packet(one.address, other.address, 77)])
        assert lengths_until(seen, 77) == [11, 11, 11, 77]
        assert third.stop() == 0
        lab.etcd_request("DELETE", f"/coreos.com/network/subnets/{str(subnet).replace('/', '-')}")
        daemon.wait_for_log(f"Subnet removed: {re.escape(str(subnet))}$")
        send(newcomer, host, [come] * MANY)
        send(peer, host, [packet(one.address, other.address, 77)])
        assert lengths_until(seen, 77) == [77]
        assert dropped(daemon)["unknown_sender"] > 0


def test_unknown_hosts_are_accepted_without_a_source_check(lab: Lab) -> None:
    peer, host, stranger = lab.hosts
    one, other = containers(lab)
    with serving(lab, "-source-check=off") as (_, daemon), watching(other, "eth0") as seen:
        send(stranger, host, [packet(one.address, other.address, 11)] * 5)
        send(peer, host, [packet(one.address, other.address, 77)])
        assert lengths_until(seen, 77) == [11] * 5 + [77]
        drops = dropped(daemon)
    assert not drops["unknown_sender"]
    assert not drops["socket_filtered_or_full"]


@pytest.mark.parametrize("size", [56, 1444])
def test_our_own_datagrams_that_a_route_leads_back_into_the_device_are_dropped_and_counted(lab: Lab, size: int) -> None:
    """Fragments count as well: with 1444 bytes a datagram is larger than the device's MTU."""
    host, peer, _ = lab.hosts
    one, other = containers(lab)
    ping = partial(one.run, "ping", "-W1", f"-s{size}", str(other.address), check=False)

    def is_counted() -> bool:
        """A check that finds the route first ignores the peer's lease; the next check uses the lease again."""
        host.run("ip", "route", "add", f"{peer.public_ip}/32", "dev", "flannel0")
        ping("-c3", "-i0.2")
        host.run("ip", "route", "del", f"{peer.public_ip}/32", "dev", "flannel0")
        wait_for(lambda: not ping("-c1").returncode, 15, "a ping")
        return backend_report(host).drops.get("own_datagram", 0) > 0

    with serving(lab) as (daemon, _):
        wait_for(is_counted, 60, "a drop")
        drops = dropped(daemon)
        assert drops["own_datagram"] >= 1
        assert drops["own_datagram"] + drops["no_route"] >= 3


class Attempt(NamedTuple):
    """A packet of a known host, and its drop reason: always, or with -source-check=strict."""

    source: IPv4Address | str
    destination: IPv4Address | str
    always: str = ""
    strict: str = ""


def attempts(lab: Lab) -> list[Attempt]:
    """Return the attempts of the first host on the second."""
    ours, theirs = (host.subnet() for host in lab.hosts[:2])
    one, other = (container.address for container in containers(lab))
    neighbour = ours.network_address - 1 if ours.network_address - 1 not in theirs else ours.broadcast_address + 1
    return [
        Attempt(one, other),
        Attempt(ours.network_address, theirs.network_address),
        Attempt(other, theirs[9], always="spoofed_source"),
        Attempt(theirs.network_address, other, always="spoofed_source"),
        Attempt(neighbour, other, strict="spoofed_source"),
        Attempt("172.17.8.1", other, strict="spoofed_source"),
        Attempt(one, one, always="wrong_destination"),
        Attempt(one, theirs.broadcast_address, always="wrong_destination"),
        Attempt(one, lab.hosts[1].public_ip, always="wrong_destination"),
        Attempt(one, "8.8.8.8", always="wrong_destination"),
        Attempt(one, "224.0.0.251", always="wrong_destination"),
        Attempt(one, "255.255.255.255", always="wrong_destination"),
        Attempt(one, "127.0.0.1", always="wrong_destination"),
        Attempt(other, one, always="spoofed_source"),
    ]


@pytest.mark.parametrize("flag", [None, "peer", "strict", "off"])
def test_impossible_inner_addresses_of_a_known_host_are_dropped(lab: Lab, flag: str | None) -> None:
    """The device itself is watched: the kernel would forward packets from it, or accept them as its own."""
    peer, host, _ = lab.hosts
    flags = [] if flag is None else [f"-source-check={flag}"]
    expected = Counter[str]()
    right = []
    made = []
    with serving(lab, *flags) as (_, daemon), watching(host, "flannel0") as seen:
        for length, (source, destination, always, strict) in enumerate(attempts(lab), 100):
            made.append(packet(source, destination, length))
            reason = always or (strict if flag == "strict" else "")
            expected.update([reason] if reason else [])
            right += [] if reason else [length]
        one, other = containers(lab)
        send(peer, host, [*made, packet(one.address, other.address, 77)])
        assert lengths_until(seen, 77) == [*right, 77]
        drops = dropped(daemon)
    assert {reason: drops[reason] for reason in ("spoofed_source", "wrong_destination")} == expected
    assert not drops["unknown_sender"]


def containers(lab: Lab) -> list[Container]:
    return [host.containers[0] for host in lab.hosts[:2]]
