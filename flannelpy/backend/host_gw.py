"""The host-gw backend: a route to each peer's subnet by its public IP, over the link that all hosts share.

Counterpart: backend/hostgw/hostgw.go.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.backend.kernel_routed import KernelRoutedBackend
from flannelpy.backend.underlay import Routed
from flannelpy.chunks import in_chunks
from flannelpy.datapath.traffic import Forwarding
from flannelpy.errors import HostError
from flannelpy.linux.netlink.client import Netlink
from flannelpy.rtnetlink.entries import GatewayRoute, PeerEntries
from flannelpy.rtnetlink.links import Link
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease import HostIdentity, Lease, LeaseAttrs

log = logging.getLogger(__name__)

BACKEND_TYPE = "host-gw"


class _Gateway(NamedTuple):
    """A peer: its public IP is the gateway of the route to its subnet."""

    public_ip: IPv4Address


class HostGwBackend(KernelRoutedBackend[_Gateway]):
    """Routes without encapsulation; every peer must be on the link of the external interface."""

    type = BACKEND_TYPE
    exclusive_resources: Sequence[str] = ()
    datagrams = None
    device = ""
    overhead = 0  # nothing encapsulates the packets
    routed = Routed.SUBNETS

    def __init__(self, config: NetworkConfig, external: ExternalInterface, public_ip: IPv4Address | None) -> None:
        """Raise HostError if peers know this host by an address that is not the interface's."""
        if public_ip not in (None, external.address):
            raise HostError(
                f"-public-ip {public_ip} differs from the address {external.address} of {external.name}: hosts behind "
                "NAT are not supported by the host-gw backend"
            )
        if external.other_holder:
            raise HostError(
                f"{external.address} is an address of {external.holder}, and the host-gw backend routes by "
                f"{external.name}: other hosts need an address of {external.name} as their gateway; name it by -iface"
            )
        super().__init__(config.network, external, log, has_direct_routes=True)

    @property
    def forwarding(self) -> Forwarding:
        """Return the external interface in both directions."""
        external = self._external.name
        return Forwarding([external], external, masquerading=external)

    def lease_attrs(self, host_identity: HostIdentity, found: LeaseAttrs | None) -> LeaseAttrs:
        """Return the public IP, which is the peers' gateway, and the backend type."""
        return LeaseAttrs(host_identity.public_ip, BACKEND_TYPE)

    async def _set_up(self, lease: Lease) -> int:
        """Return the MTU of the external interface: nothing encapsulates the packets."""
        return self._external.mtu

    def _add(self, lease: Lease) -> None:
        self._lease_log.added(lease.subnet, f" via {lease.attrs.public_ip}")
        self._peers[lease.subnet] = _Gateway(lease.attrs.public_ip)

    async def _external_link(self, netlink: Netlink) -> Link:
        link = await netlink.link(self._external.name)
        if link is None:
            raise HostError(f"{self._external.name} is gone: no routes to other hosts")
        return link

    async def _obstacles(self, peers: Mapping[IPv4Network, _Gateway]) -> Mapping[IPv4Network, str]:
        found: dict[IPv4Network, str] = {}
        async for chunk in in_chunks(peers.items()):
            for subnet, peer in chunk:
                if obstacle := self._on_link.obstacle(peer.public_ip):
                    cause = f"it is not on the link of {self._external.name}, which host-gw needs"
                    found[subnet] = f"{cause}: {obstacle}"
        return found

    def _peer_entries(self, subnet: IPv4Network, peer: _Gateway, own_link: int, direct_link: int) -> PeerEntries:
        return (GatewayRoute(subnet, peer.public_ip, direct_link),)

    def _check_peers(self) -> None:
        """Raise HostError if there are peers, and none of them is on the link."""
        if self._ignored and len(self._ignored) == len(self._peers):
            gateway = next(iter(self._ignored.values())).public_ip
            raise HostError(
                f"No peer is on the link of {self._external.name}, which host-gw needs; of {gateway}, for one, "
                f"{self._on_link.obstacle(gateway)}"
            )
