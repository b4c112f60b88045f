"""The backend whose packets the kernel routes: host-gw and vxlan differ in how a lease becomes kernel entries.

This class follows the leases, keeps the kernel's entries equal to them, and checks that the kernel uses them.  A
subclass adds what is its own: the lease attributes, the device if it has one, and the entries that lead to a peer.

No code here is on the way of a packet.
Counterpart: handleSubnetEvents in backend/hostgw/hostgw.go and backend/vxlan/vxlan.go, which have it twice.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from itertools import takewhile
from typing import Generic, NamedTuple, Protocol, TypeVar

from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.backend.kernel_entries import EntryReconciler
from flannelpy.backend.lease_log import LeaseLog
from flannelpy.backend.on_link import OnLink
from flannelpy.backend.route_check import RouteCheck, Way
from flannelpy.chunks import in_chunks
from flannelpy.linux.netlink.client import Netlink
from flannelpy.report import BackendReport, PeerReport
from flannelpy.rtnetlink.entries import GatewayRoute, PeerEntries
from flannelpy.rtnetlink.links import Link
from flannelpy.subnet.lease import Lease
from flannelpy.subnet.lease_table import LeaseAdded, LeaseEvent
from flannelpy.tasks import run_together


class Peer(Protocol):
    """The host that holds a lease, as far as its entries depend on it; compared by value."""

    @property
    def public_ip(self) -> IPv4Address:
        """Return the address by which the host is reached on the underlay."""


PeerT = TypeVar("PeerT", bound=Peer)


class _Ignored(NamedTuple):
    """A lease that gets no entries; ``public_ip``: of its peer, None if the backend cannot use the attributes."""

    subnet: IPv4Network
    public_ip: IPv4Address | None

    def __str__(self) -> str:
        return f"{self.subnet} via {self.public_ip}" if self.public_ip else str(self.subnet)


class KernelRoutedBackend(ABC, Generic[PeerT]):
    """Keeps the kernel's entries equal to the leases; subclasses make the entries.

    ``type``: the value of Backend.Type.  ``overhead``: the bytes that encapsulation adds to a packet.
    """

    type: str
    overhead: int
    adopts_routes = True
    adopts_device = False

    def __init__(
        self, network: IPv4Network, external: ExternalInterface, log: logging.Logger, *, has_direct_routes: bool
    ) -> None:
        """Write to ``log``, the subclass's own.

        ``has_direct_routes``: peers on the link of the external interface get a route by their public IP.
        """
        self._network = network
        self._external = external
        self._has_direct_routes = has_direct_routes
        self._lease_log = LeaseLog(log)
        self._peers: dict[IPv4Network, PeerT] = {}
        self._leases_version = 0
        self._since: dict[IPv4Network, float] = {}  # when each lease was added
        self._ignored: dict[IPv4Network, PeerT] = {}  # of the peers those that get no entries
        self._obstacle_of: Mapping[IPv4Network, str] = {}  # to the entries of each of them
        self._unusable: dict[IPv4Network, str] = {}  # leases without a peer, each with the cause
        self._on_link = OnLink(external.name)
        self._ways: set[bool] = set()  # by which peers have entries: direct routes, or the backend's device
        self._mtu = 0
        self._made_from: object = None  # on what the entries of the last comparison depend
        self._entries = EntryReconciler(network, self._wanted, self._own_link)

    # What differs between the backends.

    @property
    @abstractmethod
    def device(self) -> str:
        """Return the name of the backend's own device, empty without one."""

    @abstractmethod
    async def _set_up(self, lease: Lease) -> int:
        """Set up the device if there is one; return the MTU that containers may use.  Raises HostError."""

    @abstractmethod
    def _add(self, lease: Lease) -> None:
        """Log the lease and set its peer; without a usable one, remove the peer and note the cause."""

    @abstractmethod
    async def _obstacles(self, peers: Mapping[IPv4Network, PeerT]) -> Mapping[IPv4Network, str]:
        """Return the peers that can get no entries, each with the cause."""

    @abstractmethod
    def _peer_entries(self, subnet: IPv4Network, peer: PeerT, own_link: int, direct_link: int) -> PeerEntries:
        """Return the entries of a peer without an obstacle.

        ``own_link`` is the index of the backend's own device, 0 without one.  ``direct_link`` is that of the external
        interface if the peer is on its link and may have a direct route, else 0.
        """

    def _remove(self, subnet: IPv4Network) -> None:
        """Forget a subnet, and log its removal if it has a peer."""
        self._unusable.pop(subnet, None)
        if self._peers.pop(subnet, None):
            self._lease_log.removed(subnet)

    async def _own_link(self, netlink: Netlink) -> int:
        """Return the index of the backend's own device, 0 without one.  Raises HostError."""
        return 0

    async def _external_link(self, netlink: Netlink) -> Link | None:
        """Return the external interface if peers can have direct routes by it.  Raises HostError."""
        return await netlink.link(self._external.name) if self._has_direct_routes else None

    async def _repair_device(self, netlink: Netlink) -> list[str]:
        """Restore the backend's own device; return one line for each repair.  Raises HostError."""
        return []

    def _check_peers(self) -> None:
        """Raise HostError if no peer can be reached."""

    def _background(self) -> Sequence[Coroutine[object, object, object]]:
        """Return what runs beside the reconciler until it is cancelled."""
        return [self._on_link.watch(self._entries.changed)] if self._has_direct_routes else []

    # What is the same: the methods of Backend.

    async def start(self, lease: Lease) -> int:
        """Set up the device; the routes follow with the leases, in ``run``.  Raises HostError."""
        self._route_check = RouteCheck(self._network, lease.subnet)
        self._mtu = await self._set_up(lease)
        return self._mtu

    def apply(self, events: Sequence[LeaseEvent]) -> None:
        """Note the changed leases; ``run`` changes the kernel's entries."""
        now = time.time()
        for event in events:
            if isinstance(event, LeaseAdded):
                self._since.setdefault(event.lease.subnet, now)
                self._add(event.lease)
            else:
                self._since.pop(event.subnet, None)
                self._remove(event.subnet)
        self._leases_version += 1
        self._entries.changed()

    async def settled(self) -> None:
        """Return once the first entries were added, or the kernel rejected them."""
        await self._entries.settled()

    def report(self) -> BackendReport:
        """Return how many peers can be reached."""
        unreachable = len(self._ignored) + self._entries.unreachable_count + len(self._route_check.unreachable)
        return BackendReport(
            self.type,
            len(self._peers) - unreachable,
            unreachable + len(self._unusable),
            device=self.device,
            mtu=self._mtu,
            overhead=self.overhead,
        )

    async def refresh(self) -> None:
        """Do nothing: the kernel carries the packets, and counts them by device only."""

    async def peer_reports(self) -> AsyncIterator[list[PeerReport]]:
        """Yield the reports of all peers in chunks, as Backend demands."""
        async for chunk in in_chunks(list(self._peers.items())):
            yield [
                PeerReport(subnet, peer.public_ip, self._since[subnet], self._why_unreachable(subnet))
                for subnet, peer in chunk
                if subnet in self._peers
            ]

    def _why_unreachable(self, subnet: IPv4Network) -> str:
        return (
            self._obstacle_of.get(subnet)
            or self._entries.why_unreachable(subnet)
            or self._route_check.why_unreachable(subnet)
        )

    async def run(self) -> None:
        """Change the kernel's entries as the leases change, until cancelled."""
        await run_together(self._entries.run(), *self._background())

    async def repair(self, netlink: Netlink) -> list[str]:
        """Restore the device and the entries, then check that the kernel uses them.  Raises HostError."""
        self._lease_log.report()
        device_repairs = await self._repair_device(netlink)
        entry_repairs = await self._entries.repair(netlink)
        repairs = device_repairs or entry_repairs
        if self._entries.is_settled and not repairs:
            async with self._entries.lock:
                await self._check_routes(netlink)
                await self._report_leftovers(netlink)
            self._check_peers()
        return repairs

    async def close(self) -> None:
        """Keep device and entries, so that traffic continues while flannelpy restarts."""

    async def _wanted(self, netlink: Netlink) -> Mapping[IPv4Network, PeerEntries]:
        """Return the entries that the leases ask for: the same object until they change.  Raises HostError."""
        own_link, external = await self._own_link(netlink), await self._external_link(netlink)
        version, peers = self._leases_version, dict(self._peers)
        if external:
            await self._on_link.follow((peer.public_ip for peer in peers.values()), version)
            await self._on_link.update(netlink, external)
        made_from = own_link, external and external.index, self._on_link.version, version
        if self._made_from != made_from:
            self._made_from = made_from
            return await self._make_entries(peers, own_link, external.index if external else 0)
        return self._entries.peer_entries

    async def _make_entries(
        self, peers: Mapping[IPv4Network, PeerT], own_link: int, external_link: int
    ) -> Mapping[IPv4Network, PeerEntries]:
        obstacles = await self._obstacles(peers)
        found = dict[IPv4Network, PeerEntries]()
        ways = set[bool]()
        async for chunk in in_chunks(peers.items()):
            for subnet, peer in chunk:
                if subnet not in obstacles:
                    is_direct = external_link > 0 and not self._on_link.obstacle(peer.public_ip)
                    ways.add(is_direct)
                    found[subnet] = self._peer_entries(subnet, peer, own_link, external_link if is_direct else 0)
        self._note_ignored(peers, obstacles)
        self._ways = ways
        return found

    def _note_ignored(self, peers: Mapping[IPv4Network, PeerT], obstacles: Mapping[IPv4Network, str]) -> None:
        self._ignored, self._obstacle_of = {subnet: peers[subnet] for subnet in obstacles}, obstacles
        unusable = {_Ignored(subnet, None): cause for subnet, cause in self._unusable.items()}
        ignored = {_Ignored(subnet, peers[subnet].public_ip): cause for subnet, cause in obstacles.items()}
        self._lease_log.ignored(unusable | ignored)

    async def _check_routes(self, netlink: Netlink) -> None:
        """Ask the kernel whether it uses the routes that the reconciler added.  Raises HostError."""
        wanted, unreachable = self._entries.peer_entries, self._entries.unreachable
        subnets, lengths_in_use = list[IPv4Network](), set[int]()
        async for chunk in in_chunks(wanted):
            subnets += [subnet for subnet in chunk if not unreachable or subnet not in unreachable]
            lengths_in_use.update(subnet.prefixlen for subnet in chunk)
        lengths = sorted(lengths_in_use, reverse=True)

        def way(subnet: IPv4Network, address: IPv4Address) -> Way:
            """Return the way of the longest subnet that contains the address, because leases may overlap."""
            longer = takewhile(lambda length: length > subnet.prefixlen, lengths)
            around = (IPv4Network((int(address) >> 32 - length << 32 - length, length)) for length in longer)
            longest = next((one for one in around if one in wanted and one not in unreachable), subnet)
            route = wanted[longest][-1]
            assert isinstance(route, GatewayRoute)
            return Way(route.link_index, route.gateway)

        own_link = await self._own_link(netlink)
        await self._route_check.check(netlink, subnets, way, own_link, self._entries.blocked)

    async def _report_leftovers(self, netlink: Netlink) -> None:
        external = await netlink.link(self._external.name)
        if external:
            await self._route_check.report_leftovers(netlink, external.index, self._entries.peer_entries)
