"""`make bench` works, and leaves nothing behind; what it measures is not looked at here."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts/bench.py"
QUICK = [sys.executable, str(SCRIPT), "--quick"]
CARRIERS = ("flannelpy", "socat", "vxlan", "veth")


def labs_of(pid: int) -> list[Path]:
    return [path for where in ("/run", "/run/netns") for path in Path(where).glob(f"flannelpy-{pid}-*")]


def test_a_quick_run(tmp_path: Path) -> None:
    command = [*QUICK, f"--carriers={','.join(CARRIERS)}", f"--output={tmp_path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert not labs_of(process.pid)
    data = json.loads((tmp_path / "benchmarks.json").read_text())
    assert all(goodput > 0 for name in CARRIERS for goodput in data["values"]["tcp-1"][name])
    assert set(data["values"]["leases-routes"]) == {"10", "100"}
    assert "| TCP, 1 stream, against socat " in (tmp_path / "benchmarks.md").read_text()
    assert "</svg>" in (tmp_path / "benchmarks.svg").read_text()


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [*QUICK, "--carriers=socat", "--only=rtt", f"--output={tmp_path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        assert "rtt-idle socat" in process.stdout.readline()
        assert labs_of(process.pid)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert said == "Stopped; nothing is left behind.\n"
    assert not labs_of(process.pid)
    assert not list(tmp_path.iterdir())
