"""The section of docs/benchmarks.md about the number of hosts."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmark.report import figures, inserted, label, table, write_file
from benchmark.results import Metric, Results, number
from benchmark.scale.growth import growth, slope

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

#: Of a swarm, in the order of the steps.
SWARM_METRICS = {
    "start": Metric("All start at once: until all know all", "s"),
    "start-requests": Metric("All start: requests per host", ""),
    "start-etcd-cpu": Metric("All start: CPU of etcd", "s"),
    "start-own-cpu": Metric("All start: CPU of all hosts", "s"),
    "start-busy": Metric("All start: CPU of all hosts, of one processor", "%"),
    "quiet-requests": Metric("Quiet: requests per host and minute", ""),
    "quiet-bytes": Metric("Quiet: TCP payload per host and minute", "B"),
    "quiet-grpc-bytes": Metric("Quiet: of it gRPC behind the gateway", "B"),
    "quiet-etcd-cpu": Metric("Quiet: CPU of etcd, of one processor", "%"),
    "quiet-own-cpu": Metric("Quiet: CPU of a host per minute", "ms"),
    "etcd-rss": Metric("Quiet: resident size of etcd", "MB"),
    "own-threads": Metric("Quiet: threads per host", ""),
    "join": Metric("One joins: until all know it", "ms"),
    "join-slowest": Metric("One joins: the slowest", "ms"),
    "join-etcd-cpu": Metric("One joins: CPU of etcd", "ms"),
    "join-own-cpu": Metric("One joins: CPU of each host that hears of it", "µs"),
    "leave": Metric("One leaves: until all have removed it", "s"),
    "restart": Metric("etcd restarts: until all know a host that joins then", "s"),
    "restart-requests": Metric("etcd restarts: requests per host until then", ""),
    "restart-etcd-cpu": Metric("etcd restarts: CPU of etcd until then", "s"),
    "restart-own-cpu": Metric("etcd restarts: CPU of all hosts until then", "s"),
}
#: Of many writers and a few watchers.
CROWD_METRICS = {
    "crowd-written": Metric("Until all leases are written", "s"),
    "crowd-known": Metric("Until all watchers know all leases", "s"),
    "crowd-etcd-cpu": Metric("CPU of etcd for each lease", "ms"),
    "crowd-own-cpu": Metric("CPU of each watcher for each lease, writers included", "µs"),
}
#: What does not grow with the number of hosts by its nature, or is no cost.
_NOT_FITTED = {"start-busy", "own-threads", "join-slowest", "leave"}
_FORETOLD = (10_000, 100_000)
_NOTES = """\
Medians of all rounds, in brackets the lowest and the highest. Each case has an etcd of its own, which starts empty.
etcd itself counts the requests: of v2 all but watches, of v3 the messages of clients. The kernel counts the payload of
TCP, both ways. A duration begins with the first request and ends with the last host. All hosts share one process, and
that process and etcd share one machine. Where the hosts together take about a whole processor, the process is the
limit, and as many machines would need less time."""
_FITS = """\
Fitted by least squares in log-log: the exponent, how well it fits, and what the fit gives for more hosts. *Each further
host* is the slope between the two largest numbers of hosts. It is the better guide for a figure with a constant part,
as etcd's memory, whose exponent is too small for many hosts:"""


@dataclass
class ScaleReport:
    """The report about one run: of swarms by ``apis`` and ``counts``, and of ``crowds``."""

    results: Results
    apis: Sequence[str]
    counts: Sequence[int]
    crowds: Sequence[str]
    facts: Mapping[str, str]

    def text(self) -> str:
        """Return the tables, in Markdown."""
        subjects = [subject(api, count) for api, count in itertools.product(self.apis, self.counts)]
        parts = ["\n".join(f"- {name}: {value}" for name, value in self.facts.items()), _NOTES]
        parts.append(figures(self.results, "hosts", SWARM_METRICS, subjects))
        parts += [_FITS, self._growths()]
        parts += ["Many that write a lease, and a few that watch:"]
        parts += [figures(self.results, "", CROWD_METRICS, self.crowds)]
        if self.results.failures:
            parts += ["What failed:", "\n".join(f"- {failure}" for failure in self.results.failures)]
        return "\n\n".join(parts)

    def write(self, page: Path) -> None:
        """Replace this section of the page, and keep the rest."""
        page.parent.mkdir(parents=True, exist_ok=True)
        write_file(page, inserted(page.read_text() if page.exists() else "", self.text(), "make bench-scale"))

    def _growths(self) -> str:
        head = [""]
        for api in self.apis:
            head += [f"{api}: power of hosts", "R²", *(f"{hosts:,}" for hosts in _FORETOLD), "each further host"]
        rows = [
            [label(metric), *itertools.chain.from_iterable(_fitted(self._medians(api, name)) for api in self.apis)]
            for name, metric in SWARM_METRICS.items()
            if name not in _NOT_FITTED
        ]
        return table(head, rows)

    def _medians(self, api: str, metric: str) -> dict[int, float]:
        spreads = {count: self.results.spread(metric, subject(api, count)) for count in self.counts}
        return {count: spread.median for count, spread in spreads.items() if spread}


def subject(api: str, count: int) -> str:
    """Return the name of so many hosts that use an API."""
    return f"{api}, {count}"


def _fitted(figures: Mapping[int, float]) -> list[str]:
    found = growth(figures)
    if found is None:
        return ["–"] * (3 + len(_FORETOLD))
    foretold = [number(found.at(hosts)) for hosts in _FORETOLD]
    return [f"{found.exponent:.2f}", f"{found.fit:.2f}", *foretold, number(slope(figures))]
