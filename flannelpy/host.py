"""What the networks of one host share: the way out, and what keeps them from each other.

A packet between two networks is refused by a routing rule on the host where it sets out, before any route is looked at.
Counterpart: none; the original's networks reach each other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from itertools import permutations

from flannelpy.errors import ConfigError
from flannelpy.linux import iptables
from flannelpy.linux.entries import Prohibition
from flannelpy.linux.interface import ExternalInterface
from flannelpy.linux.netlink import Netlink

log = logging.getLogger(__name__)


class Host:
    """``networks`` is how many there are to be."""

    def __init__(self, external: ExternalInterface, public_ip: IPv4Address, networks: int = 1) -> None:
        self.external = external
        self.public_ip = public_ip
        self._expected = networks
        self._claims: dict[str, tuple[IPv4Network, Sequence[str]]] = {}
        self._masqueraded: list[IPv4Network] = []
        self._busy = asyncio.Lock()

    def check(self, name: str, network: IPv4Network, claims: Sequence[str]) -> None:
        """Whether the network called ``name`` may have these addresses and things.  Raises ConfigError."""
        for other, (theirs, their_claims) in self._claims.items():
            if other == name:
                continue
            if network.overlaps(theirs):
                raise ConfigError(f"Network {network} overlaps {theirs}, the network {other}")
            for claim in claims:
                if claim in their_claims:
                    raise ConfigError(f"{claim} is the network {other}'s: choose another one in Backend")

    def claim(self, name: str, network: IPv4Network, claims: Sequence[str]) -> None:
        """They are that network's from now on."""
        self._claims[name] = network, claims

    async def isolate(self, netlink: Netlink) -> list[str]:
        """Have no network reach another one; which rules were missing.  Raises HostError.

        Rules of networks that are no more go when all that are to be are there.
        """
        if self._expected < 2:
            return []
        async with self._busy:
            present = await netlink.prohibitions()
            pairs = permutations([network for network, _ in self._claims.values()], 2)
            wanted = [Prohibition(source, destination) for source, destination in pairs]
            missing = [rule for rule in wanted if rule not in present]
            await netlink.prohibit(missing)
            if len(self._claims) == self._expected:
                await netlink.permit([rule for rule in present if rule not in wanted])
            return list(map(str, missing))

    async def masquerade(self, network: IPv4Network) -> None:
        """Beside the others.  Raises HostError."""
        async with self._busy:
            if network not in self._masqueraded:
                self._masqueraded.append(network)
            await iptables.set_up_masquerade(self._masqueraded)
