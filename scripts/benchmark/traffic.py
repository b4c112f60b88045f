"""Traffic from container to container, and what it cost: iperf3, ping, datagrams of our own, /proc.

Goodput is what the receiving side counted, without headers.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lab import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lab import Container, Node

_PORT = 5201
_LISTENING = re.compile(rf"^ *\d+: [0-9A-F]+:{_PORT:04X} [0-9A-F]+:0000 0A ", re.MULTILINE)
_DATAGRAMS = [sys.executable, "-I", "-S", str(Path(__file__).with_name("datagrams.py"))]
PINGS_PER_SECOND = 500
# What may come after the traffic has ended, where the queues are long.
_PATIENCE = 20
_TICKS = os.sysconf("SC_CLK_TCK")
_CPUCLOCK_SCHED = 2


class MeasurementError(Exception):
    """A tool gave no figure."""


class Tcp(NamedTuple):
    """One or more TCP streams: goodput in Gbit/s, data in Gbit."""

    goodput: float
    data: float
    retransmits: int

    @property
    def seconds(self) -> float:
        """How long the data took."""
        return self.data / self.goodput


class Udp(NamedTuple):
    """Datagrams at some rate.  Offered and received in packets/s, loss as a share of what was sent."""

    offered: float
    received: float
    loss: float


class RoundTrips(NamedTuple):
    """Round-trip times in µs, loss as a share."""

    p50: float
    p99: float
    loss: float


def tcp(source: Node, target: Container, seconds: int, *flags: str) -> Tcp:
    """iperf3's TCP streams to ``target``; with --bidir the sum of both directions.  Raises MeasurementError."""
    with _server(target):
        end = _end(source.run(*_client(target, seconds), *flags, check=False, timeout=seconds + _PATIENCE).stdout)
    received = [end[key] for key in ("sum_received", "sum_received_bidir_reverse") if key in end]
    retransmits = [end[key]["retransmits"] for key in ("sum_sent", "sum_sent_bidir_reverse") if key in end]
    return Tcp(
        sum(each["bits_per_second"] for each in received) / 1e9,
        sum(each["bytes"] for each in received) * 8 / 1e9,
        sum(retransmits),
    )


def udp(source: Node, target: Container, seconds: int, size: int, rate: float) -> Udp:
    """Datagrams of ``size`` bytes of payload, ``rate`` a second.  Raises MeasurementError.

    What waits in a queue when the sender stops still arrives; the receiver's clock runs until then.
    """
    with _running(target, *_DATAGRAMS, "receive", str(_PORT)) as receiver:
        assert receiver.stdout is not None
        receiver.stdout.readline()
        argv = [*_DATAGRAMS, "send", str(target.address), str(_PORT), str(size), str(rate), str(seconds)]
        sent, sending = map(float, source.run(*argv).stdout.split())
        try:
            output, _ = receiver.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            raise MeasurementError("no datagram arrived") from None
        received, receiving = map(float, output.split())
        return Udp(sent / sending, received / receiving if receiving else 0, 1 - received / sent)


@contextmanager
def stream(source: Node, target: Container, seconds: int) -> Iterator[None]:
    """Return a TCP stream for that long, or until the block ends."""
    with _server(target), _running(source, *_client(target, seconds)):
        yield


def round_trips(source: Node, target: Container, count: int) -> RoundTrips:
    """Of so many pings, 500 a second.  Raises MeasurementError when none is answered.

    ping rounds to whole µs; the median is interpolated within its µs, because 10 and 11 µs would differ by 10 %.
    """
    argv = ["ping", "-n", "-i", str(1 / PINGS_PER_SECOND), "-c", str(count), "-W", "1", str(target.address)]
    times = [float(ms) * 1000 for ms in re.findall(r"time=([\d.]+) ms", source.run(*argv, check=False).stdout)]
    if len(times) < 2:
        raise MeasurementError("no ping was answered")
    p99 = statistics.quantiles(times, n=100, method="inclusive")[98]
    return RoundTrips(statistics.median_grouped(times), p99, 1 - len(times) / count)


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of these processes up to now, all their threads', finer than /proc has it.

    Source: clock_getcpuclockid(3), and how it makes a clock of a pid.
    """
    return sum(time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED) for pid in pids)


def machine_cpu_seconds() -> float:
    """Return the busy seconds of all processors of this machine since boot.  Source: proc_stat(5)."""
    user, nice, system, _idle, _iowait, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / _TICKS


def resident_megabytes(pid: int) -> float:
    """Of a process, now."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found, "only kernel threads and zombies have none"
    return int(found[1]) * 1024 / 1e6


def _client(target: Container, seconds: int) -> list[str]:
    return ["iperf3", "-c", str(target.address), "-p", str(_PORT), "-J", "-i", "0", "-t", str(seconds)]


@contextmanager
def _server(node: Node) -> Iterator[None]:
    """Return a new iperf3 that listens for one client, so that it is not still busy with a client that failed."""
    with _running(node, "iperf3", "-s", "-1", "-J", "-i", "0", "-p", str(_PORT)) as server:
        wait_for(lambda: _listens(server.pid), 10, "iperf3's server")
        yield


@contextmanager
def _running(node: Node, *argv: str) -> Iterator[subprocess.Popen[str]]:
    process = node.popen(*argv)
    try:
        yield process
    finally:
        process.kill()
        with process:  # closes its pipes
            process.wait()
        node.lab.processes.remove(process)


def _listens(pid: int) -> bool:
    """Whether iperf3 runs and accepts; before that the process is ``ip``, and still in another namespace."""
    proc = Path(f"/proc/{pid}")
    with suppress(OSError):  # it has ended
        tables = (proc / "net" / name for name in ("tcp", "tcp6"))
        return (proc / "comm").read_text() == "iperf3\n" and any(
            _LISTENING.search(table.read_text()) for table in tables
        )
    return False


def _end(output: str) -> dict[str, Any]:
    try:
        report = json.loads(output)
        end: dict[str, Any] = report["end"]
    except (ValueError, KeyError):
        raise MeasurementError(f"iperf3 failed: {output.strip()[-500:]}") from None
    if "error" in report:
        raise MeasurementError(f"iperf3: {report['error']}")
    return end
