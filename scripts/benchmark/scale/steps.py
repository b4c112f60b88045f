"""What is measured of one swarm on one etcd, step after step."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from lab import ETCD_PREFIX
from lab.etcd_metrics import EtcdWork
from lab.etcd_server import EtcdServer
from lab.etcd_stores import Api

from benchmark.scale.meter import Traffic, Usage
from benchmark.scale.swarm import CONFIG, REGISTRIES, SimulatedHost, Tally, each, end_all
from flannelpy.subnet.lease import LeaseAttrs
from flannelpy.subnet.lease_policy import Terms

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmark.results import Values

# Seconds: a host that cannot reach etcd tries again every 5 s, and removes a peer 60 s after its lease.
_DEADLINE = 180.0
_SETTLED = 5.0
_WRITERS_AT_ONCE = 100
_FIRST_WRITTEN = IPv4Address("11.100.0.0")
_FIRST_WRITER = IPv4Address("10.100.0.1")


class Effort(NamedTuple):
    """How much is measured: the seconds without changes, how many hosts join one after the other, and their terms."""

    quiet_seconds: float
    joins: int
    terms: Terms


@asynccontextmanager
async def running_etcd(api: Api) -> AsyncIterator[EtcdServer]:
    """Run an etcd with a network config, in a thread: starts and stops block."""
    with TemporaryDirectory(prefix="flannelpy-scale-") as directory:
        etcd = EtcdServer(Path(directory), api=api)
        try:
            await asyncio.to_thread(etcd.start)
            await asyncio.to_thread(etcd.put, f"{ETCD_PREFIX}/config", CONFIG)
            yield etcd
        finally:
            await asyncio.to_thread(etcd.stop)


class Swarm:
    """So many hosts on one etcd.  ``tally`` is that of the hosts that started together; those that join have others."""

    def __init__(self, api: Api, etcd: EtcdServer, count: int, effort: Effort) -> None:
        self._api, self._etcd, self._count, self._effort = api, etcd, count, effort
        self._tally = Tally()
        self._hosts: list[SimulatedHost] = []

    async def measure(self) -> Values:
        """Take every step, and return what it used."""
        try:
            values = await self._start()
            await asyncio.sleep(_SETTLED)
            values |= await self._quiet() | await self._join() | await self._leave() | await self._restart()
        finally:
            await end_all(self._hosts)
        return values

    def _add_host(self, tally: Tally) -> SimulatedHost:
        self._hosts.append(
            host := SimulatedHost(self._api, self._etcd.url, len(self._hosts), tally, self._effort.terms)
        )
        return host

    async def _start(self) -> Values:
        """Start all hosts at once."""
        begin = Usage.until_now(self._etcd)
        for _ in range(self._count):
            self._add_host(self._tally)
        reached = await self._tally.reach(self._count * (self._count - 1), _DEADLINE)
        used = Usage.until_now(self._etcd).since(begin)
        return {
            "start": reached - begin.seconds,
            "start-requests": used.requests / self._count,
            "start-etcd-cpu": used.etcd_cpu,
            "start-own-cpu": used.own_cpu,
            "start-busy": used.own_cpu / used.seconds * 100,
        }

    async def _quiet(self) -> Values:
        """Change nothing for a while."""
        per_host_minute = self._count * self._effort.quiet_seconds / 60
        begin = Usage.until_now(self._etcd)
        async with Traffic(self._etcd) as traffic:
            await asyncio.sleep(self._effort.quiet_seconds)
        used = Usage.until_now(self._etcd).since(begin)
        work = EtcdWork.of(self._etcd.metrics())
        return {
            "quiet-requests": used.requests / per_host_minute,
            "quiet-bytes": traffic.bytes / per_host_minute,
            "quiet-grpc-bytes": used.grpc_bytes / per_host_minute,
            "quiet-etcd-cpu": used.etcd_cpu / used.seconds * 100,
            "quiet-own-cpu": used.own_cpu / per_host_minute * 1e3,
            "etcd-rss": work.resident_megabytes,
            "own-threads": threading.active_count() / self._count,
        }

    async def _join(self) -> Values:
        """Let hosts join, one after the other."""
        seconds = []
        begin, events = Usage.until_now(self._etcd), self._tally.events
        for _ in range(self._effort.joins):
            began, newcomers = time.monotonic(), Tally()
            self._add_host(newcomers)
            seconds.append(await self._tally.reach(self._tally.count + self._count, _DEADLINE) - began)
            await newcomers.reach(len(self._hosts) - 1, _DEADLINE)
        used = Usage.until_now(self._etcd).since(begin)
        return {
            "join": statistics.median(seconds) * 1e3,
            "join-slowest": max(seconds) * 1e3,
            "join-etcd-cpu": used.etcd_cpu / self._effort.joins * 1e3,
            "join-own-cpu": used.own_cpu / (self._tally.events - events) * 1e6,
        }

    async def _leave(self) -> Values:
        """Let a host leave: the others keep its routes for a while, in case that it comes back."""
        began = time.monotonic()
        await self._hosts.pop().leave()
        reached = await self._tally.reach(self._tally.count - self._count, _DEADLINE)
        return {"leave": reached - began}

    async def _restart(self) -> Values:
        """Restart etcd; a host joins as soon as it serves requests."""
        await asyncio.to_thread(self._etcd.stop)
        await asyncio.to_thread(self._etcd.start)
        began, own_cpu = time.monotonic(), time.process_time()
        self._add_host(Tally())
        reached = await self._tally.reach(self._tally.count + self._count, _DEADLINE)
        work = EtcdWork.of(self._etcd.metrics())
        return {
            "restart": reached - began,
            "restart-requests": work.requests / self._count,
            "restart-etcd-cpu": work.cpu_seconds,
            "restart-own-cpu": time.process_time() - own_cpu,
        }


async def measure_swarm(api: Api, count: int, effort: Effort) -> Values:
    """Measure ``count`` hosts on an etcd of their own."""
    async with running_etcd(api) as etcd:
        return await Swarm(api, etcd, count, effort).measure()


async def measure_crowd(api: Api, watchers: int, writers: int) -> Values:
    """Measure ``writers`` that write a lease each and do nothing else, while ``watchers`` real hosts watch."""
    async with running_etcd(api) as etcd:
        tally = Tally()
        hosts = [SimulatedHost(api, etcd.url, number, tally, Terms()) for number in range(watchers)]
        try:
            await tally.reach(watchers * (watchers - 1), _DEADLINE)
            begin, events = Usage.until_now(etcd), tally.events
            await each(writers, _WRITERS_AT_ONCE, lambda number: _write_lease(api, etcd.url, number))
            written = time.monotonic()
            reached = await tally.reach(watchers * (watchers - 1 + writers), _DEADLINE)
            used = Usage.until_now(etcd).since(begin)
        finally:
            await end_all(hosts)
    return {
        "crowd-written": written - begin.seconds,
        "crowd-known": reached - begin.seconds,
        "crowd-etcd-cpu": used.etcd_cpu / writers * 1e3,
        "crowd-own-cpu": used.own_cpu / (tally.events - events) * 1e6,
    }


async def _write_lease(api: Api, etcd_url: str, number: int) -> None:
    """Create one lease, as a host does that joins.  The subnets are beyond those that the watchers choose from."""
    registry = REGISTRIES[api]([etcd_url], ETCD_PREFIX)
    subnet = _FIRST_WRITTEN + (number << 8)
    await registry.create(f"{subnet}-24", LeaseAttrs(_FIRST_WRITER + number).encode(registry.schema), Terms().lease_ttl)
    await registry.close()
