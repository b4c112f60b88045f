"""What the fast path leaves where it has been: after other interfaces, other names, and an end without order."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable

import pytest
from lab import Host, Lab, wait_for
from support.datapaths import (
    AUTO,
    KERNEL,
    LOOP,
    POLICY,
    announces,
    containers,
    index_of,
    packets_of_loop,
    pings,
    programs,
    start,
    state,
    status,
)
from support.overlay import transfer

from flannelpy.backend.udp.datapath import LEASE_SECONDS, PAUSE_SECONDS

pytestmark = pytest.mark.usefixtures("root")

MIB = 1 << 20
ETH2 = ("-iface=eth2", "-ip-masq", "-datapath=kernel")


@pytest.fixture
def pair(make_lab: Callable[..., Lab]) -> Lab:
    """Return two hosts without daemons; the first has a second interface, eth2."""
    lab = make_lab(hosts=2)
    lab.put_config()
    host = lab.hosts[0]
    lab.switch.configure(
        f"link add host1b type veth peer name eth2 netns {host.netns}", "link set host1b master br0 up"
    )
    host.configure("address add 172.17.8.201/24 dev eth2", "link set eth2 up")
    return lab


def programs_at(host: Host, device: str, hook: str = "ingress") -> int:
    """Return how many programs of flannelpy the device has there."""
    text = host.run("tc", "filter", "show", "dev", device, hook, check=False).stdout
    return text.count("name flannel_")


def cleanup(host: Host) -> None:
    host.run(sys.executable, "-m", "flannelpy", "-cleanup")


def test_a_start_with_another_external_interface_removes_the_program_from_the_former(pair: Lab) -> None:
    host = pair.hosts[0]
    before = state(host)
    daemons = start(pair, KERNEL, KERNEL)
    daemons[0].kill()
    assert programs_at(host, "eth1") == 1
    daemon = host.start_daemon(*ETH2)
    daemon.wait_ready()
    wait_for(lambda: programs_at(host, "eth2"), 10, "the incoming program at eth2")
    wait_for(lambda: not programs_at(host, "eth1"), 5, "the removal of the program from eth1")
    assert daemon.stop() == 0
    assert state(host) == before


@pytest.mark.parametrize("how", ["cleanup", "loop"])
def test_a_program_is_removed_also_if_device_and_pair_are_gone(pair: Lab, how: str) -> None:
    host = pair.hosts[0]
    before = state(host)
    start(pair, KERNEL, KERNEL)[0].kill()
    host.configure("link delete flannel0", "link delete flannel0-gro")
    assert programs_at(host, "eth1") == 1
    if how == "cleanup":
        cleanup(host)
    else:
        daemon = host.start_daemon(*LOOP)
        daemon.wait_ready()
        assert not programs_at(host, "eth1")
        assert daemon.stop() == 0
    assert state(host) == before


def test_a_renamed_device_and_its_program_end_when_another_takes_their_place(pair: Lab) -> None:
    host = pair.hosts[0]
    before = state(host)
    daemons = start(pair, KERNEL, KERNEL)
    one, other = containers(pair)
    host.configure("link set flannel0 name x")
    wait_for(lambda: programs(host)["flannel0"], 15, "the outgoing program of the new device")
    assert not is_there(host, "x")
    assert pings(one, other) == pings(other, one) == 3
    wait_for(lambda: status(host)["datapath"] == "kernel", 5, "the kernel")
    assert daemons[0].stop() == 0
    assert [one for one in state(host) if "veth" not in one and "docker0" not in one] == before


def test_a_device_that_was_moved_to_another_namespace_ends(pair: Lab) -> None:
    host = pair.hosts[0]
    start(pair, KERNEL, KERNEL)
    one, other = containers(pair)
    host.configure(f"link set flannel0 netns {one.netns}")
    wait_for(lambda: programs(host)["flannel0"], 15, "the outgoing program of the new device")
    assert "flannel0" not in one.run("ip", "link").stdout
    assert pings(one, other) == 3


def is_there(host: Host, device: str) -> bool:
    return any(link["ifname"] == device for link in json.loads(host.run("ip", "-j", "link").stdout))


# Peers that have not read our lease


def switch_back(host: Host) -> None:
    """Have the host leave the fast path by a policy that stops no packet."""
    host.configure("xfrm policy add src 192.0.2.1/32 dst 192.0.2.2/32 dir out")
    wait_for(lambda: not programs(host)["flannel0"], 5, "the removal of the outgoing program")


def test_a_host_whose_lease_does_not_announce_the_kernel_yet_is_understood(pair: Lab) -> None:
    host = pair.hosts[0]
    start(pair, AUTO, AUTO)
    one, other = containers(pair)
    switch_back(host)
    wait_for(lambda: not announces(host), 5, "the lease without the kernel")
    pair.etcd.kill()
    host.configure("xfrm policy flush")
    wait_for(lambda: programs(host)["flannel0"], PAUSE_SECONDS + 20, "the outgoing program")
    before = packets_of_loop(host, ["tx"])
    for source, sink in ((one, other), (other, one)):
        transfer(source, sink, str(sink.address), 16 * MIB)
    assert packets_of_loop(host, ["tx"]) - before < 50


def test_the_incoming_program_stays_while_etcd_cannot_tell_peers_that_it_goes(pair: Lab) -> None:
    host = pair.hosts[0]
    start(pair, AUTO, AUTO)
    one, other = containers(pair)
    pair.etcd.kill()
    switch_back(host)
    time.sleep(LEASE_SECONDS + 3)
    assert programs(host)["eth1"]
    for source, sink in ((one, other), (other, one)):
        transfer(source, sink, str(sink.address), 4 * MIB)


def test_the_incoming_program_follows_the_device_during_a_switch_back(pair: Lab) -> None:
    host = pair.hosts[0]
    start(pair, AUTO, AUTO)
    one, other = containers(pair)
    assert pings(one, other) == 3  # the peer knows the MAC of eth1, not that of eth2
    pair.etcd.kill()
    switch_back(host)
    index = index_of(host, "flannel0")
    host.configure("link delete flannel0")
    host.run("tc", "qdisc", "delete", "dev", "eth1", "clsact")
    wait_for(lambda: is_there(host, "flannel0") and index_of(host, "flannel0") != index, 15, "the new device")
    wait_for(lambda: programs(host)["eth1"], 15, "the incoming program")
    transfer(other, one, str(one.address), 4 * MIB)


# Programs that cannot be attached

SHARED_BLOCK = "tc qdisc add dev eth1 ingress_block 7 clsact"


def test_programs_that_cannot_be_attached_again_give_way_to_the_loop(pair: Lab) -> None:
    host = pair.hosts[0]
    daemons = start(pair, AUTO, AUTO)
    one, other = containers(pair)
    host.run("tc", "qdisc", "delete", "dev", "eth1", "clsact")
    host.run(*SHARED_BLOCK.split())
    wait_for(lambda: status(host)["datapath"] == "loop", 20, "the loop")
    wait_for(lambda: not announces(host), 5, "the lease without the kernel")
    time.sleep(1)  # until the peer has read it
    for source, sink in ((one, other), (other, one)):
        transfer(source, sink, str(sink.address), 4 * MIB)
    [line] = re.findall(r"^W.*Datapath switched from kernel to loop: (.*)", daemons[0].log(), re.MULTILINE)
    assert line.startswith("cannot attach a BPF program to eth1: ")


def test_a_host_that_must_have_programs_and_cannot_attach_them_does_not_start(pair: Lab) -> None:
    host = pair.hosts[0]
    host.run(*SHARED_BLOCK.split())
    before = state(host)
    daemon = host.start_daemon(*KERNEL)
    assert daemon.process.wait(30) == 1
    assert "(-datapath=kernel): cannot attach a BPF program to eth1: " in daemon.log()
    assert state(host) == before


# Programs of an earlier process


def test_a_policy_stops_what_a_killed_daemon_left_while_the_next_one_waits_for_etcd(pair: Lab) -> None:
    host = pair.hosts[0]
    start(pair, KERNEL, KERNEL)[0].kill()
    one, other = containers(pair)
    pair.etcd.kill()
    daemon = host.start_daemon(*KERNEL)
    wait_for(lambda: "Using 172.17.8.101 as external endpoint" in daemon.log(), 10, "the start")
    assert pings(one, other) == 3
    host.run(*POLICY.split())
    wait_for(lambda: not programs(host)["flannel0"], 5, "the removal of the outgoing program")
    assert programs(host)["eth1"]
    assert pings(one, other) == 0
    assert re.search(r"^W.*Removed leftover BPF program at flannel0: .*XFRM", daemon.log(), re.MULTILINE)


def test_of_rules_only_those_about_peers_stop_what_a_killed_daemon_left(pair: Lab) -> None:
    host, peer = pair.hosts[0], str(pair.hosts[1].public_ip)
    drop = ("iptables", "-A", "INPUT", "-p", "udp", "-j", "DROP", "-s")
    host.run(*drop, "10.9.9.9")
    start(pair, AUTO, KERNEL)[0].kill()
    one, other = containers(pair)
    pair.etcd.kill()
    daemon = host.start_daemon(*AUTO, "-iptables-resync=1")
    wait_for(lambda: "Using 172.17.8.101 as external endpoint" in daemon.log(), 10, "the start")
    host.run(*drop, "10.9.9.10")
    assert pings(one, other, 20) == 20
    host.run(*drop, peer)
    wait_for(lambda: not programs(host)["flannel0"], 10, "the removal of the outgoing program")
    assert programs(host)["eth1"]
    [line] = re.findall(r"^W.*Removed leftover BPF program at flannel0: .*", daemon.log(), re.MULTILINE)
    assert peer in line
