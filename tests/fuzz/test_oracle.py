"""The oracle against scapy: no packet code runs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, in4_chksum
from scapy.utils import checksum as scapy_checksum
from support import oracle
from support.packets import TCP
from support.strategies import super_packets


@given(super_packets(3000), st.integers(1, 200) | st.integers(1, 3100))
def test_the_segments_are_right_for_scapy(packet: bytes, gso_size: int) -> None:
    """Checksums, lengths and payload."""
    l4 = (packet[0] & 0xF) * 4
    header = l4 + ((packet[l4 + 12] >> 4) * 4 if packet[9] == TCP else 8)
    found = oracle.segments(packet, gso_size)
    for segment in found:
        pseudo = IP(src=IP(packet[:20]).src, dst=IP(packet[:20]).dst)
        assert scapy_checksum(segment[:l4]) == 0
        assert in4_chksum(packet[9], pseudo, segment[l4:]) == 0
        assert int.from_bytes(segment[2:4], "big") == len(segment)
    assert b"".join(segment[header:] for segment in found) == packet[header:]
    assert {len(segment) for segment in found[:-1]} <= {header + gso_size}
