"""With Backend.MTU, the overlay works over a path that loses longer packets silently, as in VPNs and clouds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from ipaddress import IPv4Address

import pytest
from lab import Container, Lab, Node, wait_for

PATH_MTU = 1400
HEADERS = {"udp": 28, "vxlan": 50}
DEVICES = {"udp": "flannel0", "vxlan": "flannel.1"}
# The headers of a ping: IPv4 and ICMP.
PING_HEADERS = 28

pytestmark = pytest.mark.usefixtures("root")


def start(lab: Lab, backend: str, mtu: int) -> list[Container]:
    """Start two hosts whose interfaces have a larger MTU than the path between them."""
    lab.put_config(json.dumps({"Network": "11.0.0.0/16", "Backend": {"Type": backend, "MTU": mtu}}))
    # A bridge forwards frames that are longer by a VLAN tag.
    lab.switch.configure(*(f"link set {host.name} mtu {PATH_MTU - 4}" for host in lab.hosts))
    lab.start_daemons("-iface=eth1")
    return [host.add_container() for host in lab.hosts]


def passes(source: Node, target: IPv4Address, length: int) -> bool:
    """Return whether packets of that length arrive without fragmentation."""
    argv = ["ping", "-n", "-c1", "-W1", "-M", "do", "-s", str(length - PING_HEADERS), str(target)]
    return source.run(*argv, check=False).returncode == 0


def inner_mtus(lab: Lab, backend: str) -> set[int]:
    """Return the MTUs of the devices, and in the subnet files."""
    found = {int(host.subnet_env()["FLANNEL_MTU"]) for host in lab.hosts}
    for host in lab.hosts:
        found |= set(map(int, re.findall(r" mtu (\d+) ", host.run("ip", "link", "show", DEVICES[backend]).stdout)))
    return found


@pytest.mark.parametrize("backend", HEADERS)
def test_with_the_mtu_of_the_path_the_longest_packet_passes(make_lab: Callable[..., Lab], backend: str) -> None:
    lab = make_lab(hosts=2)
    host, peer = lab.hosts
    one, other = start(lab, backend, PATH_MTU)
    inner = PATH_MTU - HEADERS[backend]
    assert inner_mtus(lab, backend) == {inner}
    assert passes(one, other.address, inner)
    assert passes(other, one.address, inner)
    assert not passes(host, peer.public_ip, PATH_MTU + 1), "a longer datagram is lost without an error"
    host.configure(f"link set {DEVICES[backend]} mtu 1000")
    wait_for(lambda: inner_mtus(lab, backend) == {inner}, 3, "the MTU to be restored")


def test_hosts_whose_interfaces_differ_share_what_the_config_names(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=2, mtu=9000)
    lab.hosts[1].configure("link set eth1 mtu 1500")
    one, other = start(lab, "udp", 1280)
    assert inner_mtus(lab, "udp") == {1252}
    assert passes(one, other.address, 1252)
    assert passes(other, one.address, 1252)
