"""What the udp backend needs to have the kernel carry packets, as the options allow it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flannelpy.options import Datapath, Options

if TYPE_CHECKING:
    from collections.abc import Callable

    from flannelpy.backend.udp.kernel_mode import Guard, KernelMode, OwnLease
    from flannelpy.netfilter.address_ranges import AddressRanges
    from flannelpy.netfilter.bypassed import OuterDatagrams


def kernel_mode(options: Options, own_lease: OwnLease) -> KernelMode | None:
    """Return it; None with -datapath=loop, which imports nothing of it."""
    if options.datapath is Datapath.LOOP:
        return None
    from flannelpy.backend.udp.kernel_mode import KernelMode
    from flannelpy.backend.udp.tun_keeper import TunKeeper
    from flannelpy.host.bypass_guard import BypassGuard
    from flannelpy.linux import descriptor_store

    def create_guard(datagrams: OuterDatagrams, peers: Callable[[], AddressRanges | None]) -> Guard:
        return BypassGuard(datagrams, peers, options.iptables_resync)

    is_required = options.datapath is Datapath.KERNEL
    return KernelMode(is_required, own_lease, create_guard, TunKeeper(descriptor_store.of_process()))
