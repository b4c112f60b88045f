"""Decides while a network runs whether the kernel or the loop carries packets, and changes from one to the other.

This module is imported only with -datapath=auto or kernel.  The loop always runs: it carries what the programs leave
to it.  The kernel is used while ``Guard`` finds nothing that the programs would bypass.

Switching to the kernel: the programs are attached, then our lease announces them, and peers use theirs for us.
Switching back: the outgoing program stops at once and is detached, our lease no longer announces the kernel, and the
incoming program is detached some seconds later, when peers have read the lease.
Counterpart: none; the original has its proxy alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network
from typing import NamedTuple, Never, Protocol

from flannelpy.backend.udp.fast_path import FastPath, FastPathConfig, remove_left
from flannelpy.backend.udp.tun_keeper import TunKeeper
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

#: Within this time, peers that reach etcd have read that our kernel no longer takes their datagrams.
LEASE_SECONDS = 5.0
#: After a switch back, the kernel is not used again before this time is over.
PAUSE_SECONDS = 30.0
# While etcd does not answer, a living daemon carries packets after the end of its lease.  The deadline of the programs
# is then at least this far away, and moved on each second.
_LEAST_SECONDS = 3.0
_EXTEND_SECONDS = 1.0


class OwnLease(Protocol):
    """The lease of this host."""

    def seconds_left(self) -> float | None:
        """Return the seconds until the lease expires if no renewal succeeds; None for a reservation."""

    def announce(self, *, in_kernel: bool) -> None:
        """Tell peers by the lease, as soon as the store answers, whether our kernel takes their datagrams."""


class Guard(Protocol):
    """Finds out what the programs would bypass; ``host/bypass_guard.py`` has it."""

    def reason(self) -> str | None:
        """Return what forbids the kernel; None while nothing does."""

    async def check(self) -> str | None:
        """Search now, and return ``reason()``."""

    async def run(self) -> Never:
        """Search again and again, until cancelled."""

    async def wait_change(self) -> None:
        """Wait until ``reason()`` differs from what it was at the call."""

    def peers_changed(self) -> None:
        """Search again soon, because the public IPs of the peers have changed."""

    def close(self) -> None:
        """Close what the guard has open."""


#: Makes the guard of these datagrams; the function returns the public IPs of the peers.
CreateGuard = Callable[[OuterDatagrams, Callable[[], AddressRanges | None]], Guard]


class KernelMode(NamedTuple):
    """What -datapath=auto and kernel need of the rest of flannelpy.

    ``is_required``: a host that cannot use the kernel does not start.
    """

    is_required: bool
    own_lease: OwnLease
    create_guard: CreateGuard
    keeper: TunKeeper


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
        self._has_peers = asyncio.Event()  # set by the first leases, maybe none
        self._is_decided = asyncio.Event()  # set by the first use of the kernel, and by what prevents it
        self._fast_path: FastPath | None = None
        self._is_possible = True  # as far as the kernel was asked
        self._busy = asyncio.Lock()  # held while filters change
        self._former: dict[IPv4Network, Totals] = {}  # what closed fast paths have carried, of each peer
        self._removed = Totals()  # the same of peers that were removed
        self.is_used = False
        self.loop_cause = ""
        datagrams = OuterDatagrams(config.bound, config.port, config.external)
        self._guard = mode.create_guard(datagrams, self._public_ips)

    # The life of a network

    async def open(self, netlink: Netlink) -> None:
        """Load the programs if nothing forbids it; otherwise remove those of an earlier process.

        Raises HostError if the kernel is required and cannot be used.
        """
        self.loop_cause = await self._guard.check() or await self._load(netlink)
        if not self.loop_cause:
            self._mode.keeper.keep(self._tun)
            return
        self._is_decided.set()
        self._mode.own_lease.announce(in_kernel=False)
        self._mode.keeper.release(self._tun)
        await remove_left(netlink, self._config.alias)
        if self._mode.is_required:
            raise HostError(f"cannot carry packets in the kernel (-datapath=kernel): {self.loop_cause}")
        log.warning("Datapath loop: %s", self.loop_cause)

    async def run(self) -> None:
        """Use the kernel whenever nothing forbids it, until cancelled.  Raises HostError."""
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
        """Return the public IPs of all peers; None until the first leases."""
        if self._ranges is None and self._has_peers.is_set():
            addresses = (int(attrs.public_ip) for attrs in self._peers.values())
            self._ranges = AddressRanges((address, address) for address in addresses)
        return self._ranges

    # The switch

    async def _obey_guard(self) -> Never:
        """Stop the outgoing program at once when the guard forbids it; what else that takes may wait."""
        while True:
            self._allow_sending()
            await self._guard.wait_change()

    def _allow_sending(self) -> None:
        if self._fast_path:
            self._fast_path.allow_sending(is_allowed=not self._guard.reason())

    async def _follow_guard(self) -> None:
        """Use the kernel while the guard has no reason against it; return if the kernel rejects the programs."""
        await self._has_peers.wait()
        while True:
            while self._guard.reason():
                await self._guard.wait_change()
            async with Netlink() as netlink:
                if not await self._use_kernel(netlink):
                    return
            while not self._guard.reason():
                await self._guard.wait_change()
            await self._use_loop(self._guard.reason() or "")
            await asyncio.sleep(PAUSE_SECONDS)

    async def _use_kernel(self, netlink: Netlink) -> bool:
        """Attach the programs and announce them; False, after a line in the log, if the kernel rejects them."""
        async with self._busy:
            cause = await self._load(netlink) or await self._attach(netlink)
        self._is_decided.set()
        if cause:
            self._log_loop(cause)
            await self._unload(netlink)
            return False
        self.is_used, self.loop_cause = True, ""
        self._mode.own_lease.announce(in_kernel=True)
        log.info("Datapath kernel: eBPF programs carry packets to and from peers whose leases announce them too")
        return True

    async def _load(self, netlink: Netlink) -> str:
        """Load the programs, unless they are loaded; return why the kernel rejects them, or an empty string."""
        if self._fast_path is None:
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

    async def _attach(self, netlink: Netlink) -> str:
        assert self._fast_path
        try:
            self._fast_path.extend(self._deadline())
            await self._fast_path.attach(netlink)
            self._mode.keeper.keep(self._tun)
        except HostError as error:
            return str(error)
        return ""

    async def _use_loop(self, reason: str) -> None:
        """Have the loop send at once, tell peers, and take their datagrams in the kernel for a few more seconds."""
        assert self._fast_path
        self.is_used = False
        async with Netlink() as netlink:
            async with self._busy:
                try:
                    await self._fast_path.close_outgoing(netlink)
                except HostError:
                    self._fast_path.extend(0)
                    raise
            self._log_loop(reason)
            await asyncio.sleep(LEASE_SECONDS)
            await self._unload(netlink)

    def _log_loop(self, cause: str) -> None:
        """Log and announce that the loop carries all packets from now on."""
        self.loop_cause = cause
        self._mode.own_lease.announce(in_kernel=False)
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
        """Restore what other programs changed; return phrases for the log.  ``tun``: the device, maybe another one.

        Raises HostError.
        """
        async with self._busy:
            recreated, self._tun = tun is not self._tun, tun
            if not self._fast_path or not self.is_used:
                return []
            if recreated:
                self._mode.keeper.keep(tun)
            if tun.name != self._config.device:
                await self._move(netlink)
                return []
            flaws = await self._fast_path.flaws(netlink)
            if flaws:
                await self._fast_path.repair(netlink)
            return [] if recreated else flaws  # those of a recreated device follow from its own

    async def _move(self, netlink: Netlink) -> None:
        """Load and attach the programs for a device of another name.  Raises HostError."""
        self._config = self._config._replace(device=self._tun.name)
        await self._unload(netlink)
        if cause := await self._load(netlink) or await self._attach(netlink):
            raise HostError(cause)
        self.is_used = True
