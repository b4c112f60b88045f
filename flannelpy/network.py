"""One network on this host, as a state machine: it joins the lease and the backend.

The states are those of ``NetworkState``.  Beside each arrow stands the event that takes it:

    STARTING
        |  the subnet file is locked: no other daemon has this network
        v
    WAITING_FOR_CONFIG  <----------------------------------- FAILED
        |  a valid config was read                             ^   left when the daemon starts the network again
        v                                                      |
    WAITING_FOR_LEASE                                          |   entered from any other state when ``run`` raises
        |  a subnet is leased, the backend runs, the subnet file is written
        v
    WAITING_FOR_PEERS
        |  the peers' first leases are in the kernel
        v
    READY  <------->  DEGRADED
         a problem appears, or is gone

If ``run`` is cancelled, the state is STARTING again.  A stop leaves lease and subnet file in place, and of the backend
what lets packets travel while flannelpy restarts.  If another host holds the lease, flannelpy removes the subnet file,
the device and the routes to peers.
Counterpart: network/network.go.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Network
from typing import NamedTuple, Never

from flannelpy import logs
from flannelpy.backend import catalogue
from flannelpy.backend.base import Backend
from flannelpy.backend.lease_gate import LeaseGate
from flannelpy.backend.leftovers import Keep, unmarked_leftovers, withdraw
from flannelpy.backend.peer_routes import PeerRoutes
from flannelpy.backend.repair_loop import RepairLoop
from flannelpy.backend.underlay import Routed, Underlay
from flannelpy.errors import HostError, LeaseLost, one_line
from flannelpy.host import ownership, subnet_file
from flannelpy.host.container_traffic import ContainerTraffic
from flannelpy.host.external_interface_monitor import ExternalInterfaceMonitor
from flannelpy.host.ready_file import ReadyFile
from flannelpy.host.shared import Host
from flannelpy.leasing.host_registry import connect_host
from flannelpy.leasing.manager import SubnetManager
from flannelpy.linux import identity
from flannelpy.linux.clock import BootClock
from flannelpy.linux.instance_lock import InstanceLock, Run
from flannelpy.linux.netlink.client import Netlink
from flannelpy.linux.own_devices import own_alias
from flannelpy.logs import FailureLog
from flannelpy.netfilter.network_rules import NetworkRules
from flannelpy.options import Options
from flannelpy.registry.connect import etcd_hosts
from flannelpy.report import TRANSITIONS, NetworkReport, NetworkState
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease import HostIdentity
from flannelpy.subnet.lease_filter import LeaseFilter
from flannelpy.subnet.lease_policy import Terms
from flannelpy.subnet.lease_table import LeaseEvent
from flannelpy.tasks import run_together

log = logging.getLogger(__name__)


class _Chosen(NamedTuple):
    """A config, and the backend that the config asks for."""

    config: NetworkConfig
    backend: Backend


class Network:
    """One network; the only network of a host has the name ""."""

    def __init__(
        self, name: str, options: Options, host: Host, external: ExternalInterfaceMonitor, on_change: Callable[[], None]
    ) -> None:
        """``external`` monitors for all networks of the host; ``on_change`` is called when the report has changed."""
        self.name = name
        self._external = external
        self._options = options
        self._subnet_file = options.subnet_file_of(name)
        self._host = host
        self._on_change = on_change
        self._state = NetworkState.STARTING
        self._problem = ""
        self._service: _Service | None = None
        self._underlay = Underlay(host.external, host.public_ip, etcd_hosts(options))
        self._unblock_failures = FailureLog(log, "Failed to look for own routes that lead to etcd")

    async def run(self) -> Never:
        """Run the network until an error ends it; the caller logs the failure, and may run it again.

        Raises FlannelError.
        """
        logs.network.set(self.name)
        try:
            async with AsyncExitStack() as cleanup:
                await self._run(cleanup)
        except asyncio.CancelledError:
            self._set_state(NetworkState.STARTING, "")
            raise
        except Exception as error:
            self._set_state(NetworkState.FAILED, one_line(error))
            raise
        raise AssertionError("a network runs until an error ends it")

    def report(self) -> NetworkReport:
        """Return the state, and once a subnet is leased, the reports of all components."""
        report = NetworkReport(self.name, self._state, self._problem)
        return self._service.complete(report) if self._service else report

    def is_live(self) -> bool:
        """Return whether no task hangs; if one does, a restart of the process may help."""
        return self._service is None or self._service.is_live()

    def underlay_changed(self) -> None:
        """Have a running network follow what the monitor found, and check its ways to peers, in a task of its own."""
        if self._service:
            self._service.underlay_changed.set()

    async def _run(self, cleanup: AsyncExitStack) -> None:
        self._lock = lock = InstanceLock(self._subnet_file)
        cleanup.callback(lock.close)
        ready_file = ReadyFile(self._options.ready_file_of(self.name))
        cleanup.callback(ready_file.close)
        host_identity = HostIdentity(self._host.public_ip, self._options.host_id or identity.host_id())
        registry = connect_host(self._options, self.name, host_identity)
        cleanup.push_async_callback(registry.close)
        terms = Terms(self._options.subnet_lease_ttl, self._options.subnet_lease_renew_margin)
        manager = SubnetManager(registry, BootClock(), random.Random(), host_identity, terms)  # noqa: S311 - nothing secret
        self._enter(NetworkState.WAITING_FOR_CONFIG)
        cleanup.callback(self._host.release, self.name)
        chosen = await manager.read_config(self._claim, self._unblock)
        cleanup.callback(chosen.backend.close)
        try:
            cleanup.callback(self._forget_previous, await self._start(chosen, manager, host_identity))
            await self._serve(chosen, manager, ready_file)
        except LeaseLost:
            chosen.backend.close()
            await self._withdraw(chosen.config.network)
            raise

    async def _serve(self, chosen: _Chosen, manager: SubnetManager, ready_file: ReadyFile) -> None:
        self._service = _Service(
            self.name, manager, chosen, self._underlay, self._host, self._external, ready_file, self._enter
        )
        try:
            self._enter(NetworkState.WAITING_FOR_PEERS)
            await self._service.run(self._choose)
        except Exception as error:
            ready_file.close()
            self._set_state(NetworkState.FAILED, one_line(error))
            self._on_change()
            raise
        finally:
            self._service = None  # before the clean-up, after which nothing is left to check

    async def _claim(self, config: NetworkConfig) -> _Chosen:
        """Return the backend of a config, after reserving its exclusive resources.  Raises ConfigError, HostError."""
        chosen = await self._choose(config)
        withdraw = partial(self._withdraw, config.network)
        self._host.resources.take(self.name, config.network, chosen.backend.exclusive_resources, withdraw)
        return chosen

    async def _choose(self, config: NetworkConfig) -> _Chosen:
        """Return the backend of a config that this host can run.  Raises ConfigError, HostError."""
        backend = catalogue.create(config, self._host.external, self._options, own_alias(self._subnet_file))
        self._host.resources.check(self.name, config.network, backend.exclusive_resources)
        async with Netlink() as netlink:
            await self._underlay.check(netlink, config.network, backend.routed)
        return _Chosen(config, backend)

    async def _unblock(self) -> None:
        """Remove routes of an earlier run that lead to etcd, if no endpoint answers."""
        subnet = subnet_file.previous_subnet(self._subnet_file)
        network = subnet_file.previous_network(self._subnet_file)
        leased = {ownership.tunnel_address(network, subnet)} if subnet and network else set()
        try:
            async with Netlink() as netlink:
                for route in await self._underlay.unblock(netlink, own_alias(self._subnet_file), leased):
                    log.warning("Removed own route %s: no etcd endpoint answers, and the route leads to one", route)
        except HostError as error:
            self._unblock_failures.failed(error)

    async def _start(self, chosen: _Chosen, manager: SubnetManager, host_identity: HostIdentity) -> Run:
        """Lease a subnet, start the backend, and write the subnet file; return the record of this run."""
        config, backend = chosen
        self._enter(NetworkState.WAITING_FOR_LEASE)
        describe = partial(backend.lease_attrs, host_identity)
        async with Netlink() as netlink:
            around = await self._underlay.observe(netlink)
        lease = await manager.acquire(config, describe, subnet_file.previous_subnet(self._subnet_file), around)
        previous = await self._take_over(chosen, lease.subnet)
        mtu = await backend.start(lease)
        ip_masq = self._options.ip_masq
        await self._set_up_firewall(chosen, lease.subnet, previous)
        subnet_file.write(self._subnet_file, subnet_file.render(config.network, lease.subnet, mtu, ip_masq))
        run = Run((config.network,), config.backend.type, backend.device)
        self._lock.write(replace(run, networks=(config.network, *previous)))
        return run

    def _forget_previous(self, run: Run) -> None:
        """Remove the networks of earlier runs from the record, unless some of their iptables chains may remain."""
        if self._host.firewall.is_clean:
            with suppress(HostError):
                self._lock.write(run)

    async def _set_up_firewall(self, chosen: _Chosen, subnet: IPv4Network, previous: Sequence[IPv4Network]) -> None:
        """Add the rules that the subnet file promises; the firewall adds all others later.  Raises HostError."""
        ip_masq = self._options.ip_masq
        rules = NetworkRules(
            chosen.config.network,
            subnet,
            self._host.external.address,
            chosen.backend,
            previous,
            is_masqueraded=ip_masq,
            is_forwarded=self._options.iptables_forward_rules,
        )
        self._host.firewall.add(self.name, rules, self._on_change)
        if ip_masq:
            await self._host.firewall.masquerade(self.name)

    async def _take_over(self, chosen: _Chosen, subnet: IPv4Network) -> Sequence[IPv4Network]:
        """Record what this run uses, then remove what earlier runs left; return the other networks of those runs."""
        config, backend = chosen
        evicted = await self._host.resources.evict(self.name)
        scope = ownership.scope(self._subnet_file, self._lock.read(), (config.network, subnet))
        previous = sorted(scope.networks.union(evicted) - {config.network})
        self._lock.write(Run((config.network, *previous), config.backend.type, backend.device))
        keep = Keep(config.network, backend.device, backend.adopts_routes)
        async with Netlink() as netlink:
            for left in await withdraw(netlink, scope, keep):
                log.warning("Removed leftover %s", left)
            unadopted = previous if backend.adopts_routes or backend.routed is Routed.NOTHING else scope.networks
            for command in await unmarked_leftovers(netlink, unadopted, subnet):
                log.warning("Kept unmarked state, since another program may have added it; to remove it: %s", command)
            await self._host.isolation.restore(netlink)
        return previous

    async def _withdraw(self, network: IPv4Network) -> None:
        """Remove devices and routes to peers, and the subnet file: another host or network has the addresses now."""
        try:
            scope = ownership.scope(self._subnet_file, self._lock.read())
            async with Netlink() as netlink:
                await withdraw(netlink, scope._replace(networks=scope.networks | {network}))
        except HostError as error:
            log.warning("%s", error)
        try:
            subnet_file.remove(self._subnet_file)
        except HostError as error:
            log.warning("%s", error)

    def _enter(self, state: NetworkState, problem: str = "") -> None:
        """Make the transition to ``state``, or change the problem of the present one, and report it."""
        assert state in {self._state, *TRANSITIONS[self._state]}, f"{self._state} -> {state}"
        self._set_state(state, problem)
        self._on_change()

    def _set_state(self, state: NetworkState, problem: str) -> None:
        self._state, self._problem = state, problem


class _Service:
    """A network with a lease: runs the tasks that keep the lease, carry packets and restore what others change."""

    def __init__(
        self,
        name: str,
        manager: SubnetManager,
        chosen: _Chosen,
        underlay: Underlay,
        host: Host,
        external: ExternalInterfaceMonitor,
        ready_file: ReadyFile,
        enter: Callable[[NetworkState, str], None],
    ) -> None:
        """``enter`` moves the network to a state, with a problem or "", and reports it."""
        self._name = name
        self._manager = manager
        self._network, self._backend = chosen.config.network, chosen.backend
        self._underlay = underlay
        self._host = host
        self._external = external
        self._ready_file = ready_file
        self._enter = enter
        self._is_up = False
        self._has_leases = asyncio.Event()
        self.underlay_changed = asyncio.Event()
        self._repair_loop = RepairLoop(self._check, self._network, self._update_state)
        self._peer_routes = PeerRoutes(host.external)
        self._reported: object = None  # on which the last report of a check depended
        self._containers = ContainerTraffic(host.firewall, name, self._network, self._report_changes)

    async def run(self, choose: Callable[[NetworkConfig], Awaitable[object]]) -> None:
        """Carry packets, renew the lease, follow the peers, and restore what other programs change."""
        log.info("Watching for new subnet leases")
        async with Netlink() as netlink:
            around = await self._underlay.observe(netlink)
            leases = LeaseFilter(self._network, self._manager.own, around)
            self._gate = LeaseGate(netlink, leases, self._underlay, self._forward)
            await run_together(
                self._announce(),
                self._backend.run(),
                self._repair_loop.run(),
                self._follow_underlay(),
                self._manager.keep_lease(),
                self._manager.watch(self._gate.apply),
                self._manager.watch_config(choose),
            )

    async def _announce(self) -> None:
        """Report readiness once the peers' first leases are applied; Docker waits for it."""
        await self._has_leases.wait()
        await self._backend.settled()
        async with Netlink() as netlink:
            await self._check_peer_routes(netlink)
        self._is_up = True
        self._reported = None  # from now on what the checks found counts
        self._report_changes()

    def complete(self, report: NetworkReport) -> NetworkReport:
        """Return ``report`` with the parts of the components added."""
        return replace(
            report,
            lease=self._manager.report(),
            backend=self._backend.report(),
            interface=self._external.report(),
            kernel_state=self._repair_loop.report(),
            firewall=self._host.firewall.report(self._name),
            peer_routes=self._peer_routes.report(),
            traffic=self._containers.report(),
        )

    def is_live(self) -> bool:
        """Return whether the watch of the leases and the repair loop still run, also if they only fail."""
        return self._manager.is_live() and self._repair_loop.is_live()

    def _forward(self, events: Sequence[LeaseEvent]) -> None:
        self._backend.apply(events)
        self._peer_routes.follow(events)
        self._containers.apply(events)
        self._host.firewall.apply(self._name, events)
        self._has_leases.set()
        self._update_state()

    async def _follow_underlay(self) -> Never:
        async with Netlink() as netlink:
            while True:
                await self.underlay_changed.wait()
                self.underlay_changed.clear()
                await self._check_peer_routes(netlink)
                self._report_changes()

    async def _check_peer_routes(self, netlink: Netlink) -> None:
        """Check whether datagrams to peers leave the host, if the backend sends any."""
        if self._backend.datagrams and not self._external.report().problem:  # which explains what routes are missing
            with suppress(HostError):  # the kernel could not be asked: it is asked again within ten seconds
                await self._peer_routes.check(netlink)

    async def _check(self, netlink: Netlink) -> list[str]:
        await self._containers.check(netlink, self._manager.own.subnet, self._backend.forwarding)
        self._report_changes()
        await self._gate.check()
        rules = [f"Restored {rule}: it was missing" for rule in await self._host.isolation.restore(netlink)]
        try:
            return [*rules, *await self._backend.repair(netlink)]
        finally:
            self._report_changes()

    def _report_changes(self) -> None:
        """Update the state if a check has found a change of the interface, of an obstacle or of the reachable peers."""
        backend = self._backend.report()
        underlay = self._external.report(), self._peer_routes.report()
        found = underlay, self._containers.report(), backend.next_hops, backend.unreachable
        if found != self._reported:
            self._reported = found
            self._update_state()

    def _update_state(self) -> None:
        """Enter the state that the components are in, also if it is the same: their reports have changed."""
        if not self._is_up:
            self._enter(NetworkState.WAITING_FOR_PEERS, "")
            return
        problem = self.complete(NetworkReport(self._name, NetworkState.READY)).present_problem
        self._ready_file.set(not problem)
        self._enter(NetworkState.DEGRADED if problem else NetworkState.READY, problem)
