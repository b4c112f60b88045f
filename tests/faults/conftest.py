"""Tests with a lab need root; the other tests do not."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.etcd_faults import issue_certificates
from support.lab_fixtures import api, make_lab, pytest_runtest_makereport, root, shared_lab

__all__ = ["api", "make_lab", "pytest_runtest_makereport", "root", "shared_lab"]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the certificates of ``issue_certificates``."""
    directory = tmp_path_factory.mktemp("pki")
    issue_certificates(directory)
    return directory
