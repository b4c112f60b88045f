"""What is measured about packets, of all contenders in the same way."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from benchmark import traffic
from benchmark.contenders import measured_in_full

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack

    from benchmark.contenders import Rack
    from benchmark.results import Values

_UDP_SIZES = (64, 512, 1400)
_LOSS = 0.01
_FIRST_RATE = 10_000.0
_LOWEST_RATE = 100.0
# The search ends when the lowest rate that failed is this close to the highest that did not.
_CLOSE = 1.1
# A sender that offers less than this share of what it is asked for can do no more.
_SENDER_AT_ITS_LIMIT = 0.95
_SLOW_START = 0.5


class Effort(NamedTuple):
    """How much is measured: seconds of most things and of the single TCP stream, pings, trials for a UDP rate."""

    seconds: int
    stream_seconds: int
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


class Trial(NamedTuple):
    """One step of the search for the highest rate: who, bytes of payload, packets a second, what came of it."""

    subject: str
    size: int
    asked: float
    result: traffic.Udp

    @property
    def at_senders_limit(self) -> bool:
        """Whether nearly all arrived, and the sender could not offer what it was asked for."""
        return self.result.loss < _LOSS and at_its_limit(self.result, self.asked)


@dataclass
class DataPath:
    """The measurements on a rack at MTU 1500 and one at 9000."""

    rack: Rack
    jumbo_rack: Rack
    effort: Effort
    trials: list[Trial] = field(default_factory=list)
    _rates: dict[tuple[str, int], float] = field(default_factory=dict)

    def measurements(self, names: Sequence[str]) -> list[Measurement]:
        """All there are, of these contenders."""
        with_daemon = [name for name in names if name not in ("vxlan", "veth")]
        in_full = measured_in_full(names)
        return [
            Measurement("tcp-1", names, self._stream, self.rack),
            self._tcp("tcp-8", names, self.rack, "-P", "8"),
            self._tcp("tcp-both", in_full, self.rack, "--bidir"),
            Measurement("rtt-idle", names, self._idle, self.rack),
            Measurement("rtt-loaded", in_full, self._loaded, self.rack),
            *(Measurement(f"udp-{size}", in_full, self._udp(size), self.rack) for size in _UDP_SIZES),
            self._tcp("mtu-9000-tcp-1", in_full, self.jumbo_rack),
            self._tcp("mtu-9000-tcp-8", in_full, self.jumbo_rack, "-P", "8"),
            Measurement("rss", with_daemon, self._memory, self.rack),
        ]

    def _tcp(self, metric: str, names: Sequence[str], rack: Rack, *flags: str) -> Measurement:
        def take(name: str) -> Values:
            contender = rack.contenders[name]
            return {metric: traffic.tcp(contender.client, contender.server, self.effort.seconds, *flags).goodput}

        return Measurement(metric, names, take, rack)

    def _stream(self, name: str) -> Values:
        contender = self.rack.contenders[name]
        own, machine = traffic.cpu_seconds(contender.pids), traffic.machine_cpu_seconds()
        tcp = traffic.tcp(contender.client, contender.server, self.effort.stream_seconds)
        own, machine = traffic.cpu_seconds(contender.pids) - own, traffic.machine_cpu_seconds() - machine
        values = {"tcp-1": tcp.goodput, "retransmits": tcp.retransmits, "machine-cpu": machine / tcp.data}
        return values | ({"cpu": own / tcp.data} if contender.pids else {})

    def _idle(self, name: str) -> Values:
        contender = self.rack.contenders[name]
        times = traffic.round_trips(contender.client, contender.server, self.effort.pings)
        return {"rtt-idle-p50": times.p50, "rtt-idle-p99": times.p99}

    def _loaded(self, name: str) -> Values:
        contender = self.rack.contenders[name]
        with traffic.stream(contender.client, contender.server, self.effort.seconds + 5):
            time.sleep(_SLOW_START)
            times = traffic.round_trips(contender.client, contender.server, self.effort.pings)
        return {"rtt-loaded-p50": times.p50, "rtt-loaded-p99": times.p99, "rtt-loaded-lost": times.loss * 100}

    def _udp(self, size: int) -> Callable[[str], Values]:
        """Rates are in 1000 packets/s.  From the second round on the search begins near what the last one found."""

        def take(name: str) -> Values:
            contender = self.rack.contenders[name]

            def attempt(rate: float) -> traffic.Udp:
                result = traffic.udp(contender.client, contender.server, 1, size, rate)
                self.trials.append(Trial(name, size, rate, result))
                return result

            start = self._rates.get((name, size), _FIRST_RATE * math.sqrt(2)) / math.sqrt(2)
            best = highest_rate(attempt, start, self.effort.trials)
            self._rates[name, size] = best.offered
            rate = best.received / 1000
            return {
                f"udp-{size}": rate,
                f"udp-{size}-goodput": rate * size * 8 / 1000,
                f"udp-{size}-loss": best.loss * 100,
            }

        return take

    def _memory(self, name: str) -> Values:
        contender = self.rack.contenders[name]
        return {"rss-before": contender.megabytes_before, "rss-after": contender.megabytes()}


def at_its_limit(result: traffic.Udp, asked: float) -> bool:
    """Whether the sender can offer no more."""
    return result.offered < _SENDER_AT_ITS_LIMIT * asked


def highest_rate(attempt: Callable[[float], traffic.Udp], start: float, trials: int) -> traffic.Udp:
    """Return the trial with the highest rate at which less than 1 % is lost: by doubling or halving, then by bisection.

    After so many trials it ends as soon as one has passed.  Raises MeasurementError when no rate is low enough.
    """
    passed: traffic.Udp | None = None
    low, high, rate = 0.0, math.inf, start
    while passed is None or trials > 0:
        trials -= 1
        result = attempt(rate)
        if result.loss >= _LOSS:
            high = rate
        else:
            passed, low = result, rate
        if passed and (high / low < _CLOSE or at_its_limit(passed, low)):
            return passed
        rate = low * 2 if high == math.inf else math.sqrt(low * high) if low else high / 2
        if rate < _LOWEST_RATE:
            raise traffic.MeasurementError(f"more than 1 % is lost even at {high:.0f} packets/s")
    return passed
