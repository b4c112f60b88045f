"""The addresses and networks of this host, which no lease may take over.  Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import NamedTuple

from flannelpy.addressing.addresses import edges

_NO_ADDRESS: frozenset[IPv4Address] = frozenset()


class Surroundings(NamedTuple):
    """The addresses and networks that matter to leases.

    ``addresses``: all of this machine, and its public IP.  ``underlay``: those by which peers reach this host.
    ``endpoints``: of etcd.  ``edges``: the first and the last address of each connected network, which no host has.
    ``links``: the networks of the external interface.  ``connected``: those of all interfaces but overlay devices.
    """

    addresses: frozenset[IPv4Address] = _NO_ADDRESS
    underlay: frozenset[IPv4Address] = _NO_ADDRESS
    endpoints: frozenset[IPv4Address] = _NO_ADDRESS
    edges: frozenset[IPv4Address] = _NO_ADDRESS
    links: tuple[IPv4Network, ...] = ()
    connected: tuple[IPv4Network, ...] = ()


#: The surroundings of a host without any network.
NO_SURROUNDINGS = Surroundings()


def surroundings(
    external: Collection[IPv4Interface],
    others: Collection[IPv4Interface],
    public_ip: IPv4Address,
    endpoints: Iterable[IPv4Address],
    overlay: Iterable[IPv4Interface] = (),
) -> Surroundings:
    """Return the surroundings of a host by its addresses on the external, the other, and the overlay interfaces."""
    links = tuple(sorted({each.network for each in external if each.network.prefixlen < 32}))
    connected = tuple(dict.fromkeys(each.network for each in (*external, *others)))
    return Surroundings(
        frozenset((public_ip, *(each.ip for each in (*external, *others, *overlay)))),
        frozenset((public_ip, *(each.ip for each in external))),
        frozenset(endpoints),
        frozenset(edge for network in connected for edge in edges(network)),
        links,
        connected,
    )
