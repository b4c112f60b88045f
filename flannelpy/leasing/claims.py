"""The claim protocol: takes over a lease that another host may hold, unless that host objects.

A newcomer marks the lease as claimed and waits ``CLAIM_SECONDS``.  A live holder sees the mark in its watch and writes
its lease again, so the newcomer's second write fails.  Without an objection, the newcomer writes the lease as its own.
lease_policy.py explains when a host claims, and how a holder reacts.

Counterpart: none; flanneld v0.5.5 takes every lease with its public IP.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Network

from flannelpy.errors import CompareFailed, KeyNotFound, LeaseLost
from flannelpy.leasing.lease_store import LeaseStore
from flannelpy.leasing.retry import Clock
from flannelpy.subnet.lease import HostIdentity, Lease, LeaseAttrs
from flannelpy.subnet.lease_policy import CLAIM_SECONDS
from flannelpy.subnet.lease_table import LeaseAdded

log = logging.getLogger(__name__)


class Claims:
    """The claims of the host ``host_identity``."""

    def __init__(self, store: LeaseStore, clock: Clock, rng: random.Random, host_identity: HostIdentity) -> None:
        self._store = store
        self._clock = clock
        self._rng = rng
        self.host_identity = host_identity
        #: Subnets whose holder has objected to a claim under its own public IP.
        self.denied: set[IPv4Network] = set()

    def is_required(self, lease: Lease) -> bool:
        """Return whether another live host may hold ``lease``, which has our public IP.

        A claim of our own is left from an interrupted try, so the holder may not have had the time to object.
        """
        own_id, theirs = self.host_identity.host_id, lease.attrs
        return bool(own_id) and (theirs.claim or theirs.host_id not in ("", own_id))

    async def take_over(self, lease: Lease, attrs: LeaseAttrs) -> Lease:
        """Claim a lease with our public IP and another host ID, then write ``attrs``.

        Raises LeaseLost if the holder objects, CompareFailed or KeyNotFound if the lease changed otherwise.
        """
        log.warning(
            "Lease (%s) may belong to a live host (host ID %s); waiting %d s for that host to object",
            lease.subnet,
            lease.attrs.host_id,
            CLAIM_SECONDS,
        )
        claim = await self._store.swap(lease, lease.version, replace(attrs, claim=True))
        await self._clock.sleep(CLAIM_SECONDS)
        try:
            return await self._store.swap(lease, claim.version, attrs)
        except CompareFailed:
            match await self._store.find(lease.subnet):
                case LeaseAdded(found) if found.attrs.host_id not in ("", self.host_identity.host_id):
                    raise LeaseLost(describe_conflict(self.host_identity, found)) from None
            raise

    async def move(self, lease: Lease, attrs: LeaseAttrs, stale: Iterable[Lease]) -> Lease:
        """Claim a lease with our host ID and our former public IP, then write ``attrs``, with our new public IP.

        ``stale`` are leases of other hosts, which had our public IP before us.  They are removed afterwards.  A host
        that does have this public IP recreates its lease.  Raises CompareFailed, KeyNotFound.
        """
        former = lease.attrs.public_ip
        text = "Lease (%s) of this host has its former public IP (%s); waiting %d s for another host to object"
        log.warning(text, lease.subnet, former, CLAIM_SECONDS)
        claimant = self.host_identity.claimant(self._rng.getrandbits(32))
        claim = await self._store.swap(lease, lease.version, replace(lease.attrs, host_id=claimant, claim=True))
        await self._clock.sleep(CLAIM_SECONDS)
        try:
            moved = await self._store.swap(lease, claim.version, attrs)
        except CompareFailed:
            await self._note_objection(lease)
            raise
        log.info("Changed public IP of lease (%s) from %s to %s", lease.subnet, former, attrs.public_ip)
        for each in stale:
            await self._remove_stale(each)
        return moved

    async def _note_objection(self, lease: Lease) -> None:
        """If a host with our host ID has written the lease meanwhile, never claim that subnet again."""
        match await self._store.find(lease.subnet):
            case LeaseAdded(found) if found.attrs.public_ip == lease.attrs.public_ip:
                self.denied.add(lease.subnet)
                log.warning(
                    "Lease (%s) is held by another host (%s) with our host ID (%s); leasing another subnet. If this"
                    " machine is a clone, give it its own by -host-id or /etc/machine-id",
                    lease.subnet,
                    found.attrs.public_ip,
                    self.host_identity.host_id,
                )

    async def _remove_stale(self, lease: Lease) -> None:
        with suppress(CompareFailed, KeyNotFound):  # its host has moved it meanwhile
            await self._store.delete(lease)
            log.warning(
                "Removed lease (%s) of another host (%s): it has our public IP", lease.subnet, lease.attrs.host_id
            )


def describe_conflict(host_identity: HostIdentity, lease: Lease) -> str:
    """Describe for the operator why another host holds or claims a lease with our public IP, and the remedy."""
    if host_identity.is_from(lease.attrs):
        return (
            f"another host with our host ID ({host_identity.host_id}) asks for our lease {lease.subnet}: "
            "one of the two is a clone; give each its own by -host-id or /etc/machine-id"
        )
    return (
        f"public IP {host_identity.public_ip} is not unique: another host ({lease.attrs.host_id}, we are "
        f"{host_identity.host_id}) leases {lease.subnet} with it; give each its own by -iface or -public-ip"
    )
