"""The vxlan backend: the kernel encapsulates packets in VXLAN, and flannelpy adds the entries that lead to each subnet.

For each lease there are three entries, added before any packet needs them: a route to the subnet by the peer's tunnel
address, that address's MAC, and the public IP behind the MAC.  The original instead answers the kernel each time it
asks for the MAC of a container.  On the wire both look the same, so hosts of both kinds reach each other.
Counterpart: backend/vxlan/vxlan.go.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.backend.device_config import DeviceConfig
from flannelpy.backend.kernel_routed import KernelRoutedBackend
from flannelpy.backend.underlay import Routed
from flannelpy.backend.vxlan.device import Device
from flannelpy.backend.vxlan.port_probe import PortProbe
from flannelpy.datapath import vtep, vxlan_settings
from flannelpy.datapath.traffic import Datagrams, Forwarding
from flannelpy.linux.netlink.client import Netlink
from flannelpy.rtnetlink.entries import FdbEntry, GatewayRoute, Neighbour, PeerEntries
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease import HostIdentity, Lease, LeaseAttrs

log = logging.getLogger(__name__)


class _Vtep(NamedTuple):
    """A peer: its public IP, the MAC of its VXLAN device, and when its lease was created."""

    public_ip: IPv4Address
    mac: str
    created: int


class VxlanBackend(KernelRoutedBackend[_Vtep]):
    """One VXLAN device; VNI and port are the same on all hosts."""

    type = vtep.BACKEND_TYPE
    overhead = vxlan_settings.ENCAP_OVERHEAD
    routed = Routed.NETWORK

    def __init__(self, config: NetworkConfig, external: ExternalInterface, alias: str) -> None:
        """Mark the device with ``alias``.  Raises ConfigError."""
        self._settings = vxlan_settings.parse(config.backend.options, external.mtu)
        self._schema = config.schema
        super().__init__(config.network, external, log, has_direct_routes=self._settings.direct_routing)
        self._alias = alias
        self._port_probe = PortProbe(external.address, self._settings, config)
        self._flaws: list[str] = []  # of the device, not repaired yet

    @property
    def exclusive_resources(self) -> Sequence[str]:
        """Return the VNI, which names the device."""
        return [f"VNI {self._settings.vni}"]

    @property
    def datagrams(self) -> Datagrams:
        """Return the device and its port; the kernel derives the source port from the inner flow."""
        return Datagrams(self._settings.device_name, self._settings.port, 0, accepts_local=False)

    @property
    def forwarding(self) -> Forwarding:
        """Return the device; with DirectRouting, also the external interface for peers on its link."""
        external = self._external.name
        if not self._settings.direct_routing:
            return Forwarding([self.device], external)
        unused = {frozenset({True}): (self.device,), frozenset({False}): (external,)}.get(frozenset(self._ways), ())
        return Forwarding([self.device, external], external, masquerading=external, unused=unused)

    @property
    def device(self) -> str:
        """Return the device's name, which contains the VNI."""
        return self._settings.device_name

    def lease_attrs(self, host_identity: HostIdentity, found: LeaseAttrs | None) -> LeaseAttrs:
        """Return the public IP and the MAC of our device; in etcd v3 also the VNI."""
        return vtep.attrs(host_identity, self._settings.vni, self._schema, found)

    async def _set_up(self, lease: Lease) -> int:
        mac = vtep.read(lease.attrs)
        assert mac is not None, "lease_attrs wrote it"
        self._own = _Vtep(lease.attrs.public_ip, mac, lease.created)
        device_config = DeviceConfig(self._network, lease.subnet.network_address, self._settings.mtu, queue=0)
        self._device = Device(self._settings, self._external, mac, device_config, self._alias)
        async with Netlink() as netlink:
            await self._device.set_up(netlink)
            await self._route_check.check_network(netlink, await self._own_link(netlink))
        return self._settings.mtu

    def _add(self, lease: Lease) -> None:
        mac = vtep.read(lease.attrs)
        if mac is None:
            self._unusable[lease.subnet] = "its BackendData has no VtepMAC of a host"
            self._port_probe.forget(lease.subnet)
            self._peers.pop(lease.subnet, None)
        else:
            self._lease_log.added(lease.subnet)
            self._unusable.pop(lease.subnet, None)
            self._port_probe.follow(lease)
            self._peers[lease.subnet] = _Vtep(lease.attrs.public_ip, mac, lease.created)

    def _remove(self, subnet: IPv4Network) -> None:
        super()._remove(subnet)
        self._port_probe.forget(subnet)

    async def _own_link(self, netlink: Netlink) -> int:
        return (await self._device.link(netlink)).index

    async def _repair_device(self, netlink: Netlink) -> list[str]:
        # After a failed repair, the next check may find the device without flaws: its flaws count until one succeeds.
        self._flaws = await self._device.flaws(netlink) or self._flaws
        if self._flaws:
            removed = await self._device.set_up(netlink)
            self._flaws += [flaw for flaw in removed if flaw not in self._flaws]  # addresses added meanwhile
        flaws, self._flaws = self._flaws, []
        return [f"{self._device.name} {flaw}; restored" for flaw in flaws]

    def _background(self) -> Sequence[Coroutine[object, object, object]]:
        return [*super()._background(), self._port_probe.run()]

    async def _obstacles(self, peers: Mapping[IPv4Network, _Vtep]) -> Mapping[IPv4Network, str]:
        """Return the peers whose MAC or tunnel address belongs to a lease that was created earlier.

        The kernel has one public IP for a MAC, and one MAC for a tunnel address.  Cloned machines have one MAC;
        overlapping subnets can have one first address.
        """
        mac_owners = {self._own.mac: self._own.public_ip}
        address_owners: dict[IPv4Address, IPv4Network] = {}
        found: dict[IPv4Network, str] = {}
        for subnet, peer in sorted(peers.items(), key=lambda one: one[1].created):
            owner = mac_owners.setdefault(peer.mac, peer.public_ip)
            if owner != peer.public_ip:
                found[subnet] = f"it has the VtepMAC {peer.mac} of {owner}"
            elif (holder := address_owners.setdefault(subnet.network_address, subnet)) != subnet:
                found[subnet] = f"its first address is the tunnel address of {holder}"
        return found

    def _peer_entries(self, subnet: IPv4Network, peer: _Vtep, own_link: int, direct_link: int) -> PeerEntries:
        if direct_link:
            return (GatewayRoute(subnet, peer.public_ip, direct_link),)
        tunnel_address = subnet.network_address
        return (
            FdbEntry(peer.mac, peer.public_ip, own_link),
            Neighbour(tunnel_address, peer.mac, own_link),
            GatewayRoute(subnet, tunnel_address, own_link, is_onlink=True),
        )
