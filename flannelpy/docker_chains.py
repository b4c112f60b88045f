"""The chains of Docker that flannelpy puts jumps into.  Pure.

Docker leaves DOCKER-USER to its users: it creates the chain if it is missing, keeps what is in it, and jumps there
before its own rules.  flannelpy creates it when Docker has not been started yet.
Source: https://docs.docker.com/engine/network/packet-filtering-firewalls, daemon/libnetwork/iptables.go of moby.
"""

from __future__ import annotations

from flannelpy.linux.ruleset import Listing, Repair

DOCKER_USER = "DOCKER-USER"
_DOCKER = "DOCKER"
#: Those that a listing of the table filter has to have.
NAMES = (DOCKER_USER, _DOCKER)

# Docker versions that find the chain there add no jump to it (moby/libnetwork#2631).
_OWN_JUMP = f"-A FORWARD -m comment --comment flannelpy -j {DOCKER_USER}\n".encode()


def keep(listing: Listing, repair: Repair) -> None:
    """Have DOCKER-USER exist, and have a jump to it once Docker runs."""
    if DOCKER_USER.encode() not in listing.rules:
        repair.create(DOCKER_USER)
    jumps = [jump.line for jump in listing.jumps(DOCKER_USER.encode())]
    is_needed = _DOCKER.encode() in listing.rules and not set(jumps) - {_OWN_JUMP}
    if is_needed and _OWN_JUMP not in jumps:
        repair.insert_first("FORWARD", _OWN_JUMP)
    elif not is_needed and _OWN_JUMP in jumps:
        repair.remove_rule(_OWN_JUMP)


def remove(listing: Listing, repair: Repair) -> None:
    """Remove our jump to DOCKER-USER, and the chain if it holds only our rules and no other rule jumps there.

    Call it last: it looks at what ``repair`` removes.
    """
    name = DOCKER_USER.encode()
    for jump in listing.jumps(name):
        if jump.line == _OWN_JUMP:
            repair.remove_rule(jump.line)
    rules, jumps = listing.rules.get(name, ()), [jump.line for jump in listing.jumps(name)]
    if rules and all(repair.removes(line) for line in (*rules, *jumps)):
        repair.delete(DOCKER_USER)
