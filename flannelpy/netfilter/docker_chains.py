"""DOCKER-USER, the chain of Docker that has a jump to flannelpy's.  Pure.

Docker leaves DOCKER-USER to operators: it creates the chain if it is missing, keeps the rules in it, and jumps there
before its own rules.  If Docker has not been started yet, flannelpy creates DOCKER-USER, and with it an empty chain by
which -cleanup knows that.  Like an empty DOCKER-USER, that chain survives ``iptables -F``, and ``iptables -X`` or a
reboot removes it.  A rule in DOCKER-USER would not survive ``iptables -F``, and a file would survive a reboot.
Source: https://docs.docker.com/engine/network/packet-filtering-firewalls, daemon/libnetwork/iptables.go of moby.
"""

from __future__ import annotations

from flannelpy.marks import CHAIN_PREFIX
from flannelpy.netfilter.ruleset import Listing, Repair

DOCKER_USER = "DOCKER-USER"
_DOCKER = "DOCKER"
# This chain exists if flannelpy created DOCKER-USER.
_CREATED = f"{CHAIN_PREFIX}-{DOCKER_USER}"
#: The chains that a listing of the table filter must collect.
NAMES = (DOCKER_USER, _DOCKER, _CREATED)

# Some versions of Docker add no jump to a chain that existed before them (moby/libnetwork#2631).
_OWN_JUMP = f"-A FORWARD -m comment --comment flannelpy -j {DOCKER_USER}\n".encode()


def keep(listing: Listing, repair: Repair) -> None:
    """Create DOCKER-USER if it is missing, and add a jump to it if Docker runs and has added none."""
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
    """Remove flannelpy's jump to DOCKER-USER, and the chain if flannelpy created it and no other program uses it.

    While another network of flannelpy has chains, all stays.  Call this last: it depends on what ``repair`` removes.
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
