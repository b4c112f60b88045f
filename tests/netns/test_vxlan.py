"""The vxlan backend on real hosts: compared with the original, beside hosts of the original, restarted, disturbed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Network
from itertools import permutations
from pathlib import Path

import pytest
from lab import ETCD_PREFIX, Container, Daemon, Host, Lab, wait_connected, wait_for

from flannelpy.host import subnet_file

GOLDEN = Path(__file__).parents[1] / "golden/flanneld-v0.5.5-vxlan"
CONFIG = '{"Network":"11.0.0.0/16","Backend":{"Type":"vxlan"}}'
#: The config of the original's walk-through.
WALK_THROUGH = """{ "Network": "11.0.0.0/8", "SubnetLen": 20, "SubnetMin": "11.10.0.0", "SubnetMax": "11.99.0.0",
"Backend": {"Type": "vxlan", "Port": 7890}}"""
RESPONDER = str(Path(__file__).parent / "flanneld_vxlan.py")
ORIGINALS_MAC = "8a:34:91:dd:7c:c7"
MANY = 1000

pytestmark = pytest.mark.usefixtures("root")


@contextmanager
def running(config: str) -> Iterator[Lab]:
    """Return hosts that know each other, with a container each."""
    with Lab(hosts=3) as lab:
        lab.put_config(config)
        lab.start_daemons("-iface=eth1")
        for host in lab.hosts:
            host.add_container()
        yield lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with running(CONFIG) as lab:
        yield lab


def recorded(name: str) -> list[str]:
    return [line.strip() for line in (GOLDEN / name).read_text().splitlines()]


def shown(host: Host, *argv: str) -> list[str]:
    return [line.strip() for line in host.run(*argv, check=False).stdout.splitlines()]


def anonymous(text: str) -> str:
    """Return ``text`` without host, subnet and device number."""
    for pattern, name in (
        (r"([0-9a-f]{2}:){5}[0-9a-f]{2}", "MAC"),
        (r"11\.0\.\d+\.", "11.0.X."),
        (r"172\.17\.8\.10\d", "HOST"),
        (r"fe80::[0-9a-f:]+", "fe80::X"),
        (r"^\d+: ", "N: "),
        (r',"HostID":"host\d"', ""),
        (r" tentative", ""),
    ):
        text = re.sub(pattern, name, text)
    return text


def mac(host: Host) -> str:
    [found] = re.findall(r"link/ether (\S+)", host.run("ip", "link", "show", "flannel.1").stdout)
    return str(found)


def ways(host: Host) -> set[str]:
    """Return all entries that lead from a host to its peers: routes, neighbours, FDB entries."""
    routes = [line for line in shown(host, "ip", "route") if re.match(r"11\.\S+ via ", line)]
    neighbours = [line for line in shown(host, "ip", "neighbour") if line.endswith(" PERMANENT")]
    return {*routes, *neighbours, *(f"fdb {line}" for line in shown(host, "bridge", "fdb", "show", "dev", "flannel.1"))}


def expected(host: Host, others: list[Host]) -> set[str]:
    found = set()
    for other in others:
        subnet = other.subnet()
        found |= {
            f"{subnet} via {subnet.network_address} dev flannel.1 proto 85 onlink",
            f"{subnet.network_address} dev flannel.1 lladdr {mac(other)} PERMANENT",
            f"fdb {mac(other)} dst {other.public_ip} self permanent",
        }
    return found


def repairs(host: Host) -> int:
    """Return how many repairs the daemons of a host have logged."""
    return len(re.findall("; restored", host.log()))


def others(host: Host) -> list[Host]:
    return [other for other in host.lab.hosts if other is not host]


def is_as_it_should_be(host: Host) -> bool:
    return ways(host) == expected(host, others(host))


def pings(source: Container, target: Container) -> bool:
    return source.run("ping", "-n", "-c1", "-W2", str(target.address), check=False).returncode == 0


def restarted(host: Host, *flags: str) -> Daemon:
    daemon = host.start_daemon("-iface=eth1", *flags)
    daemon.wait_ready()
    return daemon


# Compared with the original


def test_the_walk_throughs_config_works_unchanged() -> None:
    with running(WALK_THROUGH) as lab:
        for one, other in permutations(lab.hosts, 2):
            reply = one.containers[0].run("ping", "-c1", "-W2", str(other.containers[0].address)).stdout
            assert "ttl=62 " in reply
        for host in lab.hosts:
            assert host.subnet().prefixlen == 20
            assert IPv4Network("11.0.0.0/8").supernet_of(host.subnet())
            assert "dstport 7890 " in host.run("ip", "-d", "link", "show", "flannel.1").stdout


def test_device_and_address_are_the_originals(lab: Lab) -> None:
    original = recorded("host1-net.txt")
    start = next(number for number, line in enumerate(original) if ": flannel.1:" in line)
    for host in lab.hosts:
        ours = shown(host, "ip", "-d", "address", "show", "flannel.1")
        ours.remove("alias flannelpy /run/flannel/subnet.env")
        assert list(map(anonymous, ours)) == list(map(anonymous, original[start : start + len(ours)]))


def test_the_lease_is_the_originals(lab: Lab) -> None:
    node = json.loads("\n".join(recorded("etcd.json")))["node"]["nodes"][1]
    values = {anonymous(lease["value"]) for lease in node["nodes"]}
    assert {anonymous(lease["value"]) for lease in lab.leases()} == values
    leased = {json.loads(lease["value"])["BackendData"]["VtepMAC"] for lease in lab.leases()}
    assert leased == set(map(mac, lab.hosts))


def test_forwarding_entries_and_the_networks_route_are_the_originals(lab: Lab) -> None:
    original = recorded("host1-net.txt")
    [entry] = {anonymous(line) for line in original if "dev flannel.1 dst" in line}
    [route] = [anonymous(line) for line in original if line.startswith("11.0.0.0/16")]
    for host in lab.hosts:
        ours = shown(host, "bridge", "fdb", "show", "dev", "flannel.1")
        assert {anonymous(line.replace(" dst", " dev flannel.1 dst")) for line in ours} == {entry}
        assert anonymous(shown(host, "ip", "route", "show", "11.0.0.0/16")[0]) == route


def test_each_host_has_a_neighbour_and_a_route_beside_it(lab: Lab) -> None:
    """The original has a neighbour with that MAC, too: for each container for which the kernel has asked."""
    [original] = {line.split(" lladdr ")[1] for line in recorded("host1-net.txt") if "dev flannel.1 lladdr" in line}
    assert anonymous(original) == "MAC REACHABLE"
    for host in lab.hosts:
        assert is_as_it_should_be(host)


def test_the_log_is_the_originals(lab: Lab) -> None:
    head = r"^[IWE]\d{4} [\d:.]+ +\d+ [\w.]+:\d+\] "
    ours = [anonymous(re.sub(head, "", line)) for line in lab.hosts[0].log().splitlines()]
    ours.remove("Found network config in etcd v2: leases are kept there")  # the original knows one API of etcd
    of_its_own_way = r"L3|GetL2List|Neigh|Handling initial"
    original = [anonymous(re.sub(head, "", line)) for line in recorded("host1.log")]
    common = [line for line in original if not re.search(of_its_own_way, line)]
    assert ours[: len(common)] == common


def test_hosts_of_the_originals_kind_and_ours_reach_each_other(make_lab: Callable[..., Lab]) -> None:
    """A script does on the first host what the original did; flannelpy does not run there."""
    lab = make_lab(hosts=2)
    original, ours = lab.hosts
    lab.put_config(CONFIG)
    subnet = IPv4Network("11.0.48.0/24")
    value = {"PublicIP": str(original.public_ip), "BackendType": "vxlan", "BackendData": {"VtepMAC": ORIGINALS_MAC}}
    lab.etcd_request("PUT", f"{ETCD_PREFIX}/subnets/11.0.48.0-24", value=json.dumps(value), ttl="600")
    daemon = restarted(ours)
    daemon.wait_for_log(f"Subnet added: {subnet}")
    original.configure(
        f"link add flannel.1 address {ORIGINALS_MAC} mtu 1450 type vxlan id 1 local {original.public_ip} dev eth1 "
        "dstport 8472 nolearning",
        f"address add {subnet.network_address}/16 dev flannel.1",
        "link set flannel.1 up",
    )
    original.run("sh", "-c", "echo 3 > /proc/sys/net/ipv4/neigh/flannel.1/app_solicit")
    original.run("bridge", "fdb", "add", mac(ours), "dev", "flannel.1", "dst", str(ours.public_ip))
    text = subnet_file.render(IPv4Network("11.0.0.0/16"), subnet, 1450, ip_masq=False)
    subnet_file.write(original.run_dir / "flannel/subnet.env", text)
    containers = [host.add_container() for host in lab.hosts]
    argv = [sys.executable, "-W", "ignore", RESPONDER, "flannel.1", f"{ours.subnet()}={mac(ours)}"]
    with original.popen(*argv) as responder:
        assert responder.stdout
        assert responder.stdout.readline() == "answering\n"
        for source, target in permutations(containers):
            assert "ttl=62 " in source.run("ping", "-c1", "-W5", str(target.address)).stdout
        assert responder.stdout.readline() == f"{containers[1].address}\n"
        # From host to container and back: the kernel asks for the tunnel address as well.
        assert original.run("ping", "-c1", "-W5", str(containers[1].address)).returncode == 0
        assert ours.run("ping", "-c1", "-W5", str(containers[0].address)).returncode == 0
        responder.kill()


# Restarts and changes


def test_a_restart_loses_no_ping_and_keeps_device_mac_and_entries(lab: Lab) -> None:
    host, other, _ = lab.hosts
    before = shown(host, "ip", "link", "show", "flannel.1"), mac(other), ways(host)
    flood = host.containers[0].popen("ping", "-n", "-q", "-i0.01", "-c300", str(other.containers[0].address))
    for one in (host, other):
        assert one.daemons[-1].stop() == 0
        restarted(one)
    assert " 300 received, 0% packet loss" in flood.communicate(timeout=20)[0]
    assert (shown(host, "ip", "link", "show", "flannel.1"), mac(other), ways(host)) == before


def test_leftovers_are_reconciled_at_start(lab: Lab) -> None:
    host = lab.hosts[0]
    host.daemons[-1].stop()
    stale_mac = "02:00:00:00:00:01"
    host.configure(
        "route add 11.0.222.0/24 via 11.0.222.0 dev flannel.1 onlink",
        f"neighbour add 11.0.222.0 lladdr {stale_mac} dev flannel.1",
        f"route replace {lab.hosts[1].subnet()} via 11.0.222.0 dev flannel.1 onlink",
        "link set flannel.1 address 02:00:00:00:00:02 mtu 1400",
        "address add 11.0.222.0/16 dev flannel.1",
    )
    host.run("bridge", "fdb", "add", stale_mac, "dev", "flannel.1", "dst", "172.17.8.222")
    before = lab.leases()
    daemon = restarted(host)
    wait_for(lambda: is_as_it_should_be(host), 5, "stale entries to go")
    [lease] = [lease["value"] for lease in before if str(host.public_ip) in lease["value"]]
    assert mac(host) in lease, "the MAC is that of the lease"
    assert "mtu 1450" in host.run("ip", "link", "show", "flannel.1").stdout
    assert "11.0.222.0" not in host.run("ip", "address", "show", "flannel.1").stdout
    assert pings(host.containers[0], lab.hosts[1].containers[0])
    assert "leads to no peer; removed" in daemon.log()


def test_a_device_with_other_settings_is_recreated(lab: Lab) -> None:
    host = lab.hosts[0]
    host.daemons[-1].stop()
    kept = mac(host)
    host.configure(
        "link delete flannel.1",
        f"link add flannel.1 address {kept} type vxlan id 1 local {host.public_ip} dev eth1 dstport 4789 nolearning",
        f"link add flannel.2 type vxlan id 2 local {host.public_ip} dev eth1 dstport 8472 nolearning",
        f"address add {host.subnet().network_address}/16 dev flannel.2",
        "link set flannel.2 up",
    )
    daemon = restarted(host)
    assert "Removed device flannel.1: it had other settings; adding it again" in daemon.log()
    assert "Removed leftover device flannel.2" in daemon.log()
    wait_for(lambda: is_as_it_should_be(host), 5, "all entries")
    assert pings(host.containers[0], lab.hosts[1].containers[0])


def test_a_conflicting_device_is_named(lab: Lab) -> None:
    host = lab.hosts[0]
    host.daemons[-1].stop()
    host.configure("link delete flannel.1", "link add flannel.1 type bridge")
    daemon = host.start_daemon("-iface=eth1")
    assert daemon.process.wait(10) == 1
    message = "flannel.1 exists and is not a VXLAN device; remove it, or choose another Backend.VNI"
    assert daemon.log().splitlines()[-1].endswith(message)
    host.configure("link delete flannel.1")
    restarted(host)
    wait_for(lambda: is_as_it_should_be(host), 5, "all entries")


@pytest.mark.parametrize(
    "steal",
    [
        lambda host, other: ("ip", "route", "delete", str(other.subnet())),
        lambda host, other: (
            "ip",
            "route",
            "replace",
            str(other.subnet()),
            "via",
            "11.0.222.0",
            "dev",
            "flannel.1",
            "onlink",
        ),
        lambda host, other: ("ip", "neighbour", "delete", str(other.subnet().network_address), "dev", "flannel.1"),
        lambda host, other: ("bridge", "fdb", "delete", mac(other), "dev", "flannel.1", "dst", str(other.public_ip)),
        lambda host, other: ("ip", "link", "set", "flannel.1", "address", "02:00:00:00:00:09"),
    ],
    ids=["route", "bent", "neighbour", "fdb", "mac"],
)
def test_removed_or_changed_state_is_restored(lab: Lab, steal: Callable[[Host, Host], tuple[str, ...]]) -> None:
    host, other, _ = lab.hosts
    count = repairs(host)
    before = mac(host)
    command = steal(host, other)
    host.run(*command)
    wait_for(lambda: is_as_it_should_be(host) and mac(host) == before, 2, "the entry to come back")
    assert pings(host.containers[0], other.containers[0])
    wait_for(lambda: repairs(host) > count, 2, "a repair in the log")
    if "address" not in command:  # with the MAC the kernel forgets the neighbours, too
        assert repairs(host) == count + 1


def test_another_backend_finds_no_conflicting_leftovers(make_lab: Callable[..., Lab]) -> None:
    """All hosts change to each other backend in turn, and back; containers lose packets only during a change."""
    lab = make_lab(hosts=2)
    devices = {"vxlan": "flannel.1", "host-gw": "eth1", "udp": "flannel0"}
    containers: list[Container] = []
    for backend in ("vxlan", "udp", "host-gw", "vxlan", "host-gw", "udp", "vxlan"):
        lab.put_config(json.dumps({"Network": "11.0.0.0/16", "Backend": {"Type": backend}}))
        for host in lab.hosts:
            if host.daemons:
                assert host.daemons[-1].stop() == 0
        wait_connected([host.start_daemon("-iface=eth1") for host in lab.hosts])
        containers = containers or [host.add_container() for host in lab.hosts]
        one, other = containers
        wait_for(lambda one=one, other=other: pings(one, other), 10, f"a ping by {backend}")  # type: ignore[misc]
        by_device = f" dev {devices[backend]} "
        asked = partial(shown, lab.hosts[0], "ip", "route", "get", str(other.address))
        wait_for(lambda by_device=by_device, asked=asked: by_device in asked()[0], 5, by_device)  # type: ignore[misc]
        assert ("flannel.1" in lab.hosts[0].run("ip", "link").stdout) == (backend == "vxlan")


def test_another_network_finds_no_conflicting_leftovers(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=2)
    for network in ("11.0.0.0/16", "11.7.0.0/16"):
        lab.put_config(json.dumps({"Network": network, "Backend": {"Type": "vxlan"}}))
        daemons = [host.start_daemon("-iface=eth1") for host in lab.hosts]
        wait_connected(daemons)
        for host in lab.hosts:
            wait_for(lambda host=host: is_as_it_should_be(host), 5, "the entries")  # type: ignore[misc]
            assert {IPv4Network(route.split()[0]).subnet_of(IPv4Network(network)) for route in routes(host)} == {True}
        assert [daemon.stop() for daemon in daemons] == [0, 0]


def routes(host: Host) -> list[str]:
    return [line for line in shown(host, "ip", "route") if line.startswith("11.")]


# Settings


def test_direct_routing_follows_the_link(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=2)
    lab.put_config('{"Network":"11.0.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}')
    daemons = lab.start_daemons("-iface=eth1")
    one, other = (host.add_container() for host in lab.hosts)
    host = lab.hosts[0]
    direct = f"{other.host.subnet()} via {other.host.public_ip} dev eth1 proto 85"
    wait_for(lambda: ways(host) == {direct}, 5, "a direct route")
    assert pings(one, other)
    # With a router in between, the peers are no longer on our link.
    host.configure(f"address delete {host.public_ip}/24 dev eth1")
    host.configure(
        f"address add {host.public_ip}/32 dev eth1",
        "route add 172.17.8.1 dev eth1",
        "route add 172.17.8.0/24 via 172.17.8.1",
    )
    wait_for(lambda: is_as_it_should_be(host), 5, "the way by VXLAN")
    assert pings(one, other)
    host.configure(f"address add {host.public_ip}/24 dev eth1", "route delete 172.17.8.0/24 via 172.17.8.1")
    wait_for(lambda: ways(host) == {direct}, 5, "the direct route again")
    assert pings(one, other)
    assert [daemon.process.poll() for daemon in daemons] == [None, None]


def test_gbp_learning_vni_and_mtu(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=2)
    settings = {"Type": "vxlan", "VNI": 42, "GBP": True, "Learning": True, "MTU": 1400}
    lab.put_config(json.dumps({"Network": "11.0.0.0/16", "Backend": settings}))
    lab.start_daemons("-iface=eth1")
    one, other = (host.add_container() for host in lab.hosts)
    device = one.host.run("ip", "-d", "link", "show", "flannel.42").stdout
    assert " mtu 1350 " in device
    assert " vxlan id 42 " in device
    assert " gbp " in device
    assert " nolearning " not in device
    assert one.host.subnet_env()["FLANNEL_MTU"] == "1350"
    assert pings(one, other)


# Many


@pytest.mark.timed
def test_a_thousand_leases_at_once_are_in_the_kernel_within_two_seconds(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=1)
    lab.put_config('{"Network":"11.0.0.0/8","Backend":{"Type":"vxlan"}}')
    [host] = lab.hosts
    daemon = restarted(host)
    leases = {
        f"{ETCD_PREFIX}/subnets/11.{1 + number // 256}.{number % 256}.0-24": json.dumps(
            {
                "PublicIP": f"172.18.{number // 256}.{number % 256}",
                "BackendType": "vxlan",
                "BackendData": {"VtepMAC": f"02:00:00:00:{number // 256:02x}:{number % 256:02x}"},
            }
        )
        for number in range(MANY)
    }
    lab.etcd.put_all(leases, ttl=600)
    wait_for(lambda: len(ways(host)) == 3 * MANY, 2, "all entries", pause=0.1)
    # A relist of the same leases, as after a quiet time or at a start, changes nothing.
    with host.popen("ip", "-4", "monitor", "route", "neigh", stdout=subprocess.PIPE) as monitor:
        daemon.stop()
        daemon = restarted(host)
        wait_for(lambda: "next hops: 1000" in daemon.notified[-1], 10, "the leases to be known")
        repaired = repairs(host)
        host.configure("route add 11.250.0.0/16 via 172.17.8.1 dev eth1 proto 85")
        wait_for(lambda: "11.250.0.0/16" not in host.run("ip", "route").stdout, 5, "a look")
        monitor.terminate()
        assert monitor.stdout
        touched = [line for line in monitor.stdout if "11.250." not in line and "172.17.8." not in line]
    assert touched == []
    assert repaired == 0
    assert len(ways(host)) == 3 * MANY


# What is not ours


def test_a_device_of_another_overlay_is_left_alone(make_lab: Callable[..., Lab]) -> None:
    """A flannel of another program, such as Kubernetes', may have the default VNI."""
    lab = make_lab(hosts=1)
    [host] = lab.hosts
    lab.put_config(CONFIG)
    host.configure(
        f"link add flannel.1 type vxlan id 1 local {host.public_ip} dev eth1 dstport 8472 nolearning",
        "address add 10.244.3.0/32 dev flannel.1",
        "link set flannel.1 up",
    )
    before = shown(host, "ip", "-4", "address", "show", "flannel.1")
    daemon = host.start_daemon("-iface=eth1")
    assert daemon.process.wait(10) == 1
    message = "flannel.1 has 10.244.3.0, of another overlay; choose another Backend.VNI"
    assert daemon.log().splitlines()[-1].endswith(message)
    assert shown(host, "ip", "-4", "address", "show", "flannel.1") == before


@pytest.mark.parametrize("backend", ["vxlan", "host-gw", "udp"])
def test_leases_that_are_no_part_of_the_network_lead_nowhere(make_lab: Callable[..., Lab], backend: str) -> None:
    """Leases of an earlier config, or written by mistake, would take routes of other programs."""
    lab = make_lab(hosts=1)
    [host] = lab.hosts
    lab.put_config(json.dumps({"Network": "11.0.0.0/16", "Backend": {"Type": backend}}))
    host.configure("route add default via 172.17.8.1")
    daemon = restarted(host)
    before = shown(host, "ip", "route")
    value: dict[str, object] = {"PublicIP": "172.17.8.103"}
    if backend != "udp":
        value |= {"BackendType": backend, "BackendData": {"VtepMAC": ORIGINALS_MAC}}
    for name in ("0.0.0.0-0", "11.0.0.0-16", "10.2.0.0-24", "127.0.0.0-24"):
        lab.etcd_request("PUT", f"{ETCD_PREFIX}/subnets/{name}", value=json.dumps(value))
        daemon.wait_for_log(
            rf"W.*Ignoring subnet {name.replace('-', '/')}: it is no part of the network 11\.0\.0\.0/16$"
        )
    assert shown(host, "ip", "route") == before
    assert "next hops: 0" in daemon.notified[-1]


def test_a_lease_that_the_kernel_rejects_is_logged_and_affects_no_other(lab: Lab) -> None:
    host = lab.hosts[0]
    daemon = host.daemons[-1]
    broadcast = IPv4Network("11.0.255.255/32")
    value = {"PublicIP": "172.17.8.103", "BackendType": "vxlan", "BackendData": {"VtepMAC": ORIGINALS_MAC}}
    key = f"{ETCD_PREFIX}/subnets/11.0.255.255-32"
    lab.etcd_request("PUT", key, value=json.dumps(value))
    daemon.wait_for_log(
        rf"E.*Ignoring invalid lease {broadcast}: "
        rf"the kernel rejected the route to {broadcast} via .*: Invalid argument$"
    )
    host.configure("link set eth1 txqueuelen 998")  # a check of everything
    wait_for(lambda: is_as_it_should_be(host), 5, "nothing of it")
    assert (host.run_dir / "flannel/ready").exists()
    assert "not ready" not in daemon.notified[-1]
    assert daemon.log().count("Ignoring invalid lease") == 1
    lab.etcd_request("DELETE", key)


def test_a_host_that_changed_its_backend_and_is_refused_leaves_nothing(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=2)
    lab.put_config(CONFIG)
    daemons = lab.start_daemons("-iface=eth1")
    host = lab.hosts[0]
    wait_for(lambda: is_as_it_should_be(host), 5, "the entries")
    assert daemons[0].stop() == 0
    lab.put_config('{"Network":"11.0.0.0/16"}')
    key = f"{ETCD_PREFIX}/subnets/{str(host.subnet()).replace('/', '-')}"
    daemon = host.start_daemon("-iface=eth1", env={"FLANNELD_HOST_ID": "clone"})
    daemon.wait_for_log("waiting 3 s for that host to object")
    lab.etcd.put(key, json.dumps({"PublicIP": str(host.public_ip), "HostID": "host1"}), ttl=600)
    assert daemon.process.wait(10) == 3
    assert "flannel" not in host.run("ip", "link").stdout
    assert routes(host) == []
    assert not (host.run_dir / "flannel/subnet.env").exists()
