"""A store that others fill with anything, under hosts that must not notice."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

from faults.backends import NETWORK, Backend
from lab import ETCD_PREFIX, UNDERLAY, Daemon, Lab
from lab.etcd_stores import Api
from support.chaos import Witness
from support.mesh import unbroken_mesh

_VANDAL = str(Path(__file__).parents[1] / "netns" / "vandal.py")
_WARM_SECONDS = 5.0
_MOST_LINES = 200
_MOST_GROWTH = 5 << 20


def endure(lab: Lab, seconds: float, seed: int, backend: Backend, api: Api) -> None:
    """Write random keys and values for so long, and assert that no host loses a ping or its lease, or grows."""
    lab.put_config(backend.config(NETWORK))
    daemons = lab.start_daemons("-iface=eth1")
    for host in lab.hosts:
        host.add_container()
    witness = Witness(daemons)
    lines = [_lines(daemon) for daemon in daemons]
    argv = (
        sys.executable,
        "-I",
        "-S",
        _VANDAL,
        str(seed),
        api.value,
        lab.etcd.url.removeprefix("http://"),
        f"{ETCD_PREFIX}/subnets",
        backend.name,
        # No host has an address of that part of the link.
        str(list(UNDERLAY.network.subnets(2))[-1]),
        *(str(host.subnet()) for host in lab.hosts),
    )
    with unbroken_mesh(lab.hosts), lab.switch.popen(*argv, stdin=subprocess.PIPE) as vandal:
        witness.look_for(_WARM_SECONDS)
        before = [_resident(daemon) for daemon in daemons]
        witness.look_for(seconds - _WARM_SECONDS)
        after = [_resident(daemon) for daemon in daemons]
        written, errors = vandal.communicate("\n", timeout=30)
        assert vandal.returncode == 0, errors
    growth = [(last - first) >> 10 for first, last in zip(before, after, strict=True)]
    counts = [_lines(daemon) - begun for daemon, begun in zip(daemons, lines, strict=True)]
    requests = f"{int(written)} requests in {seconds:.0f} s"
    print(f"{backend} over v{api.value}: {requests}; {counts} lines; {growth} KB more than {before}")
    for daemon, first, last, begun in zip(daemons, before, after, lines, strict=True):
        assert "Traceback" not in daemon.log()
        assert _lines(daemon) - begun < _MOST_LINES
        assert all(re.match(r"[IWE]\d{4} |    ", line) and line.isprintable() for line in daemon.log().splitlines())
        assert last - first <= _MOST_GROWTH, f"{daemon.host.name}: {first:,} bytes at first, {last:,} at last"
    assert all(daemon.stop() == 0 for daemon in daemons)


def _lines(daemon: Daemon) -> int:
    return len(daemon.log().splitlines())


def _resident(daemon: Daemon) -> int:
    """Bytes, once what the last list has left is given back."""
    deadline = time.monotonic() + 1
    least = _resident_now(daemon)
    while time.monotonic() < deadline:
        time.sleep(0.05)
        least = min(least, _resident_now(daemon))
    return least


def _resident_now(daemon: Daemon) -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{daemon.pid}/status").read_text(), re.MULTILINE)
    assert found, "it has ended"
    return int(found[1]) * 1024
