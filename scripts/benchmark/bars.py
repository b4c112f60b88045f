"""What the figures have to reach, and where the fast path loses against the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from benchmark.results import CONTENDER_METRICS, WIRE_METRICS, Metric, Spread, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmark.results import Results

_KERNEL = "flannelpy-kernel"
_LOOP = "flannelpy"


class Bar(NamedTuple):
    """What a figure has to reach, and what we are after, if more; of ``against`` it is the ratio to that subject's."""

    label: str
    metric: str
    subject: str
    against: str
    bar: float
    goal: float | None
    at_most: bool

    def met(self, value: float, limit: float) -> bool:
        """Whether ``value`` is as good as ``limit``."""
        return value <= limit if self.at_most else value >= limit

    def shown(self, limit: float | None) -> str:
        """``limit`` as the table has it."""
        if limit is None:
            return "–"
        return f"{'≤' if self.at_most else '≥'} {number(limit)}{'×' if self.against else ''}"


def _at_least(label: str, metric: str, bar: float, goal: float | None, *, of: str = _LOOP, against: str) -> Bar:
    return Bar(label, metric, of, against, bar, goal, at_most=False)


def _at_most(label: str, metric: str, bar: float, goal: float, *, of: str = _LOOP, against: str = "") -> Bar:
    return Bar(label, metric, of, against, bar, goal, at_most=True)


def _as_by_hand(label: str, metric: str, of: str, against: str) -> Bar:
    """Return the bar for what the kernel has configured alike: a ratio far from 1 is a mistake, or noise."""
    return _at_least(label, metric, 0.9, 1, of=of, against=against)


def _fast_at_least(label: str, metric: str, bar: float, goal: float | None, *, against: str = "vxlan") -> Bar:
    return _at_least(label, metric, bar, goal, of=_KERNEL, against=against)


def _fast_at_most(label: str, metric: str, bar: float, goal: float, *, against: str = "vxlan") -> Bar:
    return _at_most(label, metric, bar, goal, of=_KERNEL, against=against)


def _on_both(where: str, prefix: str) -> tuple[Bar, ...]:
    """Return what is asked on each underlay; ``prefix`` begins the names of its metrics."""
    idle, loaded, load = (f"{prefix}{name}" for name in ("rtt-idle-p50", "rtt-loaded-p50", "daemon-load"))
    return (
        _fast_at_most(f"{where}: RTT p50, idle, against kernel VXLAN", idle, 1.3, 1),
        _fast_at_most(f"{where}: RTT p50 beside a TCP stream, against kernel VXLAN", loaded, 1.3, 1),
        _fast_at_most(f"{where}: RTT p50, idle, against socat", idle, 0.15, 0.1, against="socat"),
        _fast_at_most(f"{where}: the busier daemon while TCP runs, % of a processor", load, 1, 0, against=""),
    )


BARS = (
    _at_least("TCP, 1 stream, against socat", "tcp-1", 10, 20, against="socat"),
    _at_least("TCP, 8 streams, against socat", "tcp-8", 10, 20, against="socat"),
    _at_least("TCP, 1 stream, against kernel VXLAN", "tcp-1", 0.35, 0.7, against="vxlan"),
    _at_most("CPU-seconds per Gbit (TCP), against socat", "cpu", 0.1, 0.05, against="socat"),
    _at_least("UDP 1400 B goodput with < 1 % loss, against socat", "udp-1400-goodput", 2.5, 5, against="socat"),
    _at_least("UDP 64 B packets/s with < 1 % loss, against socat", "udp-64", 1.5, 3, against="socat"),
    _at_most("RTT p50, idle, against socat", "rtt-idle-p50", 1.4, 1, against="socat"),
    _at_most("RTT p99 beside a TCP stream, against socat", "rtt-loaded-p99", 1, 0.3, against="socat"),
    _at_most("TCP retransmits in 10 s, 1 stream", "retransmits", 49, 0),
    _at_most("10,000 leases: cost per packet against 10", "leases-cost", 1.1, 1, of="10000", against="10"),
    _at_least("Interpreted: TCP, 1 stream, against socat", "tcp-1", 1.5, 3, of="interpreted", against="socat"),
    _as_by_hand("TCP, 1 stream, vxlan against the same device made by hand", "tcp-1", "flannelpy-vxlan", "vxlan"),
    _as_by_hand("TCP, 8 streams, vxlan against the same device made by hand", "tcp-8", "flannelpy-vxlan", "vxlan"),
    _as_by_hand("TCP, 1 stream, host-gw against the same routes made by hand", "tcp-1", "flannelpy-host-gw", "veth"),
    _as_by_hand("TCP, 8 streams, host-gw against the same routes made by hand", "tcp-8", "flannelpy-host-gw", "veth"),
    _at_most("Resident size of a daemon after load, MB", "rss-after", 80, 80),
    _at_most("Start-up, seconds to the subnet file", "start-up", 0.6, 0.6),
    _at_most("Start-up, leases in etcd v3 against v2", "start-ratio", 1.05, 1),
)

#: Of -datapath=kernel.
KERNEL_BARS = (
    _fast_at_least("Wire: TCP, 1 stream, against kernel VXLAN", "wire-tcp-1", 0.9, 1),
    _fast_at_least("Wire: TCP, 8 streams, against kernel VXLAN", "wire-tcp-8", 0.72, 0.95),
    _fast_at_most("Wire: CPU of the whole machine per Gbit, against kernel VXLAN", "wire-machine-cpu", 1.1, 1),
    *_on_both("Wire", "wire-"),
    _fast_at_least("Wire: UDP 64 B packets/s with < 1 % loss, against the loop", "wire-udp-64", 0.8, 1, against=_LOOP),
    _fast_at_least(
        "Wire: UDP 1400 B goodput with < 1 % loss, against the loop", "wire-udp-1400", 0.8, 1, against=_LOOP
    ),
    _fast_at_least("Plain: TCP, 1 stream, against kernel VXLAN", "tcp-1", 0.5, None),
    _fast_at_least("Plain: TCP, 8 streams, against kernel VXLAN", "tcp-8", 0.4, None),
    *_on_both("Plain", ""),
    _at_most("10,000 leases: cost per packet against 10", "leases-kernel-cost", 1.1, 1, of="10000", against="10"),
)

# Why the fast path may be worse than the loop, by what the name of the metric begins with.
_REASONS = {
    "udp-": "the loop moves packets on another processor than the sender's and buffers 8 MB in its socket; with the "
    "fast path, and with kernel VXLAN, the sender's system call does the work of both hosts, one packet at a time",
    "sent-again": "the loop stops reading the TUN while its socket is full, so that TCP waits; in the kernel, with the "
    "fast path and with kernel VXLAN, full queues drop",
    "rss-": "the daemon also has the code that loads programs and searches the firewall's rules",
    "start-up": "the daemon also searches the firewall's rules and tests its programs",
}
_UNKNOWN = "no reason is known"


class Loss(NamedTuple):
    """A figure of the fast path that is worse than the loop's: the ratio to it, and why."""

    metric: Metric
    ratio: Spread
    reason: str

    def __str__(self) -> str:
        rounds = "not in every round" if self.ratio.low <= 1 <= self.ratio.high else "in every round"
        return f"{self.metric.label}: {self.ratio} × the loop's figure, {rounds}"


def missed(results: Results) -> list[Bar]:
    """Return the bars whose figure was measured and is not good enough."""
    spreads = ((bar, results.spread(bar.metric, bar.subject, bar.against)) for bar in BARS + KERNEL_BARS)
    return [bar for bar, spread in spreads if spread and not bar.met(spread.median, bar.bar)]


def losses(results: Results) -> Iterator[Loss]:
    """Return where the median of the ratios says that the loop is better; a goodput is that of a rate."""
    for name, metric in (CONTENDER_METRICS | WIRE_METRICS).items():
        ratio = results.spread(name, _KERNEL, _LOOP)
        if ratio and _is_worse(metric, ratio) and not name.endswith(("-goodput", "-loss")):
            yield Loss(metric, ratio, _reason(name.removeprefix("wire-")))


def _is_worse(metric: Metric, ratio: Spread) -> bool:
    return ratio.median < 1 if metric.more_is_better else ratio.median > 1


def _reason(name: str) -> str:
    return next((reason for start, reason in _REASONS.items() if name.startswith(start)), _UNKNOWN)
