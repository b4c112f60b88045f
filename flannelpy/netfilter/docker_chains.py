"""The chains of Docker that flannelpy puts jumps into.  Pure.

Docker leaves DOCKER-USER to its users: it creates the chain if it is missing, keeps what is in it, and jumps there
before its own rules.  flannelpy creates it when Docker has not been started yet, and with it an empty chain that tells
-cleanup so: like an empty DOCKER-USER, that chain outlives ``iptables -F`` and ends with ``iptables -X`` or a reboot.
A rule in DOCKER-USER would not outlive ``iptables -F``, and a record in a file would outlive a reboot.
Source: https://docs.docker.com/engine/network/packet-filtering-firewalls, daemon/libnetwork/iptables.go of moby.
"""

from __future__ import annotations

from flannelpy.marks import CHAIN_PREFIX
from flannelpy.netfilter.ruleset import Listing, Repair

DOCKER_USER = "DOCKER-USER"
_DOCKER = "DOCKER"
# It exists if flannelpy has created DOCKER-USER.
_CREATED = f"{CHAIN_PREFIX}-{DOCKER_USER}"
#: Those that a listing of the table filter has to have.
NAMES = (DOCKER_USER, _DOCKER, _CREATED)

# Docker versions that find the chain there add no jump to it (moby/libnetwork#2631).
_OWN_JUMP = f"-A FORWARD -m comment --comment flannelpy -j {DOCKER_USER}\n".encode()


def keep(listing: Listing, repair: Repair) -> None:
    """Have DOCKER-USER exist, and have a jump to it once Docker runs."""
    if DOCKER_USER.encode() not in listing.rules:
        repair.create(DOCKER_USER)
        if _CREATED.encode() not in listing.rules:
            repair.create(_CREATED)
    jumps = [jump.line for jump in listing.jumps(DOCKER_USER.encode())]
    is_needed = _DOCKER.encode() in listing.rules and not set(jumps) - {_OWN_JUMP}
    if is_needed and _OWN_JUMP not in jumps:
        repair.insert_first("FORWARD", _OWN_JUMP)
    elif not is_needed and _OWN_JUMP in jumps:
        repair.remove_rule(_OWN_JUMP)


def remove(listing: Listing, repair: Repair) -> None:
    """Remove our jump to DOCKER-USER, and the chain if only flannelpy has made and used it.

    As long as another network of ours is there, all stays.  Call it last: it looks at what ``repair`` removes.
    """
    if {name.decode() for name in listing.own_chains} - set(repair.removed):
        return
    name = DOCKER_USER.encode()
    for jump in listing.jumps(name):
        if jump.line == _OWN_JUMP:
            repair.remove_rule(jump.line)
    if _CREATED.encode() not in listing.rules:
        return
    jumps = [jump.line for jump in listing.jumps(name)]
    if name in listing.rules and all(repair.removes(line) for line in (*listing.rules[name], *jumps)):
        repair.delete(DOCKER_USER)
    repair.delete(_CREATED)
