"""What may come along: packets of all kinds, super-packets, vnet headers that lie, flows that stumble."""

from __future__ import annotations

import random
from typing import NamedTuple

from hypothesis import strategies as st
from support.oracle import VnetHeader
from support.packets import (
    ACK,
    CWR,
    DONT_FRAGMENT,
    ECE,
    FIN,
    ICMP,
    PSH,
    RST,
    SYN,
    TCP,
    UDP,
    URG,
    ipv4_packet,
    tcp_segment,
    udp_datagram,
    unfinished,
    with_checksum,
)

WORDS = st.integers(0, 0xFFFF) | st.sampled_from([0, 1, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF])
NUMBERS = st.integers(0, 2**32 - 1) | st.integers(2**32 - 3000, 2**32 - 1)
ADDRESSES = st.ip_addresses(v=4).map(str)
# Of packets that come over the wire: right for the most part, or almost.
SOURCES = st.sampled_from(["11.0.101.2", "11.0.101.2", "11.0.101.3", "11.0.55.2", "11.0.59.2"]) | ADDRESSES
DESTINATIONS = st.sampled_from(["11.0.59.2", "11.0.59.2", "11.0.59.0", "11.0.59.254", "11.0.59.255"]) | ADDRESSES


def whole_words(most: int) -> st.SearchStrategy[bytes]:
    """Options: mostly none, up to ``most`` words."""
    return st.just(b"") | st.integers(1, most).flatmap(lambda words: st.binary(min_size=words * 4, max_size=words * 4))


def payloads(least: int, most: int) -> st.SearchStrategy[bytes]:
    """Any length; of the bytes only how they were made is drawn, since there are many."""
    return st.builds(
        lambda length, seed: (
            random.Random(seed).randbytes(length) if seed else b"\xff" * length if seed is None else bytes(length)
        ),
        st.integers(least, most),
        st.integers(0, 2**16) | st.none(),
    )


def tcp_packets(payload: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Anything that has a whole TCP header; its checksum is 0."""
    segments = st.builds(
        tcp_segment,
        payload,
        ports=st.tuples(WORDS, WORDS),
        sequence=NUMBERS,
        acknowledgement=NUMBERS,
        flags=st.sampled_from([ACK, ACK | PSH, 0xFF, ACK | FIN | PSH | CWR]) | st.integers(0, 255),
        reserved=st.integers(0, 15),
        window=WORDS,
        urgent=WORDS,
        options=whole_words(10),
    )
    return _in_packets(segments, TCP)


def udp_packets(payload: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Likewise, of UDP."""
    return _in_packets(st.builds(udp_datagram, payload, ports=st.tuples(WORDS, WORDS)), UDP)


def _in_packets(l4: st.SearchStrategy[bytes], protocol: int) -> st.SearchStrategy[bytes]:
    return st.builds(
        ipv4_packet,
        SOURCES,
        DESTINATIONS,
        l4,
        ttl=st.integers(2, 255),
        protocol=st.just(protocol),
        fragment=st.sampled_from([0, DONT_FRAGMENT]),
        options=whole_words(10),
        tos=st.integers(0, 255),
        identification=WORDS,
    )


def super_packets(most: int) -> st.SearchStrategy[bytes]:
    """What a TUN gives with a gso_type: payload, and the pseudo-header's sum for a checksum."""
    return (tcp_packets(payloads(1, most)) | udp_packets(payloads(1, most))).map(unfinished)


VNET_HEADERS = st.just(VnetHeader()) | st.builds(
    VnetHeader,
    st.integers(0, 3) | st.integers(0, 255),
    st.sampled_from([0, 0, 1, 5, 0x81]) | st.integers(0, 255),
    WORDS,
    st.integers(0, 200) | WORDS,
    st.sampled_from([0, 20, 24, 28]) | st.integers(0, 200) | WORDS,
    st.sampled_from([6, 16]) | st.integers(0, 200) | WORDS,
)


def changed(packet: bytes, changes: list[tuple[int, int]]) -> bytes:
    """The packet with other bytes at some places, counted around its end."""
    data = bytearray(packet)
    for at, value in changes:
        data[at % len(data)] = value
    return bytes(data)


def damaged(packets: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """With some bytes changed behind the length that makes it a packet, most of them in the headers."""
    places = st.integers(6, 60) | st.integers(6, 65535)
    return st.builds(changed, packets, st.lists(st.tuples(places, st.integers(0, 255)), max_size=3))


class _Step(NamedTuple):
    """One packet of a flow: which, what is odd about it, how many bytes more than its usual ones."""

    flow: int
    oddity: str
    more: int


_TIMESTAMPS = b"\x01\x01\x08\x0a\x00\x01\xe2\x40\x00\x09\xfb\xf1"
_FLAGS = {"fin": FIN, "syn": SYN, "rst": RST, "psh": PSH, "urg": URG, "ece": ECE, "cwr": CWR}
_HEADER_CHANGES: dict[str, dict[str, int]] = {
    "ect": {"tos": 2},
    "ce": {"tos": 3},
    "ttl": {"ttl": 61},
    "last hop": {"ttl": 1},
    "no hop": {"ttl": 0},
    "fragment": {"fragment": 0x2000},
    "later fragment": {"fragment": 0x00B9},
    "reserved bit": {"fragment": 0x8000},
    "identification": {"identification": 7},
}
_SEGMENT_CHANGES: dict[str, dict[str, int]] = {
    "window": {"window": 501},
    "urgent pointer": {"urgent": 9},
    "reserved": {"reserved": 5},
} | {name: {"flags": ACK | flag} for name, flag in _FLAGS.items()}
# What replaces the packet altogether.
_FOREIGN = {
    "ipv6": b"\x60" + bytes(59),
    "empty": b"",
    "garbage": b"\xa5" * 140,
    "icmp": ipv4_packet("11.0.101.2", "11.0.59.2", b"\x08\x00" + bytes(98), protocol=ICMP),
}
_IN_SEQUENCE = ["usual"] * 3
_OUT_OF_SEQUENCE = ["again", "gap", "overlap", "acknowledges", "options", "ip options", "cut", "continued"]
_WRONG = ["wrong ip checksum", "wrong checksum", "no checksum"]
ODDITIES = [*_HEADER_CHANGES, *_SEGMENT_CHANGES, *_FOREIGN, *_OUT_OF_SEQUENCE, *_WRONG]
_STEPS = st.builds(
    _Step,
    st.sampled_from([0, 0, 0, 1, 2, 3]),
    st.just("usual") | st.just("usual") | st.sampled_from(ODDITIES),
    st.sampled_from([0, 0, 0, 0, -1, -30, 1]),
)


class _Flow:
    """One of the flows; what differs between them is what keeps them apart, or may not."""

    def __init__(self, number: int, size: int, start: int) -> None:
        self._size = size
        self._protocol = TCP if number < 2 else UDP
        self._ports = (5201 + number % 2, 40000)
        self._fragment = DONT_FRAGMENT if number in (0, 2) else 0
        self._options = _TIMESTAMPS if number == 1 else b""
        self._sequence, self._identification, self._acknowledgement = start, start % 2**16, 1
        self._content = random.Random(number)

    def next(self, step: _Step) -> bytes:
        """The packet of this step."""
        if step.oddity in _FOREIGN:
            return _FOREIGN[step.oddity]
        self._sequence += {"again": -self._size, "gap": 1, "overlap": -1}.get(step.oddity, 0)
        self._acknowledgement += step.oddity == "acknowledges"
        packet = self._packet(step, self._content.randbytes(max(self._size + step.more, 0)))
        return self._spoilt(step.oddity, packet)

    def _packet(self, step: _Step, payload: bytes) -> bytes:
        l4 = self._segment(step.oddity, payload) if self._protocol == TCP else udp_datagram(payload, ports=self._ports)
        header = {"identification": self._identification, "fragment": self._fragment, "ttl": 62, "tos": 0}
        header |= _HEADER_CHANGES.get(step.oddity, {})
        options = b"\x01" * 4 if step.oddity == "ip options" else b""
        self._sequence += len(payload)
        self._identification = (self._identification + 1) % 2**16
        return with_checksum(
            ipv4_packet("11.0.101.2", "11.0.59.2", l4, protocol=self._protocol, options=options, **header)
        )

    def _segment(self, oddity: str, payload: bytes) -> bytes:
        fields = {"flags": ACK, "window": 500} | _SEGMENT_CHANGES.get(oddity, {})
        options = self._options + b"\x01" * 4 if oddity == "options" else self._options
        return tcp_segment(
            payload,
            ports=self._ports,
            sequence=self._sequence % 2**32,
            acknowledgement=self._acknowledgement,
            options=options,
            **fields,
        )

    def _spoilt(self, oddity: str, packet: bytes) -> bytes:
        """Never to another writing of the same: 0xffff for 0."""
        match oddity:
            case "cut":
                return packet[:-1]
            case "continued":
                return packet + b"\0"
            case "wrong ip checksum":
                return changed(packet, [(11, packet[11] ^ 0x01)])
            case "wrong checksum":
                return changed(packet, [(len(packet) - 1, packet[-1] ^ 0x01)])
            case "no checksum":
                return with_checksum(packet, 0)
        return packet


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Datagrams of several flows mixed: TCP and UDP, in sequence for the most part, with every kind of defect."""
    sizes = draw(st.tuples(*[st.sampled_from([1, 31, 100, 101])] * 4))
    starts = draw(st.tuples(*[st.sampled_from([0, 2**16 - 3, 2**32 - 250]) | NUMBERS] * 4))
    flows = [_Flow(number, size, start) for number, (size, start) in enumerate(zip(sizes, starts, strict=True))]
    least = draw(st.sampled_from([0, 10, 30]))
    return [flows[step.flow].next(step) for step in draw(st.lists(_STEPS, min_size=least, max_size=64))]


@st.composite
def trains(draw: st.DrawFn, packets: list[bytes]) -> list[tuple[bytes, int]]:
    """The same datagrams as a kernel may hand them over: equal ones together, the last maybe shorter, at times."""
    found: list[tuple[bytes, int]] = []
    joins = draw(st.lists(st.booleans(), min_size=len(packets), max_size=len(packets)))
    for packet, join in zip(packets, joins, strict=True):
        data, size = found[-1] if found else (b"", 0)
        if join and packet and data and len(data) % size == 0 and len(packet) <= size:
            found[-1] = (data + packet, size)
        else:
            found.append((packet, len(packet)))
    return found
