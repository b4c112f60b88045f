"""The command line of ``flannelpy check``: the daemon's flags, -json, and the errors."""

from __future__ import annotations

import re

import pytest

from flannelpy import cli
from flannelpy.cli import check, flags
from flannelpy.errors import UsageError


def test_the_flags_of_the_daemon_mean_the_same() -> None:
    argv = ["-iface=eth1", "--etcd-endpoints", "http://a:1", "-etcd-api=3", "-subnet-file=/run/x.env", "-ip-masq"]
    options, is_json = check.parse([*argv, "-json"])
    assert options == cli.parse(argv)
    assert is_json
    assert check.parse(argv) == (options, False)
    assert check.parse([*argv, "--json=false"]) == (options, False)


def test_the_variables_of_the_daemon_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLANNELD_IFACE", "eth7")
    assert check.parse([])[0].iface == ("eth7",)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["-cleanup"], "unknown flag -cleanup"),
        (["-release"], "unknown flag -release"),
        (["-jsno"], "unknown flag -jsno: did you mean -json?"),
        (["-json", "true"], "extra argument 'true'"),
        (["peers"], "extra argument 'peers'"),
        (["-iptables-resync=x"], "bad value 'x' for -iptables-resync"),
    ],
)
def test_anything_else_is_a_usage_error(argv: list[str], text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(text)):
        check.parse(argv)


def test_main_exits_with_2_for_a_wrong_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["check", "-nonsense"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("flannelpy: unknown flag -nonsense")


def test_the_help_lists_every_flag_of_the_check_and_of_the_daemon() -> None:
    text = check.COMMAND.usage()
    listed = set(re.findall(r"^  -([a-z0-9-]+)", text, re.MULTILINE))
    of_the_daemon = {flag.flag for flag in flags.FLAGS} - {"cleanup", "release", "version"}
    assert listed == of_the_daemon | {"json"}
    assert max(map(len, text.splitlines())) <= 80
    assert "flannelpy status | check | " in flags.usage()
