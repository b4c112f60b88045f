"""The command check asks the daemon by its control socket, and works without one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from flannelpy import cli
from flannelpy.check import chain
from flannelpy.check.codes import Code
from flannelpy.check.lines import Line, Link, ok
from flannelpy.check.observations import DaemonSeen
from flannelpy.check.verdicts import found
from flannelpy.commands import check
from flannelpy.control import client
from flannelpy.errors import DaemonUnavailable, FlannelError
from flannelpy.options import Options
from flannelpy.report import DaemonReport, NetworkReport, NetworkState
from flannelpy.serving import wire

ANSWER = wire.Answer(DaemonReport((NetworkReport("", NetworkState.READY),)), {"": []})


@pytest.fixture(autouse=True)
def log_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command silences the log of its process."""
    logger = logging.getLogger("flannelpy")
    monkeypatch.setattr(logger, "level", logger.level)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[DaemonSeen]:
    """What the chain was given; it finds nothing wrong."""
    seen: list[DaemonSeen] = []

    async def follow(_: Options, daemon: DaemonSeen) -> list[Line]:
        seen.append(daemon)
        return [ok(Link.INTERFACE, "eth1")]

    monkeypatch.setattr(chain, "follow", follow)
    return seen


def test_the_chain_has_what_the_daemon_answers(given: list[DaemonSeen], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def fetch(path: Path, **_: Any) -> wire.Answer:
        asked.append(path)
        return ANSWER

    monkeypatch.setattr(client, "fetch", fetch)
    assert check.run(cli.parse(["-subnet-file=/run/x/one.env"]), is_json=False) == 0
    assert asked == [Path("/run/x/one.env.sock")]
    assert given == [DaemonSeen(ANSWER.report, ANSWER.peers)]


def test_without_a_daemon_the_chain_is_followed_all_the_same(
    given: list[DaemonSeen], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.run(cli.parse([f"-subnet-file={tmp_path}/subnet.env"]), is_json=False) == 0
    assert given == [DaemonSeen()]
    assert capsys.readouterr().out == "ok       interface     eth1\n0 bad, 0 warnings, 1 ok\n"


@pytest.mark.parametrize(("code", "exit_code"), [(Code.LOSS, 0), (Code.PEER_SILENT, 1)])
def test_only_what_is_bad_counts(
    code: Code, exit_code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def follow(*_: object) -> list[Line]:
        return [found(code, "text")]

    monkeypatch.setattr(client, "fetch", _no_answer)
    monkeypatch.setattr(chain, "follow", follow)
    assert check.run(cli.parse([]), is_json=True) == exit_code
    assert f'"code": "{code}"' in capsys.readouterr().out


def test_a_bug_in_the_chain_is_an_error_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    async def follow(*_: object) -> list[Line]:
        raise RuntimeError("text")

    monkeypatch.setattr(client, "fetch", _no_answer)
    monkeypatch.setattr(chain, "follow", follow)
    with pytest.raises(FlannelError, match=r"^Unexpected error .*RuntimeError: text"):
        check.run(cli.parse([]), is_json=False)


def _no_answer(*_: object, **__: object) -> wire.Answer:
    raise DaemonUnavailable("no daemon")
