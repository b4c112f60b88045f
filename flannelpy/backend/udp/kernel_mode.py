"""What -datapath=auto and kernel need of the rest of flannelpy; host/kernel_mode.py gathers it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Never, Protocol

from flannelpy.backend.udp.tun_keeper import TunKeeper
from flannelpy.netfilter.address_ranges import AddressRanges
from flannelpy.netfilter.bypassed import OuterDatagrams


class OwnLease(Protocol):
    """The lease of this host."""

    def seconds_left(self) -> float | None:
        """Return the seconds until the lease expires if no renewal succeeds; None for a reservation."""

    def announce(self, *, in_kernel: bool) -> None:
        """Tell peers by the lease, as soon as the store answers, whether our kernel takes their datagrams."""

    async def announced(self) -> float:
        """Wait until the lease in the store has what was announced; return the seconds for which it has."""


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
