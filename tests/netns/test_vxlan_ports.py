"""Hosts that use another port for the same Backend.Port, and devices and programs that have our VNI or port."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from lab import ETCD_PREFIX, Daemon, Host, Lab, wait_for

PORT, SWAPPED = 7890, 53790
CONFIG: dict[str, Any] = {"Network": "11.0.0.0/16", "Backend": {"Type": "vxlan", "Port": PORT}}

pytestmark = pytest.mark.usefixtures("root")


def mac_of(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


class Original:
    """A host with a kernel set up by hand as flanneld sets it up, with one subnet; its lease has no HostID."""

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
        """Add the entries that flanneld derives from a lease."""
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
    return str(re.findall(r"link/ether (\S+)", host.run("ip", "link", "show", "flannel.1").stdout)[0])


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
        rf"E.*Peer {peer.public_ip} \({old.subnet}\) is unreachable: UDP port {PORT} is closed, and {SWAPPED} is "
        r"not\. .* put this config into etcd and restart flannelpy on all hosts: (\{.*\})$"
    )
    assert not reaches(ours, old)
    later.knows(ours, device_mac(ours))
    assert reaches(ours, later), "a probe changes nothing there"
    config = json.loads(found[1])
    assert config["Backend"] == {**CONFIG["Backend"], "PortSwapped": True}
    lab.put_config(found[1])
    assert daemon.stop() == 0
    assert daemon.log().count("unreachable: UDP port") == 1
    # With that config, the host of a later version is not reached.
    daemon = started(ours)
    assert f"dstport {SWAPPED} " in ours.run("ip", "-d", "link", "show", "flannel.1").stdout
    old.knows(ours, device_mac(ours))
    wait_for(lambda: reaches(ours, old), 5, "the peer to be reached")
    found = daemon.wait_for_log(
        rf"E.*Peer {later.host.public_ip} \({later.subnet}\) is unreachable: UDP port {SWAPPED} is closed, and "
        rf"{PORT} is not\. .*: (\{{.*\}})$"
    )
    assert json.loads(found[1])["Backend"] == CONFIG["Backend"]
    assert daemon.log().count("unreachable: UDP port") == 1
    drop = rf"--dport {SWAPPED} "
    wait_for(lambda: re.search(drop, ours.run("iptables-save", "-t", "mangle").stdout), 5, "rules about that port")
    assert f"--dport {PORT} " not in ours.run("iptables-save").stdout
    assert daemon.stop() == 0


OVER = "local 172.17.8.101 dev eth1"
TAKEN = {
    "a device of another program with our VNI": (
        [f"link add overlay type vxlan id 1 {OVER} dstport {PORT}"],
        f"overlay has VNI 1 and port {PORT} already; remove it, ",
    ),
    "one on another interface below, with an alias": (
        [
            "link add below type bridge",
            f"link add overlay type vxlan id 1 dev below dstport {PORT}",
            "link set overlay alias k8s up",
        ],
        f"overlay (alias: k8s) has VNI 1 and port {PORT} already; remove it, ",
    ),
    "one that was moved into a container": (
        [f"link add overlay type vxlan id 1 {OVER} dstport {PORT}", "link set overlay netns {netns}"],
        f"a VXLAN device that was moved into another network namespace has VNI 1 and port {PORT} already; remove it, ",
    ),
    "one of another VNI whose settings differ": (
        [f"link add overlay type vxlan id 7 {OVER} dstport {PORT} gbp", "link set overlay up"],
        f"overlay has UDP port {PORT}, with settings that differ from ours; remove it, ",
    ),
    "one for all VNIs": (
        [f"link add overlay type vxlan external dstport {PORT}", "link set overlay up"],
        f"overlay has UDP port {PORT}, with settings that differ from ours; remove it, ",
    ),
}


def refused(host: Host) -> str:
    """Return the last log line; assert that nothing is left behind."""
    daemon = host.start_daemon("-iface=eth1")
    assert daemon.process.wait(10) == 1
    assert "flannel.1:" not in host.run("ip", "link").stdout
    return daemon.log().splitlines()[-1]


@pytest.mark.parametrize("case", TAKEN)
def test_the_device_that_has_our_vni_or_port_is_named(lab: Lab, case: str) -> None:
    host, other, *_ = lab.hosts
    lab.put_config(json.dumps(CONFIG))
    host.run("ip", "link", "delete", "flannel.1", check=False)
    commands, named = TAKEN[case]
    host.configure(*(command.format(netns=other.netns) for command in commands))
    line = refused(host)
    assert f" (VNI 1, port {PORT}): {named}" in line or f"cannot set flannel.1 up: {named}" in line
    assert line.endswith("or choose another Backend.VNI or Backend.Port for all hosts")
    for node in (host, other):
        for name in ("overlay", "below"):
            node.run("ip", "link", "delete", name, check=False)


@pytest.mark.parametrize(("family", "address"), [("AF_INET", "127.0.0.1"), ("AF_INET6", "::")])
def test_the_program_that_has_our_port_is_named(lab: Lab, family: str, address: str) -> None:
    host, *_ = lab.hosts
    lab.put_config(json.dumps(CONFIG))
    host.run("ip", "link", "delete", "flannel.1", check=False)
    script = (
        f"import socket, time; end = socket.socket(socket.{family}, socket.SOCK_DGRAM); "
        f"end.bind(('{address}', {PORT})); print('bound', flush=True); time.sleep(60)"
    )
    with host.popen(sys.executable, "-c", script) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "bound\n"
        comm = Path(f"/proc/{holder.pid}/comm").read_text().strip()
        message = f"UDP port {PORT} belongs to process {holder.pid} ({comm}); stop it, "
        assert message in refused(host)
        holder.kill()
    daemon = started(host)
    assert daemon.stop() == 0


def test_a_device_that_takes_our_vni_while_we_run_is_named_until_it_is_gone(lab: Lab) -> None:
    host, *_ = lab.hosts
    lab.put_config(json.dumps(CONFIG))
    daemon = started(host)
    host.configure("link delete flannel.1", f"link add overlay type vxlan id 1 {OVER} dstport {PORT}")
    daemon.wait_for_log(rf"E.* \(VNI 1, port {PORT}\): overlay has VNI 1 and port {PORT} already; remove it, or choose")
    ready = host.run_dir / "flannel/ready"
    wait_for(lambda: not ready.exists(), 3, "not ready")
    host.configure("link delete overlay")
    wait_for(ready.exists, 3, "ready")
    assert "flannel.1:" in host.run("ip", "link").stdout
    assert daemon.stop() == 0
