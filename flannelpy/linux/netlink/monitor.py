"""Reports that the kernel has changed something that may affect a network of ours.

A report carries no details, so that bursts coalesce; the consumer reads the state again.
Source: rtnetlink(7).
"""

from __future__ import annotations

import asyncio
import itertools
import math
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from ipaddress import IPv4Network
from typing import Never

from flannelpy.marks import ROUTE_PROTOCOL
from flannelpy.rtnetlink import messages
from flannelpy.rtnetlink.messages import RTM_DELROUTE, RTM_GETNEIGH, RTM_NEWNEIGH, RTM_NEWROUTE, Message
from flannelpy.tasks import run_together

_RTMGRP_LINK = 0x1
_RTMGRP_NEIGH = 0x4
_RTMGRP_IPV4_IFADDR = 0x10
_RTMGRP_IPV4_ROUTE = 0x40
_RTMGRP_IPV4_RULE = 0x80
_RTMGRP_IPV4_NETCONF = 1 << 23  # RTNLGRP_IPV4_NETCONF: forwarding of a device or of the host
_GROUPS = (
    _RTMGRP_LINK | _RTMGRP_NEIGH | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV4_ROUTE | _RTMGRP_IPV4_RULE | _RTMGRP_IPV4_NETCONF
)

# struct rtmsg { unsigned char rtm_family, rtm_dst_len, rtm_src_len, rtm_tos, rtm_table, rtm_protocol; …6 bytes }
_RTMSG_SIZE = 12
_PREFIX_LEN, _TABLE, _PROTOCOL = 1, 4, 5
_RTA_DST = 1
_RT_TABLE_LOCAL = 255
# struct ndmsg { …8 bytes; __u16 ndm_state; … }, of which only the byte with this bit is read.
_STATE = 8 if sys.byteorder == "little" else 9
_NUD_PERMANENT = 0x80


#: The network for which every change of routes is relevant.
ALL_ROUTES = IPv4Network("0.0.0.0/0")

# A notification takes some microseconds; after so many the event loop runs other tasks.
_MANY = 30
# Between two checks and after an overrun, so that a program that changes routes all the time costs little.
_PAUSE_SECONDS = 0.5


async def check_whenever_changed(
    check: Callable[[], Awaitable[None]], network: IPv4Network, longest_wait: Callable[[], float] = lambda: math.inf
) -> None:
    """Call ``check`` whenever the kernel reports a change that may affect ``network``, until cancelled.

    ``longest_wait`` returns after how many seconds the next check runs even without a change.  A check also runs at the
    start, for changes from before the socket listened, and after an overrun.
    """
    changed = asyncio.Event()
    await run_together(_set_on_change(changed, network), _check_whenever(changed, check, longest_wait))


async def _check_whenever(
    changed: asyncio.Event, check: Callable[[], Awaitable[None]], longest_wait: Callable[[], float]
) -> Never:
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_wait()):
                await changed.wait()
        changed.clear()
        await check()
        await asyncio.sleep(_PAUSE_SECONDS)


async def _set_on_change(changed: asyncio.Event, network: IPv4Network) -> Never:
    while True:
        changed.set()
        with suppress(OSError):  # overrun: more changes than the socket buffer holds
            async for _ in notifications(network):
                changed.set()
        await asyncio.sleep(_PAUSE_SECONDS)


async def notifications(network: IPv4Network) -> AsyncIterator[None]:
    """Yield once for each change of links, forwarding, addresses, rules, permanent neighbours or relevant routes.

    Raises OSError (ENOBUFS) after more changes than the socket buffer holds.
    """
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE) as sock:
        sock.bind((0, _GROUPS))
        for count in itertools.count(1):
            data = await loop.sock_recv(sock, 65536)
            if any(is_relevant(message, network) for _, message in messages.decode(data)):
                yield
            if count % _MANY == 0:
                await asyncio.sleep(0)


def is_relevant(message: Message, network: IPv4Network) -> bool:
    """Return whether a change may affect how packets reach ``network``.

    Not relevant are neighbours that ARP finds, which change all the time, and local routes, which change with the
    addresses.  Other routes are relevant if they have our mark or overlap the network, as a default route does.
    """
    if message.message_type in (RTM_NEWROUTE, RTM_DELROUTE):
        return message.body[_TABLE] != _RT_TABLE_LOCAL and _concerns(message.body, network)
    if message.message_type == RTM_NEWNEIGH:
        return bool(message.body[_STATE] & _NUD_PERMANENT)
    return message.message_type != RTM_GETNEIGH


def _concerns(body: bytes, network: IPv4Network) -> bool:
    if body[_PROTOCOL] == ROUTE_PROTOCOL:
        return True
    address = int.from_bytes(messages.attributes(body, _RTMSG_SIZE).get(_RTA_DST, b""), "big")
    common = min(body[_PREFIX_LEN], network.prefixlen)
    return (address ^ int(network.network_address)) >> (32 - common) == 0
