"""Which containers and hosts reach each other with real Docker, and which source address they see: with every backend,
with and without -ip-masq.

-ip-masq replaces a source outside of the network by the address of the receiver's bridge, as the original does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import NamedTuple

import pytest
from faults.backends import HOST_GW, NETWORK, UDP, VXLAN
from lab.docker_packages import Release
from lab.dockers import DockerContainer
from support.docker_rig import OUTSIDE, Rig, assert_connected, reaches, rig, seen_source, tunnel_address

DIRECT = json.dumps({"Network": str(NETWORK), "Backend": {"Type": "vxlan", "DirectRouting": True}})
CONFIGS = {**{str(backend): backend.config() for backend in (UDP, VXLAN, HOST_GW)}, "direct": DIRECT}
#: The backends that reach other hosts by their public IPs.
PLAIN_ROUTES = ("host-gw", "direct")


class Setting(NamedTuple):
    """The containers of one rig; ``published`` is a container whose port 80 is its host's 8080."""

    backend: str
    is_masquerading: bool
    rig: Rig
    published: DockerContainer

    @property
    def sender_address(self) -> IPv4Address:
        """Return the address from which the first host itself sends into the network."""
        return tunnel_address(self.rig.hosts[0], "host-gw" if self.backend in PLAIN_ROUTES else self.backend)

    def seen(self, address: IPv4Address) -> IPv4Address:
        """Return the address that a container of the second host sees in place of ``address``."""
        is_inside = address in NETWORK or not self.is_masquerading
        return address if is_inside else self.rig.hosts[1].subnet()[1]


@contextmanager
def build(release: Release, backend: str, is_masquerading: bool) -> Iterator[Setting]:
    with rig(release, CONFIGS[backend], *(["-ip-masq"] if is_masquerading else [])) as ours:
        published = ours.dockers[1].run_container("published", "--publish=8080:80")
        yield Setting(backend, is_masquerading, ours, published)


@pytest.fixture(
    scope="module",
    params=[(backend, masq) for backend in CONFIGS for masq in (False, True)],
    ids=lambda param: f"{param[0]}{'-masq' if param[1] else ''}",
)
def setting(release: Release, request: pytest.FixtureRequest) -> Iterator[Setting]:
    with build(release, *request.param) as setting:
        yield setting


def test_containers_reach_each_other(setting: Setting) -> None:
    one, other = setting.rig.containers
    assert_connected(one, other)
    assert_connected(other, one)


def test_a_host_reaches_containers_of_the_other(setting: Setting) -> None:
    assert_connected(setting.rig.hosts[0], setting.rig.containers[1])


def test_a_container_sees_the_container_that_connects_or_its_host(setting: Setting) -> None:
    """If Docker masquerades, the receiver sees the address of the sender's host."""
    one, other = setting.rig.containers
    expected = one.address if setting.is_masquerading else setting.sender_address
    assert seen_source(one, other, other.address) == expected


def test_a_container_sees_the_host_that_connects(setting: Setting) -> None:
    other = setting.rig.containers[1]
    assert seen_source(setting.rig.hosts[0], other, other.address) == setting.seen(setting.sender_address)


def test_the_world_outside_sees_the_host(setting: Setting) -> None:
    one, switch = setting.rig.containers[0], setting.rig.lab.switch
    assert reaches(one, OUTSIDE)
    assert seen_source(one, switch, OUTSIDE) == setting.rig.hosts[0].public_ip


def test_a_published_port_is_reached_by_the_hosts_public_ip(setting: Setting) -> None:
    one, host = setting.rig.containers[0], setting.rig.hosts[1]
    expected = setting.seen(setting.rig.hosts[0].public_ip)
    assert seen_source(one, setting.published, host.public_ip, 8080, 80) == expected


def test_a_published_port_is_reached_by_the_bridges_address(setting: Setting) -> None:
    one, bridge = setting.rig.containers[0], setting.rig.hosts[1].subnet()[1]
    expected = one.address if setting.is_masquerading else setting.sender_address
    assert seen_source(one, setting.published, bridge, 8080, 80) == expected


def test_a_published_port_is_reached_from_the_world_outside(setting: Setting) -> None:
    host = setting.rig.hosts[1]
    expected = setting.seen(IPv4Address(OUTSIDE))
    assert seen_source(setting.rig.lab.switch, setting.published, host.public_ip, 8080, 80) == expected
