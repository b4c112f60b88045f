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


@pytest.mark.parametrize("ready", [True, False])
def test_a_check_undoes_what_another_program_did(ready: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ready"
    file = ReadyFile(path)
    file.set(ready)
    file.check()
    assert caplog.messages == []
    if ready:
        path.unlink()
    else:
        path.touch()
    file.check()
    file.check()
    assert path.exists() is ready
    line = f"Restored {path}: it was missing" if ready else f"Removed {path}: the network is not ready"
    assert caplog.messages == [line]


def test_a_check_of_a_file_that_cannot_be_written_logs_the_failure_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "later/ready"
    path.parent.mkdir()
    file = ReadyFile(path)
    file.set(True)
    path.unlink()
    path.parent.rmdir()
    for _ in range(3):
        file.check()
        file.set(True)
    assert caplog.messages == [f"Cannot write {path}: No such file or directory"]
    path.parent.mkdir()
    file.set(True)
    assert path.exists()


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
