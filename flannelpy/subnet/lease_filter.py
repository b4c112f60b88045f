"""Decides which leases of peers are usable.  Pure: the kernel's answers are an argument.

An unusable lease would send packets for our own containers, for etcd or for another host into the overlay, or would
make packets loop.  flannelpy ignores the lease while the cause lasts.  Other leases stay usable, and backends see only
usable leases.

A decision depends on the lease, on ``Surroundings``, on the public IPs of all other leases, and on the kernel's route
to the lease's public IP.  A change makes ``LeaseFilter`` decide again only on the leases that it can concern: those
with that public IP, and those whose subnet contains the address.  Dictionaries find both, so a change costs the same
at 10,000 leases.

Counterpart: none; flanneld v0.5.5 uses every lease.
"""

from __future__ import annotations

import enum
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network
from itertools import islice
from math import inf
from typing import NamedTuple

from flannelpy.addressing.addresses import special_use
from flannelpy.addressing.surroundings import Surroundings
from flannelpy.causes import Causes
from flannelpy.subnet.lease import Lease
from flannelpy.subnet.lease_table import LeaseAdded, LeaseEvent, LeaseRemoved

# The backend of leases that name none: flanneld's udp.
_UNNAMED = "udp"


class Cause(enum.Enum):
    """Why a lease is unusable, as text for the log."""

    BACKEND = "its backend is {}, ours {}"
    OUTSIDE = "it is no part of the network {}"
    OVERLAPS_OURS = "it overlaps our subnet {}"
    NO_HOST = "its public IP {} is in {}, not a host's"
    OURS = "its public IP {} is an address of this host"
    EDGE = "its public IP {} is the network or broadcast address of a network of this host"
    INSIDE_ITSELF = "its public IP {} lies inside the subnet itself"
    INSIDE_OURS = "its public IP {} lies inside our subnet {}"
    AROUND_US = "it contains {}, an address of this host"
    AROUND_ETCD = "it contains {}, an address of etcd"
    INSIDE_LINK = "it lies inside {}, a network of the external interface"
    AROUND_ANOTHER = "it contains {}, the public IP of another lease"
    CAPTURED = "the kernel would send packets for its public IP {} into {}, an overlay device of this host"


class Fault(NamedTuple):
    """A cause and the values in it."""

    cause: Cause
    names: tuple[object, ...]

    def __str__(self) -> str:
        return self.cause.value.format(*self.names)


class Ignored(NamedTuple):
    """A lease that became unusable, or whose cause or the values in it changed."""

    subnet: IPv4Network
    fault: Fault


class Decisions(NamedTuple):
    """Events for the backend, and ignored leases for the log."""

    events: list[LeaseEvent]
    ignored: list[Ignored]


class LeaseFilter:
    """The leases of all peers, seen from the host with the lease ``own``.

    Feed it with ``update``, ``observe`` and ``answer``; then call ``decide`` until ``has_work`` is false.
    """

    def __init__(self, network: IPv4Network, own: Lease, around: Surroundings) -> None:
        self._network = network
        self._own = own.subnet
        self._backend_type = own.attrs.backend_type or _UNNAMED
        self._around = around
        self._first, self._last = _span(network)
        self._own_first, self._own_last = _span(own.subnet)
        self._links = list(map(_span, around.links))
        self._leases: dict[IPv4Network, Lease] = {}
        self._by_length: dict[int, dict[int, IPv4Network]] = {}
        self._by_public_ip: dict[IPv4Address, set[IPv4Network]] = {}
        self._hosts: Counter[int] = (
            Counter()
        )  # public IPs that no other lease may contain, and how many leases have each
        self._sorted_hosts: list[int] = []
        self._ways: dict[IPv4Address, str] = {}  # public IP -> overlay device that the kernel would use, or ""
        self._unasked: dict[IPv4Address, None] = {}
        self._undecided: dict[IPv4Network, None] = {}
        self._usable: dict[IPv4Network, Lease] = {}
        self._reported = Causes(inf)  # of leases that are known anyway

    # Input

    def update(self, events: Iterable[LeaseEvent]) -> None:
        """Note new, changed and removed leases of peers."""
        for event in events:
            match event:
                case LeaseAdded(lease):
                    self._remove(lease.subnet)
                    self._add(lease)
                case LeaseRemoved(subnet):
                    self._remove(subnet)

    def observe(self, around: Surroundings) -> None:
        """Note the present addresses and networks of this host."""
        before, self._around = self._around, around
        if before is around:
            return
        for address in before.addresses ^ around.addresses | before.edges ^ around.edges:
            self._reconsider(self._by_public_ip.get(address, ()))
        for address in before.underlay ^ around.underlay | before.endpoints ^ around.endpoints:
            self._reconsider(self._containing(int(address)))
        if before.links != around.links:
            self._links = list(map(_span, around.links))
            self._reconsider(self._leases)

    def answer(self, ways: Mapping[IPv4Address, str]) -> None:
        """Note the overlay device of this host by which the kernel would send to each public IP; empty: none."""
        for address, device in ways.items():
            self._unasked.pop(address, None)
            if address in self._by_public_ip and self._ways.get(address) != device:
                self._ways[address] = device
                self._reconsider(self._by_public_ip[address])

    # Questions and decisions

    @property
    def has_work(self) -> bool:
        """Whether ``decide`` has leases to decide on."""
        return bool(self._undecided)

    def unasked(self, count: int) -> list[IPv4Address]:
        """Return at most ``count`` public IPs whose ``answer`` a decision waits for."""
        return list(islice(self._unasked, count))

    def oldest_answers(self, count: int) -> list[IPv4Address]:
        """Return at most ``count`` public IPs whose ``answer`` may be outdated; calls go round all of them."""
        oldest = list(islice(self._ways, count))
        for address in oldest:
            self._ways[address] = self._ways.pop(address)
        return oldest

    def decide(self, count: int) -> Decisions:
        """Decide on at most ``count`` leases."""
        decisions = Decisions([], [])
        for subnet in list(islice(self._undecided, count)):
            del self._undecided[subnet]
            lease = self._leases.get(subnet)
            if lease is None:
                self._reported.clear(subnet)
                self._withdraw(subnet, decisions)
            else:
                self._decide(lease, decisions)
        return decisions

    def _decide(self, lease: Lease, decisions: Decisions) -> None:
        fault = next(self._faults(lease), None)
        if fault is None and lease.attrs.public_ip not in self._ways:
            return  # ``answer`` makes it undecided again
        if fault is None:
            self._reported.clear(lease.subnet)
            known = self._usable.get(lease.subnet)
            if known is None or known.attrs != lease.attrs:
                self._usable[lease.subnet] = lease
                decisions.events.append(LeaseAdded(lease))
        else:
            self._withdraw(lease.subnet, decisions)
            if self._reported.is_new(fault, lease.subnet):
                decisions.ignored.append(Ignored(lease.subnet, fault))

    def _withdraw(self, subnet: IPv4Network, decisions: Decisions) -> None:
        if self._usable.pop(subnet, None) is not None:
            decisions.events.append(LeaseRemoved(subnet))

    # The rules

    def _faults(self, lease: Lease) -> Iterator[Fault]:
        """Yield the causes that make the lease unusable, the simplest first."""
        theirs = lease.attrs.backend_type or _UNNAMED
        first, last = _span(lease.subnet)
        if theirs != self._backend_type:
            yield Fault(Cause.BACKEND, (theirs, self._backend_type))
        if not self._first <= first <= last <= self._last or lease.subnet.prefixlen == self._network.prefixlen:
            yield Fault(Cause.OUTSIDE, (self._network,))
        if first <= self._own_last and self._own_first <= last:
            yield Fault(Cause.OVERLAPS_OURS, (self._own,))
        yield from self._faults_of_public_ip(lease, first, last)
        yield from self._faults_of_subnet(first, last)
        if device := self._ways.get(lease.attrs.public_ip):
            yield Fault(Cause.CAPTURED, (lease.attrs.public_ip, device))

    def _faults_of_public_ip(self, lease: Lease, first: int, last: int) -> Iterator[Fault]:
        address = lease.attrs.public_ip
        if block := special_use(address):
            yield Fault(Cause.NO_HOST, (address, block))
        if address in self._around.addresses:
            yield Fault(Cause.OURS, (address,))
        if address in self._around.edges:
            yield Fault(Cause.EDGE, (address,))
        if first <= int(address) <= last:
            yield Fault(Cause.INSIDE_ITSELF, (address,))
        if self._own_first <= int(address) <= self._own_last:
            yield Fault(Cause.INSIDE_OURS, (address, self._own))

    def _faults_of_subnet(self, first: int, last: int) -> Iterator[Fault]:
        for cause, addresses in (
            (Cause.AROUND_US, self._around.underlay),
            (Cause.AROUND_ETCD, self._around.endpoints),
        ):
            for address in addresses:
                if first <= int(address) <= last:
                    yield Fault(cause, (address,))
        for at, (link_first, link_last) in enumerate(self._links):
            if link_first <= first and last <= link_last:
                yield Fault(Cause.INSIDE_LINK, (self._around.links[at],))
        at = bisect_left(self._sorted_hosts, first)
        if at < len(self._sorted_hosts) and self._sorted_hosts[at] <= last:
            yield Fault(Cause.AROUND_ANOTHER, (IPv4Address(self._sorted_hosts[at]),))

    # The indices

    def _add(self, lease: Lease) -> None:
        subnet, address = lease.subnet, lease.attrs.public_ip
        self._leases[subnet] = lease
        at_length = self._by_length.setdefault(subnet.prefixlen, {})
        at_length[int(subnet.network_address)] = subnet
        self._by_public_ip.setdefault(address, set()).add(subnet)
        if address not in self._ways:
            self._unasked[address] = None
        self._undecided[subnet] = None
        if self._protects_itself(lease):
            self._hosts[int(address)] += 1
            if self._hosts[int(address)] == 1:
                insort(self._sorted_hosts, int(address))
                self._reconsider(self._containing(int(address)))

    def _remove(self, subnet: IPv4Network) -> None:
        lease = self._leases.pop(subnet, None)
        if lease is None:
            return
        address = lease.attrs.public_ip
        self._undecided[subnet] = None
        del self._by_length[subnet.prefixlen][int(subnet.network_address)]
        self._by_public_ip[address].discard(subnet)
        if not self._by_public_ip[address]:
            del self._by_public_ip[address]
            self._ways.pop(address, None)
            self._unasked.pop(address, None)
        if self._protects_itself(lease):
            self._hosts[int(address)] -= 1
            if not self._hosts[int(address)]:
                del self._hosts[int(address)]
                del self._sorted_hosts[bisect_left(self._sorted_hosts, int(address))]
                self._reconsider(self._containing(int(address)))

    def _protects_itself(self, lease: Lease) -> bool:
        """Return whether a host can have the lease's public IP, so that a lease around that address is unusable."""
        address = int(lease.attrs.public_ip)
        first, last = _span(lease.subnet)
        in_own_subnet = first <= address <= last or self._own_first <= address <= self._own_last
        return not in_own_subnet and not special_use(lease.attrs.public_ip)

    def _containing(self, address: int) -> list[IPv4Network]:
        """Return the leased subnets that contain an address."""
        found = (subnets.get(address >> (32 - length) << (32 - length)) for length, subnets in self._by_length.items())
        return [subnet for subnet in found if subnet is not None]

    def _reconsider(self, subnets: Iterable[IPv4Network]) -> None:
        self._undecided.update(dict.fromkeys(subnets))


def _span(network: IPv4Network) -> tuple[int, int]:
    """Return the first and the last address as numbers."""
    first = int(network.network_address)
    return first, first | (1 << (32 - network.prefixlen)) - 1
