"""What ``flannelpy status`` prints: a block for each network, a line for each peer, and the problems last.  Pure.

Counterpart: none; flanneld cannot be asked.  The form is that of ``wg show`` and ``tailscale status``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from flannelpy.diagnosis import problems
from flannelpy.foreign import escaped
from flannelpy.report import (
    BackendReport,
    DaemonReport,
    InterfaceReport,
    LeaseReport,
    NetworkReport,
    PeerReport,
    StoreReport,
)
from flannelpy.units import size, span

_LABEL_WIDTH = 11


def status_text(report: DaemonReport, peers: Mapping[str, Sequence[PeerReport]]) -> str:
    """Return the text.  ``peers``: of each network, by its name; those that are missing are omitted."""
    now = report.at
    lines = [_daemon(report)]
    for network in report.networks:
        lines += [_headline(network, now), *_details(network, now)]
        lines += _peer_lines(peers.get(network.name, ()), now)
    return "".join(f"{escaped(line)}\n" for line in [*lines, *_problems(report)])


def _daemon(report: DaemonReport) -> str:
    parts = [f"flannelpy {report.version}".rstrip()]
    if report.pid:
        parts.append(f"PID {report.pid}")
    if report.started_at:
        parts.append(f"started {span(report.at - report.started_at)} ago")
    return ", ".join([*parts, *([f"packet code {report.packet_code}"] if report.packet_code else [])])


def _headline(network: NetworkReport, now: float) -> str:
    since = f" for {span(now - network.since)}" if network.since else ""
    return f"{network.title}: {network.state}{since}"


def _details(network: NetworkReport, now: float) -> Iterator[str]:
    """Yield a line for each part of the report, each after its label."""
    found = {
        "subnet": network.lease and _subnet(network.lease, network, now),
        "store": network.store and _store(network.store, now),
        "v2 store": network.second_store and _store(network.second_store, now),
        "interface": network.interface and _interface(network.interface),
        "backend": network.backend and _backend(network.backend),
        "peers": network.backend and _peer_counts(network.backend),
        "drops": ", ".join(f"{reason} {count}" for reason, count in _drops(network)),
        "repairs": str(network.repairs or ""),
    }
    for label, text in found.items():
        if text:
            yield f"  {label + ':':<{_LABEL_WIDTH}}{text}"


def _subnet(lease: LeaseReport, network: NetworkReport, now: float) -> str:
    within = f" of {network.network}" if network.network else ""
    if lease.seconds_left is None:
        return f"{lease.subnet}{within}, reserved"
    renewed = f"lease renewed {span(now - lease.renewed_at)} ago, " if lease.renewed_at else "lease: "
    return f"{lease.subnet}{within}, {renewed}{span(lease.seconds_left)} left"


def _store(store: StoreReport, now: float) -> str:
    api = f"etcd v{store.api}" if store.api else "etcd"
    if store.silent_since is not None:
        heard = f", silent for {span(now - store.silent_since)}"
    else:
        heard = f", answered {span(now - store.answered_at)} ago" if store.answered_at is not None else ""
    return f"{api} at {store.endpoint}{heard}"


def _interface(interface: InterfaceReport) -> str:
    parts = [interface.name, *([str(interface.address)] if interface.address else [])]
    if interface.mtu:
        parts.append(f"MTU {interface.mtu}")
    if interface.public_ip and interface.public_ip != interface.address:
        parts.append(f"public IP {interface.public_ip}")
    return ", ".join(parts)


def _backend(backend: BackendReport) -> str:
    parts = [backend.type, *([f"device {backend.device}"] if backend.device else [])]
    if backend.mtu:
        parts.append(f"MTU {backend.mtu}")
    parts += [f"offloads {' '.join(backend.offloads)}"] if backend.offloads else []
    return ", ".join([*parts, *_datapath(backend)])


def _datapath(backend: BackendReport) -> Iterator[str]:
    if backend.datapath:
        cause = f" ({backend.loop_cause})" if backend.loop_cause else ""
        yield f"datapath {backend.datapath}{cause}"


def _peer_counts(backend: BackendReport) -> str:
    if backend.next_hops is None:
        return ""
    return f"{backend.next_hops} reachable" + (f", {backend.unreachable} unreachable" if backend.unreachable else "")


def _drops(network: NetworkReport) -> Iterable[tuple[str, int]]:
    return ((reason, count) for reason, count in sorted(network.counts.drops.items()) if count)


def _peer_lines(peers: Sequence[PeerReport], now: float) -> Iterator[str]:
    """Yield a table of the peers, in the order of their subnets; traffic only if flannelpy carries it."""
    if not peers:
        return
    has_traffic = any(peer.traffic for peer in peers)
    head = ["PEER", "PUBLIC IP", "SINCE", *(["SENT", "RECEIVED", "HEARD"] if has_traffic else []), "STATE"]
    rows = [
        head,
        *(_peer_row(peer, now, has_traffic=has_traffic) for peer in sorted(peers, key=lambda each: each.subnet)),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _peer_row(peer: PeerReport, now: float, *, has_traffic: bool) -> list[str]:
    state = f"unreachable: {peer.unreachable}" if peer.unreachable else "reachable"
    traffic = peer.traffic
    cells: list[str] = ["-", "-", "-"]
    if traffic:
        heard = "never" if traffic.heard_at is None else f"{span(now - traffic.heard_at)} ago"
        cells = [size(traffic.bytes_out), size(traffic.bytes_in), heard]
    since = f"{span(now - peer.since)} ago" if peer.since else "-"
    return [str(peer.subnet), str(peer.public_ip), since, *(cells if has_traffic else []), state]


def _problems(report: DaemonReport) -> Iterator[str]:
    """Yield two lines for each problem: what it is, and what to do."""
    found = problems(report)
    if not found:
        yield "problems: none"
    for problem in found:
        yield f"{problem.title}: {problem.text} ({problem.code})"
        yield f"  remedy: {problem.remedy}"
