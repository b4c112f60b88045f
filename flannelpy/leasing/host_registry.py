"""Opens the store of a network for one host's lease."""

from __future__ import annotations

from flannelpy.options import EtcdApi, Options
from flannelpy.registry.base import Registry
from flannelpy.registry.connect import connect, open_as
from flannelpy.subnet.lease import HostIdentity


def connect_host(options: Options, network: str, host_identity: HostIdentity) -> Registry:
    """Open the store of a network for the lease of ``host_identity``.  Raises UsageError, HostError."""
    registry = connect(options, network)
    if options.etcd_api is not EtcdApi.V3:
        return registry
    # Imported here, because a host needs a lease in both stores only while a cluster changes from one to the other.
    from flannelpy.leasing.both_stores import BothStores
    from flannelpy.registry.etcd_v2 import EtcdV2Registry

    return BothStores(registry, open_as(EtcdV2Registry, options, network), host_identity)
