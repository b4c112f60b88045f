"""Every test in this directory needs root, a Debian with apt, and minutes."""

from __future__ import annotations

from support.lab_fixtures import pytest_runtest_makereport, root

__all__ = ["pytest_runtest_makereport", "root"]
