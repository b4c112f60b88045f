"""Keeps the kernel's entries that lead to other hosts equal to what the leases ask for.

For backends whose packets the kernel carries.  The entries of one subnet, its *unit*, are put as a whole or not at all.
They stay when we stop, so a restart disturbs no traffic; what an earlier run has left and no lease asks for goes as
soon as the leases are known.
Counterpart: the route lists of backend/hostgw/hostgw.go, the ARP and FDB calls of backend/vxlan/device.go.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Network

from flannelpy.errors import HostError
from flannelpy.linux.entries import Entry, Gateway, Unit
from flannelpy.linux.netlink import Netlink
from flannelpy.subnet.retry import Complaint

log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0
# More of a kind are told as one.
_TOLD_SINGLY = 10


class Forwarding:
    """``wanted`` says what each subnet needs, ``present`` what the kernel has of ours; both raise HostError."""

    def __init__(
        self,
        wanted: Callable[[Netlink], Awaitable[Mapping[IPv4Network, Unit]]],
        present: Callable[[Netlink], Awaitable[Sequence[Entry]]],
    ) -> None:
        self._wanted = wanted
        self._list_present = present
        self._units: Mapping[IPv4Network, Unit] = {}  # as they were put at last
        self._present: set[Entry] | None = None  # None: nobody knows
        self._is_known = False  # which hosts there are
        self._changed = asyncio.Event()
        self._reconciling = asyncio.Lock()

    def changed(self) -> None:
        """What is wanted is known, and may be another than before."""
        self._is_known = True
        self._changed.set()

    async def run(self) -> None:
        """Carry over into the kernel what changed, for ever."""
        complaint = Complaint("Failed to lead packets to other hosts")
        async with Netlink() as netlink:
            while True:
                await self._changed.wait()
                self._changed.clear()
                try:
                    for told in await self._reconcile(netlink, look=False):
                        log.info("%s", told)
                    complaint.over()
                except HostError as error:
                    complaint.about(error)
                    await asyncio.sleep(_RETRY_SECONDS)
                    self._changed.set()

    async def repair(self, netlink: Netlink) -> list[str]:
        """What somebody removed or bent comes back, what somebody added goes; what that was.  Raises HostError."""
        if self._changed.is_set() or not self._is_known:
            return []
        return await self._reconcile(netlink, look=True)

    async def _reconcile(self, netlink: Netlink, *, look: bool) -> list[str]:
        """Make the kernel's entries those that are wanted; what nobody but us can have wanted.  Raises HostError.

        ``look`` at those that are there, instead of relying on what we know of them.
        """
        async with self._reconciling:
            known = None if look else self._present
            self._present = None
            present = set(await self._list_present(netlink)) if known is None else known
            units = await self._wanted(netlink)
            wanted = {entry for unit in units.values() for entry in unit}
            keys = {entry.key for entry in wanted}
            stale = [entry for entry in present if entry.key not in keys]
            await netlink.remove(sorted(stale, key=lambda entry: not isinstance(entry, Gateway)))
            missing = {subnet: unit for subnet, unit in units.items() if not present.issuperset(unit)}
            await _put(netlink, list(missing.values()), units.values())
            before, self._units, self._present = self._units, units, wanted
            if known is not None:
                return []
            lost = [
                entry
                for subnet, unit in missing.items()
                if before.get(subnet) == unit
                for entry in unit
                if entry not in present
            ]
            foreign = [entry for entry in stale if all(entry not in unit for unit in before.values())]
            return [*_told(lost, "was lost: put right"), *_told(foreign, "leads to no host: removed")]


async def _put(netlink: Netlink, missing: Sequence[Unit], wanted: Iterable[Unit]) -> None:
    """All of each unit, or none of it.  Raises HostError when one could not be put, after the others were."""
    failed = await netlink.put(missing)
    if not failed:
        return
    kept = {entry for unit in wanted if unit not in failed for entry in unit}
    with suppress(HostError):  # the first one is told
        await netlink.remove([entry for unit in failed for entry in reversed(unit) if entry not in kept])
    raise next(iter(failed.values()))


def _told(entries: Sequence[Entry], what: str) -> list[str]:
    if len(entries) > _TOLD_SINGLY:
        return [f"{len(entries)} entries, such as the {entries[0]}: each {what}"]
    return [f"{entry} {what}" for entry in entries]
