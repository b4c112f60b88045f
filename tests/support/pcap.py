"""Reads capture files.  Source: draft-ietf-opsawg-pcap, the classic format in little-endian order."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Address
    from pathlib import Path

_FILE_HEADER = struct.Struct("<IHHiIII")
_RECORD_HEADER = struct.Struct("<IIII")
_MAGIC = 0xA1B2C3D4
ETHERNET = 1
RAW_IP = 101


class Datagram(NamedTuple):
    """A UDP datagram: addresses as 4 bytes each."""

    source: bytes
    destination: bytes
    payload: bytes

    def is_from(self, address: IPv4Address) -> bool:
        return self.source == address.packed


def read(path: Path, link_type: int) -> Iterator[bytes]:
    """The frames of a capture of that link type, each captured whole."""
    for frame, length in beginnings(path, link_type):
        assert len(frame) == length, f"{path} has a frame that was cut"
        yield frame


def beginnings(path: Path, link_type: int) -> Iterator[tuple[bytes, int]]:
    """What a capture of that link type has of each frame, and the length of the frame."""
    for _, frame, length in _records(path, link_type):
        yield frame, length


def moments(path: Path, link_type: int) -> Iterator[float]:
    """When each frame of a capture of that link type was seen, in seconds since the epoch."""
    for moment, _, _ in _records(path, link_type):
        yield moment


def _records(path: Path, link_type: int) -> Iterator[tuple[float, bytes, int]]:
    data = path.read_bytes()
    magic, *_, found = _FILE_HEADER.unpack_from(data)
    assert (magic, found) == (_MAGIC, link_type), f"{path} is no capture of link type {link_type}"
    at = _FILE_HEADER.size
    while at < len(data):
        seconds, microseconds, captured, length = _RECORD_HEADER.unpack_from(data, at)
        at += _RECORD_HEADER.size
        yield seconds + microseconds / 1e6, data[at : at + captured], length
        at += captured


def udp_datagrams(path: Path, port: int) -> Iterator[Datagram]:
    """The UDP datagrams from and to ``port`` in an Ethernet capture."""
    for frame in read(path, ETHERNET):
        packet = frame[14:]
        assert frame[12:14] == b"\x08\x00"
        assert packet[:1] == b"\x45"
        assert packet[9] == 17
        source_port, destination_port, length, _ = struct.unpack_from("!HHHH", packet, 20)
        assert (source_port, destination_port) == (port, port)
        yield Datagram(packet[12:16], packet[16:20], packet[28 : 20 + length])
