"""Several networks, with a network of Docker for each, created as the manual describes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import permutations
from typing import NamedTuple

import pytest
from lab import ETCD_PREFIX, Lab, wait_for
from lab.docker_packages import Release
from lab.dockers import CREATE_NETWORK, Docker, DockerContainer
from support.docker_rig import OUTSIDE, assert_connected, reaches, seen_source
from support.tenants import NETWORKS, subnet_file

MTUS = {"udp": 1472, "vxlan": 1450, "host-gw": 1500}


class World(NamedTuple):
    """Two hosts, each with a container of each network."""

    backends: dict[str, str]
    is_masquerading: bool
    containers: dict[str, list[DockerContainer]]


@pytest.fixture(
    scope="module",
    params=[(pair, masq) for pair in (("vxlan", "udp"), ("host-gw", "vxlan")) for masq in (False, True)],
    ids=lambda param: f"{'+'.join(param[0])}{'-masq' if param[1] else ''}",
)
def world(release: Release, request: pytest.FixtureRequest) -> Iterator[World]:
    pair, masq = request.param
    backends = dict(zip(NETWORKS, pair, strict=True))
    with Lab(hosts=2) as lab, ExitStack() as stack:
        for name, backend in backends.items():
            config = json.dumps({"Network": str(NETWORKS[name]), "Backend": {"Type": backend}})
            lab.etcd_request("PUT", f"{ETCD_PREFIX}/{name}/config", value=config)
        for host in lab.hosts:
            host.run("sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward")
            host.start_daemon("-iface=eth1", "-networks=blue,green", *(["-ip-masq"] if masq else [])).wait_ready()
        dockers = [stack.enter_context(Docker(host, release)) for host in lab.hosts]
        for docker in dockers:
            docker.start(script="dockerd")
            docker.import_image()
            for name in NETWORKS:
                docker.run("sh", "-ec", CREATE_NETWORK.replace("blue", name))
        containers = {
            name: [docker.run_container(name, f"--network={name}") for docker in dockers] for name in NETWORKS
        }
        for host in lab.hosts:
            ready = [subnet_file(host, name).with_name(f"{name}.env.ready") for name in NETWORKS]
            wait_for(lambda ready=ready: all(path.exists() for path in ready), 20, "all networks")  # type: ignore[misc]
        yield World(backends, masq, containers)


@pytest.mark.parametrize("name", NETWORKS)
def test_containers_of_a_network_reach_each_other(world: World, name: str) -> None:
    one, other = world.containers[name]
    assert_connected(one, other)
    assert_connected(other, one)


@pytest.mark.parametrize("name", NETWORKS)
def test_containers_have_the_mtu_of_their_network(world: World, name: str) -> None:
    for container in world.containers[name]:
        [link] = json.loads(container.run("ip", "-j", "link", "show", "eth0").stdout)
        assert link["mtu"] == MTUS[world.backends[name]]


@pytest.mark.parametrize("name", NETWORKS)
def test_containers_see_each_others_addresses_with_masq(world: World, name: str) -> None:
    one, other = world.containers[name]
    assert (seen_source(one, other, other.address) == one.address) is world.is_masquerading


@pytest.mark.parametrize("name", NETWORKS)
def test_containers_reach_the_world_outside(world: World, name: str) -> None:
    assert reaches(world.containers[name][0], OUTSIDE)


def test_containers_of_different_networks_do_not_reach_each_other(world: World) -> None:
    for one, other in permutations(NETWORKS, 2):
        for sender in world.containers[one]:
            for receiver in world.containers[other]:
                assert not reaches(sender, receiver.address, 1)
