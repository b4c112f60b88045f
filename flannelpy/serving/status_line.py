"""A report as a line of text: the status that ``systemctl status`` shows.

Counterpart: none; flanneld sends no status.
"""

from __future__ import annotations

from flannelpy.report import BackendReport, DaemonReport, LeaseReport, NetworkReport, NetworkState
from flannelpy.units import span

_STEPS = {
    NetworkState.STARTING: "Starting",
    NetworkState.WAITING_FOR_CONFIG: "Waiting for the network config in etcd",
    NetworkState.WAITING_FOR_LEASE: "Waiting for a subnet lease",
}


def status_line(report: DaemonReport) -> str:
    """Return all networks in one line, each after its name if it has one."""
    return "; ".join(f"{each.name}: {network_status(each)}".removeprefix(": ") for each in report.networks)


def network_status(report: NetworkReport) -> str:
    """Return the subnet and its time left, the problem if there is one, and the peers that can be reached.

    Without a subnet, return what the network waits for, why it failed, or that it ends.
    """
    if report.lease is None or report.backend is None:
        return _STEPS.get(report.state) or (f"not ready: {report.problem}" if report.problem else "Stopping")
    parts = [f"subnet {report.lease.subnet} ({_time_left(report.lease)})"]
    if report.state is NetworkState.WAITING_FOR_PEERS:
        parts.append("waiting for the leases of other hosts")
    elif report.problem:
        parts.append(f"not ready: {report.problem}")
    if report.repairs:
        parts.append(f"repairs: {report.repairs}")
    return ", ".join([*parts, _peers(report.backend)])


def _time_left(lease: LeaseReport) -> str:
    if lease.seconds_left is None:
        return "reserved"
    return f"{span(lease.seconds_left)} left"


def _peers(backend: BackendReport) -> str:
    if backend.next_hops is None:
        return f"{backend.type}: packets are not carried"
    return f"next hops: {backend.next_hops}" + (f", unreachable: {backend.unreachable}" if backend.unreachable else "")
