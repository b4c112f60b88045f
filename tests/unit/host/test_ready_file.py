"""The file that health checks look for."""

from __future__ import annotations

from pathlib import Path

import pytest

from flannelpy.host.ready_file import ReadyFile


def test_it_is_there_while_we_are_ready(tmp_path: Path) -> None:
    path = tmp_path / "ready"
    file = ReadyFile(path)
    assert not path.exists()
    for ready in (True, True, False, False, True):
        file.set(ready)
        assert path.exists() is ready
    file.close()
    assert not path.exists()


def test_one_of_an_earlier_run_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "ready"
    path.touch()
    ReadyFile(path)
    assert not path.exists()


def test_a_file_that_another_program_removed_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ready"
    file = ReadyFile(path)
    file.set(True)
    path.unlink()
    file.set(False)
    assert caplog.messages == []


def test_a_file_that_cannot_be_written_is_logged_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = ReadyFile(tmp_path / "missing" / "ready")
    file.set(True)
    file.close()
    assert caplog.messages == [f"Cannot write {tmp_path}/missing/ready: No such file or directory"]
