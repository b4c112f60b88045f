"""Fixtures of all lease tests."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def _everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="flannelpy")
