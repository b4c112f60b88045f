"""`make bench` works, and leaves nothing behind; its measurements are not checked."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from benchmark import traffic
from benchmark.contenders import Rack
from benchmark.underlay import Underlay
from lab import INTERRUPTIBLE, Host

SCRIPTS = Path(__file__).parents[2] / "scripts"
QUICK = [*INTERRUPTIBLE, f"PYTHONPATH={SCRIPTS}", sys.executable, "-P", "-m", "benchmark", "--quick"]
# Each kind of contender once: user space of both kinds, the fast path, and a kernel's way that flannelpy sets up.
MEASURED = ("flannelpy", "flannelpy-kernel", "socat", "flannelpy-vxlan")
BY_HAND_AND_ALIKE = ("vxlan", "flannelpy-vxlan", "veth", "flannelpy-host-gw")

# With all details (-d).
SHOWN = (
    "ip -d link show flannel.1",
    "ip -d -4 address show flannel.1",
    "ip -d route",
    "ip -d neighbour show nud permanent",
    "bridge -d fdb show dev flannel.1",
)


def labs_of(pid: int) -> list[Path]:
    return [path for where in ("/run", "/run/netns") for path in Path(where).glob(f"flannelpy-{pid}-*")]


@pytest.mark.soak
def test_a_quick_run(tmp_path: Path) -> None:
    command = [*QUICK, f"--contenders={','.join(MEASURED)}", f"--output={tmp_path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    assert not labs_of(process.pid)
    data = json.loads((tmp_path / "benchmarks.json").read_text())
    assert all(goodput > 0 for name in MEASURED for goodput in data["values"]["tcp-1"][name])
    assert set(data["values"]["wire-tcp-1"]) == {"flannelpy", "flannelpy-kernel", "socat"}
    assert set(data["values"]["leases-kernel-cost"]) == {"10", "100"}
    assert data["values"]["daemon-load"]["flannelpy-kernel"][0] < data["values"]["daemon-load"]["flannelpy"][0]
    assert set(data["values"]["leases-routes"]) == {"10", "100"}
    assert "| TCP, 1 stream, against socat " in (tmp_path / "benchmarks.md").read_text()
    assert "</svg>" in (tmp_path / "benchmarks.svg").read_text()


@pytest.mark.soak
def test_a_quick_run_of_the_scale_benchmark(tmp_path: Path) -> None:
    page = tmp_path / "scale.md"
    flags = ["--quick", "--quiet=1", "--only=v3", f"--output={page}"]
    command = [*INTERRUPTIBLE, f"PYTHONPATH={SCRIPTS}", sys.executable, "-P", "-m", "benchmark.scale", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    row = re.search(r"^\| Until all watchers know all leases, s +\| (\S+) ", page.read_text(), re.MULTILINE)
    assert row
    assert float(row[1]) > 0


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [*QUICK, "--contenders=socat", "--only=^rtt", f"--output={tmp_path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        assert "rtt-idle socat" in process.stdout.readline()
        assert labs_of(process.pid)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert output == "Stopped; nothing is left behind.\n"
    assert not labs_of(process.pid)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def rack() -> Iterator[Rack]:
    """Return overlays that are created by hand, and by flannelpy."""
    rack = Rack(BY_HAND_AND_ALIKE, sys.executable)
    with ExitStack() as cleanup:
        rack.build(cleanup)
        yield rack


def shown(host: Host) -> str:
    """Return the state that leads to the other host, without its identity; sorted, as routes are by address."""
    text = "".join(host.run(*command.split(), check=False).stdout for command in SHOWN)
    for pattern, name in (
        (r"([0-9a-f]{2}:){5}[0-9a-f]{2}", "MAC"),
        (r"11\.0\.\d+\.", "11.0.X."),
        (r"172\.17\.8\.\d{3}", "HOST"),
        # flannelpy marks what it creates.
        (r"proto 85", "proto boot"),
        (r" *alias flannelpy .*\n", ""),
    ):
        text = re.sub(pattern, name, text)
    return "\n".join(sorted(text.splitlines()))


@pytest.mark.parametrize(
    ("by_hand", "by_flannelpy", "way"),
    [("vxlan", "flannelpy-vxlan", " dev flannel.1 .*onlink"), ("veth", "flannelpy-host-gw", " via HOST dev eth1 ")],
    ids=["vxlan", "host-gw"],
)
def test_the_benchmark_creates_by_hand_what_flannelpy_creates(
    rack: Rack, by_hand: str, by_flannelpy: str, way: str
) -> None:
    one, other = rack.contenders[by_hand], rack.contenders[by_flannelpy]
    assert re.search(way, shown(one.client.host))
    assert shown(one.client.host) == shown(other.client.host)
    assert shown(one.server.host) == shown(other.server.host)


def bytes_per_packet(host: Host, transfer: Callable[[], object]) -> float:
    """Return the mean size of the frames that eth1 receives meanwhile."""

    def received(what: str) -> int:
        return int(host.run("cat", f"/sys/class/net/eth1/statistics/rx_{what}").stdout)

    packets, size = received("packets"), received("bytes")
    transfer()
    return (received("bytes") - size) / (received("packets") - packets)


@pytest.mark.parametrize("underlay", Underlay)
def test_on_the_wire_no_frame_is_larger_than_the_mtu(underlay: Underlay) -> None:
    rack = Rack(["vxlan"], sys.executable, underlay=underlay)
    with ExitStack() as cleanup:
        rack.build(cleanup)
        pair = rack.contenders["vxlan"]
        mean = bytes_per_packet(pair.server.host, lambda: traffic.tcp(pair.client, pair.server, 1))
    assert (mean <= 1514) == (underlay is Underlay.WIRE)
