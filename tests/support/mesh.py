"""Probes between all hosts of a lab, from docker0 to docker0, for tests: none may be lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import permutations
from pathlib import Path
from typing import Any

from lab import Host

_PROBE = [sys.executable, "-I", "-S", str(Path(__file__).parents[1] / "netns" / "probe.py")]
#: Between two probes of one flow.
SECONDS_APART = 0.1
_LATE_SECONDS = 5.0


@contextmanager
def unbroken_mesh(hosts: Sequence[Host]) -> Iterator[None]:
    """Every host probes every other until the block ends; all probes must have arrived.

    Each needs a container, and has docker0 with it: not every backend gives a host an address of its own.
    """
    addresses = {host.name: str(host.subnet().network_address + 1) for host in hosts}
    with ExitStack() as ended:
        probes = {}
        for host in hosts:
            peers = [address for name, address in addresses.items() if name != host.name]
            probe = host.popen(*_PROBE, str(SECONDS_APART), addresses[host.name], *peers, stdin=subprocess.PIPE)
            probes[host.name] = ended.enter_context(probe)
            ended.callback(probe.kill)
        for probe in probes.values():
            assert _line(probe) == "listening"
        _tell(probes)
        yield
        _tell(probes)
        sent = {name: int(_line(probe)) for name, probe in probes.items()}
        _tell(probes)
        reports = {name: json.loads(probe.communicate(timeout=_LATE_SECONDS)[0]) for name, probe in probes.items()}
    flows = permutations(addresses, 2)
    lost = [_loss(one, other, sent[one], reports[other][addresses[one]]) for one, other in flows]
    print(f"{len(lost)} flows of {min(sent.values())} probes and more")
    assert not any(lost), "\n".join(filter(None, lost))


def _tell(probes: dict[str, subprocess.Popen[str]]) -> None:
    for probe in probes.values():
        assert probe.stdin is not None
        print(file=probe.stdin, flush=True)


def _line(probe: subprocess.Popen[str]) -> str:
    assert probe.stdout is not None
    return probe.stdout.readline().rstrip()


def _loss(one: str, other: str, sent: int, report: dict[str, Any]) -> str:
    """Which probes of a flow were lost, in words; none at all when none was."""
    if report["count"] >= sent:
        return ""
    first = (report["missing"] or [report["next"]])[0] * SECONDS_APART
    return f"{one} to {other}: {sent - report['count']} of {sent} lost, the first after {first:.1f} s"
