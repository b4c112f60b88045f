"""Opens the store of a network for one host's lease."""

from __future__ import annotations

from flannelpy.options import EtcdApi, Options
from flannelpy.registry.base import Registry
from flannelpy.registry.connect import connect, open_as
from flannelpy.registry.either import EitherRegistry
from flannelpy.registry.etcd_v2 import EtcdV2Registry
from flannelpy.registry.etcd_v3 import EtcdV3Registry
from flannelpy.subnet.lease import HostIdentity


def connect_host(options: Options, network: str, host_identity: HostIdentity) -> Registry:
    """Open the store of a network for the lease of ``host_identity``.  Raises UsageError, HostError.

    A host whose lease is in v3, by the flag or by the choice of auto, has it in v2 as well while v2 has a config.
    """
    if options.etcd_api is EtcdApi.V2:
        return connect(options, network)
    # Imported here, because no host on v2 needs it.
    from flannelpy.leasing.both_stores import BothStores

    v2 = open_as(EtcdV2Registry, options, network)
    v3 = open_as(EtcdV3Registry, options, network)
    if options.etcd_api is EtcdApi.V3:
        return BothStores(v3, v2, host_identity)
    # auto chooses v3 because v2 has no config, and need not ask v2 again.
    return EitherRegistry(v2, BothStores(v3, v2, host_identity, has_second_config=False))
