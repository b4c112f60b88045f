"""Looks at this host: external interface, subnet file and lock, the tunnel device.  Nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path

from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.backend import catalogue
from flannelpy.backend.device_config import DeviceConfig
from flannelpy.backend.underlay import Routed, Underlay
from flannelpy.backend.vxlan.device import Device
from flannelpy.check import plan as plans
from flannelpy.check.observations import DaemonSeen, DeviceSeen, FileSeen, HostSeen
from flannelpy.check.plan import Plan
from flannelpy.datapath import vtep
from flannelpy.errors import ConfigError, HostError
from flannelpy.host import external_endpoint, ownership, subnet_file
from flannelpy.linux import identity, instance_lock
from flannelpy.linux.netlink.client import Netlink
from flannelpy.linux.own_devices import own_alias, own_devices
from flannelpy.options import Options, locked_by
from flannelpy.report import InterfaceReport
from flannelpy.rtnetlink.links import Address, Link
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease import HostIdentity, Lease

_NO_QUEUE = 0

# The external interface, and the public IP.
_Endpoint = tuple[ExternalInterface, IPv4Address]


async def look(netlink: Netlink, options: Options, daemon: DaemonSeen) -> HostSeen:
    """Return the interfaces, and the identity that the daemon has, or the flags choose.

    Raises HostError, UsageError.
    """
    links, addresses = await netlink.links(), await netlink.addresses()
    used = _used(daemon.interface, addresses)
    chosen, failure = await _chosen(options)
    if chosen is None and used is None:
        raise HostError(failure)
    external, public_ip = _either(used, chosen)
    return HostSeen(
        external,
        HostIdentity(public_ip, options.host_id or identity.host_id()),
        await netlink.link(external.name),
        links,
        addresses,
        _difference(used, chosen, failure),
    )


def _used(reported: InterfaceReport | None, addresses: Sequence[Address]) -> _Endpoint | None:
    """Return what the daemon uses, as long as this host has that address."""
    if not reported or not reported.address or not reported.public_ip:
        return None
    if reported.address not in {one.address for one in addresses}:
        return None
    return ExternalInterface(reported.name, reported.address, reported.mtu), reported.public_ip


async def _chosen(options: Options) -> tuple[_Endpoint | None, str]:
    """Return what the flags choose, or why they choose nothing.  Raises UsageError."""
    try:
        return await external_endpoint.choose(options), ""
    except HostError as error:
        return None, str(error)


def _either(used: _Endpoint | None, chosen: _Endpoint | None) -> _Endpoint:
    """Return what the flags choose, unless the daemon uses another one."""
    if chosen and (used is None or _identifying(used) == _identifying(chosen)):
        return chosen
    assert used is not None
    return used


def _difference(used: _Endpoint | None, chosen: _Endpoint | None, failure: str) -> str:
    if used is None or (chosen and _identifying(used) == _identifying(chosen)):
        return ""
    ours = _words(chosen) if chosen else f"none ({failure})"
    return f"the external interface of flannelpy is {_words(used)}, and these flags choose {ours}"


def _identifying(endpoint: _Endpoint) -> tuple[IPv4Address, IPv4Address]:
    return endpoint[0].address, endpoint[1]


def _words(endpoint: _Endpoint) -> str:
    external, public_ip = endpoint
    return f"{external.name} with {external.address}, public IP {public_ip}"


def file(path: Path) -> FileSeen:
    """Return what the subnet file and its lock file show.  Raises HostError."""
    found, holder = subnet_file.read(path), instance_lock.look(path)
    backend = holder.run.backend if holder.run else ""
    if found is None:
        return FileSeen(str(path), is_running=holder.is_running, backend=backend)
    return FileSeen(str(path), *found, is_running=holder.is_running, backend=backend)


def running(options: Options) -> Sequence[Path]:
    """Return the subnet files of all flannelpys that run with one in the directories of the flags."""
    directories = dict.fromkeys([options.subnet_file.parent, options.subnet_dir])
    found = (locked_by(lock) for directory in directories for lock in sorted(directory.glob(".*.lock")))
    return [path for path in found if path and _is_running(path)]


def _is_running(path: Path) -> bool:
    try:
        return instance_lock.look(path).is_running
    except HostError:  # a file of another program
        return False


async def flaw(netlink: Netlink, options: Options, host: HostSeen, config: NetworkConfig, path: Path) -> str:
    """Return why this host cannot run the config; empty if it can."""
    routed = Routed.NETWORK
    try:
        plans.by_config(config, host.external, config.network)
        if config.backend.type != "udp":  # whose backend opens a TUN device, which may load a module
            routed = catalogue.create(config, host.external, options, own_alias(path)).routed
        underlay = Underlay(host.external, host.identity.public_ip, ())
        await underlay.check(netlink, config.network, routed)
    except (ConfigError, HostError) as error:
        return str(error)
    return ""


async def device(netlink: Netlink, host: HostSeen, plan: Plan, path: Path, mtu: int, lease: Lease | None) -> DeviceSeen:
    """Return the tunnel device, which should have that MTU, and how it differs.  Raises HostError."""
    tunnel = ownership.tunnel_address(plan.network, plan.subnet)
    own = await own_devices(netlink, own_alias(path), {tunnel})
    link = next((one for one in own if one.kind == ("vxlan" if plan.backend == "vxlan" else "tun")), None)
    if link is None:
        return DeviceSeen(None, ())
    wanted = DeviceConfig(plan.network, tunnel.ip, mtu, _NO_QUEUE)
    try:
        return DeviceSeen(link, await _flaws(netlink, host, plan, path, link, wanted, lease))
    except HostError as error:
        return DeviceSeen(link, [str(error).removeprefix(f"{link.name} ")])


async def _flaws(
    netlink: Netlink, host: HostSeen, plan: Plan, path: Path, link: Link, wanted: DeviceConfig, lease: Lease | None
) -> list[str]:
    mac = vtep.read(lease.attrs) if lease else None
    if plan.vxlan and mac:
        return await Device(plan.vxlan, host.external, mac, wanted, own_alias(path)).flaws(netlink)
    return await wanted.flaws(netlink, link)
