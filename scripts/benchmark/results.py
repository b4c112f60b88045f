"""What was measured: for each metric and subject one value a round."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import NamedTuple

#: What one measurement of one subject finds, by metric.
Values = dict[str, float]


_MORE_IS_BETTER = ("Gbit/s", "Mbit/s", "1000 packets/s")


class Metric(NamedTuple):
    """How the report shows a metric."""

    label: str
    unit: str

    @property
    def more_is_better(self) -> bool:
        """Whether it is a rate; all others are costs."""
        return self.unit in _MORE_IS_BETTER


#: What is measured of a contender, in the order of the table.
CONTENDER_METRICS = {
    "tcp-1": Metric("TCP, 1 stream", "Gbit/s"),
    "tcp-8": Metric("TCP, 8 streams", "Gbit/s"),
    "tcp-both": Metric("TCP, 1 stream each way at once, sum", "Gbit/s"),
    "retransmits": Metric("TCP, 1 stream: retransmits in 10 s", "segments"),
    "sent-again": Metric("TCP, 1 stream: retransmits", "segments/Gbit"),
    "cpu": Metric("TCP, 1 stream: CPU of both daemons", "s/Gbit"),
    "machine-cpu": Metric("TCP, 1 stream: CPU of the whole machine", "s/Gbit"),
    "daemon-load": Metric("TCP, 1 stream: the busier daemon, of one processor", "%"),
    "udp-64": Metric("UDP, 64 B, loss < 1 %", "1000 packets/s"),
    "udp-512": Metric("UDP, 512 B, loss < 1 %", "1000 packets/s"),
    "udp-1400": Metric("UDP, 1400 B, loss < 1 %", "1000 packets/s"),
    "udp-64-goodput": Metric("UDP, 64 B: goodput there", "Mbit/s"),
    "udp-512-goodput": Metric("UDP, 512 B: goodput there", "Mbit/s"),
    "udp-1400-goodput": Metric("UDP, 1400 B: goodput there", "Mbit/s"),
    "udp-64-loss": Metric("UDP, 64 B: loss there", "%"),
    "udp-512-loss": Metric("UDP, 512 B: loss there", "%"),
    "udp-1400-loss": Metric("UDP, 1400 B: loss there", "%"),
    "rtt-idle-p50": Metric("RTT idle, p50", "µs"),
    "rtt-idle-p99": Metric("RTT idle, p99", "µs"),
    "rtt-loaded-p50": Metric("RTT beside a TCP stream, p50", "µs"),
    "rtt-loaded-p99": Metric("RTT beside a TCP stream, p99", "µs"),
    "rtt-loaded-lost": Metric("RTT beside a TCP stream: pings lost", "%"),
    "rss-before": Metric("Resident size of a daemon before load", "MB"),
    "rss-after": Metric("Resident size of a daemon after the round", "MB"),
    "mtu-9000-tcp-1": Metric("MTU 9000: TCP, 1 stream", "Gbit/s"),
    "mtu-9000-tcp-8": Metric("MTU 9000: TCP, 8 streams", "Gbit/s"),
    "start-up": Metric("From exec to the subnet file", "s"),
    "start-v2": Metric("From exec to the subnet file, leases in etcd v2, median of 10 starts", "s"),
    "start-v3": Metric("From exec to the subnet file, leases in etcd v3, median of 10 starts", "s"),
    "start-ratio": Metric("From exec to the subnet file, etcd v3 against v2, 10 starts each in turn", "×"),
}

_ON_WIRE = (
    "tcp-1",
    "tcp-8",
    "sent-again",
    "cpu",
    "machine-cpu",
    "daemon-load",
    "udp-64",
    "udp-1400",
    "udp-64-goodput",
    "udp-1400-goodput",
    "udp-64-loss",
    "udp-1400-loss",
    "rtt-idle-p50",
    "rtt-idle-p99",
    "rtt-loaded-p50",
    "rtt-loaded-p99",
    "rtt-loaded-lost",
)
#: What is measured of a contender on the underlay *wire*.
WIRE_METRICS = {
    f"wire-{name}": Metric(f"Wire: {label}", unit)
    for name, (label, unit) in CONTENDER_METRICS.items()
    if name in _ON_WIRE
}

#: What is measured at a number of leases.
LEASE_METRICS = {
    "leases-routes": Metric("From exec until all routes are in", "s"),
    "leases-change": Metric("From a write to etcd until its route is in", "ms"),
    "leases-rss": Metric("Resident size", "MB"),
    "leases-look-up": Metric("One look-up", "ns"),
    "leases-set": Metric("One route set", "µs"),
    "leases-remove": Metric("One route removed and set again", "µs"),
    "leases-cost": Metric("CPU of both daemons, UDP 64 B", "µs/packet"),
    "leases-cost-tcp": Metric("CPU of both daemons, TCP", "s/Gbit"),
    "leases-kernel-cost": Metric("Kernel: CPU of the whole machine, UDP 64 B", "µs/packet"),
}

METRICS = CONTENDER_METRICS | WIRE_METRICS | LEASE_METRICS


class Spread(NamedTuple):
    """The median of some rounds, and between what they lie."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{number(self.median)} [{number(self.low)}–{number(self.high)}]"  # an en dash is meant


@dataclass
class Results:
    """The values by metric, subject and round.  A measurement that failed has none for that round."""

    values: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, round_number: int, subject: str, found: Values) -> None:
        """Keep what a measurement found."""
        for metric, value in found.items():
            self.values.setdefault(metric, {}).setdefault(subject, {})[round_number] = value

    def spread(self, metric: str, subject: str, against: str = "") -> Spread | None:
        """Over all rounds, of the value or of its ratio to that of ``against`` in the same round."""
        values = self._of(metric, subject)
        if against:
            others = self._of(metric, against)
            values = {each: value / others[each] for each, value in values.items() if others.get(each)}
        if not values:
            return None
        return Spread(statistics.median(values.values()), min(values.values()), max(values.values()))

    def _of(self, metric: str, subject: str) -> dict[int, float]:
        return self.values.get(metric, {}).get(subject, {})


def number(value: float) -> str:
    """Three significant digits, or all of a large number's."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
