"""Measure flannelpy in network namespaces, next to socat, the kernel's VXLAN and no overlay: ``make bench``.

All is measured in rounds, and within a round each measurement of all contenders one right after the other, so that a
machine that slows down slows all of them.  Nothing is measured twice because of its outcome.

Exit code 1: a bar was missed (--quick: does not count), or something could not be measured.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from benchmark.bars import missed
from benchmark.contenders import NAMES, Rack, measured_in_full
from benchmark.control import Control, lease_counts
from benchmark.data_path import DataPath, Effort, Measurement, plain_measurements, wire_measurements
from benchmark.report import Report, facts, traffic_programs
from benchmark.results import METRICS, Results, number
from benchmark.starts import Starts
from benchmark.traffic import PINGS_PER_SECOND, MeasurementError
from benchmark.udp_rate import Trial
from benchmark.underlay import Underlay

PROGRAMS = ("etcd", "ethtool", "ip", "iperf3", "ping", "socat")
PROJECT = Path(__file__).parents[2]
RETRANSMIT_SECONDS = 10
UDP_TRIALS = 14
LONGEST_CAUSE = 300  # characters
QUICK_EFFORT = Effort(seconds=1, stream_seconds=1, retransmit_seconds=1, pings=100, trials=1)
QUICK = "^(tcp-1|wire-tcp-1|udp-1400|rtt|rss|start-up|leases)"


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description="measure flannelpy next to socat, VXLAN and no overlay")
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured (%(default)s)")
    parser.add_argument("--seconds", type=int, default=2, help="how long most measurements last (%(default)s)")
    parser.add_argument("--only", metavar="PATTERN", default="", help="only measurements whose name has this in it")
    parser.add_argument(
        "--contenders", metavar="NAMES", default=",".join(NAMES), help="these, with commas (%(default)s)"
    )
    parser.add_argument("--interpreted", metavar="PYTHON", default=".venv-interpreted/bin/python",
                        help="that of an environment without compiled packet code (%(default)s)")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="one short round of some, to see whether it works")
    parser.add_argument("--output", type=Path, metavar="DIRECTORY",
                        help="where benchmarks.md, .svg and .json go (a complete run: docs, else build)")  # fmt: skip
    given = parser.parse_args()
    given.contenders = given.contenders.split(",")
    if unknown := set(given.contenders) - set(NAMES):
        parser.error(f"no such contender: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    complete = not (given.quick or given.only) and set(given.contenders) == set(NAMES)
    given.output = given.output or PROJECT / ("docs" if complete else "build")
    if given.quick:
        given.rounds, given.only = 1, given.only or QUICK
    return given


def check(given: argparse.Namespace) -> None:
    """Raise SystemExit at once if a program, a right or an interpreter is missing, instead of after minutes."""
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing:
        raise SystemExit(f"missing here: {', '.join(missing)}; make setup installs them")
    if os.geteuid() != 0:
        raise SystemExit("network namespaces need root: make bench asks sudo")
    if "interpreted" in given.contenders and not shutil.which(given.interpreted):
        raise SystemExit(
            f"no {given.interpreted}: make bench builds it, --interpreted names another, --contenders goes without"
        )


def measure(measurements: list[Measurement], rounds: int) -> Results:
    """Measure everything, round by round; a failure is printed and counted, and the other measurements continue."""
    results = Results()
    for round_number in range(1, rounds + 1):
        for measurement in measurements:
            for subject in measurement.subjects:
                where = f"{round_number}/{rounds} {measurement.name} {subject}"
                try:
                    found = measurement.take(subject)
                except (MeasurementError, OSError, RuntimeError, subprocess.SubprocessError) as error:
                    results.failures.append(f"{where}: {' '.join(str(error).split())[:LONGEST_CAUSE]}")
                    say(f"{where}: FAILED, {error}")
                else:
                    results.add(round_number, subject, found)
                    shown = (f"{metric} {number(value)} {METRICS[metric].unit}" for metric, value in found.items())
                    say(f"{where}: {', '.join(shown)}")
    return results


def run(given: argparse.Namespace) -> Report:
    """Build the labs, measure, take them down."""
    effort = QUICK_EFFORT if given.quick else full_effort(given.seconds)
    counts = lease_counts(100 if given.quick else 10_000)
    command = f"make bench ARGS={shlex.quote(shlex.join(sys.argv[1:]))}" if sys.argv[1:] else "make bench"
    known = facts(command, traffic_programs())
    began, date = time.monotonic(), datetime.now(UTC)
    trials: list[Trial] = []
    every = [*data_paths(given, effort, trials), *Starts().measurements(given.contenders)]
    control = Control(counts, given.interpreted, effort, "flannelpy-kernel" in given.contenders)
    every += control.measurements(given.contenders)
    chosen = [each for each in every if each.subjects and re.search(given.only, each.name)]
    with ExitStack() as cleanup:
        for site in dict.fromkeys(each.site for each in chosen):
            site.build(cleanup)
        results = measure(chosen, given.rounds)
    minutes = (time.monotonic() - began) / 60
    known |= {
        "date": f"{date:%Y-%m-%d %H:%M} UTC, it took {minutes:.0f} minutes",
        "effort": f"{given.rounds} rounds; {effort.seconds} s for most, the single stream {effort.stream_seconds} s",
    }
    return Report(results, given.contenders, list(map(str, counts)), known, trials)


def full_effort(seconds: int) -> Effort:
    """Return that of a run in which most things take so long."""
    return Effort(seconds, 2 * seconds, RETRANSMIT_SECONDS, seconds * PINGS_PER_SECOND, UDP_TRIALS)


def data_paths(given: argparse.Namespace, effort: Effort, trials: list[Trial]) -> list[Measurement]:
    """Return what is measured about packets; ``trials`` gets those of UDP."""
    plain = Rack(given.contenders, given.interpreted)
    jumbo = Rack(measured_in_full(given.contenders), given.interpreted, mtu=9000)
    wire = Rack(measured_in_full(given.contenders), given.interpreted, underlay=Underlay.WIRE)
    return [
        *plain_measurements(
            DataPath(plain, effort, trials), DataPath(jumbo, effort, trials, "mtu-9000-"), given.contenders
        ),
        *wire_measurements(DataPath(wire, effort, trials, "wire-"), given.contenders),
    ]


def say(text: str) -> None:
    """Print it now, also into a pipe."""
    print(text, flush=True)


def main() -> None:
    """Measure, print, write, judge."""
    given = arguments()
    check(given)
    report = run(given)
    report.write(given.output)
    print(f"\n{report.text()}\n\nWritten: {given.output}/benchmarks.md, .svg, .json")
    if report.results.failures or (missed(report.results) and not given.quick):
        raise SystemExit(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("Stopped; nothing is left behind.") from None
