"""What `make bench` makes of what it measures."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from benchmark.contenders import BACKENDS, NAMES, Rack
from benchmark.control import Control
from benchmark.data_path import DataPath, Effort, Trial, highest_rate
from benchmark.figure import draw
from benchmark.report import Report
from benchmark.results import BARS, Results, number
from benchmark.traffic import MeasurementError, Udp

BENCH = (sys.executable, "-P", "-m", "benchmark")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "scripts")}


def results() -> Results:
    found = Results()
    for round_number, (ours, theirs) in enumerate([(8, 1), (20, 1), (36, 3), (9, 0.5), (10, 1)]):
        found.add(round_number, "flannelpy", {"tcp-1": ours, "retransmits": 0})
        found.add(round_number, "socat", {"tcp-1": theirs})
    return found


def report(found: Results) -> Report:
    trials = [Trial("socat", 64, 1000, Udp(1000, 990, 0.01)), Trial("veth", 64, 2000, Udp(1500, 1500, 0))]
    return Report(found, ["flannelpy", "socat"], ["10"], {"kernel": "6.1"}, trials)


class Link:
    """Loses what exceeds its capacity, and remembers what it was asked for."""

    def __init__(self, capacity: float, sender: float = 1e9) -> None:
        self.capacity, self.sender = capacity, sender
        self.asked: list[float] = []

    def attempt(self, rate: float) -> Udp:
        self.asked.append(rate)
        offered = min(rate, self.sender)
        received = min(offered, self.capacity)
        return Udp(offered, received, 1 - received / offered)


@pytest.mark.parametrize("capacity", [1500, 9_999, 10_000, 10_001, 123_456, 5_000_000])
@pytest.mark.parametrize("start", [10_000, 100_000])
def test_the_highest_rate_is_found_to_ten_percent(capacity: float, start: float) -> None:
    best = highest_rate(Link(capacity).attempt, start, 20)
    assert capacity / 1.1 < best.offered <= capacity / 0.99


def test_a_sender_at_its_limit_ends_the_search() -> None:
    link = Link(1_000_000, sender=50_000)
    assert highest_rate(link.attempt, 10_000, 20).offered == 50_000
    assert link.asked == [10_000, 20_000, 40_000, 80_000]


def test_one_trial_is_enough_when_it_passes() -> None:
    link = Link(30_000)
    assert highest_rate(link.attempt, 40_000, 1).offered == 20_000
    assert link.asked == [40_000, 20_000]


def test_a_contender_that_loses_everything_has_no_rate() -> None:
    with pytest.raises(MeasurementError, match="even at"):
        highest_rate(Link(0).attempt, 10_000, 20)


def test_ratios_are_taken_within_a_round() -> None:
    spread = results().spread("tcp-1", "flannelpy", "socat")
    assert spread == (12, 8, 20)
    assert str(spread) == "12 [8–20]"


def test_a_round_in_which_one_of_both_failed_has_no_ratio() -> None:
    found = results()
    found.add(5, "flannelpy", {"tcp-1": 1000})
    assert found.spread("tcp-1", "flannelpy", "socat") == (12, 8, 20)
    assert found.spread("tcp-1", "vxlan", "socat") is None


def test_bars_are_judged_by_the_median() -> None:
    stream, retransmits = BARS[0], next(bar for bar in BARS if bar.metric == "retransmits")
    assert (stream.met(10, stream.bar), stream.met(9.9, stream.bar)) == (True, False)
    assert (retransmits.met(49, retransmits.bar), retransmits.met(50, retransmits.bar)) == (True, False)
    assert results().missed() == []
    poor = Results({"tcp-1": {"flannelpy": {1: 9}, "socat": {1: 1}}})
    assert poor.missed() == [stream]


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (0.01234, "0.0123"), (12.345, "12.3"), (12345.6, "12,346")])
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_what_a_person_wrote_in_the_page_stays(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    report(results()).write(tmp_path)
    page.write_text(f"# Title\n\n{page.read_text()}\n## Why\n")
    failed = results()
    failed.failures.append("1/5 tcp-1 veth: iperf3 failed")
    report(failed).write(tmp_path)
    text = page.read_text()
    assert text.startswith("# Title\n\n<!-- begin")
    assert text.endswith("-->\n\n## Why\n")
    assert text.count("| TCP, 1 stream, against socat ") == 1
    assert re.search(r"\| 12 \[8–20\] × +\| ≥ 10× +\| met +\| ≥ 20× +\| \*\*missed\*\*", text)
    assert "iperf3 failed" in text


def test_the_json_has_every_round_and_every_trial(tmp_path: Path) -> None:
    report(results()).write(tmp_path)
    data = json.loads((tmp_path / "benchmarks.json").read_text())
    assert data["values"]["tcp-1"] == {"flannelpy": [8, 20, 36, 9, 10], "socat": [1, 1, 3, 0.5, 1]}
    assert data["metrics"]["tcp-1"]["unit"] == "Gbit/s"
    assert len(data["udp"]) == 2
    assert data["udp"][0] == {
        "subject": "socat",
        "size": 64,
        "asked": 1000,
        "offered": 1000,
        "received": 990,
        "loss": 0.01,
    }


def test_the_report_names_where_the_sender_was_the_limit() -> None:
    assert "its rate stands. That was so for veth 64 B (1×).\n" in report(results()).text()


def test_the_longest_bar_is_the_one_of_the_highest_median() -> None:
    svg = ET.fromstring(draw(results(), ["flannelpy", "socat", "veth"]))
    space = "{http://www.w3.org/2000/svg}"
    _background, ours, theirs = svg.iter(f"{space}rect")
    assert float(ours.attrib["width"]) == pytest.approx(10 * float(theirs.attrib["width"]), rel=0.02)


def test_what_was_not_measured_of_a_contender_is_left_out() -> None:
    found = results()
    found.add(1, "flannelpy-vxlan", {"tcp-1": 20, "machine-cpu": 0.1})
    subjects = ["flannelpy", "socat", "flannelpy-vxlan"]
    row = re.search(r"^\| TCP, 1 stream: retransmits.*", Report(found, subjects, [], {}, []).text(), re.MULTILINE)
    assert row
    assert [cell.strip() for cell in row[0].split("|")[2:-1]] == ["0 [0–0]", "–", "–"]
    assert draw(found, subjects).count(">flannelpy-vxlan<") == 1


def test_what_flannelpy_makes_is_measured_right_after_what_is_made_by_hand() -> None:
    for contender, by_hand in (("flannelpy-vxlan", "vxlan"), ("flannelpy-host-gw", "veth")):
        assert NAMES[NAMES.index(by_hand) + 1] == contender
        assert {bar.metric for bar in BARS if (bar.subject, bar.against) == (contender, by_hand)} == {"tcp-1", "tcp-8"}


def test_what_is_measured_of_the_kernels_own_ways() -> None:
    rack, effort = Rack([], "", 1500), Effort(1, 1, 1, 1)
    every = DataPath(rack, rack, effort).measurements(NAMES) + Control((10, 100), "", effort).measurements(NAMES)
    for contender in BACKENDS:
        names = {measurement.name for measurement in every if contender in measurement.subjects}
        assert names == {"tcp-1", "tcp-8", "rtt-idle", "rss", "start-up"}


def test_a_missing_program_is_reported_at_once() -> None:
    env = {**ENVIRONMENT, "PATH": "/nowhere"}
    done = subprocess.run(BENCH, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "missing here: etcd, ip, iperf3, ping, socat; make setup installs them\n"


def test_an_unknown_contender_is_an_error() -> None:
    done = subprocess.run([*BENCH, "--contenders=ipip"], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no such contender: ipip" in done.stderr
