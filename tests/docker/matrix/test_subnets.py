"""Docker follows when its host gets another subnet."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from ipaddress import IPv4Network

import pytest
from faults.backends import HOST_GW, UDP, VXLAN, Backend, lease_key
from lab import ETCD_PREFIX
from lab.dockers import Docker
from support.docker_rig import Rig, assert_connected
from support.hosts import subnet_in_file

BACKENDS = pytest.mark.parametrize("backend", [UDP, VXLAN, HOST_GW], ids=str)


def addresses(docker: Docker) -> list[str]:
    """Return the addresses of docker0."""
    shown = docker.host.run("ip", "-4", "address", "show", "docker0").stdout
    return re.findall(r"inet (\S+)", shown)


@BACKENDS
def test_a_subnet_that_another_host_took_is_replaced(start_rig: Callable[..., Rig], backend: Backend) -> None:
    """flannelpy exits with 3; after a restart of both, containers have addresses of the new subnet."""
    rig = start_rig(backend.config())
    host, docker = rig.hosts[0], rig.dockers[0]
    before = host.subnet()
    rig.lab.etcd_request("PUT", lease_key(before), value=backend.lease("172.17.8.99"))
    assert host.daemons[-1].process.wait(20) == 3
    assert subnet_in_file(host) is None
    docker.stop()
    rig.lab.etcd_request("DELETE", lease_key(before))
    rig.lab.etcd_request("PUT", lease_key(before), value=backend.lease("172.17.8.99"))
    rig.start_flannelpy(host)
    assert host.subnet() != before
    docker.start()
    rig.look()
    one, other = rig.containers
    assert one.address in host.subnet()
    assert addresses(docker) == [f"{host.subnet()[1]}/24"]
    assert_connected(one, other)
    assert_connected(other, one)


@BACKENDS
@pytest.mark.parametrize("is_known", [True, False], ids=["of-this-docker", "of-another-docker"])
def test_a_docker0_of_an_earlier_subnet_gets_the_new_address(
    start_rig: Callable[..., Rig], backend: Backend, is_known: bool
) -> None:
    """The manual names nothing to remove: dockerd changes the address of an existing bridge.

    "of-another-docker": a bridge that dockerd finds at its first start.
    """
    rig = start_rig(backend.config())
    host, docker = rig.hosts[0], rig.dockers[0]
    docker.stop()
    if not is_known:
        docker.run("rm", "-rf", "/mnt/data/network")
    old = IPv4Network("11.0.250.0/24")
    host.run("ip", "address", "flush", "dev", "docker0")
    host.run("ip", "address", "add", f"{old[1]}/24", "dev", "docker0")
    docker.start()
    rig.look()
    one, other = rig.containers
    assert addresses(docker) == [f"{host.subnet()[1]}/24"]
    assert one.address in host.subnet()
    assert_connected(one, other)
    assert_connected(other, one)


@pytest.mark.parametrize("are_stopped", [False, True], ids=["running", "stopped"])
def test_with_live_restore_docker_follows_once_no_container_runs(
    start_rig: Callable[..., Rig], are_stopped: bool
) -> None:
    """Docker ignores --bip while containers run that it has restored; the manual says to stop them first."""
    rig = start_rig(UDP.config(), options=["--live-restore"])
    host, docker = rig.hosts[0], rig.dockers[0]
    before, after = host.subnet(), IPv4Network("11.0.250.0/24")
    subnet_file = host.run_dir / "flannel/subnet.env"
    subnet_file.write_text(subnet_file.read_text().replace(f"{before[1]}/", f"{after[1]}/"))
    if are_stopped:
        docker.docker("stop", "c1")
    docker.stop()
    docker.start("--live-restore")
    assert addresses(docker) == [f"{(after if are_stopped else before)[1]}/24"]


def test_containers_follow_another_mtu(start_rig: Callable[..., Rig]) -> None:
    """All hosts change from udp to vxlan, and Docker is restarted."""
    rig = start_rig(UDP.config())
    rig.lab.etcd_request("PUT", f"{ETCD_PREFIX}/config", value=VXLAN.config())
    for host in rig.hosts:
        assert host.daemons[-1].stop() == 0
    rig.lab.start_daemons("-iface=eth1")
    for docker in rig.dockers:
        docker.stop()
        docker.start()
    rig.look()
    one, other = rig.containers
    [link] = json.loads(one.run("ip", "-j", "link", "show", "eth0").stdout)
    assert link["mtu"] == VXLAN.mtu
    assert_connected(one, other)
    assert_connected(other, one)
