"""Keeps the kernel's entries that lead to other hosts equal to what the leases ask for.

For backends whose packets the kernel carries.  The entries of one subnet, its *unit*, are put as a whole or not at all.
They stay when we stop, so a restart disturbs no traffic; what an earlier run has left and no lease asks for goes as
soon as the leases are known.
Counterpart: the route lists of backend/hostgw/hostgw.go, the ARP and FDB calls of backend/vxlan/device.go.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Network

from flannelpy.errors import HostError
from flannelpy.linux.entries import Entry, Gateway, Unit
from flannelpy.linux.netlink import Netlink, Refusal
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
        self._list = present
        self._units: Mapping[IPv4Network, Unit] = {}  # as they were put at last
        self._refused: Mapping[Unit, Refusal] = {}
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
            present = set(await self._list(netlink)) if known is None else known
            units = await self._wanted(netlink)
            before, self._units = self._units, units
            wanted = {entry for unit in units.values() for entry in unit}
            stale = _stale(present, wanted)
            # What was refused is refused again; to try it at each look would make for something to look at.
            skipped = {unit: why for unit, why in self._refused.items() if look and unit in units.values()}
            missing = {
                subnet: unit for subnet, unit in units.items() if unit not in skipped and not present.issuperset(unit)
            }
            refused = await _put(netlink, list(missing.values()), units.values())
            await netlink.remove(sorted(stale, key=lambda entry: not isinstance(entry, Gateway)))
            self._say_refused({**skipped, **refused})
            if not self._refused:
                self._present = wanted
            if known is not None:
                return []
            put = [unit for subnet, unit in missing.items() if before.get(subnet) == unit and unit not in refused]
            lost = [entry for unit in put for entry in unit if entry not in present]
            ours = {entry for unit in before.values() for entry in unit}
            replaced = {entry.key for unit in missing.values() for entry in unit}
            foreign = [entry for entry in stale if entry not in ours and entry.key not in replaced]
            return [*_told(lost, "was lost: put right"), *_told(foreign, "leads to no host: removed")]

    def _say_refused(self, refused: Mapping[Unit, Refusal]) -> None:
        """Once, for as long as it is so: a lease that makes no sense is its host's trouble, not ours."""
        for unit, refusal in refused.items():
            if unit not in self._refused:
                log.error("Ignoring a lease that cannot be: %s", refusal)
        self._refused = refused


async def _put(netlink: Netlink, missing: Sequence[Unit], wanted: Iterable[Unit]) -> Mapping[Unit, Refusal]:
    """All of each unit, or none of it; those of which the kernel wants to know nothing.

    Raises HostError when others could not be put: then it is the host that lacks something.
    """
    failed = await netlink.put(missing)
    if failed:
        kept = {entry for unit in wanted if unit not in failed for entry in unit}
        with suppress(HostError):  # the first one is told
            await netlink.remove([entry for unit in failed for entry in reversed(unit) if entry not in kept])
    for refusal in failed.values():
        if refusal.errno != errno.EINVAL:
            raise HostError(str(refusal))
    return failed


def _stale(present: set[Entry], wanted: set[Entry]) -> list[Entry]:
    """What nobody wants; of a key that is wanted it was replaced, unless it is a route beside another one."""
    keys = {entry.key for entry in wanted}
    return [entry for entry in present - wanted if isinstance(entry, Gateway) or entry.key not in keys]


def _told(entries: Sequence[Entry], what: str) -> list[str]:
    if len(entries) > _TOLD_SINGLY:
        return [f"{len(entries)} entries, such as the {entries[0]}: each {what}"]
    return [f"{entry} {what}" for entry in entries]
