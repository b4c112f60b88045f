"""On a host with real Docker and no firewall, no rule forbids the fast path, and it is used."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from faults.backends import UDP
from support.datapaths import by_kernel, status, wait_until_it_sends
from support.docker_rig import Rig, assert_connected

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


def test_hosts_with_docker_take_the_fast_path(start_rig: Callable[..., Rig]) -> None:
    """-datapath=auto uses it also when Docker restarts, and packets of containers get there by it."""
    ours = start_rig(UDP.config(), "-ip-masq", "-datapath=auto", "-iptables-resync=1")
    one, other = ours.containers
    for docker in ours.dockers:
        docker.run_container("published", "-p8080:80", "-p5353:53/udp")
    for host in ours.hosts:
        wait_until_it_sends(host.daemons[-1], host)
    with by_kernel(*ours.hosts):
        assert_connected(one, other)
        assert_connected(other, one)
    ours.dockers[0].stop()
    ours.dockers[0].start()
    ours.look()
    assert_connected(one, other)
    for host in ours.hosts:
        assert status(host) == {"datapath": "kernel", "cause": ""}
        assert "Datapath switched" not in host.log()
