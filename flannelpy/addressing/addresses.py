"""The IPv4 addresses that a host, or a network of containers, can have.  Pure.

Source: IANA IPv4 Special-Purpose Address Registry; RFC 1122 section 3.2.1.3, RFC 1112 section 4, RFC 5771, RFC 3927.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

_ALWAYS_SPECIAL = {
    IPv4Network("0.0.0.0/8"): "this host itself",
    IPv4Network("127.0.0.0/8"): "loopback",
    IPv4Network("224.0.0.0/4"): "multicast",
}
# A host may have a link-local address.  Linux routes the reserved block, and some clouds number containers with it.
_NO_HOSTS = _ALWAYS_SPECIAL | {IPv4Network("240.0.0.0/4"): "reserved and broadcast"}
_NO_NETWORKS = _ALWAYS_SPECIAL | {IPv4Network("169.254.0.0/16"): "link-local"}


# Keyed by the first byte, because each lease is looked up; every block consists of whole /8 networks.
_BY_FIRST_BYTE = {
    int(part.network_address) >> 24: f"{block} ({use})"
    for block, use in _NO_HOSTS.items()
    for part in block.subnets(new_prefix=8)
}


def special_use(address: IPv4Address) -> str:
    """Return the block that makes ``address`` unfit for a host, as ``127.0.0.0/8 (loopback)``; empty if none does."""
    return _BY_FIRST_BYTE.get(int(address) >> 24, "")


def special_use_in(network: IPv4Network) -> str:
    """Return the block that makes ``network`` unfit for containers, as ``special_use``; empty if it overlaps none."""
    return next((f"{block} ({use})" for block, use in _NO_NETWORKS.items() if block.overlaps(network)), "")


def edges(network: IPv4Network) -> tuple[IPv4Address, ...]:
    """Return the first and the last address, which no host has; none for one or two addresses (RFC 3021)."""
    return (network.network_address, network.broadcast_address) if network.prefixlen < 31 else ()
