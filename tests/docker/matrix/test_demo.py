"""The demo with real Docker succeeds and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from faults.backends import HOST_GW, UDP, VXLAN, Backend
from lab import INTERRUPTIBLE, demo
from lab.docker_packages import Release
from support.hosts import traces


@pytest.mark.parametrize("backend", [UDP, VXLAN, HOST_GW], ids=str)
def test_all_pings_are_answered_also_after_restarts(release: Release, backend: Backend) -> None:
    argv = [
        f"PYTHONPATH={Path(demo.__file__).parents[1]}",
        sys.executable,
        "-P",
        "-m",
        "lab.demo",
        f"--backend={backend}",
        f"--docker={release.name}",
    ]
    done = subprocess.run([*INTERRUPTIBLE, *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(f"All 6 were answered, each with ttl={60 if backend is UDP else 62}") == 2
    assert not traces(demo.PREFIX)
    assert not list(Path("/sys/fs/cgroup").glob(f"*/{demo.PREFIX}-*"))
