"""The host-gw backend: a route to each host's subnet, by its public IP, over the link that all hosts share.

Routes stay when we stop, so that a restart disturbs no traffic.  The first ``apply`` brings all leases there are; what
leads into the network to anybody else goes then.
Counterpart: backend/hostgw/hostgw.go.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network

from flannelpy.errors import HostError
from flannelpy.linux.interface import ExternalInterface
from flannelpy.linux.netlink import Gateway, Netlink
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease import Lease, LeaseAttrs
from flannelpy.subnet.lease_table import Added, LeaseEvent

log = logging.getLogger(__name__)

BACKEND_TYPE = "host-gw"
_RETRY_SECONDS = 1.0


class HostGwBackend:
    """Routes by the kernel alone; every host must be on the link of the external interface."""

    def __init__(self, config: NetworkConfig, external: ExternalInterface, public_ip: IPv4Address | None) -> None:
        """Raises HostError when others know us by an address that is not the interface's."""
        if public_ip not in (None, external.address):
            raise HostError(
                f"-public-ip {public_ip} differs from the address {external.address} of {external.name}: hosts behind "
                "NAT are not supported by the host-gw backend"
            )
        self._network = config.network
        self._external = external
        self._on_link: list[IPv4Network] = []
        self._wanted: dict[IPv4Network, IPv4Address] = {}
        self._is_known = False  # that these are all
        self._present: dict[IPv4Network, Gateway] | None = None
        self._changed = asyncio.Event()
        self._reconciling = asyncio.Lock()

    def lease_attrs(self, public_ip: IPv4Address) -> LeaseAttrs:
        """The public IP is the gateway."""
        return LeaseAttrs(public_ip, BACKEND_TYPE)

    async def start(self, lease: Lease) -> int:
        """Routes come with the leases; nothing is put around packets, so the MTU is the interface's."""
        async with Netlink() as netlink:
            link = await netlink.link(self._external.name)
            self._on_link = [
                IPv4Network((int(one.address), one.prefix_len), strict=False)
                for one in await netlink.addresses()
                if link is not None and one.link_index == link.index
            ]
        return self._external.mtu

    def apply(self, events: Sequence[LeaseEvent]) -> None:
        """Routes follow the leases, in ``run``."""
        for event in events:
            if isinstance(event, Added):
                self._add(event.lease)
            else:
                log.info("Subnet removed: %s", event.subnet)
                self._wanted.pop(event.subnet, None)
        self._is_known = True
        self._changed.set()

    def _add(self, lease: Lease) -> None:
        subnet, attrs = lease.subnet, lease.attrs
        self._wanted.pop(subnet, None)
        if attrs.backend_type != BACKEND_TYPE:
            log.warning("Ignoring subnet %s: its backend is %s, ours host-gw", subnet, attrs.backend_type or "udp")
        elif not any(attrs.public_ip in network for network in self._on_link):
            on_link = ", ".join(map(str, self._on_link))
            log.error(
                "Ignoring subnet %s: %s is not on the link of %s (%s), which host-gw needs",
                subnet,
                attrs.public_ip,
                self._external.name,
                on_link,
            )
        else:
            log.info("Subnet added: %s via %s", subnet, attrs.public_ip)
            self._wanted[subnet] = attrs.public_ip

    def describe(self) -> str:
        """How many hosts we can send to."""
        return f"routes: {len(self._wanted)}"

    async def run(self) -> None:
        """Carry over into the kernel what changed."""
        async with Netlink() as netlink:
            while True:
                await self._changed.wait()
                self._changed.clear()
                try:
                    await self._reconcile(netlink, look=False)
                except HostError as error:
                    log.error("%s", error)
                    await asyncio.sleep(_RETRY_SECONDS)
                    self._changed.set()

    async def repair(self, netlink: Netlink) -> list[str]:
        """Routes that somebody removed or changed come back."""
        if self._changed.is_set() or not self._is_known:
            return []
        return [f"route to {subnet} was lost: put right" for subnet in await self._reconcile(netlink, look=True)]

    def close(self) -> None:
        """Routes stay, for traffic to go on while we restart."""

    async def _reconcile(self, netlink: Netlink, *, look: bool) -> list[IPv4Network]:
        """Make the kernel's routes into the network those of the leases; which of them were not.  Raises HostError.

        ``look`` at those that are there, instead of relying on what we know of them.
        """
        async with self._reconciling:
            present = None if look else self._present
            self._present = None  # until it is done, nobody knows
            if present is None:
                present = {one.destination: one for one in await gateways_into(self._network, netlink)}
            wanted = await self._gateways(netlink)
            await netlink.remove_gateways([gateway for subnet, gateway in present.items() if subnet not in wanted])
            changed = [gateway for subnet, gateway in wanted.items() if present.get(subnet) != gateway]
            await netlink.set_gateways(changed)
            self._present = wanted
            return [gateway.destination for gateway in changed]

    async def _gateways(self, netlink: Netlink) -> dict[IPv4Network, Gateway]:
        """The routes that the leases ask for."""
        link = await netlink.link(self._external.name)
        if link is None:
            raise HostError(f"{self._external.name} is gone: no routes to other hosts")
        return {subnet: Gateway(subnet, public_ip, link.index) for subnet, public_ip in self._wanted.items()}


async def gateways_into(network: IPv4Network, netlink: Netlink) -> list[Gateway]:
    """The routes to other hosts' subnets."""
    return [gateway for gateway in await netlink.gateways() if gateway.destination.subnet_of(network)]
