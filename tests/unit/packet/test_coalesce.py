"""Received packets become super-packets for the TUN: each rule of the table, broken by itself, keeps them apart."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

import pytest
from support import oracle
from support.oracle import VnetHeader
from support.packet_code import Coalesced, coalesced, coalesced_singly
from support.packets import (
    ACK,
    CWR,
    DONT_FRAGMENT,
    ECE,
    FIN,
    ICMP,
    MORE_FRAGMENTS,
    OWN_SUBNET,
    PSH,
    RST,
    SYN,
    TCP,
    UDP,
    UDP_LITE,
    URG,
    hop_taken,
    ipv4_packet,
    numbers,
    tcp_segment,
    udp_datagram,
    with_checksum,
    with_ttl,
)

from flannelpy.packet import vnet_hdr
from flannelpy.packet.coalesce import Coalescer
from flannelpy.packet.drops import DropReason

PAYLOAD = random.Random(1500).randbytes(70_000)
TIMESTAMPS = b"\x01\x01\x08\x0a\x00\x01\xe2\x40\x00\x09\xfb\xf1"
RESERVED = 0x8000  # the bit beside "don't fragment"


class Packet(NamedTuple):
    """A packet of a flow, by its fields; what a test doesn't care for has a default."""

    payload: bytes = PAYLOAD[:100]
    source: str = "11.0.101.2"
    destination: str = "11.0.59.2"
    protocol: int = TCP
    tos: int = 0
    identification: int = 7
    fragment: int = DONT_FRAGMENT
    ttl: int = 62
    ip_options: bytes = b""
    ports: tuple[int, int] = (5201, 40000)
    sequence: int = 1000
    acknowledgement: int = 2000
    flags: int = ACK
    reserved: int = 0
    window: int = 500
    urgent: int = 0
    options: bytes = b""

    def encode(self) -> bytes:
        if self.protocol == TCP:
            l4 = tcp_segment(
                self.payload,
                ports=self.ports,
                sequence=self.sequence % 2**32,
                acknowledgement=self.acknowledgement,
                flags=self.flags,
                reserved=self.reserved,
                window=self.window,
                urgent=self.urgent,
                options=self.options,
            )
        else:
            l4 = udp_datagram(self.payload, ports=self.ports)
        packet = ipv4_packet(
            self.source,
            self.destination,
            l4,
            ttl=self.ttl,
            protocol=self.protocol,
            fragment=self.fragment,
            options=self.ip_options,
            tos=self.tos,
            identification=self.identification % 2**16,
        )
        return with_checksum(packet) if self.protocol in (TCP, UDP, UDP_LITE) else packet

    def following(self, payload: bytes) -> Packet:
        """The next packet of the flow, with what counts on counted on."""
        return self._replace(
            payload=payload, sequence=self.sequence + len(self.payload), identification=self.identification + 1
        )


FIRST = Packet()
FIRST_UDP = Packet(protocol=UDP, fragment=0)


def flow(first: Packet, lengths: list[int]) -> list[bytes]:
    """Packets of one flow with these lengths of payload, of which ``first`` has the first."""
    packet = first._replace(payload=PAYLOAD[: lengths[0]])
    packets = [packet.encode()]
    at = lengths[0]
    for length in lengths[1:]:
        packet = packet.following(PAYLOAD[at : at + length])
        packets.append(packet.encode())
        at += length
    return packets


def counts(found: Coalesced) -> list[int]:
    """How many packets went into each that is given on, after a look whether they come out again in their order."""
    assert not found.refused
    return [len(oracle.written(header, packet)) for header, packet in found.packets]


def assert_apart(packets: list[bytes]) -> None:
    """Each is given on as it came, one hop on."""
    assert coalesced_singly(packets) == Coalesced([(vnet_hdr.PLAIN, hop_taken(packet)) for packet in packets], [])


def assert_together(packets: list[bytes]) -> None:
    """All become one super-packet, of which they can be made again."""
    found = coalesced_singly(packets)
    assert counts(found) == [len(packets)]
    assert oracle.all_written(found.packets) == list(map(hop_taken, packets))


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(FIRST, id="tcp"),
        pytest.param(FIRST_UDP, id="udp"),
        pytest.param(FIRST_UDP._replace(fragment=DONT_FRAGMENT), id="udp, not to be fragmented"),
        pytest.param(FIRST._replace(fragment=0), id="tcp that may be fragmented"),
        pytest.param(FIRST._replace(fragment=RESERVED), id="the reserved bit"),
        pytest.param(FIRST._replace(tos=0xFF), id="TOS"),
        pytest.param(FIRST._replace(ttl=2), id="the last hop but one"),
        pytest.param(FIRST._replace(ttl=255), id="all hops"),
        pytest.param(FIRST._replace(options=TIMESTAMPS), id="timestamps"),
        pytest.param(FIRST._replace(options=bytes(40)), id="the longest header"),
        pytest.param(FIRST._replace(urgent=5), id="an urgent pointer without URG"),
        pytest.param(FIRST._replace(reserved=0xF), id="reserved bits"),
        pytest.param(FIRST._replace(window=0), id="no window"),
        pytest.param(FIRST._replace(sequence=2**32 - 150), id="sequence numbers that wrap"),
        pytest.param(FIRST._replace(sequence=2**32 - 100), id="sequence numbers that wrap to 0"),
        pytest.param(FIRST._replace(fragment=0, identification=0xFFFE), id="identifications that wrap"),
    ],
)
@pytest.mark.parametrize(
    "lengths",
    [[100, 100], [100, 100, 100, 100], [100, 99], [100, 100, 1], [101, 101, 3], [1, 1], [2, 1], [1448, 1448, 1000]],
)
def test_packets_of_one_flow_that_follow_each_other_become_one(first: Packet, lengths: list[int]) -> None:
    assert_together(flow(first, lengths))


# Each changes the second of two packets, which would be one otherwise.
CHANGES = [
    pytest.param(FIRST, {"tos": 0b01}, id="ECT(1) behind Not-ECT"),
    pytest.param(FIRST._replace(tos=0b10), {"tos": 0b11}, id="CE behind ECT(0)"),
    pytest.param(FIRST, {"tos": 0x10}, id="DSCP"),
    pytest.param(FIRST._replace(fragment=0), {"identification": 7}, id="the same identification"),
    pytest.param(FIRST._replace(fragment=0), {"identification": 9}, id="a gap in the identifications"),
    pytest.param(FIRST._replace(fragment=0), {"identification": 6}, id="identifications that count down"),
    pytest.param(FIRST, {"fragment": 0}, id="DF only in the first"),
    pytest.param(FIRST._replace(fragment=0), {"fragment": DONT_FRAGMENT}, id="DF only in the second"),
    pytest.param(FIRST, {"fragment": DONT_FRAGMENT | RESERVED}, id="the reserved bit only in the second"),
    pytest.param(FIRST, {"fragment": MORE_FRAGMENTS}, id="a first fragment"),
    pytest.param(FIRST, {"fragment": 1}, id="a later fragment"),
    pytest.param(FIRST, {"ttl": 61}, id="a smaller TTL"),
    pytest.param(FIRST, {"ttl": 63}, id="a larger TTL"),
    pytest.param(FIRST, {"ip_options": b"\x01" * 4}, id="IP options only in the second"),
    pytest.param(FIRST, {"protocol": UDP}, id="udp behind tcp"),
    pytest.param(FIRST_UDP, {"protocol": TCP}, id="tcp behind udp"),
    pytest.param(FIRST, {"source": "11.0.101.3"}, id="source"),
    pytest.param(FIRST, {"destination": "11.0.59.3"}, id="destination"),
    pytest.param(FIRST, {"source": "11.0.101.3", "destination": "11.0.59.3"}, id="both addresses"),
    pytest.param(FIRST, {"ports": (5202, 40000)}, id="source port"),
    pytest.param(FIRST, {"ports": (5201, 40001)}, id="destination port"),
    pytest.param(FIRST, {"sequence": 1000}, id="the same sequence number"),
    pytest.param(FIRST, {"sequence": 1099}, id="an overlap of one byte"),
    pytest.param(FIRST, {"sequence": 1101}, id="a gap of one byte"),
    pytest.param(FIRST, {"sequence": 1100 + 2**16}, id="a gap of 2^16"),
    pytest.param(FIRST, {"sequence": 1100 + 2**31}, id="a gap of 2^31"),
    pytest.param(FIRST, {"acknowledgement": 2001}, id="acknowledgement"),
    pytest.param(FIRST, {"acknowledgement": 2000 + 2**31}, id="acknowledgement, highest bit"),
    pytest.param(FIRST, {"options": b"\x01" * 4}, id="data offset"),
    pytest.param(FIRST, {"reserved": 1}, id="a reserved bit only in the second"),
    *(
        pytest.param(FIRST, {"flags": ACK | flag}, id=name)
        for name, flag in {"FIN": FIN, "SYN": SYN, "RST": RST, "URG": URG, "ECE": ECE, "CWR": CWR}.items()
    ),
    pytest.param(FIRST, {"flags": PSH}, id="no ACK"),
    pytest.param(FIRST, {"flags": 0}, id="no flag"),
    pytest.param(FIRST, {"window": 501}, id="window"),
    pytest.param(FIRST, {"urgent": 1}, id="urgent pointer"),
    pytest.param(FIRST._replace(options=TIMESTAMPS), {"options": TIMESTAMPS[:-1] + b"\xf2"}, id="the last option byte"),
    pytest.param(FIRST._replace(options=TIMESTAMPS), {"options": b"\0" + TIMESTAMPS[1:]}, id="the first option byte"),
    pytest.param(FIRST, {"payload": b""}, id="no payload"),
    pytest.param(FIRST, {"payload": PAYLOAD[:101]}, id="longer than the first"),
    pytest.param(FIRST_UDP, {"tos": 0b01}, id="udp: ECN"),
    pytest.param(FIRST_UDP, {"identification": 7}, id="udp: the same identification"),
    pytest.param(FIRST_UDP, {"fragment": MORE_FRAGMENTS}, id="udp: a first fragment"),
    pytest.param(FIRST_UDP, {"ttl": 61}, id="udp: TTL"),
    pytest.param(FIRST_UDP, {"source": "11.0.101.3"}, id="udp: source"),
    pytest.param(FIRST_UDP, {"ports": (5202, 40000)}, id="udp: source port"),
    pytest.param(FIRST_UDP, {"ports": (5201, 40001)}, id="udp: destination port"),
    pytest.param(FIRST_UDP, {"payload": b""}, id="udp: no payload"),
    pytest.param(FIRST_UDP, {"payload": PAYLOAD[:101]}, id="udp: longer than the first"),
]


@pytest.mark.parametrize(("first", "change"), CHANGES)
def test_a_packet_with_another_field_does_not_continue_the_one_before_it(
    first: Packet, change: dict[str, object]
) -> None:
    second = first.following(PAYLOAD[:100])
    assert_together([first.encode(), second.encode()])
    assert_apart([first.encode(), second._replace(**change).encode()])  # type: ignore[arg-type]


def changed(packet: bytes, at: int, mask: int = 0x01) -> bytes:
    return packet[:at] + bytes((packet[at] ^ mask,)) + packet[at + 1 :]


def with_bit_changed(packet: bytes, bit: int) -> bytes:
    """And checksums that are right all the same, unless the bit is in one of them."""
    at = bit // 8
    found = changed(packet, at, 1 << bit % 8)
    l4_checksum = (36, 37) if packet[9] == TCP else (26, 27)
    if at not in (0, 9, *l4_checksum):
        found = with_checksum(found)
    return found if at in (0, 10, 11) else with_ttl(found, found[8])


@pytest.mark.parametrize(
    ("first", "length", "exceptions"),
    [
        # The PSH flag is passed on, and identifications mean nothing where fragments are forbidden.
        pytest.param(FIRST._replace(fragment=0, options=TIMESTAMPS), 52, {33 * 8 + 3}, id="tcp"),
        pytest.param(FIRST, 40, {33 * 8 + 3, *range(4 * 8, 6 * 8)}, id="tcp, not to be fragmented"),
        pytest.param(FIRST_UDP, 28, set(), id="udp"),
    ],
)
def test_every_bit_of_the_header_counts(first: Packet, length: int, exceptions: set[int]) -> None:
    one, two = flow(first, [100, 100])
    merged = {
        bit
        for bit in range(length * 8)
        if any(any(header) for header, _ in coalesced_singly([one, with_bit_changed(two, bit)]).packets)
    }
    assert merged == exceptions


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"ip_options": b"\x01" * 4}, id="IP options"),
        pytest.param({"fragment": MORE_FRAGMENTS}, id="first fragments"),
        pytest.param({"fragment": 1}, id="later fragments"),
        pytest.param({"fragment": DONT_FRAGMENT | 0x1FFF}, id="later fragments that must not be fragmented"),
        pytest.param({"protocol": ICMP}, id="icmp"),
        pytest.param({"protocol": 132}, id="sctp"),
        pytest.param({"protocol": UDP_LITE, "fragment": 0}, id="udp-lite, whose checksum is like udp's"),
        *(
            pytest.param({"flags": ACK | flag}, id=name)
            for name, flag in {"FIN": FIN, "SYN": SYN, "RST": RST, "URG": URG, "ECE": ECE, "CWR": CWR}.items()
        ),
        pytest.param({"flags": 0}, id="no flag"),
        pytest.param({"payload": b""}, id="no payload"),
        pytest.param({"protocol": UDP, "payload": b""}, id="udp without payload"),
    ],
)
def test_packets_of_a_kind_that_is_never_merged_stay_apart_among_themselves(change: dict[str, object]) -> None:
    first = FIRST._replace(**change)  # type: ignore[arg-type]
    assert_apart([packet.encode() for packet in (first, first.following(first.payload))])


@pytest.mark.parametrize("identification", [0, 7, 9, 0xFFFF])
def test_identifications_do_not_matter_where_nothing_may_be_fragmented(identification: int) -> None:
    packets = [FIRST.encode(), FIRST.following(PAYLOAD[:100])._replace(identification=identification).encode()]
    found = coalesced_singly(packets)
    assert counts(found) == [2]
    expected = [oracle.as_merging_keeps_it(hop_taken(packet)) for packet in packets]
    assert list(map(oracle.as_merging_keeps_it, oracle.all_written(found.packets))) == expected


def test_a_tcp_checksum_of_0xffff_is_right_where_0_is() -> None:
    second = bytearray(FIRST.following(PAYLOAD[:100]).encode())
    last_word = int.from_bytes(second[-2:], "big") + int.from_bytes(second[36:38], "big")
    second[-2:] = ((last_word & 0xFFFF) + (last_word >> 16)).to_bytes(2, "big")
    second[36:38] = b"\xff\xff"
    packets = [FIRST.encode(), bytes(second)]
    found = coalesced_singly(packets)
    assert counts(found) == [2]
    assert oracle.all_written(found.packets)[1][36:38] == bytes(2)
    expected = [oracle.as_merging_keeps_it(hop_taken(packet)) for packet in packets]
    assert list(map(oracle.as_merging_keeps_it, oracle.all_written(found.packets))) == expected


@pytest.mark.parametrize("first", [FIRST, FIRST_UDP], ids=["tcp", "udp"])
@pytest.mark.parametrize("which", [0, 1], ids=["in the first", "in the second"])
@pytest.mark.parametrize("at", [11, 26, 27, 36, 37, 50, 119, -1])
def test_a_packet_with_a_wrong_checksum_is_given_on_as_it_came(first: Packet, which: int, at: int) -> None:
    """The kernel believes what we say of a super-packet, and would give it a right one."""
    packets = flow(first, [100, 100])
    at %= len(packets[which])
    packets[which] = changed(packets[which], at)
    found = coalesced_singly(packets)
    assert [header for header, _ in found.packets] == [vnet_hdr.PLAIN] * 2
    for index, packet in enumerate(packets):
        expected = hop_taken(packet)
        if index == which and at == 11:  # the error stays, moved by the hop
            assert found.packets[index][1][10:12] == changed(expected, 11)[10:12]
            expected = expected[:10] + found.packets[index][1][10:12] + expected[12:]
        assert found.packets[index][1] == expected


def test_after_a_wrong_checksum_merging_continues() -> None:
    packets = flow(FIRST, [100] * 5)
    packets[2] = changed(packets[2], 60)
    found = coalesced_singly(packets)
    assert counts(found) == [2, 1, 2]
    assert oracle.all_written(found.packets) == list(map(hop_taken, packets))


@pytest.mark.parametrize("payload", [b"\x00\x00", b"\x12\x34"])
def test_udp_without_a_checksum_is_never_merged(payload: bytes) -> None:
    packets = [with_checksum(packet, 0) for packet in flow(FIRST_UDP, [len(payload)] * 2)]
    assert_apart(packets)


@pytest.mark.parametrize("length", [0, 8, 107, 109, 0xFFFF])
def test_udp_with_another_length_than_its_packets_is_never_merged(length: int) -> None:
    wrong = [packet[:24] + length.to_bytes(2, "big") + packet[26:] for packet in flow(FIRST_UDP, [100, 100])]
    assert_apart([with_checksum(packet) for packet in wrong])


@pytest.mark.parametrize("words", [0, 4, 15])
def test_a_tcp_header_that_cannot_be_is_never_merged(words: int) -> None:
    packets = [packet[:32] + bytes((words << 4,)) + packet[33:] for packet in flow(FIRST, [30, 30])]
    assert_apart([with_checksum(packet) for packet in packets])


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("length", [0, 1, 7, 8, 13, 14, 19])
def test_a_header_that_is_cut_is_never_merged(protocol: int, length: int) -> None:
    if protocol == UDP and length >= 8:
        length = 6
    packet = ipv4_packet("11.0.101.2", "11.0.59.2", PAYLOAD[:length], protocol=protocol, fragment=DONT_FRAGMENT)
    assert_apart([packet, packet])


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        pytest.param([ACK, ACK, ACK | PSH, ACK, ACK], [3, 2], id="it ends the super-packet"),
        pytest.param([ACK | PSH, ACK, ACK], [1, 2], id="also the first"),
        pytest.param([ACK | PSH] * 3, [1, 1, 1], id="each by itself"),
        pytest.param([ACK, ACK | PSH], [2], id="at the end"),
    ],
)
def test_a_push_is_the_last_of_its_super_packet(flags: list[int], expected: list[int]) -> None:
    packet = FIRST
    packets = []
    for number, flag in enumerate(flags):
        packets.append(packet._replace(flags=flag).encode())
        packet = packet.following(PAYLOAD[number : number + 100])
    found = coalesced_singly(packets)
    assert counts(found) == expected
    assert oracle.all_written(found.packets) == list(map(hop_taken, packets))


@pytest.mark.parametrize("first", [FIRST, FIRST_UDP], ids=["tcp", "udp"])
@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([100, 60, 60], [2, 1]),
        ([100, 60, 100, 100], [2, 2]),
        ([100, 100, 60, 60, 30], [3, 2]),
        ([60, 100, 100], [1, 2]),
        ([100, 100, 101], [2, 1]),
        ([1] * 64, [64]),
        ([1] * 65, [64, 1]),
        ([500] * 130, [64, 64, 2]),
    ],
)
def test_a_shorter_packet_is_the_last_and_64_are_all(first: Packet, lengths: list[int], expected: list[int]) -> None:
    packets = flow(first, lengths)
    found = coalesced_singly(packets)
    assert counts(found) == expected
    assert oracle.all_written(found.packets) == list(map(hop_taken, packets))


@pytest.mark.parametrize(
    ("first", "lengths", "expected"),
    [
        pytest.param(FIRST, [13099] * 5, [5], id="tcp, 65,535 bytes"),
        pytest.param(FIRST, [13100] * 4 + [13095], [5], id="tcp, 65,535 bytes with a shorter one"),
        pytest.param(FIRST, [13100] * 4 + [13096], [4, 1], id="tcp, one more"),
        pytest.param(FIRST._replace(options=TIMESTAMPS), [13100] * 4 + [13083], [5], id="tcp with options"),
        pytest.param(
            FIRST._replace(options=TIMESTAMPS), [13100] * 4 + [13084], [4, 1], id="tcp with options, one more"
        ),
        pytest.param(FIRST_UDP, [13101] * 4 + [13102], [4, 1], id="udp, a longer one"),
        pytest.param(FIRST_UDP, [13102] * 4 + [13099], [5], id="udp, 65,507 bytes of payload"),
        pytest.param(FIRST_UDP, [13102] * 4 + [13100], [4, 1], id="udp, one more"),
        pytest.param(FIRST_UDP, [40000, 20000, 20000], [2, 1], id="udp, shorter"),
    ],
)
def test_a_super_packet_is_at_most_as_long_as_a_packet_can_be(
    first: Packet, lengths: list[int], expected: list[int]
) -> None:
    packets = flow(first, lengths)
    found = coalesced_singly(packets)
    assert counts(found) == expected
    assert oracle.all_written(found.packets) == list(map(hop_taken, packets))


def test_order_is_kept_within_flows_and_across_them() -> None:
    one = flow(FIRST, [100] * 6)
    other = flow(FIRST_UDP, [100] * 6)
    packets = [*one[:2], *other[:3], one[2], other[3], *one[3:], *other[4:]]
    found = coalesced_singly(packets)
    assert counts(found) == [2, 3, 1, 1, 3, 2]
    assert oracle.all_written(found.packets) == list(map(hop_taken, packets))


@pytest.mark.parametrize("segment_size", [140, 65535])
def test_a_train_is_cut_into_its_packets(segment_size: int) -> None:
    packets = flow(FIRST, [100] * 5 + [60])
    trains = [(b"".join(packets), 140)] if segment_size == 140 else [(packet, 65535) for packet in packets]
    found = coalesced(trains)
    assert counts(found) == [6]
    assert oracle.all_written(found.packets) == list(map(hop_taken, packets))


def test_trains_continue_each_other() -> None:
    packets = flow(FIRST, [100] * 10)
    found = coalesced([(b"".join(packets[:4]), 140), (packets[4], 140), (b"".join(packets[5:]), 140)])
    assert counts(found) == [10]
    assert oracle.all_written(found.packets) == list(map(hop_taken, packets))


REFUSED = [
    pytest.param(b"", DropReason.TRUNCATED, id="empty"),
    pytest.param(b"\x45", DropReason.TRUNCATED, id="one byte"),
    pytest.param(b"\x60" + bytes(47), DropReason.NOT_IPV4, id="ipv6"),
    pytest.param(b"\x42" + bytes(30), DropReason.BAD_HEADER, id="short header"),
    pytest.param(FIRST.encode()[:-1], DropReason.BAD_LENGTH, id="cut"),
    pytest.param(FIRST.encode() + b"\0", DropReason.BAD_LENGTH, id="continued"),
    pytest.param(FIRST._replace(ttl=1).encode(), DropReason.TTL_EXPIRED, id="last hop"),
    pytest.param(FIRST._replace(ttl=0).encode(), DropReason.TTL_EXPIRED, id="no hop"),
    pytest.param(FIRST._replace(source="11.0.59.0").encode(), DropReason.SPOOFED_SOURCE, id="our first source"),
    pytest.param(FIRST._replace(source="11.0.59.255").encode(), DropReason.SPOOFED_SOURCE, id="our last source"),
    pytest.param(FIRST._replace(destination="11.0.58.255").encode(), DropReason.WRONG_DESTINATION, id="below us"),
    pytest.param(FIRST._replace(destination="11.0.60.0").encode(), DropReason.WRONG_DESTINATION, id="above us"),
    pytest.param(FIRST._replace(destination="11.0.59.255").encode(), DropReason.WRONG_DESTINATION, id="broadcast"),
    pytest.param(FIRST._replace(destination="224.0.0.1").encode(), DropReason.WRONG_DESTINATION, id="multicast"),
    pytest.param(FIRST._replace(destination="8.8.8.8", ttl=1).encode(), DropReason.WRONG_DESTINATION, id="and TTL 1"),
    pytest.param(
        FIRST._replace(source="11.0.59.2", destination="8.8.8.8").encode(), DropReason.SPOOFED_SOURCE, id="both wrong"
    ),
    pytest.param(
        FIRST._replace(source="11.0.59.2").encode() + b"\0", DropReason.BAD_LENGTH, id="no packet and not right either"
    ),
]


@pytest.mark.parametrize(("packet", "reason"), REFUSED)
@pytest.mark.parametrize("merges", [True, False])
def test_what_is_no_packet_is_refused_as_it_came_and_ends_the_super_packet(
    packet: bytes, reason: DropReason, merges: bool
) -> None:
    one, two, three, four = flow(FIRST, [100] * 4)
    found = coalesced_singly([one, two, packet, three, four], tcp=merges, udp=merges)
    assert found.refused == [(reason, packet)]
    assert counts(found._replace(refused=[])) == ([2, 2] if merges else [1] * 4)
    assert oracle.all_written(found.packets) == list(map(hop_taken, (one, two, three, four)))


@pytest.mark.parametrize(("tcp", "udp"), [(True, True), (True, False), (False, True), (False, False)])
def test_each_protocol_can_be_left_out(tcp: bool, udp: bool) -> None:
    packets = [*flow(FIRST, [100] * 3), *flow(FIRST_UDP, [100] * 3)]
    found = coalesced_singly(packets, tcp=tcp, udp=udp)
    assert counts(found) == ([3] if tcp else [1] * 3) + ([3] if udp else [1] * 3)
    assert oracle.all_written(found.packets) == list(map(hop_taken, packets))


def test_a_super_packet_byte_for_byte() -> None:
    """Lengths of the whole, all flags, a right IP checksum, and of the other one the pseudo-header's part."""
    one = FIRST._replace(payload=b"abcd", fragment=0)
    two = one.following(b"ef")._replace(flags=ACK | PSH)
    [(header, packet)] = coalesced_singly([one.encode(), two.encode()]).packets
    assert header == VnetHeader(1, 1, 40, 4, 20, 16).encode()
    assert packet == bytes.fromhex(
        "4500002e 00070000 3d06c7bf 0b006502 0b003b02"  # 46 bytes, identification 7, TTL 61
        "14519c40 000003e8 000007d0 501801f4 b6240000"  # sequence 1000, ACK 2000, PSH, window 500
        "61626364 6566"
    )


def test_a_batch_begins_with_nothing_of_the_last_one() -> None:
    one, two = flow(FIRST, [100, 100])
    source = bytearray(one + two)
    coalescer = Coalescer(source, bytearray(len(source)), numbers(OWN_SUBNET))
    coalescer.begin()
    coalescer.add(0, 140, 140)
    coalescer.add(140, 279, 140)
    coalescer.finish()
    packets, refused = coalescer.packets, coalescer.refused
    coalescer.begin()
    source[:140] = two
    coalescer.add(0, 140, 140)
    coalescer.finish()
    assert ([bytes(packet) for _, packet in coalescer.packets], coalescer.refused) == ([hop_taken(two)], [])
    assert (len(packets), len(refused)) == (1, 1)


NETWORKS = [IPv4Network(text) for text in ("11.0.7.0/24", "11.0.101.0/28", "12.0.0.0/8", "13.0.0.1/32")]


@pytest.mark.parametrize(
    ("subnets", "right"),
    [
        pytest.param(NETWORKS, ["11.0.7.0", "11.0.7.255", "11.0.101.15", "12.255.255.255", "13.0.0.1"], id="several"),
        pytest.param(NETWORKS[1:2], ["11.0.101.0", "11.0.101.2", "11.0.101.15"], id="one"),
        pytest.param([IPv4Network("0.0.0.0/0")], ["0.0.0.0", "11.0.7.0", "255.255.255.255"], id="all"),
        pytest.param([], [], id="none"),
    ],
)
def test_if_expected_from_subnets_packets_from_elsewhere_are_refused(
    subnets: list[IPv4Network], right: list[str]
) -> None:
    edges = [*right, "11.0.6.255", "11.0.8.0", "11.0.100.255", "11.0.101.16", "11.255.255.255", "13.0.0.0", "14.0.0.0"]
    packets = [FIRST._replace(source=source).encode() for source in edges * 2]
    found = coalesced_singly(packets, subnets=subnets)
    within = [packet for packet in packets if any(IPv4Address(packet[12:16]) in subnet for subnet in subnets)]
    assert [packet for _, packet in found.packets] == list(map(hop_taken, within))
    assert found.refused == [(DropReason.SPOOFED_SOURCE, packet) for packet in packets if packet not in within]
    assert len(within) >= len(right) * 2


def test_what_is_expected_is_forgotten_when_something_else_is() -> None:
    packet = FIRST.encode()
    coalescer = Coalescer(bytearray(packet), bytearray(len(packet)), numbers(OWN_SUBNET))
    for subnets, refused in (
        (["11.0.101.0/24"], 0),
        (["11.0.7.0/24"], 1),
        (["11.0.7.0/24", "11.0.101.0/24"], 0),
        ([], 1),
    ):
        coalescer.begin()
        coalescer.allow_sources(numbers(IPv4Network(subnet)) for subnet in subnets)
        coalescer.add(0, len(packet), len(packet))
        coalescer.finish()
        assert len(coalescer.refused) == refused
