"""With real Docker on fresh hosts, containers and hosts reach containers of other hosts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from faults.backends import HOST_GW, UDP, Backend
from lab.docker_packages import Release
from support.docker_rig import Rig, assert_connected, rig
from support.hosts import traces


@pytest.mark.parametrize("backend", [UDP, HOST_GW], ids=str)
def test_containers_and_hosts_reach_containers_of_other_hosts(start_rig: Callable[..., Rig], backend: Backend) -> None:
    """Docker drops forwarded packets if it has switched forwarding on itself; flannelpy's rules accept them."""
    ours = start_rig(backend.config())
    one, other = ours.containers
    assert "FORWARD DROP" in ours.hosts[0].run("iptables", "-S", "FORWARD").stdout.replace("-P ", "")
    assert_connected(one, other)
    assert_connected(other, one)
    assert_connected(ours.hosts[0], other)
    assert f"MTU:{backend.mtu} " in one.exec("ifconfig", "eth0")


def test_nothing_is_left(release: Release) -> None:
    """containerd's shims outlive a killed dockerd; none of them is left either."""
    with rig(release, UDP.config(), hosts=1) as ours:
        [docker] = ours.dockers
        docker.kill()
        prefix = ours.lab.prefix
        assert traces(prefix)
    assert not traces(prefix)
    assert not [path for depth in ("", "*/") for path in Path("/sys/fs/cgroup").glob(f"{depth}{prefix}*")]
