"""The udp backend's pure side: which backend, which port, which next hops."""

from __future__ import annotations

import json
import logging
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from flannelpy import cli
from flannelpy.backend import base as backends
from flannelpy.backend.udp.backend import UdpBackend
from flannelpy.errors import ConfigError
from flannelpy.linux.interface import ExternalInterface
from flannelpy.subnet.config import NetworkConfig, parse
from flannelpy.subnet.lease import Lease, LeaseAttrs
from flannelpy.subnet.lease_table import Added, Gone
from flannelpy.subnet.renewal import Holder

EXTERNAL = ExternalInterface("eth1", IPv4Address("172.17.8.101"), 1500)
SUBNET = IPv4Network("11.0.101.0/24")
ALIAS = "flannelpy /run/flannel/subnet.env"


def config(**backend: object) -> NetworkConfig:
    return parse(json.dumps({"Network": "11.0.0.0/16", "Backend": {"Type": "udp"} | backend}))


def added(public_ip: str) -> Added:
    return Added(Lease(SUBNET, LeaseAttrs(IPv4Address(public_ip)), 86400, 1, 1))


@pytest.mark.parametrize("text", ['{"Network":"11.0.0.0/16"}', '{"Network":"11.0.0.0/16","Backend":{"Type":"UDP"}}'])
def test_udp_is_the_default_and_its_name_may_have_any_case(text: str) -> None:
    assert isinstance(backends.create(parse(text), EXTERNAL, cli.parse([])), UdpBackend)


def test_an_unknown_backend_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        backends.create(config(Type="gre"), EXTERNAL, cli.parse([]))
    assert str(caught.value) == "unknown backend type: 'gre'; Backend.Type may be alloc, host-gw, udp, vxlan"


@pytest.mark.parametrize("port", [1, 8285, 65535, None])
def test_a_port_may_be_named_or_left_out(port: int | None) -> None:
    assert UdpBackend(config(Port=port), EXTERNAL, ALIAS, None).needs == [f"UDP port {port or 8285}"]


@pytest.mark.parametrize(
    ("port", "shown"),
    [(0, "0"), (-1, "-1"), (65536, "65536"), ("8285", '"8285"'), (1.5, "1.5"), (True, "true"), ([], "[]")],
)
def test_a_port_that_is_none_is_refused(port: object, shown: str) -> None:
    with pytest.raises(ConfigError) as caught:
        UdpBackend(config(port=port), EXTERNAL, ALIAS, None)
    assert str(caught.value) == f"Backend.Port {shown} is not a UDP port: 1 to 65535"


def test_other_hosts_learn_the_public_ip_and_nothing_else() -> None:
    attrs = UdpBackend(config(), EXTERNAL, ALIAS, None).lease_attrs(Holder(IPv4Address("1.2.3.4")), None)
    assert attrs.encode() == '{"PublicIP":"1.2.3.4"}'


def test_next_hops_follow_the_leases(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flannelpy")
    backend = UdpBackend(config(), EXTERNAL, ALIAS, None)
    assert backend.describe() == "next hops: 0"
    backend.apply([added("172.17.8.102")])
    assert backend.describe() == "next hops: 1"
    backend.apply([added("172.17.8.103")])
    assert backend.describe() == "next hops: 1"
    backend.apply([Gone(SUBNET)])
    assert backend.describe() == "next hops: 0"
    assert caplog.messages == [
        "Subnet added: 11.0.101.0/24",
        "Subnet added: 11.0.101.0/24",
        "Subnet removed: 11.0.101.0/24",
    ]


def test_a_backend_that_never_started_can_be_closed() -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    backend = UdpBackend(config(), EXTERNAL, ALIAS, None)
    backend.apply([added("172.17.8.102")])
    backend.close()
    backend.close()
    assert backend.describe() == "next hops: 1"
    assert sorted(Path("/proc/self/fd").iterdir()) == before
