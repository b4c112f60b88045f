"""The control plane: the network config, the own lease, and the watch of all leases."""
