"""The udp backend: inner packets as they are, in UDP datagrams."""
