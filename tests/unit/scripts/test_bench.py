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
from benchmark.bars import BARS, KERNEL_BARS, losses, missed
from benchmark.contenders import BACKENDS, NAMES, Rack
from benchmark.control import Control, lease
from benchmark.data_path import DataPath, Effort, plain_measurements, wire_measurements
from benchmark.figure import draw
from benchmark.report import Report
from benchmark.results import METRICS, Results, number
from benchmark.traffic import MeasurementError, Tcp, Udp
from benchmark.udp_rate import Trial, highest_rate

from flannelpy.subnet.lease import LeaseAttrs

BENCH = (sys.executable, "-P", "-m", "benchmark")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "scripts")}
FACTS = {"machine": "2 × Z80, 64 KB", "kernel": "6.1"}
KERNEL = "flannelpy-kernel"


def results() -> Results:
    found = Results()
    for round_number, (ours, theirs) in enumerate([(8, 1), (20, 1), (36, 3), (9, 0.5), (10, 1)]):
        found.add(round_number, "flannelpy", {"tcp-1": ours, "retransmits": 0})
        found.add(round_number, "socat", {"tcp-1": theirs})
    return found


def report(found: Results) -> Report:
    trials = [
        Trial("socat", "plain", 64, 1000, Udp(1000, 990, 0.01)),
        Trial("vxlan", "wire", 64, 2000, Udp(1500, 1500, 0)),
    ]
    return Report(found, ["flannelpy", "socat"], ["10"], FACTS, trials)


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
@pytest.mark.parametrize("near", [None, 10_000, 100_000])
def test_the_highest_rate_is_found_to_ten_percent(capacity: float, near: float | None) -> None:
    best = highest_rate(Link(capacity).attempt, 20, near)
    assert capacity / 1.1 < best.offered <= capacity / 0.99


@pytest.mark.parametrize("capacity", [9_200, 10_000, 10_800])
def test_a_search_near_the_rate_takes_three_trials(capacity: float) -> None:
    link = Link(capacity)
    highest_rate(link.attempt, 20, 10_000)
    assert len(link.asked) == 3


def test_a_sender_at_its_limit_ends_the_search() -> None:
    link = Link(1_000_000, sender=150_000)
    assert highest_rate(link.attempt, 20).offered == 150_000
    assert link.asked == [40_000, 80_000, 160_000]


def test_one_trial_is_enough_when_it_passes() -> None:
    link = Link(30_000)
    assert highest_rate(link.attempt, 1).offered == 20_000
    assert link.asked == [40_000, 20_000]


def test_a_contender_that_loses_everything_has_no_rate() -> None:
    with pytest.raises(MeasurementError, match="even at"):
        highest_rate(Link(0).attempt, 20)


def test_the_seconds_of_a_stream() -> None:
    assert Tcp(goodput=2, data=8, retransmits=0).seconds == 4


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
    assert missed(results()) == []
    poor = Results({"tcp-1": {"flannelpy": {1: 9}, "socat": {1: 1}}})
    assert missed(poor) == [stream]


def test_every_bar_is_about_a_metric_and_subjects_that_exist() -> None:
    for bar in BARS + KERNEL_BARS:
        subjects = {"10", "10000"} if bar.metric.startswith("leases") else {*NAMES, ""}
        assert bar.metric in METRICS
        assert {bar.subject, bar.against} <= subjects


def test_the_fast_path_has_bars_on_both_underlays() -> None:
    found = results()
    for prefix, gigabits in (("", 5), ("wire-", 8.9)):
        found.add(0, KERNEL, {f"{prefix}tcp-1": gigabits, f"{prefix}rtt-idle-p50": 13.1, f"{prefix}daemon-load": 1})
        found.add(0, "vxlan", {f"{prefix}tcp-1": 10, f"{prefix}rtt-idle-p50": 10})
    assert [bar.label for bar in missed(found)] == [
        "Wire: TCP, 1 stream, against kernel VXLAN",
        "Wire: RTT p50, idle, against kernel VXLAN",
        "Plain: RTT p50, idle, against kernel VXLAN",
    ]
    text = report(found).text()
    assert re.search(r"\| Wire: TCP, 1 stream, .* \| 0.89 \[0.89–0.89\] × +\| ≥ 0.9× +\| \*\*missed\*\* ", text)
    assert re.search(r"\| Plain: TCP, 1 stream, .* \| 0.5 \[0.5–0.5\] × +\| ≥ 0.5× +\| met +\| – +\| +\|", text)
    assert re.search(r"\| Plain: the busier daemon .* \| 1 \[1–1\] +\| ≤ 1 +\| met +\| ≤ 0 +\| \*\*missed", text)


def test_the_report_says_where_the_fast_path_loses_against_the_loop_and_why() -> None:
    found = Results()
    for round_number, packets in enumerate((90, 80, 120)):
        found.add(round_number, "flannelpy", {"tcp-1": 5, "wire-udp-64": 100, "rtt-idle-p50": 100, "start-up": 0.2})
        found.add(round_number, KERNEL, {"tcp-1": 7, "wire-udp-64": packets, "rtt-idle-p50": 9, "start-up": 0.3})
    assert [loss.metric.label for loss in losses(found)] == [
        "From exec to the subnet file",
        "Wire: UDP, 64 B, loss < 1 %",
    ]
    text = report(found).text()
    assert re.search(
        r"""
On 2 × Z80, 64 KB, `-datapath=kernel` is worse than the loop in these figures:

- the daemon also searches .*:
  - From exec to the subnet file: 1\.5 \[1\.5–1\.5\] × the loop's figure, in every round
- the loop moves packets on another processor .*:
  - Wire: UDP, 64 B, loss < 1 %: 0\.9 \[0\.8–1\.2\] × the loop's figure, not in every round
""",
        text,
    )


def test_a_fast_path_that_loses_nowhere_has_no_such_list() -> None:
    assert "worse than the loop" not in report(results()).text()


def test_each_table_names_the_machine() -> None:
    found = results()
    found.add(0, KERNEL, {"wire-tcp-1": 5})
    found.add(0, "10", {"leases-routes": 1})
    heads = re.findall(r"\n\n\| (.*?) +\|", report(found).text())
    assert heads == [f"2 × Z80, 64 KB{of}" for of in ("", ": -datapath=kernel", ": plain", ": wire", ": leases")]
    assert ">2 × Z80, 64 KB</text>" in draw(found, NAMES, FACTS["machine"])


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
        "underlay": "plain",
        "size": 64,
        "asked": 1000,
        "offered": 1000,
        "received": 990,
        "loss": 0.01,
    }


def test_the_report_names_where_the_sender_was_the_limit() -> None:
    assert "its rate stands. That was so for wire vxlan 64 B (1×).\n" in report(results()).text()


def test_the_longest_bar_is_the_one_of_the_highest_median() -> None:
    svg = ET.fromstring(draw(results(), ["flannelpy", "socat", "veth"], ""))
    space = "{http://www.w3.org/2000/svg}"
    _background, ours, theirs = svg.iter(f"{space}rect")
    assert float(ours.attrib["width"]) == pytest.approx(10 * float(theirs.attrib["width"]), rel=0.02)


def test_what_was_not_measured_of_a_contender_is_left_out() -> None:
    found = results()
    found.add(1, "flannelpy-vxlan", {"tcp-1": 20, "machine-cpu": 0.1})
    subjects = ["flannelpy", "socat", "flannelpy-vxlan"]
    row = re.search(r"^\| TCP, 1 stream: retransmits.*", Report(found, subjects, [], FACTS, []).text(), re.MULTILINE)
    assert row
    assert [cell.strip() for cell in row[0].split("|")[2:-1]] == ["0 [0–0]", "–", "–"]
    assert draw(found, subjects, "").count(">flannelpy-vxlan<") == 1


def test_what_flannelpy_makes_is_measured_right_after_what_is_made_by_hand() -> None:
    for contender, by_hand in (("flannelpy-vxlan", "vxlan"), ("flannelpy-host-gw", "veth")):
        assert NAMES[NAMES.index(by_hand) + 1] == contender
        assert {bar.metric for bar in BARS if (bar.subject, bar.against) == (contender, by_hand)} == {"tcp-1", "tcp-8"}


def measured() -> dict[str, list[str]]:
    """Return the subjects of each measurement, by its name."""
    rack, effort = Rack([], ""), Effort(1, 1, 1, 1, 1)
    plain, jumbo, wire = (DataPath(rack, effort, [], prefix) for prefix in ("", "mtu-9000-", "wire-"))
    every = plain_measurements(plain, jumbo, NAMES) + wire_measurements(wire, NAMES)
    every += Control((10, 100), "", effort, with_kernel=True).measurements(NAMES)
    return {measurement.name: list(measurement.subjects) for measurement in every}


def test_what_is_measured_of_the_kernels_own_ways() -> None:
    for contender in BACKENDS:
        names = {name for name, subjects in measured().items() if contender in subjects}
        assert names == {"tcp-1", "tcp-8", "rtt-idle", "rss", "start-up"}


def test_what_a_bar_compares_is_measured_in_the_same_way() -> None:
    subjects = measured()
    for bar in BARS + KERNEL_BARS:
        if bar.against and not bar.metric.startswith("leases"):
            name = re.sub(r"machine-cpu|^cpu", "tcp-1", re.sub(r"-(p50|p99|goodput)$", "", bar.metric))
            assert {bar.subject, bar.against} <= set(subjects[name]), bar


def test_leases_of_hosts_that_do_not_exist_announce_the_kernel_where_it_is_measured() -> None:
    for in_kernel, prefix in ((False, "/leases-10/"), (True, "/kernel-leases-10/")):
        key, value = lease(10, 1, in_kernel=in_kernel)
        assert key == f"{prefix}subnets/11.1.1.0-24"
        assert LeaseAttrs.decode(value).in_kernel == in_kernel


def test_a_missing_program_is_reported_at_once() -> None:
    env = {**ENVIRONMENT, "PATH": "/nowhere"}
    done = subprocess.run(BENCH, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "missing here: etcd, ethtool, ip, iperf3, ping, socat; make setup installs them\n"


def test_an_unknown_contender_is_an_error() -> None:
    done = subprocess.run([*BENCH, "--contenders=ipip"], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no such contender: ipip" in done.stderr
