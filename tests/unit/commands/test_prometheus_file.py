"""The file of status -prometheus: whole, readable by others, and true also without a daemon."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from flannelpy import cli
from flannelpy.cli import status
from flannelpy.commands import prometheus_file
from flannelpy.control import client
from flannelpy.errors import DaemonUnavailable, HostError, UsageError
from flannelpy.report import DaemonReport, NetworkReport, NetworkState
from flannelpy.serving import wire

READY = DaemonReport((NetworkReport("", NetworkState.READY),), "1.0.0")


@pytest.mark.parametrize(("state", "code"), [(NetworkState.READY, 0), (NetworkState.STARTING, 1)])
def test_metrics_of_a_daemon(state: NetworkState, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = DaemonReport((NetworkReport("", state),), "1.0.0")
    monkeypatch.setattr(client, "fetch", lambda path, with_peers: wire.Answer(report, {}))
    file = tmp_path / "flannelpy.prom"
    file.write_text("old")
    assert prometheus_file.run(tmp_path / "control.sock", file) == code
    assert "flannelpy_up 1.0\n" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [file]


def test_without_a_daemon_the_file_has_that_and_the_exit_code_is_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "flannelpy.prom"
    with pytest.raises(SystemExit) as caught:
        cli.main(["status", f"-prometheus={file}", f"-subnet-file={tmp_path}/subnet.env"])
    assert caught.value.code == DaemonUnavailable.exit_code
    assert capsys.readouterr().err.count("\n") == 1
    assert [line for line in file.read_text().splitlines() if line[0] != "#"] == ["flannelpy_up 0.0"]


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        prometheus_file.write(tmp_path / "missing/flannelpy.prom", "text")
    assert (
        str(caught.value)
        == f"cannot write {tmp_path}/missing/flannelpy.prom: No such file or directory; see -prometheus"
    )
    assert not list(tmp_path.iterdir())


def make_device(path: Path) -> None:
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))  # a /dev/null


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def make_link(path: Path) -> None:
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, make_device, make_socket, make_link])
def test_what_is_no_regular_file_stays_and_no_daemon_is_asked(make: Callable[[Path], object], tmp_path: Path) -> None:
    """Root must not replace /dev/null."""
    place = tmp_path / "place"
    try:
        make(place)
    except PermissionError:  # only root may make a device
        assert make is make_device
        place = Path("/dev/null")
    before = place.lstat()
    with pytest.raises(HostError) as caught:
        prometheus_file.run(tmp_path / "control.sock", place)
    assert str(caught.value) == f"cannot write {place}: it exists and is not a regular file; see -prometheus"
    assert caught.value.exit_code == 1
    assert place.lstat() == before
    assert [path.name for path in tmp_path.iterdir()] in (["place"], [])


@pytest.mark.parametrize("name", ["..", "directory/.."])
def test_a_parent_directory_is_no_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(HostError, match="it exists and is not a regular file; see -prometheus"):
        prometheus_file.run(tmp_path / "control.sock", tmp_path / name)


@pytest.mark.parametrize("flag", ["prometheus", "subnet-file"])
def test_a_path_with_a_newline_is_one_line(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a\nroot: all is well"
    path.mkdir()
    with pytest.raises(SystemExit):
        cli.main(["status", f"-{flag}={path}{'/subnet.env' * (flag == 'subnet-file')}"])
    [line] = capsys.readouterr().err.splitlines()
    assert "a\\nroot: all is well" in line


@pytest.mark.parametrize("other", ["brief", "json"])
def test_it_prints_nothing(other: str) -> None:
    with pytest.raises(UsageError, match=f"-prometheus and -{other} exclude each other"):
        status.parse([f"-{other}", "-prometheus=/tmp/x.prom"])
