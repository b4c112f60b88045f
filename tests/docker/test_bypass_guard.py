"""On a host with real Docker and no firewall, no rule may match the datagrams between hosts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from faults.backends import UDP
from support.docker_rig import Rig

PROBE = str(Path(__file__).parents[1] / "netns" / "guard_probe.py")


def test_rules_of_docker_forbid_no_fast_path(start_rig: Callable[..., Rig]) -> None:
    ours = start_rig(UDP.config(), "-ip-masq", hosts=1)
    [docker] = ours.dockers
    docker.docker("network", "create", "own")
    docker.run_container("c2", "--net=own", "-p8080:80", "-p5353:53/udp")
    saved = ours.hosts[0].run("iptables-save").stdout
    for rule in ("--dst-type LOCAL -j DOCKER", "--dport 5353 -j DNAT", "-j FLANNEL-Z-"):
        assert rule in saved
    assert ours.hosts[0].run(sys.executable, PROBE, input="\n").stdout.split()[1:] == ["None"]
