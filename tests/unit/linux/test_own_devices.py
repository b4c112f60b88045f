"""The alias by which a daemon recognises its devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from flannelpy.linux.own_devices import own_alias


def test_a_directory_has_one_alias_in_any_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it matter whether the subnet file is a symbolic link, which the first write replaces."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    expected = own_alias(tmp_path / "real/subnet.env")
    monkeypatch.chdir(tmp_path)
    for spelling in ("real/subnet.env", "link/subnet.env", "link/../real/subnet.env"):
        assert own_alias(Path(spelling)) == expected
    (tmp_path / "real/subnet.env").symlink_to("elsewhere")
    assert own_alias(tmp_path / "real/subnet.env") == expected
