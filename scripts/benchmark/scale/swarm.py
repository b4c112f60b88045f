"""Hosts without devices: each has flannelpy's real manager on its real registry, and remembers what it hears.

All hosts of a swarm live in one process and on one event loop.  Each has connections to etcd and threads of its own, as
a daemon has.
"""

from __future__ import annotations

import asyncio
import random
import time
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from lab import ETCD_PREFIX
from lab.etcd_stores import Api

from flannelpy.leasing.manager import SubnetManager
from flannelpy.linux.clock import BootClock
from flannelpy.registry.etcd_v2 import EtcdV2Registry
from flannelpy.registry.etcd_v3 import EtcdV3Registry
from flannelpy.subnet.lease import HostIdentity, LeaseAttrs, format_key
from flannelpy.subnet.lease_table import LeaseAdded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from flannelpy.registry.base import Registry
    from flannelpy.subnet.config import NetworkConfig
    from flannelpy.subnet.lease_policy import Terms
    from flannelpy.subnet.lease_table import LeaseEvent

CONFIG = '{"Network":"11.0.0.0/8","SubnetLen":24,"Backend":{"Type":"vxlan"}}'
REGISTRIES: Mapping[Api, Callable[[Sequence[str], str], Registry]] = {Api.V2: EtcdV2Registry, Api.V3: EtcdV3Registry}
_FIRST_HOST = IPv4Address("10.0.0.1")


class Tally:
    """The number of leases of peers that a group of hosts knows: the sum over the hosts."""

    def __init__(self) -> None:
        self.count = 0
        #: Events that the hosts have applied.
        self.events = 0
        self._goal = 0
        self._reached: asyncio.Future[float] | None = None

    def add(self, change: int, events: int) -> None:
        """Count ``events`` that have changed the number by ``change``."""
        self.count += change
        self.events += events
        self._look()

    async def reach(self, goal: int, seconds: float) -> float:
        """Return the monotonic time at which the number is ``goal``.  Raises TimeoutError with the number so far."""
        self._goal = goal
        self._reached = asyncio.get_running_loop().create_future()
        self._look()
        try:
            async with asyncio.timeout(seconds):
                return await self._reached
        except TimeoutError:
            raise TimeoutError(f"{self.count} of {goal} leases are known after {seconds:.0f} s") from None
        finally:
            self._reached = None

    def _look(self) -> None:
        if self._reached and not self._reached.done() and self.count == self._goal:
            self._reached.set_result(time.monotonic())


class SimulatedHost:
    """The host of that number, which runs as a task from the start on."""

    def __init__(self, api: Api, etcd_url: str, number: int, tally: Tally, terms: Terms) -> None:
        self._public_ip = _FIRST_HOST + number
        self._tally = tally
        self._known: set[object] = set()
        self._registry = REGISTRIES[api]([etcd_url], ETCD_PREFIX)
        identity = HostIdentity(self._public_ip, f"host{number}")
        self._manager = SubnetManager(self._registry, BootClock(), random.Random(number), identity, terms)
        self._task = asyncio.create_task(self._run())

    async def leave(self) -> None:
        """End, then delete the lease, as ``flannelpy cleanup`` does.  Raises RegistryError, and as ``end`` does."""
        await self._stop()
        lease = self._manager.own
        await self._registry.compare_and_delete(format_key(lease.subnet), lease.version)
        await self._registry.close()

    async def end(self) -> None:
        """End, and keep the lease.  Raises the exception by which the host has ended before, if it has."""
        await self._stop()
        await self._registry.close()

    async def _stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()

    async def _run(self) -> None:
        config = await self._manager.read_config(_accept)
        await self._manager.acquire(config, self._describe, None)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._manager.keep_lease())
            tasks.create_task(self._manager.watch(self._apply))
            tasks.create_task(self._manager.watch_config(_accept))

    def _describe(self, _: LeaseAttrs | None) -> LeaseAttrs:
        mac = ":".join(f"{octet:02x}" for octet in b"\x02\x00" + self._public_ip.packed)
        return LeaseAttrs(self._public_ip, "vxlan", {"VtepMAC": mac})

    async def _apply(self, events: Sequence[LeaseEvent]) -> None:
        before = len(self._known)
        for event in events:
            if isinstance(event, LeaseAdded):
                self._known.add(event.lease.subnet)
            else:
                self._known.discard(event.subnet)
        self._tally.add(len(self._known) - before, len(events))


async def end_all(hosts: Iterable[SimulatedHost]) -> None:
    """End all hosts.  Raises the first exception by which one has ended before."""
    outcomes = await asyncio.gather(*(host.end() for host in hosts), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


async def _accept(config: NetworkConfig) -> NetworkConfig:
    return config


async def each(count: int, at_once: int, do: Callable[[int], Awaitable[object]]) -> None:
    """Do something for each number below ``count``, at most ``at_once`` at a time."""
    turn = asyncio.Semaphore(at_once)

    async def one(number: int) -> None:
        async with turn:
            await do(number)

    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            tasks.create_task(one(number))
