"""Chooses the subnet of a new host.  Pure: randomness is an argument.

Counterpart: allocateSubnet in subnet/etcd.go.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv4Network
from itertools import islice
from typing import TYPE_CHECKING

from flannelpy.errors import OutOfSubnets
from flannelpy.subnet.config import NetworkConfig

if TYPE_CHECKING:
    import random

# Hosts that start together pick from this many free subnets, so that few pick the same one.
_CHOICES = 100


def pick_subnet(
    config: NetworkConfig,
    taken: Collection[IPv4Network],
    previous: IPv4Network | None,
    rng: random.Random,
    hosts: Collection[IPv4Address] = (),
    connected: Collection[IPv4Network] = (),
) -> IPv4Network:
    """Return ``previous`` if it fits and is free, else a random one of the first free subnets.  Raises OutOfSubnets.

    The subnet contains none of the ``hosts``.  A new subnet overlaps none of the ``connected`` networks of this host.
    ``previous`` may overlap them, because the containers' bridge has an address in it.  A connected network that
    contains all of Network does not count; the routes decide whether that works.
    """
    taken_hosts = [IPv4Network(host) for host in hosts if host in config.network]
    if previous is not None and config.fits(previous) and not any(map(previous.overlaps, [*taken, *taken_hosts])):
        return previous
    overlapping = [net for net in connected if net.overlaps(config.network) and not config.network.subnet_of(net)]
    choices = list(islice(free_subnets(config, [*taken, *taken_hosts, *overlapping]), _CHOICES))
    if not choices:
        raise OutOfSubnets(
            f"out of subnets: no /{config.subnet_len} is free in the range {config.subnet_min} ... {config.subnet_max},"
            f" there are {len(set(taken))} leases{_left_out(overlapping)}"
        )
    return rng.choice(choices)


def _left_out(connected: Collection[IPv4Network]) -> str:
    return f", and this host is connected to {', '.join(map(str, connected))}" if connected else ""


def free_subnets(config: NetworkConfig, taken: Collection[IPv4Network]) -> Iterator[IPv4Network]:
    """Yield the subnets from SubnetMin to SubnetMax that overlap nothing in ``taken``, lowest first."""
    size = 1 << (32 - config.subnet_len)
    blocks = sorted(((int(net.network_address), int(net.broadcast_address)) for net in taken), reverse=True)
    address, last = int(config.subnet_min), int(config.subnet_max)
    blocked_up_to = -1
    while address <= last:
        while blocks and blocks[-1][0] < address + size:
            blocked_up_to = max(blocked_up_to, blocks.pop()[1])
        if blocked_up_to < address:
            yield IPv4Network((address, config.subnet_len))
            address += size
        else:
            address = (blocked_up_to // size + 1) * size
