"""Fixtures of the tests of flannelpy.host."""

from __future__ import annotations

import pytest
from support.fakes_iptables import FakeTables

from flannelpy.linux import accept_local, conntrack


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> FakeTables:
    tables = FakeTables()
    tables.install(monkeypatch)
    monkeypatch.setattr(conntrack, "is_in_use", lambda: False)
    monkeypatch.setattr(accept_local, "is_enabled", lambda device: True)
    return tables
