"""What is wrong with a running daemon: problems, each with a code, a text and a remedy.  Pure.

The codes are an API: alert rules and scripts compare them.  docs/monitoring.md lists them.
Counterpart: none; flanneld has only its log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from flannelpy.report import DaemonReport, NetworkReport, NetworkState


class ProblemCode(StrEnum):
    """What kind of problem it is."""

    NETWORK_FAILED = "network_failed"
    CONFIG_MISSING = "config_missing"
    STORE_SILENT = "store_silent"
    LEASE_MISSING = "lease_missing"
    EXTERNAL_INTERFACE = "external_interface"
    NO_ROUTE_TO_PEERS = "no_route_to_peers"
    KERNEL_STATE = "kernel_state"
    FIREWALL = "firewall"
    CONTAINERS_BLOCKED = "containers_blocked"
    PEERS_UNREACHABLE = "peers_unreachable"


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of one network.  ``text`` is one line; ``remedy``: what an operator can do, one line."""

    code: ProblemCode
    network: str
    text: str
    remedy: str


def problems(report: DaemonReport) -> tuple[Problem, ...]:
    """Return all problems, those of a network together, the most basic one first."""
    return tuple(problem for network in report.networks for problem in _problems_of(network))


def is_well(report: DaemonReport) -> bool:
    """Return whether every network is ready, and there is no problem."""
    return all(network.state is NetworkState.READY for network in report.networks) and not problems(report)


def _problems_of(network: NetworkReport) -> Iterator[Problem]:
    for code, (text_of, remedy) in _TABLE.items():
        if text := text_of(network):
            yield Problem(code, network.name, text, remedy)


def _failure(network: NetworkReport) -> str:
    return network.problem if network.lease is None else ""


def _interface(network: NetworkReport) -> str:
    return network.interface.problem if network.interface else ""


#: By code: what returns the text of the problem, empty without one, and the remedy.
_TABLE: dict[ProblemCode, tuple[Callable[[NetworkReport], str], str]] = {
    ProblemCode.NETWORK_FAILED: (_failure, "correct what the text names; flannelpy tries again by itself"),
    ProblemCode.EXTERNAL_INTERFACE: (_interface, "restore the link and the address, or restart flannelpy"),
}
