"""The state of a running daemon as data: every component fills in its part, ``flannelpy.serving`` makes text of it.

A report is a copy.  It does not change when the daemon does, so any task may keep it.
Counterpart: none; flanneld reports nothing but its log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network


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
    """The lease of this host.  ``seconds_left``: until the lease expires if unrenewed; None for a reservation."""

    subnet: IPv4Network
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class BackendReport:
    """The way that packets travel.

    ``next_hops``: peers that packets can be sent to; ``unreachable``: peers with a lease that packets cannot reach.
    Both are None if the backend carries no packets.  ``drops``: packets dropped since the start by the name of the
    reason, as of the last count; empty if the kernel alone carries the packets.
    """

    type: str
    next_hops: int | None = None
    unreachable: int | None = None
    drops: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InterfaceReport:
    """The external interface.  ``problem``: why no peer can be reached by it; empty if there is no problem."""

    name: str
    problem: str = ""


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
class NetworkReport:
    """One network; the only network of a host has the name "".

    ``problem``: why the network is degraded or has failed; empty in all other states.  The parts below it are None
    until a subnet is leased, and again after a failure.
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

    @property
    def present_problem(self) -> str:
        """Return the first problem by which the components stop packets, the most basic one first; empty without."""
        parts = self.interface, self.peer_routes, self.kernel_state, self.traffic
        return next((part.problem for part in parts if part and part.problem), "")

    @property
    def repairs(self) -> int:
        """Return how many changes by other programs were undone, in the kernel's state and in the firewall."""
        return sum(part.repairs for part in (self.kernel_state, self.firewall) if part)


@dataclass(frozen=True, slots=True)
class DaemonReport:
    """All networks of a daemon, in the order of ``-networks``."""

    networks: tuple[NetworkReport, ...]
