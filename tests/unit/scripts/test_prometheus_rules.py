"""The alert rules, by Debian's promtool: it accepts them, and each fires for the series in tests/support."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from lab import prometheus_packages

PROJECT = Path(__file__).parents[3]
RULES = PROJECT / "scripts/prometheus/flannelpy.rules.yml"
SERIES = PROJECT / "tests/support/flannelpy.rules.test.yml"
NAMES = re.findall(r"- alert: (\w+)", RULES.read_text())


@pytest.fixture(scope="module")
def promtool() -> Path:
    return prometheus_packages.unpack("debian12") / "usr/bin/promtool"


def checked(*argv: object, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in argv], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_rules(promtool: Path, tmp_path: Path) -> None:
    assert f"{len(NAMES)} rules found" in checked(promtool, "check", "rules", RULES, cwd=tmp_path)


def test_each_alert_fires_for_its_fault_and_not_for_a_healthy_host(promtool: Path, tmp_path: Path) -> None:
    shutil.copy(RULES, tmp_path)
    shutil.copy(SERIES, tmp_path)
    checked(promtool, "test", "rules", SERIES.name, cwd=tmp_path)
    assert set(re.findall(r"alertname: (\w+)\n", SERIES.read_text())) == set(NAMES)


def test_the_manual_lists_the_alerts() -> None:
    listed = re.findall(r"^\| `(Flannelpy\w+)`", (PROJECT / "docs/monitoring.md").read_text(), re.MULTILINE)
    assert listed == NAMES
