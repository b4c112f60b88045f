"""Follows the chain from the config to the containers of the peers, and returns a line for each thing that it saw.

The gatherers act, the judges decide; this module calls them in order, and hands on what one link needs of another.  A
link that cannot be looked at leaves out those that depend on it.
Counterpart: none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from flannelpy.backend.underlay import Underlay
from flannelpy.check import (
    gather_host,
    gather_rules,
    gather_store,
    gather_subnet,
    gather_ways,
    judge_host,
    judge_peers,
    judge_store,
)
from flannelpy.check import plan as plans
from flannelpy.check.codes import Code
from flannelpy.check.gather_peers import Pings
from flannelpy.check.lines import Line, in_order
from flannelpy.check.observations import DaemonSeen, DeviceSeen, HostSeen, Peer, PeerSeen, StoreSeen, WaySeen
from flannelpy.check.plan import Plan
from flannelpy.check.verdicts import found
from flannelpy.errors import HostError
from flannelpy.host import container_traffic, subnet_file
from flannelpy.linux.netlink.client import Netlink
from flannelpy.options import Options
from flannelpy.registry.connect import etcd_hosts
from flannelpy.subnet.lease import HostIdentity, Lease
from flannelpy.subnet.lease_policy import Terms

_NO_IDENTITY = HostIdentity(IPv4Address(0))


async def follow(options: Options, daemon: DaemonSeen) -> list[Line]:
    """Return the lines about all networks of this host, in the order of the chain.  Raises UsageError, HostError."""
    endpoints = asyncio.create_task(gather_store.endpoints(options))
    try:
        async with Netlink() as netlink:
            host = await gather_host.look(netlink, options, daemon)
    except HostError as error:
        lines = [found(Code.NO_INTERFACE, str(error)), *await _stores(options)]
    else:
        each = await asyncio.gather(*(_network(options, name, host, daemon) for name in _names(options)))
        differs = [found(Code.FLAGS_DIFFER, host.differs)] if host.differs else []
        lines = [judge_host.interface(host), *differs, *(line for one in each for line in one)]
    lines += judge_store.endpoints(await endpoints)
    return in_order([*lines, *_daemon(options, daemon, lines)])


def _names(options: Options) -> Sequence[str]:
    return options.networks or ("",)


async def _network(options: Options, name: str, host: HostSeen, daemon: DaemonSeen) -> list[Line]:
    """Return the lines about one network, by a connection of its own: the kernel answers one listing at a time.

    Raises UsageError, HostError.
    """
    async with Netlink() as netlink:
        return await _Chain(netlink, options, name, host, daemon).lines()


async def _stores(options: Options) -> list[Line]:
    """Return the lines about the store alone, without a host that could use it."""
    lines: list[Line] = []
    for name in _names(options):
        file = gather_host.file(options.subnet_file_of(name))
        lines += judge_store.store(await gather_store.look(options, name, _NO_IDENTITY, file), file, None)
    return lines


def _daemon(options: Options, daemon: DaemonSeen, lines: Sequence[Line]) -> Iterator[Line]:
    """Yield the lines about the daemon, for each network.  ``lines``: all others.  Raises HostError."""
    for name in _names(options):
        others = [line for line in lines if line.network in ("", name)]
        file = gather_host.file(options.subnet_file_of(name))
        yield from (replace(line, network=name) for line in judge_host.daemon(file, daemon.report, name, others))


class _Chain:
    """The chain of one network."""

    def __init__(self, netlink: Netlink, options: Options, name: str, host: HostSeen, daemon: DaemonSeen) -> None:
        self._netlink = netlink
        self._options = options
        self._name = name
        self._host = host
        self._daemon = daemon
        self._path = options.subnet_file_of(name)
        self._file = gather_host.file(self._path)
        self._lines: list[Line] = []

    async def lines(self) -> list[Line]:
        """Return the lines about the network.  Raises UsageError, HostError."""
        seen = await self._store()
        own = judge_store.own_lease(seen.leases, self._host.identity, self._file)
        plan = self._plan(seen, own)
        self._lines += judge_store.store(seen, self._file, plan)
        if not seen.failure and seen.config:
            terms = Terms(self._options.subnet_lease_ttl, self._options.subnet_lease_renew_margin)
            lease = self._daemon.lease_of(self._name)
            self._lines += judge_store.leases(seen, self._file, self._host.identity, terms, lease)
        await self._ways(seen, own, plan)
        report = self._daemon.network(self._name)
        return [replace(line, network=self._name) for line in self._lines if not judge_host.explained(line, report)]

    async def _store(self) -> StoreSeen:
        lease = self._daemon.lease_of(self._name)
        chosen, leased = self._host.identity, lease.subnet if lease else None
        seen = await gather_store.look(self._options, self._name, chosen, self._file, leased)
        if seen.identity and seen.identity != chosen:
            self._host = replace(self._host, identity=seen.identity)
            text = f"the host ID of flannelpy is {seen.identity.host_id}, and these flags choose {chosen.host_id}"
            self._lines.append(found(Code.FLAGS_DIFFER, text))
        if seen.config is None:
            return seen
        flaw = await gather_host.flaw(self._netlink, self._options, self._host, seen.config, self._path)
        return replace(seen, flaw=flaw)

    def _plan(self, seen: StoreSeen, own: Lease | None) -> Plan | None:
        """Return how packets should travel; None without a subnet, or a config that this host can run."""
        subnet = own.subnet if own else self._file.subnet
        if seen.config and not seen.flaw:
            return plans.by_config(seen.config, self._host.external, subnet) if subnet else None
        return plans.by_traces(self._file, self._host.external)

    async def _ways(self, seen: StoreSeen, own: Lease | None, plan: Plan | None) -> None:
        """Add the lines about device, bridges, rules, routes and peers."""
        device = await self._device(plan, own) if plan and plan.has_tunnel else None
        index = device.link.index if device and device.link else 0
        peers = await self._peers(seen, own, plan)
        ways = {peer.subnet: WaySeen() for peer in peers}
        if plan:
            kernel = gather_ways.Kernel(self._netlink, self._host, plan, index)
            ways = await kernel.look(peers)
            self._lines += judge_host.bridges(self._host, plan, index, self._networks(plan))
            diverted = await gather_subnet.diverted(self._netlink, self._host, plan, index, peers)
            self._lines += judge_host.own_subnet(plan, diverted)
            await self._rules(plan, device, peers, len(kernel.direct))
        await self._ping(plan, peers, ways)
        if plan:
            unplugged = await gather_subnet.unplugged(self._netlink, self._host, plan)
            self._lines += judge_host.containers(unplugged)

    async def _device(self, plan: Plan, own: Lease | None) -> DeviceSeen:
        mtu = self._file.mtu or plan.mtu
        device = await gather_host.device(self._netlink, self._host, plan, self._path, mtu, own)
        holder = self._host.holder_of(plans.tunnel_address(plan.subnet))
        self._lines.append(judge_host.device(device, holder))
        return device

    def _networks(self, plan: Plan) -> Sequence[IPv4Network]:
        """Return all networks of this host, also those of other daemons."""
        files = [self._options.subnet_file_of(name) for name in self._options.networks]
        files += gather_host.running(self._options)
        return [plan.network, *filter(None, map(subnet_file.previous_network, files))]

    async def _rules(self, plan: Plan, device: DeviceSeen | None, peers: Sequence[Peer], direct: int) -> None:
        if not plan.routes_packets:
            return
        indices = container_traffic.bridges(plan.subnet, self._host.addresses)
        bridges = [self._netlink.name_of(each) for each in sorted(indices)]
        name = device.link.name if device and device.link else ""
        addresses = [peer.public_ip for peer in peers]
        packets = gather_rules.traffic(plan, name, self._host.external.name, bridges, addresses, direct)
        is_masqueraded = self._file.ip_masq or self._options.ip_masq
        rules = await gather_rules.look(packets, is_masqueraded=is_masqueraded)
        self._lines += judge_host.forwarding(rules, has_bridge=bool(bridges))

    async def _peers(self, seen: StoreSeen, own: Lease | None, plan: Plan | None) -> Sequence[Peer]:
        """Return the peers that this host can use, which without etcd the daemon knows; others have lines."""
        if seen.config is None:
            peers = self._daemon.peers_of(self._name)
            if peers is None:
                self._lines.append(found(Code.PEERS_UNKNOWN, "which peers there are is not known"))
            return peers or []
        our_ip = self._host.identity.public_ip
        others = [lease for lease in seen.leases if lease.attrs.public_ip != our_ip and lease != own]
        if own is None or plan is None:
            return gather_ways.holders(others)
        underlay = Underlay(self._host.external, our_ip, etcd_hosts(self._options))
        usable = await gather_ways.usable(self._netlink, underlay, plan.network, own, others)
        for one in usable.ignored:
            self._lines.append(
                found(Code.LEASE_UNUSABLE, f"lease {one.subnet} is ignored: {one.fault}", peer=one.subnet)
            )
        return usable.peers

    async def _ping(self, plan: Plan | None, peers: Sequence[Peer], ways: dict[IPv4Network, WaySeen]) -> None:
        try:
            async with Pings(self._host, plan) as pings:
                seen: Sequence[PeerSeen] = await pings.look(peers, ways)
        except HostError as error:
            self._lines.append(found(Code.PING_REFUSED, str(error)))
            seen = [PeerSeen(peer.subnet, peer.public_ip, ways[peer.subnet]) for peer in peers]
        self._lines += judge_peers.ways(seen) if plan and plan.routes_packets else []
        is_hanging = bool(plan and plan.backend == "udp" and self._file.is_running and not self._daemon.report)
        for peer in seen:
            if self._host.is_linked or not peer.way.no_route:  # otherwise the line about the interface has the cause
                self._lines += judge_peers.answers(peer, plan, is_hanging=is_hanging)
