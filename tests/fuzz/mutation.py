"""Bytes as a hostile or broken sender makes them: packets that were right, with something changed.  Pure.

A mutant is made of a packet of a corpus: some changes, and then repairs of lengths and checksums, without which most
mutants would fail at the first check.  Equal seeds make equal mutants.
"""

from __future__ import annotations

import random
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from support.oracle import VnetHeader
from support.packets import (
    ACK,
    CWR,
    DONT_FRAGMENT,
    FIN,
    ICMP,
    MORE_FRAGMENTS,
    PSH,
    TCP,
    UDP,
    checksum,
    ipv4_packet,
    pseudo_header,
    tcp_segment,
    udp_datagram,
    unfinished,
    with_checksum,
)
from support.pcap import RAW_IP, read, udp_datagrams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Thing = TypeVar("Thing")

HERE, THERE = "11.0.59.2", "11.0.101.2"

_RECORDED = Path(__file__).parent.parent / "golden" / "flanneld-v0.5.5-udp"
_MOST = 65507  # bytes of a datagram
_TIMESTAMPS = b"\x01\x01\x08\x0a\x00\x01\xe2\x40\x00\x09\xfb\xf1"
_SIZES = (1, 7, 64, 100, 333, 548, 1000, 1408)
_BYTES = bytes((0, 1, 2, 4, 5, 6, 17, 0x10, 0x18, 0x20, 0x40, 0x45, 0x46, 0x4F, 0x60, 0x7F, 0x80, 0xFE, 0xFF))
_WORDS = (0, 1, 19, 20, 21, 28, 40, 0x2000, 0x4000, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF)
_PROTOCOLS = bytes((0, ICMP, TCP, UDP, 41, 136, 255))
_FRAGMENTS = (0, 0, DONT_FRAGMENT, MORE_FRAGMENTS, 0x8000, 1, 0xB9, 0x1FFF, 0xFFFF)
# Our own subnet's, other subnets', and what is no host's.
_PLACES = """
    11.0.59.0 11.0.59.1 11.0.59.2 11.0.59.17 11.0.59.254 11.0.59.255 11.0.58.255 11.0.60.0
    11.0.101.0 11.0.101.2 11.0.101.128 11.0.101.255 11.0.55.2 11.0.64.9 11.0.48.1 11.0.254.2 11.0.255.255
    0.0.0.0 0.0.0.1 127.0.0.1 127.255.255.255 172.17.8.102 224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255
"""
_ADDRESSES = tuple(IPv4Address(place).packed for place in _PLACES.split())


class Train(NamedTuple):
    """Datagrams in one piece as a socket with UDP_GRO gives them; ``mutants`` of them are not as they were."""

    data: bytes
    segment_size: int
    mutants: int

    def datagrams(self) -> list[bytes]:
        """One by one; an empty one is one too."""
        step = max(self.segment_size, 1)
        return [self.data[start : start + step] for start in range(0, len(self.data) or 1, step)]


class Given(NamedTuple):
    """What a TUN with offloads gives."""

    header: VnetHeader
    packet: bytes


def _tcp(
    source: str, destination: str, payload: bytes, *, options: bytes = b"", flags: int = ACK, sequence: int = 1000
) -> bytes:
    segment = tcp_segment(payload, options=options, flags=flags, sequence=sequence)
    return ipv4_packet(source, destination, segment, protocol=TCP, fragment=DONT_FRAGMENT)


def _udp(source: str, destination: str, payload: bytes) -> bytes:
    return ipv4_packet(source, destination, udp_datagram(payload), fragment=DONT_FRAGMENT)


def _whole(source: str, destination: str) -> list[bytes]:
    """Packets of all kinds and sizes."""
    found = []
    for size in (0, *_SIZES):
        payload = bytes(range(256)) * 6
        found.append(with_checksum(_tcp(source, destination, payload[:size])))
        found.append(with_checksum(_tcp(source, destination, payload[:size], options=_TIMESTAMPS, flags=ACK | PSH)))
        found.append(with_checksum(_udp(source, destination, payload[:size])))
        echo = b"\x08\x00" + bytes(2) + payload[: size + 4]
        echo = echo[:2] + checksum(echo).to_bytes(2, "big") + echo[4:]
        found.append(ipv4_packet(source, destination, echo, protocol=ICMP))
    cause = found[0][:28]
    found.append(ipv4_packet(source, destination, b"\x03\x00" + bytes(6) + cause, protocol=ICMP))
    found += [
        ipv4_packet(source, destination, bytes(48), fragment=fragment, protocol=protocol, options=options, ttl=ttl)
        for fragment in (0, MORE_FRAGMENTS, 0xB9)
        for protocol in (ICMP, TCP, UDP, 47)
        for options in (b"", b"\x01" * 4, b"\x07\x27\x04" + bytes(37))
        for ttl in (1, 2, 64)
    ]
    return found


def _flow(protocol: int, size: int, count: int, options: bytes = b"") -> list[bytes]:
    """Segments that continue each other."""
    payload = random.Random(size).randbytes(size)
    if protocol == UDP:
        return [with_checksum(_udp(THERE, HERE, payload))] * count
    return [
        with_checksum(_tcp(THERE, HERE, payload, options=options, sequence=1000 + number * size))
        for number in range(count)
    ]


def arriving() -> list[bytes]:
    """What another host sends: recorded, and built; and, one in eight, what we sent ourselves."""
    recorded = [datagram.payload for datagram in udp_datagrams(_RECORDED / "eth1.pcap", 8285)]
    ours = [packet for packet in recorded if packet[12:16] == IPv4Address(HERE).packed]
    theirs = [packet for packet in recorded if packet not in ours] + _whole(THERE, HERE)
    return theirs + ours[:: max(1, 8 * len(ours) // len(theirs))]


def flows() -> list[list[bytes]]:
    """What another host sends in trains."""
    counts = [(size, min(140, 80000 // size)) for size in _SIZES]  # more than a super-packet may have
    return [
        flow
        for size, count in counts
        for flow in (_flow(TCP, size, count), _flow(TCP, size, count, _TIMESTAMPS), _flow(UDP, size, count))
    ]


def leaving() -> list[Given]:
    """What the containers of this host send: recorded, built, with unfinished checksums, and super-packets."""
    plain = list(read(_RECORDED / "flannel0.pcap", RAW_IP)) + _whole(HERE, THERE) + _whole(HERE, "11.0.55.2")
    found = [Given(VnetHeader(), packet) for packet in plain]
    for size in (1, 100, 1000, 3000, 9000):
        tcp = unfinished(_tcp(HERE, THERE, bytes(size), options=_TIMESTAMPS, flags=ACK | PSH | FIN | CWR))
        udp = unfinished(_udp(HERE, THERE, bytes(size)))
        found += [Given(VnetHeader(1, 0, 0, 0, 20, 16), tcp), Given(VnetHeader(1, 0, 0, 0, 20, 6), udp)]
        for gso_size in (100, 536, 1396):
            found += [
                Given(VnetHeader(1, 1, 52, gso_size, 20, 16), tcp),
                Given(VnetHeader(1, 0x81, 52, gso_size, 20, 16), tcp),
                Given(VnetHeader(1, 5, 28, gso_size, 20, 6), udp),
            ]
    return found * 3


class Mutator:
    """An endless source of mutants."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._uniform = self._random.random
        self._arriving = arriving()
        self._flows = flows()
        self._leaving = leaving()
        self._rest: list[bytes] = []
        self._changes: list[Callable[[bytearray], None]] = [
            *[self._flip_bit] * 4,
            *[self._set_byte] * 4,
            *[self._set_word] * 3,
            *[self._address] * 3,
            *[self._cut] * 2,
            *[self._extend] * 2,
            self._length,
            self._splice,
            self._double,
            self._hops,
            self._fragment,
            self._protocol,
            self._ip_options,
        ]
        self._in_place: list[Callable[[bytearray], None]] = [
            self._flip_bit,
            self._set_byte,
            self._set_word,
            self._address,
            self._hops,
            self._fragment,
        ]

    def below(self, limit: int) -> int:
        """A number from 0 on."""
        return int(self._uniform() * limit)

    def pick(self, things: Sequence[Thing]) -> Thing:
        """One of them."""
        return things[int(self._uniform() * len(things))]

    def train(self) -> Train:
        """A mutant that comes alone, mostly, else a train of some with what they continue."""
        if self._rest:
            data, self._rest = b"".join(self._rest), []
            return Train(data, self._rest_size, 0)
        if self._uniform() < 0.9:
            data = self.mutant(self.pick(self._arriving))[:_MOST]
            return Train(data, len(data), 1)
        return self._flow()

    def given(self) -> Given:
        """A packet or a vnet header that was changed, or both."""
        header, packet = self.pick(self._leaving)
        kind = self._uniform()
        if kind < 0.7:
            packet = self.mutant(packet)[: _MOST + 28] or b"\x45"
        if kind > 0.4:
            header = self._vnet_header(header, len(packet))
        return Given(header, packet)

    def mutant(self, packet: bytes) -> bytes:
        """The packet after one change or some, and repairs."""
        data = bytearray(packet)
        self.pick(self._changes)(data)
        while self._uniform() < 0.3:
            self.pick(self._changes)(data)
        self._repair(data)
        return bytes(data)

    def _flow(self) -> Train:
        flow = self.pick(self._flows)
        start = self.below(len(flow))
        segment_size = len(flow[0])
        most = min(64, 65000 // segment_size)
        if self._uniform() < 0.05:
            return self._in_two(flow, most)
        found = flow[start : start + 1 + self.below(30)]
        kind = self._uniform()
        if kind < 0.15:
            data = b"".join(found)
            # No kernel gives more than 64 at a time.
            segment_size = 1 + len(data) // 64 + self.below(2 * segment_size)
            return Train(data, segment_size, -(-len(data) // segment_size))
        if kind < 0.3:
            found.insert(self.below(len(found)), self.pick(found))
        changes = self._in_place if self._uniform() < 0.9 else self._changes
        mutants = 1 + self.below(2 + len(found) // 8)
        for _ in range(mutants):
            at = self.below(len(found))
            changed = bytearray(found[at])
            self.pick(changes)(changed)
            self._repair(changed)
            found[at] = bytes(changed)
        if kind > 0.7:
            found[-1] = self._shortened(found[-1])
        data = b"".join(found)[:_MOST]
        return Train(data, segment_size, min(mutants, -(-len(data) // segment_size)))

    def _in_two(self, flow: list[bytes], most: int) -> Train:
        """As long a train as there is, with a mutant near its end, maybe, and the rest of the flow right behind it."""
        found = flow[:most]
        mutants = self.below(2)
        if mutants:
            found[-1 - self.below(2)] = self.mutant(found[-1])[: len(found[-1])].ljust(len(found[-1]), b"\0")
        self._rest, self._rest_size = flow[most : 2 * most], len(flow[0])
        return Train(b"".join(found), len(flow[0]), mutants)

    def _shortened(self, packet: bytes) -> bytes:
        """The last one of a train may have less payload."""
        data = bytearray(packet[: max(41, len(packet) - self.below(len(packet)))])
        self._fix_length(data)
        self._fix_checksums(data)
        return bytes(data)

    def _vnet_header(self, header: VnetHeader, length: int) -> VnetHeader:
        """Fields of it replaced by what is near, or by anything."""
        fields = list(header)
        for _ in range(1 + self.below(3)):
            at = self.below(6)
            if at < 2:
                fields[at] = self.pick((0, 1, 1, 5, 0x81, 0x85, self.below(256)))
            else:
                near = (fields[at] + self.below(9) - 4) & 0xFFFF
                fields[at] = self.pick((near, near, self.pick(_WORDS), 16, 20, 6, 1 + self.below(1500)))
        if self._uniform() < 0.1:  # around the packet's last word
            fields[5] = max(0, length - fields[4] - 3 + self.below(3))
        # Sizes of a few bytes make thousands of segments: not too often.
        if fields[3] < 20 and self._uniform() < 0.9:
            fields[3] = 536
        return VnetHeader(*fields)

    # Changes

    def _place(self, data: bytearray, space: int = 1) -> int:
        """Mostly in the headers; 0 when there is nothing."""
        end = len(data) - space + 1
        return self.below(min(end, 64) if self._uniform() < 0.9 else end) if end > 0 else 0

    def _flip_bit(self, data: bytearray) -> None:
        if data:
            data[self._place(data)] ^= 1 << self.below(8)

    def _set_byte(self, data: bytearray) -> None:
        if data:
            data[self._place(data)] = self.pick(_BYTES)

    def _set_word(self, data: bytearray) -> None:
        self._put(data, self._place(data, 2) & ~1, self.pick(_WORDS))

    def _put(self, data: bytearray, at: int, value: int) -> None:
        if at + 2 <= len(data):
            data[at : at + 2] = value.to_bytes(2, "big")

    def _length(self, data: bytearray) -> None:
        """One of the fields that say how long something is."""
        near = (len(data) + self.pick((-28, -20, -8, -1, 0, 1, 8, 20))) & 0xFFFF
        kind = self.below(4)
        if kind == 0:
            self._put(data, 2, near)
        elif kind == 1:
            self._put(data, 24, near)
        elif kind == 2 and data:
            data[0] = 0x40 | self.below(16)
        elif len(data) > 32:
            data[32] = self.below(256)

    def _cut(self, data: bytearray) -> None:
        del data[self._place(data) if self._uniform() < 0.5 else self.below(len(data) + 1) :]

    def _extend(self, data: bytearray) -> None:
        data += self._random.randbytes(1 + self.below(8)) if self._uniform() < 0.5 else bytes(self.below(100))

    def _splice(self, data: bytearray) -> None:
        """Replace the end of the packet, from some place, by that of another packet."""
        at = self._place(data)
        data[at:] = self.pick(self._arriving)[at if self._uniform() < 0.7 else self.below(60) :]

    def _double(self, data: bytearray) -> None:
        if len(data) < 3000:
            data += bytes(data)

    def _address(self, data: bytearray) -> None:
        at = self.pick((12, 16))
        if len(data) >= at + 4:
            near = b"\x0b\x00" + self._random.randbytes(2)
            data[at : at + 4] = self.pick(_ADDRESSES) if self._uniform() < 0.8 else near

    def _hops(self, data: bytearray) -> None:
        if len(data) > 8:
            data[8] = self.pick((0, 1, 1, 2, 63, 255))

    def _fragment(self, data: bytearray) -> None:
        self._put(data, 6, self.pick(_FRAGMENTS))

    def _protocol(self, data: bytearray) -> None:
        if len(data) > 9:
            data[9] = self.pick(_PROTOCOLS)

    def _ip_options(self, data: bytearray) -> None:
        words = 1 + self.below(10)
        if len(data) >= 20 and (data[0] & 0xF) + words < 16:
            data[0] += words
            data[20:20] = b"\x01" * (words * 4)

    # Repairs

    def _repair(self, data: bytearray) -> None:
        kind = self._uniform()
        if kind < 0.8:
            self._fix_length(data)
        if kind < 0.5:
            self._fix_checksums(data)

    def _fix_length(self, data: bytearray) -> None:
        """Total length, and that of UDP."""
        self._put(data, 2, len(data) & 0xFFFF)
        if len(data) >= 28 and data[0] == 0x45 and data[9] == UDP:
            self._put(data, 24, (len(data) - 20) & 0xFFFF)

    def _fix_checksums(self, data: bytearray) -> None:
        """Of the IP header, and of TCP or UDP."""
        l4 = (data[0] & 0xF) * 4 if data else 0
        if not 20 <= l4 <= len(data) <= 0xFFFF:
            return
        data[10:12] = bytes(2)
        data[10:12] = checksum(data[:l4]).to_bytes(2, "big")
        at = l4 + {TCP: 16, UDP: 6}.get(data[9], len(data))
        if at + 2 <= len(data):
            data[at : at + 2] = bytes(2)
            value = checksum(pseudo_header(bytes(data)) + data[l4:])
            data[at : at + 2] = (value or 0xFFFF).to_bytes(2, "big")
