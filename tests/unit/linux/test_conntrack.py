"""How many connections the kernel tracks."""

from __future__ import annotations

from pathlib import Path

import pytest

from flannelpy.linux import conntrack


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(conntrack, "_SETTINGS", tmp_path)
    return tmp_path


def test_a_kernel_that_tracks_connections_tells_how_many_and_the_limit(settings: Path) -> None:
    (settings / "nf_conntrack_count").write_text("17\n")
    (settings / "nf_conntrack_max").write_text("262144\n")
    assert conntrack.usage() == (17, 262144)
    assert conntrack.is_in_use()


def test_without_conntrack_no_connection_is_tracked(settings: Path) -> None:
    assert conntrack.usage() == (0, 0)
    assert not conntrack.is_in_use()
