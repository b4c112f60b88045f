"""What ``flannelpy copy-to-v3`` does about each key, given its entries in etcd v2 and v3.  Pure.

===========================  ==============================  ============
in v2                        in v3                           what to do
===========================  ==============================  ============
a lease                      nothing                         copy
a lease                      an unchanged copy of it         nothing
a lease                      an unchanged copy of another    update
                             state of it
a lease                      the same host's, not a copy     nothing: the host uses v3
a lease                      anything else                   nothing: a conflict
a malformed key or value     anything                        nothing
nothing                      an unchanged copy               remove
nothing                      anything else                   nothing
===========================  ==============================  ============

A copy has the mark of copied.py.  A key without it, or whose value was changed since, is never written.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from flannelpy.foreign import shown
from flannelpy.registry.base import KeyValue
from flannelpy.subnet import copied, go_json
from flannelpy.subnet.lease import Lease, LeaseAttrs


class Step(enum.Enum):
    """What to do about a key, in the words of the output."""

    COPY = "copied"
    UPDATE = "updated"
    REMOVE = "removed"
    EQUAL = "unchanged"
    MOVED = "kept"
    CONFLICT = "conflict"
    IGNORE = "ignored"


class Plan(NamedTuple):
    """What to do about a key, and why if that needs a reason."""

    step: Step
    reason: str = ""


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
        return Plan(Step.COPY)
    copy = copied.original(first.value)
    if copy is None:
        return _plan_foreign(lease.attrs, first.value)
    is_equal = copy == (second.value.rstrip(), second.version) and first.lifetime.expires == second.lifetime.expires
    return Plan(Step.EQUAL if is_equal else Step.UPDATE)


def plan_config(second: str, first: str) -> Plan:
    """Return what to do about the config, which is ``second`` in v2 and ``first`` in v3, or empty there."""
    try:
        document = go_json.parse_object(second)
    except ValueError as error:
        return Plan(Step.IGNORE, str(error))
    if not first:
        return Plan(Step.COPY)
    if copy := copied.original(first):
        return Plan(Step.EQUAL if copy.text == second.rstrip() else Step.UPDATE)
    try:
        is_same = go_json.parse_object(first) == document
    except ValueError:
        is_same = False
    return Plan(Step.MOVED, "v3 has the same") if is_same else Plan(Step.CONFLICT, "v3 has another one, not a copy")


def _plan_foreign(attrs: LeaseAttrs, first: str) -> Plan:
    """Return what to do about a lease whose value in v3 is no copy, or was changed since."""
    try:
        theirs = LeaseAttrs.decode(first)
    except ValueError as error:
        return Plan(Step.CONFLICT, f"the value in v3 is no copy and malformed: {error}")
    same_host = attrs.host_id in ("", theirs.host_id)
    if attrs.public_ip == theirs.public_ip and same_host:
        return Plan(Step.MOVED, "its host uses v3")
    return Plan(Step.CONFLICT, f"v2 names {_named(attrs)}, v3 names {_named(theirs)} and is no copy")


def _named(attrs: LeaseAttrs) -> str:
    return f"{attrs.public_ip} (host ID {shown(attrs.host_id)})" if attrs.host_id else str(attrs.public_ip)
