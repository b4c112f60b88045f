"""Every test in this directory needs root."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from lab import Host, Lab
from support.lab_fixtures import api, lab, make_lab, pytest_runtest_makereport, root, shared_lab

__all__ = ["api", "lab", "make_lab", "pytest_runtest_makereport", "root", "shared_lab"]


@pytest.fixture(scope="session", autouse=True)
def _root(root: None) -> None:
    """Require root, also for tests that create their labs themselves."""


@pytest.fixture
def lone(make_lab: Callable[..., Lab]) -> Host:
    """Return the only host of a lab with a network config."""
    lab = make_lab(hosts=1)
    lab.put_config()
    return lab.hosts[0]
