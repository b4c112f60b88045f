"""The own lease: acquired, renewed, defended.  ``renewal.py`` says what is done about what; here it is done.

Counterpart: subnet/etcd.go, renew.go.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from ipaddress import IPv4Network

from flannelpy.addressing.surroundings import NO_SURROUNDINGS, Surroundings
from flannelpy.errors import CompareFailed, HostError, KeyExists, KeyNotFound, LeaseLost, OutOfSubnets, RegistryError
from flannelpy.leasing.retry import Clock, until_done
from flannelpy.logs import LogLimit
from flannelpy.registry.base import Registry, Snapshot
from flannelpy.subnet.allocator import pick_subnet
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease import HostIdentity, Lease, LeaseAttrs, format_key, is_inside, parse_key, well_formed
from flannelpy.subnet.lease_policy import (
    CLAIM_SECONDS,
    Action,
    Condition,
    Terms,
    action,
    classify,
    renewal_lead,
    retry_delay,
)
from flannelpy.subnet.lease_table import LeaseAdded, LeaseTable, Malformed, Overlapping, OwnEvent, SameIPElsewhere

log = logging.getLogger(__name__)

#: The attributes of our lease; given are those that it has already, if there is one.
Describe = Callable[[LeaseAttrs | None], LeaseAttrs]

_LOOK_SECONDS = 60.0
_MAX_RACE_PAUSE = 1.0


class OwnLease:
    """The lease of ``host_identity``, on ``terms``.  ``tried_at``: when it was last tried to put something right."""

    def __init__(
        self, registry: Registry, clock: Clock, rng: random.Random, host_identity: HostIdentity, terms: Terms
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._rng = rng
        self.host_identity = host_identity
        self._terms = terms
        self._lease: Lease | None = None
        self._attrs = LeaseAttrs(host_identity.public_ip)
        self._network: IPv4Network | None = None
        self._lead = self._renew_at = self._ends_at = 0.0
        self._failures = 0
        self._said = ""  # why the last renewals failed
        self._denied: set[IPv4Network] = set()  # whose holder has answered that it lives
        self._errors = LogLimit(log, "Error renewing lease")
        self._losses = LogLimit(log, "Own lease was deleted")
        self.tried_at = 0.0

    @property
    def lease(self) -> Lease:
        """As it was when we last saw it, once it was acquired."""
        assert self._lease is not None, "acquire comes first"
        return self._lease

    @property
    def network(self) -> IPv4Network:
        """The network that it is a part of, once it was acquired."""
        assert self._network is not None, "acquire comes first"
        return self._network

    def seconds_left(self) -> float | None:
        """Until it runs out if it is never renewed again; None for a reservation."""
        if self.lease.lease_ttl is None:
            return None
        return max(self._ends_at - self._clock.now(), 0)

    # Acquiring

    async def acquire(
        self,
        config: NetworkConfig,
        describe: Describe,
        previous: IPv4Network | None,
        around: Surroundings = NO_SURROUNDINGS,
    ) -> Lease:
        """The lease that our public IP has, else that of our former public IP, else ``previous``, else a new one.

        Raises LeaseLost when another host holds it and lives, HostError when it contains our own address.
        """
        self._network = config.network
        attempt = partial(self._acquire, config, describe, previous, around)
        return await until_done(
            self._clock, self._rng, attempt, "Failed to acquire subnet", OutOfSubnets, RegistryError
        )

    async def _acquire(
        self, config: NetworkConfig, describe: Describe, previous: IPv4Network | None, around: Surroundings
    ) -> Lease:
        races_lost = 0
        tried: set[IPv4Network] = set()  # a directory has its key, too, and is in no snapshot
        while True:
            snapshot = await self._registry.snapshot()
            try:
                leases = well_formed(snapshot.entries)
                found = self._ours_first(leases)
                _refuse_around_us(config, [previous, *(lease.subnet for lease in found)], around)
                why_unfit = partial(self._why_unfit, config, leases, around)
                moved = self._under_former_ip(leases, found, previous, why_unfit)
                known = [moved] if moved else found
                self._attrs = replace(describe(known[0].attrs if known else None), host_id=self.host_identity.host_id)
                lease = await (self._move(moved, found) if moved else self._reuse(found, why_unfit))
                if lease is None:
                    hosts = {lease.attrs.public_ip for lease in leases} | around.underlay | around.endpoints
                    taken = [*_taken(snapshot, config.network), *tried]
                    subnet = pick_subnet(config, taken, previous, self._rng, hosts, around.connected)
                    tried.add(subnet)
                    log.info("Picking subnet in range %s ... %s", config.subnet_min, config.subnet_max)
                    lease = await self._write_new(subnet)
                log.info("Subnet lease acquired: %s", lease.subnet)
                return self._hold(lease)
            except (KeyExists, CompareFailed, KeyNotFound):
                # Normal while many hosts start: look again, and spread out the more often it happens.
                races_lost += 1
                await self._clock.sleep(self._rng.uniform(0, min(0.01 * 2 ** min(races_lost, 7), _MAX_RACE_PAUSE)))

    def _ours_first(self, leases: Sequence[Lease]) -> list[Lease]:
        """The leases that have our public IP."""
        public_ip = self.host_identity.public_ip
        return sorted((lease for lease in leases if lease.attrs.public_ip == public_ip), key=self._is_anothers)

    async def _reuse(self, leases: Sequence[Lease], why_unfit: Callable[[Lease], str]) -> Lease | None:
        """Renew the first lease that fits, if there is one; one that does not is given up."""
        kept: Lease | None = None
        for found in leases:
            anothers = self._is_anothers(found)
            lease = await self._claim(found) if anothers else found
            if why := why_unfit(lease):
                await self._give_up_misfit(lease, why)
            elif kept is None:
                log.info("Found lease (%s) for current IP (%s), reusing", lease.subnet, self.host_identity.public_ip)
                kept = await self._write(lease, lease.version)
            elif anothers and lease.lease_ttl is not None:  # one is enough
                await self._registry.compare_and_delete(format_key(lease.subnet), lease.version)
        return kept

    def _under_former_ip(
        self,
        leases: Sequence[Lease],
        found: Sequence[Lease],
        previous: IPv4Network | None,
        why_unfit: Callable[[Lease], str],
    ) -> Lease | None:
        """The lease of our host ID and our previous subnet that has another public IP than ours, if it can be kept.

        A lease of ``found``, by our public IP, is preferred if it is ours or a reservation.  One of another host is
        not: DHCP may have given us the former address of that host.  Our host ID on another subnet than the previous
        one is that of a clone with a lease of its own.
        """
        if any(lease.lease_ttl is None or not self._is_anothers(lease) for lease in found):
            return None
        for lease in leases:
            if (
                lease.subnet == previous
                and lease.subnet not in self._denied
                and self.host_identity.is_from(lease.attrs)
            ):
                return None if lease in found or why_unfit(lease) else lease
        return None

    async def _move(self, lease: Lease, stale: Sequence[Lease]) -> Lease:
        """Write our public IP to ``lease`` unless its holder answers a claim.  Raises CompareFailed, KeyNotFound.

        Leases by which other hosts, that had our address before us, would be looked for here are removed; a host that
        does have this address takes its lease back.
        """
        assert action(lease, Condition.MOVED) is Action.CLAIM
        former = lease.attrs.public_ip
        text = "Lease (%s) of this host has its former public IP (%s); waiting %d s whether another host answers for it"
        log.warning(text, lease.subnet, former, CLAIM_SECONDS)
        claimant = self.host_identity.claimant(self._rng.getrandbits(32))
        claim = await self._swap(lease, lease.version, replace(lease.attrs, host_id=claimant, claim=True))
        await self._clock.sleep(CLAIM_SECONDS)
        try:
            moved = await self._write(lease, claim.version)
        except CompareFailed:
            await self._note_answer(lease)
            raise
        log.info("Changed public IP of lease (%s) from %s to %s", lease.subnet, former, self.host_identity.public_ip)
        for one in stale:
            await self._remove_stale(one)
        return moved

    async def _note_answer(self, lease: Lease) -> None:
        """If a host of our host ID has written the lease instead of us, leave it alone from now on."""
        match await self._find(lease.subnet):
            case LeaseAdded(found) if found.attrs.public_ip == lease.attrs.public_ip:
                self._denied.add(lease.subnet)
                log.warning(
                    "Lease (%s) is held by another host (%s) with our host ID (%s); leasing another subnet. If this"
                    " machine is a clone, give it its own by -host-id or /etc/machine-id",
                    lease.subnet,
                    found.attrs.public_ip,
                    self.host_identity.host_id,
                )

    async def _remove_stale(self, lease: Lease) -> None:
        with suppress(CompareFailed, KeyNotFound):  # its host has moved it meanwhile
            await self._registry.compare_and_delete(format_key(lease.subnet), lease.version)
            log.warning(
                "Removed lease (%s) of another host (%s): it has our public IP", lease.subnet, lease.attrs.host_id
            )

    def _is_anothers(self, lease: Lease) -> bool:
        """Whether somebody else of our public IP may live, and has to be asked.

        A claim of our own is from a try that did not come to its end, so the holder may not have had its say.
        """
        theirs = lease.attrs
        return bool(self.host_identity.host_id) and (
            theirs.claim or theirs.host_id not in ("", self.host_identity.host_id)
        )

    def _why_unfit(self, config: NetworkConfig, leases: Sequence[Lease], around: Surroundings, found: Lease) -> str:
        """Why a lease with our public IP cannot be ours again; empty if it can."""
        if not config.fits(found.subnet):
            return "not compatible with current config"
        for endpoint in around.endpoints:
            if endpoint in found.subnet:
                return f"it contains {endpoint}, an address of etcd"
        others = (lease for lease in leases if lease.attrs.public_ip != self.host_identity.public_ip)
        for other in (lease for lease in others if is_inside(lease.subnet, config.network)):
            if other.created < found.created and other.subnet.overlaps(found.subnet):
                return f"it overlaps {other.subnet}, which {other.attrs.public_ip} leased earlier"
        return ""

    async def _give_up_misfit(self, lease: Lease, why: str) -> None:
        message = "Found lease (%s) for current IP (%s) but %s"
        if lease.lease_ttl is None:
            log.warning(f"{message}, leaving the reservation alone", lease.subnet, self.host_identity.public_ip, why)
        else:
            log.info(f"{message}, deleting", lease.subnet, self.host_identity.public_ip, why)
            await self._registry.compare_and_delete(format_key(lease.subnet), lease.version)

    async def _claim(self, lease: Lease) -> Lease:
        """Take the lease over from another identity, unless its host answers.  Raises LeaseLost then."""
        log.warning(
            "Lease (%s) may be another host's (%s); waiting %d s whether it lives",
            lease.subnet,
            lease.attrs.host_id,
            CLAIM_SECONDS,
        )
        claim = await self._write(lease, lease.version, claim=True)
        await self._clock.sleep(CLAIM_SECONDS)
        try:
            return await self._write(lease, claim.version)
        except CompareFailed:
            self._give_up_claim(await self._find(lease.subnet))
            raise

    def _give_up_claim(self, found: OwnEvent) -> None:
        """Raises LeaseLost when another identity has answered; else somebody only touched the key."""
        match found:
            case LeaseAdded(lease) if lease.attrs.host_id not in ("", self.host_identity.host_id):
                raise LeaseLost(self._not_unique(lease))

    # Renewing

    async def keep(self) -> None:
        """Renew whenever it is due, for ever.  Raises LeaseLost."""
        while True:
            wait = self._renew_at - self._clock.now()
            if wait <= 0 and action(self.lease, Condition.RENEWAL_DUE) is Action.RENEW:
                await self._renew()
            else:
                # In short steps: the lease may be changed by others meanwhile, and sleep stops while we are suspended.
                await self._clock.sleep(min(wait, _LOOK_SECONDS) if wait > 0 else _LOOK_SECONDS)

    async def _renew(self) -> None:
        try:
            await self._renew_or_look()
        except RegistryError as error:
            self._failures += 1
            delay = self._put_off()
            if str(error) != self._said:
                self._said = str(error)
                when = "1 min" if delay > 50 else f"{delay:.1f} s"
                text = f"Error renewing lease (trying again in {when}): {error}"
                self._errors.message(logging.ERROR, text, self._clock.now())

    async def _renew_or_look(self) -> None:
        own = self.lease
        try:
            renewed = await self._write(own, own.version)
        except (CompareFailed, KeyNotFound):
            assert action(own, Condition.RENEWAL_REFUSED) is Action.READ_BACK
            self._put_off()
            await self.react(await self._find(own.subnet))
        else:
            self._hold(renewed)
            expiration = self._clock.wall() + timedelta(seconds=self._terms.lease_ttl)
            log.info("Lease renewed, new expiration: %s", expiration.strftime("%Y-%m-%d %H:%M:%S.%f +0000 UTC"))

    def _put_off(self) -> float:
        """Renew later, in so many seconds."""
        delay = retry_delay(self._lead, self._failures, self._rng.random())
        self._renew_at = self._clock.now() + delay
        return delay

    # Reacting

    async def react(self, event: OwnEvent) -> None:
        """Do what the table says about an event of our subnet.  Raises LeaseLost."""
        condition = classify(event, self.host_identity, self.lease.created)
        match action(self.lease, condition):
            case Action.ADOPT:
                assert isinstance(event, LeaseAdded)
                self._adopt(event.lease)
            case Action.REPAIR:
                assert isinstance(event, LeaseAdded | Malformed)
                self._say_why(condition, event)
                version = event.version if isinstance(event, Malformed) else event.lease.version
                await self._until_done(partial(self._repair, version), "Failed to write own lease")
            case Action.RECREATE:
                text = f"Own lease {self.lease.subnet} was deleted or has expired, taking it back"
                self._losses.message(logging.WARNING, text, self._clock.now())
                await self._until_done(self._take_back, "Failed to take own lease back")
            case Action.SURRENDER:
                assert isinstance(event, LeaseAdded | SameIPElsewhere | Overlapping)
                if isinstance(event, SameIPElsewhere | Overlapping):
                    await self._give_back()
                raise LeaseLost(self._why_we_leave(condition, event.lease))

    async def _until_done(self, attempt: Callable[[], Awaitable[None]], what_fails: str) -> None:
        async def noted() -> None:
            self.tried_at = self._clock.now()
            await attempt()

        await until_done(self._clock, self._rng, noted, what_fails, RegistryError)

    def _adopt(self, lease: Lease) -> None:
        """What the store says, also when it went back in time; our own last write comes by here as well."""
        if lease.version != self.lease.version:
            self._hold(lease)

    async def _repair(self, version: int) -> None:
        with suppress(CompareFailed, KeyNotFound):  # changed once more: the watch tells how
            self._hold(await self._write(self.lease, version))

    async def _take_back(self) -> None:
        with suppress(KeyExists):  # taken, or taken back by an earlier try: the watch tells which
            self._hold(await self._write_new(self.lease.subnet))

    async def _give_back(self) -> None:
        """Remove our lease, but not a reservation.

        A host that shares our public IP would have to ask about it, and the host that we make way for would have to
        make way for it, once its own lease was created again.
        """
        if self.lease.lease_ttl is None:
            return
        with suppress(RegistryError):
            await self._registry.compare_and_delete(format_key(self.lease.subnet), self.lease.version)

    def _say_why(self, condition: Condition, event: LeaseAdded | Malformed) -> None:
        """Log what made us write our lease again."""
        match condition, event:
            case Condition.NO_HOST_ID, _:
                log.warning(
                    "Lease %s was written by somebody without an identity, such as flanneld. If that is another host, "
                    "public IP %s is not unique: give each host its own by -iface or -public-ip",
                    self.lease.subnet,
                    self.host_identity.public_ip,
                )
            case ((Condition.CLAIMED | Condition.HELD_BY_HIGHER_ID), LeaseAdded(lease)):
                log.warning("%s", self._not_unique(lease))

    def _why_we_leave(self, condition: Condition, lease: Lease) -> str:
        if condition is Condition.OVERLAPS_EARLIER:
            return (
                f"our subnet {self.lease.subnet} overlaps {lease.subnet}, which {lease.attrs.public_ip} leased earlier;"
                " the next start leases another one"
            )
        if condition is not Condition.TAKEN:
            return self._not_unique(lease)
        ours, theirs = self.host_identity.public_ip, lease.attrs.public_ip
        return f"subnet {lease.subnet} is held by {theirs} now, not by us ({ours})"

    def _not_unique(self, lease: Lease) -> str:
        if self.host_identity.is_from(lease.attrs):
            return (
                f"another host with our host ID ({self.host_identity.host_id}) asks for our lease {lease.subnet}: "
                "one of the two is a clone; give each its own by -host-id or /etc/machine-id"
            )
        return (
            f"public IP {self.host_identity.public_ip} is not unique: another host ({lease.attrs.host_id}, we are "
            f"{self.host_identity.host_id}) leases {lease.subnet} with it; give each its own by -iface or -public-ip"
        )

    # To and from the store

    async def _write_new(self, subnet: IPv4Network) -> Lease:
        """A lease where there is none.  Raises KeyExists."""
        value = self._attrs.encode()
        return Lease.from_entry(await self._registry.create(format_key(subnet), value, self._terms.lease_ttl))

    async def _write(self, lease: Lease, version: int, *, claim: bool = False) -> Lease:
        """Our value in place of what stood there at ``version``.  A reservation stays one."""
        return await self._swap(lease, version, replace(self._attrs, claim=claim))

    async def _swap(self, lease: Lease, version: int, attrs: LeaseAttrs) -> Lease:
        lease_ttl = None if lease.lease_ttl is None else self._terms.lease_ttl
        key = format_key(lease.subnet)
        return Lease.from_entry(await self._registry.compare_and_swap(key, attrs.encode(), lease_ttl, version))

    async def _find(self, subnet: IPv4Network) -> OwnEvent:
        """What is there now, as the event that a watch would tell."""
        snapshot = await self._registry.snapshot(format_key(subnet).__eq__)
        return LeaseTable(subnet).replace(snapshot).own[-1]

    def _hold(self, lease: Lease) -> Lease:
        """Take it as the state of the own lease."""
        self._lease = lease
        self._failures, self._said = 0, ""
        if lease.lease_ttl is not None:
            self._lead = renewal_lead(lease.lease_ttl, self._terms, self._rng.random())
            self._ends_at = self._clock.now() + lease.lease_ttl
            self._renew_at = self._ends_at - self._lead
        return lease


def _refuse_around_us(config: NetworkConfig, candidates: Iterable[IPv4Network | None], around: Surroundings) -> None:
    """Raises HostError when a subnet that is to be ours again contains an address by which other hosts reach us."""
    for subnet in candidates:
        if subnet is None or not config.fits(subnet):
            continue
        for address in sorted(around.underlay):
            if address in subnet:
                raise HostError(
                    f"our address {address} lies inside our own subnet {subnet}, where other hosts cannot reach it:"
                    " choose another address by -iface or -public-ip, or remove the lease and the subnet file"
                )


def _taken(snapshot: Snapshot, network: IPv4Network) -> list[IPv4Network]:
    """The subnets of ``network`` that have a key, whatever its value: a create would fail."""
    subnets = []
    for entry in snapshot.entries:
        with suppress(ValueError):
            subnets.append(parse_key(entry.name))
    return [subnet for subnet in subnets if is_inside(subnet, network)]
