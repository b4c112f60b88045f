"""Notices which interfaces lost their carrier between two checks: the kernel removed the routes by them.

Source: IFLA_CARRIER_CHANGES of rtnetlink(7), which counts also when an operator sets an interface down.
Counterpart: none; flanneld does not look at its routes again.
"""

from __future__ import annotations

from collections.abc import Iterable

from flannelpy.linux.netlink.client import Netlink


class CarrierHistory:
    """The number of carrier changes of some interfaces, as of the last check."""

    def __init__(self) -> None:
        self._carrier_changes: dict[int, int] = {}

    async def update(self, netlink: Netlink, link_indices: Iterable[int]) -> set[int]:
        """Return those of the interfaces whose carrier has changed since the last call.  Raises HostError."""
        before, self._carrier_changes = self._carrier_changes, {}
        for index in link_indices:
            if link := await netlink.link(netlink.name_of(index)):
                self._carrier_changes[index] = link.carrier_changes
        return {index for index, count in self._carrier_changes.items() if before.get(index, count) != count}
