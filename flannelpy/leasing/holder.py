"""By whom a lease is held, as its value tells."""

from __future__ import annotations

from typing import NamedTuple

from flannelpy.subnet.lease import HostIdentity, LeaseAttrs


class Holder(NamedTuple):
    """The host that wrote a lease, or claims it."""

    public_ip: object
    host_id: str
    is_claim: bool


def holder_of(value: str) -> Holder | None:
    """Return the holder of a lease with ``value``; None if that is malformed."""
    try:
        attrs = LeaseAttrs.decode(value)
    except ValueError:
        return None
    return Holder(attrs.public_ip, attrs.host_id, attrs.claim)


def is_held_by(host_identity: HostIdentity, value: str) -> bool:
    """Return whether the host holds a lease with ``value``, also if flanneld wrote it, which has no host ID."""
    return holder_of(value) in (
        Holder(host_identity.public_ip, "", is_claim=False),
        Holder(host_identity.public_ip, host_identity.host_id, is_claim=False),
    )


def is_written_by(host_identity: HostIdentity, value: str) -> bool:
    """Return whether the host, and no other one with its public IP, has written ``value``."""
    return holder_of(value) == Holder(host_identity.public_ip, host_identity.host_id, is_claim=False)
