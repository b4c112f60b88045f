"""Opens the store that the flags name."""

from __future__ import annotations

from typing import TypeVar

from flannelpy.options import EtcdApi, Options
from flannelpy.registry.base import Registry
from flannelpy.registry.either import EitherRegistry
from flannelpy.registry.endpoints import Access, parse_endpoint
from flannelpy.registry.etcd_v2 import EtcdV2Registry
from flannelpy.registry.etcd_v3 import EtcdV3Registry

Opened = TypeVar("Opened", EtcdV2Registry, EtcdV3Registry)


def connect(options: Options, network: str = "") -> Registry:
    """Open the store of a network's leases by the API of -etcd-api.  Raises UsageError, HostError."""
    match options.etcd_api:
        case EtcdApi.V2:
            return open_as(EtcdV2Registry, options, network)
        case EtcdApi.V3:
            return open_as(EtcdV3Registry, options, network)
        case EtcdApi.AUTO:
            v2 = open_as(EtcdV2Registry, options, network)
            return EitherRegistry(v2, open_as(EtcdV3Registry, options, network))


def open_as(kind: type[Opened], options: Options, network: str) -> Opened:
    """Open the store of a network's leases by the API of ``kind``.  Raises UsageError, HostError."""
    access = Access(
        keyfile=options.etcd_keyfile,
        certfile=options.etcd_certfile,
        cafile=options.etcd_cafile,
        username=options.etcd_username,
        password=options.etcd_password,
    )
    return kind(options.etcd_endpoints, f"{options.etcd_prefix}/{network}", access)


def etcd_hosts(options: Options) -> list[str]:
    """Return the host names and addresses in -etcd-endpoints."""
    return [parse_endpoint(endpoint).host for endpoint in options.etcd_endpoints]
