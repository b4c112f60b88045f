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
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Network
from typing import NamedTuple, Never

from flannelpy import logs
from flannelpy.backend import catalogue
from flannelpy.backend.base import Backend
from flannelpy.backend.left_programs import remove_left_programs
from flannelpy.backend.leftovers import Keep, unmarked_leftovers, withdraw
from flannelpy.backend.underlay import Routed, Underlay
from flannelpy.errors import HostError, LeaseLost, one_line
from flannelpy.host import ownership, subnet_file
from flannelpy.host.external_interface_monitor import ExternalInterfaceMonitor
from flannelpy.host.kernel_mode import kernel_mode
from flannelpy.host.left_programs_guard import guard_left_programs
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
from flannelpy.options import EtcdApi, Options
from flannelpy.registry.connect import etcd_hosts
from flannelpy.report import TRANSITIONS, Counts, NetworkReport, NetworkState, PeerReport
from flannelpy.service import Service
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease import HostIdentity
from flannelpy.subnet.lease_policy import Terms

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
        self._clock = BootClock()
        self._state, self._since = NetworkState.STARTING, self._now()
        self._problem = ""
        self._earlier = Counts()  # of the runs that have ended
        self._network: IPv4Network | None = None
        self._manager: SubnetManager | None = None
        self._service: Service | None = None
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
        report = NetworkReport(
            self.name,
            self._state,
            self._problem,
            since=self._since,
            subnet_file=self._subnet_file,
            network=self._network,
            earlier=self._earlier,
        )
        if self._manager:
            report = self._manager.complete(report)
        return self._service.complete(report) if self._service else report

    async def refresh(self) -> None:
        """Read the counters that only the kernel has, for the next ``report``."""
        if self._service:
            await self._service.refresh()

    async def peer_reports(self) -> AsyncIterator[list[PeerReport]]:
        """Yield the reports of all peers in chunks, between which packets are forwarded; nothing without a lease."""
        if self._service:
            async for chunk in self._service.peer_reports():
                yield chunk

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
        manager = SubnetManager(registry, self._clock, random.Random(), host_identity, terms)  # noqa: S311 - nothing secret
        self._manager = manager
        cleanup.callback(self._forget_run)
        left = guard_left_programs(own_alias(self._subnet_file), self._host.external, self._options.iptables_resync)
        guarding = asyncio.create_task(left)
        cleanup.callback(guarding.cancel)
        self._enter(NetworkState.WAITING_FOR_CONFIG)
        cleanup.callback(self._host.release, self.name)
        chosen = await manager.read_config(self._claim, self._unblock)
        self._options = replace(self._options, etcd_api=EtcdApi(registry.schema.value))  # also for the next run
        cleanup.push_async_callback(chosen.backend.close)
        self._network = chosen.config.network
        try:
            cleanup.callback(self._forget_previous, await self._start(chosen, manager, host_identity))
            guarding.cancel()
            await self._serve(chosen, manager, ready_file)
        except LeaseLost:
            await chosen.backend.close()
            async with self._host.resources.busy:
                await self._withdraw(chosen.config.network)
            raise

    def _forget_run(self) -> None:
        self._manager = self._network = None

    async def _serve(self, chosen: _Chosen, manager: SubnetManager, ready_file: ReadyFile) -> None:
        self._service = Service(
            self.name,
            manager,
            chosen.config.network,
            chosen.backend,
            self._underlay,
            self._host,
            self._external,
            ready_file,
            self._enter,
        )
        try:
            self._enter(NetworkState.WAITING_FOR_PEERS)
            await self._service.run(self._choose)
        except Exception as error:
            ready_file.close()
            self._set_state(NetworkState.FAILED, one_line(error))
            self._on_change()
            await self._service.refresh()
            raise
        finally:
            self._earlier, self._service = self.report().counts, None  # before the clean-up: nothing is left to check

    async def _claim(self, config: NetworkConfig) -> _Chosen:
        """Return the backend of a config, after reserving its exclusive resources.  Raises ConfigError, HostError."""
        chosen = await self._choose(config)
        withdraw = partial(self._withdraw, config.network)
        self._host.resources.take(self.name, config.network, chosen.backend.exclusive_resources, withdraw)
        return chosen

    async def _choose(self, config: NetworkConfig) -> _Chosen:
        """Return the backend of a config that this host can run.  Raises ConfigError, HostError."""
        assert self._manager, "a config is read by the manager"
        kernel = kernel_mode(self._options, self._manager)
        backend = catalogue.create(config, self._host.external, self._options, own_alias(self._subnet_file), kernel)
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
        keep = Keep(config.network, backend.device, backend.adopts_routes, tun=backend.adopts_device)
        async with Netlink() as netlink:
            async with self._host.resources.busy:
                removed = [] if backend.adopts_device else await remove_left_programs(netlink, scope.alias)
                removed += await withdraw(netlink, scope, keep)
                self._host.isolation.forget(scope.networks - {config.network})
            for left in removed:
                log.warning("Removed leftover %s", left)
            unadopted = previous if backend.adopts_routes or backend.routed is Routed.NOTHING else scope.networks
            for command in await unmarked_leftovers(netlink, unadopted, subnet):
                log.warning("Kept unmarked state, since another program may have added it; to remove it: %s", command)
            await self._host.isolation.restore(netlink)
        return previous

    async def _withdraw(self, network: IPv4Network) -> None:
        """Remove devices and routes to peers, and the subnet file: another host or network has the addresses now.

        The caller holds ``busy`` of the host's resources.
        """
        try:
            scope = ownership.scope(self._subnet_file, self._lock.read())
            networks = scope.networks | {network}
            async with Netlink() as netlink:
                await remove_left_programs(netlink, scope.alias)
                await withdraw(netlink, scope._replace(networks=networks))
            self._host.isolation.forget(networks)
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
        if state is not self._state:
            self._since = self._now()
        self._state, self._problem = state, problem

    def _now(self) -> float:
        return self._clock.wall().timestamp()
