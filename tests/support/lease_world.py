"""One host, a fake registry and a clock that jumps: a day of leases takes milliseconds."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import ClassVar

from support.fakes import FakeRegistry
from support.fakes_clock import LoopClock, run

from flannelpy import cli
from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.backend import catalogue as backends
from flannelpy.errors import LeaseLost, RegistryUnavailable
from flannelpy.leasing.manager import SubnetManager
from flannelpy.registry.base import KeyValue, Schema
from flannelpy.subnet.config import NetworkConfig, parse
from flannelpy.subnet.lease import HostIdentity, Lease, LeaseAttrs
from flannelpy.subnet.lease_policy import Terms
from flannelpy.subnet.lease_table import LeaseAdded, LeaseEvent

LEASE_TTL, RENEW_MARGIN = Terms()
OUR_IP = IPv4Address("172.17.8.101")
ATTRS = LeaseAttrs(OUR_IP)
OURS, B, C, D = (f'{{"PublicIP":"172.17.8.{n}"}}' for n in (101, 102, 103, 104))
TEXT = '{"Network":"11.0.0.0/16"}'
CONFIG = parse(TEXT)
# Three subnets: 11.0.0.64, .128 and .192.
SMALL = parse('{"Network":"11.0.0.0/24","SubnetLen":26}')
EXTERNAL = ExternalInterface("eth1", OUR_IP, 1500)
OWN_NAME, OWN = "11.0.59.0-24", IPv4Network("11.0.59.0/24")


async def accept_any(config: NetworkConfig) -> NetworkConfig:
    return config


async def accept_by_backend(config: NetworkConfig) -> object:
    return backends.create(config, EXTERNAL, cli.parse([]), "alias")


async def entries(registry: FakeRegistry) -> dict[str, KeyValue]:
    """Return all entries, with the remaining seconds, and without the key that a lease in etcd v3 always has."""
    await registry.snapshot()  # lets entries expire
    return {
        entry.name: entry._replace(value=entry.value.replace(',"PublicIPv6":null', "")) for entry in registry.stored()
    }


class World:
    """A registry with ``schema``, and the manager of the host 172.17.8.101."""

    schema: ClassVar[Schema] = Schema.V2

    def __init__(self, registry_class: type[FakeRegistry]) -> None:
        clock = LoopClock()
        self.now = clock.now
        self.registry = registry_class(clock.now, self.schema)
        self.manager = SubnetManager(self.registry, clock, random.Random(1), HostIdentity(OUR_IP))
        self.events: list[LeaseEvent] = []

    async def apply(self, events: Sequence[LeaseEvent]) -> None:
        self.events += events

    async def acquire(self, previous: IPv4Network | None = None, config: NetworkConfig = CONFIG) -> Lease:
        return await self.manager.acquire(config, lambda _: ATTRS, previous)

    async def entries(self) -> dict[str, KeyValue]:
        return await entries(self.registry)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """With the own lease 11.0.59.0/24, the watch (which is yielded) and the renewal running."""
        await self.acquire(OWN)
        watch = asyncio.create_task(self.manager.watch(self.apply))
        renewal = asyncio.create_task(self.manager.keep_lease())
        await asyncio.sleep(0.001)
        yield watch
        for task in (watch, renewal):
            task.cancel()
        failures = await asyncio.gather(watch, renewal, return_exceptions=True)
        assert {type(failure) for failure in failures} <= {asyncio.CancelledError, LeaseLost}


def play(scenario: Callable[[World], Awaitable[None]], registry_class: type[FakeRegistry] = FakeRegistry) -> None:
    async def whole() -> None:
        await scenario(World(registry_class))

    run(whole())


def summary(events: Sequence[LeaseEvent]) -> list[tuple[str, str | None]]:
    return [
        (str(event.lease.subnet), str(event.lease.attrs.public_ip))
        if isinstance(event, LeaseAdded)
        else (str(event.subnet), None)
        for event in events
    ]


class Leaderless(FakeRegistry):
    """Refuses creates while ``creates`` is false."""

    creates = True

    async def create(self, name: str, value: str, lease_ttl: int) -> KeyValue:
        if not self.creates:
            raise RegistryUnavailable("no leader")
        return await super().create(name, value, lease_ttl)
