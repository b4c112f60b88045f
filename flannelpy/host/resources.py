"""Which network of this host has which addresses, VNI and port: no two networks may have the same.

Counterpart: none; two networks of flanneld that share a port or a VNI fail at their start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Network
from typing import NamedTuple

from flannelpy.errors import ConfigError

log = logging.getLogger(__name__)


class _Claim(NamedTuple):
    """The addresses and resources of one network, and what removes its state from the kernel."""

    network: IPv4Network
    exclusive_resources: Sequence[str]
    withdraw: Callable[[], Awaitable[None]]

    def conflict(self, network: IPv4Network, exclusive_resources: Sequence[str]) -> str:
        """Return the first thing of this claim that another network would take; empty if there is none."""
        if network.overlaps(self.network):
            return str(self.network)
        return self.common_resource(exclusive_resources)

    def common_resource(self, exclusive_resources: Sequence[str]) -> str:
        """Return the first resource of this claim that is among these; empty if there is none."""
        return next((resource for resource in exclusive_resources if resource in self.exclusive_resources), "")


class Resources:
    """The claims of all networks of this host, each under the network's name."""

    def __init__(self) -> None:
        self._taken: dict[str, _Claim] = {}
        # The claims of networks that have ended: their state stays in the kernel for their next start, until another
        # network needs their addresses or resources.
        self._left: dict[str, _Claim] = {}
        #: Held while the state of a network that has ended is removed; its isolation rules must stay until then.
        self.busy = asyncio.Lock()

    def check(self, name: str, network: IPv4Network, exclusive_resources: Sequence[str]) -> None:
        """Raise ConfigError if another network than ``name`` has any of these addresses or resources."""
        for other, claim in self._taken.items():
            if other == name:
                continue
            if network.overlaps(claim.network):
                raise ConfigError(f"Network {network} overlaps {claim.network}, the network {other}")
            if resource := claim.common_resource(exclusive_resources):
                raise ConfigError(f"{resource} belongs to the network {other}: choose another one in Backend")

    def take(
        self,
        name: str,
        network: IPv4Network,
        exclusive_resources: Sequence[str],
        withdraw: Callable[[], Awaitable[None]],
    ) -> None:
        """Give addresses and resources to a network until ``release``.  Raises ConfigError as ``check`` does.

        ``withdraw`` removes what the network leaves in the kernel when it ends.
        """
        self.check(name, network, exclusive_resources)
        self._taken[name] = _Claim(network, exclusive_resources, withdraw)
        self._left.pop(name, None)  # its start takes over what it left

    def release(self, name: str) -> None:
        """Let other networks have what a network had that has ended, if it had anything."""
        if claim := self._taken.pop(name, None):
            self._left[name] = claim

    async def evict(self, name: str) -> list[IPv4Network]:
        """Remove the state of ended networks that conflicts with a network that starts; return those networks."""
        network, exclusive_resources, _ = self._taken[name]
        evicted = []
        async with self.busy:
            for other, claim in list(self._left.items()):
                conflict = claim.conflict(network, exclusive_resources)
                if conflict and other in self._left:
                    del self._left[other]
                    log.warning(
                        "Removing the state of the ended network %s: %s belongs to this network now", other, conflict
                    )
                    await claim.withdraw()
                    evicted.append(claim.network)
        return evicted

    def networks(self) -> list[IPv4Network]:
        """Return the networks that may have containers here.

        A network that has ended is among them, unless another network has its addresses.
        """
        taken = [claim.network for claim in self._taken.values()]
        left = [claim.network for claim in self._left.values()]
        return [*taken, *(one for one in left if not any(one.overlaps(other) for other in taken))]
