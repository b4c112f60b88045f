"""``flannelpy status`` and ``flannelpy check`` name each fault in one line with its remedy, and nothing else.

The faults are real ones, each on the first host of two.  docs/check.md has a row for each of them; a test compares.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import NamedTuple

import pytest
from faults.backends import HOST_GW, UDP, VXLAN, Backend, lease_key
from lab import Host, Lab, wait_for
from lab.etcd_stores import Api
from support.checks import check, set_up, status, wait_until_well
from support.hosts import freeze, thaw

PAGE = Path(__file__).parents[2] / "docs/check.md"
# Both stores of etcd are in use.
APIS = {"udp": Api.V2, "vxlan": Api.V3, "host-gw": Api.V2}
PORTS = {"udp": 8285, "vxlan": 8472}
DAEMON = ("-iface=eth1", "-ip-masq")
# The daemon would restore the rules of -ip-masq before the commands see that they are gone.
FLAGS = {"host-gw": (*DAEMON, "-iptables-resync=300")}
# Within this time a problem must be named.
DEADLINE = 60
SECOND = "172.17.8.102"
BLOCK = {"add": "action block", "delete": ""}


@pytest.fixture(scope="module")
def labs(root: None) -> Iterator[Callable[[Backend], Lab]]:
    """Starts the lab of a backend, the last one's being removed: the tests are sorted by their backends."""
    current: list[tuple[Backend, Lab]] = []

    def start(backend: Backend) -> Lab:
        if not current or current[0][0] is not backend:
            remove()
            lab = Lab(hosts=2, api=APIS[backend.name]).__enter__()
            current.append((backend, lab))
            try:
                lab.put_config(backend.config())
                set_up(lab, *FLAGS.get(backend.name, DAEMON))
                lab.hosts[0].configure("link add elsewhere type bridge", "address add 192.0.2.1/24 dev elsewhere")
                lab.hosts[0].configure("link set elsewhere up")
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


class Site(NamedTuple):
    """A lab and its backend."""

    lab: Lab
    backend: Backend


class Named(NamedTuple):
    """The line that has to name a fault: its code, and a regular expression that matches its text and remedy."""

    code: str
    text: str


class Fault(NamedTuple):
    """``put`` and ``undo``: what breaks and mends something on the first host, or between it and the second.

    ``remedy``: as in docs/check.md, and a part of what ``check`` prints.  ``status``: None if the daemon cannot know of
    the fault; the exit code without a daemon that answers.  ``besides``: codes of further lines of ``check``, and
    ``also`` of ``status``, about what the fault truly causes.
    """

    backends: Sequence[Backend]
    put: Callable[[Site], object]
    undo: Callable[[Site], object]
    check: Named
    remedy: str
    status: Named | int = 0
    besides: frozenset[str] = frozenset()
    also: frozenset[str] = frozenset()


def on_first(*commands: str) -> Callable[[Site], None]:
    """Return what runs these commands on the first host.

    {own} is its bridge, {low} and {high} are the halves of the second host's subnet.
    """

    def run(site: Site) -> None:
        own, peer = (host.subnet() for host in site.lab.hosts)
        low, high = peer.subnets(1)
        for command in commands:
            site.lab.hosts[0].run(*command.format(own=f"{own.network_address + 1}/24", low=low, high=high).split())

    return run


def input_rule(action: str, rule: str) -> Callable[[Site], None]:
    """Return what adds (-I) or removes (-D) a rule in INPUT of the second host; {port} is that of the backend."""

    def run(site: Site) -> None:
        port = PORTS.get(site.backend.name, 0)
        site.lab.hosts[1].run("iptables", action, "INPUT", *rule.format(port=port).split())

    return run


def ipsec(action: str, selector: str) -> Callable[[Site], None]:
    """Return what adds or deletes an IPsec policy of the first host that blocks packets; {port}: the backend's."""

    def run(site: Site) -> None:
        words = selector.format(port=PORTS.get(site.backend.name, 0)).split()
        site.lab.hosts[0].run("ip", "xfrm", "policy", action, "dir", "out", *words, *BLOCK[action].split())

    return run


def narrow(mtu: int) -> Callable[[Site], None]:
    """Return what gives the switch's port of the second host that MTU: it drops frames that are 4 bytes longer.

    The kernel leaves them space for a VLAN tag.
    """
    return lambda site: site.lab.switch.configure(f"link set host2 mtu {mtu}")


def narrow_way(site: Site) -> None:
    """A bridge passes on a train of segments of any length, as no cable does; so the sender makes none."""
    site.lab.hosts[0].configure("link set eth1 gso_max_segs 1")
    narrow(1400)(site)


def wipe(site: Site) -> None:
    site.lab.etcd.stop()
    site.lab.etcd.wipe()
    site.lab.etcd.start()


DUPLICATE = lease_key(IPv4Network("11.0.255.0/24"))


def duplicate(site: Site) -> None:
    value = json.loads(UDP.lease(str(site.lab.hosts[0].public_ip)))
    site.lab.etcd.put(DUPLICATE, json.dumps(value | {"HostID": "zzz"}), ttl=3600)


OTHER = lease_key(IPv4Network("11.0.254.0/24"))


def other_backend(site: Site) -> None:
    site.lab.etcd.put(OTHER, UDP.lease("172.17.8.150"), ttl=3600)


def wrong_checksums(site: Site) -> None:
    """The second host receives datagrams of the backend as if a network card of the first had broken checksums."""
    site.lab.hosts[0].run("ethtool", "-K", "eth1", "tx", "off")  # otherwise they are not verified
    chain = "chain in { type filter hook prerouting priority -300; udp dport 8285 udp checksum set 1; }"
    site.lab.hosts[1].run("nft", f"table inet broken {{ {chain}; }}")


def right_checksums(site: Site) -> None:
    site.lab.hosts[0].run("ethtool", "-K", "eth1", "tx", "on")
    site.lab.hosts[1].run("nft", "delete table inet broken")


def firewalld(site: Site) -> None:
    """The chains that firewalld has in Debian 12, with the zones left out."""
    site.lab.hosts[0].run("nft", FIREWALLD)


def container_mtu(mtu: int) -> Callable[[Site], None]:
    """Return what gives the ports of the first host's docker0 that MTU."""

    def run(site: Site) -> None:
        first = site.lab.hosts[0]
        for port in json.loads(first.run("ip", "-json", "link", "show", "master", "docker0").stdout):
            first.configure(f"link set {port['ifname']} mtu {mtu}")

    return run


def take_lease(site: Site) -> None:
    """While the first host is down, its lease ends, and another host leases the subnet."""
    first = site.lab.hosts[0]
    first.daemons[-1].kill()
    value = json.loads(UDP.lease("172.17.8.150"))
    site.lab.etcd.put(lease_key(first.subnet()), json.dumps(value | {"HostID": "other"}), ttl=3600)


def give_lease_back(site: Site) -> None:
    first = site.lab.hosts[0]
    site.lab.etcd.delete(lease_key(first.subnet()))
    first.start_daemon(*DAEMON).wait_ready()


def device_down(site: Site) -> None:
    """The device stays down, because the daemon hangs."""
    freeze(site.lab.hosts[0].daemons[-1])
    site.lab.hosts[0].configure("link set flannel.1 down")


def second_uplink(site: Site) -> None:
    """The first host sends to the second one by another interface than that by which the answers arrive."""
    first, second = site.lab.hosts
    mac = second.run("cat", "/sys/class/net/eth1/address").stdout.strip()
    site.lab.switch.configure(f"link add host1b type veth peer name eth2 netns {first.netns}")
    site.lab.switch.configure("link set host1b master br0 up")
    first.run("sysctl", "-qw", "net.ipv4.conf.eth2.arp_ignore=1", "net.ipv4.conf.eth1.rp_filter=1")
    first.configure("link set eth2 up", f"route add {SECOND}/32 dev eth2 src 172.17.8.101")
    first.configure(f"neighbour add {SECOND} lladdr {mac} dev eth2")  # an ARP request would lead answers to eth2


FIREWALLD = """
table inet firewalld {
  chain filter_FORWARD {
    type filter hook forward priority 10; policy accept;
    ct state established,related accept
    ct status dnat accept
    iifname "lo" accept
    ct state invalid drop
    jump filter_FORWARD_POLICIES
    reject with icmpx admin-prohibited
  }
  chain filter_FORWARD_POLICIES {
    iifname "eth0" oifname "eth0" accept
  }
}
"""


#: By the row of docs/check.md.
FAULTS = {
    "etcd down": Fault(
        (VXLAN,),
        lambda site: site.lab.etcd.stop(),
        lambda site: site.lab.etcd.start(),
        Named("etcd_silent", "no answer: http://172.17.8.1:2379: connection refused.*; either etcd is down, or"),
        "either etcd is down, or a firewall is between, or -etcd-endpoints and the TLS files are wrong",
        Named("store_silent", "etcd v3 has given no usable answer for .*connection refused.*; start etcd, or restore"),
    ),
    "etcd frozen": Fault(
        (UDP,),
        lambda site: site.lab.etcd.pause(),
        lambda site: site.lab.etcd.resume(),
        Named("etcd_silent", "no answer: http://172.17.8.1:2379: no answer in time; either etcd is down, or"),
        "either etcd is down, or a firewall is between, or -etcd-endpoints and the TLS files are wrong",
        Named("store_silent", "etcd v2 has given no usable answer for .*no answer in time.*; start etcd, or restore"),
    ),
    "etcd wiped": Fault(
        (UDP, VXLAN),
        wipe,
        lambda site: site.lab.put_config(site.backend.config()),
        Named("config_missing", "/coreos.com/network/config has no network config; either no config is written yet"),
        "etcdctl put /coreos.com/network/config",
        Named("config_missing", "Network config in etcd was removed; continuing .*; write the network config to etcd"),
    ),
    "etcd's database full": Fault(
        (VXLAN,),
        lambda site: site.lab.etcd.v3.raise_alarm("NOSPACE"),
        lambda site: site.lab.etcd.v3.disarm("NOSPACE"),
        Named("etcd_full", "refuses writes: alarm NOSPACE of member [0-9a-f]+; compact it: .*; defragment each member"),
        "then etcdctl alarm disarm; raise --quota-backend-bytes if it is soon full again",
    ),
    "etcd's data corrupt": Fault(
        (VXLAN,),
        lambda site: site.lab.etcd.v3.raise_alarm("CORRUPT"),
        lambda site: site.lab.etcd.v3.disarm("CORRUPT"),
        Named("etcd_corrupt", r"refuses writes: alarm CORRUPT of member ([0-9a-f]+); .*: etcdctl member remove \1, "),
        "start it with an empty data directory; then etcdctl alarm disarm",
    ),
    "UDP port filtered": Fault(
        (UDP, VXLAN),
        input_rule("-I", "-p udp --dport {port} -j DROP"),
        input_rule("-D", "-p udp --dport {port} -j DROP"),
        Named("datagrams_lost", r"7 of 7 lost, and UDP port (\d+) of \S+ rejects nothing; .* UDP port \1 .* or"),
        "accept it both ways",
    ),
    "UDP port rejected": Fault(
        (VXLAN,),
        input_rule("-I", "-p udp --dport {port} -j REJECT --reject-with icmp-admin-prohibited"),
        input_rule("-D", "-p udp --dport {port} -j REJECT --reject-with icmp-admin-prohibited"),
        Named("port_prohibited", r"7 of 7 lost, and UDP port 8472 of \S+ is prohibited; a firewall on that host or"),
        "accept it both ways",
    ),
    "UDP port rejected as closed": Fault(
        (UDP,),
        input_rule("-I", "-p udp --dport {port} -j REJECT"),
        input_rule("-D", "-p udp --dport {port} -j REJECT"),
        Named("port_closed", r"7 of 7 lost, and UDP port 8285 of \S+ is closed; either flannelpy does not run"),
        "or a firewall rejects UDP port 8285: accept it both ways",
    ),
    "datagrams dropped on the way out": Fault(
        (UDP,),
        on_first("iptables -I OUTPUT -p udp --dport 8285 -j DROP"),
        on_first("iptables -D OUTPUT -p udp --dport 8285 -j DROP"),
        Named(
            "datagrams_refused",
            r"7 of 7 lost, and UDP port 8285 of \S+ may not be sent to; either a rule drops",
        ),
        "have the rules of OUTPUT on this host accept UDP port 8285",
    ),
    "datagrams blocked by IPsec": Fault(
        (VXLAN, UDP),
        ipsec("add", "proto udp dport {port}"),
        ipsec("delete", "proto udp dport {port}"),
        Named("datagrams_refused", r"7 of 7 lost, and UDP port \d+ of \S+ may not be sent to; either a rule"),
        "or an IPsec policy blocks them: see ip xfrm policy",
    ),
    "only the daemon's datagrams dropped on the way out": Fault(
        (UDP,),
        on_first("iptables -I OUTPUT -p udp --sport 8285 -j DROP"),
        on_first("iptables -D OUTPUT -p udp --sport 8285 -j DROP"),
        Named("send_failed", "during the check, the kernel rejected datagrams of flannelpy: send_failed .*; either a"),
        "have the rules of OUTPUT on this host accept the UDP datagrams of flannelpy",
        besides=frozenset({"datagrams_lost"}),
    ),
    "all packets to a peer blocked by IPsec": Fault(
        (UDP,),
        ipsec("add", f"dst {SECOND}/32"),
        ipsec("delete", f"dst {SECOND}/32"),
        Named("send_failed", "during the check, the kernel rejected datagrams of flannelpy: send_failed .*; either a"),
        "or an IPsec policy blocks them: see ip xfrm policy",
        besides=frozenset({"ping_refused"}),
    ),
    "wrong checksums": Fault(
        (UDP,),
        wrong_checksums,
        right_checksums,
        Named("datagrams_lost", "7 of 7 lost, and UDP port 8285 of .* rejects nothing"),
        "nstat -az UdpInCsumErrors",
    ),
    "peer drops pings": Fault(
        (UDP, VXLAN, HOST_GW),
        input_rule("-I", "-p icmp --icmp-type echo-request -j DROP"),
        input_rule("-D", "-p icmp --icmp-type echo-request -j DROP"),
        Named("pings_dropped", "no answer of 172.17.8.102 from 172.17.8.101: 7 of 7 lost, nor of"),
        "a firewall there drops pings",
    ),
    "pings dropped on the way out": Fault(
        (UDP,),
        on_first("iptables -I OUTPUT -p icmp -j DROP"),
        on_first("iptables -D OUTPUT -p icmp -j DROP"),
        Named("ping_refused", r"172.17.8.102 from 172.17.8.101: 3 of 3 lost \(dropped by this host's own rules"),
        "have the rules of OUTPUT on this host accept its pings",
    ),
    "MTU too large": Fault(
        (UDP, VXLAN, HOST_GW),
        narrow_way,
        narrow(1500),
        Named(
            "mtu_too_large",
            r"path MTU 1(376|354|404), but containers send up to 1(472|450|500) bytes; .*(\"MTU\": 1404|mtu 1404)",
        ),
        "a link on the way is narrower than the interface of this host",
    ),
    "MTU of the interface lowered": Fault(
        (UDP,),
        on_first("ip link set eth1 mtu 1400"),
        on_first("ip link set eth1 mtu 1500"),
        Named("config_changed", "/run/flannel/subnet.env has .* MTU 1472, the config .* MTU 1372; .*: restart"),
        "restart flannelpy, then Docker",
        Named("mtu", "up to 1472 bytes, which need an MTU of 1500 on eth1; it has 1400; raise the MTU of the"),
        frozenset({"container_mtu"}),
    ),
    "ip_forward 0": Fault(
        (UDP,),
        on_first("sysctl -qw net.ipv4.ip_forward=0"),
        on_first("sysctl -qw net.ipv4.ip_forward=1"),
        Named("forwarding_off", "^net.ipv4.ip_forward is 0, "),
        "set it: sysctl -w net.ipv4.ip_forward=1",
        Named("containers_blocked", "^net.ipv4.ip_forward is 0, .*; set it: sysctl -w net.ipv4.ip_forward=1"),
    ),
    "FORWARD DROP": Fault(
        (UDP,),
        on_first("iptables -I FORWARD -j DROP"),
        on_first("iptables -D FORWARD -j DROP"),
        Named("packets_dropped", "'-A FORWARD -j DROP' drops packets .*; remove it, or accept"),
        "remove it, or accept these packets before it",
        Named("containers_blocked", "'-A FORWARD -j DROP' drops packets .*; remove it, or accept"),
    ),
    "FORWARD DROP for TCP": Fault(
        (UDP,),
        on_first("iptables -I FORWARD -p tcp -j DROP"),
        on_first("iptables -D FORWARD -p tcp -j DROP"),
        Named("packets_may_be_dropped", "'-A FORWARD -p tcp -j DROP' may drop packets .*; remove it, or accept"),
        "remove it, or accept these packets before it",
    ),
    "raw DROP": Fault(
        (VXLAN,),
        on_first("iptables -t raw -I PREROUTING -s 11.0.0.0/16 -j DROP"),
        on_first("iptables -t raw -D PREROUTING -s 11.0.0.0/16 -j DROP"),
        Named("packets_dropped", r"'-A PREROUTING -s 11.0.0.0/16 -j DROP' drops packets .*\(table raw, "),
        "remove it, or accept these packets before it",
        Named("containers_blocked", r"'-A PREROUTING -s 11.0.0.0/16 -j DROP' drops packets .*\(table raw, .*; remove"),
    ),
    "rules of firewalld": Fault(
        (UDP,),
        firewalld,
        on_first("nft delete table inet firewalld"),
        Named("packets_dropped", r"filter_FORWARD drops packets .*, also those that iptables accepts \(reject in "),
        "have firewalld accept them: firewall-cmd --permanent --zone=trusted --add-source=11.0.0.0/16",
        Named("containers_blocked", r"filter_FORWARD drops packets .* \(reject in .*\); have firewalld accept them"),
    ),
    "tunnel device down, and the daemon hangs": Fault(
        (VXLAN,),
        device_down,
        lambda site: thaw(site.lab.hosts[0].daemons[-1]),
        Named("device_flaw", r"flannel\.1 .*down; another program has changed it: a running flannelpy restores it"),
        "a running flannelpy restores it within ten seconds; if it does not, look at its log",
        3,
        frozenset({"daemon_silent", "route_diverted"}),  # the kernel has removed the device's routes
    ),
    "external interface down": Fault(
        (UDP,),
        on_first("ip link set eth1 down"),
        on_first("ip link set eth1 up"),
        Named("interface_down", "^eth1 is down; ip link set eth1 up"),
        "ip link set eth1 up",
        Named("external_interface", "^eth1 is down; restore the link"),
        frozenset({"etcd_silent"}),
        frozenset({"store_silent"}),
    ),
    "foreign route": Fault(
        (UDP, VXLAN, HOST_GW),
        on_first("ip route add {low} dev elsewhere", "ip route add {high} dev elsewhere"),
        on_first("ip route delete {low} dev elsewhere", "ip route delete {high} dev elsewhere"),
        Named("route_diverted", "packets to .* of 172.17.8.102: route .*/25 dev elsewhere .* takes containers'"),
        "remove the route or rule that the line names",
        Named("kernel_state", "Packets to every peer do not take .*: route .*/25 dev elsewhere .*; remove the route"),
    ),
    "lease taken while the daemon was down": Fault(
        (UDP,),
        take_lease,
        give_lease_back,
        Named(
            "lease_taken",
            r"subnet.env has \S+, which is leased to 172.17.8.150 \(other\); either another host leased it",
        ),
        "restart flannelpy, which leases another subnet, then Docker",
        3,
        frozenset({"daemon_stopped", "device_missing", "peer_silent"}),  # the other host is none of the lab
    ),
    "peer gone": Fault(
        (HOST_GW,),
        lambda site: site.lab.hosts[1].unplug(),
        lambda site: site.lab.hosts[1].plug_in(),
        Named("peer_silent", "no answer of 172.17.8.102 from 172.17.8.101: 7 of 7 lost.*; either that host is"),
        "either that host is down, or the network between is cut",
    ),
    "duplicate public IP": Fault(
        (UDP,),
        duplicate,
        lambda site: site.lab.etcd.delete(DUPLICATE),
        Named("public_ip_twice", r"public IP 172.17.8.101 of this host is in 2 leases: .*\(host1\).*\(zzz\)"),
        "either two hosts have that address, or choose the wrong interface: give each its own -iface or -public-ip",
    ),
    "docker0 of an old subnet": Fault(
        (VXLAN,),
        on_first("ip address delete {own} dev docker0", "ip address add 11.0.0.1/24 dev docker0"),
        on_first("ip address delete 11.0.0.1/24 dev docker0", "ip address add {own} dev docker0"),
        Named("bridge_of_old_subnet", "docker0 has 11.0.0.1/24, which is not of our subnet .* --bip=11"),
        "restart Docker with the present subnet file",
    ),
    "container without its bridge": Fault(
        (VXLAN,),
        on_first("ip link set veth1 down nomaster name veth0a1b2c3", "ip link set veth0a1b2c3 up"),
        on_first("ip link set veth0a1b2c3 down name veth1", "ip link set veth1 master docker0 up"),
        Named("container_unplugged", "^veth0a1b2c3: no port of a bridge, .*, or ip link set veth0a1b2c3 master"),
        "either its bridge was removed or has lost it: restart the container",
    ),
    "MTU of containers too large": Fault(
        (VXLAN,),
        container_mtu(1500),
        container_mtu(1450),
        Named("container_mtu", "of docker0 has MTU 1500, and the overlay carries 1450; restart Docker with --mtu=1450"),
        "then create the containers again",
    ),
    "peer with another backend": Fault(
        (HOST_GW,),
        other_backend,
        lambda site: site.lab.etcd.delete(OTHER),
        Named("lease_unusable", "lease 11.0.254.0/24 is ignored: .*udp.*host-gw"),
        "correct what the line names, on that host or on this one",
    ),
    "NAT rules gone": Fault(
        (HOST_GW,),
        on_first("iptables -t nat -D POSTROUTING -j FLANNEL-M-11.0.0.0/16"),
        on_first("iptables -t nat -I POSTROUTING -j FLANNEL-M-11.0.0.0/16"),
        Named("masquerading_missing", "chain FLANNEL-M-11.0.0.0/16: its jump in POSTROUTING was removed"),
        "a running flannelpy restores them within -iptables-resync seconds; if it does not, restart it",
    ),
    "no route to a peer": Fault(
        (VXLAN,),
        on_first("ip route add unreachable 172.17.8.102/32"),
        on_first("ip route delete unreachable 172.17.8.102/32"),
        Named("no_route_to_peer", "172.17.8.102 of .*: the kernel has no route: No route to host"),
        "add one, or remove the one that rejects: ip route get 172.17.8.102",
        Named("no_route_to_peers", "no peer is reachable, such as 172.17.8.102: the kernel has no route: .*; restore"),
    ),
    "rp_filter strict": Fault(
        (UDP,),
        second_uplink,
        on_first("ip link delete eth2", "sysctl -qw net.ipv4.conf.eth1.rp_filter=0"),
        Named("rp_filter", "packets from 172.17.8.102 that arrive by eth1 are dropped"),
        "correct the route, or set rp_filter to 2: sysctl -w net.ipv4.conf.eth1.rp_filter=2",
    ),
}
# These resemble another fault each.
VARIANTS = {
    "etcd's data corrupt",
    "UDP port rejected as closed",
    "datagrams dropped on the way out",
    "datagrams blocked by IPsec",
    "all packets to a peer blocked by IPsec",
    "pings dropped on the way out",
    "MTU of the interface lowered",
}
CASES = [
    pytest.param(
        backend,
        what,
        id=f"{backend}-{what}",
        marks=() if backend is fault.backends[0] and what not in VARIANTS else pytest.mark.soak,
    )
    for backend in (UDP, VXLAN, HOST_GW)
    for what, fault in FAULTS.items()
    if backend in fault.backends
]


@pytest.mark.parametrize(("backend", "what"), CASES)
def test_a_fault_is_named_with_its_remedy_and_vanishes_when_it_is_mended(
    labs: Callable[[Backend], Lab], backend: Backend, what: str
) -> None:
    site, fault = Site(labs(backend), backend), FAULTS[what]
    first = site.lab.hosts[0]
    wait_until_well(first)
    fault.put(site)
    try:
        assert_status_names(first, fault)
        assert_check_names(first, fault)
    finally:
        fault.undo(site)
    wait_until_well(first)


def assert_status_names(host: Host, fault: Fault) -> None:
    """The only problems are those of the fault; if there should be none, then not because of a guess."""
    if not isinstance(fault.status, Named):
        found = status(host)
        assert (found.problems, found.exit_code) == ({}, fault.status)
        return
    code, text = fault.status
    wait_for(lambda: {code, *fault.also} <= status(host).problems.keys(), DEADLINE, f"the problem {code}", pause=0.3)
    found = status(host)
    assert found.exit_code == 1
    assert found.problems.keys() == {code, *fault.also}, found
    [line] = found.problems[code]
    assert re.search(text, line), line


def assert_check_names(host: Host, fault: Fault) -> None:
    """The line is there, and no other but what the fault causes."""
    code, text = fault.check
    checked = check(host)
    found = checked.codes("bad") | checked.codes("warning")
    assert code in found, checked
    assert checked.exit_code == bool(checked.codes("bad"))
    [line] = checked.texts(code)
    assert re.search(text, line), line
    assert fault.remedy in line, line
    assert found <= {code, *fault.besides}, checked


def test_the_page_has_a_row_for_each_fault() -> None:
    rows = re.findall(
        r"^\| ([^|`]+) \| (?:`(\w+)`|–|exit code (\d)) \| `(\w+)` \| ([^|]+) \|$", PAGE.read_text(), re.MULTILINE
    )
    expected = [
        (
            what,
            fault.status.code if isinstance(fault.status, Named) else "",
            str(fault.status) if isinstance(fault.status, int) and fault.status else "",
            fault.check.code,
            fault.remedy,
        )
        for what, fault in FAULTS.items()
    ]
    assert rows == expected


def test_status_alone_names_at_least_eight() -> None:
    assert sum(isinstance(fault.status, Named) for fault in FAULTS.values()) >= 8
