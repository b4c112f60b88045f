"""What the networks of one host share: the way out, the firewall, and what keeps them from each other.

A packet between two networks is refused by a routing rule on the host where it sets out, before any route but those to
the host itself is looked at.
Counterpart: none; the original's networks reach each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from itertools import permutations

from flannelpy.errors import ConfigError
from flannelpy.firewall import Firewall
from flannelpy.linux.entries import Prohibition
from flannelpy.linux.interface import ExternalInterface
from flannelpy.linux.netlink import Netlink


class Host:
    """Networks are known by their names."""

    def __init__(self, external: ExternalInterface, public_ip: IPv4Address, iptables_resync: float = 5) -> None:
        self.external = external
        self.public_ip = public_ip
        self.firewall = Firewall(iptables_resync)
        self._taken: dict[str, tuple[IPv4Network, Sequence[str]]] = {}
        self._rules: set[Prohibition] = set()  # those that were put
        self._busy = asyncio.Lock()

    def check(self, name: str, network: IPv4Network, needs: Sequence[str]) -> None:
        """Whether the network called ``name`` may have these addresses and things.  Raises ConfigError."""
        for other, (theirs, their_needs) in self._taken.items():
            if other == name:
                continue
            if network.overlaps(theirs):
                raise ConfigError(f"Network {network} overlaps {theirs}, the network {other}")
            for need in needs:
                if need in their_needs:
                    raise ConfigError(f"{need} is the network {other}'s: choose another one in Backend")

    def take(self, name: str, network: IPv4Network, needs: Sequence[str]) -> None:
        """They are that network's from now on."""
        self._taken[name] = network, needs

    async def isolate(self, netlink: Netlink) -> list[str]:
        """Have no network reach another one; returns the rules that were lost and are restored.  Raises HostError.

        Only marked rules count.  An unmarked rule of an earlier version is replaced by a marked one.
        """
        if len(self._taken) < 2:
            return []
        async with self._busy:
            present = await netlink.prohibitions()
            pairs = permutations([network for network, _ in self._taken.values()], 2)
            missing = [rule for pair in pairs if (rule := Prohibition(*pair)) not in present]
            unmarked = await netlink.unmarked_prohibitions() if missing else []
            await netlink.prohibit(missing)
            await netlink.permit([rule for rule in missing if rule in unmarked], protocol=0)
            lost = [str(rule) for rule in missing if rule in self._rules and rule not in unmarked]
            self._rules.update(missing, present)
            return lost
