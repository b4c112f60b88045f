"""The host-gw backend: a route to each host's subnet, by its public IP, over the link that all hosts share.

Counterpart: backend/hostgw/hostgw.go.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from itertools import takewhile

from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.backend.kernel_entries import EntryReconciler
from flannelpy.backend.lease_log import LeaseLog
from flannelpy.backend.on_link import OnLink
from flannelpy.backend.route_check import RouteCheck, Way
from flannelpy.backend.underlay import Routed
from flannelpy.chunks import in_chunks
from flannelpy.datapath.traffic import Forwarding
from flannelpy.errors import HostError
from flannelpy.linux.netlink.client import Netlink
from flannelpy.report import BackendReport
from flannelpy.rtnetlink.entries import GatewayRoute, PeerEntries
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease import HostIdentity, Lease, LeaseAttrs
from flannelpy.subnet.lease_table import LeaseAdded, LeaseEvent
from flannelpy.tasks import run_together

log = logging.getLogger(__name__)

BACKEND_TYPE = "host-gw"


class HostGwBackend:
    """Routes by the kernel alone; every host must be on the link of the external interface."""

    exclusive_resources: Sequence[str] = ()
    datagrams = None
    device = ""
    adopts_routes = True
    routed = Routed.SUBNETS

    def __init__(self, config: NetworkConfig, external: ExternalInterface, public_ip: IPv4Address | None) -> None:
        """Raises HostError when others know us by an address that is not the interface's."""
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
        self._network = config.network
        self._external = external
        self._lease_log = LeaseLog(log)
        self._others: dict[IPv4Network, IPv4Address] = {}
        self._leases_version = 0
        self._on_link = OnLink(external.name)
        self._off_link: dict[IPv4Network, IPv4Address] = {}
        self._wanted_for: object = None  # what the entries of the last comparison were made from
        self._entries = EntryReconciler(self._network, self._wanted, self._no_own_link)

    @property
    def forwarding(self) -> Forwarding:
        """By the external interface."""
        external = self._external.name
        return Forwarding([external], external, masquerading=external)

    def lease_attrs(self, host_identity: HostIdentity, found: LeaseAttrs | None) -> LeaseAttrs:
        """The public IP is the gateway."""
        return LeaseAttrs(host_identity.public_ip, BACKEND_TYPE)

    async def start(self, lease: Lease) -> int:
        """Routes come with the leases; nothing is put around packets, so the MTU is the interface's."""
        self._route_check = RouteCheck(self._network, lease.subnet)
        return self._external.mtu

    def apply(self, events: Sequence[LeaseEvent]) -> None:
        """Routes follow the leases, in ``run``."""
        for event in events:
            if isinstance(event, LeaseAdded):
                self._lease_log.added(event.lease.subnet, f" via {event.lease.attrs.public_ip}")
                self._others[event.lease.subnet] = event.lease.attrs.public_ip
            else:
                self._lease_log.removed(event.subnet)
                del self._others[event.subnet]
        self._leases_version += 1
        self._entries.changed()

    async def settled(self) -> None:
        """The entries were added, or the kernel refused them."""
        await self._entries.settled()

    def report(self) -> BackendReport:
        """Return how many peers can be reached."""
        lost = len(self._off_link) + self._entries.unreachable_count + len(self._route_check.unreachable)
        return BackendReport(BACKEND_TYPE, len(self._others) - lost, lost)

    async def run(self) -> None:
        """Carry over into the kernel what changed."""
        await run_together(self._entries.run(), self._on_link.watch(self._entries.changed))

    async def repair(self, netlink: Netlink) -> list[str]:
        """Routes that another program removed or changed come back."""
        self._lease_log.report()
        repaired = await self._entries.repair(netlink)
        if self._entries.is_settled and not repaired:
            async with self._entries.lock:
                await check_routes(netlink, self._entries, self._route_check)
                await self._route_check.report_leftovers(netlink, self._link_index, self._entries.units)
            self._check_link()
        return repaired

    def _check_link(self) -> None:
        """Raises HostError when there are peers, and none of them is on the link."""
        if self._off_link and len(self._off_link) == len(self._others):
            gateway = next(iter(self._off_link.values()))
            raise HostError(
                f"No peer is on the link of {self._external.name}, which host-gw needs; of {gateway}, for one, "
                f"{self._on_link.obstacle(gateway)}"
            )

    def close(self) -> None:
        """Routes stay, for traffic to continue while we restart."""

    async def _wanted(self, netlink: Netlink) -> Mapping[IPv4Network, PeerEntries]:
        """The routes that the leases ask for, as far as they can be."""
        link = await netlink.link(self._external.name)
        if link is None:
            raise HostError(f"{self._external.name} is gone: no routes to other hosts")
        self._link_index = link.index
        version, others = self._leases_version, list(self._others.items())
        await self._on_link.follow((gateway for _, gateway in others), version)
        await self._on_link.update(netlink, link)
        if self._wanted_for == (link.index, self._on_link.version, version):
            return self._entries.units
        self._wanted_for = link.index, self._on_link.version, version
        units, off_link = dict[IPv4Network, PeerEntries](), dict[IPv4Network, IPv4Address]()
        async for chunk in in_chunks(others):
            for subnet, gateway in chunk:
                if self._on_link.obstacle(gateway):
                    off_link[subnet] = gateway
                else:
                    units[subnet] = (GatewayRoute(subnet, gateway, link.index),)
        self._note_off_link(off_link)
        return units

    def _note_off_link(self, off_link: dict[IPv4Network, IPv4Address]) -> None:
        """Log each of these hosts once."""
        before, self._off_link = self._off_link, off_link
        for subnet, gateway in off_link.items():
            if before.get(subnet) != gateway:
                cause = f"{gateway} is not on the link of {self._external.name}, which host-gw needs"
                self._lease_log.ignored(subnet, f"{cause}: {self._on_link.obstacle(gateway)}")

    async def _no_own_link(self, _: Netlink) -> int:
        return 0


async def check_routes(netlink: Netlink, reconciler: EntryReconciler, check: RouteCheck, own_link: int = 0) -> None:
    """Ask the kernel whether it uses the routes that the reconciler added.  Raises HostError."""
    units, lost = reconciler.units, reconciler.unreachable
    subnets, lengths_in_use = list[IPv4Network](), set[int]()
    async for chunk in in_chunks(units):
        subnets += [subnet for subnet in chunk if not lost or subnet not in lost]
        lengths_in_use.update(subnet.prefixlen for subnet in chunk)
    lengths = sorted(lengths_in_use, reverse=True)

    def way(subnet: IPv4Network, address: IPv4Address) -> Way:
        """By the longest subnet with the address: leases may overlap."""
        longer = takewhile(lambda length: length > subnet.prefixlen, lengths)
        holders = (IPv4Network((int(address) >> 32 - length << 32 - length, length)) for length in longer)
        host_identity = next((one for one in holders if one in units and one not in lost), subnet)
        route = units[host_identity][-1]
        assert isinstance(route, GatewayRoute)
        return Way(route.link_index, route.gateway)

    await check.check(netlink, subnets, way, own_link, reconciler.blocked)
