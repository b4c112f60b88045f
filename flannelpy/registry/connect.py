"""Opens the store that the flags name."""

from __future__ import annotations

from flannelpy.options import Options
from flannelpy.registry.base import Registry
from flannelpy.registry.endpoints import parse_endpoint
from flannelpy.registry.etcd_v2 import EtcdV2Registry


def connect(options: Options, network: str = "") -> Registry:
    """Open the store of a network's leases.  Raises UsageError, HostError."""
    return EtcdV2Registry(
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
