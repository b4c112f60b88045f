"""Packets with a known result, by which a program is tested before it is attached.  Pure."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from flannelpy.datapath.fast_path.parts import ETH_P_IP, Constants
from flannelpy.packet import headers as hdr
from flannelpy.packet.checksum import ones_sum

_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")
_ETHERNET = struct.Struct("!12xH")
# A protocol that is for experiments (RFC 3692), so that the rest of the packet means nothing.
_EXPERIMENT = 253
_PAYLOAD = bytes(range(8))


class Golden(NamedTuple):
    """``packet`` with an Ethernet header as BPF_PROG_TEST_RUN wants it, and ``result``: without one."""

    packet: bytes
    result: bytes


def outgoing(constants: Constants, peer: IPv4Network, public_ip: IPv4Address) -> Golden:
    """Return a packet of this host for a peer, and its datagram."""
    own, other = constants.subnet.network_address, peer.network_address
    return Golden(
        _ETHERNET.pack(ETH_P_IP) + _packet(own, other, ttl=64),
        _datagram(constants.bound, public_ip, constants, _packet(own, other, ttl=63)),
    )


def incoming(constants: Constants, peer: IPv4Network, public_ip: IPv4Address) -> Golden:
    """Return the datagram of a peer for this host, and its packet."""
    own, other = constants.subnet.network_address, peer.network_address
    datagram = _datagram(public_ip, constants.bound, constants, _packet(other, own, ttl=64))
    return Golden(_ETHERNET.pack(ETH_P_IP) + datagram, _packet(other, own, ttl=63))


def _packet(source: IPv4Address, destination: IPv4Address, ttl: int) -> bytes:
    return _ipv4(source, destination, ttl, _EXPERIMENT, _PAYLOAD, 0)


def _datagram(source: IPv4Address, destination: IPv4Address, constants: Constants, payload: bytes) -> bytes:
    udp = _UDP.pack(constants.port, constants.port, _UDP.size + len(payload), 0)
    return _ipv4(source, destination, constants.ttl, hdr.UDP, udp + payload, hdr.DONT_FRAGMENT)


def _ipv4(
    source: IPv4Address, destination: IPv4Address, ttl: int, protocol: int, payload: bytes, fragment: int
) -> bytes:
    length = hdr.IP_MIN_HEADER + len(payload)
    header = bytearray(
        _IPV4.pack(
            *(hdr.IP_VERSION_IHL, 0, length, 0, fragment, ttl, protocol, 0),
            *(source.packed, destination.packed),
        )
    )
    struct.pack_into("!H", header, hdr.IP_CHECKSUM, ~ones_sum(header, 0, len(header)) & 0xFFFF)
    return bytes(header) + payload
