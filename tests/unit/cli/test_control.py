"""The command lines of the commands that ask a running daemon: which daemon, what, and the errors for wrong ones."""

from __future__ import annotations

import os
import re
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from flannelpy import cli
from flannelpy.cli import log_level, status
from flannelpy.cli.flags import Flag
from flannelpy.commands import cleanup
from flannelpy.commands.status import Form
from flannelpy.control import client
from flannelpy.errors import DaemonUnavailable, UsageError
from flannelpy.options import Options
from flannelpy.report import DaemonReport, NetworkReport, NetworkState, PeerReport
from flannelpy.serving import wire

DEFAULT = Path("/run/flannel/control.sock")
PEER = PeerReport(IPv4Network("11.0.101.0/24"), IPv4Address("172.17.8.102"), 1.0)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("FLANNELD_"):
            monkeypatch.delenv(name)


def exit_of(*argv: str) -> object:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    return caught.value.code


@pytest.mark.parametrize(
    ("argv", "variables", "socket"),
    [
        ([], {}, DEFAULT),
        (["-subnet-file=/run/flannel/subnet.env"], {}, DEFAULT),
        (["--subnet-file", "/tmp/blue.env"], {}, Path("/tmp/blue.env.sock")),
        (["-subnet-dir=/run/flannel/networks"], {}, Path("/run/flannel/networks/control.sock")),
        ([], {"FLANNELD_SUBNET_FILE": "/tmp/subnet.env"}, Path("/tmp/control.sock")),
        ([], {"FLANNELD_SUBNET_DIR": "/tmp"}, Path("/tmp/control.sock")),
        ([], {"FLANNELD_SUBNET_DIR": "/tmp", "FLANNELD_SUBNET_FILE": "/x/subnet.env"}, Path("/tmp/control.sock")),
        (["-subnet-file=/x/subnet.env"], {"FLANNELD_SUBNET_DIR": "/tmp"}, Path("/x/control.sock")),
        (["-subnet-dir=/x"], {"FLANNELD_SUBNET_FILE": "/tmp/subnet.env"}, Path("/x/control.sock")),
    ],
)
def test_which_daemon(
    argv: list[str], variables: dict[str, str], socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert status.parse(argv) == (socket, Form.FULL)
    assert log_level.parse(["1", *argv]) == (socket, 1)


@pytest.mark.parametrize(
    ("argv", "form"),
    [
        (["-brief"], Form.BRIEF),
        (["--brief"], Form.BRIEF),
        (["-json"], Form.JSON),
        (["--json=true", "-brief=false"], Form.JSON),
    ],
)
def test_what_status_prints(argv: list[str], form: Form) -> None:
    assert status.parse(argv) == (DEFAULT, form)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["status", "-brief", "-json"], "-brief and -json exclude each other: the JSON document has the peers"),
        (["status", "now"], "extra argument 'now': only flags are expected, -help lists them"),
        (["status", "-jason"], "unknown flag -jason: did you mean -json?"),
        (["status", "-iface=eth1"], "unknown flag -iface: -help lists all flags"),
        (["status", "-json=2"], "bad value '2' for -json: must be true or false"),
        (["status", "-subnet-file="], "bad value '' for -subnet-file: must not be empty"),
        (
            ["status", "-subnet-file=/a", "-subnet-dir=/b"],
            "-subnet-file and -subnet-dir name two daemons: give -subnet-dir for one with -networks",
        ),
        (["log-level"], "log-level needs a level as its first word: flannelpy log-level 1"),
        (["log-level", "-subnet-file=/a"], "log-level needs a level as its first word: flannelpy log-level 1"),
        (["log-level", "-subnet-file=/a", "1"], "extra argument '1': only flags are expected, -help lists them"),
        (["log-level", "high"], "bad level 'high' for log-level: must be a whole number from 0 to 2147483647"),
        *(
            (
                ["log-level", text],
                f"bad level {text!r} for log-level: must be a whole number from 0 to 2147483647",
            )
            for text in ("2147483648", "9" * 4200, "1" + "0" * 4400)
        ),
        (["log-level", "-1"], "unknown flag -1: -help lists all flags"),
        (["log-level", "1", "2"], "extra argument '2': only flags are expected, -help lists them"),
        (["cleanup", "now"], "extra argument 'now': only flags are expected, -help lists them"),
    ],
)
def test_refusals(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of(*argv) == 2
    assert capsys.readouterr() == ("", f"flannelpy: {message}\n")


@pytest.mark.parametrize(
    ("name", "flags"),
    [("status", status.COMMAND.flags), ("log-level", log_level.COMMAND.flags)],
    ids=["status", "log-level"],
)
def test_help_lists_the_flags(name: str, flags: tuple[Flag, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of(name, "-help") == 0
    text = capsys.readouterr().err
    assert text.startswith(f"Usage: flannelpy {name} ")
    assert set(re.findall(r"^  -([a-z0-9-]+)", text, re.MULTILINE)) == {flag.flag for flag in flags}
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("argv", [["stats"], ["-v=1", "status"], ["--", "status"], ["-cleanup", "cleanup"]])
def test_any_other_word_or_place_is_rejected_by_the_daemon_as_ever(argv: list[str]) -> None:
    with pytest.raises(UsageError, match=f"^extra argument '{argv[-1]}': "):
        cli.parse(argv)
    assert exit_of(*argv) == 2


class FakeDaemon:
    """Answers in place of the client."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.report = DaemonReport((NetworkReport("", NetworkState.READY),), "0.3.0")
        self.asked: list[tuple[object, ...]] = []
        self.failure: DaemonUnavailable | None = None
        monkeypatch.setattr(client, "fetch", self._fetch)
        monkeypatch.setattr(client, "set_log_level", self._set_log_level)

    def _fetch(self, path: Path, *, with_peers: bool) -> wire.Answer:
        if self.failure:
            raise self.failure
        self.asked.append((path, with_peers))
        return wire.Answer(self.report, {"": [PEER]} if with_peers else {})

    def _set_log_level(self, path: Path, level: int) -> None:
        self.asked.append((path, level))


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> FakeDaemon:
    return FakeDaemon(monkeypatch)


def test_status_is_0_if_all_is_well_and_1_otherwise(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of("status") == 0
    assert "11.0.101.0/24" in capsys.readouterr().out
    assert exit_of("status", "-brief") == 0
    assert "11.0.101.0/24" not in capsys.readouterr().out
    assert daemon.asked == [(DEFAULT, True), (DEFAULT, False)]
    for state in set(NetworkState) - {NetworkState.READY}:
        daemon.report = DaemonReport((NetworkReport("", NetworkState.READY), NetworkReport("b", state, "a problem")))
        assert exit_of("status") == 1
        assert exit_of("status", "-json") == 1


def test_status_is_3_and_one_line_if_no_daemon_answers(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.failure = DaemonUnavailable("no daemon at /x: start flannelpy")
    assert exit_of("status", "-json") == 3
    assert capsys.readouterr() == ("", "flannelpy: no daemon at /x: start flannelpy\n")


def test_log_level_asks_the_daemon(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of("log-level", "2", "-subnet-dir=/x") == 0
    assert daemon.asked == [(Path("/x/control.sock"), 2)]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("argv", "releases"),
    [(["cleanup"], False), (["cleanup", "-release", "-subnet-file=/x"], True), (["-cleanup"], False)],
)
def test_cleanup_is_the_flag(argv: list[str], releases: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Options] = []

    def clean_up(options: Options) -> Any:
        seen.append(options)
        return 0

    monkeypatch.setattr(cleanup, "run", clean_up)
    assert exit_of(*argv) == 0
    [options] = seen
    assert (options.cleanup, options.release) == (True, releases)
