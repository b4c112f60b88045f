"""Acquires the own lease: the existing one if it fits, else the previous subnet, else a free one.

Counterpart: acquireLeaseOnce in subnet/etcd.go.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Network
from typing import NamedTuple

from flannelpy.addressing.surroundings import Surroundings
from flannelpy.errors import CompareFailed, HostError, KeyExists, KeyNotFound
from flannelpy.leasing.claims import Claims
from flannelpy.leasing.lease_store import LeaseStore
from flannelpy.leasing.retry import Clock
from flannelpy.registry.base import Snapshot
from flannelpy.subnet.allocator import pick_subnet
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease import Lease, LeaseAttrs, is_inside, occupied_subnet, well_formed

log = logging.getLogger(__name__)

#: Returns the attributes of the own lease, given those that an existing lease has.
Describe = Callable[[LeaseAttrs | None], LeaseAttrs]

_MAX_RACE_PAUSE = 1.0


class Request(NamedTuple):
    """What a host asks for: a subnet of ``config``, ``previous`` if possible, that conflicts with nothing ``around``.

    ``describe`` makes the attributes of the lease.
    """

    config: NetworkConfig
    describe: Describe
    previous: IPv4Network | None
    around: Surroundings


class Acquisition:
    """One request for a lease, until it is granted."""

    def __init__(self, request: Request, store: LeaseStore, claims: Claims, clock: Clock, rng: random.Random) -> None:
        self._config, self._describe, self._previous, self._around = request
        self._store = store
        self._claims = claims
        self._identity = claims.host_identity
        self._clock = clock
        self._rng = rng
        self._logged: set[str] = set()

    async def run(self) -> Lease:
        """Return the acquired lease.

        Raises LeaseLost if another live host holds it, HostError if it contains an own address, OutOfSubnets, and
        RegistryError.
        """
        races_lost = 0
        tried: set[IPv4Network] = set()  # a directory has such a key too, but no listing contains it
        while True:
            try:
                return await self._attempt(await self._store.list(), tried)
            except (KeyExists, CompareFailed, KeyNotFound):
                # Normal while many hosts start.  Random pauses, longer each time, spread the hosts out.
                races_lost += 1
                longest = min(0.01 * 2 ** min(races_lost, 7), _MAX_RACE_PAUSE)
                await self._clock.sleep(self._rng.uniform(0, longest))

    async def _attempt(self, snapshot: Snapshot, tried: set[IPv4Network]) -> Lease:
        leases = well_formed(snapshot.entries)
        found = self._with_our_ip(leases)
        self._refuse_around_us([self._previous, *(lease.subnet for lease in found)])
        moved = self._under_former_ip(leases, found)
        known = [moved] if moved else found
        attrs = replace(self._describe(known[0].attrs if known else None), host_id=self._identity.host_id)
        if moved:
            lease: Lease | None = await self._claims.move(moved, attrs, stale=found)
        else:
            lease = await self._reuse(found, leases, attrs)
        if lease is None:
            subnet = self._pick(snapshot, leases, tried)
            tried.add(subnet)
            lease = await self._store.create(subnet, attrs)
        log.info("Subnet lease acquired: %s", lease.subnet)
        return lease

    def _pick(self, snapshot: Snapshot, leases: Sequence[Lease], tried: Iterable[IPv4Network]) -> IPv4Network:
        config, around = self._config, self._around
        hosts = {lease.attrs.public_ip for lease in leases} | around.underlay | around.endpoints
        taken = [*_taken(snapshot, config.network), *tried]
        subnet = pick_subnet(config, taken, self._previous, self._rng, hosts, around.connected)
        self._log_once(f"Picking subnet in range {config.subnet_min} ... {config.subnet_max}")
        return subnet

    def _with_our_ip(self, leases: Iterable[Lease]) -> list[Lease]:
        """Return the leases with our public IP: those that need no claim come first, and of them the previous one."""
        ours = (lease for lease in leases if lease.attrs.public_ip == self._identity.public_ip)
        return sorted(ours, key=lambda lease: (self._claims.is_required(lease), lease.subnet != self._previous))

    def _under_former_ip(self, leases: Sequence[Lease], found: Sequence[Lease]) -> Lease | None:
        """Return the lease of our host ID and our previous subnet under a former public IP, if flannelpy can keep it.

        A lease in ``found``, with our public IP, comes first if it is ours or a reservation.  A lease of another host
        does not, because DHCP may have given us the former address of that host.  If another subnet than the previous
        one has our host ID, that lease belongs to a clone.
        """
        if any(lease.is_reservation or not self._claims.is_required(lease) for lease in found):
            return None
        for lease in leases:
            if (
                lease.subnet == self._previous
                and lease.subnet not in self._claims.denied
                and self._identity.is_from(lease.attrs)
            ):
                return None if lease in found or self._why_unfit(lease, leases) else lease
        return None

    async def _reuse(self, found: Iterable[Lease], leases: Sequence[Lease], attrs: LeaseAttrs) -> Lease | None:
        """Renew the first lease that fits, if there is one, and give up those that do not."""
        kept: Lease | None = None
        for each in found:
            was_anothers = self._claims.is_required(each)
            lease = await self._claims.take_over(each, attrs) if was_anothers else each
            if why := self._why_unfit(lease, leases):
                await self._give_up(lease, why)
            elif kept is None:
                self._log_once(f"Found lease ({lease.subnet}) for current IP ({self._identity.public_ip}), reusing")
                kept = await self._store.swap(lease, lease.version, attrs)
            elif was_anothers and not lease.is_reservation:  # a host needs one lease only
                await self._store.delete(lease)
        return kept

    def _why_unfit(self, found: Lease, leases: Sequence[Lease]) -> str:
        """Return why a lease cannot be ours again; empty if it can."""
        if not self._config.fits(found.subnet):
            return "not compatible with current config"
        for endpoint in self._around.endpoints:
            if endpoint in found.subnet:
                return f"it contains {endpoint}, an address of etcd"
        peers = (lease for lease in leases if lease.attrs.public_ip != self._identity.public_ip)
        for peer in (lease for lease in peers if is_inside(lease.subnet, self._config.network)):
            if peer.created < found.created and peer.subnet.overlaps(found.subnet):
                return f"it overlaps {peer.subnet}, which {peer.attrs.public_ip} leased earlier"
        return ""

    async def _give_up(self, lease: Lease, why: str) -> None:
        message = "Found lease (%s) for current IP (%s) but %s"
        if lease.is_reservation:
            log.warning(f"{message}, leaving the reservation alone", lease.subnet, self._identity.public_ip, why)
        else:
            log.info(f"{message}, deleting", lease.subnet, self._identity.public_ip, why)
            await self._store.delete(lease)

    def _log_once(self, line: str) -> None:
        """Log what the host is about to do, but not at each try."""
        if line not in self._logged:
            self._logged.add(line)
            log.info("%s", line, stacklevel=2)

    def _refuse_around_us(self, candidates: Iterable[IPv4Network | None]) -> None:
        """Raise HostError if a subnet that would be ours again contains an address by which peers reach us."""
        for subnet in candidates:
            if subnet is None or not self._config.fits(subnet):
                continue
            for address in sorted(self._around.underlay):
                if address in subnet:
                    raise HostError(
                        f"our address {address} lies inside our own subnet {subnet}, where other hosts cannot reach it:"
                        " choose another address by -iface or -public-ip, or remove the lease and the subnet file"
                    )


def _taken(snapshot: Snapshot, network: IPv4Network) -> list[IPv4Network]:
    """Return the subnets of ``network`` that have a key, with any value: a create would fail."""
    subnets = []
    for entry in snapshot.entries:
        with suppress(ValueError):
            subnets.append(occupied_subnet(entry.name))
    return [subnet for subnet in subnets if is_inside(subnet, network)]
