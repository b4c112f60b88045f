"""The vxlan backend: the kernel encapsulates the packets."""
