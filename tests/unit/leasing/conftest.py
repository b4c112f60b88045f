"""Fixtures of all lease tests, each of which runs over both schemas."""

from __future__ import annotations

import logging

import pytest
from support.lease_world import World

from flannelpy.registry.base import Schema


@pytest.fixture(autouse=True)
def _everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="flannelpy")


@pytest.fixture(autouse=True, params=[Schema.V2, Schema.V3], ids=["v2", "v3"])
def schema(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Schema:
    """Return the schema of the fake store."""
    chosen: Schema = request.param
    monkeypatch.setattr(World, "schema", chosen)
    return chosen
