"""Hosts that mean another port by the same Backend.Port, and what else has our VNI or port."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from ipaddress import IPv4Network
from typing import Any

import pytest
from lab import ETCD_PREFIX, Daemon, Host, Lab, wait_for

PORT, SWAPPED = 7890, 53790
CONFIG: dict[str, Any] = {"Network": "11.0.0.0/16", "Backend": {"Type": "vxlan", "Port": PORT}}

pytestmark = pytest.mark.usefixtures("root")


def mac_of(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


class Original:
    """A host whose kernel was set up by hand as flanneld does it, with one subnet; its lease has no HostID."""

    def __init__(self, host: Host, number: int, port: int) -> None:
        self.host = host
        self.subnet = IPv4Network(f"11.0.{number}.0/24")
        self.mac = mac_of(number)
        if port:
            host.configure(
                f"link add flannel.1 address {self.mac} mtu 1450 type vxlan id 1 local {host.public_ip} dev eth1 "
                f"dstport {port} nolearning",
                f"address add {self.subnet.network_address}/16 dev flannel.1",
                "link set flannel.1 up",
            )

    def lease(self) -> None:
        value = {"PublicIP": str(self.host.public_ip), "BackendType": "vxlan", "BackendData": {"VtepMAC": self.mac}}
        key = f"{ETCD_PREFIX}/subnets/{str(self.subnet).replace('/', '-')}"
        self.host.lab.etcd_request("PUT", key, value=json.dumps(value), ttl="600")

    def knows(self, peer: Host, mac: str) -> None:
        """What it learns from a lease."""
        address = peer.subnet().network_address
        self.host.configure(f"neighbour replace {address} lladdr {mac} dev flannel.1")
        self.host.run("bridge", "fdb", "replace", mac, "dev", "flannel.1", "dst", str(peer.public_ip))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(hosts=5) as lab:
        lab.put_config(json.dumps(CONFIG))
        yield lab


def started(host: Host) -> Daemon:
    daemon = host.start_daemon("-iface=eth1")
    daemon.wait_ready()
    return daemon


def device_mac(host: Host) -> str:
    return re.findall(r"link/ether (\S+)", host.run("ip", "link", "show", "flannel.1").stdout)[0]


def reaches(host: Host, original: Original) -> bool:
    target = str(original.subnet.network_address)
    return host.run("ping", "-n", "-c1", "-W1", target, check=False).returncode == 0


def test_a_peer_that_swaps_the_bytes_of_the_port_is_found_and_reached_with_the_config_from_the_log(lab: Lab) -> None:
    ours, peer, *others = lab.hosts
    old, later, gone, filtered = (
        Original(host, 50 + number, port)
        for number, (host, port) in enumerate(zip([peer, *others], (SWAPPED, PORT, 0, 0), strict=True))
    )
    filtered.host.run("iptables", "-A", "INPUT", "-p", "udp", "-j", "DROP")
    for one in (old, later, gone, filtered):
        one.lease()
    daemon = started(ours)
    found = daemon.wait_for_log(
        rf"E.*Host {peer.public_ip} \({old.subnet}\) is not reached: UDP port {PORT} is closed there, and {SWAPPED} is "
        r"not\. .* put this config into etcd and restart flannelpy on all hosts: (\{.*\})$"
    )
    assert not reaches(ours, old)
    later.knows(ours, device_mac(ours))
    assert reaches(ours, later), "a probe changes nothing there"
    config = json.loads(found[1])
    assert config["Backend"] == {**CONFIG["Backend"], "PortSwapped": True}
    lab.put_config(found[1])
    assert daemon.stop() == 0
    assert daemon.log().count("is not reached") == 1
    # With that config it is the later one that is not reached.
    daemon = started(ours)
    assert f"dstport {SWAPPED} " in ours.run("ip", "-d", "link", "show", "flannel.1").stdout
    old.knows(ours, device_mac(ours))
    wait_for(lambda: reaches(ours, old), 5, "the peer to be reached")
    found = daemon.wait_for_log(
        rf"E.*Host {later.host.public_ip} \({later.subnet}\) is not reached: UDP port {SWAPPED} is closed there, and "
        rf"{PORT} is not\. .*: (\{{.*\}})$"
    )
    assert json.loads(found[1])["Backend"] == CONFIG["Backend"]
    assert daemon.log().count("is not reached") == 1
    drop = rf"--dport {SWAPPED} "
    wait_for(lambda: re.search(drop, ours.run("iptables-save", "-t", "mangle").stdout), 5, "rules about that port")
    assert f"--dport {PORT} " not in ours.run("iptables-save").stdout
    assert daemon.stop() == 0
