"""Docker isolates its networks in spite of flannelpy's ACCEPT rules, with each backend, with and without -ip-masq."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import permutations

import pytest
from faults.backends import HOST_GW, NETWORK, UDP, VXLAN
from lab import wait_for
from support.docker_rig import OUTSIDE, Rig, assert_connected, reaches

DIRECT = json.dumps({"Network": str(NETWORK), "Backend": {"Type": "vxlan", "DirectRouting": True}})
CONFIGS = {**{str(backend): backend.config() for backend in (UDP, VXLAN, HOST_GW)}, "direct": DIRECT}


@pytest.mark.parametrize("flags", [[], ["-ip-masq"]], ids=["plain", "masq"])
@pytest.mark.parametrize("backend", CONFIGS)
def test_docker_keeps_its_networks_apart(start_rig: Callable[..., Rig], backend: str, flags: list[str]) -> None:
    rig = start_rig(CONFIGS[backend], "-iptables-resync=1", *flags)
    [here, there], docker = rig.containers, rig.dockers[0]
    docker.docker("network", "create", "other")
    docker.docker("network", "create", "--internal", "inner")
    other, inner = docker.run_container("c2", "--network=other"), docker.run_container("c3", "--network=inner")
    jumps = f"-j FLANNEL-{'O' if flags else 'A'}-{NETWORK}"
    forward = ("iptables", "-S", "FORWARD")
    wait_for(lambda: jumps in rig.hosts[0].run(*forward).stdout, 10, "the rules")
    wait_for(lambda: NAME_LAST in rig.hosts[0].run(*forward).stdout.splitlines()[-1], 10, "the rules to stand last")
    for sender, receiver in permutations((here, other, inner), 2):
        assert not reaches(sender, receiver.address, 1), (sender.name, receiver.name)
    assert not reaches(there, inner.address, 1)
    assert not reaches(inner, there.address, 1)
    assert not reaches(inner, OUTSIDE, 1)
    assert reaches(here, OUTSIDE)
    assert reaches(other, OUTSIDE)
    assert_connected(here, there)
    assert_connected(there, here)


#: The end of the last rule of FORWARD.
NAME_LAST = f"-{NETWORK}"
