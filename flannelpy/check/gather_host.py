"""Looks at this host: external interface, subnet file and lock, the tunnel device.  Nothing is changed."""

from __future__ import annotations

from pathlib import Path

from flannelpy.backend import catalogue
from flannelpy.backend.device_config import DeviceConfig
from flannelpy.backend.underlay import Routed, Underlay
from flannelpy.backend.vxlan.device import Device
from flannelpy.check import plan as plans
from flannelpy.check.observations import DeviceSeen, FileSeen, HostSeen
from flannelpy.check.plan import Plan
from flannelpy.datapath import vtep
from flannelpy.errors import ConfigError, HostError
from flannelpy.host import external_endpoint, ownership, subnet_file
from flannelpy.linux import identity, instance_lock
from flannelpy.linux.netlink.client import Netlink
from flannelpy.linux.own_devices import own_alias, own_devices
from flannelpy.options import Options
from flannelpy.rtnetlink.links import Link
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease import HostIdentity, Lease

_NO_QUEUE = 0


async def look(netlink: Netlink, options: Options) -> HostSeen:
    """Return the interfaces, and the identity that the flags choose.  Raises HostError, UsageError."""
    external, public_ip = await external_endpoint.choose(options)
    return HostSeen(
        external,
        HostIdentity(public_ip, options.host_id or identity.host_id()),
        await netlink.link(external.name),
        await netlink.links(),
        await netlink.addresses(),
    )


def file(path: Path) -> FileSeen:
    """Return what the subnet file and its lock file show.  Raises HostError."""
    found, holder = subnet_file.read(path), instance_lock.look(path)
    backend = holder.run.backend if holder.run else ""
    if found is None:
        return FileSeen(str(path), is_running=holder.is_running, backend=backend)
    return FileSeen(str(path), *found, is_running=holder.is_running, backend=backend)


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
