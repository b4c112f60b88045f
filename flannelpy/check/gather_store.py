"""Looks at etcd: the clocks of its endpoints, and config and leases of one network.  Nothing is written."""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv4Network, ip_address

from flannelpy.check import judge_store
from flannelpy.check.observations import AlarmSeen, EndpointSeen, FileSeen, StoreSeen
from flannelpy.errors import ConfigError, KeyNotFound, RegistryError
from flannelpy.options import Options
from flannelpy.registry import etcd_clock
from flannelpy.registry.base import Registry, Schema
from flannelpy.registry.connect import connect, open_as
from flannelpy.registry.etcd_v3 import EtcdV3Registry
from flannelpy.subnet import config as network_config
from flannelpy.subnet.lease import HostIdentity, Lease, format_key, well_formed

# For config and leases together: the whole check shall end within ten seconds.
_PATIENCE = 5.0


async def endpoints(options: Options) -> Sequence[EndpointSeen]:
    """Return what each endpoint of etcd answers.  Raises UsageError."""
    return [
        EndpointSeen(str(one.url), one.failure, one.ahead, _is_loopback(one.url.host))
        for one in await etcd_clock.compare(options)
    ]


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host.strip("[]")).is_loopback
    return host == "localhost"


async def look(
    options: Options, name: str, identity: HostIdentity, file: FileSeen, leased: IPv4Network | None = None
) -> StoreSeen:
    """Return what the store has of a network; ``leased``: the subnet of the daemon.  Raises UsageError, HostError."""
    key = posixpath.normpath(f"/{options.etcd_prefix.strip('/')}/{name}/config")
    registry = connect(options, name)
    try:
        async with asyncio.timeout(_PATIENCE):
            return await _read(registry, options, name, StoreSeen(key, identity=identity), file, leased)
    except TimeoutError:
        return StoreSeen(key, failure=f"{', '.join(options.etcd_endpoints)}: no answer in time")
    except KeyNotFound:
        return StoreSeen(key)
    except ConfigError as error:
        return StoreSeen(key, flaw=str(error))
    except RegistryError as error:
        return StoreSeen(key, failure=str(error))
    finally:
        await registry.close()


async def _read(
    registry: Registry, options: Options, name: str, empty: StoreSeen, file: FileSeen, leased: IPv4Network | None
) -> StoreSeen:
    """Return config, leases and alarms.  Raises RegistryError, ConfigError."""
    config = network_config.parse(await registry.read_config(), registry.schema)
    leases = well_formed((await registry.snapshot()).entries)
    assert empty.identity
    identity = judge_store.identity(leases, empty.identity, leased)
    own = judge_store.own_lease(leases, identity, file)
    alarms = await _alarms(options, name) if registry.schema is Schema.V3 else []
    left = await _seconds_left(options, name, registry.schema, own) if own else None
    return StoreSeen(empty.key, config, leases=leases, seconds_left=left, identity=identity, alarms=alarms)


async def _alarms(options: Options, name: str) -> Sequence[AlarmSeen]:
    """Return the alarms of etcd v3; none if it does not tell them to this user."""
    registry = open_as(EtcdV3Registry, options, name)
    with suppress(RegistryError):
        return [AlarmSeen(*alarm) for alarm in await registry.alarms()]
    return []


async def _seconds_left(options: Options, name: str, schema: Schema, own: Lease) -> int | None:
    """Return in how many seconds the own lease expires; None if the store does not tell."""
    if schema is Schema.V2 or own.is_reservation:
        return own.lifetime.seconds
    registry = open_as(EtcdV3Registry, options, name)
    with suppress(RegistryError):  # etcd may grant this user the keys alone
        return await registry.seconds_left(format_key(own.subnet))
    return None
