"""A report as metrics for Prometheus, in its text format.

Names, labels and their values are an API: docs/monitoring.md lists them, and a test compares the two.  Times are Unix
seconds.  Counters start with the daemon, and continue when a network starts again.  The label ``network`` is "" for the
only network of a host.
Source: https://prometheus.io/docs/practices/naming/, https://prometheus.io/docs/instrumenting/exposition_formats/.
Counterpart: none; flanneld has no metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from prometheus_client import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flannelpy.diagnosis import ProblemCode, problems
from flannelpy.packet.drops import DropReason
from flannelpy.report import DaemonReport, NetworkReport, NetworkState, PeerReport, Traffic

#: The Content-Type of the text.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: The values of a metric's labels that follow those of its subject, and the metric's value.
Sample = tuple[tuple[str, ...], float]


class Family(NamedTuple):
    """A metric: ``name``, which ends in ``_total`` for a counter, its help text, and the names of its labels."""

    name: str
    description: str
    labels: tuple[str, ...]

    def metric(self, samples: Iterable[Sample]) -> Metric:
        """Return the metric with its samples."""
        kind = CounterMetricFamily if self.name.endswith("_total") else GaugeMetricFamily
        metric = kind(self.name, self.description, labels=self.labels)
        for labels, value in samples:
            metric.add_metric(labels, value)
        return metric


def exposition(report: DaemonReport | None, peers: Mapping[str, Sequence[PeerReport]] | None = None) -> str:
    """Return the metrics of a daemon; without a report, only that no daemon answers.

    ``peers``: those of each network, by its name, for series of each peer; None for totals alone.
    """
    metrics = [_UP.metric([((), float(report is not None))])]
    if report:
        metrics += _of_daemon(report)
        metrics += _of_networks(report)
    if peers is not None:
        metrics += _of_peers(peers)
    return generate_latest(_Metrics(metrics)).decode()


def families() -> tuple[Family, ...]:
    """Return all metrics."""
    return (_UP, _INFO, _STARTED, _PROBLEM, *_NETWORK_SAMPLES, *_PEER_SAMPLES)


class _Metrics(Collector):
    """Metrics as ``generate_latest`` reads them."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Sequence[Metric]:
        return self._metrics


def _of_daemon(report: DaemonReport) -> Iterator[Metric]:
    yield _INFO.metric([((report.version, report.packet_code), 1)])
    yield _STARTED.metric([((), report.started_at)])
    present = {(problem.network, problem.code) for problem in problems(report)}
    pairs = [(network.name, code) for network in report.networks for code in ProblemCode]
    yield _PROBLEM.metric((pair, float(pair in present)) for pair in pairs)


def _of_networks(report: DaemonReport) -> Iterator[Metric]:
    for family, samples_of in _NETWORK_SAMPLES.items():
        yield family.metric(
            ((network.name, *labels), value) for network in report.networks for labels, value in samples_of(network)
        )


def _of_peers(peers: Mapping[str, Sequence[PeerReport]]) -> Iterator[Metric]:
    for family, samples_of in _PEER_SAMPLES.items():
        yield family.metric(
            ((name, str(peer.subnet), str(peer.public_ip), *labels), value)
            for name, some in peers.items()
            for peer in some
            for labels, value in samples_of(peer)
        )


def _known(value: float | None) -> Iterator[Sample]:
    """Yield the only sample of a metric without further labels; none if there is no value."""
    if value is not None:
        yield (), float(value)


def _states(network: NetworkReport) -> Iterator[Sample]:
    for state in NetworkState:
        yield (state.name.lower(),), float(state is network.state)


def _lease_seconds(network: NetworkReport) -> Iterator[Sample]:
    return _known(network.lease.seconds_left if network.lease else None)


def _renewal(network: NetworkReport) -> Iterator[Sample]:
    return _known(network.lease.renewed_at if network.lease else None)


def _store_answer(network: NetworkReport) -> Iterator[Sample]:
    return _known(network.store.answered_at if network.store else None)


def _store_silence(network: NetworkReport) -> Iterator[Sample]:
    return _known(network.store.silent_since is not None if network.store else None)


def _peers(network: NetworkReport) -> Iterator[Sample]:
    backend = network.backend
    if backend and backend.next_hops is not None:
        yield ("reachable",), backend.next_hops
        yield ("unreachable",), backend.unreachable or 0


def _mtu(network: NetworkReport) -> Iterator[Sample]:
    return _known(network.backend.mtu or None if network.backend else None)


def _datapath(network: NetworkReport) -> Iterator[Sample]:
    path = network.backend.datapath if network.backend else ""
    return _known(path == "kernel" if path else None)


def _drops(network: NetworkReport) -> Iterator[Sample]:
    """Yield the counts.  Where flannelpy carries packets, each reason has a series before its first packet."""
    counts = network.counts
    reasons = DropReason if counts.carried else ()
    for reason, count in ({each.name.lower(): 0 for each in reasons} | dict(counts.drops)).items():
        yield (reason,), count


def _repairs(network: NetworkReport) -> Iterator[Sample]:
    for part, count in (("kernel_state", network.counts.kernel_state), ("firewall", network.counts.firewall)):
        if count is not None:
            yield (part,), count


def _packets(traffic: Traffic | None) -> Iterator[Sample]:
    if traffic:
        yield ("in",), traffic.packets_in
        yield ("out",), traffic.packets_out


def _bytes(traffic: Traffic | None) -> Iterator[Sample]:
    if traffic:
        yield ("in",), traffic.bytes_in
        yield ("out",), traffic.bytes_out


_UP = Family("flannelpy_up", "Whether the daemon answers.", ())
_INFO = Family("flannelpy_info", "Version and packet code of the daemon; always 1.", ("version", "packet_code"))
_STARTED = Family("flannelpy_start_time_seconds", "When the daemon started.", ())
_PROBLEM = Family("flannelpy_problem", "Whether the network has a problem of this kind.", ("network", "code"))

_NETWORK = ("network",)
_NETWORK_SAMPLES: dict[Family, Callable[[NetworkReport], Iterable[Sample]]] = {
    Family("flannelpy_network_ready", "Whether the network is ready.", _NETWORK): lambda network: _known(
        network.state is NetworkState.READY
    ),
    Family("flannelpy_network_state", "Whether the network is in this state.", (*_NETWORK, "state")): _states,
    Family(
        "flannelpy_network_state_timestamp_seconds", "When the network entered its state.", _NETWORK
    ): lambda network: _known(network.since),
    Family(
        "flannelpy_lease_remaining_seconds", "Time until the lease expires if it is not renewed.", _NETWORK
    ): _lease_seconds,
    Family("flannelpy_lease_renewal_timestamp_seconds", "When etcd confirmed the lease last.", _NETWORK): _renewal,
    Family("flannelpy_store_answer_timestamp_seconds", "When etcd answered last.", _NETWORK): _store_answer,
    Family("flannelpy_store_silent", "Whether the last request to etcd got no answer.", _NETWORK): _store_silence,
    Family("flannelpy_peers", "Peers by whether packets can be sent to them.", (*_NETWORK, "state")): _peers,
    Family("flannelpy_mtu_bytes", "MTU of the containers.", _NETWORK): _mtu,
    Family(
        "flannelpy_datapath_kernel", "Whether eBPF programs in the kernel carry packets, beside the loop.", _NETWORK
    ): _datapath,
    Family("flannelpy_repairs_total", "Changes by other programs that were undone.", (*_NETWORK, "part")): _repairs,
    Family("flannelpy_dropped_packets_total", "Packets dropped, by reason.", (*_NETWORK, "reason")): _drops,
    Family(
        "flannelpy_packets_total", "Packets that flannelpy carried for all peers.", (*_NETWORK, "direction")
    ): lambda network: _packets(network.counts.carried),
    Family(
        "flannelpy_bytes_total",
        "Bytes of the IP packets that flannelpy carried for all peers.",
        (*_NETWORK, "direction"),
    ): lambda network: _bytes(network.counts.carried),
}

_PEER = ("network", "subnet", "public_ip")
_PEER_SAMPLES: dict[Family, Callable[[PeerReport], Iterable[Sample]]] = {
    Family("flannelpy_peer_reachable", "Whether packets can be sent to the peer.", _PEER): lambda peer: _known(
        not peer.unreachable
    ),
    Family("flannelpy_peer_added_timestamp_seconds", "When the peer was added.", _PEER): lambda peer: _known(
        peer.since
    ),
    Family("flannelpy_peer_heard_timestamp_seconds", "When the last packet of the peer came in.", _PEER): lambda peer: (
        _known(peer.traffic.heard_at if peer.traffic else None)
    ),
    Family(
        "flannelpy_peer_packets_total", "Packets that flannelpy carried for the peer.", (*_PEER, "direction")
    ): lambda peer: _packets(peer.traffic),
    Family(
        "flannelpy_peer_bytes_total",
        "Bytes of the IP packets that flannelpy carried for the peer.",
        (*_PEER, "direction"),
    ): lambda peer: _bytes(peer.traffic),
}
