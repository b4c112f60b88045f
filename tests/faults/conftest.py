"""Tests with a lab need root; the other tests do not."""

from __future__ import annotations

from support.lab_fixtures import api, make_lab, pytest_runtest_makereport, root, shared_lab

__all__ = ["api", "make_lab", "pytest_runtest_makereport", "root", "shared_lab"]
