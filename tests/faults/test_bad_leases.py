"""Leases that no host should use, while hosts keep exchanging packets: each kind, with each backend that has routes.

The network contains the hosts' own link, as with hosts in 10.1.0.0/24 and the network 10.0.0.0/8.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv4Network

import pytest
from faults.backends import HOST_GW, UDP, VXLAN, Backend
from lab import ETCD_PREFIX, Daemon, Host, Lab, wait_for
from support.hosts import freeze, subnet_in_file, thaw

NETWORK = "172.16.0.0/12"
RANGE = {"SubnetMin": "172.20.1.0", "SubnetMax": "172.20.255.0"}
PEER, ETCD, OURS, OTHER = "172.17.8.102", "172.17.8.1", "172.17.8.101", "172.17.8.150"
ELSEWHERE = "192.0.2.9"

pytestmark = [pytest.mark.usefixtures("root"), pytest.mark.sample("world", 2, together=True)]


def ignoring(subnet: str) -> str:
    """Return a regex for the line about a subnet, which may name others that came with it for the same cause."""
    return rf"Ignoring subnet (?:\S+, )*{subnet}(?: via [0-9.]+)?(?:, \S+)*(?: and \d+ more)?: "


class World:
    """Two hosts with a container each, and write access to etcd."""

    def __init__(self, lab: Lab, backend: Backend) -> None:
        self.lab = lab
        self.backend = backend
        self.one, self.two = lab.hosts
        self._numbers = itertools.count(1)

    @property
    def daemon(self) -> Daemon:
        return self.one.daemons[-1]

    def put(self, subnet: str, public_ip: str) -> None:
        """Write leases, each with a MAC of its own."""
        mac = "02:" + int(IPv4Network(subnet)[0]).to_bytes(4).hex(":") + f":{IPv4Network(subnet).prefixlen:02x}"
        self.lab.etcd_request("PUT", _key(subnet), value=self.backend.lease(public_ip, mac))

    def remove(self, *subnets: str) -> None:
        for subnet in subnets:
            self.lab.etcd_request("DELETE", _key(subnet))

    def ignored(self, subnet: str) -> int:
        """Return how often the first host has logged that it ignores a lease."""
        return len(re.findall(ignoring(subnet), self.daemon.log()))

    def routes(self) -> list[str]:
        """Return all routes except those to usable leases, which are added and removed meanwhile."""
        lines = self.one.run("ip", "-4", "route", "show", "table", "all").stdout.splitlines()
        return sorted(line for line in lines if not line.startswith("172.29."))

    def ping(self) -> bool:
        """Return whether the containers reach each other."""
        source, target = self.two.containers[0], self.one.containers[0]
        return source.run("ping", "-n", "-c2", "-i0.2", "-W1", str(target.address), check=False).returncode == 0

    def check_unharmed(self, before: list[str]) -> None:
        """Assert that containers reach each other, and that the daemon still follows leases."""
        assert self.routes() == before
        assert self.ping()
        assert "not ready" not in self.daemon.notified[-1]
        good = f"172.29.{next(self._numbers)}.0/24"
        self.put(good, OTHER)
        self.daemon.wait_for_log(f"Subnet added: {good}", 5)


def _key(subnet: str) -> str:
    return f"{ETCD_PREFIX}/subnets/{subnet.replace('/', '-')}"


@pytest.fixture(scope="module", params=[UDP, VXLAN, HOST_GW], ids=str)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    backend: Backend = request.param
    with Lab(hosts=2) as lab:
        lab.put_config(json.dumps({"Network": NETWORK, **RANGE, "Backend": {"Type": backend.name}}))
        # A deleted lease is forgotten after its TTL, at most a minute.
        lab.start_daemons("-iface=eth1", "-subnet-lease-ttl=5s")
        for host in lab.hosts:
            host.add_container()
        world = World(lab, backend)
        wait_for(world.ping, 10, "a ping")
        yield world


def test_a_lease_inside_our_subnet_moves_no_route_of_our_containers(world: World) -> None:
    own = world.one.subnet()
    container = world.one.containers[0].address
    before = world.routes()
    bad = [str(next(own.subnets(prefixlen_diff=1))), f"{container}/32", str(own.supernet(4)), f"{own[248]}/29"]
    for subnet in bad:
        world.put(subnet, PEER)
        world.daemon.wait_for_log(rf"W.*Ignoring subnet {subnet}: it overlaps our subnet {own}$")
    assert "dev docker0" in world.one.run("ip", "route", "get", str(container)).stdout
    world.remove(*bad)
    world.check_unharmed(before)


WOULD_TAKE_A_WAY = [
    ("172.17.8.102/32", ELSEWHERE, "it lies inside 172.17.8.0/24, a network of the external interface"),
    ("172.17.8.192/26", ELSEWHERE, "it lies inside 172.17.8.0/24, a network of the external interface"),
    ("172.17.8.96/28", ELSEWHERE, f"it contains {OURS}, an address of this host"),
    ("172.17.0.0/16", ELSEWHERE, f"it contains {OURS}, an address of this host"),
    ("172.17.8.1/32", ELSEWHERE, f"it contains {ETCD}, an address of etcd"),
    ("172.17.8.0/30", ELSEWHERE, f"it contains {ETCD}, an address of etcd"),
    ("172.16.0.0/12", ELSEWHERE, f"it is no part of the network {NETWORK}"),
    ("0.0.0.0/0", ELSEWHERE, f"it is no part of the network {NETWORK}"),
]
LEADS_NOWHERE = [
    ("172.30.1.0/24", "172.17.8.255", "its public IP 172.17.8.255 is the network or broadcast address"),
    ("172.30.2.0/24", "172.17.8.0", "its public IP 172.17.8.0 is the network or broadcast address"),
    ("172.30.3.0/24", "127.0.0.1", "its public IP 127.0.0.1 is in 127.0.0.0/8"),
    ("172.30.4.0/24", "224.0.0.18", "its public IP 224.0.0.18 is in 224.0.0.0/4"),
    ("172.30.5.0/24", "255.255.255.255", "its public IP 255.255.255.255 is in 240.0.0.0/4"),
    ("172.30.6.0/24", "172.30.6.1", "its public IP 172.30.6.1 lies inside the subnet itself"),
    ("172.30.7.7/32", "172.30.7.7", "its public IP 172.30.7.7 lies inside the subnet itself"),
]


@pytest.mark.parametrize("leases", [WOULD_TAKE_A_WAY, LEADS_NOWHERE], ids=["a way", "nowhere"])
def test_a_lease_that_would_take_other_packets_or_lead_nowhere_is_ignored(
    world: World, leases: list[tuple[str, str, str]]
) -> None:
    before = world.routes()
    for subnet, public_ip, _ in leases:
        world.put(subnet, public_ip)
    for subnet, _, why in leases:
        world.daemon.wait_for_log(rf"W.*{ignoring(subnet)}{why}")
    world.check_unharmed(before)
    for subnet, public_ip, _ in leases:
        world.put(subnet, public_ip)
    world.check_unharmed(before)
    assert [world.ignored(subnet) for subnet, _, _ in leases] == [1] * len(leases)
    world.remove(*(subnet for subnet, _, _ in leases))


def test_a_lease_around_the_public_ip_of_another_lease_is_ignored_while_that_exists(world: World) -> None:
    """The other lease is that of a host behind a router, to which the kernel has a route of its own."""
    world.one.configure("route add 172.25.7.0/24 via 172.17.8.1 proto static")
    before = world.routes()
    world.put("172.25.0.0/16", OTHER)
    world.daemon.wait_for_log("Subnet added: 172.25.0.0/16", 5)
    world.put("172.31.1.0/24", "172.25.7.9")
    world.daemon.wait_for_log(r"W.*Ignoring subnet 172.25.0.0/16: it contains 172.25.7.9, the public IP of another")
    wait_for(lambda: "172.25.0.0/16" not in " ".join(world.routes()), 5, "no route of its")
    world.remove("172.31.1.0/24")
    wait_for(lambda: world.daemon.log().count("Subnet added: 172.25.0.0/16") == 2, 15, "the lease to be usable again")
    world.remove("172.25.0.0/16")
    wait_for(lambda: world.routes() == before, 15, "nothing of it")
    world.one.configure("route del 172.25.7.0/24")


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (("172.26.1.0/24", "172.27.1.5"), ("172.27.1.0/24", "172.26.1.5")),
        (("172.26.2.5/32", "172.27.2.5"), ("172.27.2.0/23", "172.26.2.5")),
        (("172.26.4.0/24", "172.26.4.5"), ("172.27.4.0/25", "172.27.4.99")),
    ],
    ids=["each other", "each other, of any length", "itself"],
)
def test_packets_do_not_loop(world: World, one: tuple[str, str], two: tuple[str, str]) -> None:
    """Two leases contain each other's public IP, or each its own: one ping must cause no loop of packets on eth1."""
    for lease in (one, two):
        world.put(*lease)
    for subnet, _ in (one, two):
        world.daemon.wait_for_log(rf"W.*Ignoring subnet {subnet}: ")
    before, start = _sent(world.one), time.monotonic()
    for subnet, _ in (one, two):
        target = str(IPv4Network(subnet)[0] + (0 if subnet.endswith("/32") else 9))
        world.one.containers[0].run("ping", "-n", "-c1", "-W1", target, check=False)
    elapsed = time.monotonic() - start
    assert _sent(world.one) - before < 100 + 50 * elapsed
    world.remove(one[0], two[0])
    assert world.ping()


def _sent(host: Host) -> int:
    return int(host.run("cat", "/sys/class/net/eth1/statistics/tx_packets").stdout)


def test_a_public_ip_behind_our_own_device_is_unusable_until_another_route_exists(world: World) -> None:
    world.put("172.28.1.0/24", "172.24.0.9")
    if world.backend is HOST_GW:
        world.daemon.wait_for_log(r"Ignoring subnet 172.28.1.0/24 via 172.24.0.9: it is not on the link")
    else:
        device = world.backend.device
        world.daemon.wait_for_log(
            "W.*Ignoring subnet 172.28.1.0/24: "
            f"the kernel would send packets for its public IP 172.24.0.9 into {device},"
        )
        world.one.configure("route add 172.24.0.0/24 via 172.17.8.1 proto static")
        world.daemon.wait_for_log(r"Subnet added: 172.28.1.0/24$", 5)
        world.one.configure("route del 172.24.0.0/24")
        wait_for(lambda: world.ignored("172.28.1.0/24") == 2, 5, "the lease to be unusable again")
        wait_for(lambda: "172.28.1.0" not in " ".join(world.routes()), 5, "no route of its")
    world.remove("172.28.1.0/24")


def test_an_ignored_lease_is_used_when_the_conflicting_address_is_removed(world: World) -> None:
    added = "Subnet added: 172.30.9.0/24"
    world.put("172.30.9.0/24", "172.17.8.77")
    world.daemon.wait_for_log(added)

    def is_unusable(times: int) -> bool:
        return world.ignored("172.30.9.0/24") == times and "172.30.9.0/24" not in " ".join(world.routes())

    def is_usable_again(times: int) -> bool:
        return world.daemon.log().count(added) == times + 1

    for times in (1, 2):
        world.one.configure("address add 172.17.8.77/24 dev eth1")
        wait_for(partial(is_unusable, times), 5, "the lease to be unusable")
        world.one.configure("address del 172.17.8.77/24 dev eth1")
        wait_for(partial(is_usable_again, times), 5, "the lease to be usable again")
    assert world.daemon.log().count("its public IP 172.17.8.77 is an address of this host") == 2
    world.remove("172.30.9.0/24")


@pytest.mark.parametrize("device", ["flannel7 mode tun", "other0 mode tap"])
def test_an_address_of_any_own_device_is_no_peers_public_ip(world: World, device: str) -> None:
    """Own devices include those of other networks and of other daemons."""
    name = device.split()[0]
    world.one.configure(f"tuntap add {device}", f"address add 192.168.99.0/32 dev {name}")
    world.put("172.30.11.0/24", "192.168.99.0")
    world.daemon.wait_for_log("W.*Ignoring subnet 172.30.11.0/24: its public IP 192.168.99.0 is an address of this", 10)
    wait_for(lambda: "172.30.11.0" not in " ".join(world.routes()), 5, "no route of its")
    world.remove("172.30.11.0/24")
    world.one.configure(f"link delete {name}")


def test_an_overlapping_lease_that_was_created_later_changes_nothing_and_an_earlier_one_ends_the_daemon(
    world: World,
) -> None:
    """This test is the last, because the host gets another subnet."""
    own = world.one.subnet()
    half = str(list(own.subnets())[1])
    world.put(half, PEER)
    world.daemon.wait_for_log(rf"W.*Ignoring subnet {half}: it overlaps our subnet {own}$")
    world.put(half, OTHER)
    freeze(world.daemon)
    world.remove(str(own), half)
    world.put(half, OTHER)
    daemon = world.daemon
    thaw(daemon)
    assert daemon.process.wait(10) == 3
    lines = [line for line in daemon.log().splitlines() if "leased earlier" in line]
    assert len(lines) == 1
    assert f"our subnet {own} overlaps {half}, which {OTHER} leased earlier" in lines[0]
    assert subnet_in_file(world.one) is None
    again = world.one.start_daemon("-iface=eth1")
    again.wait_ready()
    assert not world.one.subnet().overlaps(IPv4Network(half))
    assert again.stop() == 0
