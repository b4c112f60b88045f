"""Every test in this directory runs for minutes: make soak."""

from __future__ import annotations

from support.lab_fixtures import api, make_lab, pytest_runtest_makereport, root

__all__ = ["api", "make_lab", "pytest_runtest_makereport", "root"]
