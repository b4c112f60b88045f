"""What both the daemon and -cleanup build from the flags."""

from __future__ import annotations

import logging
from ipaddress import IPv4Address
from pathlib import Path

from flannelpy.linux import identity, interface
from flannelpy.linux.interface import ExternalInterface
from flannelpy.linux.netlink import Netlink
from flannelpy.options import Options
from flannelpy.registry.base import Registry
from flannelpy.registry.etcd_v2 import EtcdV2Registry
from flannelpy.subnet.renewal import Holder

log = logging.getLogger(__name__)


async def addresses(options: Options) -> tuple[ExternalInterface, IPv4Address]:
    """The external interface, and the public IP.  Raises HostError."""
    async with Netlink() as netlink:
        external = await interface.find(netlink, options.iface)
    log.info("Using %s as external interface", external.address)
    public_ip = options.public_ip or external.address
    log.info("Using %s as external endpoint", public_ip)
    return external, public_ip


def holder(options: Options, public_ip: IPv4Address) -> Holder:
    """Who we are to other hosts."""
    return Holder(public_ip, options.host_id or identity.host_id())


def registry(options: Options, network: str = "") -> Registry:
    """Where a network's leases are kept.  Raises UsageError, HostError."""
    return EtcdV2Registry(
        options.etcd_endpoints,
        f"{options.etcd_prefix}/{network}",
        keyfile=options.etcd_keyfile,
        certfile=options.etcd_certfile,
        cafile=options.etcd_cafile,
        username=options.etcd_username,
        password=options.etcd_password,
    )


def subnet_file(options: Options, network: str = "") -> Path:
    """Where a network's subnet is told."""
    return options.subnet_dir / f"{network}.env" if network else options.subnet_file


def ready_path(options: Options, network: str = "") -> Path:
    """The file that is there while a network is ready."""
    file = subnet_file(options, network)
    return file.with_name("ready" if not network and file.name == "subnet.env" else f"{file.name}.ready")
