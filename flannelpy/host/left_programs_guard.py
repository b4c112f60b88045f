"""Stops programs that an earlier process left, while this one still waits for config and lease.

They work on until the end of that process's lease.  Once the backend starts, ``KernelDatapath`` looks after its own.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from flannelpy.backend.left_programs import has_left_sender, remove_left_sender
from flannelpy.errors import one_line
from flannelpy.linux.netlink.client import Netlink
from flannelpy.logs import FailureLog
from flannelpy.tasks import run_together

if TYPE_CHECKING:
    from typing import Never

    from flannelpy.addressing.interface_choice import ExternalInterface
    from flannelpy.host.bypass_guard import BypassGuard

log = logging.getLogger(__name__)


async def guard_left_programs(alias: str, external: ExternalInterface, resync: float) -> None:
    """Remove the outgoing program with this ``alias`` once there is what it would bypass; until cancelled.

    The config is not known yet, so rules are searched for datagrams of the default port; the peers are those that the
    programs know.  Without such a program, return at once, and import nothing of the guard.

    ``resync``: seconds between two searches, and until another try after a failure.
    """
    failures = FailureLog(log, "Failed to guard programs of an earlier process")
    while True:
        try:
            return await _guard(alias, external, resync)
        except Exception as error:
            log.debug("Traceback of the error:", exc_info=error)
            failures.failed(one_line(error), level=logging.WARNING)
        await asyncio.sleep(resync)


async def _guard(alias: str, external: ExternalInterface, resync: float) -> None:
    async with Netlink() as netlink:
        if not await has_left_sender(netlink, alias):
            return
        from flannelpy.backend.udp.left_peers import left_peers

        peers = await left_peers(netlink, alias)
    from flannelpy.datapath.udp_settings import DEFAULT_PORT
    from flannelpy.host.bypass_guard import BypassGuard
    from flannelpy.netfilter.bypassed import OuterDatagrams

    guard = BypassGuard(OuterDatagrams(external.address, DEFAULT_PORT, external.name), lambda: peers, resync)
    try:
        await guard.check()
        await run_together(guard.run(), _obey(guard, alias))
    finally:
        guard.close()


async def _obey(guard: BypassGuard, alias: str) -> Never:
    while True:
        if reason := guard.reason():
            async with Netlink() as netlink:
                for removed in await remove_left_sender(netlink, alias):
                    log.warning("Removed leftover %s: %s", removed, reason)
        await guard.wait_change()
