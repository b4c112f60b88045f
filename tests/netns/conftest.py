"""Every test in here needs root."""

from __future__ import annotations

import pytest
from lab_fixtures import lab, make_lab, pytest_runtest_makereport, root

__all__ = ["lab", "make_lab", "pytest_runtest_makereport", "root"]


@pytest.fixture(scope="session", autouse=True)
def _root(root: None) -> None:
    """Also for tests that make their labs themselves."""
