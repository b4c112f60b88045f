"""What the kernel lists and answers about links, addresses, routes, rules and entries that lead to peers.

Source: rtnetlink(7).
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Container, Sequence
from contextlib import suppress
from ipaddress import IPv4Network
from pathlib import Path
from socket import if_indextoname
from typing import TypeVar

from flannelpy.errors import HostError
from flannelpy.linux.netlink.connection import GONE, Connection
from flannelpy.linux.netlink.socket import InterruptedListing
from flannelpy.marks import ROUTE_PROTOCOL
from flannelpy.rtnetlink import entries, links, routes, rules
from flannelpy.rtnetlink.entries import Identity, Route
from flannelpy.rtnetlink.links import Address, Link
from flannelpy.rtnetlink.messages import Message, error_of
from flannelpy.rtnetlink.routes import KernelRoute, RouteAnswer, RouteFilter, RouteQuery
from flannelpy.rtnetlink.rules import PolicyRule, ProhibitRule

T = TypeVar("T")

_LISTINGS = 5
_LISTING_PAUSE = 0.01  # seconds, doubled for each further listing


class Listings(Connection):
    """Reads the kernel's state, and changes nothing."""

    async def links(self) -> list[Link]:
        """Return all interfaces.  Raises HostError."""
        return await self._list(links.ALL_LINKS, links.link)

    async def link(self, name: str) -> Link | None:
        """Return the interface of that name, if there is one.  Raises HostError."""
        message = await self._ask_about(name, links.link_named(name))
        return links.link(message) if message else None

    async def transmit_drops(self, name: str) -> int:
        """Return how many packets the interface dropped because its queue was full; 0 if there is none of that name.

        Raises HostError.
        """
        message = await self._ask_about(name, links.statistics_of(name))
        return links.transmit_drops(message) if message else 0

    async def _ask_about(self, name: str, request: Message) -> Message | None:
        """Return the answer to a request for the interface of that name, None without one.  Raises HostError."""
        [message] = await self._ask([request])
        error = error_of(message)
        if error == errno.ENODEV:
            return None
        if error:
            raise HostError(f"cannot read the state of {name}: {os.strerror(error)}")
        return message

    async def addresses(self) -> list[Address]:
        """Return all IPv4 addresses, those of an interface in the kernel's order.  Raises HostError."""
        return await self._list(links.ALL_ADDRESSES, links.address)

    async def routes(self) -> list[Route]:
        """Return the main table's routes, one for each way out of a multipath route.  Raises HostError."""
        return entries.routes(await self._list(entries.ALL_ROUTES, lambda message: message))

    async def default_routes(self) -> list[Route]:
        """Return the default routes of the main table, the lowest metric first.  Raises HostError."""
        found = await self._list(entries.ALL_ROUTES, lambda message: message if entries.is_default(message) else None)
        routes = entries.routes([message for message in found if message])
        return sorted(routes, key=lambda route: route.metric)

    async def lookups(self, queries: Sequence[RouteQuery], *, matched: bool = False) -> list[RouteAnswer]:
        """Return which route the kernel would use for each packet.  Raises HostError.

        With ``matched``, an answer is the route as it is in its table, with protocol and prefix, but without the next
        hop if there are several.  An answer takes a few microseconds.
        """
        messages = await self._ask([query.request(matched=matched) for query in queries])
        return [routes.answer(message, matched=matched) for message in messages]

    async def routes_of(self, wanted: RouteFilter) -> AsyncIterator[list[KernelRoute]]:
        """Yield the routes that the filter selects, chunk by chunk; the caller must read to the end.  Raises HostError.

        If routes change meanwhile, one may be missing or repeated.
        """
        async for chunk in self._listing(wanted.request()):
            yield wanted.select(chunk)

    async def marked_routes(self) -> list[KernelRoute]:
        """Return the main table's routes with our mark, to any destination.  Raises HostError."""
        return [route async for chunk in self.routes_of(RouteFilter(ROUTE_PROTOCOL)) for route in chunk]

    async def routes_to(self, destinations: Container[IPv4Network]) -> dict[IPv4Network, list[KernelRoute]]:
        """Return the main table's routes to exactly these destinations, in the kernel's order.  Raises HostError."""
        found: dict[IPv4Network, list[KernelRoute]] = {}
        async for chunk in self.routes_of(RouteFilter()):
            for route in chunk:
                if route.destination in destinations:
                    found.setdefault(route.destination, []).append(route)
        return found

    async def owned(self, network: IPv4Network, link_index: int) -> AsyncIterator[list[Identity]]:
        """Yield the entries into ``network`` that flannelpy owns, chunk by chunk.

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
        """Return the policy rules in the order in which the kernel evaluates them.  Raises HostError."""
        found = [rules.parse(one) async for chunk in self._listing(rules.ALL_RULES) for one in chunk]
        return sorted(found, key=lambda rule: rule.priority)

    def name_of(self, link_index: int) -> str:
        """Return the name of the interface with that index; ``if`` and the index if there is none."""
        try:
            return if_indextoname(link_index)
        except OSError:
            return f"if{link_index}"

    def is_forwarding(self, link_index: int) -> bool:
        """Return whether the kernel forwards packets that arrive by that interface."""
        try:
            text = Path(f"/proc/sys/net/ipv4/conf/{self.name_of(link_index)}/forwarding").read_text()
        except OSError:
            return False
        return text.strip() == "1"

    async def has_connected_route(self, network: IPv4Network, link_index: int) -> bool:
        """Return whether the interface has the route to the network that it is on.  Raises HostError."""
        # The kernel adds it with the address.  If flannelpy had to add it, it has our mark.
        for protocol in (routes.PROTOCOL_KERNEL, ROUTE_PROTOCOL):
            is_found = False
            async for chunk in self.routes_of(RouteFilter(protocol, link_index)):
                is_found |= any(not route.gateway and route.destination == network for route in chunk)
            if is_found:
                return True
        return False

    async def prohibit_rules(self) -> list[ProhibitRule]:
        """Return flannelpy's rules between networks.  Raises HostError."""
        return rules.marked_prohibit_rules(await self._prohibit_messages())

    async def unmarked_prohibit_rules(self) -> list[ProhibitRule]:
        """Return the rules of versions before the mark.  Raises HostError.

        The kernel removes the first rule that has all attributes of a request.  So it cannot remove one of these alone
        if a foreign rule with the same networks stands before it: such a rule is left out.
        """
        return rules.unmarked_prohibit_rules(await self._prohibit_messages())

    async def _prohibit_messages(self) -> list[Message]:
        found = await self._list(rules.ALL_RULES, lambda message: message if rules.may_be_ours(message) else None)
        return [message for message in found if message]

    async def _ask(self, requests: Sequence[Message]) -> list[Message]:
        """Return the answer to each.  Raises HostError when the kernel cannot be asked."""
        try:
            return await self._socket.ask(requests)
        except OSError as error:
            raise HostError(f"cannot ask the kernel about this machine's network: {error.strerror}") from error

    async def _listing(self, request: Message) -> AsyncIterator[list[Message]]:
        """Yield a listing chunk by chunk; if the state changes, an entry may be missing or twice.  Raises HostError."""
        with suppress(InterruptedListing):
            try:
                async for chunk in self._socket.listing(request):
                    yield chunk
            except OSError as error:
                if error.errno not in GONE:  # of a table or an interface that does not exist
                    raise HostError(f"cannot list the state of this machine's network: {error.strerror}") from error

    async def _list(self, request: Message, parse: Callable[[Message], T]) -> list[T]:
        """Return a whole listing, requested again if the state changed meanwhile.  Raises HostError.

        If the state changes all the time, the last listing counts, in which an entry may be missing.
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
