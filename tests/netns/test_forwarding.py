"""Packets between containers of different hosts pass rules of Docker and firewalls; an operator's come first."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial

import pytest
from faults.backends import HOST_GW, UDP, VXLAN
from lab import Container, Host, Lab, Node, wait_connected, wait_for
from support.attacks import in_vxlan, labelled
from support.firewalls import is_forwarding_accepted, reaches

pytestmark = pytest.mark.usefixtures("root")

NETWORK = "11.0.0.0/16"
NAME = f"FLANNEL-A-{NETWORK}"
OUTSIDE = "172.17.8.1"
#: With DirectRouting, packets between hosts on one link use the external interface.
DIRECT = json.dumps({"Network": NETWORK, "Backend": {"Type": "vxlan", "DirectRouting": True}})
CONFIGS = {**{str(backend): backend.config() for backend in (UDP, VXLAN, HOST_GW)}, "direct": DIRECT}


def docker_like(host: Host, *, masquerade: bool) -> None:
    """Add the rules of a starting Docker 28: drops at the end of raw PREROUTING, and a FORWARD that accepts little."""
    subnet = host.subnet()
    host.run("iptables", "-t", "raw", "-A", "PREROUTING", "-d", str(subnet[2]), "!", "-i", "docker0", "-j", "DROP")
    if masquerade:
        nat = ("-s", str(subnet), "!", "-o", "docker0", "-j", "MASQUERADE")
        host.run("iptables", "-t", "nat", "-A", "POSTROUTING", *nat)
    for rule in ("-N DOCKER", "-A FORWARD -o docker0 -j DOCKER", "-A DOCKER ! -i docker0 -o docker0 -j DROP"):
        host.run("iptables", *rule.split())


def rules(host: Host) -> list[str]:
    """Return all rules, without counters."""
    tables = [host.run("iptables-save", "-t", table).stdout for table in ("filter", "nat", "mangle", "raw")]
    return [line.split(" [")[0] for text in tables for line in text.splitlines() if not line.startswith("#")]


Start = Callable[..., list[Container]]


@pytest.fixture
def start(make_lab: Callable[..., Lab]) -> Start:
    def start(config: str, *flags: str, masquerade: bool = False) -> list[Container]:
        """Start two hosts whose FORWARD drops, with a container each."""
        lab = make_lab(hosts=2)
        lab.put_config(config)
        for host in lab.hosts:
            host.run("iptables", "-P", "FORWARD", "DROP")
        wait_connected([host.start_daemon("-iface=eth1", *flags) for host in lab.hosts])
        containers = [host.add_container() for host in lab.hosts]
        if "-iptables-forward-rules=false" not in flags:
            for host in lab.hosts:
                wait_for(partial(is_forwarding_accepted, host), 10, "the rules")
        for host in lab.hosts:
            docker_like(host, masquerade=masquerade)
        return containers

    return start


@pytest.mark.sample("is_masquerading", 1)
@pytest.mark.parametrize("is_masquerading", [True, False])
@pytest.mark.parametrize("config", CONFIGS)
def test_containers_of_different_hosts_reach_each_other(start: Start, config: str, is_masquerading: bool) -> None:
    """If Docker masquerades, packets may arrive with the public IP of their host."""
    one, other = start(CONFIGS[config], masquerade=is_masquerading)
    for sender, receiver in ((one, other), (other, one)):
        wait_for(partial(reaches, sender, receiver.address, 1), 10, "the rules about the sender's host")
        assert reaches(sender, receiver.address)
    # Packets of the host itself have its public IP, which the rules of host-gw and DirectRouting name one by one.
    ping = ("ping", "-n", "-c1", "-W1", str(other.address))
    wait_for(lambda: not one.host.run(*ping, check=False).returncode, 10, "the rule about the host's public IP")
    assert "drops packets" not in (log := "".join(daemon.log() for daemon in one.host.daemons))
    assert "may drop" not in log


def test_with_masq_containers_reach_the_world_too(start: Start) -> None:
    one, other = start(UDP.config(), "-ip-masq")
    wait_for(lambda: reaches(one, other.address, 1), 10, "the rules")
    wait_for(lambda: reaches(one, OUTSIDE, 1), 10, "the rules about the world")


@pytest.mark.sample("config", 1)
@pytest.mark.parametrize("config", ["udp", "host-gw"])
def test_masq_rules_do_not_precede_the_isolation_of_networks(start: Start, config: str) -> None:
    """Docker's isolation rules follow DOCKER-USER.  Packets from the link with a forged source are not forwarded."""
    one, other = start(CONFIGS[config], "-ip-masq", "-iptables-resync=1")
    host, subnet = one.host, one.host.subnet()
    host.configure("link add inner type bridge", "address add 172.19.0.1/16 dev inner", "link set inner up")
    host.run("ip", "neighbour", "add", "172.19.0.2", "lladdr", "02:00:00:00:00:02", "dev", "inner")
    host.run("iptables", "-A", "FORWARD", "-i", "docker0", "-o", "inner", "-j", "DROP")
    wait_for(lambda: is_last(host) and reaches(one, other.address, 1), 10, "the rules")
    assert not is_sent(host, one, "172.19.0.2", "-o", "inner")
    host.run("iptables", "-D", "FORWARD", "-i", "docker0", "-o", "inner", "-j", "DROP")
    assert is_sent(host, one, "172.19.0.2", "-o", "inner")
    switch, forged = host.lab.switch, str(subnet[77])
    switch.configure(f"address add {forged}/32 dev lo", f"route add 11.0.0.0/16 via {host.public_ip}")
    switch.configure(f"route add 172.19.0.0/16 via {host.public_ip}")
    host.run("sysctl", "-q", "-w", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth1.rp_filter=0")
    for address in (str(other.address), "172.19.0.2"):
        assert not is_sent(host, switch, address, "-s", forged, source=forged)
        host.run("iptables", "-I", "FORWARD", "-s", forged, "-j", "ACCEPT")
        assert is_sent(host, switch, address, "-s", forged, source=forged)
        host.run("iptables", "-D", "FORWARD", "-s", forged, "-j", "ACCEPT")
    if config == "udp":  # with host-gw, packets of other hosts' containers arrive by the link
        forged = str(other.host.subnet()[77])
        switch.configure(f"address add {forged}/32 dev lo")
        assert not is_sent(host, switch, str(one.address), "-s", forged, source=forged)


#: Send a datagram, whose payload is in hex, to an address and a port.
SEND = """
import socket, sys
to, port, payload = sys.argv[1:]
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(bytes.fromhex(payload), (to, int(port)))
"""


def test_a_forged_source_inside_vxlan_does_not_pass(start: Start) -> None:
    """Any machine on the link can send VXLAN: the kernel accepts datagrams from every sender."""
    one, other = start(VXLAN.config(), "-ip-masq", "-iptables-resync=1")
    host, forged = one.host, str(one.host.subnet()[77])
    host.configure("link add inner type bridge", "address add 172.19.0.1/16 dev inner", "link set inner up")
    host.run("ip", "neighbour", "add", "172.19.0.2", "lladdr", "02:00:00:00:00:02", "dev", "inner")
    host.run("sysctl", "-q", "-w", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.flannel/1.rp_filter=0")
    wait_for(lambda: is_last(host) and reaches(one, other.address, 1), 10, "the rules")

    def is_passed(address: str) -> bool:
        payload = in_vxlan(labelled(forged, address, "forged"), host).hex()
        match = ("POSTROUTING", "-s", forged, "-d", address, "-p", "udp")
        host.run("iptables", "-t", "mangle", "-I", *match)
        for _ in range(3):
            host.lab.switch.run(sys.executable, "-c", SEND, str(host.public_ip), "8472", payload)
        time.sleep(0.3)
        found = host.run("iptables", "-t", "mangle", "-vxnL", "POSTROUTING").stdout.splitlines()[2].split()[0]
        host.run("iptables", "-t", "mangle", "-D", *match)
        return found != "0"

    for address in ("172.19.0.2", OUTSIDE, str(other.address)):
        assert not is_passed(address), address
        host.run("iptables", "-I", "FORWARD", "-s", forged, "-j", "ACCEPT")
        assert is_passed(address), address
        host.run("iptables", "-D", "FORWARD", "-s", forged, "-j", "ACCEPT")


def is_last(host: Host) -> bool:
    """Return whether both of our jumps are the last rules of FORWARD."""
    last = host.run("iptables", "-S", "FORWARD").stdout.splitlines()[-2:]
    return all(rule.endswith(f"-{NETWORK}") for rule in last)


def is_sent(host: Host, sender: Node, address: str, *match: str, source: str = "") -> bool:
    """Return whether the host forwards what ``sender`` sends."""
    host.run("iptables", "-t", "mangle", "-I", "POSTROUTING", *match, "-p", "icmp")
    sender.run("ping", "-n", "-c2", "-i0.2", "-W1", *(["-I", source] if source else []), address, check=False)
    found = host.run("iptables", "-t", "mangle", "-vxnL", "POSTROUTING").stdout.splitlines()[2].split()[0]
    host.run("iptables", "-t", "mangle", "-D", "POSTROUTING", *match, "-p", "icmp")
    return found != "0"


def test_without_the_flag_what_docker_drops_is_dropped(start: Start) -> None:
    one, other = start(UDP.config(), "-iptables-forward-rules=false", "-iptables-resync=1")
    wait_for(lambda: "FLANNEL-D" in one.host.run("iptables-save").stdout, 5, "the other rules")
    assert NAME not in "".join(rules(one.host))
    assert not reaches(one, other.address)


def test_a_forged_source_from_the_link_does_not_pass(start: Start) -> None:
    """Only packets by our device are accepted; otherwise every machine on the link could pass Docker's drop."""
    one, other = start(UDP.config())
    wait_for(lambda: reaches(one, other.address, 1), 10, "the rules")
    host = one.host
    saved = host.run("iptables-save").stdout
    accepts = [line for line in saved.splitlines() if line.startswith(f"-A {NAME}") and "ACCEPT" in line]
    assert accepts
    assert all(" -i flannel" in line or " -o flannel" in line for line in accepts if "-d" in line)
    assert all("-i flannel" in line for line in saved.splitlines() if line.startswith("-A PREROUTING") and NAME in line)


def test_a_drop_of_the_operator_wins(start: Start) -> None:
    one, other = start(VXLAN.config(), "-iptables-resync=1")
    wait_for(lambda: reaches(one, other.address, 1), 10, "the rules")
    for host in (one.host, other.host):
        host.run("iptables", "-A", "DOCKER-USER", "-p", "icmp", "-j", "DROP")
    wait_for(lambda: not reaches(one, other.address, 1), 10, "our jump to come last again")
    assert one.host.run("iptables", "-S", "DOCKER-USER").stdout.splitlines()[1:] == [
        "-A DOCKER-USER -p icmp -j DROP",
        f"-A DOCKER-USER -j {NAME}",
    ]


@pytest.mark.sample("config", 2)
@pytest.mark.parametrize("config", CONFIGS)
def test_cleanup_removes_our_rules_and_nothing_else(make_lab: Callable[..., Lab], config: str) -> None:
    lab = make_lab(hosts=1)
    [host] = lab.hosts
    lab.put_config(CONFIGS[config])
    host.run("iptables", "-P", "FORWARD", "DROP")
    host.run("iptables", "-A", "FORWARD", "-p", "tcp", "-j", "ACCEPT")
    for table in ("nat", "mangle", "raw"):
        host.run("iptables", "-t", table, "-S")
    before = rules(host)
    daemon = host.start_daemon("-iface=eth1")
    wait_for(lambda: is_forwarding_accepted(host), 10, "the rules")
    daemon.stop()
    host.run(sys.executable, "-m", "flannelpy", "-cleanup")
    assert rules(host) == before


@pytest.mark.sample("before", 2)
@pytest.mark.parametrize(
    ("before", "after"), [("-N DOCKER-USER", ""), ("-N DOCKER-USER", "-F"), ("", "-F DOCKER-USER"), ("", "-F")]
)
def test_cleanup_knows_who_created_docker_user(lone: Host, before: str, after: str) -> None:
    def change(command: str) -> None:
        if command:
            lone.run("iptables", *command.split())

    lone.run("iptables", "-S")
    change(before)
    expected = lone.run("iptables", "-S").stdout
    daemon = lone.start_daemon("-iface=eth1")
    wait_for(lambda: is_forwarding_accepted(lone), 10, "the rules")
    daemon.stop()
    change(after)
    lone.run(sys.executable, "-m", "flannelpy", "-cleanup")
    assert lone.run("iptables", "-S").stdout == expected


def test_a_return_for_all_packets_does_not_come_before_our_jump(lone: Host) -> None:
    lone.start_daemon("-iface=eth1", "-iptables-resync=1")
    wait_for(lambda: is_forwarding_accepted(lone), 10, "the rules")
    for comments in ([], ["end"], ["the end"], ['a "quoted" -j DROP'], ["one", "two"]):
        matches = [word for text in comments for word in ("-m", "comment", "--comment", text)]
        lone.run("iptables", "-I", "DOCKER-USER", *matches, "-j", "RETURN")
        wait_for(lambda: NAME in lone.run("iptables", "-S", "DOCKER-USER").stdout.splitlines()[1], 20, "our jump")


def test_lines_inside_a_comment_are_no_rules(lone: Host) -> None:
    daemon = lone.start_daemon("-iface=eth1", "-iptables-resync=1")
    wait_for(lambda: is_forwarding_accepted(lone), 10, "the rules")
    for comment in (f"a\n-A FORWARD -j {NAME}\nb", "a\n-A FORWARD -j RETURN\nb", '"\nCOMMIT\n'):
        lone.run("iptables", "-A", "FORWARD", "-p", "tcp", "-m", "comment", "--comment", comment, "-j", "ACCEPT")
        wait_for(lambda: is_last(lone), 10, "our jumps to stand last")
        assert lone.run("iptables-save").stdout.count(f"\n-A FORWARD -j {NAME}\n") == 1 + (NAME in comment)
        lone.run("iptables", "-D", "FORWARD", "1")
    time.sleep(2.5)  # two checks
    assert "Failed to check" not in daemon.log()


def test_removed_rules_are_restored_and_counted(lone: Host) -> None:
    daemon = lone.start_daemon("-iface=eth1", "-iptables-resync=1")
    wait_for(lambda: is_forwarding_accepted(lone), 10, "the rules")
    before = rules(lone)
    for change in ("-F FORWARD", "-F DOCKER-USER", "-t raw -F", f"-F {NAME}", "-A FORWARD -p tcp -j ACCEPT"):
        lone.run("iptables", *change.split())
        wait_for(lambda: [rule for rule in rules(lone) if "-p tcp" not in rule] == before, 5, f"repair of {change}")
    daemon.wait_for_log("Restored iptables chains? FLANNEL-A.*its jump in FORWARD no longer stood last", 5)
