"""flannelpy's rules beside those of real Docker and of an operator."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import pytest
from faults.backends import HOST_GW, UDP, VXLAN, Backend
from lab import Host, wait_for
from support.docker_rig import Rig, assert_connected, reaches

BACKENDS = pytest.mark.parametrize("backend", [UDP, VXLAN, HOST_GW], ids=str)
_TABLES = ("filter", "nat", "mangle", "raw")


def rules(host: Host) -> list[str]:
    """Return all iptables rules, without counters."""
    tables = [host.run("iptables-save", "-t", table).stdout for table in _TABLES]
    return [line.split(" [")[0] for text in tables for line in text.splitlines() if not line.startswith("#")]


def ours(rules: Sequence[str]) -> list[str]:
    """Return the rules that flannelpy has added."""
    return sorted(rule for rule in rules if "FLANNEL" in rule)


def clean_up(host: Host) -> None:
    """Stop flannelpy and remove its rules; the host keeps its subnet."""
    file = host.run_dir / "flannel/subnet.env"
    subnet = file.read_text()
    assert host.daemons[-1].stop() == 0
    host.run(sys.executable, "-m", "flannelpy", "-cleanup")
    assert not file.exists()
    file.write_text(subnet)


@BACKENDS
def test_without_the_rules_docker_drops_everything(start_rig: Callable[..., Rig], backend: Backend) -> None:
    """Proves that the other tests are meaningful: Docker does drop these packets."""
    one, other = start_rig(backend.config(), "-iptables-forward-rules=false").containers
    assert not reaches(one, other.address)


@BACKENDS
def test_the_rules_may_come_after_docker(start_rig: Callable[..., Rig], backend: Backend) -> None:
    rig = start_rig(backend.config())
    host, docker = rig.hosts[0], rig.dockers[0]
    docker.stop()
    clean_up(host)
    for table in _TABLES:
        host.run("iptables", "-t", table, "-F")
    docker.start()
    rig.look()
    one, other = rig.containers
    assert not reaches(other, one.address, 1)
    rig.start_flannelpy(host)
    wait_for(lambda: reaches(other, one.address, 1), 10, "the rules")
    assert_connected(one, other)
    assert_connected(other, one)


@BACKENDS
def test_a_drop_of_the_operator_in_docker_user_wins(start_rig: Callable[..., Rig], backend: Backend) -> None:
    one, other = start_rig(backend.config(), "-iptables-resync=1").containers
    assert reaches(one, other.address)
    one.host.run("iptables", "-I", "DOCKER-USER", "-p", "icmp", "-j", "DROP")
    assert not reaches(one, other.address, 1)


@BACKENDS
def test_docker_keeps_our_rules_when_it_starts_again(start_rig: Callable[..., Rig], backend: Backend) -> None:
    """Docker removes no rule, so flannelpy has none to restore."""
    rig = start_rig(backend.config(), "-iptables-resync=1")
    host, docker = rig.hosts[0], rig.dockers[0]
    before = rules(host)
    docker.stop()
    docker.start()
    rig.look()
    assert reaches(rig.containers[0], rig.containers[1].address)
    assert ours(rules(host)) == ours(before)


def test_cleanup_keeps_dockers_rules(start_rig: Callable[..., Rig]) -> None:
    """Docker's rules are then those that it adds to empty tables without a flannelpy."""
    rig = start_rig(UDP.config())
    host, docker = rig.hosts[0], rig.dockers[0]
    clean_up(host)
    after = rules(host)
    docker.stop()
    for table in _TABLES:
        host.run("iptables", "-t", table, "-F")
        host.run("iptables", "-t", table, "-X")
    docker.start()
    rig.look()
    assert sorted(rules(host)) == sorted(after)
