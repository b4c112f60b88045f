"""Filters as the kernel lists them."""

from __future__ import annotations

import struct

import pytest

from flannelpy.rtnetlink.filters import Filter, Hook, filter_of, filtering_link, filters_of
from flannelpy.rtnetlink.messages import NLA_F_NESTED, Message, attribute

NEW_FILTER = 44
OPTIONS = attribute(7, b"flannelpy /run/x.env\0") + attribute(11, struct.pack("=I", 112))


def message(kind: bytes, options: bytes, handle: int = 0x10001, nested: int = 0) -> Message:
    header = struct.pack("=B3xiIII", 0, 3, handle, Hook.INGRESS, 0xFFF0 << 16 | 0x0008)
    return Message(NEW_FILTER, header + attribute(1, kind + b"\0") + attribute(2 | nested, options))


@pytest.mark.parametrize("nested", [0, NLA_F_NESTED])
def test_a_filter_with_a_program(nested: int) -> None:
    expected = Filter(3, Hook.INGRESS, 0xFFF0, 0x10001, "bpf", "flannelpy /run/x.env", 112, 0x0800)
    assert filter_of(message(b"bpf", OPTIONS, nested=nested), Hook.INGRESS) == expected


def test_a_filter_of_another_kind_has_no_name() -> None:
    """Its attributes of the same numbers mean something else."""
    expected = Filter(3, Hook.INGRESS, 0xFFF0, 0x10001, "u32", "", 0, 0x0800)
    assert filter_of(message(b"u32", OPTIONS), Hook.INGRESS) == expected


def test_the_head_of_a_group_is_no_filter() -> None:
    assert filter_of(message(b"bpf", b"", handle=0), Hook.INGRESS) is None


def test_another_message_is_no_filter() -> None:
    assert filter_of(Message(2, bytes(4)), Hook.EGRESS) is None


def test_the_request_names_interface_and_hook() -> None:
    assert filters_of(3, Hook.EGRESS) == Message(46, struct.pack("=B3xiIII", 0, 3, 0, 0xFFFFFFF3, 0))


@pytest.mark.parametrize(("kind", "link"), [(b"clsact", 7), (b"ingress", 7), (b"noqueue", 0)])
def test_links_with_filters(kind: bytes, link: int) -> None:
    header = struct.pack("=B3xiIII", 0, 7, 0xFFFF0000, 0xFFFFFFF1, 0)
    assert filtering_link(Message(36, header + attribute(1, kind + b"\0"))) == link
