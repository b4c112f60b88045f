"""Docker isolates its networks in spite of flannelpy's ACCEPT rules, with each backend, with and without -ip-masq."""

from __future__ import annotations

import json
from collections.abc import Callable
from ipaddress import IPv4Network
from itertools import permutations

import pytest
from faults.backends import HOST_GW, NETWORK, UDP, VXLAN
from lab import wait_for
from lab.dockers import DockerContainer
from support.docker_rig import OUTSIDE, Rig, assert_connected, reaches

DIRECT = json.dumps({"Network": str(NETWORK), "Backend": {"Type": "vxlan", "DirectRouting": True}})
CONFIGS = {**{str(backend): backend.config() for backend in (UDP, VXLAN, HOST_GW)}, "direct": DIRECT}


def leaves(sender: DockerContainer, source: object, receiver: DockerContainer) -> bool:
    """Whether the host forwards packets with a forged source, which root of a container may send."""
    match = ("-s", str(source), "-p", "icmp")
    gateway = (
        IPv4Network(f"{sender.address}/16", strict=False)[1] if sender.container == "c3" else sender.host.subnet()[1]
    )
    sender.run("ip", "route", "replace", f"{receiver.address}/32", "via", str(gateway))
    sender.run("ip", "address", "add", f"{source}/32", "dev", "lo")
    sender.host.run("iptables", "-t", "mangle", "-I", "POSTROUTING", *match)
    sender.run("ping", "-n", "-c2", "-i0.2", "-W1", "-I", str(source), str(receiver.address), check=False)
    listed = sender.host.run("iptables", "-t", "mangle", "-vxnL", "POSTROUTING").stdout
    sender.host.run("iptables", "-t", "mangle", "-D", "POSTROUTING", *match)
    sender.run("ip", "address", "delete", f"{source}/32", "dev", "lo")
    sender.run("ip", "route", "delete", f"{receiver.address}/32")
    return listed.splitlines()[2].split()[0] != "0"


@pytest.mark.parametrize("flags", [[], ["-ip-masq"]], ids=["plain", "masq"])
@pytest.mark.parametrize("backend", CONFIGS)
def test_docker_keeps_its_networks_apart(start_rig: Callable[..., Rig], backend: str, flags: list[str]) -> None:
    rig = start_rig(CONFIGS[backend], "-iptables-resync=1", *flags)
    [here, there], docker = rig.containers, rig.dockers[0]
    docker.docker("network", "create", "other")
    docker.docker("network", "create", "--internal", "inner")
    other, inner = docker.run_container("c2", "--network=other"), docker.run_container("c3", "--network=inner")
    jumps = f"-j FLANNEL-O-{NETWORK}"
    forward = ("iptables", "-S", "FORWARD")
    wait_for(lambda: jumps in rig.hosts[0].run(*forward).stdout, 10, "the rules")
    wait_for(lambda: NAME_LAST in rig.hosts[0].run(*forward).stdout.splitlines()[-1], 10, "the rules to stand last")
    for sender, receiver in permutations((here, other, inner), 2):
        assert not reaches(sender, receiver.address, 1), (sender.name, receiver.name)
    assert not reaches(there, inner.address, 1)
    assert not reaches(inner, there.address, 1)
    assert not reaches(inner, OUTSIDE, 1)
    forged = rig.hosts[0].subnet()[77]
    rig.hosts[0].run("sh", "-c", "for file in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$file; done")
    for source in (inner.address, forged, rig.hosts[1].subnet()[77], NETWORK[250 * 256 + 9]):
        assert not leaves(inner, source, there), source
    assert leaves(here, forged, there)
    assert reaches(here, OUTSIDE)
    assert reaches(other, OUTSIDE)
    assert_connected(here, there)
    assert_connected(there, here)


#: The end of the last rule of FORWARD.
NAME_LAST = f"-{NETWORK}"
