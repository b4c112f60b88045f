"""A container of one network attacks another network of the same daemons: which packets cross.

docs/security.md lists what CROSSED holds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import product
from typing import NamedTuple

import pytest
from lab import ETCD_PREFIX, Host, Lab, wait_for
from support.attacks import SCRIPT, datagram, fragments, in_vxlan, labelled, line, sniffing
from support.tenants import NETWORKS, Tenant

pytestmark = pytest.mark.usefixtures("root")

_END = "end"


class Setting(NamedTuple):
    """The Backend object and the port of each network, and the daemons' flags."""

    backends: dict[str, dict[str, object]]
    ports: dict[str, int]
    flags: tuple[str, ...] = ()


_UDP = Setting(
    {"blue": {"Type": "udp", "Port": 8285}, "green": {"Type": "udp", "Port": 8286}}, {"blue": 8285, "green": 8286}
)
SETTINGS = {
    "udp": _UDP,
    "udp strict": _UDP._replace(flags=("-source-check=strict",)),
    "vxlan": Setting(
        {"blue": {"Type": "vxlan", "VNI": 1}, "green": {"Type": "vxlan", "VNI": 2}}, {"blue": 8472, "green": 8472}
    ),
}
#: The packets of a container of blue that reach green.
_BY_UDP = {"forged source", "public ip here from the other host"}
CROSSED: dict[str, set[str]] = {
    "udp": _BY_UDP,
    "udp strict": _BY_UDP,
    "vxlan": {
        *_BY_UDP,
        # The kernel accepts datagrams at every address of a host, from any sender.
        "public ip here from own",
        *(f"{name}'s {kind} address here" for name in NETWORKS for kind in ("tunnel", "bridge")),
        *(f"{name}'s {kind} address here, forged peer" for name in NETWORKS for kind in ("tunnel", "bridge")),
        "blue's tunnel address there",
        "blue's bridge address there",
    },
}


class Scene:
    """Two hosts with a container of each network; blue's container on the first host attacks."""

    def __init__(self, lab: Lab, setting: Setting) -> None:
        self.setting = setting
        for name, network in NETWORKS.items():
            config = json.dumps({"Network": str(network), "Backend": setting.backends[name]})
            lab.etcd_request("PUT", f"{ETCD_PREFIX}/{name}/config", value=config)
        for host in lab.hosts:
            host.start_daemon("-iface=eth1", "-networks=blue,green", "-ip-masq", *setting.flags).wait_ready()
        self.hosts = lab.hosts
        self.tenants = {(host, name): Tenant(host, name) for host, name in product(lab.hosts, NETWORKS)}
        for tenant in self.tenants.values():
            tenant.start()
        self.attacker = self.tenants[lab.hosts[0], "blue"]
        for name in NETWORKS:
            self.ping(name)
        for host in self.hosts:
            wait_for(partial(self.has_rules, host), 10, "the rules for the other host")

    def has_rules(self, host: Host) -> bool:
        """Return whether both networks have the rule about the other host, which is added within a second."""
        [other] = [other for other in self.hosts if other is not host]
        rules = host.run("iptables-save", "-t", "mangle").stdout
        return rules.count(f"-d {other.public_ip}/32") == len(NETWORKS)

    def send(self, packets: list[bytes]) -> None:
        [link] = json.loads(self.attacker.host.run("ip", "-j", "link", "show", "blue").stdout)
        argv = [sys.executable, "-I", "-S", SCRIPT, "send", "eth0", link["address"]]
        self.attacker.run(*argv, input="".join(f"{packet.hex()}\n" for packet in packets))

    def inner(self, label: str, to: Host) -> bytes:
        """Return a packet from green's container on the other host to that on this host."""
        [other] = [host for host in self.hosts if host is not to]
        return labelled(str(self.tenants[other, "green"].address), str(self.tenants[to, "green"].address), label)

    def datagram(self, label: str, source: str, to: Host, address: str) -> bytes:
        """Return a datagram with a packet of green, as green's tunnel sends it."""
        inner = self.inner(label, to)
        payload = in_vxlan(inner, to, 2) if self.setting.backends["green"]["Type"] == "vxlan" else inner
        port = self.setting.ports["green"]
        return datagram(source, address, payload, (port, port))

    def attacks(self) -> Iterator[tuple[str, bytes]]:
        here, there = self.hosts
        own = str(self.attacker.address)
        green = str(self.tenants[there, "green"].address)
        yield "own source", labelled(own, green, "own source")
        yield "forged source", self.inner("forged source", there)
        for name, target in product(NETWORKS, self.hosts):
            subnet = self.tenants[target, name].subnet
            for kind, address in (("tunnel", subnet[0]), ("bridge", subnet[1])):
                which = f"{name}'s {kind} address {'here' if target is here else 'there'}"
                yield which, self.datagram(which, own, target, str(address))
                other = there if target is here else here
                forged = f"{which}, forged peer"
                yield forged, self.datagram(forged, str(other.public_ip), target, str(address))
        for target, where in ((here, "here"), (there, "there")):
            for label, source in (("own", own), ("its host", here.public_ip), ("the other host", there.public_ip)):
                text = f"public ip {where} from {label}"
                yield text, self.datagram(text, str(source), target, str(target.public_ip))
        whole = self.datagram("in fragments", own, there, str(there.public_ip))
        for number, fragment in enumerate(fragments(whole)):
            yield f"in fragments {number}", fragment

    def crossed(self) -> set[str]:
        """Return the labels of the packets that leave green's bridges."""
        found = set()
        with ExitStack() as sniffers:
            seen = {host: sniffers.enter_context(sniffing(host, "green", "out")) for host in self.hosts}
            self.send([packet for _, packet in self.attacks()])
            self.ping("green")  # by then both daemons have processed all earlier packets
            for host, process in seen.items():
                address = str(self.tenants[host, "green"].address)
                code = f"import socket; socket.socket(type=2).sendto(b'attack:{_END};', ('{address}', 9))"
                host.run(sys.executable, "-I", "-S", "-c", code)
                while (label := line(process).partition(" ")[2]) != _END:
                    found.add(label)
        return found

    def ping(self, name: str) -> None:
        """Ping until an answer arrives."""
        one, other = (self.tenants[host, name] for host in self.hosts)
        wait_for(lambda: not one.ping(other).returncode, 10, f"a ping in {name}")


@pytest.fixture(scope="module", params=SETTINGS)
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with Lab(hosts=2) as lab:
        yield Scene(lab, SETTINGS[request.param])


def test_which_packets_cross_networks(scene: Scene, request: pytest.FixtureRequest) -> None:
    crossed = scene.crossed()
    assert crossed == CROSSED[request.node.callspec.params["scene"]]


def test_rp_filter_drops_forged_sources_on_the_source_host(scene: Scene) -> None:
    """This test is the last, because rp_filter stays on."""
    scene.attacker.host.run("sysctl", "-q", "net.ipv4.conf.blue.rp_filter=1")
    crossed = scene.crossed()
    assert not crossed & _BY_UDP
    assert not {label for label in crossed if "forged" in label}
