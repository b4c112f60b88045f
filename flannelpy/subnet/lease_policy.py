"""The life of the own lease: what happens to it, and what the host does then.  Pure: time is an argument.

==========================================  =============================  =============================
what happened                               a lease with a TTL             a reservation (no TTL)
==========================================  =============================  =============================
renewal is due                              renew by compare-and-swap      nothing
renewal was refused                         look what is there             look what is there
still ours, changed                         adopt version and TTL          adopt version and TTL
value damaged                               write it by compare-and-swap   write it by compare-and-swap
our public IP, without an identity          write it by compare-and-swap   write it by compare-and-swap
our public IP, claimed by a newcomer        write it by compare-and-swap   write it by compare-and-swap
our public IP, held by a later identity     write it by compare-and-swap   write it by compare-and-swap
our public IP, held by an earlier identity  leave                          leave
our host ID and subnet, former public IP    claim it, then write it        claim it, then write it
our public IP elsewhere, earlier identity   leave                          leave
our public IP elsewhere, any other          nothing                        nothing
deleted or expired                          take it back by atomic create  take it back by atomic create
held by another public IP                   leave                          leave
overlaps a lease created earlier            leave                          leave
overlaps a lease created later              nothing                        nothing
store does not answer                       forward on, ask again          forward on, ask again
history gone, store replaced or set back    list again                     list again
network config changed or gone              say so                         say so
==========================================  =============================  =============================

"Leave" is to stop forwarding under that subnet and end the process, so that Docker follows.

Two hosts with one public IP tell each other apart by an identity in the lease.  A newcomer *claims* a lease that bears
another identity: it writes its own, marked as a claim.  A holder that lives writes its own again, and the newcomer
gives up; where nobody answers, the newcomer is a reinstalled host and keeps the subnet.  Only where both hold a lease,
because each was out of the other's sight or they came at the same moment, does the order of identities decide.

A host that has a new address, as DHCP gives it, finds the lease that bears its host ID and is for the subnet of its
subnet file.  A machine that was cloned may live with the same host ID and the former address, so the host claims the
lease first: under the *former* public IP, which makes the holder answer, and under an identity of its own for this try,
which the holder cannot take for its own write.  After ``CLAIM_SECONDS`` without an answer the host writes its identity
and its new public IP.  If the holder answers, it keeps the lease, and the newcomer leases another subnet.

Two leases of different length can overlap, because a create is atomic for one key only.  The one that was created later
leaves, and removes its lease unless it is a reservation.  Renewal by compare-and-swap keeps the creation; flanneld's
renewal creates the key again, so it counts as the later one, and a host of ours stays.

The machine was suspended, or its time of day was set: neither is a row.  Time is counted since boot, so a lease ages
while the machine sleeps, and the renewal is found due or overdue when it wakes up.

Counterpart: subnet/renew.go, which renews blindly and ignores the rest.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from flannelpy.errors import HistoryGone, RegistryError
from flannelpy.subnet.lease import HostIdentity, Lease
from flannelpy.subnet.lease_table import LeaseAdded, LeaseRemoved, Malformed, Overlapping, OwnEvent, SameIPElsewhere

#: A newcomer waits so long for an answer to its claim; a holder that lives answers as soon as its watch tells it.
CLAIM_SECONDS = 3.0

_MAX_RETRY_SECONDS = 60.0
_MIN_RETRY_SECONDS = 0.5
# Whatever the margin, a lease that was just renewed is not due again.
_MAX_LEAD = 0.9
# Hosts that started together spread their renewals over this part of the margin, before it.
_JITTER = 0.1


class Terms(NamedTuple):
    """For how long we lease, and how long before its end we renew, in seconds."""

    lease_ttl: int = 24 * 3600
    renew_margin: int = 3600


class Condition(enum.Enum):
    """What can happen to the own lease."""

    RENEWAL_DUE = "renewal is due"
    RENEWAL_REFUSED = "renewal was refused"
    CHANGED = "still ours, changed"
    MALFORMED = "value damaged"
    NO_HOST_ID = "our public IP, without an identity"
    CLAIMED = "our public IP, claimed by a newcomer"
    HELD_BY_HIGHER_ID = "our public IP, held by a later identity"
    HELD_BY_LOWER_ID = "our public IP, held by an earlier identity"
    MOVED = "our host ID and subnet, former public IP"
    ELSEWHERE_LOWER_ID = "our public IP elsewhere, earlier identity"
    ELSEWHERE = "our public IP elsewhere, any other"
    GONE = "deleted or expired"
    TAKEN = "held by another public IP"
    OVERLAPS_EARLIER = "overlaps a lease created earlier"
    OVERLAPS_LATER = "overlaps a lease created later"
    STORE_SILENT = "store does not answer"
    HISTORY_GONE = "history gone, store replaced or set back"
    CONFIG_CHANGED = "network config changed or gone"


class Action(enum.Enum):
    """What the host does then."""

    NOTHING = "nothing"
    RENEW = "renew by compare-and-swap"
    READ_BACK = "look what is there"
    ADOPT = "adopt version and TTL"
    REPAIR = "write it by compare-and-swap"
    CLAIM = "claim it, then write it"
    RECREATE = "take it back by atomic create"
    SURRENDER = "leave"
    KEEP_FORWARDING = "forward on, ask again"
    RELIST = "list again"
    LOG = "say so"


_LEASED: dict[Condition, Action] = {
    Condition.RENEWAL_DUE: Action.RENEW,
    Condition.RENEWAL_REFUSED: Action.READ_BACK,
    Condition.CHANGED: Action.ADOPT,
    Condition.MALFORMED: Action.REPAIR,
    Condition.NO_HOST_ID: Action.REPAIR,
    Condition.CLAIMED: Action.REPAIR,
    Condition.HELD_BY_HIGHER_ID: Action.REPAIR,
    Condition.HELD_BY_LOWER_ID: Action.SURRENDER,
    Condition.MOVED: Action.CLAIM,
    Condition.ELSEWHERE_LOWER_ID: Action.SURRENDER,
    Condition.ELSEWHERE: Action.NOTHING,
    Condition.GONE: Action.RECREATE,
    Condition.TAKEN: Action.SURRENDER,
    Condition.OVERLAPS_EARLIER: Action.SURRENDER,
    Condition.OVERLAPS_LATER: Action.NOTHING,
    Condition.STORE_SILENT: Action.KEEP_FORWARDING,
    Condition.HISTORY_GONE: Action.RELIST,
    Condition.CONFIG_CHANGED: Action.LOG,
}
_RESERVED = _LEASED | {Condition.RENEWAL_DUE: Action.NOTHING}


def action(own: Lease, condition: Condition) -> Action:
    """The table above."""
    return (_RESERVED if own.lease_ttl is None else _LEASED)[condition]


def classify(event: OwnEvent, host_identity: HostIdentity, created: int) -> Condition:
    """What an event about the own subnet means for ``host_identity``, whose lease has that creation in the store."""
    match event:
        case LeaseAdded(lease):
            return _classify_holder(lease, host_identity)
        case SameIPElsewhere(lease):
            earlier = not lease.attrs.claim and "" < lease.attrs.host_id < host_identity.host_id
            return Condition.ELSEWHERE_LOWER_ID if earlier else Condition.ELSEWHERE
        case Overlapping(lease):
            return Condition.OVERLAPS_EARLIER if lease.created < created else Condition.OVERLAPS_LATER
        case Malformed():
            return Condition.MALFORMED
        case LeaseRemoved():
            return Condition.GONE


def _classify_holder(lease: Lease, host_identity: HostIdentity) -> Condition:
    theirs = lease.attrs
    if theirs.public_ip != host_identity.public_ip:
        return Condition.TAKEN
    if theirs.host_id == host_identity.host_id or not host_identity.host_id:
        return Condition.CHANGED
    if not theirs.host_id:
        return Condition.NO_HOST_ID
    if theirs.claim:
        return Condition.CLAIMED
    return Condition.HELD_BY_HIGHER_ID if theirs.host_id > host_identity.host_id else Condition.HELD_BY_LOWER_ID


def classify_failure(error: RegistryError) -> Condition:
    """What it means that the store could not tell us what goes on."""
    return Condition.HISTORY_GONE if isinstance(error, HistoryGone) else Condition.STORE_SILENT


def renewal_lead(lease_ttl: int, terms: Terms, jitter: float) -> float:
    """Seconds before its end that a lease which has ``lease_ttl`` left is renewed; ``jitter`` is from 0 to 1."""
    lead = terms.renew_margin if terms.renew_margin < lease_ttl else lease_ttl / 2
    return min(lead * (1 + _JITTER * jitter), _MAX_LEAD * lease_ttl)


def retry_delay(lead: float, failures: int, jitter: float) -> float:
    """Seconds until a renewal that failed ``failures`` times is tried again: several times in what ``lead`` leaves."""
    delay = lead / 16 * 2.0 ** min(failures, 2)
    return max(min(delay, _MAX_RETRY_SECONDS) * (1 - _JITTER * jitter), _MIN_RETRY_SECONDS)
