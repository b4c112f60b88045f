"""The lease policy: what the host does about each condition of its own lease.  Pure: time is an argument.

==========================================  =============================  =============================
condition                                   a lease with a TTL             a reservation (no TTL)
==========================================  =============================  =============================
renewal is due                              renew if unchanged             nothing
own lease changed                           adopt version and TTL          adopt version and TTL
value malformed                             restore by compare-and-swap    restore by compare-and-swap
our public IP, no host ID                   restore by compare-and-swap    restore by compare-and-swap
our public IP, claimed by a newcomer        restore by compare-and-swap    restore by compare-and-swap
our public IP, held by a higher host ID     restore by compare-and-swap    restore by compare-and-swap
our public IP, held by a lower host ID      surrender                      surrender
our public IP elsewhere, lower host ID      surrender                      surrender
our public IP elsewhere, any other case     nothing                        nothing
deleted or expired                          recreate by atomic create      recreate by atomic create
held by another public IP                   surrender                      surrender
overlaps a lease created earlier            surrender                      surrender
overlaps a lease created later              nothing                        nothing
store does not answer                       keep forwarding and retry      keep forwarding and retry
history gone, store replaced or restored    relist                         relist
==========================================  =============================  =============================

Every row runs: own_lease.py and manager.py classify what happens, look the action up, and match on it.

The table is the same for etcd v2 and v3; some conditions arise in different ways:

* Renewal: v2 writes the same value by compare-and-swap.  v3 extends the lifetime, so the version stays and no watch
  reports it, and compares the version in the same call.
* The time left: v2 tells it with every lease, v3 only with what this host has written.  So a changed lease that a host
  adopts from v3 is due for renewal at once, which tells the time.  In v3 all lifetimes begin again when the leader
  changes, so no action depends on the moment at which a lease ends.
* Creation: flanneld's renewal sets the key without a condition.  v2 then creates the key again, so that lease counts as
  the later one from then on.  v3 keeps the creation.
* A restored store: v2's leases end when they would have ended, v3's get their full time again.  In both, the store's
  content counts, however old it is.  If it has an older lease of another host for our subnet, that host keeps the
  subnet.  If it has an older version of our own lease, that is adopted.  If it has no lease of ours, it is recreated.

To surrender is to stop forwarding under that subnet and to end the process, so that Docker follows.  If etcd refuses a
renewal, flannelpy reads the lease back, and the row of what it finds applies.  A change of the network config is only
logged; it takes effect at the next start, never in part.

Two hosts with one public IP tell each other apart by the host ID in the lease.  A newcomer *claims* a lease that has
another host ID: it writes its own, marked as a claim.  A live holder writes its lease again, and the newcomer gives up.
Without such an answer, the newcomer is a reinstalled host and keeps the subnet.  Two hosts can both hold a lease if one
was cut off from etcd, or if both started at once.  Then the lower host ID wins.

A host that has a new address, as from DHCP, finds the lease that has its host ID and is for the subnet of its subnet
file.  A cloned machine may run with the same host ID and the former address, so the host claims the lease first.  The
claim has the *former* public IP, which makes the holder answer.  It also has a host ID of its own for this try, which
the holder cannot take for its own write.  If no answer comes within ``CLAIM_SECONDS``, the host writes its host ID and
its new public IP.  If the holder answers, the holder keeps the lease, and the newcomer leases another subnet.

Two leases of different length can overlap, because a create is atomic for one key only.  The host whose lease was
created later surrenders, and removes its lease unless it is a reservation.  flannelpy's renewal keeps the creation.
flanneld never surrenders.  Once it has renewed its lease in v2, that is the later one, and flannelpy stays.

A suspended machine or a changed time of day needs no row.  Time counts since boot, so a lease ages while the machine
sleeps, and its renewal is due or overdue when the machine wakes up.

Counterpart: subnet/renew.go, which renews blindly and ignores all other conditions.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from flannelpy.errors import HistoryGone, RegistryError
from flannelpy.subnet.lease import HostIdentity, Lease
from flannelpy.subnet.lease_table import LeaseAdded, LeaseRemoved, Malformed, Overlapping, OwnEvent, SameIPElsewhere

#: A newcomer waits so long for an objection to its claim; a live holder objects as soon as its watch reports it.
CLAIM_SECONDS = 3.0

_MAX_RETRY_SECONDS = 60.0
_MIN_RETRY_SECONDS = 0.5
# Even with the largest margin, a lease that was just renewed is not due again.
_MAX_LEAD = 0.9
# Hosts that started together spread their renewals over this part of the margin, before it.
_JITTER = 0.1


class Terms(NamedTuple):
    """The lifetime of a lease, and how long before its end to renew it, in seconds."""

    lease_ttl: int = 24 * 3600
    renew_margin: int = 3600


class Condition(enum.Enum):
    """A condition of the own lease, in the words of the table."""

    RENEWAL_DUE = "renewal is due"
    CHANGED = "own lease changed"
    MALFORMED = "value malformed"
    NO_HOST_ID = "our public IP, no host ID"
    CLAIMED = "our public IP, claimed by a newcomer"
    HELD_BY_HIGHER_ID = "our public IP, held by a higher host ID"
    HELD_BY_LOWER_ID = "our public IP, held by a lower host ID"
    ELSEWHERE_LOWER_ID = "our public IP elsewhere, lower host ID"
    ELSEWHERE = "our public IP elsewhere, any other case"
    GONE = "deleted or expired"
    TAKEN = "held by another public IP"
    OVERLAPS_EARLIER = "overlaps a lease created earlier"
    OVERLAPS_LATER = "overlaps a lease created later"
    STORE_SILENT = "store does not answer"
    HISTORY_GONE = "history gone, store replaced or restored"


class Action(enum.Enum):
    """The reaction of the host, in the words of the table."""

    NOTHING = "nothing"
    RENEW = "renew if unchanged"
    ADOPT = "adopt version and TTL"
    RESTORE = "restore by compare-and-swap"
    RECREATE = "recreate by atomic create"
    SURRENDER = "surrender"
    KEEP_FORWARDING = "keep forwarding and retry"
    RELIST = "relist"


_LEASED: dict[Condition, Action] = {
    Condition.RENEWAL_DUE: Action.RENEW,
    Condition.CHANGED: Action.ADOPT,
    Condition.MALFORMED: Action.RESTORE,
    Condition.NO_HOST_ID: Action.RESTORE,
    Condition.CLAIMED: Action.RESTORE,
    Condition.HELD_BY_HIGHER_ID: Action.RESTORE,
    Condition.HELD_BY_LOWER_ID: Action.SURRENDER,
    Condition.ELSEWHERE_LOWER_ID: Action.SURRENDER,
    Condition.ELSEWHERE: Action.NOTHING,
    Condition.GONE: Action.RECREATE,
    Condition.TAKEN: Action.SURRENDER,
    Condition.OVERLAPS_EARLIER: Action.SURRENDER,
    Condition.OVERLAPS_LATER: Action.NOTHING,
    Condition.STORE_SILENT: Action.KEEP_FORWARDING,
    Condition.HISTORY_GONE: Action.RELIST,
}
_RESERVED = _LEASED | {Condition.RENEWAL_DUE: Action.NOTHING}


def action(own: Lease, condition: Condition) -> Action:
    """Look up the action for a condition in the table above."""
    return (_RESERVED if own.is_reservation else _LEASED)[condition]


def classify(event: OwnEvent, host_identity: HostIdentity, created: int) -> Condition:
    """Return the condition that an event about the own subnet means for ``host_identity``.

    ``created``: the creation of the own lease in the store.
    """
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
    """Return the condition that a failed list or watch means."""
    return Condition.HISTORY_GONE if isinstance(error, HistoryGone) else Condition.STORE_SILENT


def renewal_lead(lease_ttl: int, terms: Terms, jitter: float) -> float:
    """Return how many seconds before its end to renew a lease that expires in ``lease_ttl`` seconds.

    ``jitter``: a random number from 0 to 1.
    """
    lead = terms.renew_margin if terms.renew_margin < lease_ttl else lease_ttl / 2
    return min(lead * (1 + _JITTER * jitter), _MAX_LEAD * lease_ttl)


def retry_delay(lead: float, failures: int, jitter: float) -> float:
    """Return the seconds until the next try after ``failures`` failed renewals; several tries fit into ``lead``."""
    delay = lead / 16 * 2.0 ** min(failures, 2)
    return max(min(delay, _MAX_RETRY_SECONDS) * (1 - _JITTER * jitter), _MIN_RETRY_SECONDS)
