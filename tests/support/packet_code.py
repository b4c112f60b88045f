"""Runs the packet code on buffers of the least size, so that a sanitizer detects every access beyond them.

``INSTALLED`` is the packet code that the package uses, compiled or not; ``INTERPRETED`` is always the plain sources.
"""

from __future__ import annotations

import importlib.util
import sys
from ipaddress import IPv4Network
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from unittest import mock

from support.oracle import VnetHeader
from support.packets import BOUND, OWN_SUBNET, PORT, numbers

from flannelpy import packet as package
from flannelpy.packet import checksum, coalesce, group, ipv4, segment, tally
from flannelpy.packet.drops import DropReason

#: Bytes that a segmenter may look at behind its packet, where the rest of a truncated header would be.
SLACK = 13
_RUBBISH = b"\xa5"


class PacketCode(NamedTuple):
    """The modules of one form; a later one imports from earlier ones.  ``Any`` to the type checker, as modules are."""

    checksum: ModuleType
    ipv4: ModuleType
    tally: ModuleType
    segment: ModuleType
    coalesce: ModuleType
    group: ModuleType


def _interpreted() -> PacketCode:
    """Load the packet code from its sources; its modules import each other and nothing compiled."""
    loaded: dict[str, ModuleType] = {}
    for name in PacketCode._fields:
        path = Path(package.__file__).with_name(f"{name}.py")
        spec = importlib.util.spec_from_file_location(f"interpreted.{name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        with mock.patch.dict(sys.modules, {f"flannelpy.packet.{other}": loaded[other] for other in loaded}):
            spec.loader.exec_module(module)
        loaded[name] = module
    return PacketCode(**loaded)


INSTALLED = PacketCode(checksum, ipv4, tally, segment, coalesce, group)
INTERPRETED = _interpreted()


class Grouped(NamedTuple):
    """``groups`` and ``refused`` of a grouper, and the buffer after it."""

    groups: list[tuple[int, int, int, int, int]]
    refused: list[tuple[int, int, int]]
    data: bytes


class Coalesced(NamedTuple):
    """(vnet header, packet) for the TUN, and (reason, packet) of those refused."""

    packets: list[tuple[bytes, bytes]]
    refused: list[tuple[DropReason, bytes]]


def filled_up(data: bytes, slack: int = 0) -> bytearray:
    """A buffer of the least allowed length, a multiple of 4."""
    return bytearray(data + _RUBBISH * (slack + -(len(data) + slack) % 4))


def segmented(
    packet: bytes, gso_size: int, *, code: PacketCode = INSTALLED, before: int = 0, space: int | None = None
) -> bytes | None:
    """The segments, written behind ``before`` bytes into ``space`` bytes, by default just enough; None: refused."""
    needed = len(packet) * 2 + 120 * (len(packet) // max(gso_size, 1) + 1) if space is None else space
    source = filled_up(_RUBBISH * before + packet, SLACK)
    target = bytearray(before + needed)
    segmenter = code.segment.Segmenter(source, target)
    end = segmenter.segment(before, before + len(packet), gso_size, before)
    assert not any(target[:before])
    assert not any(target[max(end, before) :])
    return bytes(target[before:end]) if end else None


def grouped(
    packets: list[tuple[VnetHeader, bytes]], mask: int, *, code: PacketCode = INSTALLED, own: IPv4Network = OWN_SUBNET
) -> Grouped:
    """The groups of a batch."""
    data = filled_up(b"".join(packet for _, packet in packets))
    headers = bytearray(b"".join(header.encode() for header, _ in packets))
    grouper = code.group.Grouper(data, headers, numbers(own), (int(BOUND), PORT))
    grouper.group([len(packet) for _, packet in packets], mask)
    return Grouped(
        list(map(tuple, grouper.groups)), grouper.refused, bytes(data[: sum(len(packet) for _, packet in packets)])
    )


def coalesced(
    trains: list[tuple[bytes, int]],
    *,
    code: PacketCode = INSTALLED,
    tcp: bool = True,
    udp: bool = True,
    own: IPv4Network = OWN_SUBNET,
    subnets: list[IPv4Network] | None = None,
) -> Coalesced:
    """The packets of a batch of (datagrams in one piece, segment size); ``subnets``: the allowed sources."""
    source = filled_up(b"".join(data for data, _ in trains))
    coalescer = code.coalesce.Coalescer(source, bytearray(len(source)), numbers(own), tcp, udp)
    coalescer.begin()
    if subnets is not None:
        coalescer.allow_sources(map(numbers, subnets))
    start = 0
    for data, segment_size in trains:
        coalescer.add(start, start + len(data), segment_size)
        start += len(data)
    coalescer.finish()
    return Coalesced(
        [(header, bytes(packet)) for header, packet in coalescer.packets],
        [(DropReason(reason), bytes(source[start:stop])) for reason, start, stop in coalescer.refused],
    )


def coalesced_singly(
    packets: list[bytes], *, tcp: bool = True, udp: bool = True, subnets: list[IPv4Network] | None = None
) -> Coalesced:
    """The packets of datagrams that came one by one."""
    return coalesced([(packet, len(packet)) for packet in packets], tcp=tcp, udp=udp, subnets=subnets)
