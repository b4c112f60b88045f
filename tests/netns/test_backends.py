"""The backends other than udp, compared with recordings of the original: leases, subnet files, routes, logs, pings."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab import ETCD_PREFIX, Daemon, Host, Lab, wait_for

GOLDEN = Path(__file__).parents[1] / "golden"
TYPES = ("alloc", "host-gw")

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture(scope="module", params=TYPES)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@contextmanager
def running(backend: str) -> Iterator[Lab]:
    """Return a lab of three hosts with a container each."""
    with Lab(hosts=3) as lab:
        lab.put_config(json.dumps({"Network": "11.0.0.0/16", "Backend": {"Type": backend}}))
        daemons = [host.start_daemon("-iface=eth1") for host in lab.hosts]
        for daemon in daemons:
            daemon.wait_ready()
            daemon.host.add_container()
        yield lab


@pytest.fixture(scope="module")
def lab(backend: str) -> Iterator[Lab]:
    with running(backend) as lab:
        yield lab


@pytest.fixture(scope="module")
def host_gw() -> Iterator[Lab]:
    with running("host-gw") as lab:
        wait_for(lambda: all(len(gateways(host)) == 2 for host in lab.hosts), 10, "all routes")
        yield lab


def recorded(backend: str, name: str) -> str:
    return (GOLDEN / f"flanneld-v0.5.5-{backend}" / name).read_text()


def gateways(host: Host) -> set[str]:
    """Return the host's routes into the network."""
    return {line.strip() for line in host.run("ip", "route").stdout.splitlines() if re.match(r"11\.0\S* via", line)}


def expected_gateways(lab: Lab, host: Host) -> set[str]:
    return {f"{other.subnet()} via {other.public_ip} dev eth1 proto 85" for other in lab.hosts if other is not host}


def shown(host: Host, *argv: str) -> list[str]:
    return [line.strip() for line in host.run(*argv, check=False).stdout.splitlines()]


def next_hops(host: Host) -> str:
    """Return the number of next hops in the daemon's STATUS=."""
    lines = [line for line in list(host.daemons[-1].notified) if "next hops" in line]
    return re.sub(r".*(?=next hops)", "", lines[-1]) if lines else ""


def ping(source: Host, target: Host, *options: str) -> subprocess.CompletedProcess[str]:
    argv = ("ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", *options, str(target.containers[0].address))
    return source.containers[0].run(*argv, check=False)


def anonymous(text: str) -> str:
    """Return ``text`` without host and subnet."""
    text = re.sub(r',"HostID":"host\d"', "", text)
    return re.sub(r"172\.17\.8\.10\d", "HOST", re.sub(r"11\.0\.\d+\.(\d)", r"11.0.X.\1", text))


def test_the_lease_is_the_originals(lab: Lab, backend: str) -> None:
    nodes = json.loads(recorded(backend, "etcd.json"))["node"]["nodes"]
    values = {anonymous(lease["value"]) for node in nodes if node.get("dir") for lease in node["nodes"]}
    assert {anonymous(lease["value"]) for lease in lab.leases()} == values


def test_the_subnet_file_is_the_originals(lab: Lab, backend: str) -> None:
    for host in lab.hosts:
        text = (host.run_dir / "flannel/subnet.env").read_text()
        assert anonymous(text) == anonymous(recorded(backend, "subnet.env"))


def test_pings_pass_as_with_the_original(lab: Lab, backend: str) -> None:
    """Two hosts forward the pings of host-gw; alloc forwards none."""
    one, other, _ = lab.hosts
    outcome = ping(one, other).stdout
    original = recorded(backend, "ping.txt")
    for fact in ("ttl=62", "0% packet loss", "100% packet loss"):
        assert (f" {fact}" in outcome) == (f" {fact}" in original), outcome


def test_there_is_no_device(lab: Lab) -> None:
    assert all("flannel" not in host.run("ip", "link").stdout for host in lab.hosts)


# host-gw alone


def test_host_gw_the_routes_are_the_originals(host_gw: Lab) -> None:
    """Only the protocol differs, which is flannelpy's mark."""
    net = recorded("host-gw", "host1-net.txt")
    [route] = {anonymous(line.strip()) for line in net.splitlines() if re.match(r"11\.0\S* via", line)}
    for host in host_gw.hosts:
        assert gateways(host) == expected_gateways(host_gw, host)
        assert {anonymous(line) for line in gateways(host)} == {f"{route} proto 85"}


def test_host_gw_the_log_is_the_originals(host_gw: Lab) -> None:
    heads = r"^I\d{4} [\d:.]+ +\d+ [\w.]+:\d+\] "
    original = [re.sub(heads, "", line) for line in recorded("host-gw", "host1.log").splitlines()]
    ours = re.sub(heads, "", host_gw.hosts[0].log(), flags=re.MULTILINE).splitlines()
    ours.remove("Found network config in etcd v2: leases are kept there")  # the original knows one API of etcd
    assert list(map(anonymous, ours[: len(original)])) == list(map(anonymous, original))


def test_host_gw_a_route_that_another_program_removes_is_restored(host_gw: Lab) -> None:
    host, other, _ = host_gw.hosts
    host.configure(f"route delete {other.subnet()}")
    wait_for(lambda: gateways(host) == expected_gateways(host_gw, host), 2, "the routes")
    assert ping(host, other).returncode == 0
    line = f"The route to {other.subnet()} via {other.public_ip} was removed by another program; restored"
    host.daemons[-1].wait_for_log(re.escape(line))
    assert next_hops(host) == "next hops: 2"


def test_host_gw_routes_that_the_kernel_removes_with_the_link_are_no_other_programs_doing(host_gw: Lab) -> None:
    host = host_gw.hosts[0]
    before = host.log().count("removed by another program")
    host.configure("link set eth1 down", "link set eth1 up")
    wait_for(lambda: gateways(host) == expected_gateways(host_gw, host), 5, "the routes")
    for other in host_gw.hosts[1:]:
        line = (
            f"The route to {other.subnet()} via {other.public_ip} was removed by the kernel, because its link was down"
        )
        host.daemons[-1].wait_for_log(re.escape(line))
    assert host.log().count("removed by another program") == before


@pytest.mark.parametrize(
    "way",
    [
        "via 172.17.8.103 dev eth1 proto static",
        "via 172.17.8.103 dev eth1 proto bird onlink",
        "dev eth1 proto dhcp scope link",
        "nexthop via 172.17.8.1 dev eth1 weight 1 nexthop via 172.17.8.103 dev eth1 weight 1",
        "nhid 77 proto 99",
    ],
)
def test_host_gw_a_foreign_route_in_the_way_of_ours_stays(host_gw: Lab, way: str) -> None:
    """It is logged once, and its subnet alone is unreachable; when it is removed, flannelpy adds its own."""
    host, other, third = host_gw.hosts
    wait_for(lambda: next_hops(host) == "next hops: 2", 12, "both subnets to be reachable")
    host.run("ip", "nexthop", "replace", "id", "77", "via", "172.17.8.1", "dev", "eth1")
    daemon = host.daemons[-1]
    message = f"Subnet {other.subnet()} is unreachable: flannelpy leaves the route "
    before = daemon.log().count(message)
    host.configure(f"route replace {other.subnet()} {way}")
    foreign = set(shown(host, "ip", "route", "show", str(other.subnet())))
    assert "proto 85" not in " ".join(foreign)
    wait_for(lambda: next_hops(host) == "next hops: 1, unreachable: 1", 3, "the subnet to count as unreachable")
    for number in (900, 901):
        host.configure(f"link set eth1 txqueuelen {number}")  # causes a check
    assert ping(host, third).returncode == 0
    command = re.findall(rf"{message}.* to remove it: (ip route del .*)", daemon.log())[-1]
    assert foreign == set(shown(host, "ip", "route", "show", str(other.subnet())))
    assert daemon.log().count(message) == before + 1
    host.run(*command.split())
    wait_for(lambda: gateways(host) == expected_gateways(host_gw, host), 3, "our route")
    wait_for(lambda: next_hops(host) == "next hops: 2", 3, "the subnet to count as reachable")
    assert ping(host, other).returncode == 0


@pytest.mark.parametrize(
    "route",
    [
        "{own_part} via {in_own} dev docker0",
        "{own_part} via {in_own} dev docker0 proto static metric 7",
        "blackhole {own_part} proto 186",
        "11.0.223.0/24 via 172.17.8.102 dev eth1 proto bird",
        "11.0.223.0/24 tos 0x10 via 172.17.8.102 dev eth1",
        "{other} via 172.17.8.102 dev eth1 metric 100",
        "{other} via 172.17.8.103 dev eth1 proto ra metric 5",
        "unreachable {other} metric 4278198272",
        "11.0.224.0/24 nexthop via 172.17.8.102 dev eth1 nexthop via 172.17.8.103 dev eth1",
        "11.0.225.0/24 via 172.17.8.102 dev eth1",
        "10.0.0.0/8 via 172.17.8.102 dev eth1",
    ],
)
def test_host_gw_routes_of_other_programs_are_never_touched(host_gw: Lab, route: str) -> None:
    host, other, _ = host_gw.hosts
    own = host.subnet()
    names = {"own_part": f"{own[64]}/26", "in_own": str(own[2]), "other": str(other.subnet())}
    added = route.format_map(names)
    host.configure(f"route add {added}")
    before = shown(host, "ip", "route")
    restored = host.log().count("restored")
    for number in (902, 903):
        host.configure(f"link set eth1 txqueuelen {number}")  # causes a check
    gone = f"11.0.240.0/24 via {other.public_ip} dev eth1 proto 85"
    host.configure(f"route add {gone}")  # when that route is gone, the check has removed every route that it removes
    wait_for(lambda: gone not in shown(host, "ip", "route"), 3, "a route of ours that leads to no peer to go")
    assert shown(host, "ip", "route") == before
    assert host.log().count("restored") == restored
    host.configure(f"route delete {added}")


@pytest.mark.parametrize(
    ("number", "way"),
    [
        (241, "via 172.17.8.102 dev eth1 proto static"),
        (242, "via 172.17.8.102 dev eth1 proto bird"),
        (243, "nhid 78 via 172.17.8.102 dev eth1 proto zebra"),  # as FRR adds them
        (244, "nhid 78 via 172.17.8.102 dev eth1"),
    ],
)
def test_host_gw_a_foreign_route_that_leads_where_the_lease_asks_is_used_and_stays(
    host_gw: Lab, number: int, way: str
) -> None:
    host, *_ = host_gw.hosts
    host.run("ip", "nexthop", "replace", "id", "78", "via", "172.17.8.102", "dev", "eth1")
    route = f"11.0.{number}.0/24 {way}"
    host.configure(f"route add {route.replace('nhid 78 via 172.17.8.102 dev eth1', 'nhid 78')}")
    wait_for(lambda: next_hops(host) == "next hops: 2", 12, "the peers alone to be reachable")
    key = f"{ETCD_PREFIX}/subnets/11.0.{number}.0-24"
    host_gw.etcd.put(key, '{"PublicIP":"172.17.8.102","BackendType":"host-gw"}', ttl=60)
    wait_for(lambda: next_hops(host) == "next hops: 3", 5, "the lease to count as reachable")
    assert f"Subnet 11.0.{number}.0/24 is unreachable" not in host.log()
    host_gw.etcd.put(
        key, '{"PublicIP":"172.17.8.102","BackendType":"vxlan"}', ttl=60
    )  # the kernel ignores it like a missing lease
    wait_for(lambda: next_hops(host) == "next hops: 2", 12, "the lease to be ignored")
    host.configure("route add 11.0.240.0/24 via 172.17.8.102 proto 85")
    wait_for(lambda: not shown(host, "ip", "route", "show", "11.0.240.0/24"), 3, "what leads to no peer to go")
    assert shown(host, "ip", "route", "show", f"11.0.{number}.0/24") == [route]
    host.configure(f"route delete 11.0.{number}.0/24")
    host_gw.etcd_request("DELETE", key)  # or the host with that public IP would adopt the lease at its restart


def test_host_gw_a_next_hop_changes_without_a_lost_packet(host_gw: Lab) -> None:
    """The lease of a subnet moves between two hosts on the link; an address on both accepts its packets."""
    host, one, other = host_gw.hosts
    for each in (one, other):
        each.configure("link add target type bridge", "link set target up", "address add 11.0.252.1/24 dev target")
    key = f"{ETCD_PREFIX}/subnets/11.0.252.0-24"
    value = '{{"PublicIP":"{}","BackendType":"host-gw"}}'
    host_gw.etcd_request("PUT", key, value=value.format(one.public_ip))
    wait_for(lambda: any("11.0.252.0/24" in line for line in gateways(host)), 5, "the route")
    for each in (one, other):
        host.run("ping", "-c1", "-W1", str(each.public_ip))
    pings = host.popen("ping", "-n", "-q", "-i", "0.002", "-c", "1500", "-W", "1", "11.0.252.1")
    for number in range(10):
        target = (other, one)[number % 2]
        host_gw.etcd_request("PUT", key, value=value.format(target.public_ip))
        way = f"11.0.252.0/24 via {target.public_ip} dev eth1 proto 85"
        wait_for(lambda way=way: way in gateways(host), 5, way)  # type: ignore[misc]
    outcome = pings.communicate(timeout=20)[0]
    assert " 1500 received, 0% packet loss" in outcome
    for each in (one, other):
        each.configure("link delete target")
    host_gw.etcd_request("DELETE", key)


def test_host_gw_a_restart_loses_no_ping(host_gw: Lab) -> None:
    host, other, _ = host_gw.hosts
    pings = host.containers[0].popen("ping", "-n", "-q", "-i", "0.01", "-c", "200", str(other.containers[0].address))
    for one in (host, other):
        assert one.daemons[-1].stop() == 0
        restarted(one)
    assert " 200 received, 0% packet loss" in pings.communicate(timeout=20)[0]


def test_host_gw_routes_of_an_earlier_run_are_reconciled_at_start(host_gw: Lab) -> None:
    """Stale marked routes are removed, wanted ones of flanneld are adopted without a lost packet, others stay."""
    host, other, third = host_gw.hosts
    host.daemons[-1].stop()
    left = "11.0.223.0/24 via 172.17.8.103 dev eth1"
    host.configure(
        "route add 11.0.222.0/24 via 172.17.8.103 dev eth1 proto 85",
        f"route replace {other.subnet()} via {other.public_ip} dev eth1",
        f"route replace {third.subnet()} via {other.public_ip} dev eth1 proto 85",
        f"route add {left}",
        "route add 10.9.0.0/16 via 172.17.8.103",
    )
    pings = host.containers[0].popen("ping", "-n", "-q", "-i", "0.01", "-c", "200", str(other.containers[0].address))
    daemon = restarted(host)
    wait_for(lambda: gateways(host) == {*expected_gateways(host_gw, host), left}, 5, "the routes")
    daemon.wait_for_log("Adopted 1 routes that flanneld or an earlier version of flannelpy added")
    daemon.wait_for_log(f"Route {left} proto boot may be left from flanneld.*: ip route del {left} proto boot")
    assert "10.9.0.0/16 via 172.17.8.103" in host.run("ip", "route").stdout
    assert " 200 received, 0% packet loss" in pings.communicate(timeout=20)[0]
    host.configure(f"route delete {left}")


def test_host_gw_unreachable_hosts_are_logged(host_gw: Lab) -> None:
    host, *_ = host_gw.hosts
    daemon = host.daemons[-1]
    values = {
        "11.0.230.0-24": '{"PublicIP":"172.17.8.130","BackendType":"vxlan","BackendData":{}}',
        "11.0.231.0-24": '{"PublicIP":"172.17.8.131"}',
        "11.0.232.0-24": '{"PublicIP":"10.0.0.1","BackendType":"host-gw"}',
    }
    for name, value in values.items():
        host_gw.etcd_request("PUT", f"/coreos.com/network/subnets/{name}", value=value)
    daemon.wait_for_log(r"W.*Ignoring subnet 11\.0\.230\.0/24: its backend is vxlan, ours host-gw$")
    daemon.wait_for_log(r"W.*Ignoring subnet 11\.0\.231\.0/24: its backend is udp, ours host-gw$")
    daemon.wait_for_log(
        r"E.*Ignoring subnet 11\.0\.232\.0/24 via 10\.0\.0\.1: it is not on the link of eth1, which host-gw needs: "
        r"the kernel has no route to it: Network is unreachable$"
    )
    assert expected_gateways(host_gw, host) <= gateways(host)
    assert not [route for route in gateways(host) if re.match(r"11\.0\.23[012]\.", route)]
    for name in values:
        host_gw.etcd_request("DELETE", f"/coreos.com/network/subnets/{name}")


def test_host_gw_a_public_ip_that_is_not_the_interfaces_is_refused(host_gw: Lab) -> None:
    host, *_ = host_gw.hosts
    host.daemons[-1].stop()
    daemon = host.start_daemon("-iface=eth1", "-public-ip=192.0.2.1")
    assert daemon.process.wait(10) == 1
    assert "hosts behind NAT are not supported by the host-gw backend" in daemon.log().splitlines()[-1]
    restarted(host)


@pytest.mark.timed
def test_host_gw_has_the_routes_of_a_thousand_leases_two_seconds_after_its_start(host_gw: Lab) -> None:
    host, *_ = host_gw.hosts
    host.daemons[-1].stop()
    leases = {
        f"{ETCD_PREFIX}/subnets/11.0.{number // 64 + 150}.{number % 64 * 4}-30": json.dumps(
            {"PublicIP": f"172.17.8.{110 + number % 100}", "BackendType": "host-gw"}
        )
        for number in range(1000)
    }
    host_gw.etcd.put_all(leases, ttl=600)
    restarted(host)
    known = 1000 + len(host_gw.hosts) - 1
    wait_for(lambda: len(gateways(host)) == known, 2, "the routes of all")
    for key in leases:
        host_gw.etcd.delete(key)


def test_host_gw_cleanup_removes_the_routes(host_gw: Lab) -> None:
    """This test is the last, because it removes the routes."""
    host, *others = host_gw.hosts
    host.daemons[-1].stop()
    for other in others:
        assert f"{other.subnet()} via {other.public_ip} dev eth1 proto 85" in gateways(host)
    done = host.run(sys.executable, "-P", "-m", "flannelpy", "-cleanup")
    assert gateways(host) == set()
    for other in others:
        assert f"Removed route to {other.subnet()} via {other.public_ip}" in done.stderr


def restarted(host: Host) -> Daemon:
    daemon = host.start_daemon("-iface=eth1")
    daemon.wait_ready()
    return daemon
