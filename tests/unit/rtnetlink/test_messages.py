"""Messages by struct, with pyroute2 as the oracle that knows none of our code."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from pyroute2 import IPRoute
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from flannelpy.linux.netlink.client import Netlink
from flannelpy.rtnetlink import entries, links, messages, routes
from flannelpy.rtnetlink.entries import Entry, FdbEntry, GatewayRoute, Neighbour, Route
from flannelpy.rtnetlink.links import Address, Link, Vxlan
from flannelpy.rtnetlink.messages import Message, decode, encode
from flannelpy.rtnetlink.routes import RouteAnswer, RouteFilter, RouteQuery

MAC = "2e:40:72:2d:6b:e3"
HOST = IPv4Address("172.17.8.102")
SUBNET = IPv4Network("11.0.49.0/24")
ENTRIES = [
    GatewayRoute(SUBNET, HOST, 2),
    GatewayRoute(SUBNET, SUBNET.network_address, 70000, is_onlink=True),
    GatewayRoute(IPv4Network("0.0.0.0/0"), HOST, 2),
    Neighbour(SUBNET.network_address, MAC, 7),
    FdbEntry(MAC, HOST, 7),
]


def understood(message: Message) -> Any:
    """As pyroute2 reads it."""
    data = encode(message, 42)
    theirs = (rtmsg if message.message_type < messages.RTM_NEWNEIGH else ndmsg)(data)
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
    [(_, message)] = decode(bytes(theirs.data))
    return message


def route(**attrs: object) -> Message:
    fields = {"family": 2, "dst_len": 24, "table": 254, "proto": 3, "type": 1}
    return written(rtmsg, messages.RTM_NEWROUTE, fields, **{"RTA_DST": "11.0.49.0", **attrs})


def delete_request(entry: Entry) -> Message:
    return entries.delete_request(entries.identity(entry))


@pytest.mark.parametrize(("request_of", "types"), [(entries.add_request, (24, 28)), (delete_request, (25, 29))])
def test_a_gateway_is_what_pyroute2_reads(request_of: Any, types: tuple[int, int]) -> None:
    theirs = understood(request_of(ENTRIES[1]))
    assert theirs["header"]["type"] == types[0]
    assert (theirs["family"], theirs["dst_len"], theirs["table"], theirs["proto"]) == (socket.AF_INET, 24, 254, 85)
    assert (theirs["scope"], theirs["type"], theirs["flags"]) == (0, 1, 4)
    assert theirs.get("dst") == theirs.get("gateway") == "11.0.49.0"
    assert theirs.get("oif") == 70000


def test_a_neighbour_is_what_pyroute2_reads() -> None:
    theirs = understood(entries.add_request(Neighbour(SUBNET.network_address, MAC, 7)))
    assert (theirs["family"], theirs["ifindex"], theirs["state"], theirs["flags"]) == (socket.AF_INET, 7, 0x80, 0)
    assert (theirs.get("dst"), theirs.get("lladdr")) == ("11.0.49.0", MAC)


def test_an_fdb_entry_is_what_pyroute2_reads() -> None:
    theirs = understood(entries.add_request(FdbEntry(MAC, HOST, 7)))
    assert (theirs["family"], theirs["ifindex"], theirs["state"], theirs["flags"]) == (7, 7, 0x80, 2)
    assert (theirs.get("dst"), theirs.get("lladdr")) == (str(HOST), MAC)


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_an_entry_reads_back_equal(entry: Entry) -> None:
    message = entries.add_request(entry)
    if isinstance(entry, GatewayRoute):
        found = [entries.identity_of(routes.parse(message))]
    else:
        listed: list[Entry] = [*entries.neighbours([message], 7), *entries.fdb_entries([message], 7)]
        found = list(map(entries.identity, listed))
    assert found == [entries.identity(entry)]
    assert entries.describe(found[0]) == str(entry)


def is_ours(message: Message, link_index: int = 0) -> bool:
    return entries.is_owned(routes.parse(message), IPv4Network("11.0.0.0/16"), link_index)


@pytest.mark.parametrize(
    ("message", "ways"),
    [
        (route(RTA_GATEWAY="172.17.8.102", RTA_OIF=2), [Route(SUBNET, 2, 0)]),
        (route(RTA_OIF=2), [Route(SUBNET, 2, 0)]),
        (route(RTA_GATEWAY="172.17.8.102", RTA_OIF=2, RTA_PRIORITY=100), [Route(SUBNET, 2, 100)]),
        (route(), []),  # unreachable
    ],
)
def test_routes_of_all_kinds(message: Message, ways: list[Route]) -> None:
    assert entries.routes([message]) == ways
    assert not is_ours(message)
    assert is_ours(message, 2) == bool(ways), "what leads out of our own device is ours"


def test_a_route_with_several_ways_out() -> None:
    hops = [{"oif": index, "attrs": [["RTA_GATEWAY", f"172.17.8.{index}"]]} for index in (2, 3)]
    message = route(RTA_MULTIPATH=hops)
    assert entries.routes([message]) == [Route(SUBNET, 2, 0), Route(SUBNET, 3, 0)]
    assert not is_ours(message, 2)
    text = routes.parse(message).text(lambda index: f"eth{index}")
    hop = "nexthop via 172.17.8.{0} dev eth{0}"
    assert text == f"{SUBNET} proto boot {hop.format(2)} {hop.format(3)}"


@pytest.mark.parametrize(
    ("fields", "attrs", "is_owned"),
    [
        ({"proto": 85}, {}, True),
        ({"proto": 85}, {"RTA_PRIORITY": 5}, True),
        ({"proto": 85, "tos": 0x10}, {}, True),
        ({"proto": 85, "dst_len": 16}, {"RTA_DST": "11.0.0.0"}, True),
        ({"proto": 85, "dst_len": 16}, {"RTA_DST": "11.1.0.0"}, False),
        ({"proto": 85, "dst_len": 8}, {"RTA_DST": "11.0.0.0"}, False),
        ({"proto": 85, "dst_len": 0}, {}, False),
        ({"proto": 3}, {}, False),
        ({"proto": 186}, {}, False),
    ],
)
def test_routes_are_ours_by_their_mark_and_destination(
    fields: dict[str, int], attrs: dict[str, object], is_owned: bool
) -> None:
    whole = {"family": 2, "dst_len": 24, "table": 254, "type": 1, **fields}
    common = {"RTA_DST": "11.0.49.0", "RTA_GATEWAY": "172.17.8.102", "RTA_OIF": 2}
    message = written(rtmsg, 24, whole, **{**common, **attrs})
    assert is_ours(message) == is_owned
    # What Gateway cannot describe is removed by what the kernel listed.
    wanted = entries.identity(GatewayRoute(SUBNET, HOST, 2, protocol=whole["proto"]))
    is_simple = not attrs and "tos" not in fields and whole["dst_len"] == 24
    assert (entries.identity_of(routes.parse(message)) == wanted) == is_simple


@pytest.mark.parametrize(
    ("fields", "attrs", "text"),
    [
        ({"type": 6, "proto": 4}, {}, "blackhole 11.0.49.0/24 proto static"),
        ({"type": 9, "table": 0}, {"RTA_TABLE": 777}, "throw 11.0.49.0/24 proto boot table 777"),
        ({"tos": 0x10}, {"RTA_OIF": 2, "RTA_PRIORITY": 5}, "11.0.49.0/24 tos 0x10 dev eth2 proto boot metric 5"),
        ({"scope": 253, "proto": 16}, {"RTA_OIF": 3}, "11.0.49.0/24 dev eth3 proto dhcp scope link"),
        ({"proto": 77, "flags": 4}, {"RTA_GATEWAY": "11.0.49.0", "RTA_OIF": 3},
         "11.0.49.0/24 via 11.0.49.0 dev eth3 proto 77 onlink"),
    ],
)  # fmt: skip
def test_a_route_is_shown_as_ip_route_del_takes_it(fields: dict[str, int], attrs: dict[str, object], text: str) -> None:
    whole = {"family": 2, "dst_len": 24, "table": 254, "proto": 3, "type": 1, **fields}
    message = written(rtmsg, 24, whole, RTA_DST="11.0.49.0", **attrs)
    assert routes.parse(message).text(lambda index: f"eth{index}") == text


def test_a_filter_is_what_pyroute2_reads() -> None:
    theirs = understood(RouteFilter(85, 70000, 254, 6).request())
    assert (theirs["header"]["type"], theirs["proto"], theirs["table"], theirs["type"]) == (26, 85, 254, 6)
    assert theirs.get("oif") == 70000
    theirs = understood(RouteFilter(table=1000).request())
    assert (theirs["table"], theirs.get("table")) == (0, 1000)


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        (RouteFilter(), 2),
        (RouteFilter(table=0), 3),
        (RouteFilter(85), 1),
        (RouteFilter(except_protocol=85), 1),
        (RouteFilter(link_index=7), 1),
        (RouteFilter(kind=6, table=0), 1),
    ],
)
def test_unwanted_entries_in_the_list_of_an_old_kernel_are_filtered(wanted: RouteFilter, count: int) -> None:
    listed = [
        route(RTA_OIF=2),
        entries.add_request(GatewayRoute(SUBNET, HOST, 7)),
        written(rtmsg, 24, {"family": 2, "dst_len": 24, "table": 100, "proto": 3, "type": 6}, RTA_DST="11.0.49.0"),
    ]
    assert len(wanted.select(listed)) == count


def test_a_query_is_what_pyroute2_reads() -> None:
    theirs = understood(RouteQuery(HOST, SUBNET[2], 3).request(matched=True))
    assert (theirs["header"]["type"], theirs["dst_len"], theirs["src_len"], theirs["flags"]) == (26, 32, 32, 0x3000)
    assert (theirs.get("dst"), theirs.get("src"), theirs.get("iif")) == (str(HOST), "11.0.49.2", 3)
    theirs = understood(RouteQuery(HOST).request(matched=False))
    assert (theirs["src_len"], theirs["flags"], theirs.get("src"), theirs.get("iif")) == (0, 0x1000, None, None)


def test_an_answer_is_a_route_or_an_errno() -> None:
    found = routes.answer(route(RTA_GATEWAY="172.17.8.102", RTA_OIF=2), matched=True)
    assert (found.errno, found.link_index, found.gateway, found.table) == (0, 2, HOST, 254)
    assert (found.protocol, found.prefix) == (3, SUBNET)
    assert routes.answer(route(RTA_OIF=2), matched=False).prefix is None
    refusal = Message(2, (-13).to_bytes(4, sys.byteorder, signed=True) + bytes(16))
    assert routes.answer(refusal, matched=True) == RouteAnswer(errno=13)


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
    assert entries.fdb_entries([message], 7) == []


def test_several_messages_come_as_one() -> None:
    messages = [Message(28, b"abc", 5), Message(24, b"", 1), Message(29, b"abcd", 0)]
    data = b"".join(encode(message, number) for number, message in enumerate(messages))
    assert list(decode(data)) == list(enumerate(messages))


@pytest.mark.parametrize(
    "data",
    [b"", bytes(15), bytes(64), encode(Message(24, b"abcd"), 1)[:-1], b"\xff" * 64],
    ids=["nothing", "short", "no length", "cut off", "too long"],
)
def test_a_truncated_message_or_a_wrong_length_ends_the_list(data: bytes) -> None:
    assert list(decode(data)) == []


def test_an_attribute_with_a_wrong_length_ends_the_list() -> None:
    good = messages.attribute(1, b"abc") + messages.attribute(2, b"de")
    assert messages.attributes(b"head" + good, 4) == {1: b"abc", 2: b"de"}
    assert messages.attributes(b"head" + good + bytes(4), 4) == {1: b"abc", 2: b"de"}
    assert messages.attributes(b"head" + good + b"\x01", 4) == {1: b"abc", 2: b"de"}


async def listed() -> tuple[list[Link], list[Link | None], list[Address]]:
    async with Netlink() as netlink:
        links = await netlink.links()
        return links, [await netlink.link(one.name) for one in links], await netlink.addresses()


def test_links_and_addresses_are_those_that_pyroute2_lists() -> None:
    """Of the machine that the tests run on."""
    links, one_by_one, addresses = asyncio.run(listed())
    with IPRoute() as theirs:
        expected = [
            (each["index"], each.get("ifname"), each.get("mtu"), each.get("address") or "", each["flags"] & 1)
            for each in theirs.get_links()
        ]
        expected_addresses = [
            (each["index"], each.get("local"), each["prefixlen"]) for each in theirs.get_addr(family=socket.AF_INET)
        ]
    assert [(each.index, each.name, each.mtu, each.mac, each.is_up) for each in links] == expected
    assert one_by_one == links
    assert [(each.link_index, str(each.address), each.prefix_len) for each in addresses] == expected_addresses


def test_a_missing_link_is_none_and_has_dropped_nothing() -> None:
    async def found() -> tuple[Link | None, int]:
        async with Netlink() as netlink:
            return await netlink.link("flannel.9999999"), await netlink.transmit_drops("flannel.9999999")

    assert asyncio.run(found()) == (None, 0)


def test_the_counter_of_dropped_packets_is_the_one_that_pyroute2_reads() -> None:
    counters = dict.fromkeys(("rx_packets", "tx_packets", "rx_bytes", "tx_bytes", "rx_errors", "tx_errors"), 5)
    stats = {**counters, "rx_dropped": 6, "tx_dropped": (1 << 40) + 7, "multicast": 8}
    message = written(ifinfmsg, 16, {"index": 7}, IFLA_IFNAME="flannel0", IFLA_STATS64=stats)
    assert links.transmit_drops(message) == (1 << 40) + 7


def test_counters_are_read_from_the_kernel() -> None:
    """The loopback interface drops nothing."""

    async def found() -> int:
        async with Netlink() as netlink:
            return await netlink.transmit_drops("lo")

    assert asyncio.run(found()) == 0


def test_reading_a_counter_leaves_no_garbage() -> None:
    """Clients of the control socket have it read each second, and the daemon collects garbage by the clock."""

    async def read() -> None:
        async with Netlink() as netlink:
            await netlink.transmit_drops("lo")

    async def garbage_of(times: int) -> int:
        await read()
        gc.collect()
        for _ in range(times):
            await read()
        return gc.collect()

    gc.disable()
    try:
        # The least of three: threads of other tests leave garbage, too.
        assert min(asyncio.run(garbage_of(50)) for _ in range(3)) < 50
    finally:
        gc.enable()


def test_a_vxlan_device_and_its_alias() -> None:
    data = [["IFLA_VXLAN_ID", 42], ["IFLA_VXLAN_LOCAL", "172.17.8.101"], ["IFLA_VXLAN_LINK", 2]]
    data += [["IFLA_VXLAN_PORT", 8472], ["IFLA_VXLAN_LEARNING", 1], ["IFLA_VXLAN_UDP_CSUM", 1]]
    info = {"attrs": [["IFLA_INFO_KIND", "vxlan"], ["IFLA_INFO_DATA", {"attrs": data}]]}
    attrs = {"IFLA_IFNAME": "flannel.42", "IFLA_MTU": 1450, "IFLA_CARRIER": 1, "IFLA_ADDRESS": MAC}
    message = written(ifinfmsg, 16, {"index": 7, "flags": 1}, **attrs, IFLA_IFALIAS="one of ours", IFLA_LINKINFO=info)
    vxlan = Vxlan(42, 8472, IPv4Address("172.17.8.101"), 2, learning=True)
    assert links.link(message) == Link(7, "flannel.42", 1450, "vxlan", True, True, MAC, vxlan, "one of ours")


@pytest.mark.parametrize(
    ("attrs", "address", "peer"),
    [
        ({"IFA_LOCAL": "10.0.0.1", "IFA_ADDRESS": "10.0.0.1"}, "10.0.0.1", None),
        ({"IFA_LOCAL": "10.0.0.1", "IFA_ADDRESS": "10.9.0.1"}, "10.0.0.1", "10.9.0.1"),
        ({"IFA_ADDRESS": "10.0.0.1"}, "10.0.0.1", None),
    ],
)
def test_an_address_and_its_peer(attrs: dict[str, str], address: str, peer: str | None) -> None:
    message = written(ifaddrmsg, 20, {"family": 2, "prefixlen": 24, "index": 7}, **attrs)
    found = links.address(message)
    assert found == Address(7, IPv4Address(address), 24, IPv4Address(peer) if peer else None)
