"""Packets of an attacker, and what sees where they arrive."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

from lab import Host, Node
from support.packets import MORE_FRAGMENTS, ipv4_packet, udp_datagram, with_checksum

#: What an attacker and a sniffer run.
SCRIPT = str(Path(__file__).with_name("hostile.py"))


@contextmanager
def sniffing(node: Node, device: str, way: str) -> Iterator[subprocess.Popen[str]]:
    with node.popen(sys.executable, "-I", "-S", SCRIPT, "sniff", device, way) as process:
        try:
            assert line(process) == "listening"
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    found = process.stdout.readline().rstrip()
    assert found, "it has ended"
    return found


def labelled(source: str, destination: str, label: str, *, ttl: int = 64, fill: int = 0, options: bytes = b"") -> bytes:
    """A UDP packet that the sniffers know by its label."""
    payload = udp_datagram(f"attack:{label};".encode() + bytes(fill))
    return with_checksum(ipv4_packet(source, destination, payload, ttl=ttl, options=options))


def in_vxlan(inner: bytes, host: Host, vni: int = 1) -> bytes:
    """The packet for that host's device of the VNI, as the payload of a datagram.  Source: RFC 7348, section 5."""
    [link] = json.loads(host.run("ip", "-j", "link", "show", f"flannel.{vni}").stdout)
    mac = bytes.fromhex(link["address"].replace(":", ""))
    head = (8 << 24).to_bytes(4, "big") + (vni << 8).to_bytes(4, "big")
    return head + mac + bytes.fromhex("020000000001") + b"\x08\x00" + inner


def datagram(source: str, to: str, payload: bytes, ports: tuple[int, int]) -> bytes:
    """A UDP packet with a checksum."""
    return with_checksum(ipv4_packet(source, to, udp_datagram(payload, ports=ports)))


def fragments(packet: bytes) -> list[bytes]:
    """Two packets that are one: the ports are in the first."""
    source, destination = str(IPv4Address(packet[12:16])), str(IPv4Address(packet[16:20]))
    cut = 20 + 16
    return [
        ipv4_packet(source, destination, packet[20:cut], protocol=packet[9], fragment=MORE_FRAGMENTS),
        ipv4_packet(source, destination, packet[cut:], protocol=packet[9], fragment=2),
    ]
