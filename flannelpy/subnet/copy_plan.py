"""What ``flannelpy copy-to-v3`` does about each key, given its entries in etcd v2 and v3.  Pure.

===========================  ==============================  ============
in v2                        in v3                           what to do
===========================  ==============================  ============
a lease                      nothing                         copy
a lease                      an unchanged copy of it         nothing
a lease                      an unchanged copy of another    update
                             state of it
a lease                      the same text, not a copy       nothing: the host uses v3
a lease                      anything else                   nothing: a conflict
a malformed key or value     anything                        nothing
nothing                      an unchanged copy               remove
nothing                      anything else                   nothing
===========================  ==============================  ============

A copy has the mark of copied.py.  A key without it, or whose value was changed since, is never written.

A lease of the same host that differs is a conflict because v3 hides it.  A host on v3 writes one text into both stores,
and a host on v2 another, without PublicIPv6.  So a host that went back to v2 has such a lease in v3 until that expires;
an operator may have made a reservation there, too.  A host that uses both stores writes one after the other, so the two
also differ for a moment; ``may_pass`` tells that the plan counts only if it lasts.

A config that hosts on v3 refuse is not copied: they would start without a network.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from flannelpy.errors import ConfigError
from flannelpy.foreign import shown
from flannelpy.registry.base import KeyValue, Schema
from flannelpy.subnet import config, copied, go_json
from flannelpy.subnet.lease import Lease, LeaseAttrs


class Step(enum.Enum):
    """What to do about a key, in the words of the output."""

    COPY = "copied"
    UPDATE = "updated"
    REMOVE = "removed"
    EQUAL = "unchanged"
    MOVED = "kept"
    CONFLICT = "conflict"
    FAILED = "failed"
    IGNORE = "ignored"


#: Steps that write to v3.
WRITING = frozenset({Step.COPY, Step.UPDATE, Step.REMOVE})
#: The least lifetime of a copy, in seconds: etcd v3 grants no shorter one.
SHORTEST_LIFETIME = 2
_REMEDY = (
    "v3's lease is no copy and hides v2's: delete the key in v3 if the host uses v2, so that v2's is copied; otherwise "
    "restart it with -etcd-api=3"
)

_ONLY_SECOND_RESERVED = (
    "only v2 has a reservation; v3's lease is no copy and hides v2's: delete the key in v3 if the host uses v2 or does "
    "not run, so that v2's is copied; otherwise the host makes one in v3, too, at the latest when it restarts"
)


class Plan(NamedTuple):
    """What to do about a key, and why if that needs a reason; ``may_pass``: a moment later it may be another plan."""

    step: Step
    reason: str = ""
    may_pass: bool = False


#: A copy would outlive the lease in v2.
EXPIRING = Plan(Step.IGNORE, f"it expires within {SHORTEST_LIFETIME} s, the shortest lease of etcd v3")


def plan_lease(second: KeyValue | None, first: KeyValue | None) -> Plan | None:
    """Return what to do about a lease that is ``second`` in v2 and ``first`` in v3; None: nothing worth a line."""
    if second is None:
        is_copy = first is not None and copied.original(first.value) is not None
        return Plan(Step.REMOVE, "the lease in v2 is gone") if is_copy else None
    try:
        lease = Lease.from_entry(second)
    except ValueError as error:
        return Plan(Step.IGNORE, str(error))
    if first is None:
        return _plan_write(Step.COPY, second)
    copy = copied.original(first.value)
    if copy is None:
        return _plan_foreign(lease, second, first)
    is_equal = (
        copy == (copied.unmarked(second.value), second.version) and first.lifetime.expires == second.lifetime.expires
    )
    return Plan(Step.EQUAL) if is_equal else _plan_write(Step.UPDATE, second)


def _plan_write(step: Step, second: KeyValue) -> Plan:
    """Return ``step``, unless the copy would outlive ``second``."""
    seconds = second.lifetime.seconds
    if seconds is not None and seconds < SHORTEST_LIFETIME:
        return EXPIRING
    return Plan(step)


def plan_config(second: str, first: str | None) -> Plan:
    """Return what to do about the config, which is ``second`` in v2 and ``first`` in v3 (None: v3 has none)."""
    try:
        config.parse(copied.copy_of(second, 0), Schema.V3)
    except (ValueError, ConfigError) as error:
        return Plan(Step.FAILED, f"hosts with -etcd-api=3 refuse the config that v2 has: {error}")
    if first is None:
        return Plan(Step.COPY)
    if copy := copied.original(first):
        return Plan(Step.EQUAL if copy.text == copied.unmarked(second) else Step.UPDATE)
    if _is_same(second, first):
        return Plan(Step.MOVED, "v3 has the same")
    return Plan(Step.CONFLICT, "v3 has another one, not a copy")


def _is_same(second: str, first: str) -> bool:
    """Return whether two configs are equal but for white space and marks."""
    try:
        return go_json.parse_object(copied.unmarked(first)) == go_json.parse_object(copied.unmarked(second))
    except ValueError:
        return False


def _plan_foreign(lease: Lease, second: KeyValue, first: KeyValue) -> Plan:
    """Return what to do about ``lease``, ``second`` in v2, whose value in v3 is no copy, or was changed since."""
    attrs = lease.attrs
    try:
        theirs = LeaseAttrs.decode(first.value)
    except ValueError as error:
        return Plan(Step.CONFLICT, f"the value in v3 is no copy and malformed: {error}")
    same_host = attrs.host_id in ("", theirs.host_id)
    if attrs.public_ip != theirs.public_ip or not same_host:
        return Plan(Step.CONFLICT, f"v2 names {_named(attrs)}, v3 names {_named(theirs)} and is no copy")
    difference = (
        _difference(attrs, theirs) or _difference_in_lifetime(second, first) or _difference_in_text(second, first)
    )
    if difference:
        return Plan(Step.CONFLICT, difference, may_pass=True)
    return Plan(Step.MOVED, "its host uses v3")


def _difference(attrs: LeaseAttrs, theirs: LeaseAttrs) -> str:
    """Return in what v2 and v3 differ for the peers of one host, and the remedy; empty if they do not."""
    if attrs.backend_type != theirs.backend_type:
        return f"v2 has BackendType {shown(attrs.backend_type)}, v3 has {shown(theirs.backend_type)}; {_REMEDY}"
    if _used(attrs.backend_data) != _used(theirs.backend_data):
        ours, others = go_json.show(attrs.backend_data), go_json.show(theirs.backend_data)
        return f"v2 has BackendData {ours}, v3 has {others}; {_REMEDY}"
    return ""


def _difference_in_text(second: KeyValue, first: KeyValue) -> str:
    """Return that the host seems to use v2, and the remedy; empty if the texts are those of a host on v3."""
    if first.value.rstrip() == second.value.rstrip():
        return ""
    return f"the host seems to use v2, where its lease has another text than in v3; {_REMEDY}"


def _used(data: object) -> object:
    """Return what peers use of BackendData: in v3, vxlan adds a VNI that no host reads (flanneld v0.20.2 does so)."""
    return {name: value for name, value in data.items() if name != "VNI"} if isinstance(data, dict) else data


def _difference_in_lifetime(second: KeyValue, first: KeyValue) -> str:
    """Return which store alone has a reservation, and the remedy; empty if both or none have one."""
    if second.lifetime.expires == first.lifetime.expires:
        return ""
    return f"only v3 has a reservation; {_REMEDY}" if second.lifetime.expires else _ONLY_SECOND_RESERVED


def _named(attrs: LeaseAttrs) -> str:
    return f"{attrs.public_ip} (host ID {shown(attrs.host_id)})" if attrs.host_id else str(attrs.public_ip)
