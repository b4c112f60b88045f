"""What the networks of one host may not share."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannelpy.errors import ConfigError
from flannelpy.host import Host
from flannelpy.linux.interface import ExternalInterface

BLUE = IPv4Network("11.1.0.0/16")


@pytest.fixture
def host() -> Host:
    address = IPv4Address("172.17.8.101")
    host = Host(ExternalInterface("eth1", address, 1500), address)
    host.take("blue", BLUE, ["UDP port 8285"])
    return host


@pytest.mark.parametrize("network", ["11.1.0.0/16", "11.0.0.0/8", "11.1.128.0/20"])
def test_addresses(host: Host, network: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"Network {network} overlaps 11.1.0.0/16, the network blue")):
        host.check("green", IPv4Network(network), [])


def test_what_a_backend_has_for_itself(host: Host) -> None:
    with pytest.raises(ConfigError, match=r"^UDP port 8285 is the network blue's: choose another one in Backend$"):
        host.check("green", IPv4Network("11.2.0.0/16"), ["UDP port 8285"])


def test_all_else_may_be(host: Host) -> None:
    host.check("green", IPv4Network("11.2.0.0/16"), ["UDP port 8286"])
    host.check("blue", BLUE, ["UDP port 8285"])
