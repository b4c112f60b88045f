"""The store of config and leases: the protocol of a registry, and etcd's v2 API as one."""
