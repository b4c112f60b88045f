"""Docker's rules decide which container may leave its network: no rule of flannelpy precedes them.

The chains are those of Docker 20.10 and 28.5; tests/docker runs real dockerds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv4Interface
from typing import NamedTuple

import pytest
from faults.backends import HOST_GW, UDP, VXLAN
from lab import Container, Host, Lab, Node, wait_connected, wait_for
from support.firewalls import is_forwarding_accepted, reaches

pytestmark = [pytest.mark.usefixtures("root"), pytest.mark.sample("pair", 3, together=True)]

NETWORK = "11.0.0.0/16"
DIRECT = json.dumps({"Network": NETWORK, "Backend": {"Type": "vxlan", "DirectRouting": True}})
CONFIGS = {**{str(backend): backend.config() for backend in (UDP, VXLAN, HOST_GW)}, "direct": DIRECT}
#: The bridge of a network that was made with --internal.
INTERNAL = IPv4Interface("172.20.0.1/16")

DOCKER_20 = """*filter
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
-P FORWARD DROP
-I FORWARD 1 -j DOCKER-USER
-I FORWARD 2 -j DOCKER-ISOLATION-STAGE-1
-I FORWARD 3 -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-I FORWARD 4 -o docker0 -j DOCKER
-I FORWARD 5 -i docker0 ! -o docker0 -j ACCEPT
-I FORWARD 6 -i docker0 -o docker0 -j ACCEPT
-I FORWARD 7 -i inner -o inner -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 ! -s 172.20.0.0/16 -o inner -j DROP
-A DOCKER-ISOLATION-STAGE-1 ! -d 172.20.0.0/16 -i inner -j DROP
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
COMMIT
"""
DOCKER_28 = """*raw
-A PREROUTING -d {container}/32 ! -i docker0 -j DROP
COMMIT
*filter
:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-INTERNAL - [0:0]
-P FORWARD DROP
-I FORWARD 1 -j DOCKER-USER
-I FORWARD 2 -j DOCKER-FORWARD
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-INTERNAL
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
-A DOCKER-INTERNAL ! -s 172.20.0.0/16 -o inner -j DROP
-A DOCKER-INTERNAL ! -d 172.20.0.0/16 -i inner -j DROP
COMMIT
"""
MASQUERADING = """*nat
-A POSTROUTING -s {subnet} ! -o docker0 -j MASQUERADE
COMMIT
"""
UFW = "*filter\n-P FORWARD DROP\nCOMMIT\n"
FIREWALLS = {"docker20": DOCKER_20, "docker28": DOCKER_28, "ufw": UFW}

#: Of a container's address, by Docker 28.
RAW_DROP = "PREROUTING -d {}/32 ! -i docker0 -j DROP"
CASES: list[tuple[str, ...]] = [
    ("docker20", "udp"),
    ("docker28", "udp", "-ip-masq"),
    ("docker20", "vxlan", "-ip-masq"),
    ("docker28", "vxlan"),
    ("docker20", "host-gw"),
    ("docker28", "host-gw", "-ip-masq"),
    ("docker20", "direct", "-ip-masq"),
    ("docker28", "direct"),
    ("ufw", "udp"),
    ("ufw", "host-gw", "-ip-masq"),
]


class Isolated(Container):
    """A container of a network without a way out."""

    def __init__(self, host: Host) -> None:
        super().__init__(host, 9)
        host.configure("link add inner type bridge", f"address add {INTERNAL} dev inner", "link set inner up")
        self.create()
        host.configure(f"link add veth9 type veth peer name eth0 netns {self.netns}", "link set veth9 master inner up")
        self.address = INTERNAL.ip + 1
        self.configure(
            f"address add {self.address}/16 dev eth0", "link set eth0 up", f"route add default via {INTERNAL.ip}"
        )


class Pair(NamedTuple):
    """Two hosts behind a firewall, a container each."""

    firewall: str
    one: Container
    other: Container


@pytest.fixture(scope="module", params=CASES, ids=["-".join((firewall, *rest)) for firewall, *rest in CASES])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    firewall, config, *flags = request.param
    with Lab(hosts=2) as lab:
        lab.put_config(CONFIGS[config])
        for host in lab.hosts:
            host.run("sysctl", "-q", "-w", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")
        wait_connected([host.start_daemon("-iface=eth1", "-iptables-resync=1", *flags) for host in lab.hosts])
        for host in lab.hosts:
            wait_for(partial(is_forwarding_accepted, host), 10, "the rules")
        containers = [host.add_container() for host in lab.hosts]
        for container in containers:
            put_firewall(container, firewall, is_masquerading="-ip-masq" not in flags)
        one, other = containers
        wait_for(lambda: reaches(one, other.address, 1) and reaches(other, one.address, 1), 10, "the rules")
        yield Pair(firewall, one, other)


def put_firewall(container: Container, firewall: str, *, is_masquerading: bool) -> None:
    """Put the rules of a firewall, and Docker's masquerading, and wait for flannelpy to follow."""
    host = container.host
    text = FIREWALLS[firewall] + (MASQUERADING if is_masquerading and firewall != "ufw" else "")
    rules = text.format(container=container.address, subnet=host.subnet()).replace("-P FORWARD DROP", ":FORWARD DROP")
    host.run("iptables-restore", "--noflush", input=rules)
    wait_for(lambda: "FLANNEL" in host.run("iptables", "-S", "FORWARD").stdout.splitlines()[-1], 10, "the last jump")


def is_sent(host: Host, sender: Node, address: object, source: object) -> bool:
    """Whether the host forwards what ``sender`` sends with a source that it may have forged."""
    match = ("-s", str(source), "-p", "icmp")
    if str(source) not in sender.run("ip", "address").stdout:
        sender.run("ip", "address", "add", f"{source}/32", "dev", "lo")
    host.run("iptables", "-t", "mangle", "-I", "POSTROUTING", *match)
    sender.run("ping", "-n", "-c2", "-i0.2", "-W1", "-I", str(source), str(address), check=False)
    found = host.run("iptables", "-t", "mangle", "-vxnL", "POSTROUTING").stdout.splitlines()[2].split()[0]
    host.run("iptables", "-t", "mangle", "-D", "POSTROUTING", *match)
    return found != "0"


def test_containers_of_different_hosts_reach_each_other(pair: Pair) -> None:
    assert reaches(pair.one, pair.other.address)
    assert reaches(pair.other, pair.one.address)


def test_an_isolated_container_cannot_send_into_the_network_with_a_forged_source(pair: Pair) -> None:
    if pair.firewall == "ufw":  # which has no isolated network
        return
    host, inner = pair.one.host, Isolated(pair.one.host)
    own, peers, unknown = host.subnet()[77], pair.other.host.subnet()[77], "11.0.250.9"
    for source in (inner.address, own, peers, unknown):
        assert not is_sent(host, inner, pair.other.address, source), source
    host.run("iptables", "-I", "FORWARD", "-i", "inner", "-j", "ACCEPT")
    assert is_sent(host, inner, pair.other.address, own)
    host.run("iptables", "-D", "FORWARD", "-i", "inner", "-j", "ACCEPT")


@pytest.mark.parametrize("way", ["-s", "-d"])
def test_an_operators_drop_wins(pair: Pair, way: str) -> None:
    host, rule = pair.one.host, (way, str(pair.one.address), "-j", "DROP")
    chain = "FORWARD" if pair.firewall == "ufw" else "DOCKER-USER"
    host.run("iptables", "-A", chain, *rule)
    wait_for(lambda: not reaches(pair.one, pair.other.address, 1), 10, "our jump to come last again")
    assert not reaches(pair.one, pair.other.address)
    host.run("iptables", "-D", chain, *rule)
    assert reaches(pair.one, pair.other.address, 1)


def test_bridges_that_are_not_docker_s_reach_other_hosts_too(pair: Pair) -> None:
    """Docker has no rules for the bridge of a CNI plugin, only a policy that drops."""
    for container in (pair.one, pair.other):
        container.host.configure("link set docker0 down", "link set docker0 name cni0", "link set cni0 up")
        container.host.run("iptables", "-t", "raw", "-D", *RAW_DROP.format(container.address).split(), check=False)
    wait_for(lambda: reaches(pair.one, pair.other.address, 1), 10, "the bridge to come back")
    test_containers_of_different_hosts_reach_each_other(pair)
