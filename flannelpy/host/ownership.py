"""Which kernel state belongs to a subnet file: by its text, and by the record of the last run."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

from flannelpy.backend.leftovers import Scope
from flannelpy.host import subnet_file
from flannelpy.linux.instance_lock import Run
from flannelpy.linux.own_devices import own_alias

# The prefix length of the largest network that a config may have.
_MIN_NETWORK_LEN = 8


def scope(file: Path, last: Run | None, *held: tuple[IPv4Network, IPv4Network]) -> Scope:
    """Return what a subnet file owns by its text, by the record of the last run, and by ``held``.

    ``held``: networks, each with the subnet that this host leases of it.
    """
    pairs = [*held, *previous(file)]
    networks = {network for network, _ in pairs}.union(filter(_is_possible, last.networks if last else ()))
    return Scope(own_alias(file), frozenset(networks), frozenset(tunnel_address(*pair) for pair in pairs))


def tunnel_address(network: IPv4Network, subnet: IPv4Network) -> IPv4Interface:
    """Return the address of a backend's device."""
    return IPv4Interface((subnet.network_address, network.prefixlen))


def previous(file: Path) -> list[tuple[IPv4Network, IPv4Network]]:
    """Return network and subnet of an earlier run as one pair; nothing unless the subnet file names both."""
    network, subnet = subnet_file.previous_network(file), subnet_file.previous_subnet(file)
    return [(network, subnet)] if network and subnet and _is_possible(network) else []


def _is_possible(network: IPv4Network) -> bool:
    """Return whether a config may have this network; earlier versions accepted 0.0.0.0/0, which contains everything."""
    return network.prefixlen >= _MIN_NETWORK_LEN
