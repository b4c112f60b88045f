"""The demo succeeds with the leases in either store of etcd, and leaves nothing behind."""

from __future__ import annotations

import os

import pytest
from lab import demo
from lab.etcd_stores import Api
from support.hosts import traces


@pytest.mark.parametrize(
    ("flags", "command"),
    [((), "etcdctl put"), ((f"--api={Api.V2.value}", "--keep"), "ETCDCTL_API=2 etcdctl set")],
    ids=["default", "v2-kept"],
)
def test_all_pings_are_answered(
    root: None,
    flags: tuple[str, ...],
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(demo, "PREFIX", f"flannelpy-{os.getpid()}-demo")
    assert demo.main([*flags, "--backend=host-gw"]) == 0
    output = capsys.readouterr().out
    assert f"switch$ {command} /coreos.com/network/config '{{" in output
    assert "All 6 were answered, each with ttl=62" in output
    if "--keep" in flags:
        assert output.count("0 bad, 0 warnings, ") == 3  # flannelpy check on each host
        assert demo.main(["down"]) == 0
    assert not traces(demo.PREFIX)
