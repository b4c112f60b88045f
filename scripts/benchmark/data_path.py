"""What is measured about packets on a rack, of all its contenders in the same way."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from benchmark import traffic
from benchmark.contenders import BY_HAND, measured_in_full, not_like_by_hand
from benchmark.udp_rate import Trial, highest_rate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack

    from benchmark.contenders import Rack
    from benchmark.results import Values

_SLOW_START = 0.5


class Effort(NamedTuple):
    """How much is measured: seconds of most things and of two kinds of TCP streams, pings, trials for a UDP rate."""

    seconds: int
    stream_seconds: int
    retransmit_seconds: int
    pings: int
    trials: int


class Site(Protocol):
    """Where something is measured; built before anything is, gone with ``cleanup``."""

    def build(self, cleanup: ExitStack) -> None:
        """Let it stand until ``cleanup``."""


class Measurement(NamedTuple):
    """Something to measure of each subject; ``take`` does it once for one of them."""

    name: str
    subjects: Sequence[str]
    take: Callable[[str], Values]
    site: Site


@dataclass
class DataPath:
    """The measurements on one rack.  ``trials`` gets those of UDP, ``prefix`` begins all names."""

    rack: Rack
    effort: Effort
    trials: list[Trial]
    prefix: str = ""
    _rates: dict[tuple[str, int], float] = field(default_factory=dict)

    def stream(self, names: Sequence[str]) -> Measurement:
        """One TCP stream, and the processor time that it takes."""
        return self._measurement("tcp-1", names, self._stream)

    def tcp(self, metric: str, names: Sequence[str], *flags: str) -> Measurement:
        """TCP with flags of iperf3."""

        def take(name: str) -> Values:
            return {metric: self._tcp(name, self.effort.seconds, *flags).goodput}

        return self._measurement(metric, names, take)

    def retransmits(self, names: Sequence[str]) -> Measurement:
        """Segments that a TCP stream sends again in ten seconds."""

        def take(name: str) -> Values:
            return {"retransmits": self._tcp(name, self.effort.retransmit_seconds).retransmits}

        return self._measurement("retransmits", names, take)

    def idle_round_trips(self, names: Sequence[str]) -> Measurement:
        """Pings while nothing else is sent."""

        def take(name: str) -> Values:
            times = self._pings(name)
            return {"rtt-idle-p50": times.p50, "rtt-idle-p99": times.p99}

        return self._measurement("rtt-idle", names, take)

    def loaded_round_trips(self, names: Sequence[str]) -> Measurement:
        """Pings beside a TCP stream."""

        def take(name: str) -> Values:
            contender = self.rack.contenders[name]
            with traffic.stream(contender.client, contender.server, self.effort.seconds + 5):
                time.sleep(_SLOW_START)
                times = self._pings(name)
            return {"rtt-loaded-p50": times.p50, "rtt-loaded-p99": times.p99, "rtt-loaded-lost": times.loss * 100}

        return self._measurement("rtt-loaded", names, take)

    def udp(self, size: int, names: Sequence[str]) -> Measurement:
        """Datagrams with so many bytes of payload."""
        return self._measurement(f"udp-{size}", names, lambda name: self._udp(size, name))

    def memory(self, names: Sequence[str]) -> Measurement:
        """Resident sizes of the daemons."""

        def take(name: str) -> Values:
            contender = self.rack.contenders[name]
            return {"rss-before": contender.megabytes_before, "rss-after": contender.megabytes()}

        return self._measurement("rss", names, take)

    def _measurement(self, name: str, names: Sequence[str], take: Callable[[str], Values]) -> Measurement:
        def take_named(subject: str) -> Values:
            return {f"{self.prefix}{metric}": value for metric, value in take(subject).items()}

        return Measurement(f"{self.prefix}{name}", names, take_named, self.rack)

    def _tcp(self, name: str, seconds: int, *flags: str) -> traffic.Tcp:
        contender = self.rack.contenders[name]
        return traffic.tcp(contender.client, contender.server, seconds, *flags)

    def _pings(self, name: str) -> traffic.RoundTrips:
        contender = self.rack.contenders[name]
        return traffic.round_trips(contender.client, contender.server, self.effort.pings)

    def _stream(self, name: str) -> Values:
        contender = self.rack.contenders[name]
        daemons, machine = contender.cpu_seconds(), traffic.machine_cpu_seconds()
        tcp = self._tcp(name, self.effort.stream_seconds)
        machine = traffic.machine_cpu_seconds() - machine
        used = [after - before for before, after in zip(daemons, contender.cpu_seconds(), strict=True)]
        sent_again = tcp.retransmits / tcp.data
        values = {"tcp-1": tcp.goodput, "sent-again": sent_again, "machine-cpu": machine / tcp.data}
        if used:
            values |= {"cpu": sum(used) / tcp.data, "daemon-load": max(used) / tcp.seconds * 100}
        return values

    def _udp(self, size: int, name: str) -> Values:
        """Rates are in 1000 packets/s.  From the second round on the search begins near what the last one found."""
        contender = self.rack.contenders[name]

        def attempt(rate: float) -> traffic.Udp:
            result = traffic.udp(contender.client, contender.server, 1, size, rate)
            self.trials.append(Trial(name, self.rack.underlay.value, size, rate, result))
            return result

        best = highest_rate(attempt, self.effort.trials, self._rates.get((name, size)))
        self._rates[name, size] = best.offered
        rate = best.received / 1000
        return {
            f"udp-{size}": rate,
            f"udp-{size}-goodput": rate * size * 8 / 1000,
            f"udp-{size}-loss": best.loss * 100,
        }


def plain_measurements(plain: DataPath, jumbo: DataPath, names: Sequence[str]) -> list[Measurement]:
    """Return all on the plain underlay, of these contenders; ``jumbo``: with an MTU of 9000."""
    with_daemon = [name for name in names if name not in BY_HAND]
    in_full = measured_in_full(names)
    return [
        plain.stream(names),
        plain.retransmits([name for name in names if name == "flannelpy"]),
        plain.tcp("tcp-8", names, "-P", "8"),
        plain.tcp("tcp-both", in_full, "--bidir"),
        plain.idle_round_trips(names),
        plain.loaded_round_trips(in_full),
        plain.udp(64, in_full),
        plain.udp(512, in_full),
        plain.udp(1400, not_like_by_hand(names)),
        jumbo.tcp("tcp-1", in_full),
        jumbo.tcp("tcp-8", in_full, "-P", "8"),
        plain.memory(with_daemon),
    ]


def wire_measurements(wire: DataPath, names: Sequence[str]) -> list[Measurement]:
    """Return all on the wire, of these contenders; of socat only one stream and idle round trips."""
    in_full = measured_in_full(names)
    fast = [name for name in in_full if name != "socat"]
    return [
        wire.stream(in_full),
        wire.tcp("tcp-8", fast, "-P", "8"),
        wire.idle_round_trips(in_full),
        wire.loaded_round_trips(fast),
        wire.udp(64, fast),
        wire.udp(1400, fast),
    ]
