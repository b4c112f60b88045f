"""Echo requests as bytes, and what received packets tell about them."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from scapy.layers.inet import ICMP, IP

from flannelpy.linux.icmp_echo import Heard, parse, request

US, PEER, ROUTER = IPv4Address("172.17.8.101"), IPv4Address("172.17.8.102"), IPv4Address("172.17.8.1")


def packet(source: IPv4Address, destination: IPv4Address, message: bytes) -> bytes:
    return bytes(IP(src=str(source), dst=str(destination), proto=1) / message)


@pytest.mark.parametrize("length", [28, 84, 85, 1500, 9000])
def test_a_request_has_the_length_and_a_checksum_that_scapy_accepts(length: int) -> None:
    message = bytes(request(7, 9, length))
    read = ICMP(message)
    assert (read.type, read.code, read.id, read.seq, len(message)) == (8, 0, 7, 9, length - 20)
    written = read.chksum
    del read.chksum
    assert ICMP(bytes(read)).chksum == written


def test_a_reply_names_its_sender_and_the_numbers() -> None:
    reply = packet(PEER, US, bytes(ICMP(type=0, id=7, seq=9)))
    assert parse(reply) == Heard(PEER, 7, 9)


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        (3, 0, "network unreachable"),
        (3, 1, "host unreachable"),
        (3, 4, "packet too long"),
        (3, 13, "prohibited"),
        (3, 200, "unreachable"),
        (11, 0, "time exceeded"),
    ],
)
def test_an_error_names_the_target_of_the_request_and_its_reporter(kind: int, code: int, words: str) -> None:
    cited = packet(US, PEER, bytes(request(7, 9, 84)))[:28]
    error = packet(ROUTER, US, bytes(ICMP(type=kind, code=code)) + cited)
    assert parse(error) == Heard(PEER, 7, 9, words, ROUTER)


@pytest.mark.parametrize(
    "received",
    [
        b"",
        b"E",
        bytes(27),
        packet(PEER, US, bytes(ICMP(type=8, id=7, seq=9))),  # a request of the peer's
        packet(ROUTER, US, bytes(ICMP(type=3, code=1))),  # without the cited packet
        packet(ROUTER, US, bytes(ICMP(type=3, code=1)) + packet(US, PEER, bytes(ICMP(type=0, id=7, seq=9)))),
        packet(ROUTER, US, bytes(ICMP(type=3, code=1)) + b"\xff" * 28),
    ],
)
def test_all_else_is_ignored(received: bytes) -> None:
    assert parse(received) is None
