"""Names the route or policy rule that diverts packets from flannelpy's routes.

Of a policy rule, addresses and the input interface are evaluated; a rule with another selector (fwmark, tos, ports)
counts as if it had none of it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from flannelpy.linux.netlink.client import Netlink
from flannelpy.rtnetlink.routes import (
    BLACKHOLE,
    PROHIBIT,
    TABLE_LOCAL,
    TABLE_MAIN,
    THROW,
    UNREACHABLE,
    KernelRoute,
    RouteAnswer,
    RouteFilter,
    RouteQuery,
)
from flannelpy.rtnetlink.rules import LOOKUP, PolicyRule

# The kinds of routes by which the kernel rejects a packet with that errno; a rule's action has the same number.
_KINDS = {
    errno.EINVAL: BLACKHOLE,
    errno.EACCES: PROHIBIT,
    errno.EHOSTUNREACH: UNREACHABLE,
    errno.ENETUNREACH: THROW,
}


class DivertingRoutes:
    """Finds the route or rule behind each answer of one check; lists rules and routes at most once."""

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink
        self._rules: Sequence[PolicyRule] | None = None
        self._refusing: dict[int, list[KernelRoute]] = {}

    async def name(self, query: RouteQuery, answer: RouteAnswer) -> str:
        """Return the route or rule that caused an answer to a ``matched`` query, in words.  Raises HostError."""
        if answer.route is not None:
            return f"route {answer.route.text(self._netlink.name_of)}{await self._leading_to(query, answer.table)}"
        rule = await self._refusing_rule(query, answer.errno)
        if rule:
            return str(rule)
        route = await self._refusing_route(query, answer.errno)
        if route:
            return f"route {route.text(self._netlink.name_of)}{await self._leading_to(query, route.table)}"
        return f"the kernel rejects them ({os.strerror(answer.errno)})"

    async def has_blackhole(self, query: RouteQuery) -> bool:
        """Return whether a rule or route may discard the packets of a query.  Raises HostError."""
        rule = await self._refusing_rule(query, errno.EINVAL)
        return bool(rule or await self._refusing_route(query, errno.EINVAL))

    async def _leading_to(self, query: RouteQuery, table: int) -> str:
        """Return the rule that selects a table, in words; empty for the tables that the kernel always uses."""
        if table in (TABLE_MAIN, TABLE_LOCAL):
            return ""
        rules = [rule for rule in await self._matching(query) if rule.action == LOOKUP and rule.table == table]
        return f", by {rules[0]}" if rules else ""

    async def _refusing_rule(self, query: RouteQuery, error: int) -> PolicyRule | None:
        actions = (_KINDS.get(error), UNREACHABLE if error == errno.ENETUNREACH else None)
        return next((rule for rule in await self._matching(query) if rule.action in actions), None)

    async def _refusing_route(self, query: RouteQuery, error: int) -> KernelRoute | None:
        kind = _KINDS.get(error)
        if kind is None:
            return None
        if kind not in self._refusing:
            listing = self._netlink.routes_of(RouteFilter(table=0, kind=kind))
            self._refusing[kind] = [route async for chunk in listing for route in chunk]
        around = [route for route in self._refusing[kind] if query.destination in route.destination]
        return max(around, key=lambda route: route.prefix_len, default=None)

    async def _matching(self, query: RouteQuery) -> list[PolicyRule]:
        if self._rules is None:
            self._rules = await self._netlink.rules()
        input_name = self._netlink.name_of(query.input_index) if query.input_index else ""
        return [rule for rule in self._rules if rule.matches(query.destination, query.source, input_name)]
