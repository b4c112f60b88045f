"""The state of a running daemon as data: every component fills in its part, ``flannelpy.serving`` makes text of it.

A report is a copy.  It does not change when the daemon does, so any task may keep it.  Times are Unix seconds.
A report has no peers: there may be ten thousand, so they are reported in chunks, as ``PeerReport``.
Counterpart: none; flanneld reports nothing but its log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TypeVar

CountT = TypeVar("CountT", int, "Traffic")


class NetworkState(StrEnum):
    """The step that a network has reached; ``network.py`` draws the transitions."""

    STARTING = "starting"
    WAITING_FOR_CONFIG = "waiting for config"
    WAITING_FOR_LEASE = "waiting for lease"
    WAITING_FOR_PEERS = "waiting for peers"  # leased; the peers' first leases are not in the kernel yet
    READY = "ready"
    DEGRADED = "degraded"  # was ready; packets may be lost until a problem is gone
    FAILED = "failed"  # stopped by an error; the daemon starts the network again or exits

    @property
    def is_up(self) -> bool:
        """Return whether the network is in service: its first peers are set up, and no error has stopped it."""
        return self in (NetworkState.READY, NetworkState.DEGRADED)


#: The states that can follow each state while ``run`` lasts; its end leads from any state to FAILED or STARTING.
TRANSITIONS = {
    NetworkState.STARTING: {NetworkState.WAITING_FOR_CONFIG},
    NetworkState.WAITING_FOR_CONFIG: {NetworkState.WAITING_FOR_LEASE},
    NetworkState.WAITING_FOR_LEASE: {NetworkState.WAITING_FOR_PEERS},
    NetworkState.WAITING_FOR_PEERS: {NetworkState.READY, NetworkState.DEGRADED},
    NetworkState.READY: {NetworkState.DEGRADED},
    NetworkState.DEGRADED: {NetworkState.READY},
    NetworkState.FAILED: {NetworkState.WAITING_FOR_CONFIG},
}


@dataclass(frozen=True, slots=True)
class LeaseReport:
    """The lease of this host.

    ``seconds_left``: until the lease expires if unrenewed; None for a reservation.  ``renewed_at``: the last time that
    the store confirmed the lease.  ``version``: that of the lease in the store.  ``problem``: why renewals fail; empty
    if the last one succeeded.
    """

    subnet: IPv4Network
    seconds_left: float | None
    acquired_at: float = 0.0
    renewed_at: float = 0.0
    version: int = 0
    problem: str = ""


class ConfigState(StrEnum):
    """What is known of the network config in the store, compared with the one in use."""

    UNKNOWN = "unknown"  # it was not read yet
    MISSING = "missing"
    INVALID = "invalid"
    CHANGED = "changed"  # valid, and another one than at the start
    IN_USE = "in use"


@dataclass(frozen=True, slots=True)
class ConfigReport:
    """The network config in the store, as of the last reading.  ``problem``: what is wrong with it, or empty."""

    state: ConfigState = ConfigState.UNKNOWN
    problem: str = ""


@dataclass(frozen=True, slots=True)
class StoreReport:
    """The store of the leases.

    ``api``: the version of etcd's API, 2 or 3; None until the network config decides.  ``endpoint``: the one that the
    next request goes to.  ``answered_at``: the last usable answer; ``silent_since``: the first request without one
    since then, and ``failure`` the cause.  Both times are None, and ``failure`` is empty, if there was none.
    """

    api: int | None
    endpoint: str
    answered_at: float | None
    silent_since: float | None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class BackendReport:
    """The way that packets travel.

    ``next_hops``: peers that packets can be sent to; ``unreachable``: peers with a lease that packets cannot reach.
    Both are None if the backend carries no packets.  ``drops``: packets dropped since the start by the name of the
    reason; empty if the kernel alone carries the packets.  ``device`` is empty if there is none.  ``mtu``: that of the
    containers, 0 before the start.  ``overhead``: the bytes that encapsulation adds to a packet.  ``offloads``: those
    in use, in alphabetical order.  ``carried``: the packets of all peers since the start, also of peers that have left;
    None if the kernel carries the packets without counting them for flannelpy.  ``datapath``: what carries them, of
    ``loop`` and ``kernel``; empty if the backend has no choice.  ``loop_cause``: why the loop does although the kernel
    may; empty if the kernel does, or may not.
    """

    type: str
    next_hops: int | None = None
    unreachable: int | None = None
    drops: Mapping[str, int] = field(default_factory=dict)
    device: str = ""
    mtu: int = 0
    offloads: tuple[str, ...] = ()
    overhead: int = 0
    carried: Traffic | None = None
    datapath: str = ""
    loop_cause: str = ""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Packets that flannelpy itself carried for one peer since the peer was added, in the overlay: bytes of IP packets.

    ``heard_at``: when the last packet came in; None if none did.
    """

    packets_out: int = 0
    bytes_out: int = 0
    packets_in: int = 0
    bytes_in: int = 0
    heard_at: float | None = None

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.packets_out + other.packets_out,
            self.bytes_out + other.bytes_out,
            self.packets_in + other.packets_in,
            self.bytes_in + other.bytes_in,
            max((at for at in (self.heard_at, other.heard_at) if at is not None), default=None),
        )


@dataclass(frozen=True, slots=True)
class PeerReport:
    """One peer.

    ``since``: when flannelpy added it.  ``unreachable``: why packets cannot reach it; empty if they can, as far as this
    host knows.  ``traffic`` is None if the kernel carries the packets.
    """

    subnet: IPv4Network
    public_ip: IPv4Address
    since: float
    unreachable: str = ""
    traffic: Traffic | None = None


@dataclass(frozen=True, slots=True)
class InterfaceReport:
    """The external interface, and its present MTU.  ``problem``: why no peer can be reached by it, or empty.

    ``public_ip``: the address that peers send to; another one than ``address`` behind a NAT.
    """

    name: str
    problem: str = ""
    address: IPv4Address | None = None
    public_ip: IPv4Address | None = None
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What other programs changed.  ``repairs``: changes undone; ``problem``: why one could not be, or empty."""

    repairs: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class FirewallReport:
    """The iptables rules of a network.

    ``repairs``: rules restored; ``problem``: why rules cannot be checked or restored, which costs no packets by itself;
    ``obstacle``: what certainly stops the packets of containers.  Both are empty if there is nothing.
    """

    repairs: int = 0
    problem: str = ""
    obstacle: str = ""


@dataclass(frozen=True, slots=True)
class PeerRoutesReport:
    """The kernel's routes to the peers.  ``problem``: why no datagram leaves for any peer, or empty."""

    problem: str = ""


@dataclass(frozen=True, slots=True)
class TrafficReport:
    """The packets between containers of different hosts.  ``problem``: what certainly stops them here, or empty."""

    problem: str = ""


@dataclass(frozen=True, slots=True)
class Counts:
    """What a network has counted: packets dropped by reason, packets carried, and repairs.

    A part is None, and ``drops`` is empty, if nothing has counted it yet.
    """

    drops: Mapping[str, int] = field(default_factory=dict)
    carried: Traffic | None = None
    kernel_state: int | None = None
    firewall: int | None = None

    def plus(self, other: Counts) -> Counts:
        """Return the sums."""
        return Counts(
            Counter(self.drops) + Counter(other.drops),
            _sum(self.carried, other.carried),
            _sum(self.kernel_state, other.kernel_state),
            _sum(self.firewall, other.firewall),
        )


@dataclass(frozen=True, slots=True)
class NetworkReport:
    """One network; the only network of a host has the name "".

    ``problem``: why the network is degraded or has failed; empty in all other states.  ``lease`` and the parts down to
    ``traffic`` are None until a subnet is leased, and again after a failure.  ``since``: when the network entered its
    state.  ``network``: the configured one, None until the config is read.  ``lease_problem``: why the last try to
    lease a subnet failed; empty once one is leased.  ``second_store``: etcd v2 during a change-over, while this host
    keeps its lease there too.  ``earlier``: what the runs of the network counted that have ended since the daemon
    started.
    """

    name: str
    state: NetworkState
    problem: str = ""
    lease: LeaseReport | None = None
    backend: BackendReport | None = None
    interface: InterfaceReport | None = None
    kernel_state: RepairReport | None = None  # devices, routes and rules
    firewall: FirewallReport | None = None
    peer_routes: PeerRoutesReport | None = None
    traffic: TrafficReport | None = None
    since: float = 0.0
    subnet_file: Path | None = None
    network: IPv4Network | None = None
    config: ConfigReport = ConfigReport()
    lease_problem: str = ""
    store: StoreReport | None = None
    second_store: StoreReport | None = None
    earlier: Counts = Counts()

    @property
    def title(self) -> str:
        """The word network, and the name if there is one."""
        return f"network {self.name}".rstrip()

    @property
    def present_problem(self) -> str:
        """Return the first problem by which the components stop packets, the most basic one first; empty without."""
        parts = self.interface, self.peer_routes, self.kernel_state, self.traffic
        return next((part.problem for part in parts if part and part.problem), "")

    @property
    def counts(self) -> Counts:
        """Return what the network has counted since the daemon started, in all its runs."""
        drops, carried = (self.backend.drops, self.backend.carried) if self.backend else ({}, None)
        repairs = [part.repairs if part else None for part in (self.kernel_state, self.firewall)]
        return self.earlier.plus(Counts(drops, carried, *repairs))

    @property
    def repairs(self) -> int:
        """Return how many changes by other programs were undone, in the kernel's state and in the firewall."""
        return (self.counts.kernel_state or 0) + (self.counts.firewall or 0)


@dataclass(frozen=True, slots=True)
class DaemonReport:
    """All networks of a daemon, in the order of ``-networks``.

    ``packet_code``: ``compiled`` or ``interpreted``.  ``at``: when the report was made.
    """

    networks: tuple[NetworkReport, ...]
    version: str = ""
    pid: int = 0
    started_at: float = 0.0
    packet_code: str = ""
    at: float = 0.0


def _sum(one: CountT | None, other: CountT | None) -> CountT | None:
    """Return the sum of two counts, of which each may be unknown."""
    if one is None or other is None:
        return other if one is None else one
    return one + other
