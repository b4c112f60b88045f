"""What -cleanup does: removes what an earlier run has left on this host, and with -release gives its lease back.

Whatever is there is removed and said; what is not there is no error, so it may be done twice.
Counterpart: none; the original leaves all of it behind.
"""

from __future__ import annotations

import asyncio
import logging
from ipaddress import IPv4Network

from flannelpy import logs, parts
from flannelpy.backend import host_gw
from flannelpy.backend.udp import device
from flannelpy.errors import FlannelError, HostError
from flannelpy.linux import iptables
from flannelpy.linux.netlink import Netlink
from flannelpy.options import Options
from flannelpy.registry.base import Registry
from flannelpy.subnet import env_file
from flannelpy.subnet.lease import Lease, format_key, well_formed
from flannelpy.subnet.renewal import Holder

log = logging.getLogger(__name__)


def run(options: Options) -> int:
    """Remove it all; the exit code."""
    logs.configure(options.verbosity)
    try:
        asyncio.run(_clean_up(options))
    except FlannelError as error:
        log.error("%s", error)
        return error.exit_code
    return 0


async def _clean_up(options: Options) -> None:
    await _remove_devices()
    network = env_file.previous_network(options.subnet_file)
    if network:
        await _remove_routes(network)
    for rule in await iptables.remove_masquerade(network):
        log.info("Removed iptables rule: %s", rule)
    for file in (options.subnet_file, parts.ready_path(options)):
        if env_file.remove(file):
            log.info("Removed %s", file)
    if options.release:
        await _release(options)


async def _remove_devices() -> None:
    """With their addresses and routes.  Raises HostError while flannelpy runs."""
    async with Netlink() as netlink:
        for link in await device.leftovers(netlink):
            if link.in_use:
                raise HostError(f"{link.name} is in use: stop flannelpy, then clean up")
        await device.remove_leftovers(netlink)


async def _remove_routes(network: IPv4Network) -> None:
    """Those of host-gw, which stay when it stops."""
    async with Netlink() as netlink:
        gateways = await host_gw.gateways_into(network, netlink)
        await netlink.remove_gateways(gateways)
    for one in gateways:
        log.info("Removed route to %s via %s", one.destination, one.gateway)


async def _release(options: Options) -> None:
    """Give back what is ours in the store."""
    _, public_ip = await parts.addresses(options)
    holder = parts.holder(options, public_ip)
    registry = parts.registry(options)
    try:
        snapshot = await registry.snapshot()
        leases = [lease for lease in well_formed(snapshot.entries) if lease.attrs.public_ip == public_ip]
        if not leases:
            log.info("There is no lease with our public IP %s", public_ip)
        for lease in leases:
            await _release_one(registry, lease, holder)
    finally:
        await registry.close()


async def _release_one(registry: Registry, lease: Lease, holder: Holder) -> None:
    if lease.lease_ttl is None:
        log.warning("Leaving the reservation of %s alone: it is the operator's", lease.subnet)
    elif lease.attrs.host_id not in ("", holder.host_id):
        log.warning("Leaving the lease of %s alone: it is another host's (%s)", lease.subnet, lease.attrs.host_id)
    else:
        await registry.compare_and_delete(format_key(lease.subnet), lease.version)
        log.info("Released the lease of %s", lease.subnet)
