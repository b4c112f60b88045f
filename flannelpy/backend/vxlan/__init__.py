"""The vxlan backend: the kernel carries the packets."""
