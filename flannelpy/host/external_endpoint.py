"""The choice of the external interface and the public IP, by the flags."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from ipaddress import AddressValueError, IPv4Address, IPv4Interface

from flannelpy.addressing.addresses import edges, special_use
from flannelpy.addressing.interface_choice import ExternalInterface, Wanted
from flannelpy.errors import HostError, UsageError
from flannelpy.host import external_interface
from flannelpy.host.external_interface import Leased
from flannelpy.host.external_interface_monitor import ExternalInterfaceMonitor
from flannelpy.host.ownership import previous, tunnel_address
from flannelpy.linux.clock import BootClock
from flannelpy.linux.netlink.client import Netlink
from flannelpy.options import Options
from flannelpy.registry.connect import etcd_hosts

log = logging.getLogger(__name__)


async def choose(options: Options) -> tuple[ExternalInterface, IPv4Address]:
    """Return the external interface and the public IP.  Raises HostError, UsageError."""
    async with Netlink() as netlink:
        external = await external_interface.find(netlink, _wanted(options), _leased(options))
        held = [IPv4Interface((one.address, one.prefix_len)) for one in await netlink.addresses()]
    log.info("Using %s as external interface", external.address)
    if external.other_holder:
        log.info("Packets leave by %s with the address %s of %s", external.name, external.address, external.holder)
    public_ip = options.public_ip or external.address
    if block := special_use(public_ip):
        raise HostError(f"{external.holder} has {public_ip}, in {block}: other hosts cannot reach it")
    for one in held:
        if options.public_ip in edges(one.network):
            raise UsageError(
                f"bad value '{public_ip}' for -public-ip: must be the address of a host; this one is the network or "
                f"broadcast address of {one.network}"
            )
    log.info("Using %s as external endpoint", public_ip)
    if public_ip != external.address:
        log.info(
            "No interface of this machine has the public IP %s: a NAT must forward the peers' datagrams to %s on %s",
            public_ip,
            external.address,
            external.holder,
        )
    return external, public_ip


def watch(options: Options, external: ExternalInterface) -> ExternalInterfaceMonitor:
    """Return a monitor that checks whether ``external`` still is what the flags choose."""
    return ExternalInterfaceMonitor(external, _wanted(options), BootClock().now, partial(_leased, options))


def _wanted(options: Options) -> Wanted:
    """Return the flags that the choice of the external interface depends on."""
    etcd = []
    for host in etcd_hosts(options):
        with suppress(AddressValueError):  # for a name: the choice must not wait for a resolver
            etcd.append(IPv4Address(host))
    return Wanted(options.iface, options.iface_regex, options.iface_can_reach, options.public_ip, etcd)


def _leased(options: Options) -> Leased:
    """Return what the subnet files name now: what an earlier run or this one leased."""
    files = [options.subnet_file_of(name) for name in options.networks or ("",)]
    pairs = [pair for file in files for pair in previous(file)]
    return Leased(frozenset(tunnel_address(*pair) for pair in pairs), frozenset(subnet for _, subnet in pairs))
