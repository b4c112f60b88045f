"""Decides while a network runs whether the kernel or the loop carries packets, and changes from one to the other.

This module is imported only with -datapath=auto or kernel.  The loop always runs: it carries what the programs leave
to it.  The kernel is used while ``Guard`` finds nothing that the programs would bypass.

Switching to the kernel: the programs are attached, and our lease announces them.  The outgoing program begins at once,
because the incoming program of a peer takes datagrams of every known peer.
Switching back: the outgoing program stops at once and is detached, our lease no longer announces the kernel, and the
incoming program is detached some seconds after the lease is written.
Counterpart: none; the original has its proxy alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from ipaddress import IPv4Network
from typing import Never

from flannelpy.backend.left_programs import has_left_programs, remove_left_programs
from flannelpy.backend.udp.fast_path import FastPath, FastPathConfig
from flannelpy.backend.udp.gro_pair import GroPair
from flannelpy.backend.udp.kernel_mode import KernelMode
from flannelpy.backend.udp.left_peers import left_peers
from flannelpy.chunks import in_chunks
from flannelpy.datapath.routes import Totals
from flannelpy.errors import HostError
from flannelpy.linux.clock import BootClock
from flannelpy.linux.netlink.client import Netlink
from flannelpy.linux.tun import Tun
from flannelpy.netfilter.address_ranges import AddressRanges
from flannelpy.netfilter.bypassed import OuterDatagrams
from flannelpy.subnet.lease import LeaseAttrs
from flannelpy.subnet.lease_table import LeaseAdded, LeaseEvent
from flannelpy.tasks import run_together

log = logging.getLogger(__name__)

#: Within this time after our lease is written, peers that reach etcd have read it.
LEASE_SECONDS = 5.0
#: After a switch back, the kernel is not used again before this time is over.
PAUSE_SECONDS = 30.0
# While etcd does not answer, a living daemon carries packets after the end of its lease.  The deadline of the programs
# is then at least this far away, and moved on each second.
_LEAST_SECONDS = 3.0
_EXTEND_SECONDS = 1.0


class KernelDatapath:
    """The kernel's part of carrying packets, for one network and its TUN device.

    ``is_used``: whether the programs are attached.  ``loop_cause``: why the loop carries all packets, or empty.
    """

    def __init__(self, mode: KernelMode, config: FastPathConfig, tun: Tun) -> None:
        self._mode = mode
        self._config = config
        self._tun = tun
        self._peers: dict[IPv4Network, LeaseAttrs] = {}
        self._ranges: AddressRanges | None = None  # their public IPs; None: to be computed
        self._left_peers: AddressRanges | None = None  # those of the programs of an earlier process
        self._has_peers = asyncio.Event()  # set by the first leases, maybe none
        self._is_decided = asyncio.Event()  # set by the first use of the kernel, and by what prevents it
        self._fast_path: FastPath | None = None
        self._is_possible = True  # as far as the kernel was asked
        self._busy = asyncio.Lock()  # held while filters change
        self._forbidden = asyncio.Event()  # set once something ends the use of the kernel
        self._reason = ""  # what that is
        self._former: dict[IPv4Network, Totals] = {}  # what closed fast paths have carried, of each peer
        self._removed = Totals()  # the same of peers that were removed
        self.is_used = False
        self.loop_cause = ""
        datagrams = OuterDatagrams(config.bound, config.port, config.external)
        self._guard = mode.create_guard(datagrams, self._public_ips)

    # The life of a network

    async def open(self, netlink: Netlink) -> None:
        """Load the programs if nothing forbids it, and attach them; otherwise remove those of an earlier process.

        Raises HostError if the kernel is required and rejects them.  What forbids them may concern no peer, so ``run``
        decides about that.
        """
        self._left_peers = await left_peers(netlink, self._config.alias)
        forbidden = await self._guard.check()
        cause = forbidden or await self._load(netlink) or await self._try(netlink)
        if not cause:
            self._mode.keeper.keep(self._tun)
        elif forbidden and self._mode.is_required:
            await self._use_no_kernel(netlink, cause)
        else:
            await self._begin_with_loop(netlink, cause)

    async def _begin_with_loop(self, netlink: Netlink, cause: str) -> None:
        """Have the loop carry all packets.  Raises HostError if the kernel is required."""
        await self._use_no_kernel(netlink, cause)
        if self._mode.is_required:
            raise HostError(f"cannot carry packets in the kernel (-datapath=kernel): {cause}")
        self._is_decided.set()
        log.warning("Datapath loop: %s", cause)

    async def _use_no_kernel(self, netlink: Netlink, cause: str) -> None:
        self.loop_cause = cause
        self._mode.own_lease.announce(in_kernel=False)
        await self._unload(netlink)
        self._mode.keeper.release(self._tun)
        await remove_left_programs(netlink, self._config.alias)

    async def run(self) -> None:
        """Use the kernel whenever nothing forbids it, until cancelled.

        Raises HostError, also if the kernel is required and something forbids it when the first leases are there.
        """
        if self._is_possible:
            await run_together(self._guard.run(), self._obey_guard(), self._extend(), self._follow_guard())

    async def settled(self) -> None:
        """Return once the kernel carries packets, or once it is known that it does not."""
        await self._is_decided.wait()

    async def close(self) -> None:
        """Remove the programs, and have the TUN end with this process; but systemd may keep both for a restart."""
        self._guard.close()
        try:
            if self._fast_path and not self.loop_cause and self._mode.keeper.survives_stop:
                self._fast_path.release()
                self._fast_path = None
            elif self._fast_path:
                async with Netlink() as netlink:
                    await self._unload(netlink)
        except HostError as error:
            log.warning("%s", error)

    # The peers

    def apply(self, events: Sequence[LeaseEvent]) -> None:
        """Take in the leases of peers; the first call has all of them, maybe none."""
        for event in events:
            if isinstance(event, LeaseAdded):
                self._peers[event.lease.subnet] = event.lease.attrs
                self._set(event.lease.subnet)
            else:
                self._remove(event.subnet)
        self._ranges = None
        self._has_peers.set()
        self._guard.peers_changed()

    def carried(self, subnet: IPv4Network) -> Totals:
        """Return what the kernel has carried to and from the peer that leases ``subnet``."""
        total = Totals()
        if subnet in self._former:
            total.add(self._former[subnet])
        if self._fast_path and (tally := self._fast_path.tally(subnet)):
            total.add(tally)
        return total

    @property
    def removed(self) -> Totals:
        """Return what the kernel has carried for peers that were removed."""
        total = Totals()
        total.add(self._removed)
        if self._fast_path:
            total.add(self._fast_path.removed_tally)
        return total

    def _set(self, subnet: IPv4Network) -> None:
        if self._fast_path and (attrs := self._peers.get(subnet)):
            self._fast_path.set(subnet, attrs.public_ip, in_kernel=attrs.in_kernel)

    def _remove(self, subnet: IPv4Network) -> None:
        self._peers.pop(subnet, None)
        if subnet in self._former:
            self._removed.add(self._former.pop(subnet))
        if self._fast_path:
            self._fast_path.remove(subnet)

    def _public_ips(self) -> AddressRanges | None:
        """Return the public IPs of all peers; until the first leases, those that an earlier process knew, or None."""
        if not self._has_peers.is_set():
            return self._left_peers
        if self._ranges is None:
            addresses = (int(attrs.public_ip) for attrs in self._peers.values())
            self._ranges = AddressRanges((address, address) for address in addresses)
        return self._ranges

    # The switch

    async def _obey_guard(self) -> Never:
        """Stop the outgoing program at once when the guard forbids it; what else that takes may wait."""
        while True:
            self._allow_sending()
            if reason := self._guard.reason():
                self._forbid(reason)
            await self._guard.wait_change()

    def _allow_sending(self) -> None:
        if self._fast_path:
            self._fast_path.allow_sending(is_allowed=self.is_used and not self._guard.reason())

    def _forbid(self, reason: str) -> None:
        """End the use of the kernel, for the first of several reasons."""
        self._reason = self._reason or reason
        self._forbidden.set()

    async def _follow_guard(self) -> None:
        """Use the kernel while the guard has no reason against it; return if the kernel rejects the programs."""
        await self._has_peers.wait()
        await self._decide()
        while True:
            while self._guard.reason():
                await self._guard.wait_change()
            self._reason = ""
            self._forbidden.clear()
            async with Netlink() as netlink:
                if not await self._use_kernel(netlink):
                    return
            await self._forbidden.wait()
            await self._use_loop(self._reason)
            await asyncio.sleep(PAUSE_SECONDS)

    async def _decide(self) -> None:
        """Begin with the loop if something forbids the kernel, now that the peers are known.  Raises HostError."""
        if not self._is_decided.is_set() and (reason := await self._guard.check()):
            async with self._busy, Netlink() as netlink:
                await self._begin_with_loop(netlink, reason)

    async def _use_kernel(self, netlink: Netlink) -> bool:
        """Attach and announce the programs; False, after a log line, if the kernel rejects them.  Raises HostError."""
        async with self._busy:
            cause = await self._load(netlink) or await self._attach(netlink)
        if cause and not self._is_decided.is_set():
            await self._begin_with_loop(netlink, cause)
            return False
        self._is_decided.set()
        if cause:
            self._log_loop(cause)
            await self._unload(netlink)
            return False
        self.is_used, self.loop_cause = True, ""
        self._mode.own_lease.announce(in_kernel=True)
        self._begin_sending()
        return True

    def _begin_sending(self) -> None:
        try:
            self._allow_sending()
        except HostError as error:
            self._forbid(str(error))
            return
        if not self._forbidden.is_set():
            log.info("Datapath kernel: eBPF programs carry packets to and from peers whose leases announce them too")

    async def _load(self, netlink: Netlink) -> str:
        """Load the programs, unless they are loaded; return why the kernel rejects them, or an empty string."""
        if self._fast_path is None:
            self._config = self._config._replace(device=self._tun.name)
            fast_path = FastPath(self._config)
            try:
                await fast_path.open(netlink)
            except HostError as error:
                self._is_possible = False
                return str(error)
            self._fast_path = fast_path
            self._allow_sending()
            async for chunk in in_chunks(list(self._peers)):
                for subnet in chunk:
                    self._set(subnet)
        return ""

    async def _try(self, netlink: Netlink) -> str:
        """Attach the programs, which carry nothing before ``extend``; return why the kernel rejects them, or nothing.

        If those of an earlier process are there, they are at work, and show that it is possible.
        """
        assert self._fast_path
        if await has_left_programs(netlink, self._config.device, self._config.external, self._config.alias):
            return ""
        try:
            await self._fast_path.attach(netlink)
        except HostError as error:
            self._is_possible = False
            await self._unload(netlink)
            return str(error)
        return ""

    async def _attach(self, netlink: Netlink) -> str:
        assert self._fast_path
        try:
            # Before the attachment, since programs work on with these settings if the process is killed after it.
            self._fast_path.extend(self._deadline())
            self._fast_path.allow_sending(is_allowed=not self._guard.reason())
            await self._fast_path.attach(netlink)
            await remove_left_programs(netlink, self._config.alias, self._interfaces())
            self._mode.keeper.keep(self._tun)
        except HostError as error:
            return str(error)
        return ""

    def _interfaces(self) -> set[str]:
        """Return the names of the interfaces that have programs."""
        pair = GroPair(self._config.device, self._config.alias)
        return {self._config.device, self._config.external, *pair.ends}

    async def _use_loop(self, reason: str) -> None:
        """Have the loop send at once, and take datagrams in the kernel until peers have read our lease.

        While etcd does not answer, that lasts at most until the end of our lease, because the deadline is not moved on.
        """
        self.is_used = False
        async with self._busy, Netlink() as netlink:
            await self._close_outgoing(netlink)
        self._log_loop(reason)
        await asyncio.sleep(max(LEASE_SECONDS - await self._mode.own_lease.announced(), 0))
        async with self._busy, Netlink() as netlink:
            await self._unload(netlink)

    async def _close_outgoing(self, netlink: Netlink) -> None:
        if self._fast_path is None:
            return
        try:
            await self._fast_path.close_outgoing(netlink)
        except HostError:
            self._fast_path.extend(0)
            raise

    def _log_loop(self, cause: str) -> None:
        """Log and announce that the loop carries all packets from now on."""
        self._mode.own_lease.announce(in_kernel=False)
        if cause == self.loop_cause:
            return  # tried again in vain
        self.loop_cause = cause
        level = logging.ERROR if self._mode.is_required else logging.WARNING
        log.log(level, "Datapath switched from kernel to loop: %s", cause)

    async def _unload(self, netlink: Netlink) -> None:
        """Remove the programs, and have the TUN end with this process.  Raises HostError."""
        fast_path, self._fast_path = self._fast_path, None
        self.is_used = False
        if fast_path:
            self._removed.add(fast_path.removed_tally)
            for subnet in self._peers:
                if tally := fast_path.tally(subnet):
                    self._former.setdefault(subnet, Totals()).add(tally)
            await fast_path.close(netlink)
            self._mode.keeper.release(self._tun)

    # What is looked after

    async def _extend(self) -> Never:
        """Move the deadline of the programs on, also while etcd does not answer."""
        while True:
            if self._fast_path and self.is_used:
                self._fast_path.extend(self._deadline())
            await asyncio.sleep(_EXTEND_SECONDS)

    def _deadline(self) -> float:
        """Return the time since boot, in seconds, until which the programs may carry packets without this process."""
        seconds = self._mode.own_lease.seconds_left()
        return float("inf") if seconds is None else BootClock().now() + max(seconds, _LEAST_SECONDS)

    async def repair(self, netlink: Netlink, tun: Tun) -> list[str]:
        """Restore what other programs changed, or use the loop if that fails; return phrases for the log.

        During a switch back, that is the incoming program.  ``tun``: the device, maybe another one.  Raises HostError.
        """
        async with self._busy:
            former, self._tun = self._tun, tun
            if not self._fast_path:
                return []
            if tun is not former:
                self._mode.keeper.replace(former, tun)
            try:
                flaws = await self._restore(netlink)
            except HostError as error:
                self._forbid(str(error))
                return []
            return [] if tun is not former else flaws  # those of a recreated device follow from its own

    async def _restore(self, netlink: Netlink) -> list[str]:
        """Restore the programs; return what was wrong.  Raises HostError."""
        assert self._fast_path
        if self._tun.name != self._config.device:
            await self._move(netlink)
            return []
        flaws = await self._fast_path.flaws(netlink)
        if flaws:
            await self._fast_path.repair(netlink)
        return flaws

    async def _move(self, netlink: Netlink) -> None:
        """Load and attach the programs for a device of another name, if the kernel is used.  Raises HostError."""
        was_used = self.is_used
        await self._unload(netlink)
        if not was_used:
            return
        if cause := await self._load(netlink) or await self._attach(netlink):
            raise HostError(cause)
        self.is_used = True
        self._allow_sending()
