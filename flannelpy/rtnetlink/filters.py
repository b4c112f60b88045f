"""Filters of tc(8) with a BPF program, as the kernel lists them.  Pure.

Source: tc-bpf(8), include/uapi/linux/pkt_sched.h and pkt_cls.h of the kernel.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from flannelpy.rtnetlink.messages import NLA_F_NESTED, Message, attributes

_RTM_GETQDISC, _RTM_NEWTFILTER, _RTM_GETTFILTER = 38, 44, 46
# struct tcmsg { unsigned char tcm_family; …pad; int tcm_ifindex; __u32 tcm_handle, tcm_parent, tcm_info; }
_TCMSG = struct.Struct("=B3xiIII")
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_BPF_NAME, _TCA_BPF_ID = 7, 11
_NUMBER = struct.Struct("=I")


class Hook(enum.IntEnum):
    """Where the qdisc clsact has filters: TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS or TC_H_MIN_EGRESS)."""

    INGRESS = 0xFFFFFFF2
    EGRESS = 0xFFFFFFF3


class Filter(NamedTuple):
    """A filter.  ``name`` and ``program_id`` are empty and 0 if its kind is not ``bpf``.

    ``protocol``: of the packets that it gets, as in an Ethernet header, or ETH_P_ALL.
    """

    link_index: int
    hook: Hook
    priority: int
    handle: int
    kind: str
    name: str
    program_id: int
    protocol: int


#: The request that lists the queueing disciplines of all interfaces.
ALL_QDISCS = Message(_RTM_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0))


def filters_of(link_index: int, hook: Hook) -> Message:
    """Return the request for the filters of one interface at one hook."""
    return Message(_RTM_GETTFILTER, _TCMSG.pack(0, link_index, 0, hook, 0))


def filter_of(message: Message, hook: Hook) -> Filter | None:
    """Return the filter that a message of a listing describes; None for the head of a group of filters."""
    if message.message_type != _RTM_NEWTFILTER:
        return None
    _, link_index, handle, _, info = _TCMSG.unpack_from(message.body)
    has = attributes(message.body, _TCMSG.size)
    options = attributes(has.get(_TCA_OPTIONS, has.get(_TCA_OPTIONS | NLA_F_NESTED, b"")), 0)
    kind, name = _text(has.get(_TCA_KIND, b"")), _text(options.get(_TCA_BPF_NAME, b""))
    if not handle:
        return None
    program_id = _NUMBER.unpack(options[_TCA_BPF_ID])[0] if kind == "bpf" and _TCA_BPF_ID in options else 0
    protocol = int.from_bytes(struct.pack("=H", info & 0xFFFF), "big")
    return Filter(link_index, hook, info >> 16, handle, kind, name if kind == "bpf" else "", program_id, protocol)


def filtering_link(message: Message) -> int:
    """Return the interface of a queueing discipline that may have filters at a hook; 0 for any other discipline."""
    kind = _text(attributes(message.body, _TCMSG.size).get(_TCA_KIND, b""))
    return int(_TCMSG.unpack_from(message.body)[1]) if kind in ("clsact", "ingress") else 0


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="surrogateescape")
