"""The leases of all hosts, kept equal to the store.  Pure.

Only this module distinguishes the own lease from those of peers.  It compares a snapshot with the table by value, so
it notices a host whose public IP changed between two snapshots.  A malformed key or value is skipped and reported once.

A peer's lease that is gone stays in the table for a while, the *grace*.  A live peer recreates its lease within that
time, and until then packets still reach the peer.  All leases are gone at once after an outage of the store that lasts
longer than the leases.  The grace begins again after an outage, in which no peer can write.
Counterpart: leaseWatcher in subnet/watch.go.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from math import inf
from typing import NamedTuple

from flannelpy.addressing.addresses import special_use
from flannelpy.causes import Causes
from flannelpy.foreign import shown
from flannelpy.registry.base import Changes, Deleted, KeyValue, Put, Snapshot
from flannelpy.subnet.lease import Lease, LeaseAttrs, format_key, is_inside, parse_key

# Entries per step: a millisecond or two.
_STEP = 200


@dataclass(frozen=True, slots=True)
class LeaseAdded:
    """A host holds this lease: a new one, or a known one with other attributes."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class LeaseRemoved:
    """The lease of this subnet is gone."""

    subnet: IPv4Network


@dataclass(frozen=True, slots=True)
class Malformed:
    """The key of this subnet, at ``version``, has a malformed value."""

    subnet: IPv4Network
    version: int


@dataclass(frozen=True, slots=True)
class SameIPElsewhere:
    """A lease of another subnet has our public IP."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Overlapping:
    """A lease of another subnet of the network shares addresses with ours."""

    lease: Lease


class Ignored(NamedTuple):
    """The name of a key that flannelpy ignores, made printable, and the cause."""

    name: str
    cause: str


LeaseEvent = LeaseAdded | LeaseRemoved
OwnEvent = LeaseAdded | LeaseRemoved | Malformed | SameIPElsewhere | Overlapping


@dataclass(slots=True)
class Update:
    """The meaning of a snapshot or of changes: events of other hosts, and of the own lease, in order.

    ``ignored`` are keys that are newly malformed or conflict with ours.  ``outside`` are subnets outside the network.
    """

    events: list[LeaseEvent] = field(default_factory=list)
    own: list[OwnEvent] = field(default_factory=list)
    ignored: list[Ignored] = field(default_factory=list)
    outside: list[IPv4Network] = field(default_factory=list)


class LeaseTable:
    """The leases of one network, seen from the host that holds ``own_subnet``."""

    def __init__(
        self,
        own_subnet: IPv4Network,
        own_public_ip: IPv4Address | None = None,
        grace: float = 0.0,
        network: IPv4Network | None = None,
    ) -> None:
        """``grace`` in seconds.

        The table ignores leases of other subnets with ``own_public_ip``, which would send packets back to us.  It also
        ignores leases outside ``network``, regardless of their number.
        """
        self._own_subnet = own_subnet
        self._own_created: int | None = None
        self._network = network
        self._overlapping: dict[IPv4Network, Lease] = {}
        self._overlaps_changed = False
        self._own_public_ip = own_public_ip
        self._grace = grace
        self._gone_at: dict[IPv4Network, float] = {}
        self._answers_since = -inf
        self._peers: dict[IPv4Network, LeaseAttrs] = {}
        self._reported = Causes()  # of ignored keys; their values are the causes

    def replace(self, snapshot: Snapshot, now: float = 0.0) -> Update:
        """Make the table equal to the snapshot.  The update always has an event of the own lease."""
        update = Update()
        for _ in self.replacing(snapshot, now, update):
            pass
        return update

    def replacing(self, snapshot: Snapshot, now: float, update: Update) -> Iterator[None]:
        """Run ``replace`` in steps of a millisecond or two; the table and ``update`` are complete after the last."""
        names: set[str] = set()
        for start in range(0, len(snapshot.entries), _STEP):
            names.update(entry.name for entry in snapshot.entries[start : start + _STEP])
            yield
        self._reported.keep_only(names)
        # A known lease whose value became malformed still has its key, so the table keeps its last good value.
        for subnet in [subnet for subnet in self._peers if format_key(subnet) not in names]:
            self._remove(subnet, update, now)
        for number, entry in enumerate(snapshot.entries, 1):
            self._put(entry, update)
            if not number % _STEP:
                yield
        if format_key(self._own_subnet) not in names:
            update.own.append(LeaseRemoved(self._own_subnet))
        self._report_overlaps(update)

    def apply(self, changes: Changes, now: float = 0.0) -> Update:
        """Apply the changes to the table."""
        update = Update()
        for change in changes.changes:
            match change:
                case Put(entry):
                    self._put(entry, update)
                case Deleted(name):
                    self._reported.clear(name)
                    self._remove_key(name, update, now)
        self._report_overlaps(update)
        return update

    def forget(self, now: float) -> Update:
        """Remove the leases that were gone for longer than the grace."""
        update = Update()
        for subnet in [subnet for subnet, at in self._gone_at.items() if self._end_of_grace(at) <= now]:
            self._drop(subnet, update)
        return update

    def begin_grace_again(self, now: float) -> None:
        """Note that the store answers again after an outage: hosts could not recreate their leases before ``now``."""
        self._answers_since = now

    def seconds_to_forget(self, now: float) -> float:
        """Return the seconds until ``forget`` has a lease to remove."""
        return min(map(self._end_of_grace, self._gone_at.values()), default=inf) - now

    def is_key(self, name: str) -> bool:
        """Return whether ``name`` is the key of a lease of this network."""
        try:
            return not self._is_outside(parse_key(name))
        except ValueError:
            return False

    def _is_outside(self, subnet: IPv4Network) -> bool:
        return self._network is not None and not is_inside(subnet, self._network)

    def _put(self, entry: KeyValue, update: Update) -> None:
        try:
            subnet = parse_key(entry.name)
        except ValueError as error:
            if self._reported.is_new("", entry.name):
                update.ignored.append(Ignored(shown(entry.name), str(error)))
            return
        if not self._is_outside(subnet):
            self._put_lease(entry, update)
        elif self._reported.is_new("", entry.name):
            update.outside.append(subnet)

    def _put_lease(self, entry: KeyValue, update: Update) -> None:
        try:
            lease = Lease.from_entry(entry)
        except ValueError as error:
            self._report(entry, error, update)
            return
        if lease.subnet == self._own_subnet:
            self._reported.clear(entry.name)
            update.own.append(LeaseAdded(lease))
            self._overlaps_changed |= self._own_created != lease.created
            self._own_created = lease.created
        elif lease.attrs.public_ip == self._own_public_ip:
            self._overlapping.pop(lease.subnet, None)
            self._drop(lease.subnet, update)
            self._ignore(entry, "it has our public IP", update)
            update.own.append(SameIPElsewhere(lease))
        else:
            self._reported.clear(entry.name)
            self._note_overlap(lease)
            self._add(lease, update)

    def _note_overlap(self, lease: Lease) -> None:
        """Note an overlap with our subnet, if a host can have the public IP of the lease."""
        if self._network is None or special_use(lease.attrs.public_ip):
            return
        if lease.subnet.overlaps(self._own_subnet):
            self._overlapping[lease.subnet] = lease
            self._overlaps_changed = True

    def _report_overlaps(self, update: Update) -> None:
        """Report overlaps after all other events of the own lease, which decide which lease was created earlier."""
        if self._overlaps_changed:
            update.own += map(Overlapping, self._overlapping.values())
        self._overlaps_changed = False

    def _add(self, lease: Lease, update: Update) -> None:
        self._gone_at.pop(lease.subnet, None)
        if self._peers.get(lease.subnet) != lease.attrs:
            self._peers[lease.subnet] = lease.attrs
            update.events.append(LeaseAdded(lease))

    def _remove_key(self, name: str, update: Update, now: float) -> None:
        with suppress(ValueError):  # a key that is no lease key
            self._remove(parse_key(name), update, now)

    def _remove(self, subnet: IPv4Network, update: Update, now: float) -> None:
        self._overlapping.pop(subnet, None)
        if subnet == self._own_subnet:
            update.own.append(LeaseRemoved(subnet))
        elif not self._grace:
            self._drop(subnet, update)
        elif subnet in self._peers:
            self._gone_at.setdefault(subnet, now)

    def _end_of_grace(self, gone_at: float) -> float:
        return max(gone_at, self._answers_since) + self._grace

    def _drop(self, subnet: IPv4Network, update: Update) -> None:
        self._gone_at.pop(subnet, None)
        if self._peers.pop(subnet, None) is not None:
            update.events.append(LeaseRemoved(subnet))

    def _report(self, entry: KeyValue, error: ValueError, update: Update) -> None:
        self._ignore(entry, str(error), update)
        if entry.name == format_key(self._own_subnet):
            update.own.append(Malformed(self._own_subnet, entry.version))

    def _ignore(self, entry: KeyValue, cause: str, update: Update) -> None:
        """Report a key once for each value that it has."""
        if self._reported.is_new(entry.value, entry.name):
            update.ignored.append(Ignored(shown(entry.name), cause))
