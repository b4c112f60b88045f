"""The control plane: the config, our own lease, and the watch of all leases."""
