"""What was measured: for each metric and subject one value a round, and what they say about the bars."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import NamedTuple

#: What one measurement of one subject finds, by metric.
Values = dict[str, float]


class Metric(NamedTuple):
    """How the report shows a metric."""

    label: str
    unit: str


#: What is measured of a contender, in the order of the table.
CONTENDER_METRICS = {
    "tcp-1": Metric("TCP, 1 stream", "Gbit/s"),
    "tcp-8": Metric("TCP, 8 streams", "Gbit/s"),
    "tcp-both": Metric("TCP, 1 stream each way at once, sum", "Gbit/s"),
    "retransmits": Metric("TCP, 1 stream: retransmits", "segments"),
    "cpu": Metric("TCP, 1 stream: CPU of both daemons", "s/Gbit"),
    "machine-cpu": Metric("TCP, 1 stream: CPU of the whole machine", "s/Gbit"),
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
    "start-v2": Metric("From exec to the subnet file, leases in etcd v2, median of 20 starts", "s"),
    "start-v3": Metric("From exec to the subnet file, leases in etcd v3, median of 20 starts", "s"),
    "start-ratio": Metric("From exec to the subnet file, etcd v3 against v2, 20 starts each in turn", "×"),
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
}

METRICS = CONTENDER_METRICS | LEASE_METRICS


class Bar(NamedTuple):
    """What a figure has to reach, and what we are after; of ``against`` it is the ratio to that subject's."""

    label: str
    metric: str
    subject: str
    against: str
    bar: float
    goal: float
    at_most: bool

    def met(self, value: float, limit: float) -> bool:
        """Whether ``value`` is as good as ``limit``."""
        return value <= limit if self.at_most else value >= limit

    def shown(self, limit: float) -> str:
        """``limit`` as the table has it."""
        return f"{'≤' if self.at_most else '≥'} {number(limit)}{'×' if self.against else ''}"


def _at_least(label: str, metric: str, bar: float, goal: float, *, of: str = "flannelpy", against: str) -> Bar:
    return Bar(label, metric, of, against, bar, goal, at_most=False)


def _at_most(label: str, metric: str, bar: float, goal: float, *, of: str = "flannelpy", against: str = "") -> Bar:
    return Bar(label, metric, of, against, bar, goal, at_most=True)


def _as_by_hand(label: str, metric: str, of: str, against: str) -> Bar:
    """Return the kernel has the same configuration, so a ratio far from 1 is a mistake, or noise."""
    return _at_least(label, metric, 0.9, 1, of=of, against=against)


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

    def missed(self) -> list[Bar]:
        """Return the bars whose figure was measured and is not good enough."""
        spreads = ((bar, self.spread(bar.metric, bar.subject, bar.against)) for bar in BARS)
        return [bar for bar, spread in spreads if spread and not bar.met(spread.median, bar.bar)]

    def _of(self, metric: str, subject: str) -> dict[int, float]:
        return self.values.get(metric, {}).get(subject, {})


def number(value: float) -> str:
    """Three significant digits, or all of a large number's."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
