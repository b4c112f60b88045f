"""The report about the results: a page of Markdown, a figure, and all values as JSON."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark import figure
from benchmark.bars import BARS, KERNEL_BARS, Bar, losses
from benchmark.contenders import measured_in_full
from benchmark.results import CONTENDER_METRICS, LEASE_METRICS, METRICS, WIRE_METRICS, Metric, Results

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmark.udp_rate import Trial

_NOTES = """\
Medians of all rounds, in brackets the lowest and the highest. A ratio is taken within each round, in which all
contenders are measured one right after the other; its median is not the ratio of the medians. Both hosts, sender and
receiver share the processors of one machine. Goodput is payload that arrived. The kernel's VXLAN and the bare veth have
no daemon; what they cost is in the CPU of the whole machine, which includes sender, receiver and everything else. The
same is true of flannelpy-kernel, flannelpy-vxlan and flannelpy-host-gw, whose daemons no packet passes. Of the last two
only that is measured which shows whether they equal a manual set-up, and what the daemon costs. So that a run takes
less than half an hour, interpreted and veth are measured in part, too.

Daemons check every five seconds whether a firewall rule has changed, and list the rules only then. The CPU of a daemon
does not include iptables-save, which lists them. The daemons with many leases check once an hour, because with 10,000
leases the check takes some percent of a processor, with and without packets.

*Plain*: veths as the kernel creates them, so super-packets cross from host to host as one. *Wire*: only packets of the
MTU cross, as on a network. The hosts' ends of the veths have tso, gso, tx-udp_tnl-segmentation,
tx-udp_tnl-csum-segmentation and tx-udp-segmentation off and gro on; the switch's ends have tso off, because a veth does
GRO only then.

TCP: iperf3. RTT: 500 pings a second. UDP: the highest rate at which less than 1 % is lost in one second, found by
doubling and bisection to 10 %; where the sender can offer no more, its rate stands."""


@dataclass
class Report:
    """The report about one run."""

    results: Results
    contenders: Sequence[str]
    counts: Sequence[str]
    facts: Mapping[str, str]
    trials: Sequence[Trial]

    def text(self) -> str:
        """Return the tables, in Markdown; each names the machine."""
        machine = self.facts["machine"]
        parts = [
            "\n".join(f"- {name}: {value}" for name, value in self.facts.items()),
            _verdicts(self.results, BARS, machine),
            _verdicts(self.results, KERNEL_BARS, f"{machine}: -datapath=kernel"),
            *self._losses(),
            _NOTES + self._senders_limits(),
            *self._figures(machine),
        ]
        if self.results.failures:
            parts += ["What failed:", "\n".join(f"- {failure}" for failure in self.results.failures)]
        return "\n\n".join(parts)

    def write(self, directory: Path) -> None:
        """benchmarks.md, .svg and .json; what stands outside the marks in the page is kept."""
        directory.mkdir(parents=True, exist_ok=True)
        page = directory / "benchmarks.md"
        picture = figure.draw(self.results, self.contenders, self.facts["machine"])
        image = "![bar charts of the tables below](benchmarks.svg)\n\n" if picture else ""
        write_file(page, inserted(page.read_text() if page.exists() else "", f"{image}{self.text()}", "make bench"))
        write_file(directory / "benchmarks.svg", picture)
        write_file(directory / "benchmarks.json", json.dumps(self._data(), indent=1, ensure_ascii=False) + "\n")

    def _figures(self, machine: str) -> list[str]:
        tables = [
            ("plain", CONTENDER_METRICS, self.contenders),
            ("wire", WIRE_METRICS, measured_in_full(self.contenders)),
            ("leases", LEASE_METRICS, self.counts),
        ]
        return [
            figures(self.results, f"{machine}: {title}", metrics, subjects)
            for title, metrics, subjects in tables
            if metrics.keys() & self.results.values
        ]

    def _losses(self) -> list[str]:
        """Return a head and a list with an item for each reason, or nothing."""
        by_reason: dict[str, list[str]] = {}
        for loss in losses(self.results):
            by_reason.setdefault(loss.reason, []).append(f"  - {loss}")
        if not by_reason:
            return []
        head = f"On {self.facts['machine']}, `-datapath=kernel` is worse than the loop in these figures:"
        return [head, "\n".join(line for reason, found in by_reason.items() for line in (f"- {reason}:", *found))]

    def _senders_limits(self) -> str:
        limited = Counter(
            f"{each.underlay} {each.subject} {each.size} B" for each in self.trials if each.at_senders_limit
        )
        if not limited:
            return ""
        return f" That was so for {', '.join(f'{what} ({rounds}×)' for what, rounds in limited.items())}."

    def _data(self) -> dict[str, Any]:
        values = {
            metric: {subject: list(rounds.values()) for subject, rounds in subjects.items()}
            for metric, subjects in self.results.values.items()
        }
        units = {name: metric._asdict() for name, metric in METRICS.items() if name in values}
        trials = [{**trial._asdict(), **trial.result._asdict()} for trial in self.trials]
        for trial in trials:
            del trial["result"]
        return {
            "facts": dict(self.facts),
            "metrics": units,
            "values": values,
            "udp": trials,
            "failures": self.results.failures,
        }


def facts(command: str, programs: str) -> dict[str, str]:
    """Return the machine and the programs."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)", cpuinfo, re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    congestion_control = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    return {
        "machine": f"{os.cpu_count()} × {model[1] if model else platform.machine()}, {memory:.0f} GB",
        "kernel": f"{platform.release()}, TCP congestion control {congestion_control}",
        "programs": f"Python {platform.python_version()}, {programs}",
        "commit": _commit(),
        "command": command,
    }


def _commit() -> str:
    # As root in a user's tree git would refuse to look.
    git = ["git", "-c", "safe.directory=*"]
    try:
        commit = first_line(*git, "rev-parse", "--short=12", "HEAD")
        changed = first_line(*git, "status", "--porcelain", "--untracked-files=no", "flannelpy", "setup.py")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit} and changes that are not committed" if changed else commit


def traffic_programs() -> str:
    """Return the versions of the programs that make traffic."""
    found = re.search(r"socat version \S+", subprocess.run(["socat", "-V"], capture_output=True, text=True).stdout)
    return f"{first_line('iperf3', '--version')}, {found[0] if found else 'socat'}"


def first_line(*argv: str) -> str:
    """Return the first line that a command prints.  Raises OSError, CalledProcessError."""
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.partition("\n")[0]


def _verdicts(results: Results, bars: Sequence[Bar], title: str) -> str:
    return table([title, "measured", "bar", "", "goal", ""], [_verdict(results, bar) for bar in bars])


def _verdict(results: Results, bar: Bar) -> list[str]:
    spread = results.spread(bar.metric, bar.subject, bar.against)
    if spread is None:
        return [bar.label, "not measured", bar.shown(bar.bar), "", bar.shown(bar.goal), ""]
    met = [_judged(bar, spread.median, limit) for limit in (bar.bar, bar.goal)]
    value = f"{spread}{' ×' if bar.against else ''}"
    return [bar.label, value, bar.shown(bar.bar), met[0], bar.shown(bar.goal), met[1]]


def _judged(bar: Bar, value: float, limit: float | None) -> str:
    if limit is None:
        return ""
    return "met" if bar.met(value, limit) else "**missed**"


def figures(results: Results, title: str, metrics: Mapping[str, Metric], subjects: Sequence[str]) -> str:
    """Return a table with a row for each of the metrics that was measured of at least one subject."""
    rows = []
    for name, metric in metrics.items():
        spreads = [results.spread(name, subject) for subject in subjects]
        if any(spreads):
            rows.append([label(metric), *(str(spread) if spread else "–" for spread in spreads)])
    return table([title, *subjects], rows)


def label(metric: Metric) -> str:
    """Return what a metric is called in a table."""
    return f"{metric.label}, {metric.unit}" if metric.unit else metric.label


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * max(width, 3) for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def inserted(page: str, text: str, command: str) -> str:
    """Return the page with ``text`` between the marks of a command, which are added at its end if they are missing."""
    marks = f"<!-- begin: written by {command} -->", f"<!-- end: written by {command} -->"
    before, begin, rest = page.partition(marks[0])
    after = rest.partition(marks[1])[2] if begin else "\n"
    return f"{before}{marks[0]}\n\n{text}\n\n{marks[1]}{after}"


def write_file(path: Path, text: str) -> None:
    """Write a file of the directory's owner: sudo must leave nothing that only root can change."""
    path.write_text(text)
    owner = path.parent.stat()
    os.chown(path, owner.st_uid, owner.st_gid)
