"""The life of the own lease: what happens to it, and what the host does then.  Pure: time is an argument.

===================  =============================  ==========================
what happened        a lease with a TTL             a reservation (no TTL)
===================  =============================  ==========================
renewal is due       renew by compare-and-swap      nothing
still ours, changed  adopt version and TTL          adopt version and TTL
value damaged        write it by compare-and-swap   write it by compare-and-swap
deleted or expired   take it back by atomic create  take it back by atomic create
held by another      leave                          leave
===================  =============================  ==========================

"Leave" is to stop forwarding under that subnet and end the process, so that Docker follows.  A store that does not
answer is no row: the host forwards on with the routes it has, for as long as it takes.
Counterpart: subnet/renew.go, which renews blindly and ignores the rest.
"""

from __future__ import annotations

import enum
from ipaddress import IPv4Address

from flannelpy.subnet.lease import Lease
from flannelpy.subnet.lease_table import Added, Damaged, Gone, OwnEvent

LEASE_TTL = 24 * 3600
RENEW_MARGIN = 3600
RETRY_SECONDS = 60


class Happening(enum.Enum):
    """What can happen to the own lease."""

    RENEWAL_DUE = "renewal is due"
    CHANGED = "still ours, changed"
    DAMAGED = "value damaged"
    GONE = "deleted or expired"
    TAKEN = "held by another"


class Action(enum.Enum):
    """What the host does then."""

    NOTHING = "nothing"
    RENEW = "renew by compare-and-swap"
    ADOPT = "adopt version and TTL"
    REPAIR = "write it by compare-and-swap"
    TAKE_BACK = "take it back by atomic create"
    LEAVE = "leave"


_LEASED: dict[Happening, Action] = {
    Happening.RENEWAL_DUE: Action.RENEW,
    Happening.CHANGED: Action.ADOPT,
    Happening.DAMAGED: Action.REPAIR,
    Happening.GONE: Action.TAKE_BACK,
    Happening.TAKEN: Action.LEAVE,
}
_RESERVED = _LEASED | {Happening.RENEWAL_DUE: Action.NOTHING}


def action(own: Lease, happening: Happening) -> Action:
    """The table above."""
    return (_RESERVED if own.lease_ttl is None else _LEASED)[happening]


def classify(event: OwnEvent, public_ip: IPv4Address) -> Happening:
    """What an event about the own subnet means for the host at ``public_ip``."""
    match event:
        case Added(lease):
            return Happening.CHANGED if lease.attrs.public_ip == public_ip else Happening.TAKEN
        case Damaged():
            return Happening.DAMAGED
        case Gone():
            return Happening.GONE


def renewal_delay(lease_ttl: int) -> float:
    """Seconds from the moment a lease had ``lease_ttl`` left until it is renewed: an hour early, or half-way."""
    return max(lease_ttl - RENEW_MARGIN, lease_ttl / 2)
