"""Measure how flannelpy's control plane grows with the number of hosts: ``make bench-scale``.

In each round, every number of hosts is measured with v2 and with v3, one right after the other.  Nothing is measured
again because of its outcome.

Exit code 1: something could not be measured.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import resource
import shlex
import shutil
import sys
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lab.etcd_stores import Api

from benchmark.report import facts, first_line
from benchmark.results import Results, number
from benchmark.scale.report import CROWD_METRICS, SWARM_METRICS, ScaleReport, subject
from benchmark.scale.steps import Effort, measure_crowd, measure_swarm
from flannelpy.errors import FlannelError
from flannelpy.subnet.lease_policy import Terms

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from benchmark.results import Values

PROGRAMS = ("etcd", "ss")
PROJECT = Path(__file__).parents[3]
NAMES = {api: f"v{api.value}" for api in Api}
COUNTS = (10, 100, 300)
QUICK_COUNTS = (3, 6)
WATCHERS, WRITERS = 30, 1000
QUICK_WATCHERS, QUICK_WRITERS = 3, 20
JOINS, QUICK_JOINS = 10, 2
# A host that leaves is removed by the others after a minute, or after the time of a lease.
QUICK_TERMS = Terms(lease_ttl=5)
LONGEST_CAUSE = 300  # characters


class Case(NamedTuple):
    """Something to measure; ``take`` does it once."""

    subject: str
    take: Callable[[], Coroutine[None, None, Values]]


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description="measure how the control plane grows with the number of hosts")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured (%(default)s)")
    parser.add_argument("--quiet", type=float, default=120, metavar="SECONDS",
                        help="how long a quiet swarm is measured (%(default)s)")  # fmt: skip
    parser.add_argument("--hosts", metavar="NUMBERS", default=",".join(map(str, COUNTS)),
                        help="so many hosts, with commas (%(default)s)")  # fmt: skip
    parser.add_argument("--only", metavar="PATTERN", default="", help="only cases whose name has this in it, as v3")
    parser.add_argument("--quick", action="store_true", help="one short round of few hosts, to see whether it works")
    parser.add_argument("--output", type=Path, metavar="FILE",
                        help="of a complete run docs/benchmarks.md, else build/scale.md")  # fmt: skip
    given = parser.parse_args()
    given.hosts = QUICK_COUNTS if given.quick else tuple(map(int, given.hosts.split(",")))
    complete = not (given.quick or given.only) and given.hosts == COUNTS
    given.output = given.output or PROJECT / ("docs/benchmarks.md" if complete else "build/scale.md")
    given.rounds = 1 if given.quick else given.rounds
    return given


def check() -> None:
    """Raise SystemExit at once if a program is missing, and allow as many open files as the system does."""
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing:
        raise SystemExit(f"missing here: {', '.join(missing)}; make setup installs them")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def cases(given: argparse.Namespace) -> list[Case]:
    """Return what is measured in each round."""
    effort = Effort(given.quiet, QUICK_JOINS, QUICK_TERMS) if given.quick else Effort(given.quiet, JOINS, Terms())
    swarms = [
        Case(subject(NAMES[api], count), partial(measure_swarm, api, count, effort))
        for count in given.hosts
        for api in Api
    ]
    crowd = (QUICK_WATCHERS, QUICK_WRITERS) if given.quick else (WATCHERS, WRITERS)
    every = [*swarms, Case(crowd_subject(*crowd), partial(measure_crowd, Api.V3, *crowd))]
    return [case for case in every if re.search(given.only, case.subject)]


def crowd_subject(watchers: int, writers: int) -> str:
    """Return the name of so many watchers and writers."""
    return f"{NAMES[Api.V3]}, {watchers} watchers, {writers:,} writers"


def measure(every: Sequence[Case], rounds: int) -> Results:
    """Measure every case, round by round; a failure is printed and counted, and the other cases are measured."""
    results, metrics = Results(), SWARM_METRICS | CROWD_METRICS
    for round_number in range(1, rounds + 1):
        for case in every:
            where = f"{round_number}/{rounds} {case.subject}"
            try:
                found = asyncio.run(case.take())
            except (ExceptionGroup, FlannelError, OSError, RuntimeError) as error:
                results.failures.append(f"{where}: {' '.join(str(error).split())[:LONGEST_CAUSE]}")
                say(f"{where}: FAILED, {error}")
            else:
                results.add(round_number, case.subject, found)
                shown = (f"{metric} {number(value)} {metrics[metric].unit}".strip() for metric, value in found.items())
                say(f"{where}: {', '.join(shown)}")
    return results


def run(given: argparse.Namespace) -> ScaleReport:
    """Measure everything."""
    every = cases(given)
    arguments = f" ARGS={shlex.quote(shlex.join(sys.argv[1:]))}" if sys.argv[1:] else ""
    known = facts(f"make bench-scale{arguments}", first_line("etcd", "--version"))
    load = os.getloadavg()[0]
    began, date = time.monotonic(), datetime.now(UTC)
    results = measure(every, given.rounds)
    minutes = (time.monotonic() - began) / 60
    known |= {
        "date": f"{date:%Y-%m-%d %H:%M} UTC, it took {minutes:.0f} minutes",
        "effort": f"{given.rounds} rounds; {given.quiet:g} s without changes",
        "load before": f"{load:.2f}",
    }
    crowds = [case.subject for case in every if "watchers" in case.subject]
    return ScaleReport(results, list(NAMES.values()), given.hosts, crowds, known)


def say(text: str) -> None:
    """Print it now, also into a pipe."""
    print(text, flush=True)


def main() -> None:
    """Measure, print, write."""
    given = arguments()
    check()
    logging.disable()  # each host would log each outage
    report = run(given)
    report.write(given.output)
    print(f"\n{report.text()}\n\nWritten: {given.output}")
    if report.results.failures:
        raise SystemExit(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("Stopped.") from None
