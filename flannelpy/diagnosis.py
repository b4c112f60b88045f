"""What is wrong with a running daemon: problems, each with a code, a text and a remedy.  Pure.

A network is well if it has no problem; a network that is not ready always has one.  The codes are an API: alert rules
and scripts compare them.  docs/monitoring.md lists them.
Counterpart: none; flanneld has only its log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from flannelpy.report import ConfigState, DaemonReport, NetworkReport, NetworkState, StoreReport
from flannelpy.units import span

# A single request that got no answer is repeated within a second.
_SILENT_SECONDS = 5.0


class ProblemCode(StrEnum):
    """What kind of problem it is."""

    NETWORK_FAILED = "network_failed"
    STORE_SILENT = "store_silent"
    CONFIG_MISSING = "config_missing"
    CONFIG_INVALID = "config_invalid"
    CONFIG_CHANGED = "config_changed"
    LEASE_MISSING = "lease_missing"
    LEASE_ENDING = "lease_ending"
    PEERS_UNKNOWN = "peers_unknown"
    EXTERNAL_INTERFACE = "external_interface"
    NO_ROUTE_TO_PEERS = "no_route_to_peers"
    KERNEL_STATE = "kernel_state"
    CONTAINERS_BLOCKED = "containers_blocked"
    MTU = "mtu"
    PEERS_UNREACHABLE = "peers_unreachable"
    FIREWALL = "firewall"
    NOT_READY = "not_ready"


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of one network.  ``text`` is one line; ``remedy``: what an operator can do, one line."""

    code: ProblemCode
    network: str
    text: str
    remedy: str

    @property
    def title(self) -> str:
        """The word problem, and the name of the network if it has one."""
        return f"problem of network {self.network}" if self.network else "problem"


def problems(report: DaemonReport) -> tuple[Problem, ...]:
    """Return all problems, those of a network together, the most basic one first."""
    return tuple(problem for network in report.networks for problem in _problems_of(network, report.at))


def is_well(report: DaemonReport) -> bool:
    """Return whether every network is ready, and there is no problem."""
    return not problems(report)


def _problems_of(network: NetworkReport, now: float) -> Iterator[Problem]:
    is_well = True
    for code, (text_of, remedy) in _TABLE.items():
        if text := text_of(_Seen(network, now)):
            is_well = False
            advice = remedy(_Seen(network, now)) if callable(remedy) else remedy
            if not advice:
                text, _, advice = text.rpartition("; ")
            yield Problem(code, network.name, text, advice)
    if is_well and network.state is not NetworkState.READY:
        text = network.problem or f"the network is {network.state}"
        yield Problem(ProblemCode.NOT_READY, network.name, text, _NOT_READY_REMEDY)


class _Seen(NamedTuple):
    """A network, and the stores of it that are silent at the time ``now`` of the report."""

    network: NetworkReport
    now: float

    @property
    def silent_stores(self) -> list[StoreReport]:
        stores = self.network.store, self.network.second_store
        return [store for store in stores if store and self._is_silent(store)]

    @property
    def is_store_silent(self) -> bool:
        """Whether the store is silent, which then is why something is missing."""
        return self.network.store is not None and self._is_silent(self.network.store)

    def _is_silent(self, store: StoreReport) -> bool:
        return store.silent_since is not None and self.now - store.silent_since > _SILENT_SECONDS


# Each function returns the text of a problem, and an empty one without.


def _failure(seen: _Seen) -> str:
    return seen.network.problem if seen.network.state is NetworkState.FAILED else ""


def _silence(seen: _Seen) -> str:
    return "; ".join(_about_silent(store, seen.now) for store in seen.silent_stores)


def _store_remedy(seen: _Seen) -> str:
    """Promise that packets travel only where they did: a network that starts knows no peers yet."""
    if seen.network.state.is_up:
        meanwhile = "meanwhile packets are forwarded until the leases end"
    else:
        meanwhile = "flannelpy then starts this network by itself"
    return f"start etcd, or restore the way to it; {meanwhile}"


def _about_silent(store: StoreReport, now: float) -> str:
    api = f" v{store.api}" if store.api else ""
    return f"etcd{api} has given no usable answer for {span(now - (store.silent_since or now))}: {store.failure}"


def _config_in(state: ConfigState) -> Callable[[_Seen], str]:
    return lambda seen: seen.network.config.problem if seen.network.config.state is state else ""


def _missing_lease(seen: _Seen) -> str:
    network = seen.network
    if network.lease or not network.lease_problem or seen.is_store_silent:
        return ""
    return f"no subnet could be leased yet: {network.lease_problem}"


def _ending_lease(seen: _Seen) -> str:
    lease = seen.network.lease
    if lease is None or lease.seconds_left is None or not lease.problem:
        return ""
    return f"the lease of {lease.subnet} ends in {span(lease.seconds_left)}, and renewals fail: {lease.problem}"


def _unknown_peers(seen: _Seen) -> str:
    if seen.network.state is not NetworkState.WAITING_FOR_PEERS or seen.is_store_silent:
        return ""
    return "the leases of the other hosts are not in use yet"


def _part(name: str) -> Callable[[_Seen], str]:
    """Return the problem of a part of the report."""
    return lambda seen: part.problem if (part := getattr(seen.network, name)) else ""


def _mtu(seen: _Seen) -> str:
    interface, backend = seen.network.interface, seen.network.backend
    if not (interface and interface.mtu and backend and backend.mtu):
        return ""
    needed = backend.mtu + backend.overhead
    if needed <= interface.mtu:
        return ""
    packets = f"packets of containers have up to {backend.mtu} bytes"
    return f"{packets}, which need an MTU of {needed} on {interface.name}; it has {interface.mtu}"


def _unreachable_peers(seen: _Seen) -> str:
    backend = seen.network.backend
    if backend is None or backend.next_hops is None or not backend.unreachable:
        return ""
    if not backend.next_hops and seen.network.present_problem:  # which then is why
        return ""
    return f"{backend.unreachable} of {backend.next_hops + backend.unreachable} peers cannot be reached from this host"


_NOT_READY_REMEDY = "wait some seconds; if it lasts, the log names the cause"
_RESTART = "then restart flannelpy, then Docker"
#: By code, the most basic problem first: what returns the text, and the remedy or what returns it; empty if the text
#: ends in "; " and it.
_TABLE: dict[ProblemCode, tuple[Callable[[_Seen], str], str | Callable[[_Seen], str]]] = {
    ProblemCode.NETWORK_FAILED: (_failure, "remove the cause that the text names; flannelpy tries again by itself"),
    ProblemCode.STORE_SILENT: (_silence, _store_remedy),
    ProblemCode.CONFIG_MISSING: (
        _config_in(ConfigState.MISSING),
        "write the network config to etcd; -etcd-prefix and -etcd-api decide where flannelpy reads it",
    ),
    ProblemCode.CONFIG_INVALID: (
        _config_in(ConfigState.INVALID),
        "correct the network config in etcd; flannelpy reads it again by itself",
    ),
    ProblemCode.CONFIG_CHANGED: (
        _config_in(ConfigState.CHANGED),
        "restart flannelpy, then Docker; or change the config back",
    ),
    ProblemCode.LEASE_MISSING: (
        _missing_lease,
        "free a subnet, or remove the cause that the text names; flannelpy tries again by itself",
    ),
    ProblemCode.LEASE_ENDING: (
        _ending_lease,
        "have etcd accept writes before the lease ends; then another host may lease the subnet",
    ),
    ProblemCode.PEERS_UNKNOWN: (_unknown_peers, _NOT_READY_REMEDY),
    ProblemCode.EXTERNAL_INTERFACE: (
        _part("interface"),
        "restore the link and its address; or restart flannelpy, to choose another one by -iface",
    ),
    ProblemCode.NO_ROUTE_TO_PEERS: (
        _part("peer_routes"),
        "restore the host's route to its peers, such as its default route",
    ),
    ProblemCode.KERNEL_STATE: (
        _part("kernel_state"),
        "remove the route, rule or device that the text names; flannelpy restores its own within 10 s",
    ),
    ProblemCode.CONTAINERS_BLOCKED: (
        _part("traffic"),
        "",
    ),
    ProblemCode.MTU: (
        _mtu,
        f"raise the MTU of the interface, or set a smaller Backend.MTU in the network config, {_RESTART}",
    ),
    ProblemCode.PEERS_UNREACHABLE: (_unreachable_peers, "flannelpy status names the cause beside each of these peers"),
    ProblemCode.FIREWALL: (_part("firewall"), "remove the cause that the text names; flannelpy checks again by itself"),
}
