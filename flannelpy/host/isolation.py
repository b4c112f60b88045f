"""Keeps the networks of one host from reaching each other.

An ip rule on the source host rejects a packet from one network to another, before any route applies but those to the
host itself.
Counterpart: none; the networks of flanneld reach each other.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Network
from itertools import permutations

from flannelpy.host.resources import Resources
from flannelpy.linux.netlink.client import Netlink
from flannelpy.rtnetlink.rules import ProhibitRule


class Isolation:
    """The ip rules between all pairs of networks."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._rules: set[ProhibitRule] = set()  # those that this daemon has put into the kernel

    async def restore(self, netlink: Netlink) -> list[str]:
        """Add missing rules and remove obsolete ones; return the rules that another program had removed.

        Only marked rules count.  An unmarked rule of an earlier version is replaced by a marked one.  Containers of a
        network that has ended may still run, so its rules stay until another network takes its addresses.  Raises
        HostError.
        """
        async with self._resources.busy:
            wanted = {ProhibitRule(*pair) for pair in permutations(self._resources.networks(), 2)}
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

    def forget(self, networks: Collection[IPv4Network]) -> None:
        """Note that this daemon has removed the rules of these networks.  The caller holds ``busy`` of the resources.

        ``restore`` adds again those that are needed, and does not take another program for the cause.
        """
        self._rules = {rule for rule in self._rules if not {rule.source, rule.destination} & {*networks}}
