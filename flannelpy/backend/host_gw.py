"""The host-gw backend: a route to each host's subnet, by its public IP, over the link that all hosts share.

Counterpart: backend/hostgw/hostgw.go.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network

from flannelpy.backend.base import reachable
from flannelpy.backend.forwarding import Forwarding
from flannelpy.errors import HostError
from flannelpy.linux.entries import Gateway, Unit
from flannelpy.linux.interface import ExternalInterface, on_link
from flannelpy.linux.netlink import Netlink
from flannelpy.options import Options
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease import Lease, LeaseAttrs
from flannelpy.subnet.lease_table import Added, LeaseEvent
from flannelpy.subnet.renewal import Holder

log = logging.getLogger(__name__)

BACKEND_TYPE = "host-gw"


class HostGwBackend:
    """Routes by the kernel alone; every host must be on the link of the external interface."""

    needs: Sequence[str] = ()
    datagrams = None
    device = ""
    adopts_routes = True

    def __init__(self, config: NetworkConfig, external: ExternalInterface, public_ip: IPv4Address | None) -> None:
        """Raises HostError when others know us by an address that is not the interface's."""
        if public_ip not in (None, external.address):
            raise HostError(
                f"-public-ip {public_ip} differs from the address {external.address} of {external.name}: hosts behind "
                "NAT are not supported by the host-gw backend"
            )
        self._network = config.network
        self._external = external
        self._others: dict[IPv4Network, IPv4Address] = {}
        self._unreachable: dict[IPv4Network, IPv4Address] = {}
        self._forwarding = Forwarding(self._wanted, self._present)

    def lease_attrs(self, holder: Holder, found: LeaseAttrs | None) -> LeaseAttrs:
        """The public IP is the gateway."""
        return LeaseAttrs(holder.public_ip, BACKEND_TYPE)

    async def start(self, lease: Lease) -> int:
        """Routes come with the leases; nothing is put around packets, so the MTU is the interface's."""
        return self._external.mtu

    def apply(self, events: Sequence[LeaseEvent]) -> None:
        """Routes follow the leases, in ``run``."""
        for event in reachable(BACKEND_TYPE, self._network, events, self._others):
            if isinstance(event, Added):
                log.info("Subnet added: %s via %s", event.lease.subnet, event.lease.attrs.public_ip)
                self._others[event.lease.subnet] = event.lease.attrs.public_ip
            else:
                log.info("Subnet removed: %s", event.subnet)
                del self._others[event.subnet]
        self._forwarding.changed()

    def describe(self) -> str:
        """How many hosts we can send to."""
        return f"next hops: {len(self._others) - len(self._unreachable)}"

    async def run(self) -> None:
        """Carry over into the kernel what changed."""
        await self._forwarding.run()

    async def repair(self, netlink: Netlink) -> list[str]:
        """Routes that somebody removed or changed come back."""
        return await self._forwarding.repair(netlink)

    def close(self) -> None:
        """Routes stay, for traffic to go on while we restart."""

    async def _wanted(self, netlink: Netlink) -> Mapping[IPv4Network, Unit]:
        """The routes that the leases ask for, as far as they can be."""
        link = await netlink.link(self._external.name)
        if link is None:
            raise HostError(f"{self._external.name} is gone: no routes to other hosts")
        networks = await on_link(netlink, link)
        before = self._unreachable
        self._unreachable = {
            subnet: gateway
            for subnet, gateway in self._others.items()
            if not any(gateway in network for network in networks)
        }
        for subnet, gateway in self._unreachable.items() - before.items():
            log.error(
                "Ignoring subnet %s: %s is not on the link of %s (%s), which host-gw needs",
                subnet,
                gateway,
                self._external.name,
                ", ".join(map(str, networks)) or "no address",
            )
        return {
            subnet: (Gateway(subnet, gateway, link.index),)
            for subnet, gateway in self._others.items()
            if subnet not in self._unreachable
        }

    async def _present(self, netlink: Netlink) -> Sequence[Gateway]:
        return await gateways_into(self._network, netlink)


async def gateways_into(network: IPv4Network, netlink: Netlink) -> list[Gateway]:
    """The routes to other hosts' subnets."""
    return [gateway for gateway in await netlink.gateways() if gateway.destination.subnet_of(network)]


def create(config: NetworkConfig, external: ExternalInterface, options: Options) -> HostGwBackend:
    """See BackendRoom."""
    return HostGwBackend(config, external, options.public_ip)
