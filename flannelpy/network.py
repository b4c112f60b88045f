"""One network on this host: reads its config, leases a subnet, carries packets, until something fails for good.

Start: network config, lease, backend (packets flow), masquerading, subnet file, ready.
Stop: packets cease as far as the backend has it; lease and subnet file stay, so a restart changes nothing for Docker.
Only when another host holds the lease do file, device and what leads to other hosts go.
Counterpart: network/network.go.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from ipaddress import IPv4Network
from typing import NamedTuple, Never

from flannelpy import logs
from flannelpy.backend import catalogue as backends
from flannelpy.backend.base import Backend
from flannelpy.backend.lease_gate import LeaseGate
from flannelpy.backend.leftovers import Keep, unmarked_leftovers, withdraw
from flannelpy.backend.repair_loop import RepairLoop
from flannelpy.backend.underlay import Routed, Underlay
from flannelpy.errors import HostError, LeaseLost
from flannelpy.host import external_endpoint, ownership
from flannelpy.host.external_interface_monitor import ExternalInterfaceMonitor
from flannelpy.host.forward_check import SysctlCheck
from flannelpy.host.ready_file import ReadyFile
from flannelpy.host.resources import Host
from flannelpy.leasing import subnet_file
from flannelpy.leasing.manager import SubnetManager
from flannelpy.linux import identity
from flannelpy.linux.clock import BootClock
from flannelpy.linux.instance_lock import InstanceLock, Run
from flannelpy.linux.netlink.client import Netlink
from flannelpy.logs import FailureLog
from flannelpy.marks import device_alias
from flannelpy.netfilter import network_rules
from flannelpy.netfilter.network_rules import NetworkRules
from flannelpy.netfilter.obstacles import Traffic
from flannelpy.options import Options
from flannelpy.registry.connect import connect, etcd_hosts
from flannelpy.rtnetlink.links import Address
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease import HostIdentity
from flannelpy.subnet.lease_filter import LeaseFilter
from flannelpy.subnet.lease_policy import Terms
from flannelpy.subnet.lease_table import LeaseEvent
from flannelpy.tasks import run_together

log = logging.getLogger(__name__)


class _Chosen(NamedTuple):
    """A config, and the backend that it asks for."""

    config: NetworkConfig
    backend: Backend


class Network:
    """``name`` is empty for the only one of a host."""

    def __init__(self, name: str, options: Options, host: Host, on_change: Callable[[], None]) -> None:
        """``on_change`` is called when there is something new to say of it."""
        self.name = name
        self._options = options
        self._subnet_file = options.subnet_file_of(name)
        self._host = host
        self._on_change = on_change
        self._step = "Starting"
        self._service: _Service | None = None
        self._underlay = Underlay(host.external, host.public_ip, etcd_hosts(options))
        self._unblock_failures = FailureLog(log, "Failed to look for routes of ours in the way to etcd")

    async def run(self) -> Never:
        """Its whole life.  Raises FlannelError."""
        logs.network.set(self.name)
        try:
            async with AsyncExitStack() as cleanup:
                await self._run(cleanup)
        finally:
            self._service = None
        raise AssertionError("it goes on until something is raised")

    @property
    def is_up(self) -> bool:
        """Whether a subnet is leased, and packets reach all hosts whose leases were there at the start."""
        return self._service is not None and self._service.is_up

    def status(self) -> str:
        """How it is, in a few words."""
        return self._service.status() if self._service else self._step

    def makes_progress(self) -> bool:
        """Whether all tasks still get their turn: a start of the process anew could help if not."""
        return self._service is None or self._service.makes_progress()

    def failed(self, cause: str) -> None:
        """It has ended, and is to be started again later."""
        self._say(f"not ready: {cause}")

    async def _run(self, cleanup: AsyncExitStack) -> None:
        self._lock = lock = InstanceLock(self._subnet_file)
        cleanup.callback(lock.close)
        ready_file = ReadyFile(self._options.ready_file_of(self.name))
        cleanup.callback(ready_file.close)
        registry = connect(self._options, self.name)
        cleanup.push_async_callback(registry.close)
        terms = Terms(self._options.subnet_lease_ttl, self._options.subnet_lease_renew_margin)
        host_identity = HostIdentity(self._host.public_ip, self._options.host_id or identity.host_id())
        manager = SubnetManager(registry, BootClock(), random.Random(), host_identity, terms)  # noqa: S311 - nothing secret
        self._say("Waiting for the network config in etcd")
        cleanup.callback(self._host.release, self.name)
        chosen = await manager.read_config(self._claim, self._unblock)
        cleanup.callback(chosen.backend.close)
        try:
            cleanup.callback(self._forget_previous, await self._start(chosen, manager, host_identity))
            external = external_endpoint.watch(self._options, self._host.external)
            self._service = _Service(
                self.name, manager, chosen, self._underlay, self._host, external, ready_file, self._on_change
            )
            await self._service.run(self._choose)
        except LeaseLost:
            chosen.backend.close()
            await self._withdraw(chosen.config.network)
            raise

    async def _claim(self, config: NetworkConfig) -> _Chosen:
        """Choose, and take what no other network may have from now on.  Raises ConfigError, HostError."""
        chosen = await self._choose(config)
        withdraw = partial(self._withdraw, config.network)
        self._host.take(self.name, config.network, chosen.backend.exclusive_resources, withdraw)
        return chosen

    async def _choose(self, config: NetworkConfig) -> _Chosen:
        """What to do about a config.  Raises ConfigError, HostError."""
        options = replace(self._options, subnet_file=self._subnet_file)
        backend = backends.create(config, self._host.external, options)
        self._host.check(self.name, config.network, backend.exclusive_resources)
        async with Netlink() as netlink:
            await self._underlay.check(netlink, config.network, backend.routed)
        return _Chosen(config, backend)

    async def _unblock(self) -> None:
        """Remove what an earlier run routes to etcd, which does not answer."""
        subnet = subnet_file.previous_subnet(self._subnet_file)
        network = subnet_file.previous_network(self._subnet_file)
        leased = {ownership.tunnel_address(network, subnet)} if subnet and network else set()
        try:
            async with Netlink() as netlink:
                for route in await self._underlay.unblock(netlink, device_alias(self._subnet_file), leased):
                    log.warning("Removed our route %s: no etcd endpoint answers, and one lies behind it", route)
        except HostError as error:
            self._unblock_failures.failed(error)

    async def _start(self, chosen: _Chosen, manager: SubnetManager, host_identity: HostIdentity) -> Run:
        """Lease a subnet, carry packets for it, and write the subnet file; returns the record of this run."""
        config, backend = chosen
        self._say("Waiting for a subnet lease")
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
        """Drop the networks of earlier runs from the record, unless iptables chains of theirs may still be there."""
        if self._host.firewall.is_clean:
            with suppress(HostError):
                self._lock.write(run)

    async def _set_up_firewall(self, chosen: _Chosen, subnet: IPv4Network, previous: Sequence[IPv4Network]) -> None:
        """Put the rules that the subnet file promises; all others come in the background.  Raises HostError."""
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
        """Record what this run uses, then remove what earlier runs left; returns their other networks."""
        config, backend = chosen
        evicted = await self._host.evict(self.name)
        scope = ownership.scope(self._subnet_file, self._lock.read(), (config.network, subnet))
        previous = sorted(scope.networks.union(evicted) - {config.network})
        self._lock.write(Run((config.network, *previous), config.backend.type, backend.device))
        keep = Keep(config.network, backend.device, backend.adopts_routes)
        async with Netlink() as netlink:
            for left in await withdraw(netlink, scope, keep):
                log.warning("Removed leftover %s", left)
            unadopted = previous if backend.adopts_routes or backend.routed is Routed.NOTHING else scope.networks
            for command in await unmarked_leftovers(netlink, unadopted, subnet):
                log.warning("Left alone, since another program may have added it; to remove it: %s", command)
            await self._host.isolate(netlink)
        return previous

    async def _withdraw(self, network: IPv4Network) -> None:
        """Remove all that leads to other hosts, and the file that Docker reads: our subnet or network is another's."""
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

    def _say(self, step: str) -> None:
        self._step = step
        self._on_change()


class _Service:
    """A started network: what goes on until something fails for good."""

    def __init__(
        self,
        name: str,
        manager: SubnetManager,
        chosen: _Chosen,
        underlay: Underlay,
        host: Host,
        external: ExternalInterfaceMonitor,
        ready_file: ReadyFile,
        on_change: Callable[[], None],
    ) -> None:
        self._name = name
        self._manager = manager
        self._network, self._backend = chosen.config.network, chosen.backend
        self._underlay = underlay
        self._host = host
        self._external = external
        self._ready_file = ready_file
        self._on_change = on_change
        self.is_up = False
        self._has_leases = asyncio.Event()
        self._repair_loop = RepairLoop(self._check, self._network, self._tell_state, external.due)
        self._told = ("", "", "")  # the troubles of interface and forwarding, and the backend's words
        self._bridges: set[int] = set()  # by which packets of containers come in
        self._sysctls = SysctlCheck()

    async def run(self, choose: Callable[[NetworkConfig], Awaitable[object]]) -> None:
        """Carry packets, keep the lease, follow the others, and look after the device."""
        log.info("Watching for new subnet leases")
        async with Netlink() as netlink:
            around = await self._underlay.observe(netlink)
            leases = LeaseFilter(self._network, self._manager.own, around)
            self._gate = LeaseGate(netlink, leases, self._underlay, self._forward)
            await run_together(
                self._announce(),
                self._backend.run(),
                self._repair_loop.run(),
                self._manager.keep_lease(),
                self._manager.watch(self._gate.apply),
                self._manager.watch_config(choose),
            )

    async def _announce(self) -> None:
        """Report readiness once the first list of leases is applied: Docker waits for it."""
        await self._has_leases.wait()
        await self._backend.settled()
        self.is_up = True
        self._tell_state()

    def status(self) -> str:
        """Subnet, time left, what is wrong, and the backend's words."""
        seconds = self._manager.seconds_left()
        time_left = "reserved" if seconds is None else f"{timedelta(seconds=round(seconds))} left"
        words = [f"subnet {self._manager.own.subnet} ({time_left})"]
        if not self.is_up:
            words.append("waiting for the leases of other hosts")
        elif self._trouble():
            words.append(f"not ready: {self._trouble()}")
        if repairs := self._repair_loop.repairs + self._host.firewall.repairs[self._name]:
            words.append(f"repairs: {repairs}")
        return ", ".join([*words, self._backend.describe()])

    def makes_progress(self) -> bool:
        """Whether the watch of the leases and the guard get their turns, whatever comes of them."""
        return self._manager.makes_progress() and self._repair_loop.makes_progress()

    def _forward(self, events: Sequence[LeaseEvent]) -> None:
        self._backend.apply(events)
        self._host.firewall.apply(self._name, events)
        self._has_leases.set()
        self._on_change()

    async def _check(self, netlink: Netlink) -> list[str]:
        await self._external.check(netlink)
        self._bridges = _bridges(self._manager.own.subnet, await netlink.addresses())
        await self._sysctls.check(self._forwarding_devices(netlink))
        self._host.firewall.watch(self._name, self._traffic(netlink), self._tell_changes)
        self._tell_changes()
        await self._gate.check()
        rules = [f"{rule} was lost: put right" for rule in await self._host.isolate(netlink)]
        try:
            return [*rules, *await self._backend.repair(netlink)]
        finally:
            self._tell_changes()

    def _tell_changes(self) -> None:
        """Report the state if the external interface or the backend has another one than at the last report."""
        state = self._external.trouble, self._obstacle(), self._backend.describe()
        if state != self._told:
            self._told = state
            self._tell_state()

    def _tell_state(self) -> None:
        self._ready_file.set(self.is_up and not self._trouble())
        self._on_change()

    def _trouble(self) -> str:
        """Why we are not ready, if we are not."""
        return self._external.trouble or self._repair_loop.trouble or self._obstacle()

    def _obstacle(self) -> str:
        """What keeps packets of containers from other hosts; it counts once there is a network of containers.

        Before, it may be what Docker cures when it starts, and Docker waits for us.
        """
        if not self._bridges:
            return ""
        return self._sysctls.obstacle or self._host.firewall.obstacle(self._name)

    def _traffic(self, netlink: Netlink) -> Traffic | None:
        """The packets that this host forwards; none with alloc."""
        forwarding = self._backend.forwarding
        if not forwarding:
            return None
        bridges = tuple(map(netlink.name_of, sorted(self._bridges)))
        accepting = network_rules.chain_name(network_rules.ACCEPT, self._network)
        subnet, devices = self._manager.own.subnet, tuple(forwarding.devices)
        return Traffic(self._network, subnet, devices, forwarding.masquerading, bridges, accepting)

    def _forwarding_devices(self, netlink: Netlink) -> list[str]:
        """The devices by which packets come in that the kernel has to forward, once there are containers."""
        forwarding = self._backend.forwarding
        if not forwarding or not self._bridges:
            return []
        return [*forwarding.devices, *map(netlink.name_of, sorted(self._bridges))]


def _bridges(subnet: IPv4Network, addresses: Iterable[Address]) -> set[int]:
    """The devices with an address of the subnet, but for the first one, which is the tunnel's."""
    return {one.link_index for one in addresses if one.address in subnet and one.address != subnet.network_address}
