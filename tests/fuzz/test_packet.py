"""The packet code against scapy and against arithmetic."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP
from support.packets import checksum, ipv4_packet

from flannelpy.packet import icmp, ipv4
from flannelpy.packet.checksum import fold, ones_sum

WORDS = st.integers(0, 0xFFFF)
ADDRESSES = st.ip_addresses(v=4).map(str)
OPTIONS = st.integers(0, 10).flatmap(lambda words: st.binary(min_size=words * 4, max_size=words * 4))


def packets(options: st.SearchStrategy[bytes], ttl: st.SearchStrategy[int]) -> st.SearchStrategy[bytes]:
    return st.builds(
        ipv4_packet,
        ADDRESSES,
        ADDRESSES,
        st.binary(max_size=64),
        ttl=ttl,
        protocol=st.sampled_from([1, 6, 17]) | st.integers(0, 255),
        fragment=st.sampled_from([0, 0x4000]) | WORDS,
        options=options,
    )


PACKETS = packets(OPTIONS, st.integers(0, 255))


@st.composite
def nearly_packets(draw: st.DrawFn) -> bytes:
    """A packet of which some bytes were changed, or that was cut, or continued."""
    data = bytearray(draw(PACKETS))
    for at, value in draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 255)), max_size=2)):
        data[at] = value
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data + draw(st.binary(max_size=3)))


ANYTHING = PACKETS | nearly_packets() | st.binary(max_size=80)


def scapy_accepts(data: bytes) -> bool:
    """Whether scapy sees one IPv4 packet that fills ``data``: header, payload and nothing behind them."""
    if len(data) < 20:
        return False
    packet = IP(data)
    return bool(packet.version == 4 and packet.ihl >= 5 and packet.ihl * 4 <= len(data) == packet.len)


@given(st.binary(max_size=300), st.integers(0, 20), st.integers(0, 20))
def test_sum_is_arithmetic_modulo_65535(data: bytes, before: int, behind: int) -> None:
    surrounded = bytearray(b"\xaa" * before + data + b"\x55" * behind)
    assert ones_sum(surrounded, before, before + len(data)) == 0xFFFF - checksum(data)


@given(st.integers(0, 2**32 - 1))
def test_fold_keeps_the_remainder(total: int) -> None:
    assert fold(total) <= 0xFFFF
    assert fold(total) % 0xFFFF == total % 0xFFFF
    assert (fold(total) == 0) == (total == 0)


@given(ANYTHING, st.integers(0, 9), st.integers(0, 9))
def test_accepted_is_what_scapy_accepts(data: bytes, before: int, behind: int) -> None:
    surrounded = bytearray(b"\x45" * before + data + b"\x45" * behind)
    reason = ipv4.check(surrounded, before, before + len(data))
    assert (reason == 0) == scapy_accepts(data)
    assert 0 <= reason <= 4


@given(PACKETS)
def test_fields_are_those_that_scapy_reads(packet: bytes) -> None:
    data, parsed = bytearray(packet), IP(packet)
    assert ipv4.destination(data, 0).to_bytes(4, "big") == bytes(map(int, parsed.dst.split(".")))
    assert ipv4.ip_ttl(data, 0) == parsed.ttl


@given(packets(st.just(b""), st.integers(1, 255)))
def test_a_hop_is_taken_as_scapy_would_build_it(packet: bytes) -> None:
    data = bytearray(packet)
    ipv4.decrement_ttl(data, 0)
    expected = IP(packet[:20])
    expected.ttl -= 1
    del expected.chksum
    assert bytes(data) == bytes(expected) + packet[20:]


@given(packets(OPTIONS, st.integers(1, 255)), WORDS)
def test_a_hop_changes_nothing_else_and_keeps_an_error_of_the_checksum(packet: bytes, found: int) -> None:
    before = packet[:10] + found.to_bytes(2, "big") + packet[12:]
    data = bytearray(before)
    ipv4.decrement_ttl(data, 0)
    after = bytes(data)
    assert after[8] == before[8] - 1
    assert (after[:8], after[9:10], after[12:]) == (before[:8], before[9:10], before[12:])
    header = (packet[0] & 0xF) * 4
    assert checksum(after[:header]) % 0xFFFF == checksum(before[:header]) % 0xFFFF


@given(PACKETS, st.sampled_from([icmp.NET_UNREACHABLE, icmp.TIME_EXCEEDED]))
def test_an_icmp_error_is_what_scapy_would_build(packet: bytes, kind: tuple[int, int]) -> None:
    reply = icmp.error(kind, packet, bytes((11, 0, 59, 0)))
    parsed = IP(reply)
    assert (parsed.src, parsed.dst, parsed.ttl, parsed.len) == ("11.0.59.0", IP(packet).src, 8, len(reply))
    assert (reply[20], reply[21], reply[24:28]) == (*kind, bytes(4))
    assert reply[28:] == packet[: (packet[0] & 0xF) * 4 + 8]
    assert checksum(reply[:20]) == checksum(reply[20:]) == 0
    assert scapy_accepts(reply)


@given(PACKETS)
def test_no_icmp_error_is_about_an_icmp_error(packet: bytes) -> None:
    """Two hosts that answer each other's errors would never stop."""
    reply = icmp.error(icmp.TIME_EXCEEDED, packet, bytes((11, 0, 59, 0)))
    assert not icmp.may_be_answered(reply)
