"""What the kernel does for many packets at a time, and which of it to use here.  Pure.

==========  ==================================================================
tso, uso    the TUN gives TCP and UDP super-packets, which we segment
merge-tcp,  the TUN takes super-packets of TCP and UDP, which we coalesce
merge-udp
gso, gro    the UDP socket sends and receives many datagrams at a time
==========  ==================================================================

None of them changes a byte on the wire; without one, only speed is lost.
"""

from __future__ import annotations

import enum
import re
from ipaddress import IPv4Address

from flannelpy.errors import UsageError
from flannelpy.packet import headers as hdr
from flannelpy.packet import vnet_hdr
from flannelpy.packet.checksum import ones_sum


class Offload(enum.StrEnum):
    """By the name that ``-offload`` takes."""

    TSO = "tso"
    USO = "uso"
    MERGE_TCP = "merge-tcp"
    MERGE_UDP = "merge-udp"
    GSO = "gso"
    GRO = "gro"


ALL = frozenset(Offload)
#: Interpreted, what has to be done for each segment costs more than the system calls that it saves (`make bench`).
INTERPRETED = frozenset({Offload.GSO, Offload.GRO})

# From the first kernel that corrupts what UDP_SEGMENT sends to the first that no longer does.
_BAD_GSO = ((7, 0, 0), (7, 1, 5))


def parse(text: str) -> frozenset[Offload]:
    """What ``-offload`` asks for, other than auto.  Raises UsageError."""
    if text == "off":
        return frozenset()
    try:
        return frozenset(Offload(name.strip()) for name in text.split(","))
    except ValueError:
        names = ",".join(Offload)
        raise UsageError(f"-offload: {text!r} is neither auto nor off nor some of {names}") from None


def choose(wanted: frozenset[str] | None, *, compiled: bool, kernel: str) -> frozenset[str]:
    """What to try on this machine; ``kernel`` is its release, such as 6.1.0-18-amd64.  Without a wish: what is best."""
    if wanted is not None:
        return wanted
    chosen = ALL if compiled else INTERPRETED
    first_bad, first_good = _BAD_GSO
    return chosen - {Offload.GSO} if first_bad <= _version(kernel) < first_good else chosen


def probe(offload: Offload) -> tuple[bytes, bytes]:
    """A super-packet (vnet header, packet) that a TUN takes only if it takes such at all; it goes nowhere.

    Two segments and a shorter one, which some kernels refuse: 6.6.44, 6.10.3.  Its source, 0.0.0.0, is a martian.
    """
    tcp = offload is Offload.MERGE_TCP
    l4 = bytes(12) + b"\x50\x10" + bytes(6) if tcp else bytes(4) + (8 + 25).to_bytes(2, "big") + bytes(2)
    length = 20 + len(l4) + 25
    header = b"\x45\x00" + length.to_bytes(2, "big") + bytes(5) + (b"\x06" if tcp else b"\x11") + bytes(6)
    packet = bytearray(header + IPv4Address("192.0.2.1").packed + l4 + bytes(25))
    packet[10:12] = (~ones_sum(packet, 0, 20) & 0xFFFF).to_bytes(2, "big")
    gso_type, checksum = (hdr.GSO_TCPV4, hdr.TCP_CHECKSUM) if tcp else (hdr.GSO_UDP_L4, hdr.UDP_CHECKSUM)
    return vnet_hdr.super_packet(gso_type, 20 + len(l4), 10, 20, checksum), bytes(packet)


def _version(kernel: str) -> tuple[int, ...]:
    return tuple(map(int, [*re.findall(r"\d+", kernel), 0, 0, 0][:3]))
