"""Opens the store that the flags name."""

from __future__ import annotations

from typing import TypeVar

from flannelpy.errors import UsageError
from flannelpy.options import EtcdApi, Options
from flannelpy.registry.base import Registry
from flannelpy.registry.endpoints import parse_endpoint
from flannelpy.registry.etcd_v2 import EtcdV2Registry

Opened = TypeVar("Opened", bound=EtcdV2Registry)


def connect(options: Options, network: str = "") -> Registry:
    """Open the store of a network's leases by the API of -etcd-api.  Raises UsageError, HostError."""
    if options.etcd_api is EtcdApi.V3:
        raise UsageError("-etcd-api=3 is not implemented yet")
    return open_as(EtcdV2Registry, options, network)


def open_as(kind: type[Opened], options: Options, network: str) -> Opened:
    """Open the store of a network's leases by the API of ``kind``.  Raises UsageError, HostError."""
    return kind(
        options.etcd_endpoints,
        f"{options.etcd_prefix}/{network}",
        keyfile=options.etcd_keyfile,
        certfile=options.etcd_certfile,
        cafile=options.etcd_cafile,
        username=options.etcd_username,
        password=options.etcd_password,
    )


def etcd_hosts(options: Options) -> list[str]:
    """Return the host names and addresses in -etcd-endpoints."""
    return [parse_endpoint(endpoint).host for endpoint in options.etcd_endpoints]
