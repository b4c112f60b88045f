"""What `make bench-scale` makes of what it measures."""

from __future__ import annotations

import asyncio
import math
import re
from pathlib import Path

import pytest
from benchmark.results import Results
from benchmark.scale.growth import growth, slope
from benchmark.scale.meter import Usage, connection_bytes
from benchmark.scale.report import CROWD_METRICS, SWARM_METRICS, ScaleReport, subject
from benchmark.scale.swarm import Tally
from lab.etcd_metrics import EtcdWork, calls, total

METRICS = {
    "process_cpu_seconds_total": 1.25,
    "process_resident_memory_bytes": 3e7,
    'etcd_http_received_total{method="GET"}': 7.0,
    'etcd_http_received_total{method="PUT"}': 3.0,
    'etcd_http_received_totals{method="PUT"}': 1000.0,
    'grpc_server_msg_received_total{grpc_method="Range",grpc_service="etcdserverpb.KV"}': 2.0,
    'grpc_server_msg_received_total{grpc_method="Watch",grpc_service="etcdserverpb.Watch"}': 4.0,
    "etcd_network_client_grpc_received_bytes_total": 100.0,
    "etcd_network_client_grpc_sent_bytes_total": 900.0,
}
# Shortened output of `ss -Htinp state established`.
LISTING = """\
0      0      127.0.0.1:50840 127.0.0.1:2379 users:(("python",pid=17,fd=3))
\t bbr rto:204 bytes_sent:100 bytes_retrans:7 bytes_acked:101 bytes_received:20 segs_out:22
0      0      127.0.0.1:50842 127.0.0.1:2379 users:(("etcd",pid=16,fd=9))
\t bbr rto:204 bytes_sent:1000 bytes_acked:1001 bytes_received:2000 segs_out:22
0      0      127.0.0.1:50844 127.0.0.1:2379 users:(("python",pid=17,fd=4))
\t bbr rto:204 bytes_acked:1 segs_out:22
0      0      127.0.0.1:50846 127.0.0.1:2379 users:(("python",pid=171,fd=4))
\t bbr rto:204 bytes_sent:5000 segs_out:22
"""


@pytest.mark.parametrize(("factor", "exponent"), [(3.0, 0.0), (0.02, 1.0), (1e-4, 2.0), (5.0, -0.5)])
def test_a_power_law_is_found(factor: float, exponent: float) -> None:
    found = growth({hosts: factor * hosts**exponent for hosts in (10, 100, 300)})
    assert found is not None
    assert found.exponent == pytest.approx(exponent, abs=1e-9)
    assert found.at(10_000) == pytest.approx(factor * 10_000**exponent)
    assert found.fit == pytest.approx(1)


def test_the_fit_is_one_of_least_squares_in_log_log() -> None:
    found = growth({1: 1, 10: 100, 100: 100})  # in log-log the points (0, 0), (1, 2), (2, 2)
    assert found is not None
    assert found.exponent == pytest.approx(1)
    assert found.at(1) == pytest.approx(10 ** (1 / 3))
    assert found.fit == pytest.approx(0.75)


def test_the_slope_is_that_between_the_two_largest_numbers() -> None:
    assert slope({300: 50, 10: 1, 100: 10}) == pytest.approx(0.2)


@pytest.mark.parametrize("figures", [{}, {10: 1.0}, {10: 1.0, 100: 0.0}])
def test_nothing_is_fitted_to_too_few_figures_or_to_zero(figures: dict[int, float]) -> None:
    assert growth(figures) is None


def test_the_sum_of_a_metric_is_over_its_labels() -> None:
    assert total(METRICS, "etcd_http_received_total") == 10
    assert total(METRICS, "no_such_metric") == 0


def test_the_calls_of_etcd_are_those_of_its_own_services() -> None:
    """Behind the gateway, gRPC's health service has a method Watch as well."""
    names = {"etcdserverpb.KV": "Range", "etcdserverpb.Watch": "Watch", "grpc.health.v1.Health": "Watch"}
    metrics = {
        f'grpc_server_started_total{{grpc_method="{method}",grpc_service="{service}",grpc_type="unary"}}': count
        for count, (service, method) in enumerate(names.items(), 1)
    }
    assert calls(metrics | METRICS) == {"Range": 1, "Watch": 2}


def test_the_work_of_etcd_is_read_from_its_metrics() -> None:
    assert EtcdWork.of(METRICS) == (16, 1000, 1.25, 30)


def test_the_bytes_of_a_connection_are_both_ways_and_of_one_process() -> None:
    assert connection_bytes(LISTING, 17) == {"127.0.0.1:50840": 120, "127.0.0.1:50844": 0}
    assert connection_bytes("", 17) == {}


def test_the_usage_between_two_moments() -> None:
    assert Usage(10, 4, 3, 100, 7).since(Usage(8, 1, 1, 40, 7)) == (2, 3, 2, 60, 0)


def test_a_tally_reaches_its_goal_when_the_last_host_knows() -> None:
    async def run() -> tuple[bool, float, int]:
        tally = Tally()
        waiting = asyncio.create_task(tally.reach(3, 10))
        await asyncio.sleep(0)
        tally.add(2, 5)
        await asyncio.sleep(0)
        was_done = waiting.done()
        tally.add(1, 1)
        return was_done, await waiting, tally.events

    was_done, reached, events = asyncio.run(run())
    assert not was_done
    assert reached > 0
    assert events == 6


def test_a_goal_that_is_reached_already_needs_no_event() -> None:
    assert asyncio.run(Tally().reach(0, 10)) > 0


def test_a_goal_that_is_not_reached_is_an_error_with_the_number() -> None:
    async def run() -> None:
        tally = Tally()
        tally.add(2, 2)
        await tally.reach(3, 0.01)

    with pytest.raises(TimeoutError, match="2 of 3 leases are known after 0 s"):
        asyncio.run(run())


def report() -> ScaleReport:
    results = Results()
    for count in (10, 100):
        results.add(1, subject("v2", count), {"start": 0.01 * count**2, "leave": 60.5})
        results.add(1, subject("v3", count), {"start": 0.2 * math.sqrt(count), "leave": 60.1})
    results.add(1, "v3, 30 watchers", {"crowd-known": 4})
    return ScaleReport(results, ["v2", "v3"], [10, 100], ["v3, 30 watchers"], {"command": "make bench-scale"})


def cells(row: str) -> list[str]:
    found = re.search(rf"^\| {re.escape(row)} .*\|$", report().text(), re.MULTILINE)
    assert found, row
    return [cell.strip() for cell in found[0].split("|")[2:-1]]


def test_the_report_has_the_figures_of_each_number_of_hosts() -> None:
    assert cells(f"{SWARM_METRICS['leave'].label}, s") == ["60.5 [60.5–60.5]"] * 2 + ["60.1 [60.1–60.1]"] * 2
    assert cells(f"{CROWD_METRICS['crowd-known'].label}, s") == ["4 [4–4]"]


def test_the_report_has_the_fits() -> None:
    growths = report().text().partition("Fitted by")[2]
    [row] = [line for line in growths.splitlines() if SWARM_METRICS["start"].label in line]
    shown = [cell.strip() for cell in row.split("|")[2:-1]]
    assert shown == ["2.00", "1.00", "1,000,000", "100,000,000", "1.1", "0.50", "1.00", "20", "63.2", "0.0152"]
    assert SWARM_METRICS["leave"].label not in growths


def test_the_report_replaces_its_own_section_only(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text("# Title\n\n<!-- begin: written by make bench -->\n\nx\n\n<!-- end: written by make bench -->\n")
    report().write(page)
    page.write_text(f"{page.read_text()}\n## Later\n")
    report().write(page)
    text = page.read_text()
    assert text.startswith("# Title\n\n<!-- begin: written by make bench -->\n\nx\n\n")
    assert text.endswith("<!-- end: written by make bench-scale -->\n\n## Later\n")
    assert text.count("- command: make bench-scale") == 1
