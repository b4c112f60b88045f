"""Links, addresses, routes, rules and the entries that lead to peers: one connection to the kernel, for every purpose.

Source: rtnetlink(7).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from socket import AF_INET

from flannelpy.errors import HostError
from flannelpy.linux.netlink.connection import GONE
from flannelpy.linux.netlink.filters import Filters
from flannelpy.marks import ROUTE_PROTOCOL
from flannelpy.rtnetlink import entries
from flannelpy.rtnetlink.entries import Entry, GatewayRoute, Identity
from flannelpy.rtnetlink.messages import Message
from flannelpy.rtnetlink.routes import KernelRoute
from flannelpy.rtnetlink.rules import RULE_PRIORITY, ProhibitRule


class Netlink(Filters):
    """The kernel of this network namespace, inside ``async with``."""

    async def remove_routes(self, unwanted: Sequence[KernelRoute]) -> None:
        """Remove exactly these routes, as far as they still exist.  Raises HostError."""
        await self.remove(list(map(entries.identity_of, unwanted)))

    async def add(self, wanted: Sequence[Entry]) -> list[int]:
        """Add these entries; return the errno of each, 0 for success, EEXIST if another route is in the way.

        Raises HostError.
        """
        return await self._change(map(entries.add_request, wanted))

    async def append(self, wanted: Sequence[GatewayRoute]) -> list[int]:
        """Append these routes to those of their destinations; return the errno of each.  Raises HostError."""
        return await self._change(map(entries.append_request, wanted))

    async def remove(self, unwanted: Sequence[Identity]) -> None:
        """Remove these entries, as far as they still exist.  Raises HostError."""
        errors = await self._change(map(entries.delete_request, unwanted))
        for one, error in zip(unwanted, errors, strict=True):
            if error and error not in GONE:
                raise HostError(f"cannot remove the {entries.describe(one)}: {os.strerror(error)}")

    async def _change(self, requests: Iterable[Message]) -> list[int]:
        """Send requests; return the errno of each.  Raises HostError if the socket fails."""
        try:
            return await self._socket.change(requests)
        except OSError as error:
            raise HostError(f"cannot change this machine's routes and neighbours: {error.strerror}") from error

    async def add_rules(self, rules: Sequence[ProhibitRule]) -> None:
        """Add these rules.  Raises HostError."""
        await self._change_rules("add", rules, errno.EEXIST, ROUTE_PROTOCOL)

    async def remove_rules(self, rules: Sequence[ProhibitRule], protocol: int = ROUTE_PROTOCOL) -> None:
        """Remove these rules; with protocol 0 those of ``unmarked_prohibit_rules``.  Raises HostError."""
        await self._change_rules("del", rules, errno.ENOENT, protocol)

    async def _change_rules(self, command: str, rules: Sequence[ProhibitRule], harmless: int, protocol: int) -> None:
        for rule in rules:
            async with self._iproute(f"cannot {command} the {rule}", harmless=(harmless,)) as route:
                await route.rule(
                    command,
                    family=AF_INET,
                    priority=RULE_PRIORITY,
                    action="prohibit",
                    src=str(rule.source),
                    dst=str(rule.destination),
                    protocol=protocol,
                )
