"""Links, addresses, routes, rules and what leads to other hosts on this machine.

What a check reads goes through our own messages, since pyroute2 takes milliseconds; it makes all other requests.

It takes a tenth of a second to import, so it is imported when the first socket is opened.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Container, Iterable, Sequence
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from socket import AF_INET, if_indextoname
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from flannelpy.errors import HostError
from flannelpy.linux.netlink.socket import InterruptedListing, RtnetlinkSocket
from flannelpy.marks import ROUTE_PROTOCOL
from flannelpy.rtnetlink import entries, links, routes, rules
from flannelpy.rtnetlink.entries import Entry, GatewayRoute, Identity, ProhibitRule, Route
from flannelpy.rtnetlink.links import Address, Link, Vxlan
from flannelpy.rtnetlink.messages import Message, error_of
from flannelpy.rtnetlink.routes import KernelRoute, RouteAnswer, RouteFilter, RouteQuery
from flannelpy.rtnetlink.rules import PolicyRule

if TYPE_CHECKING:
    from pyroute2 import AsyncIPRoute

T = TypeVar("T")

_LISTINGS = 5
_LISTING_PAUSE = 0.01  # doubled with each
# Source: linux/if.h, rtnetlink(7).
_RT_SCOPE_LINK = 253
_FR_ACT_PROHIBIT = 8
# Of our rules: behind the rule for the machine's own addresses, before that for the main table.
_RULE_PRIORITY = 8285
# What a rule between networks consists of; with any other selector it means something else.
_RULE_ATTRIBUTES = {"FRA_TABLE", "FRA_SUPPRESS_PREFIXLEN", "FRA_PROTOCOL", "FRA_PRIORITY", "FRA_SRC", "FRA_DST"}
# What a removal says of something that has gone by itself.
_GONE = (errno.ENOENT, errno.ESRCH, errno.ENODEV)


class RejectedEntry(NamedTuple):
    """An entry that the kernel did not take, and the errno."""

    entry: Entry
    errno: int

    def __str__(self) -> str:
        return f"the kernel refuses the {self.entry}: {os.strerror(self.errno)}"


class Taken(HostError):
    """Another device or program has what an interface needs: ``errno`` is EEXIST or EADDRINUSE."""

    def __init__(self, text: str, errno: int) -> None:
        super().__init__(text)
        self.errno = errno


class Netlink:
    """The kernel of this network namespace, inside ``async with``.  Source: rtnetlink(7)."""

    async def __aenter__(self) -> Self:
        from pyroute2 import AsyncIPRoute

        self._route: AsyncIPRoute = await AsyncIPRoute().__aenter__()
        self._socket = RtnetlinkSocket()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        await self._route.__aexit__(kind, error, trace)

    async def links(self) -> list[Link]:
        """All interfaces.  Raises HostError."""
        return await self._list(links.ALL_LINKS, links.link)

    async def link(self, name: str) -> Link | None:
        """The interface of that name, if there is one.  Raises HostError."""
        [message] = await self._ask([links.link_named(name)])
        error = error_of(message)
        if error == errno.ENODEV:
            return None
        if error:
            raise HostError(f"cannot look at {name}: {os.strerror(error)}")
        return links.link(message)

    async def remove_link(self, link: Link) -> None:
        """Remove the interface, and its addresses and routes with it; one that has gone is gone.  Raises HostError."""
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            await self._route.link("del", index=link.index)
        except NetlinkError as error:
            if error.code not in _GONE:
                raise HostError(f"cannot remove {link.name}: {error}") from error

    async def addresses(self) -> list[Address]:
        """All IPv4 addresses, each interface's in the kernel's order.  Raises HostError."""
        return await self._list(links.ALL_ADDRESSES, links.address)

    async def routes(self) -> list[Route]:
        """The main table's routes, one for each way out of a multipath route.  Raises HostError."""
        return entries.routes(await self._list(entries.ALL_ROUTES, lambda message: message))

    async def default_routes(self) -> list[Route]:
        """Those of ``routes`` to everything, the lowest metric first.  Raises HostError."""
        found = await self._list(entries.ALL_ROUTES, lambda message: message if entries.is_default(message) else None)
        routes = entries.routes([message for message in found if message])
        return sorted(routes, key=lambda route: route.metric)

    async def lookups(self, queries: Sequence[RouteQuery], *, matched: bool = False) -> list[RouteAnswer]:
        """Which route the kernel would use for each packet.  Raises HostError.

        With ``matched`` the route is told as it stands in its table, with protocol and prefix, but of several next hops
        none is.  A few microseconds each.
        """
        messages = await self._ask([query.request(matched=matched) for query in queries])
        return [routes.answer(message, matched=matched) for message in messages]

    async def routes_of(self, wanted: RouteFilter) -> AsyncIterator[list[KernelRoute]]:
        """The routes that the filter lets through, chunk by chunk; to be read to its end.  Raises HostError.

        While routes change, one may be missing or come twice.
        """
        async for chunk in self._listing(wanted.request()):
            yield wanted.select(chunk)

    async def marked_routes(self) -> list[KernelRoute]:
        """The main table's routes with our mark, to whatever destination.  Raises HostError."""
        return [route async for chunk in self.routes_of(RouteFilter(ROUTE_PROTOCOL)) for route in chunk]

    async def remove_routes(self, unwanted: Sequence[KernelRoute]) -> None:
        """Remove exactly these routes; one that has gone already is gone.  Raises HostError."""
        await self.remove(list(map(entries.identity_of, unwanted)))

    async def routes_to(self, destinations: Container[IPv4Network]) -> dict[IPv4Network, list[KernelRoute]]:
        """The main table's routes to exactly these destinations, in the kernel's order.  Raises HostError."""
        found: dict[IPv4Network, list[KernelRoute]] = {}
        async for chunk in self.routes_of(RouteFilter()):
            for route in chunk:
                if route.destination in destinations:
                    found.setdefault(route.destination, []).append(route)
        return found

    async def owned(self, network: IPv4Network, link_index: int) -> AsyncIterator[list[Identity]]:
        """What is ours of what leads into ``network``, chunk by chunk.

        The device with ``link_index`` is our own, if it is not 0.  Raises HostError.
        """
        filters = [RouteFilter(ROUTE_PROTOCOL)]
        if link_index:
            filters.append(RouteFilter(link_index=link_index, except_protocol=ROUTE_PROTOCOL))
        for wanted in filters:
            async for chunk in self.routes_of(wanted):
                yield [entries.identity_of(route) for route in chunk if entries.is_owned(route, network, link_index)]
        if link_index:
            async for messages in self._listing(entries.all_neighbours(link_index)):
                yield [entries.identity(one) for one in entries.neighbours(messages, link_index)]
            async for messages in self._listing(entries.all_fdb_entries(link_index)):
                yield [entries.identity(one) for one in entries.fdb_entries(messages, link_index)]

    async def rules(self) -> list[PolicyRule]:
        """The policy rules in the order in which the kernel looks at them.  Raises HostError."""
        found = [rules.parse(one) async for chunk in self._listing(rules.ALL_RULES) for one in chunk]
        return sorted(found, key=lambda rule: rule.priority)

    def name_of(self, link_index: int) -> str:
        """The name of the interface with that index; one that is gone has none."""
        try:
            return if_indextoname(link_index)
        except OSError:
            return f"if{link_index}"

    def is_forwarding(self, link_index: int) -> bool:
        """Whether the kernel forwards packets that come in by that interface."""
        try:
            text = Path(f"/proc/sys/net/ipv4/conf/{self.name_of(link_index)}/forwarding").read_text()
        except OSError:
            return False
        return text.strip() == "1"

    async def has_connected_route(self, network: IPv4Network, link_index: int) -> bool:
        """Whether the interface has the route to the network that it is on.  Raises HostError."""
        # The kernel adds it with the address.  One that we added stands among all that carry our mark.
        for protocol in (routes.PROTOCOL_KERNEL, ROUTE_PROTOCOL):
            is_found = False
            async for chunk in self.routes_of(RouteFilter(protocol, link_index)):
                is_found |= any(not route.gateway and route.destination == network for route in chunk)
            if is_found:
                return True
        return False

    async def add(self, wanted: Sequence[Entry]) -> list[int]:
        """Add these entries; the errno of each, 0 where it was done: EEXIST where another route is.

        Raises HostError.
        """
        return await self._change(map(entries.add_request, wanted))

    async def append(self, wanted: Sequence[GatewayRoute]) -> list[int]:
        """Add these routes behind those of their destinations; the errno of each.  Raises HostError."""
        return await self._change(map(entries.append_request, wanted))

    async def remove(self, unwanted: Sequence[Identity]) -> None:
        """Remove these entries; one that has gone already is gone.  Raises HostError."""
        errors = await self._change(map(entries.delete_request, unwanted))
        for one, error in zip(unwanted, errors, strict=True):
            if error and error not in _GONE:
                raise HostError(f"cannot remove the {entries.describe(one)}: {os.strerror(error)}")

    async def _change(self, requests: Iterable[Message]) -> list[int]:
        """The errno of each.  Raises HostError when the kernel cannot be asked."""
        try:
            return await self._socket.change(requests)
        except OSError as error:
            raise HostError(f"cannot change this machine's routes and neighbours: {error.strerror}") from error

    async def _ask(self, requests: Sequence[Message]) -> list[Message]:
        """The answer to each.  Raises HostError when the kernel cannot be asked."""
        try:
            return await self._socket.ask(requests)
        except OSError as error:
            raise HostError(f"cannot ask the kernel about this machine's network: {error.strerror}") from error

    async def _listing(self, request: Message) -> AsyncIterator[list[Message]]:
        """Chunk by chunk; while things change, one may be missing or come twice.  Raises HostError."""
        with suppress(InterruptedListing):
            try:
                async for chunk in self._socket.listing(request):
                    yield chunk
            except OSError as error:
                if error.errno not in _GONE:  # of a table or an interface that is not there
                    raise HostError(f"cannot list the state of this machine's network: {error.strerror}") from error

    async def _list(self, request: Message, parse: Callable[[Message], T]) -> list[T]:
        """All of an answer, asked for again when things changed under it.  Raises HostError.

        Where they change all the time, the last answer counts: one may be missing in it.
        """
        found: list[T] = []
        for number in range(_LISTINGS):
            if number:
                await asyncio.sleep(_LISTING_PAUSE * 2**number)
            found = []
            try:
                async for chunk in self._socket.listing(request):
                    found += map(parse, chunk)
                break
            except InterruptedListing:
                continue
            except OSError as error:
                raise HostError(f"cannot list the state of this machine's network: {error.strerror}") from error
        return found

    async def prohibit_rules(self) -> list[ProhibitRule]:
        """Our rules between networks.  Raises HostError."""
        rules = [_prohibit_rule(m) for m in await self._rules() if m.get("protocol") == ROUTE_PROTOCOL]
        return [rule for rule in rules if rule]

    async def unmarked_prohibit_rules(self) -> list[ProhibitRule]:
        """The rules of versions before the mark.  Raises HostError.

        The kernel removes the first rule that has all attributes of a request, so it cannot remove one of these alone
        if a foreign rule with the same networks stands before it: such a rule is left out.
        """
        first: dict[tuple[object, ...], Any] = {}
        for m in await self._rules():
            first.setdefault(tuple(map(m.get, ("action", "priority", "src", "src_len", "dst", "dst_len"))), m)
        rules = [_prohibit_rule(m) for m in first.values() if not m.get("protocol")]
        return [rule for rule in rules if rule]

    async def _rules(self) -> list[Any]:
        return await _all(partial(self._route.get_rules, family=AF_INET))

    async def add_rules(self, rules: Sequence[ProhibitRule]) -> None:
        """Add these rules.  Raises HostError."""
        await self._change_rules("add", rules, errno.EEXIST, ROUTE_PROTOCOL)

    async def remove_rules(self, rules: Sequence[ProhibitRule], protocol: int = ROUTE_PROTOCOL) -> None:
        """Remove these rules; with protocol 0 those of ``unmarked_prohibit_rules``.  Raises HostError."""
        await self._change_rules("del", rules, errno.ENOENT, protocol)

    async def _change_rules(self, command: str, rules: Sequence[ProhibitRule], harmless: int, protocol: int) -> None:
        from pyroute2.netlink.exceptions import NetlinkError

        for rule in rules:
            try:
                await self._route.rule(
                    command,
                    family=AF_INET,
                    priority=_RULE_PRIORITY,
                    action="prohibit",
                    src=str(rule.source),
                    dst=str(rule.destination),
                    protocol=protocol,
                )
            except NetlinkError as error:
                if error.code != harmless:
                    raise HostError(f"cannot {command} the {rule}: {error}") from error

    async def transmit_drops(self, name: str) -> int:
        """Packets that the device's queue had no room for; 0 when there is no such device."""
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            messages = await self._route.get_links(ifname=name)
            return sum([int(m.get("stats64")["tx_dropped"]) async for m in messages])
        except NetlinkError:
            return 0

    async def add_vxlan(self, name: str, settings: Vxlan, mac: str, mtu: int) -> None:
        """Make a VXLAN device.  Raises HostError, Taken when another one has its VNI and port."""
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            await self._route.link(
                "add",
                ifname=name,
                kind="vxlan",
                address=mac,
                mtu=mtu,
                vxlan_id=settings.vni,
                vxlan_port=settings.port,
                vxlan_local=str(settings.local),
                vxlan_link=settings.lower_index,
                vxlan_learning=int(settings.learning),
                **({"vxlan_gbp": True} if settings.gbp else {}),
            )
        except NetlinkError as error:
            what = f"cannot make the VXLAN device {name} (VNI {settings.vni}, port {settings.port})"
            if error.code in (errno.EEXIST, errno.EADDRINUSE):
                raise Taken(what, error.code) from error
            raise HostError(f"{what}: {error}; it needs CAP_NET_ADMIN, and a kernel with vxlan") from error

    async def set_mac(self, link: Link, mac: str) -> None:
        """Give the interface another MAC.  Raises HostError."""
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            await self._route.link("set", index=link.index, address=mac)
        except NetlinkError as error:
            raise HostError(f"cannot give {link.name} the MAC {mac}: {error}") from error

    async def set_alias(self, link: Link, alias: str) -> None:
        """Give the interface this alias.  Raises HostError."""
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            await self._route.link("set", index=link.index, ifalias=alias)
        except NetlinkError as error:
            raise HostError(f"cannot set the alias of {link.name}: {error}") from error

    async def remove_address(self, address: Address) -> None:
        """Take an address off its interface; nothing happens when it has gone already."""
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            await self._route.addr(
                "del",
                index=address.link_index,
                local=str(address.address),
                address=str(address.peer or address.address),
                prefixlen=address.prefix_len,
            )
        except NetlinkError as error:
            if error.code not in (*_GONE, errno.EADDRNOTAVAIL):
                raise HostError(f"cannot remove the address {address.address}: {error}") from error

    async def bring_up(self, name: str, address: IPv4Address, network: IPv4Network, mtu: int, queue: int) -> None:
        """Give the device its MTU, queue length (packets) and address, set it up, and see that it has its route.

        What is right already stays as it is.  The address has the network's prefix length, so the kernel adds the route
        to the network, unless another program has removed it.  Raises HostError, Taken when a program has the port of a
        VXLAN device.
        """
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            link = await self.link(name)
            if link is None:
                raise HostError(f"{name} is gone")
            index = link.index
            await self._route.link("set", index=index, mtu=mtu, txqlen=queue)
            if Address(index, address, network.prefixlen) not in await self.addresses():
                await self._route.addr("add", index=index, address=str(address), prefixlen=network.prefixlen)
            await self._route.link("set", index=index, state="up")
            if not await self.has_connected_route(network, index):
                # Where another program has one to the same network, ours stands behind it, as the kernel's own would.
                await self._route.route(
                    "append",
                    dst=str(network),
                    oif=index,
                    prefsrc=str(address),
                    proto=ROUTE_PROTOCOL,
                    scope=_RT_SCOPE_LINK,
                )
        except NetlinkError as error:
            if error.code == errno.EADDRINUSE:
                raise Taken(f"cannot set {name} up", error.code) from error
            raise HostError(
                f"cannot configure {name} with {address}/{network.prefixlen}, MTU {mtu}: {error}"
            ) from error


async def _all(listing: Callable[[], Awaitable[AsyncIterable[Any]]]) -> list[Any]:
    """All messages of an answer, asked for again when things changed under it.  Raises HostError."""
    from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError

    for patience in reversed(range(_LISTINGS)):
        try:
            return [message async for message in await listing()]
        except NetlinkError as error:
            if not (patience and isinstance(error, NetlinkDumpInterrupted)):
                raise HostError(f"cannot list this machine's links, addresses or rules: {error}") from error
            await asyncio.sleep(_LISTING_PAUSE * 2 ** (_LISTINGS - patience))
    raise AssertionError("the last try returns or raises")


def _prohibit_rule(message: Any) -> ProhibitRule | None:
    """The rule between networks that a message describes, if it is one."""
    names = {name for name, _ in message["attrs"]}
    if not {"FRA_SRC", "FRA_DST"} <= names <= _RULE_ATTRIBUTES or message["flags"] or message["tos"]:
        return None
    if message["action"] != _FR_ACT_PROHIBIT or message.get("priority") != _RULE_PRIORITY:
        return None
    try:
        return ProhibitRule(
            IPv4Network((message.get("src"), message["src_len"])),
            IPv4Network((message.get("dst"), message["dst_len"])),
        )
    except ValueError:  # host bits, which ours never have
        return None
