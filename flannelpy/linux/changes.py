"""Rings whenever something about this machine's network is no longer as it was.

Only the head of each message is looked at: who wants to know what has changed asks, and a thousand changes are one.

Source: netlink(7), rtnetlink(7).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Iterator

_RTMGRP_LINK = 0x1
_RTMGRP_NEIGH = 0x4
_RTMGRP_IPV4_IFADDR = 0x10
_RTMGRP_IPV4_ROUTE = 0x40
_RTMGRP_IPV4_RULE = 0x80
_GROUPS = _RTMGRP_LINK | _RTMGRP_NEIGH | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV4_ROUTE | _RTMGRP_IPV4_RULE

# struct nlmsghdr { __u32 nlmsg_len; __u16 nlmsg_type; … } is 16 bytes; messages begin at multiples of 4.
_HEAD = struct.Struct("=IH10x")
_RTM_NEWROUTE, _RTM_DELROUTE = 24, 25
_RTM_NEWNEIGH, _RTM_GETNEIGH = 28, 30
# struct rtmsg { unsigned char rtm_family, rtm_dst_len, rtm_src_len, rtm_tos, rtm_table; … }
_TABLE = _HEAD.size + 4
_RT_TABLE_LOCAL = 255


async def changes() -> AsyncIterator[None]:
    """For each time that links, addresses, routes or rules changed, or neighbours went.

    Raises OSError when there was more than the kernel keeps for us.
    """
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE) as sock:
        sock.bind((0, _GROUPS))
        while True:
            if any(_matters(message) for message in _messages(await loop.sock_recv(sock, 65536))):
                yield


def _messages(data: bytes) -> Iterator[bytes]:
    while len(data) >= _HEAD.size:
        length, _ = _HEAD.unpack_from(data)
        yield data[:length]
        data = data[max(length + 3 & ~3, _HEAD.size) :]


def _matters(message: bytes) -> bool:
    """Neighbours come and change all the time, and local routes with addresses."""
    _, message_type = _HEAD.unpack_from(message)
    if message_type in (_RTM_NEWROUTE, _RTM_DELROUTE):
        return message[_TABLE] != _RT_TABLE_LOCAL
    return message_type not in (_RTM_NEWNEIGH, _RTM_GETNEIGH)
