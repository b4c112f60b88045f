"""What the networks of one host share: the way out, the firewall, and what keeps them from each other.

A packet between two networks is refused by a routing rule on the host where it sets out, before any route but those to
the host itself is looked at.
Counterpart: none; the original's networks reach each other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv4Network
from itertools import permutations
from typing import NamedTuple

from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.errors import ConfigError
from flannelpy.host.firewall import Firewall
from flannelpy.linux.netlink.client import Netlink
from flannelpy.rtnetlink.rules import ProhibitRule

log = logging.getLogger(__name__)


class _Claim(NamedTuple):
    """What a network has for itself alone, and what removes its state from the kernel."""

    network: IPv4Network
    exclusive_resources: Sequence[str]
    withdraw: Callable[[], Awaitable[None]]

    def conflict(self, network: IPv4Network, exclusive_resources: Sequence[str]) -> str:
        """What of it another network would take; empty if nothing."""
        if network.overlaps(self.network):
            return str(self.network)
        return next((resource for resource in exclusive_resources if resource in self.exclusive_resources), "")


class Host:
    """Networks are known by their names."""

    def __init__(self, external: ExternalInterface, public_ip: IPv4Address, iptables_resync: float = 5) -> None:
        self.external = external
        self.public_ip = public_ip
        self.firewall = Firewall(iptables_resync)
        self._taken: dict[str, _Claim] = {}
        # Of networks that have ended: what they left in the kernel stays for their next start, unless it is in the way.
        self._left: dict[str, _Claim] = {}
        self._rules: set[ProhibitRule] = set()  # those between networks of ours that are in the kernel
        self._busy = asyncio.Lock()

    def check(self, name: str, network: IPv4Network, exclusive_resources: Sequence[str]) -> None:
        """Whether the network called ``name`` may have these addresses and things.  Raises ConfigError."""
        for other, claim in self._taken.items():
            if other == name:
                continue
            if network.overlaps(claim.network):
                raise ConfigError(f"Network {network} overlaps {claim.network}, the network {other}")
            if resource := claim.conflict(network, exclusive_resources):
                raise ConfigError(f"{resource} is the network {other}'s: choose another one in Backend")

    def take(
        self,
        name: str,
        network: IPv4Network,
        exclusive_resources: Sequence[str],
        withdraw: Callable[[], Awaitable[None]],
    ) -> None:
        """They are that network's until ``release``.  Raises ConfigError as ``check`` does.

        ``withdraw`` removes what the network leaves in the kernel when it ends.
        """
        self.check(name, network, exclusive_resources)
        self._taken[name] = _Claim(network, exclusive_resources, withdraw)
        self._left.pop(name, None)  # its start takes over what it left

    def release(self, name: str) -> None:
        """The network has ended: others may have what was its own.  Nothing happens if it had taken nothing."""
        if claim := self._taken.pop(name, None):
            self._left[name] = claim
        self.firewall.release(name)

    async def evict(self, name: str) -> list[IPv4Network]:
        """Remove what networks that have ended left in the way of one that starts; which networks those are."""
        network, exclusive_resources, _ = self._taken[name]
        evicted = []
        async with self._busy:
            for other, claim in list(self._left.items()):
                conflict = claim.conflict(network, exclusive_resources)
                if conflict and other in self._left:
                    del self._left[other]
                    log.warning("Removing what is left of the network %s: %s is this network's now", other, conflict)
                    await claim.withdraw()
                    evicted.append(claim.network)
        return evicted

    async def isolate(self, netlink: Netlink) -> list[str]:
        """Have no network reach another one; returns the rules that were lost and are restored.  Raises HostError.

        Only marked rules count.  An unmarked rule of an earlier version is replaced by a marked one.  Containers of a
        network that has ended may still run, so its rules stay until another network takes its addresses.
        """
        async with self._busy:
            wanted = {ProhibitRule(*pair) for pair in permutations(self._networks(), 2)}
            if not wanted | self._rules:
                return []
            present = await netlink.prohibit_rules()
            missing = [rule for rule in wanted if rule not in present]
            unmarked = await netlink.unmarked_prohibit_rules() if missing else []
            await netlink.add_rules(missing)
            await netlink.remove_rules([rule for rule in missing if rule in unmarked], protocol=0)
            await netlink.remove_rules([rule for rule in self._rules - wanted if rule in present])
            lost = [str(rule) for rule in missing if rule in self._rules and rule not in unmarked]
            self._rules = wanted
            return lost

    def _networks(self) -> list[IPv4Network]:
        """Those that have ended, too, unless another network has their addresses."""
        taken = [claim.network for claim in self._taken.values()]
        left = [claim.network for claim in self._left.values()]
        return [*taken, *(one for one in left if not any(one.overlaps(other) for other in taken))]
