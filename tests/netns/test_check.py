"""What ``flannelpy check`` prints, and how long it takes.

faults/test_diagnosis.py has the faults that it names, faults/test_no_false_alarm.py the healthy hosts.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from ipaddress import IPv4Network
from typing import Any

import pytest
from faults.backends import HOST_GW, UDP, VXLAN
from lab import ETCD_PREFIX, Host, Lab, wait_for
from lab.etcd_stores import Api
from support import datapaths
from support.checks import Checked, argv, check, set_up, status, wait_until_well

pytestmark = pytest.mark.usefixtures("root")


def test_a_dead_daemon_is_named_here_and_on_its_peers(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=2)
    lab.put_config()
    set_up(lab, "-iface=eth1")
    first, second = lab.hosts
    second.daemons[-1].kill()
    here, there = check(second), check(first)
    assert {"daemon_stopped", "device_missing"} <= here.codes()
    assert "start it: systemctl start flannelpy" in here.texts("daemon_stopped")[0]
    assert there.codes() == {"port_closed"}
    assert "UDP port 8285 of 172.17.8.102 is closed; either flannelpy does not run on" in there.texts("port_closed")[0]


def test_without_etcd_the_peers_are_those_that_the_daemon_knows(lone: Host) -> None:
    daemon = lone.start_daemon("-iface=eth1")
    daemon.wait_ready()
    add_peers(lone, 1)
    daemon.wait_for_peer(IPv4Network("11.0.100.0/24"))
    lone.lab.etcd.stop()
    with_daemon = check(lone)
    daemon.kill()
    without = check(lone)
    assert (with_daemon.codes(), with_daemon.codes("warning")) == ({"etcd_silent", "peer_silent"}, set()), with_daemon
    assert (without.codes(), without.codes("warning")) == (
        {"etcd_silent", "daemon_stopped", "device_missing"},
        {"peers_unknown"},
    ), without


def test_a_daemon_that_can_lease_no_subnet_because_of_etcds_alarm_says_so(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=1, api=Api.V3)
    lab.put_config(VXLAN.config())
    [host] = lab.hosts
    lab.etcd.v3.raise_alarm("NOSPACE")
    daemon = host.start_daemon("-iface=eth1")
    wait_for(lambda: "lease_missing" in status(host).problems, 20, "the daemon to ask for a subnet", pause=0.3)
    found, checked = status(host), check(host)
    lab.etcd.v3.disarm("NOSPACE")
    [problem] = found.problems["lease_missing"]
    assert found.problems.keys() == {"lease_missing"}
    assert "etcd v3 refuses writes: its database is full (alarm NOSPACE): compact and defragment it, then " in problem
    assert (checked.codes(), checked.codes("warning")) == ({"etcd_full"}, set()), checked
    daemon.wait_ready(30)


def test_a_daemon_that_hangs_is_a_warning_and_what_it_does_not_restore_is_bad(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=2, api=Api.V3)
    lab.put_config(VXLAN.config())
    set_up(lab, "-iface=eth1")
    first, second = lab.hosts
    daemon = first.daemons[-1]
    tunnel = second.subnet().network_address
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        hangs = check(first)
        first.configure(f"neighbour replace {tunnel} lladdr 02:00:00:00:00:01 dev flannel.1 nud permanent")
        stale = check(first)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    assert (hangs.exit_code, hangs.codes("warning")) == (0, {"daemon_silent"}), hangs
    assert (stale.codes(), stale.codes("warning")) == ({"entry_missing"}, {"daemon_silent"}), stale
    [line] = stale.texts("entry_missing")
    assert f"packets to {second.subnet()} of 172.17.8.102: the kernel has no neighbour {tunnel} at " in line
    wait_until_well(first)


FILTERED = {
    "by the peer": ("iptables -A INPUT -p udp --dport 8285 -j DROP", "iptables -F INPUT"),
    "on the way": (
        "nft table netdev fw { chain in { type filter hook ingress device host1 priority 0; udp dport 8285 drop; }; }",
        "nft delete table netdev fw",
    ),
}


@pytest.mark.parametrize("where", FILTERED)
def test_with_the_kernels_datapath_a_filtered_udp_port_is_named(make_lab: Callable[..., Lab], where: str) -> None:
    """The peer's guard sees its own rule, and the peer has the loop from then on."""
    lab = make_lab(hosts=2)
    lab.put_config()
    set_up(lab, "-iface=eth1", "-datapath=auto", "-iptables-resync=1")
    first, second = lab.hosts
    filtering, (add, remove) = second if where == "by the peer" else lab.switch, FILTERED[where]
    filtering.run(*add.split())
    expected = "loop" if where == "by the peer" else "kernel"
    wait_for(lambda: datapaths.status(second)["datapath"] == expected, 15, "the datapath of the peer")
    wait_for(lambda: "datagrams_lost" in check(first).codes(), 30, "the fault to be named")
    checked = check(first)
    assert checked.codes() == {"datagrams_lost"}, checked
    assert "UDP port 8285 of 172.17.8.102 rejects nothing" in checked.texts("datagrams_lost")[0]
    filtering.run(*remove.split())
    wait_until_well(first)


def test_peers_are_not_blamed_for_a_daemon_of_this_host_that_hangs(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=2)
    lab.put_config()
    set_up(lab, "-iface=eth1")
    first = lab.hosts[0]
    daemon = first.daemons[-1]
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        hangs = check(first)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    assert (hangs.codes(), hangs.codes("warning")) == ({"daemon_hangs"}, {"daemon_silent"}), hangs


def test_a_host_that_limits_its_answers_to_pings_has_no_narrow_link(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=2)
    lab.put_config()
    set_up(lab, "-iface=eth1")
    first, second = lab.hosts
    for rule in ("-m limit --limit 4/s --limit-burst 4 -j ACCEPT", "-j DROP"):
        second.run(*f"iptables -A INPUT -p icmp {rule}".split())
    checked = check(first)
    assert checked.codes() == set(), checked
    assert checked.codes("warning") <= {"loss"}, checked


def test_a_second_daemon_that_finds_the_device_taken_has_no_bridge_that_is_wrong(lone: Host) -> None:
    lone.lab.put_config(VXLAN.config())
    lone.start_daemon("-iface=eth1").wait_ready()
    lone.add_container()
    second = lone.start_daemon("-iface=eth1", "-subnet-file=/run/flannel/two.env")
    assert second.process.wait(10) == 1
    checked = check(lone, "-subnet-file=/run/flannel/two.env")
    assert checked.codes() == {"subnet_file_missing", "daemon_stopped", "device_missing"}, checked
    assert "there is no tunnel device of flannelpy, and flannel.1 has its address" in checked.texts("device_missing")[0]


def test_docker0_of_another_daemon_with_host_gw_is_no_bridge_that_is_wrong(lone: Host) -> None:
    others = ("-subnet-file=/run/flannel/two.env", "-etcd-prefix=/two/network")
    lone.lab.put_config(HOST_GW.config())
    lone.lab.etcd.put("/two/network/config", HOST_GW.config(IPv4Network("12.0.0.0/16")))
    first = lone.start_daemon("-iface=eth1")
    first.wait_ready()
    lone.start_daemon("-iface=eth1", *others).wait_ready()
    lone.add_container()
    wait_until_well(lone)
    beside = check(lone, "-iface=eth1", *others)
    assert beside.flaws == [], beside
    assert first.stop() == 0
    alone = check(lone, "-iface=eth1", *others)
    assert alone.codes("warning") == {"bridge_elsewhere"}, alone


def test_what_takes_the_packets_of_the_own_containers_is_named(lone: Host) -> None:
    lone.start_daemon("-iface=eth1").wait_ready()
    lone.add_container()
    wait_until_well(lone)
    half = list(lone.subnet().subnets(1))[1]
    lone.configure(f"route add blackhole {half}")
    routed = check(lone)
    lone.configure(f"route delete blackhole {half}")
    lone.configure("link set docker0 down")
    down = check(lone)
    lone.configure("link set docker0 up")
    assert routed.codes() == {"subnet_diverted"}, routed
    assert f"route blackhole {half}" in routed.texts("subnet_diverted")[0]
    assert down.codes() == {"bridge_down"}, down
    wait_until_well(lone)


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


def add_peers(host: Host, count: int) -> None:
    """Write leases of hosts that do not exist."""
    for number in range(count):
        key, value = UDP.foreign_lease(IPv4Network((f"11.0.{number + 100}.0", 24)), number + 110)
        host.lab.etcd.put(key, value.replace("10.0.0.", "172.17.8."), ttl=3600)


@pytest.mark.timed
def test_a_hundred_peers_or_an_etcd_that_do_not_answer_take_less_than_ten_seconds(lone: Host) -> None:
    lone.start_daemon("-iface=eth1", "-ip-masq").wait_ready()
    lone.add_container()
    add_peers(lone, 100)
    checked = check(lone)
    assert checked.exit_code == 1
    assert checked.seconds < 10, checked
    lone.lab.etcd.pause()
    frozen = check(lone)
    lone.lab.etcd.resume()
    assert frozen.codes() == {"etcd_silent", "peer_silent"}  # the daemon knows the peers
    assert frozen.seconds < 10, frozen


def test_what_the_daemon_reports_counts_more_than_the_flags(lone: Host) -> None:
    lone.start_daemon("-iface=eth1", "-subnet-lease-renew-margin=30").wait_ready()
    lone.add_container()
    wait_until_well(lone)
    others = [word.replace("HOST_ID=host1", "HOST_ID=another") for word in argv(lone, "-json", "-iface=lo")]
    done = lone.run(*others, "-public-ip=172.17.8.150", check=False)
    found = [line for line in json.loads(done.stdout)["lines"] if line["level"] != "ok"]
    assert {line["code"] for line in found} == {"flags_differ"}, found
    assert done.returncode == 0
    assert any("and these flags choose another" in line["text"] for line in found), found


def test_the_text_has_one_line_for_each_link_and_a_summary(lone: Host) -> None:
    lone.start_daemon("-iface=eth1").wait_ready()
    done = lone.run(*argv(lone))
    assert re.search(r"^ok +interface +eth1 with 172\.17\.8\.101, MTU 1500$", done.stdout, re.MULTILINE)
    lease = r"^ok +lease +\S+ expires in (1 d|23 h 5\d min), and is renewed 1 h before$"
    assert re.search(lease, done.stdout, re.MULTILINE)
    assert done.stdout.splitlines()[-1].startswith("0 bad, 0 warnings, ")
