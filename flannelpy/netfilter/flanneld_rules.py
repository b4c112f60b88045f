"""The iptables rules that flanneld v0.5.5 and early flannelpy left behind for a network.  Pure.

Counterpart: network/ipmasq.go, whose one chain FLANNEL is shared by all networks.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from ipaddress import IPv4Network

from flannelpy.marks import CHAIN_PREFIX
from flannelpy.netfilter.ruleset import Listing, Repair

# The chain of flanneld v0.5.5 and of early flannelpy, for all networks.
CHAIN = CHAIN_PREFIX
_JUMP = f"-A POSTROUTING -j {CHAIN}\n".encode()
# flanneld's rules that name no network: they belong to the last network that has a jump.
_UNNAMED = re.compile(
    rb"-A %b (! -d 224\.0\.0\.0/4 -j MASQUERADE|-d 224\.0\.0\.0/4 -j ACCEPT|! -o flannel\d+ -j MASQUERADE)\n"
    % CHAIN.encode()
)


def remove(found: Listing, repair: Repair, network: IPv4Network) -> None:
    """Remove the rules of flanneld v0.5.5 and of early flannelpy for a network; rules of other networks stay.

    The chain and its jump are removed if no rule in the chain names another network, and no such jump leads to it.
    """
    rules, jumps = found.rules.get(CHAIN.encode()), [jump.line for jump in found.jumps(CHAIN.encode())]
    ours = _lines_of(network)
    kept = [line for line in [*(rules or ()), *jumps] if line not in ours]
    goes = rules is not None and all(line == _JUMP or _UNNAMED.fullmatch(line) for line in kept)
    for line in found.found:
        if line == entering(network):
            repair.remove_rule(line)
    if goes:
        repair.remove(found, CHAIN)
    else:
        for line in [*(rules or ()), *jumps]:
            if line in ours:
                repair.remove_rule(line)


def _lines_of(network: IPv4Network) -> Collection[bytes]:
    """Return the rules in the chain FLANNEL, and the jumps to it, that name the network."""
    rules = [
        f"POSTROUTING -s {network} -j {CHAIN}",
        f"{CHAIN} -d {network} -j ACCEPT",
        f"{CHAIN} -s {network} -d {network} -j RETURN",
        f"{CHAIN} -s {network} ! -d 224.0.0.0/4 -j MASQUERADE",
        f"{CHAIN} ! -s {network} -d {network} -j MASQUERADE",
    ]
    return {f"-A {rule}\n".encode() for rule in rules}


def entering(network: IPv4Network) -> bytes:
    """Return the rule of flanneld that masquerades packets which enter the network."""
    return f"-A POSTROUTING ! -s {network} -d {network} -j MASQUERADE\n".encode()
