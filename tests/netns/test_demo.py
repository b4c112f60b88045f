"""The demo succeeds with the leases in either store of etcd, and leaves nothing behind unless it is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lab import demo, remove_lab
from lab.etcd_stores import Api
from support.hosts import traces

_SCRIPTS = Path(demo.__file__).parents[1]
_DEMO = "import sys; from lab import demo; demo.PREFIX = sys.argv[1]; sys.exit(demo.main(sys.argv[2:]))"


@pytest.mark.parametrize(
    ("flags", "command"),
    [((), "etcdctl put"), ((f"--api={Api.V2.value}", "--keep"), "ETCDCTL_API=2 etcdctl set")],
    ids=["default", "v2-kept"],
)
def test_all_pings_are_answered_and_a_kept_demo_ends_with_a_check_of_each_host(
    root: None, flags: tuple[str, ...], command: str
) -> None:
    prefix = f"flannelpy-{os.getpid()}-demo"
    argv = [sys.executable, "-c", _DEMO, prefix, *flags, "--backend=host-gw"]
    try:
        done = subprocess.run(
            argv, env=os.environ | {"PYTHONPATH": str(_SCRIPTS)}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"switch$ {command} /coreos.com/network/config '{{" in done.stdout
        assert "All 6 were answered, each with ttl=62" in done.stdout
        assert done.stdout.count("0 bad, 0 warnings, ") == (3 if "--keep" in flags else 0)
        assert bool(traces(prefix)) == ("--keep" in flags)
    finally:
        remove_lab(prefix)
    assert not traces(prefix)
