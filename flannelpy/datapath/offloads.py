"""What the kernel can do for many packets at a time, and what of it to use on this host.  Pure.

==========  ==================================================================
tso, uso    the TUN gives TCP and UDP super-packets, which we segment
merge-tcp,  the TUN takes super-packets of TCP and UDP, which we coalesce
merge-udp
gso, gro    the UDP socket sends and receives many datagrams at a time
==========  ==================================================================

No offload changes a byte on the wire; without one, only the throughput is lower.
"""

from __future__ import annotations

import enum
import re
from ipaddress import IPv4Address

from flannelpy.errors import UsageError
from flannelpy.packet import vnet_hdr
from flannelpy.packet.checksum import ones_sum


class Offload(enum.StrEnum):
    """An offload, by the name in the option ``-offload``."""

    TSO = "tso"
    USO = "uso"
    MERGE_TCP = "merge-tcp"
    MERGE_UDP = "merge-udp"
    GSO = "gso"
    GRO = "gro"


ALL = frozenset(Offload)
#: With interpreted packet code, the work for each segment costs more than the saved system calls (`make bench`).
INTERPRETED = frozenset({Offload.GSO, Offload.GRO})

# From the first kernel that corrupts datagrams sent with UDP_SEGMENT to the first fixed kernel.
_BAD_GSO = ((7, 0, 0), (7, 1, 5))


def parse(text: str) -> frozenset[Offload]:
    """Return the offloads of an ``-offload`` value other than auto.  Raises UsageError."""
    if text == "off":
        return frozenset()
    try:
        return frozenset(Offload(name.strip()) for name in text.split(","))
    except ValueError:
        names = ",".join(Offload)
        raise UsageError(f"-offload: {text!r} is neither auto nor off nor some of {names}") from None


def choose(wanted: frozenset[str] | None, *, compiled: bool, kernel: str) -> frozenset[str]:
    """Return the offloads to try; ``kernel`` is the release of the kernel, as 6.1.0-18-amd64.

    ``wanted``: the operator's choice, None for the best ones for this build and kernel.
    """
    if wanted is not None:
        return wanted
    chosen = ALL if compiled else INTERPRETED
    first_bad, first_good = _BAD_GSO
    return chosen - {Offload.GSO} if first_bad <= _version(kernel) < first_good else chosen


def probe(offload: Offload) -> tuple[bytes, bytes]:
    """Return a super-packet (vnet header, packet) that tests whether a TUN accepts such packets; the kernel drops it.

    It has two segments and a shorter one, which some kernels reject: 6.6.44, 6.10.3.  Its source 0.0.0.0 is a martian.
    """
    tcp = offload is Offload.MERGE_TCP
    l4 = bytes(12) + b"\x50\x10" + bytes(6) if tcp else bytes(4) + (8 + 25).to_bytes(2, "big") + bytes(2)
    length = 20 + len(l4) + 25
    header = b"\x45\x00" + length.to_bytes(2, "big") + bytes(5) + (b"\x06" if tcp else b"\x11") + bytes(6)
    packet = bytearray(header + IPv4Address("192.0.2.1").packed + l4 + bytes(25))
    packet[10:12] = (~ones_sum(packet, 0, 20) & 0xFFFF).to_bytes(2, "big")
    gso_type, checksum = (vnet_hdr.GSO_TCPV4, 16) if tcp else (vnet_hdr.GSO_UDP_L4, 6)
    return vnet_hdr.super_packet(gso_type, 20 + len(l4), 10, 20, checksum), bytes(packet)


def _version(kernel: str) -> tuple[int, ...]:
    return tuple(map(int, [*re.findall(r"\d+", kernel), 0, 0, 0][:3]))
