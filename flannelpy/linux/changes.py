"""Rings whenever something about this machine's network is no longer as it was.

Who wants to know what has changed asks: a thousand changes are one.

Source: rtnetlink(7).
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator

from flannelpy.linux import rtnetlink
from flannelpy.linux.rtnetlink import RTM_DELROUTE, RTM_GETNEIGH, RTM_NEWNEIGH, RTM_NEWROUTE, Message

_RTMGRP_LINK = 0x1
_RTMGRP_NEIGH = 0x4
_RTMGRP_IPV4_IFADDR = 0x10
_RTMGRP_IPV4_ROUTE = 0x40
_RTMGRP_IPV4_RULE = 0x80
_GROUPS = _RTMGRP_LINK | _RTMGRP_NEIGH | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV4_ROUTE | _RTMGRP_IPV4_RULE

# struct rtmsg { unsigned char rtm_family, rtm_dst_len, rtm_src_len, rtm_tos, rtm_table; … }
_TABLE = 4
_RT_TABLE_LOCAL = 255
# struct ndmsg { …8 bytes; __u16 ndm_state; … }, of which all that matters is in the byte that has this bit.
_STATE = 8 if sys.byteorder == "little" else 9
_NUD_PERMANENT = 0x80


async def changes() -> AsyncIterator[None]:
    """For each time that links, addresses, routes, rules or permanent neighbours changed, or others went.

    Raises OSError when there was more than the kernel keeps for us.
    """
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE) as sock:
        sock.bind((0, _GROUPS))
        while True:
            data = await loop.sock_recv(sock, 65536)
            if any(matters(message) for _, message in rtnetlink.decode(data)):
                yield


def matters(message: Message) -> bool:
    """Neighbours that ARP finds come and change all the time, and local routes with addresses."""
    if message.message_type in (RTM_NEWROUTE, RTM_DELROUTE):
        return message.body[_TABLE] != _RT_TABLE_LOCAL
    if message.message_type == RTM_NEWNEIGH:
        return bool(message.body[_STATE] & _NUD_PERMANENT)
    return message.message_type != RTM_GETNEIGH
