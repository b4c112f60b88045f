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


def test_a_failure_is_tried_again_and_logged_once_for_each_cause(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "later"
    path = directory / "ready"
    file = ReadyFile(path)
    file.set(True)
    file.set(True)
    assert caplog.messages == [f"Cannot write {path}: No such file or directory"]
    directory.mkdir()
    file.set(True)
    assert path.exists()
    path.unlink()
    path.mkdir()  # which no unlink removes
    file.set(False)
    file.set(False)
    assert caplog.messages[1:] == [f"Cannot remove {path}: Is a directory"]
    path.rmdir()
    path.touch()
    file.set(False)
    assert not path.exists()


def test_a_file_of_an_earlier_run_that_stays_is_removed_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ready"
    path.mkdir()
    file = ReadyFile(path)
    assert caplog.messages == [f"Cannot remove {path}: Is a directory"]
    path.rmdir()
    path.touch()
    file.set(False)
    assert not path.exists()
