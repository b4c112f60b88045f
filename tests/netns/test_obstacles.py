"""flannelpy names exactly what keeps packets of containers from other hosts, if it cannot repair that itself."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from faults.backends import HOST_GW, UDP
from lab import Container, Daemon, Host, Lab, wait_connected, wait_for
from support.firewalls import is_forwarding_accepted, reaches

pytestmark = pytest.mark.usefixtures("root")


def is_ready(host: Host) -> bool:
    return (host.run_dir / "flannel/ready").exists()


CERTAIN = {
    "ip_forward": (
        ["sysctl -q -w net.ipv4.ip_forward=0"],
        ["sysctl -q -w net.ipv4.ip_forward=1"],
        "net.ipv4.ip_forward is 0",
    ),
    "a rule in front": (
        ["iptables -I FORWARD -j REJECT"],
        ["iptables -D FORWARD -j REJECT"],
        "The iptables rule '-A FORWARD -j REJECT --reject-with icmp-port-unreachable' drops packets",
    ),
    "nftables": (
        [
            "nft add table inet mine",
            "nft add chain inet mine guard { type filter hook forward priority 9; policy drop; }",
        ],
        ["nft delete table inet mine"],
        "The nftables chain inet mine guard drops packets",
    ),
}


@pytest.mark.parametrize("what", CERTAIN)
def test_what_certainly_stops_packets_is_named_and_counts_once_there_are_containers(lone: Host, what: str) -> None:
    """Before, Docker may cure it, and Docker waits for readiness."""
    put, undo, text = CERTAIN[what]
    for command in put:
        lone.run(*command.split())
    daemon = lone.start_daemon("-iface=eth1", "-iptables-resync=1")
    daemon.wait_ready()
    wait_for(lambda: is_forwarding_accepted(lone), 10, "the rules")
    assert is_ready(lone)
    lone.add_container()
    wait_for(lambda: not is_ready(lone), 15, "the ready file to go")
    wait_for(lambda: text in daemon.notified[-1], 5, "the status line")
    assert "not ready: " in daemon.notified[-1]
    for command in undo:
        lone.run(*command.split())
    wait_for(lambda: is_ready(lone), 15, "the ready file to come back")


@pytest.mark.parametrize("flags", [[], ["-iptables-forward-rules=false"]])
def test_readiness_follows_at_once_with_any_resync_period(lone: Host, flags: list[str]) -> None:
    """The test acts as Docker does: it switches forwarding on, creates its bridge, and removes a rule."""
    lone.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=0")
    lone.run("iptables", "-I", "FORWARD", "-m", "comment", "--comment", "x", "-j", "DROP")
    daemon = lone.start_daemon("-iface=eth1", "-iptables-resync=300", *flags)
    daemon.wait_ready()
    lone.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
    lone.add_container()
    wait_for(lambda: not is_ready(lone), 15, "the ready file to go")
    daemon.wait_for_log("comment x -j DROP' drops packets")
    lone.run("iptables", "-D", "FORWARD", "-m", "comment", "--comment", "x", "-j", "DROP")
    wait_for(lambda: is_ready(lone), 15, "the ready file to come back")


KINDS: dict[str, tuple[list[str], str, bool]] = {
    # Commands, the log line, and whether packets are certainly lost.
    "a comment": (["iptables -I FORWARD -m comment --comment x -j DROP"], "comment x -j DROP' drops", True),
    "a chain": (
        ["iptables -N LOGDROP", "iptables -A LOGDROP -j DROP", "iptables -I FORWARD -j LOGDROP"],
        "'-A LOGDROP -j DROP' drops",
        True,
    ),
    "the bridge": (["iptables -I FORWARD -o docker0 -j DROP"], "-o docker0 -j DROP' drops", True),
    "a prefix": (["iptables -I FORWARD -i flannel+ -j DROP"], "-j DROP' drops", True),
    "a negation": (["iptables -I FORWARD ! -s 192.168.0.0/16 -j DROP"], "-j DROP' drops", True),
    "security": (["iptables -t security -A FORWARD -j DROP"], "'-A FORWARD -j DROP' drops .*table security", True),
    "legacy": (["iptables-legacy -P FORWARD DROP"], "'-P FORWARD DROP' drops .*iptables-legacy-save", True),
    "a port": (
        ["iptables -I FORWARD -j REJECT", "iptables -I FORWARD -p tcp --dport 22 -j ACCEPT"],
        "'-A FORWARD -j REJECT.*' drops",
        True,
    ),
    "prerouting": (
        [
            "nft add table inet fw",
            "nft add chain inet fw pre { type filter hook prerouting priority -300; policy accept; }",
            "nft add rule inet fw pre iifname flannel0 drop",
        ],
        "inet fw pre drops .*nft insert rule inet fw pre ip saddr",
        True,
    ),
    "established": (
        [
            "nft add table inet fw",
            "nft add chain inet fw forward { type filter hook forward priority 0; policy drop; }",
            "nft add rule inet fw forward ct state established,related accept",
        ],
        "inet fw forward drops",
        True,
    ),
    "replies": (
        ["iptables -I FORWARD -m conntrack --ctstate ESTABLISHED -j DROP"],
        "ctstate ESTABLISHED -j DROP' drops",
        True,
    ),
    "a native rule": (
        ["iptables -t mangle -N X", "nft insert rule ip mangle FORWARD ct state new,established drop"],
        "ip mangle FORWARD drops",
        True,
    ),
    "a map": (
        [
            "nft add table inet fw",
            "nft add chain inet fw forward { type filter hook forward priority 0; policy accept; }",
            'nft add map inet fw out { type ifname : verdict ; elements = { "docker0" : drop } ; }',
            "nft add rule inet fw forward oifname vmap @out",
        ],
        "inet fw forward drops",
        True,
    ),
    "a dormant table": (
        [
            "nft add table inet fw { flags dormant ; }",
            "nft add chain inet fw forward { type filter hook forward priority 0; policy drop; }",
        ],
        "inet fw forward may drop",
        False,
    ),
    "rules for others, and for rare packets": (
        [
            "iptables -N OTHERS",
            "iptables -I FORWARD -j OTHERS",
            "nft add rule ip filter OTHERS ip saddr { 203.0.113.7, 198.51.100.9 } drop",
            "nft add table inet fw",
            "nft add chain inet fw forward { type filter hook forward priority 0; policy drop; }",
            "nft add rule inet fw forward ether type ip6 drop",
            "nft add rule inet fw forward fib saddr . iif oif missing drop",
            "nft add rule inet fw forward tcp flags & (fin|syn) == (fin|syn) drop",
            "nft add rule inet fw forward ip saddr vmap { 1.2.3.4 : drop, * : accept }",
            "iptables -I FORWARD -p tcp ! --syn -m conntrack --ctstate NEW -j DROP",
            "iptables -I FORWARD -m addrtype --dst-type LOCAL -j REJECT",
            "iptables -I FORWARD -f -j DROP",
            "iptables -I FORWARD -m comment --comment 'of several\n-A FORWARD -j DROP\nlines' -j LOG",
        ],
        "",
        False,
    ),
    "an earlier run with legacy": (
        [
            "iptables-legacy -N FLANNEL-A-11.0.0.0/16",
            "iptables-legacy -A FORWARD -j FLANNEL-A-11.0.0.0/16",
            "iptables-legacy -P FORWARD DROP",
        ],
        "'-P FORWARD DROP' drops .*iptables-legacy-save",
        True,
    ),
    "a queue": (["iptables -I FORWARD -j NFQUEUE --queue-num 7"], "may drop", False),
    "another interface": (
        [
            "nft add table inet fw",
            "nft add chain inet fw forward { type filter hook forward priority 0; policy accept; }",
            "nft add rule inet fw forward iifname wlan0 drop",
        ],
        "",
        False,
    ),
    "a name": (["iptables -N DROP-x", "iptables -I FORWARD -j DROP-x"], "", False),
    "an accepting chain": (
        [
            "iptables -N FLANNEL-FWD",
            "iptables -A FLANNEL-FWD -j ACCEPT",
            "iptables -I FORWARD -j DROP",
            "iptables -I FORWARD -j FLANNEL-FWD",
        ],
        "",
        False,
    ),
    "no jump": (["iptables -I DOCKER-USER -j DROP"], "", False),
}
#: nft does not print whether a table is dormant, so what it may drop is named.
PASSING = {"a dormant table"}
#: Docker's documentation has the first one.
WITH_PUBLIC_IPS = {
    "-I DOCKER-USER -i eth1 ! -s 192.0.2.2 -j DROP": True,
    "-I FORWARD -i eth1 -m conntrack --ctstate NEW -j DROP": True,
    "-I FORWARD -i eth1 ! -s 11.0.0.0/16 -j DROP": False,
}
UNDO = (
    "nft delete table inet fw 2>/dev/null; iptables-legacy -P FORWARD ACCEPT; "
    "iptables-legacy -F; iptables-legacy -X; nft flush chain ip mangle FORWARD; iptables -t security -F; "
    "iptables-restore"
)


class Pair(NamedTuple):
    """A container on each of two hosts; rules are added on the first host, which had ``before``."""

    one: Container
    other: Container
    daemon: Daemon
    before: str


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Lab(hosts=2) as lab:
        lab.put_config(UDP.config())
        daemons = [host.start_daemon("-iface=eth1", "-iptables-resync=1") for host in lab.hosts]
        wait_connected(daemons)
        one, other = (host.add_container() for host in lab.hosts)
        wait_for(lambda: is_forwarding_accepted(one.host) and is_ready(one.host), 15, "the rules")
        yield Pair(one, other, daemons[0], one.host.run("iptables-save").stdout)


@pytest.mark.sample("kind", 7)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_named_is_what_stops_pings(pair: Pair, kind: str) -> None:
    """Only certain drops make the host not ready."""
    commands, text, is_certain = KINDS[kind]
    host, seen = pair.one.host, len(pair.daemon.log())
    for command in commands:
        host.run(*shlex.split(command))
    try:
        if text:
            wait_for(lambda: re.search(text, pair.daemon.log()[seen:]), 15, "the line in the log")
        else:
            time.sleep(2)  # a check
            assert not re.search("drops? packets", pair.daemon.log()[seen:])
        wait_for(lambda: is_ready(host) is not is_certain, 5, "the ready file")
        assert reaches(pair.one, pair.other.address, 1) is (kind in PASSING or not text)
        assert len(re.findall(" drops? packets", pair.daemon.log()[seen:])) == bool(text)
        if remedy := re.search("nft insert .*accept", pair.daemon.log()[seen:]):
            host.run("sh", "-c", remedy[0])
            wait_for(lambda: is_ready(host) and reaches(pair.one, pair.other.address, 1), 15, "the remedy")
    finally:
        host.run("sh", "-c", UNDO, input=pair.before)
    wait_for(lambda: is_ready(host) and reaches(pair.one, pair.other.address, 1), 15, "packets to pass again")


def test_with_host_gw_a_drop_of_other_sources_is_named(make_lab: Callable[..., Lab]) -> None:
    """Packets arrive with their containers' addresses, or with the public IP of a host whose Docker masquerades."""
    lab = make_lab(hosts=2)
    lab.put_config(HOST_GW.config())
    daemon, _ = daemons = [host.start_daemon("-iface=eth1", "-iptables-resync=1") for host in lab.hosts]
    wait_connected(daemons)
    one, other = (host.add_container() for host in lab.hosts)
    wait_for(lambda: is_forwarding_accepted(one.host), 10, "the rules")
    one.host.run("iptables", "-I", "FORWARD", "-j", "DOCKER-USER")
    for rule, is_certain in WITH_PUBLIC_IPS.items():
        wait_for(
            lambda: is_forwarding_accepted(one.host) and is_ready(one.host) and reaches(other, one.address, 1),
            15,
            "the rules",
        )
        seen = len(daemon.log())
        one.host.run("iptables", *rule.split())
        drops = f"-j DROP' {'drops' if is_certain else 'may drop'} packets"
        wait_for(lambda: drops in daemon.log()[seen:], 15, rule)  # noqa: B023 - called in this iteration only
        wait_for(lambda: is_ready(one.host) is not is_certain, 5, "the ready file")  # noqa: B023
        assert reaches(other, one.address, 1) is not is_certain
        one.host.run("iptables", *rule.replace("-I", "-D", 1).split())


FIREWALLD = """
table inet firewalld {
  chain filter_FORWARD {
    type filter hook forward priority 10; policy accept;
    ct state established accept
    meta mark 7 accept
    ip protocol icmp accept
    reject with icmpx admin-prohibited
  }
}
"""


def test_what_may_stop_packets_is_a_warning_with_a_remedy(lone: Host) -> None:
    lone.run("nft", "-f", "-", input=FIREWALLD)
    lone.run("iptables", "-A", "FORWARD", "-p", "tcp", "-j", "ACCEPT")
    lone.run("iptables", "-A", "FORWARD", "-j", "DROP")
    daemon = lone.start_daemon("-iface=eth1", "-iptables-resync=1")
    daemon.wait_for_log(
        "chain inet firewalld filter_FORWARD may drop .*firewall-cmd --permanent --zone=trusted --add-so"
    )
    daemon.wait_for_log("The iptables rule '-A FORWARD -j DROP' may drop")
    lone.add_container()
    daemon.wait_for_log("Subnet lease acquired")
    assert is_ready(lone)
    assert daemon.log().count("may drop") == 2
