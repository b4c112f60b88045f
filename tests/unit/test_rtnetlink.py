"""Messages by struct, with pyroute2 as the oracle that knows none of our code."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from flannelpy.linux import entries, rtnetlink
from flannelpy.linux.entries import Entry, Forward, Gateway, Neighbour, Route
from flannelpy.linux.rtnetlink import Message

MAC = "2e:40:72:2d:6b:e3"
HOST = IPv4Address("172.17.8.102")
SUBNET = IPv4Network("11.0.49.0/24")
ENTRIES = [
    Gateway(SUBNET, HOST, 2),
    Gateway(SUBNET, SUBNET.network_address, 70000, is_onlink=True),
    Gateway(IPv4Network("0.0.0.0/0"), HOST, 2),
    Neighbour(SUBNET.network_address, MAC, 7),
    Forward(MAC, HOST, 7),
]


def understood(message: Message) -> Any:
    """As pyroute2 reads it."""
    data = rtnetlink.encode(message, 42)
    theirs = (rtmsg if message.message_type < rtnetlink.RTM_NEWNEIGH else ndmsg)(data)
    theirs.decode()
    assert theirs["header"]["length"] == len(data)
    assert theirs["header"]["sequence_number"] == 42
    assert theirs["header"]["type"] == message.message_type
    return theirs


def written(kind: Any, message_type: int, fields: dict[str, int], **attrs: object) -> Message:
    """As pyroute2 writes it."""
    theirs = kind()
    for name, value in fields.items():
        theirs[name] = value
    theirs["attrs"] = list(attrs.items())
    theirs["header"]["type"], theirs["header"]["flags"] = message_type, 0
    theirs.encode()
    [(_, message)] = rtnetlink.decode(bytes(theirs.data))
    return message


def route(**attrs: object) -> Message:
    fields = {"family": 2, "dst_len": 24, "table": 254, "proto": 3, "type": 1}
    return written(rtmsg, rtnetlink.RTM_NEWROUTE, fields, **{"RTA_DST": "11.0.49.0", **attrs})


@pytest.mark.parametrize(("request_of", "types"), [(entries.put, (24, 28)), (entries.removal, (25, 29))])
def test_a_gateway_is_what_pyroute2_reads(request_of: Any, types: tuple[int, int]) -> None:
    theirs = understood(request_of(ENTRIES[1]))
    assert theirs["header"]["type"] == types[0]
    assert (theirs["family"], theirs["dst_len"], theirs["table"], theirs["proto"]) == (socket.AF_INET, 24, 254, 85)
    assert (theirs["scope"], theirs["type"], theirs["flags"]) == (0, 1, 4)
    assert theirs.get("dst") == theirs.get("gateway") == "11.0.49.0"
    assert theirs.get("oif") == 70000


def test_a_neighbour_is_what_pyroute2_reads() -> None:
    theirs = understood(entries.put(Neighbour(SUBNET.network_address, MAC, 7)))
    assert (theirs["family"], theirs["ifindex"], theirs["state"], theirs["flags"]) == (socket.AF_INET, 7, 0x80, 0)
    assert (theirs.get("dst"), theirs.get("lladdr")) == ("11.0.49.0", MAC)


def test_a_forward_is_what_pyroute2_reads() -> None:
    theirs = understood(entries.put(Forward(MAC, HOST, 7)))
    assert (theirs["family"], theirs["ifindex"], theirs["state"], theirs["flags"]) == (7, 7, 0x80, 2)
    assert (theirs.get("dst"), theirs.get("lladdr")) == (str(HOST), MAC)


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_an_entry_is_read_as_it_was_written(entry: Entry) -> None:
    message = entries.put(entry)
    read = {
        Gateway: entries.gateways([message]) if isinstance(entry, Gateway) else [],
        Neighbour: entries.neighbours([message], 7) if isinstance(entry, Neighbour) else [],
        Forward: entries.forwards([message], 7) if isinstance(entry, Forward) else [],
    }
    assert read[type(entry)] == [entry]


@pytest.mark.parametrize(
    ("message", "ways", "ours"),
    [
        (route(RTA_GATEWAY="172.17.8.102", RTA_OIF=2), [Route(SUBNET, 2, 0)], 1),
        (route(RTA_OIF=2), [Route(SUBNET, 2, 0)], 0),
        (route(RTA_GATEWAY="172.17.8.102", RTA_OIF=2, RTA_PRIORITY=100), [Route(SUBNET, 2, 100)], 0),
        (route(), [], 0),  # unreachable
    ],
)
def test_routes_of_all_kinds(message: Message, ways: list[Route], ours: int) -> None:
    assert entries.routes([message]) == ways
    assert len(entries.gateways([message])) == ours


def test_a_route_with_several_ways_out() -> None:
    hops = [{"oif": index, "attrs": [["RTA_GATEWAY", f"172.17.8.{index}"]]} for index in (2, 3)]
    message = route(RTA_MULTIPATH=hops)
    assert entries.routes([message]) == [Route(SUBNET, 2, 0), Route(SUBNET, 3, 0)]
    assert entries.gateways([message]) == []


@pytest.mark.parametrize("changed", [{"table": 255}, {"proto": 186}])
def test_routes_of_other_tables_and_programs_are_not_ours(changed: dict[str, int]) -> None:
    fields = {"family": 2, "dst_len": 24, "table": 254, "proto": 3, "type": 1, **changed}
    message = written(rtmsg, 24, fields, RTA_DST="11.0.49.0", RTA_GATEWAY="172.17.8.102", RTA_OIF=2)
    assert entries.gateways([message]) == []


@pytest.mark.parametrize(
    ("family", "fields", "attrs"),
    [
        (2, {"state": 0x02}, {"NDA_DST": "11.0.49.2", "NDA_LLADDR": MAC}),  # one that ARP found
        (2, {"ifindex": 8}, {"NDA_DST": "11.0.49.2", "NDA_LLADDR": MAC}),
        (2, {}, {"NDA_DST": "11.0.49.2"}),
        (10, {}, {"NDA_DST": "fe80::1", "NDA_LLADDR": MAC}),
        (7, {"flags": 0}, {"NDA_DST": "172.17.8.102", "NDA_LLADDR": MAC}),  # a bridge's
        (7, {"flags": 2}, {"NDA_LLADDR": MAC}),
    ],
)
def test_what_is_no_entry_of_ours(family: int, fields: dict[str, int], attrs: dict[str, str]) -> None:
    message = written(ndmsg, 28, {"family": family, "ifindex": 7, "state": 0x80, **fields}, **attrs)
    assert entries.neighbours([message], 7) == []
    assert entries.forwards([message], 7) == []


def test_several_messages_come_as_one() -> None:
    messages = [Message(28, b"abc", 5), Message(24, b"", 1), Message(29, b"abcd", 0)]
    data = b"".join(rtnetlink.encode(message, number) for number, message in enumerate(messages))
    assert list(rtnetlink.decode(data)) == list(enumerate(messages))


@pytest.mark.parametrize(
    "data",
    [b"", bytes(15), bytes(64), rtnetlink.encode(Message(24, b"abcd"), 1)[:-1], b"\xff" * 64],
    ids=["nothing", "short", "no length", "cut off", "too long"],
)
def test_what_is_cut_off_or_lies_about_its_length_ends(data: bytes) -> None:
    assert list(rtnetlink.decode(data)) == []


def test_attributes_that_lie_about_their_length_end() -> None:
    good = rtnetlink.attribute(1, b"abc") + rtnetlink.attribute(2, b"de")
    assert rtnetlink.attributes(b"head" + good, 4) == {1: b"abc", 2: b"de"}
    assert rtnetlink.attributes(b"head" + good + bytes(4), 4) == {1: b"abc", 2: b"de"}
    assert rtnetlink.attributes(b"head" + good + b"\x01", 4) == {1: b"abc", 2: b"de"}
