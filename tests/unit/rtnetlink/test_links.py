"""Links and addresses as the kernel lists them."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import pytest

from flannelpy.rtnetlink import links
from flannelpy.rtnetlink.messages import NLA_F_NESTED, RTM_GETADDR, RTM_GETLINK, Message, attribute

PERMANENT, DEPRECATED = 0x80, 0x20


def an_address(low_flags: int, scope: int, *more: bytes) -> links.Address:
    head = struct.pack("=BBBBI", 2, 24, low_flags, scope, 3)
    local = IPv4Address("172.17.8.101").packed
    return links.address(Message(RTM_GETADDR, head + attribute(1, local) + attribute(2, local) + b"".join(more)))


def number(value: int) -> bytes:
    return struct.pack("=I", value)


@pytest.mark.parametrize(
    ("listed", "flaw"),
    [
        (an_address(PERMANENT, 0), ""),
        (an_address(0, 0, attribute(8, number(0x200))), ""),  # IFA_F_NOPREFIXROUTE, which does not fit into 8 bits
        (an_address(0, 0, attribute(8, number(0x200 | DEPRECATED))), "deprecated"),
        (an_address(DEPRECATED, 0), "deprecated"),
        (an_address(DEPRECATED, 0, attribute(8, number(PERMANENT))), ""),  # the attribute counts
        (an_address(0x40, 0), "tentative"),
        (an_address(0x08, 0), "tentative"),
        (an_address(PERMANENT, 254), "of scope host"),
        (an_address(PERMANENT, 253), ""),
    ],
)
def test_flags_and_scope_of_an_address(listed: links.Address, flaw: str) -> None:
    assert (listed.address, listed.prefix_len, listed.flaw) == (IPv4Address("172.17.8.101"), 24, flaw)


@pytest.mark.parametrize("names", [(), ("enp3s0",), ("enp3s0", "a-name-of-more-than-fifteen-bytes", "mgmt")])
def test_altnames_master_and_kind_of_a_link(names: tuple[str, ...]) -> None:
    head = struct.pack("=BxHiII", 0, 1, 3, 0x1 | 0x8, 0)
    alternatives = b"".join(attribute(53, name.encode() + b"\0") for name in names)
    body = head + attribute(3, b"eth1\0") + attribute(10, number(8))
    body += attribute(35, number(77)) + attribute(52 | NLA_F_NESTED, alternatives)
    link = links.link(Message(RTM_GETLINK, body))
    assert (link.name, link.altnames, link.master, link.carrier_changes) == ("eth1", names, 8, 77)
    assert (link.is_up, link.is_loopback, link.is_exit) == (True, True, False)


@pytest.mark.parametrize("namespace", [None, 0, 7])
def test_a_link_that_leads_into_another_namespace_has_the_number_of_that(namespace: int | None) -> None:
    body = struct.pack("=BxHiII", 0, 1, 3, 1, 0) + attribute(3, b"veth1\0")
    body += attribute(37, number(namespace)) if namespace is not None else b""
    assert links.link(Message(RTM_GETLINK, body)).leads_elsewhere is (namespace is not None)


def test_malformed_altnames_end_the_list() -> None:
    body = (
        struct.pack("=BxHiII", 0, 1, 3, 1, 0)
        + attribute(3, b"eth1\0")
        + attribute(52 | NLA_F_NESTED, struct.pack("=HH", 2, 53))
    )
    assert links.link(Message(RTM_GETLINK, body)).altnames == ()
