"""A cluster changes from etcd's v2 store to its v3 store and back under traffic; tests/soak has more hosts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from faults.backends import ALLOC, VXLAN
from faults.change_over import DEADLINE, V2, V3, joining_on_both_sides, there_and_back
from lab import ETCD_PREFIX, Daemon, Host, Lab, wait_for
from lab.etcd_stores import Store
from support.tenants import NETWORKS, subnet_file

pytestmark = pytest.mark.usefixtures("root")


def test_hosts_go_there_and_back_without_a_lost_packet(make_lab: Callable[..., Lab]) -> None:
    there_and_back(make_lab, VXLAN, hosts=3, is_finished=False)


def test_hosts_join_on_both_sides_at_the_same_time(make_lab: Callable[..., Lab]) -> None:
    joining_on_both_sides(make_lab, ALLOC, hosts=6, lease_ttl=5, deleted=ETCD_PREFIX)


class Documented:
    """Two hosts with two networks, taken through the steps of docs/etcd.md."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.etcd = lab.etcd
        self.daemons: dict[Host, Daemon] = {}

    def put_configs(self, store: Store) -> None:
        for network, subnet in NETWORKS.items():
            store.put(f"{ETCD_PREFIX}/{network}/config", ALLOC.config(subnet))

    def restart(self, flag: str) -> None:
        """Host after host; each has its subnets again."""
        for host in self.lab.hosts:
            before = self.subnets()
            is_restart = host in self.daemons
            if is_restart:
                assert self.daemons[host].stop(DEADLINE) == 0
            self.daemons[host] = host.start_daemon("-iface=eth1", "-networks=blue,green", *([flag] if flag else []))
            self.daemons[host].wait_ready(DEADLINE)
            assert not is_restart or self.subnets() == before, self.daemons[host].log()

    def subnets(self) -> list[str]:
        files = [subnet_file(host, network) for host in self.lab.hosts for network in NETWORKS]
        return [file.read_text() for file in files if file.exists()]

    def copy_command(self, *flags: str) -> list[str]:
        flags = ("-networks=blue,green", f"-etcd-endpoints={self.etcd.url}", *flags)
        return [sys.executable, "-P", "-m", "flannelpy", "copy-to-v3", *flags]

    def copied(self) -> list[str]:
        """The lines about leases of one run."""
        done = self.lab.switch.run(*self.copy_command())
        return [line for line in done.stdout.splitlines() if "-24: " in line]

    def count(self, store: Store) -> int:
        return sum(len(store.list(f"{ETCD_PREFIX}/{network}/subnets")) for network in NETWORKS)


def test_the_documented_steps_of_several_networks_there_and_back(make_lab: Callable[..., Lab]) -> None:
    world = Documented(make_lab(hosts=2))
    v2, v3 = world.etcd.v2, world.etcd.v3
    world.put_configs(v2)
    world.restart("")
    subnets = world.subnets()
    following = world.lab.switch.popen(*world.copy_command("-follow"), stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: world.count(v3) == 4, DEADLINE, "the copies")
        world.restart(V3)
        assert len(world.copied()) == 4
        assert all(line.endswith(": kept, its host uses v3") for line in world.copied())
        for network in NETWORKS:
            v2.delete(f"{ETCD_PREFIX}/{network}/config")
        assert following.wait(DEADLINE) == 0
    finally:
        following.terminate()
        following.wait(DEADLINE)
    for daemon in world.daemons.values():
        daemon.wait_for_log("Network config is gone from etcd v2", DEADLINE)
    world.restart("")  # with -etcd-api=auto
    assert all("Found network config in etcd v3: leases are kept there" in host.log() for host in world.lab.hosts)

    # The way back.
    for network in NETWORKS:
        v2.delete(f"{ETCD_PREFIX}/{network}/subnets")
    world.put_configs(v2)
    assert world.count(v2) == 0
    world.restart(V3)
    assert (world.count(v2), world.count(v3)) == (4, 4)
    assert all(line.endswith(": kept, its host uses v3") for line in world.copied())
    world.restart(V2)
    v3.delete(ETCD_PREFIX)
    world.restart("")
    assert world.subnets() == subnets
    assert world.count(v2) == 4
