"""``flannelpy check`` finds nothing on healthy hosts, and names each fault in one line with its remedy.

The faults are real ones, each on one host of a lab that all tests of a backend share.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from ipaddress import IPv4Network
from typing import Any, NamedTuple

import pytest
from faults.backends import ALLOC, HOST_GW, UDP, VXLAN, Backend, lease_key
from lab import ETCD_PREFIX, Host, Lab, wait_for
from lab.etcd_stores import Api
from support.checks import Checked, argv, check
from support.hosts import belongings

pytestmark = pytest.mark.usefixtures("root")

# The daemon would restore the rules of -ip-masq before the check sees that they are gone.
DAEMON = ("-iface=eth1", "-ip-masq", "-iptables-resync=300")
# Both stores of etcd are in use.
APIS = {"udp": Api.V2, "vxlan": Api.V3, "host-gw": Api.V2, "alloc": Api.V3}
PORTS = {"udp": 8285, "vxlan": 8472}
NO_HOST = "198.51.100.9"


@pytest.fixture(scope="module")
def labs(root: None) -> Iterator[Callable[[Backend], Lab]]:
    """Starts the lab of a backend, the last one's being removed: the tests are sorted by their backends."""
    current: list[tuple[Backend, Lab]] = []

    def start(backend: Backend) -> Lab:
        if not current or current[0][0] is not backend:
            remove()
            lab = Lab(hosts=3, api=APIS[backend.name]).__enter__()
            current.append((backend, lab))
            try:
                set_up(lab, backend)
            except BaseException:
                remove()
                raise
        return current[0][1]

    def remove() -> None:
        for _, lab in current:
            lab.remove()
        current.clear()

    try:
        yield start
    finally:
        remove()


def set_up(lab: Lab, backend: Backend) -> None:
    """Start the daemons and a container on each host; return when all rules are in place."""
    lab.put_config(backend.config())
    daemons = [host.start_daemon(*DAEMON) for host in lab.hosts]
    for daemon in daemons:
        daemon.wait_ready()
    for host in lab.hosts:
        host.add_container()
    for host in lab.hosts:
        peers = [other for other in lab.hosts if other is not host]
        wait_for(partial(backend.has_rules_about, host, peers), 10, "the rules")
    first = lab.hosts[0]
    first.configure("link add elsewhere type bridge", "address add 192.0.2.1/24 dev elsewhere")
    first.configure("link set elsewhere up")
    wait_for(lambda: not check(first).flaws, 20, "a healthy lab")


class Fault(NamedTuple):
    """``put`` and ``undo``: what breaks and mends the link between the first host and the second.

    ``text``: a regular expression that the only line with ``code`` matches, text and remedy.
    """

    backends: Sequence[Backend]
    put: Callable[[Lab], object]
    undo: Callable[[Lab], object]
    code: str
    text: str


def on(number: int, *commands: str) -> Callable[[Lab], None]:
    """Return what runs these commands on a host; {peer} is the second one's subnet, {own} the bridge of the first."""

    def run(lab: Lab) -> None:
        own, peer = (host.subnet() for host in lab.hosts[:2])
        names = {
            "own": f"{own.network_address + 1}/24",
            "half": next(peer.subnets(1)),
            "port": PORTS.get(_backend(lab), 0),
        }
        for command in commands:
            lab.hosts[number - 1].run(*command.format(**names).split())

    return run


def _backend(lab: Lab) -> str:
    config = next(each.value for each in lab.etcd.list(ETCD_PREFIX) if each.key.endswith("/config"))
    return str(json.loads(config)["Backend"]["Type"])


def narrow(mtu: int) -> Callable[[Lab], None]:
    """Return what gives the switch's port of the second host that MTU: it drops frames that are 4 bytes longer.

    The kernel leaves them space for a VLAN tag.
    """
    return lambda lab: lab.switch.configure(f"link set host2 mtu {mtu}")


DUPLICATE = lease_key(IPv4Network("11.0.255.0/24"))


def duplicate(lab: Lab) -> None:
    value = json.loads(UDP.lease(str(lab.hosts[0].public_ip)))
    lab.etcd.put(DUPLICATE, json.dumps(value | {"HostID": "zzz"}), ttl=3600)


def second_uplink(lab: Lab) -> None:
    """The first host sends to the second one by another interface than that by which the answers arrive."""
    first, second, _ = lab.hosts
    mac = second.run("cat", "/sys/class/net/eth1/address").stdout.strip()
    lab.switch.configure(f"link add host1b type veth peer name eth2 netns {first.netns}")
    lab.switch.configure("link set host1b master br0 up")
    first.run("sysctl", "-qw", "net.ipv4.conf.eth2.arp_ignore=1", "net.ipv4.conf.eth1.rp_filter=1")
    first.configure("link set eth2 up", "route add 172.17.8.102/32 dev eth2 src 172.17.8.101")
    first.configure(f"neighbour add 172.17.8.102 lladdr {mac} dev eth2")  # an ARP request would lead answers to eth2


FAULTS = {
    "UDP port filtered": Fault(
        (UDP, VXLAN),
        on(2, "iptables -I INPUT -p udp --dport {port} -j DROP"),
        on(2, "iptables -D INPUT -p udp --dport {port} -j DROP"),
        "datagrams_lost",
        r"3 of 3 lost, and UDP port (\d+) of 172.17.8.102 rejects nothing; either a firewall drops UDP port \1 .* or",
    ),
    "MTU too large": Fault(
        (UDP, VXLAN, HOST_GW),
        narrow(1400),
        narrow(1500),
        "mtu_too_large",
        r"path MTU 1(376|354|404), but containers send up to 1(472|450|500) bytes; .*(\"MTU\": 1404|mtu 1404)",
    ),
    "ip_forward 0": Fault(
        (UDP,),
        on(1, "sysctl -qw net.ipv4.ip_forward=0"),
        on(1, "sysctl -qw net.ipv4.ip_forward=1"),
        "forwarding_off",
        "^net.ipv4.ip_forward is 0, .*; set it: sysctl -w net.ipv4.ip_forward=1",
    ),
    "FORWARD DROP": Fault(
        (HOST_GW,),
        on(1, "iptables -I FORWARD -j DROP"),
        on(1, "iptables -D FORWARD -j DROP"),
        "packets_dropped",
        "'-A FORWARD -j DROP' drops packets .*; remove it, or accept",
    ),
    "raw DROP": Fault(
        (VXLAN,),
        on(1, "iptables -t raw -I PREROUTING -s 11.0.0.0/16 -j DROP"),
        on(1, "iptables -t raw -D PREROUTING -s 11.0.0.0/16 -j DROP"),
        "packets_dropped",
        r"'-A PREROUTING -s 11.0.0.0/16 -j DROP' drops packets .*\(table raw, .*; remove it, or accept",
    ),
    "foreign route": Fault(
        (UDP, VXLAN, HOST_GW),
        on(1, "ip route add {half} dev elsewhere"),
        on(1, "ip route delete {half} dev elsewhere"),
        "route_diverted",
        "packets to .* of 172.17.8.102: route .*/25 dev elsewhere .* takes containers' packets; .*; remove the route",
    ),
    "peer gone": Fault(
        (HOST_GW,),
        lambda lab: lab.hosts[1].unplug(),
        lambda lab: lab.hosts[1].plug_in(),
        "peer_silent",
        "no answer of 172.17.8.102 from 172.17.8.101: 3 of 3 lost.*; either that host is down, or",
    ),
    "duplicate public IP": Fault(
        (UDP,),
        duplicate,
        lambda lab: lab.etcd.delete(DUPLICATE),
        "public_ip_twice",
        r"public IP 172.17.8.101 of this host is in 2 leases: .*\(host1\).*\(zzz\).*; either two hosts have",
    ),
    "docker0 of an old subnet": Fault(
        (VXLAN,),
        on(1, "ip address delete {own} dev docker0", "ip address add 11.0.0.1/24 dev docker0"),
        on(1, "ip address delete 11.0.0.1/24 dev docker0", "ip address add {own} dev docker0"),
        "bridge_of_old_subnet",
        "docker0 has 11.0.0.1/24, which is not of our subnet .*; restart Docker .* --bip=11",
    ),
    "NAT rules gone": Fault(
        (UDP,),
        on(1, "iptables -t nat -D POSTROUTING -j FLANNEL-M-11.0.0.0/16"),
        on(1, "iptables -t nat -I POSTROUTING -j FLANNEL-M-11.0.0.0/16"),
        "masquerading_missing",
        "chain FLANNEL-M-11.0.0.0/16: its jump in POSTROUTING was removed; .* restores them within -iptables-resync",
    ),
    "no route to a peer": Fault(
        (VXLAN,),
        on(1, "ip route add unreachable 172.17.8.102/32"),
        on(1, "ip route delete unreachable 172.17.8.102/32"),
        "no_route_to_peer",
        "172.17.8.102 of .*: the kernel has no route: No route to host; add one, or remove",
    ),
    "rp_filter strict": Fault(
        (UDP,),
        second_uplink,
        on(1, "ip link delete eth2", "sysctl -qw net.ipv4.conf.eth1.rp_filter=0"),
        "rp_filter",
        "packets from 172.17.8.102 that arrive by eth1 are dropped; .* sysctl -w net.ipv4.conf.eth1.rp_filter=2",
    ),
    "etcd down": Fault(
        (VXLAN,),
        lambda lab: lab.etcd.stop(),
        lambda lab: lab.etcd.start(),
        "etcd_silent",
        "no answer: http://172.17.8.1:2379: connection refused.*; either etcd is down, or",
    ),
    "etcd frozen": Fault(
        (UDP,),
        lambda lab: lab.etcd.pause(),
        lambda lab: lab.etcd.resume(),
        "etcd_silent",
        "no answer: http://172.17.8.1:2379: no answer in time; either etcd is down, or",
    ),
}
CASES = [
    pytest.param(backend, what, id=f"{backend}-{what}")
    for backend in (UDP, VXLAN, HOST_GW, ALLOC)
    for what in ["nothing", *FAULTS]
    if what == "nothing" or backend in FAULTS[what].backends
]


@pytest.mark.parametrize(("backend", "what"), CASES)
def test_each_fault_is_named_with_its_remedy_and_vanishes_when_it_is_mended(
    labs: Callable[[Backend], Lab], backend: Backend, what: str
) -> None:
    lab = labs(backend)
    if what == "nothing":
        assert_healthy(lab)
        return
    fault = FAULTS[what]
    fault.put(lab)
    try:
        checked = check(lab.hosts[0])
    finally:
        fault.undo(lab)
    assert checked.exit_code == 1, checked
    assert fault.code in checked.codes(), checked
    [line] = checked.texts(fault.code)
    assert re.search(fault.text, line), line
    wait_for(lambda: not check(lab.hosts[0]).flaws, 30, "a healthy lab", pause=0.5)


def assert_healthy(lab: Lab) -> None:
    """No line is bad or a warning, and nothing on the host or in etcd has changed."""
    for host in lab.hosts:
        before = belongings(host), sysctls(host), lab.leases()
        checked = check(host)
        assert (checked.exit_code, checked.flaws) == (0, []), checked
        [lease] = [line["text"] for line in checked.document["lines"] if line["link"] == "lease"]
        assert re.fullmatch(rf"{host.subnet()} expires in 23 h 5\d min, and is renewed 1 h before", lease)
        after = belongings(host), sysctls(host), lab.leases()
        assert _without_ttl(after[2]) == _without_ttl(before[2])
        assert after[:2] == before[:2]


def sysctls(host: Host) -> str:
    return host.run("sh", "-c", "grep -rs . /proc/sys/net/ipv4/conf").stdout


def _without_ttl(leases: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{key: value for key, value in lease.items() if key != "ttl"} for lease in leases]


def test_a_dead_daemon_is_named_here_and_on_its_peers(labs: Callable[[Backend], Lab]) -> None:
    lab = labs(UDP)
    first, second, _ = lab.hosts
    second.daemons[-1].kill()
    here, there = check(second), check(first)
    assert {"daemon_stopped", "device_missing"} <= here.codes()
    assert "start it: systemctl start flannelpy" in here.texts("daemon_stopped")[0]
    assert there.codes() == {"port_closed"}
    assert "UDP port 8285 of 172.17.8.102 is closed; start flannelpy on that host" in there.texts("port_closed")[0]


def test_without_etcd_the_peers_are_those_that_the_daemon_knows(labs: Callable[[Backend], Lab]) -> None:
    lab = labs(VXLAN)
    first = lab.hosts[0]
    lab.etcd.stop()
    try:
        with_daemon = check(first)
        without = check(first, "-subnet-dir=/run/other", "-networks=blue")
    finally:
        lab.etcd.start()
    assert (with_daemon.codes(), with_daemon.codes("warning")) == ({"etcd_silent"}, set()), with_daemon
    assert {line["peer"] for line in pings(with_daemon)} == {str(host.subnet()) for host in lab.hosts[1:]}
    assert "peers_unknown" in without.codes("warning"), without
    wait_for(lambda: not check(first).flaws, 30, "a healthy lab", pause=0.5)


def test_a_daemon_that_hangs_is_a_warning(lone: Host) -> None:
    daemon = lone.start_daemon(*DAEMON)
    daemon.wait_ready()
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        checked = check(lone)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    assert (checked.exit_code, checked.codes("warning")) == (0, {"daemon_silent"}), checked


def test_each_of_several_networks_has_lines_of_its_own(make_lab: Callable[..., Lab]) -> None:
    """One of them routes directly.  Without containers, the bridge of a peer is a warning that is true."""
    lab = make_lab(hosts=2, api=Api.V3)
    lab.etcd.put(f"{ETCD_PREFIX}/blue/config", UDP.config())
    direct = {"Network": "12.0.0.0/16", "Backend": {"Type": "vxlan", "DirectRouting": True}}
    lab.etcd.put(f"{ETCD_PREFIX}/green/config", json.dumps(direct))
    daemons = [host.start_daemon("-iface=eth1", "-networks=blue,green") for host in lab.hosts]
    for daemon in daemons:
        daemon.wait_ready()
    first = lab.hosts[0]
    wait_for(lambda: len(pings(check(first, "-networks=blue,green"))) == 6, 20, "both networks to have their peers")
    checked = check(first, "-networks=blue,green")
    assert (checked.exit_code, checked.codes("warning")) == (0, {"bridge_silent"}), checked
    assert {line["network"] for line in pings(checked)} == {"blue", "green"}


def pings(checked: Checked) -> list[dict[str, Any]]:
    return [line for line in checked.document["lines"] if "echo" in line]


@pytest.mark.timed
def test_a_hundred_peers_or_an_etcd_that_do_not_answer_take_less_than_ten_seconds(lone: Host) -> None:
    lone.start_daemon(*DAEMON).wait_ready()
    lone.add_container()
    for number in range(100):
        key, value = UDP.foreign_lease(IPv4Network((f"11.0.{number + 100}.0", 24)), number)
        lone.lab.etcd.put(key, value.replace("10.0.0.", "172.17.8."), ttl=3600)
    checked = check(lone)
    assert checked.exit_code == 1
    assert checked.seconds < 10, checked
    lone.lab.etcd.pause()
    frozen = check(lone)
    lone.lab.etcd.resume()
    assert frozen.codes() == {"etcd_silent", "peer_silent"}  # the daemon knows the peers
    assert frozen.seconds < 10, frozen


def test_the_text_has_one_line_for_each_link_and_a_summary(lone: Host) -> None:
    lone.start_daemon("-iface=eth1").wait_ready()
    done = lone.run(*argv(lone))
    assert re.search(r"^ok +interface +eth1 with 172\.17\.8\.101, MTU 1500$", done.stdout, re.MULTILINE)
    assert done.stdout.splitlines()[-1].startswith("0 bad, 0 warnings, ")
