"""The format of rtnetlink messages: a header, a fixed structure, attributes.  Pure.

Source: netlink(7), rtnetlink(7), include/uapi/linux/netlink.h, rtnetlink.h and neighbour.h of the kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

RTM_GETLINK, RTM_GETADDR = 18, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWRULE, RTM_GETRULE = 32, 34

NLMSG_ERROR, NLMSG_DONE = 2, 3
#: In the number of an attribute that consists of attributes; older attributes lack it.
NLA_F_NESTED = 0x8000
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800

# struct nlmsghdr { __u32 nlmsg_len; __u16 nlmsg_type, nlmsg_flags; __u32 nlmsg_seq, nlmsg_pid; }; messages and
# attributes begin at multiples of 4.
_HEADER = struct.Struct("=IHHII")
# struct rtattr { unsigned short rta_len, rta_type; }
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")


class Message(NamedTuple):
    """The part of a message after the header: a fixed structure, and attributes."""

    message_type: int
    body: bytes
    flags: int = 0


def encode(message: Message, sequence: int) -> bytes:
    """Return a message with its header, padded so that another one may follow."""
    length = _HEADER.size + len(message.body)
    return _HEADER.pack(length, message.message_type, message.flags, sequence, 0) + message.body + bytes(-length % 4)


def decode(data: bytes) -> Iterator[tuple[int, Message]]:
    """Return the messages in ``data`` with their sequence numbers, up to the first truncated or malformed one."""
    start = 0
    while start + _HEADER.size <= len(data):
        length, message_type, flags, sequence, _ = _HEADER.unpack_from(data, start)
        if not _HEADER.size <= length <= len(data) - start:
            return
        yield sequence, Message(message_type, data[start + _HEADER.size : start + length], flags)
        start += length + 3 & ~3


def error_of(message: Message) -> int:
    """Return the errno of an error or of the end of a listing; 0 for success, and for any other message."""
    if message.message_type not in (NLMSG_ERROR, NLMSG_DONE) or len(message.body) < _ERROR.size:
        return 0
    value: int = _ERROR.unpack_from(message.body)[0]
    return max(0, -value)


def attribute(number: int, value: bytes) -> bytes:
    """Return an attribute, padded so that another one may follow."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), number) + value + bytes(-len(value) % 4)


def attributes(body: bytes, start: int) -> dict[int, bytes]:
    """Return the attributes after a structure of ``start`` bytes, by number; the last one of a number counts."""
    found = {}
    while start + _ATTRIBUTE.size <= len(body):
        length, number = _ATTRIBUTE.unpack_from(body, start)
        if length < _ATTRIBUTE.size:
            break
        found[number] = body[start + _ATTRIBUTE.size : start + length]
        start += length + 3 & ~3
    return found


def repeated(body: bytes, number: int) -> Iterator[bytes]:
    """Return the values of all attributes of one number in a list of attributes."""
    while len(body) >= _ATTRIBUTE.size:
        length, its_number = _ATTRIBUTE.unpack_from(body)
        if length < _ATTRIBUTE.size:
            return
        if its_number == number:
            yield body[_ATTRIBUTE.size : length]
        body = body[length + 3 & ~3 :]
