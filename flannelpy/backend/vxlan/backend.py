"""The vxlan backend: the kernel carries packets in VXLAN, we tell it where each subnet is.

For each lease there are three entries, put before any packet needs them: a route to the subnet by way of the other
host's tunnel address, that address's MAC, and the public IP behind the MAC.  The original answers the kernel instead,
whenever it asks for the MAC of a container; on the wire both look the same, so hosts of both kinds reach each other.
Counterpart: backend/vxlan/vxlan.go.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.backend.device_config import DeviceConfig
from flannelpy.backend.host_gw import check_routes
from flannelpy.backend.kernel_entries import EntryReconciler
from flannelpy.backend.lease_log import LeaseLog
from flannelpy.backend.on_link import OnLink
from flannelpy.backend.route_check import RouteCheck
from flannelpy.backend.underlay import Routed
from flannelpy.backend.vxlan.device import Device
from flannelpy.backend.vxlan.port_probe import PortProbe
from flannelpy.chunks import in_chunks
from flannelpy.datapath import vtep, vxlan_settings
from flannelpy.datapath.traffic import Datagrams, Forwarding
from flannelpy.linux.netlink.client import Netlink
from flannelpy.report import BackendReport
from flannelpy.rtnetlink.entries import FdbEntry, GatewayRoute, Neighbour, PeerEntries
from flannelpy.rtnetlink.links import Link
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease import HostIdentity, Lease, LeaseAttrs
from flannelpy.subnet.lease_table import LeaseAdded, LeaseEvent
from flannelpy.tasks import run_together

log = logging.getLogger(__name__)


class _Vtep(NamedTuple):
    """Where another host is reached."""

    public_ip: IPv4Address
    mac: str
    created: int


class VxlanBackend:
    """One VXLAN device; the same VNI and port on all hosts."""

    adopts_routes = True
    routed = Routed.NETWORK

    def __init__(self, config: NetworkConfig, external: ExternalInterface, alias: str) -> None:
        """``alias`` marks the device as ours.  Raises ConfigError."""
        self._alias = alias
        self._network = config.network
        self._settings = vxlan_settings.parse(config.backend.options, external.mtu)
        self._external = external
        self._port_probe = PortProbe(external.address, self._settings, config)
        self._lease_log = LeaseLog(log)
        self._others: dict[IPv4Network, _Vtep] = {}
        self._twins: dict[IPv4Network, _Vtep] = {}
        self._flaws: list[str] = []  # that are not put right yet
        self._leases_version = 0
        self._on_link = OnLink(external.name)
        self._wanted_for: object = None  # what the entries of the last comparison were made from
        self._entries = EntryReconciler(self._network, self._wanted, self._own_link)

    @property
    def exclusive_resources(self) -> Sequence[str]:
        """The VNI names the device."""
        return [f"VNI {self._settings.vni}"]

    @property
    def datagrams(self) -> Datagrams:
        """The kernel derives the source port from the inner flow."""
        return Datagrams(self._settings.device_name, self._settings.port, 0, accepts_local=False)

    @property
    def forwarding(self) -> Forwarding:
        """By our device; with DirectRouting, from hosts on the link by the external interface, too."""
        external = self._external.name
        if not self._settings.direct_routing:
            return Forwarding([self.device], external)
        return Forwarding([self.device, external], external, masquerading=external)

    @property
    def device(self) -> str:
        """The device is named after the VNI."""
        return self._settings.device_name

    def lease_attrs(self, host_identity: HostIdentity, found: LeaseAttrs | None) -> LeaseAttrs:
        """The public IP and the MAC of our device."""
        return vtep.attrs(host_identity, self._settings.vni, found)

    async def start(self, lease: Lease) -> int:
        """Set the device up; how to reach the others comes with their leases."""
        mac = vtep.read(lease.attrs)
        assert mac is not None, "we wrote it"
        self._own = _Vtep(lease.attrs.public_ip, mac, lease.created)
        device_config = DeviceConfig(self._network, lease.subnet.network_address, self._settings.mtu, queue=0)
        self._device = Device(self._settings, self._external, mac, device_config, self._alias)
        self._route_check = RouteCheck(self._network, lease.subnet)
        async with Netlink() as netlink:
            await self._device.set_up(netlink)
            await self._route_check.check_network(netlink, await self._own_link(netlink))
        return self._settings.mtu

    def apply(self, events: Sequence[LeaseEvent]) -> None:
        """The kernel's entries follow the leases, in ``run``."""
        for event in events:
            if isinstance(event, LeaseAdded):
                self._add(event.lease)
            elif event.subnet in self._others:  # not of a lease without a MAC
                self._lease_log.removed(event.subnet)
                self._port_probe.forget(event.subnet)
                del self._others[event.subnet]
        self._leases_version += 1
        self._entries.changed()

    def _add(self, lease: Lease) -> None:
        mac = vtep.read(lease.attrs)
        if mac is None:
            self._lease_log.ignored(lease.subnet, "its BackendData has no VtepMAC of a host")
            self._port_probe.forget(lease.subnet)
            self._others.pop(lease.subnet, None)
        else:
            self._lease_log.added(lease.subnet)
            self._port_probe.follow(lease)
            self._others[lease.subnet] = _Vtep(lease.attrs.public_ip, mac, lease.created)

    async def settled(self) -> None:
        """The entries were added, or the kernel refused them."""
        await self._entries.settled()

    def report(self) -> BackendReport:
        """Return how many peers can be reached."""
        lost = len(self._twins) + self._entries.unreachable_count + len(self._route_check.unreachable)
        return BackendReport("vxlan", len(self._others) - lost, lost)

    async def run(self) -> None:
        """Carry over into the kernel what changed."""
        works: list[Coroutine[object, object, object]] = [self._entries.run(), self._port_probe.run()]
        if self._settings.direct_routing:
            works.append(self._on_link.watch(self._entries.changed))
        await run_together(*works)

    async def repair(self, netlink: Netlink) -> list[str]:
        """The device, and what leads to other hosts."""
        self._lease_log.report()
        # A repair that failed is not done, though a second look may find the device with all that it should have.
        self._flaws = await self._device.flaws(netlink) or self._flaws
        if self._flaws:
            removed = await self._device.set_up(netlink)
            self._flaws += [flaw for flaw in removed if flaw not in self._flaws]  # what has come meanwhile
        flaws, self._flaws = self._flaws, []
        lost = await self._entries.repair(netlink)
        repaired = [f"{self._device.name} {flaw}: put right" for flaw in flaws] or lost
        if self._entries.is_settled and not repaired:
            async with self._entries.lock:
                await check_routes(netlink, self._entries, self._route_check, await self._own_link(netlink))
                await self._report_leftovers(netlink)
        return repaired

    async def _report_leftovers(self, netlink: Netlink) -> None:
        lower = await netlink.link(self._external.name)
        if lower:
            await self._route_check.report_leftovers(netlink, lower.index, self._entries.units)

    def close(self) -> None:
        """The device stays, for traffic to go on while we restart."""

    async def _wanted(self, netlink: Netlink) -> Mapping[IPv4Network, PeerEntries]:
        """The entries that the leases ask for."""
        link = await self._device.link(netlink)
        version, others = self._leases_version, dict(self._others)
        direct = await netlink.link(self._external.name) if self._settings.direct_routing else None
        if direct:
            await self._on_link.follow((host.public_ip for host in others.values()), version)
            await self._on_link.update(netlink, direct)
        made_from = link.index, direct and direct.index, self._on_link.version, version
        if self._wanted_for == made_from:
            return self._entries.units
        self._wanted_for = made_from
        units: dict[IPv4Network, PeerEntries] = {}
        async for chunk in in_chunks(self._without_twins(others).items()):
            for subnet, host in chunk:
                if direct and not self._on_link.obstacle(host.public_ip):
                    units[subnet] = (GatewayRoute(subnet, host.public_ip, direct.index),)
                else:
                    units[subnet] = _by_vxlan(subnet, host, link)
        return units

    def _without_twins(self, others: Mapping[IPv4Network, _Vtep]) -> dict[IPv4Network, _Vtep]:
        """All but those with the MAC or the tunnel address of one that was created earlier: either leads to one only.

        Machines that are clones have one MAC; overlapping subnets can have one first address.
        """
        owners = {self._own.mac: self._own.public_ip}
        holders: dict[IPv4Address, IPv4Network] = {}
        before, self._twins = self._twins, {}
        for subnet, host in sorted(others.items(), key=lambda one: one[1].created):
            owner = owners.setdefault(host.mac, host.public_ip)
            host_identity = holders.setdefault(subnet.network_address, subnet) if owner == host.public_ip else subnet
            if owner == host.public_ip and host_identity == subnet:
                continue
            self._twins[subnet] = host
            if before.get(subnet) != host:
                cause = f"{host.public_ip} has the VtepMAC {host.mac} of {owner}"
                if host_identity != subnet:
                    cause = f"its first address is the tunnel address of {host_identity}"
                self._lease_log.ignored(subnet, cause)
        return {subnet: host for subnet, host in others.items() if subnet not in self._twins}

    async def _own_link(self, netlink: Netlink) -> int:
        return (await self._device.link(netlink)).index


def _by_vxlan(subnet: IPv4Network, host: _Vtep, link: Link) -> PeerEntries:
    tunnel_address = subnet.network_address
    return (
        FdbEntry(host.mac, host.public_ip, link.index),
        Neighbour(tunnel_address, host.mac, link.index),
        GatewayRoute(subnet, tunnel_address, link.index, is_onlink=True),
    )
