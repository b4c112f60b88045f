"""The attached programs of a fast path beside an engine: the same packets for both, in a namespace of their own."""

from __future__ import annotations

import ctypes
import random
import socket
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import NamedTuple

from fuzz.mutation import Mutator
from lab import Node
from lab.namespaces import NAMESPACES
from support.packets import BOUND, DONT_FRAGMENT, NETWORK, OWN_SUBNET, PORT, TCP, UDP, checksum

from flannelpy.backend.udp.fast_path import FastPath, FastPathConfig
from flannelpy.datapath.engine import Engine
from flannelpy.datapath.fast_path.checks import Check, Incoming, Outgoing
from flannelpy.datapath.routes import NextHop, Routes, Totals
from flannelpy.datapath.source_check import SourceCheck
from flannelpy.linux.netlink.client import Netlink
from flannelpy.linux.tun import Tun
from flannelpy.packet.drops import DropReason

CLONE_NEWNET = 0x40000000
ETHERNET = bytes(12) + b"\x08\x00"
PASSED, REDIRECTED = -1, 7
MTU = 1500
#: The bytes of a packet that BPF_PROG_TEST_RUN takes are a page without the kernel's own.
MOST = 3000
ALIAS = "flannelpy /run/test/subnet.env"


class _NotOurs(Check):
    """The program counts no packet that is not for our socket."""

    NOT_OURS = 0, None


CHECKS: dict[str, list[Check]] = {"outgoing": list(Outgoing), "incoming": list(Incoming)}
NOT_OURS = _NotOurs.NOT_OURS


class Peer(NamedTuple):
    """A lease, and whether the host decapsulates in the kernel."""

    subnet: IPv4Network
    public_ip: str
    in_kernel: bool


PEERS = [
    Peer(IPv4Network("11.0.101.0/24"), "172.17.8.102", True),
    Peer(IPv4Network("11.0.55.0/24"), "172.17.8.103", True),
    # A part of a kernel's subnet, by the loop; and the other way round.
    Peer(IPv4Network("11.0.101.128/25"), "172.17.8.104", False),
    Peer(IPv4Network("11.0.48.0/20"), "172.17.8.105", False),
    Peer(IPv4Network("11.0.58.0/24"), "172.17.8.107", True),
    # One host with two subnets, one of them around our own.
    Peer(IPv4Network("11.0.32.0/19"), "172.17.8.106", True),
    Peer(IPv4Network("11.0.64.0/20"), "172.17.8.106", True),
]
#: Those whose datagrams the program takes: a peer that announces no kernel may send from one all the same.
SENDERS = list(dict.fromkeys(peer.public_ip for peer in PEERS))


@contextmanager
def own_namespace() -> Iterator[None]:
    """Have this thread in a network namespace of its own, with an underlay."""
    with Path("/proc/thread-self/ns/net").open() as outside:
        _call("unshare", CLONE_NEWNET)
        try:
            shell(
                f"ip link set lo up; ip link add eth1 mtu {MTU} type veth peer name switch; ip link set eth1 up;"
                f"ip link set switch up; ip addr add {BOUND}/24 dev eth1; sysctl -qw net.ipv4.ip_forward=1"
            )
            yield
        finally:
            _call("setns", outside.fileno(), CLONE_NEWNET)


@contextmanager
def inside(node: Node) -> Iterator[None]:
    """Have this thread in the network namespace of a node of a lab."""
    with Path("/proc/thread-self/ns/net").open() as outside, (NAMESPACES / node.netns).open() as namespace:
        _call("setns", namespace.fileno(), CLONE_NEWNET)
        try:
            yield
        finally:
            _call("setns", outside.fileno(), CLONE_NEWNET)


def _call(function: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments):
        raise OSError(ctypes.get_errno(), function)


def shell(commands: str) -> str:
    """Run commands; return their output."""
    return subprocess.run(["sh", "-ec", commands], check=True, capture_output=True, text=True).stdout


@contextmanager
def own_tun(subnet: IPv4Network = OWN_SUBNET) -> Iterator[Tun]:
    """Open a TUN as the backend does; packets that come to it are lost."""
    tun = Tun()
    try:
        tun.offload(tso=True, uso=True)
        shell(f"ip addr add {subnet[0]}/{NETWORK.prefixlen} dev {tun.name}; ip link set {tun.name} up mtu 1472")
        yield tun
    finally:
        tun.close()


def config(device: str, source_check: SourceCheck = SourceCheck.PEER) -> FastPathConfig:
    """Return that of a fast path in ``own_namespace``."""
    return FastPathConfig(OWN_SUBNET, NETWORK, BOUND, PORT, source_check, device, "eth1", ALIAS)


async def attached(fast_path: FastPath, netlink: Netlink) -> None:
    """Open and attach, with the peers and without an end."""
    await fast_path.open(netlink)
    for peer in PEERS:
        fast_path.set(peer.subnet, IPv4Address(peer.public_ip), in_kernel=peer.in_kernel)
    fast_path.extend(float("inf"))
    await fast_path.attach(netlink)


class Comparison:
    """An engine, and the programs that are attached."""

    def __init__(self, fast_path: FastPath, source_check: SourceCheck) -> None:
        self.fast_path = fast_path
        self._programs = fast_path._programs
        self._maps = fast_path._maps
        routes = Routes()
        for peer in PEERS:
            routes.set(peer.subnet, NextHop(peer.public_ip, PORT))
        self._engine = Engine(
            OWN_SUBNET,
            routes,
            network=NETWORK,
            bound=BOUND,
            port=PORT,
            source_check=source_check,
            merge_tcp=False,
            merge_udp=False,
        )
        self._source_check = source_check
        self.forwarded: Counter[str] = Counter()
        self.left: Counter[Check] = Counter()
        self._carried = Totals()
        self._counted: dict[str, bytes] = {}

    def compare_tallies(self) -> None:
        """Compare what the programs have counted with what they forwarded."""
        total = Totals()
        for peer in PEERS:
            total.add(self.fast_path.tally(peer.subnet) or Totals())
        total.heard_at = 0.0
        assert vars(total) == vars(self._carried)

    # From the TUN.

    def send(self, packet: bytes, gso_size: int) -> None:
        """Give both a packet of this host, and compare what they send."""
        drop, next_hop, sent = self._engine_sends(packet)
        check, made = self._run("outgoing", packet, gso_size)
        if check:
            assert check.reason in (None, drop), (check, drop, packet.hex())
            is_refused = gso_size and check is Outgoing.REFUSED and not is_unusual(packet, gso_size, next_hop)
            assert drop or is_refused or is_unusual(packet, gso_size, next_hop), (check, packet.hex(), gso_size)
            return
        # BPF_PROG_TEST_RUN makes super-packets of no protocol, which the kernel does not encapsulate.
        assert not gso_size, packet.hex()
        assert drop is None, (drop, packet.hex())
        assert not is_unusual(packet, gso_size, next_hop), packet.hex()
        assert made[28:] == sent, (packet.hex(), made.hex())
        self._carried.packets_out += 1
        self._carried.bytes_out += len(packet)
        assert made[:28] == outer_headers(str(BOUND), next_hop, len(packet)), made[:28].hex()

    def _engine_sends(self, packet: bytes) -> tuple[DropReason | None, str, bytes]:
        """Return why the engine drops the packet, or its next hop and datagram."""
        engine = self._engine
        engine.vnet_hdrs[:10] = bytes(10)
        engine.tun_buffer[: len(packet)] = packet
        plan = engine.outbound([len(packet)], 0.0)
        if plan.drops:
            return plan.drops[0], "", b""
        [run] = plan.runs
        return None, run.next_hop.public_ip, bytes(run.data)

    # From a peer.

    def receive(self, datagram: bytes, gso_size: int) -> None:
        """Give both a datagram, the engine its payload, and compare what they make of it."""
        sender, payload = sender_of(datagram), datagram[28:]
        drop, written = self._engine_writes(payload, sender)
        check, made = self._run("incoming", datagram, gso_size)
        for_programs = is_of_program(datagram) and sender[0] in SENDERS
        if check:
            assert check.reason in (None, drop) or not for_programs, (check, drop, datagram.hex())
            if gso_size and for_programs and not drop:
                expected = Incoming.REFUSED if has_tcp_header(payload) else Incoming.SUPER_PACKET
                assert check is expected, (check, datagram.hex())
            else:
                assert drop or not for_programs, (check, datagram.hex())
            return
        assert for_programs, datagram.hex()
        # BPF_PROG_TEST_RUN makes super-packets of no protocol, which the kernel does not decapsulate.
        assert not gso_size, datagram.hex()
        assert drop is None, (drop, datagram.hex())
        assert made == written, (datagram.hex(), made.hex())
        self._carried.packets_in += 1
        self._carried.bytes_in += len(made)

    def _engine_writes(self, payload: bytes, sender: tuple[str, int]) -> tuple[DropReason | None, bytes]:
        """Return why the engine drops the datagram, or what it writes to the TUN."""
        engine = self._engine
        engine.udp_buffer[: len(payload)] = payload
        plan = engine.inbound([(len(payload), len(payload), sender)], 0.0)
        return (plan.drops[0], b"") if plan.drops else (None, bytes(plan.packets[0][1]))

    def _run(self, direction: str, packet: bytes, gso_size: int = 0) -> tuple[Check | None, bytes]:
        """Return the check that left the packet to the loop, or what the program made of it."""
        result, made = self._programs[direction].test_run(ETHERNET + packet, gso_size)
        if result == REDIRECTED:
            self.forwarded[direction] += 1
            return None, made[14:]
        assert result == PASSED, (result, packet.hex())
        assert made == ETHERNET + packet, (packet.hex(), made.hex())
        checks = self._checks_since_last(direction)
        self.left.update(checks)
        assert len(checks) <= 1
        return (checks[0] if checks else NOT_OURS), b""

    def _checks_since_last(self, direction: str) -> list[Check]:
        """Return the checks whose counters differ from the last time."""
        values = self._maps[f"left_{direction}"].get(bytes(4)) or b""
        before, self._counted[direction] = self._counted.get(direction, bytes(len(values))), values
        if values == before:
            return []
        numbers, former = struct.unpack(f"={len(values) // 8}Q", values), struct.unpack(f"={len(values) // 8}Q", before)
        return [check for check in CHECKS[direction] if numbers[check.index] != former[check.index]]


@lru_cache(1 << 16)
def outer_headers(source: str, destination: str, length: int) -> bytes:
    """The headers of a datagram with so many bytes, as the socket's are, without a UDP checksum."""
    header = bytearray(struct.pack("!BBHHHBBH", 0x45, 0, length + 28, 0, DONT_FRAGMENT, 64, UDP, 0))
    header += IPv4Address(source).packed + IPv4Address(destination).packed
    header[10:12] = checksum(header).to_bytes(2, "big")
    return bytes(header) + struct.pack("!HHHH", PORT, PORT, length + 8, 0)


def sender_of(datagram: bytes) -> tuple[str, int]:
    """Return the address and port of the sender."""
    return socket.inet_ntoa(datagram[12:16]), int.from_bytes(datagram[20:22], "big")


def is_of_program(datagram: bytes) -> bool:
    """Whether the outer headers are right, and such as a program sends them: whole, and without a UDP checksum."""
    if datagram[:28] == outer_headers(sender_of(datagram)[0], str(BOUND), len(datagram) - 28):
        return True
    length, udp_length = (int.from_bytes(datagram[at : at + 2], "big") for at in (2, 24))
    fragment = int.from_bytes(datagram[6:8], "big") & 0x3FFF
    is_right = datagram[0] == 0x45 and datagram[9] == UDP and not fragment and not checksum(datagram[:20])
    is_whole = length == len(datagram) == udp_length + 20
    is_ours = datagram[16:20] == BOUND.packed and datagram[22:24] == PORT.to_bytes(2, "big")
    return is_right and is_whole and is_ours and datagram[26:28] == bytes(2)


_OWN_ADDRESSES = BOUND.packed, OWN_SUBNET[0].packed
_OWN_PORTS = struct.pack("!HH", PORT, PORT)
_OF_KERNELS = {peer.public_ip for peer in PEERS if peer.in_kernel}


def is_unusual(packet: bytes, gso_size: int, next_hop: str) -> bool:
    """Whether the engine sends the packet, and the program leaves it to the loop."""
    if packet[9] == UDP and packet[12:16] in _OWN_ADDRESSES:
        l4 = (packet[0] & 0xF) * 4
        ports = packet[l4 : l4 + 4]
        if packet[6] & 0x3F or packet[7] or len(ports) < 4 or ports == _OWN_PORTS:
            return True
    if next_hop not in _OF_KERNELS:
        return True
    if not gso_size:
        return len(packet) + 28 > MTU
    return not has_tcp_header(packet) or 20 + (packet[32] >> 4) * 4 + gso_size + 28 > MTU


def has_tcp_header(packet: bytes) -> bool:
    """Whether this is TCP with a payload, and without IP options."""
    if packet[0] != 0x45 or packet[9] != TCP or len(packet) < 40:
        return False
    return 40 <= 20 + (packet[32] >> 4) * 4 < len(packet)


class Traffic:
    """An endless source of packets for comparison; equal seeds make equal traffic."""

    def __init__(self, seed: int) -> None:
        self._mutator = Mutator(seed)
        self._uniform = random.Random(seed).random
        senders = [*(peer.public_ip for peer in PEERS), "172.17.8.99"]
        self._senders = [*SENDERS * 4, *senders]

    def leaving(self) -> tuple[bytes, int]:
        """Return a packet of this host, and the payload bytes per segment if it is a super-packet.

        One in thirty may be a datagram of our own socket.
        """
        while True:
            header, packet = self._mutator.given()
            if 20 <= len(packet) <= MOST:  # BPF_PROG_TEST_RUN wants an IPv4 header
                break
        if self._uniform() < 0.03:
            return self._own_datagram(packet), 0
        return packet, header.gso_size if header.gso_type and self._uniform() < 0.3 else 0

    def _own_datagram(self, packet: bytes) -> bytes:
        changed = bytearray(packet.ljust(32, b"\0"))
        changed[9] = UDP
        changed[12:16] = self._mutator.pick(_OWN_ADDRESSES)
        at = (changed[0] & 0xF) * 4
        changed[at : at + 4] = self._mutator.pick((_OWN_PORTS, _OWN_PORTS[:2] + b"\x00\x35"))
        return bytes(changed)

    def arriving(self) -> tuple[bytes, int]:
        """Return a datagram, and the payload bytes per segment if it is a super-packet.

        One in ten has something changed in its outer headers.
        """
        payload = self._mutator.train().datagrams()[0][:MOST]
        sender = self._mutator.pick(self._senders)
        datagram = bytearray(outer_headers(sender, str(BOUND), len(payload)) + payload)
        if self._uniform() < 0.05:
            datagram[20:22] = (4789).to_bytes(2, "big")
        if self._uniform() < 0.1:
            self._change_outer_headers(datagram)
        return bytes(datagram), 1000 if self._uniform() < 0.05 else 0

    def _change_outer_headers(self, datagram: bytearray) -> None:
        for _ in range(1 + self._mutator.below(2)):
            datagram[self._mutator.below(28)] ^= 1 << self._mutator.below(8)
        if self._uniform() < 0.5:
            datagram[10:12] = bytes(2)
            datagram[10:12] = checksum(datagram[:20]).to_bytes(2, "big")
