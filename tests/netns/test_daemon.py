"""The life of one daemon on a real host: start, what it sets up, what it leaves, and every error a user can cause."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from lab import CONFIG, Daemon, Host, Lab, wait_for

from flannelpy.packet import build

STOP_SECONDS = 2.0
DEVICE_FLAGS = "POINTOPOINT,MULTICAST,NOARP,UP,LOWER_UP"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(hosts=1) as lab:
        yield lab


@pytest.fixture
def host(lab: Lab) -> Iterator[Host]:
    """Return the host in the state of a new machine; etcd has the config and nothing else."""
    host = lab.hosts[0]
    lab.etcd_request("DELETE", "/coreos.com?recursive=true")
    lab.put_config()
    host.run("rm", "-rf", "/run/flannel")
    yield host
    host.kill_daemons()


def started(host: Host, *flags: str, env: dict[str, str] | None = None) -> Daemon:
    daemon = host.start_daemon(*flags, env=env)
    daemon.wait_ready()
    return daemon


def ended(host: Host, *flags: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Return exit code and log of a daemon that exits by itself."""
    daemon = host.start_daemon(*flags, env=env)
    code = daemon.process.wait(10)
    daemon.close()
    return code, daemon.log()


def put_lease(lab: Lab, name: str, public_ip: str, **form: str) -> None:
    value = json.dumps({"PublicIP": public_ip})
    lab.etcd_request("PUT", f"/coreos.com/network/subnets/{name}", value=value, **form)


# What it sets up


def test_device_address_and_route_are_the_originals(host: Host) -> None:
    started(host, "-iface=eth1")
    subnet = host.subnet().network_address
    device = host.run("ip", "address", "show", "flannel0").stdout
    assert f"flannel0: <{DEVICE_FLAGS}> mtu 1472 " in device
    assert f"    inet {subnet}/16 scope global flannel0\n" in device
    routes = host.run("ip", "route", "show", "dev", "flannel0").stdout
    assert routes == f"11.0.0.0/16 proto kernel scope link src {subnet} \n"
    details = host.run("ip", "-d", "link", "show", "flannel0").stdout
    assert "tun type tun pi off vnet_hdr on persist off" in details  # the original's is off
    assert " qlen 1000" in details  # 500


def test_lease_and_subnet_file_are_the_originals(lab: Lab, host: Host) -> None:
    started(host, "-iface=eth1", "-ip-masq")
    [lease] = lab.leases()
    subnet = host.subnet()
    assert lease["key"] == f"/coreos.com/network/subnets/{subnet.network_address}-24"
    assert lease["value"] == '{"PublicIP":"172.17.8.101","HostID":"host1"}'
    assert 86390 < lease["ttl"] <= 86400
    text = (host.run_dir / "flannel/subnet.env").read_text()
    assert text == (
        f"FLANNEL_NETWORK=11.0.0.0/16\nFLANNEL_SUBNET={subnet.network_address + 1}/24\n"
        "FLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n"
    )


def test_the_log_has_the_originals_lines_in_its_order(host: Host) -> None:
    daemon = started(host, "-iface=eth1")
    daemon.wait_for_log("Watching for new subnet leases")
    texts = re.findall(r"^[IWEF]\d{4} \d\d:\d\d:\d\d\.\d{6} \d{5,} \w+\.py:\d+\] (.*)$", daemon.log(), re.MULTILINE)
    assert texts == [
        "Installing signal handlers",
        "Using 172.17.8.101 as external interface",
        "Using 172.17.8.101 as external endpoint",
        "Found network config in etcd v2: leases are kept there",
        "Picking subnet in range 11.0.1.0 ... 11.0.255.0",
        f"Subnet lease acquired: {host.subnet()}",
        f"Packet code {build()}, offloads: gro, gso, merge-tcp, merge-udp, tso, uso",
        "Watching for new subnet leases",
    ]


def test_systemd_gets_readiness_and_status(lab: Lab, host: Host) -> None:
    daemon = started(host, "-iface=eth1")
    put_lease(lab, "11.0.177.0-24", "172.17.8.102")
    daemon.wait_for_log("Subnet added: 11.0.177.0/24")
    wait_for(lambda: any("next hops: 1" in line for line in daemon.notified), 5, "a status with one next hop")
    assert f"STATUS=subnet {host.subnet()} (" in daemon.notified[-1]
    assert daemon.notified.index("READY=1") > 0


@pytest.mark.parametrize("flavour", ["nft", "legacy"])
def test_masquerading_is_idempotent(host: Host, flavour: str) -> None:
    tools = host.run_dir / flavour
    tools.mkdir()
    for tool in ("iptables", "iptables-restore", "iptables-save"):
        (tools / tool).symlink_to(f"/usr/sbin/{tool.replace('iptables', f'iptables-{flavour}')}")
    path = {"PATH": f"/run/{flavour}:{os.environ['PATH']}"}
    for _ in range(2):
        started(host, "-iface=eth1", "-ip-masq=true", env=path).stop()
    rules = host.run(f"/usr/sbin/iptables-{flavour}", "-t", "nat", "-S").stdout
    assert [rule for rule in rules.splitlines() if "FLANNEL" in rule] == [
        "-N FLANNEL-M-11.0.0.0/16",
        "-A POSTROUTING -j FLANNEL-M-11.0.0.0/16",
        "-A FLANNEL-M-11.0.0.0/16 -s 11.0.0.0/16 -d 11.0.0.0/16 -j RETURN",
        "-A FLANNEL-M-11.0.0.0/16 -s 11.0.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE",
        "-A FLANNEL-M-11.0.0.0/16 ! -s 11.0.0.0/16 -d 11.0.0.0/16 -j MASQUERADE",
    ]


# How the flags are spelled


@pytest.mark.parametrize(
    ("flags", "env"),
    [
        (["-iface=eth1", "-ip-masq=true", "-v=1"], {}),
        (["--iface", "172.17.8.101"], {"FLANNELD_IP_MASQ": "true", "FLANNELD_V": "1"}),
        (["-ip-masq", "--v=1"], {"FLANNELD_IFACE": "eth1"}),
        (["-iface", "eth1", "--ip-masq", "-v", "1"], {"FLANNELD_IFACE": "eth9"}),
        (["-ip-masq", "-v=1", "-public-ip=172.17.8.101"], {"FLANNELD_IFACE": "172.17.8.101"}),
    ],
)
def test_every_spelling_starts_the_same_daemon(host: Host, flags: list[str], env: dict[str, str]) -> None:
    daemon = started(host, *flags, env=env)
    assert "Using 172.17.8.101 as external interface" in daemon.log()
    assert "Candidate interface eth1 with address 172.17.8.101" in daemon.log()
    assert host.subnet_env()["FLANNEL_IPMASQ"] == "true"


def test_the_public_ip_may_differ_from_the_interfaces(lab: Lab, host: Host) -> None:
    started(host, "-iface=eth1", "-public-ip=192.0.2.1")
    assert [lease["value"] for lease in lab.leases()] == ['{"PublicIP":"192.0.2.1","HostID":"host1"}']


def test_the_default_route_of_lowest_metric_names_the_interface(host: Host) -> None:
    host.configure(
        "link add eth0 type bridge",
        "address add 192.0.2.2/24 dev eth0",
        "link set eth0 up",
        "route add default via 192.0.2.1 metric 200",
        "route add default via 172.17.8.1 metric 100",
    )
    try:
        daemon = started(host, "-v=1")
        assert "Candidate default route by eth0 with metric 200" in daemon.log()
        assert "Using 172.17.8.101 as external interface" in daemon.log()
    finally:
        host.configure("link delete eth0", "route delete default")


# How it ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_daemon_and_leaves_lease_and_file(lab: Lab, host: Host, number: signal.Signals) -> None:
    daemon = started(host, "-iface=eth1")
    file, leases = host.subnet_env(), lab.leases()
    began = time.monotonic()
    daemon.process.send_signal(number)
    assert daemon.process.wait(10) == 0
    assert time.monotonic() - began < STOP_SECONDS
    assert "flannel0" not in host.run("ip", "link").stdout + host.run("ip", "route").stdout
    assert host.subnet_env() == file
    assert [lease["key"] for lease in lab.leases()] == [lease["key"] for lease in leases]
    assert "] Exiting...\n" in daemon.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_daemon_while_it_waits_for_etcd(host: Host, number: signal.Signals) -> None:
    daemon = host.start_daemon("-iface=eth1", endpoints="http://172.17.8.1:9")
    daemon.wait_for_log("Failed to retrieve network config: ")
    daemon.process.send_signal(number)
    assert daemon.process.wait(STOP_SECONDS) == 0


def test_a_host_keeps_its_subnet_over_restarts(host: Host) -> None:
    subnets = set()
    for end in (Daemon.stop, Daemon.kill, Daemon.stop):
        daemon = started(host, "-iface=eth1")
        subnets.add(host.subnet())
        end(daemon)
    assert len(subnets) == 1


def test_a_host_without_a_lease_gets_the_subnet_of_its_subnet_file(lab: Lab, host: Host) -> None:
    started(host, "-iface=eth1").stop()
    subnet = host.subnet()
    lab.etcd_request("DELETE", f"/coreos.com/network/subnets/{subnet.network_address}-24")
    started(host, "-iface=eth1")
    assert host.subnet() == subnet


# Leases


def test_a_lease_with_our_public_ip_is_reused(lab: Lab, host: Host) -> None:
    put_lease(lab, "11.0.42.0-24", "172.17.8.101", ttl="600")
    daemon = started(host, "-iface=eth1")
    assert "Found lease (11.0.42.0/24) for current IP (172.17.8.101), reusing" in daemon.log()
    assert str(host.subnet()) == "11.0.42.0/24"
    assert [86390 < lease["ttl"] <= 86400 for lease in lab.leases()] == [True]


def test_a_reservation_stays_one(lab: Lab, host: Host) -> None:
    put_lease(lab, "11.0.43.0-24", "172.17.8.101")
    started(host, "-iface=eth1")
    assert str(host.subnet()) == "11.0.43.0/24"
    assert ["ttl" in lease for lease in lab.leases()] == [False]


def test_a_lease_outside_the_config_is_replaced(lab: Lab, host: Host) -> None:
    put_lease(lab, "10.9.8.0-24", "172.17.8.101", ttl="600")
    daemon = started(host, "-iface=eth1")
    message = "Found lease (10.9.8.0/24) for current IP (172.17.8.101) but not compatible with current config, deleting"
    assert message in daemon.log()
    assert [lease["key"] for lease in lab.leases()] == [
        f"/coreos.com/network/subnets/{host.subnet().network_address}-24"
    ]


def test_leases_of_peers_are_added_changed_and_removed(lab: Lab, host: Host) -> None:
    """Leases are short, so that deleted ones are soon forgotten."""
    daemon = started(host, "-iface=eth1", "-subnet-lease-ttl=5s")
    put_lease(lab, "11.0.177.0-24", "172.17.8.102", ttl="600")
    daemon.wait_for_log("Subnet added: 11.0.177.0/24")
    lab.etcd_request("PUT", "/coreos.com/network/subnets/11.0.178.0-24", value="")
    daemon.wait_for_log("Ignoring lease 11.0.178.0-24: not JSON")
    put_lease(lab, "11.0.179.0-24", "172.17.8.103", ttl="1")
    daemon.wait_for_log("Subnet added: 11.0.179.0/24")
    daemon.wait_for_log("Subnet removed: 11.0.179.0/24")
    lab.etcd_request("DELETE", "/coreos.com/network/subnets/11.0.177.0-24")
    daemon.wait_for_log("Subnet removed: 11.0.177.0/24")


def test_a_deleted_lease_is_recreated(lab: Lab, host: Host) -> None:
    daemon = started(host, "-iface=eth1")
    daemon.wait_for_log("Watching for new subnet leases")
    [lease] = lab.leases()
    lab.etcd_request("DELETE", lease["key"])
    daemon.wait_for_log("was deleted or has expired; recreating the lease")
    wait_for(lambda: [again["key"] for again in lab.leases()] == [lease["key"]], 5, "the lease")


def test_a_lease_that_another_host_takes_ends_the_daemon(lab: Lab, host: Host) -> None:
    daemon = started(host, "-iface=eth1")
    subnet = host.subnet()
    put_lease(lab, f"{subnet.network_address}-24", "172.17.8.102", ttl="600")
    assert daemon.process.wait(10) == 3
    assert f"subnet {subnet} is held by 172.17.8.102 now, not by us (172.17.8.101)" in daemon.log()


# What it waits for


def test_a_daemon_waits_for_an_unreachable_etcd(lab: Lab, host: Host) -> None:
    lab.etcd.stop()
    daemon = host.start_daemon("-iface=eth1")
    daemon.wait_for_log("Failed to retrieve network config: http://172.17.8.1:2379: connection refused")
    lab.etcd.start()
    daemon.wait_ready()
    assert daemon.log().count("Failed to retrieve network config") == 1


@pytest.mark.parametrize(
    ("config", "failures"),
    [
        (None, "no network config in etcd: v2: /coreos.com/network/config: Key not found"),
        ("{", "network config is not JSON: "),
        (
            '{"Network":"11.0.0.0/16","Backend":{"Type":"foo"}}',
            "unknown backend type: 'foo'; Backend.Type may be alloc, host-gw, udp, vxlan",
        ),
        (
            '{"Network":"11.0.0.0/16","Backend":{"Type":"udp","Port":0}}',
            "Backend.Port 0 is not a number from 1 to 65535",
        ),
        ('{"Network":"11.0.0.0/16","SubnetLen":33}', "SubnetLen 33 must be less than /31"),
    ],
)
def test_a_daemon_waits_while_the_config_is_missing_or_invalid(
    lab: Lab, host: Host, config: str | None, failures: str
) -> None:
    if config is None:
        lab.etcd_request("DELETE", "/coreos.com/network/config")
    else:
        lab.put_config(config)
    daemon = host.start_daemon("-iface=eth1")
    daemon.wait_for_log(f"Failed to retrieve network config: {re.escape(failures)}")
    lab.put_config(CONFIG)
    daemon.wait_ready()
    assert daemon.log().count("Failed to retrieve network config") == 1


# What ends it with an error


def port_taken(host: Host) -> Callable[[], None]:
    script = (
        "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 8285)); print(); time.sleep(60)"
    )
    process = host.popen("python3", "-u", "-c", script)
    assert process.stdout is not None
    process.stdout.readline()
    return process.kill


def leftover_device(host: Host) -> Callable[[], None]:
    host.configure("link add old0 type bridge", "address add 11.0.9.0/16 dev old0", "link set old0 up")
    return lambda: host.configure("link delete old0")


def unwritable_directory(host: Host) -> Callable[[], None]:
    (host.run_dir / "flannel").write_text("a file where the directory should be")
    return lambda: None


def nothing(_: Host) -> Callable[[], None]:
    return lambda: None


@pytest.mark.parametrize(
    ("prepare", "flags", "failures"),
    [
        (nothing, [], "Failed to get default interface: Unable to find default route; name the interface by -iface"),
        (
            nothing,
            ["-iface=eth9"],
            "Error looking up interface 'eth9': no such network interface; -iface may be one of eth1, lo",
        ),
        (
            nothing,
            ["-iface=1.2.3.4"],
            "Error looking up interface '1.2.3.4': No interface with given IP found; this machine has 127.0.0.1, "
            "172.17.8.101",
        ),
        (
            nothing,
            ["-iface=lo"],
            "Failed to find IPv4 address for interface lo; give it one, or choose another -iface",
        ),
        (
            port_taken,
            ["-iface=eth1"],
            "cannot listen on UDP 172.17.8.101:8285: Address already in use; is another flannel running?",
        ),
        (
            leftover_device,
            ["-iface=eth1"],
            "Packets to 11.0.0.0/16 do not take flannelpy's routes: "
            "route 11.0.0.0/16 dev old0 proto kernel scope link takes the host's packets",
        ),
        (
            unwritable_directory,
            ["-iface=eth1"],
            "cannot write subnet file /run/flannel/subnet.env: File exists (EEXIST); see -subnet-file",
        ),
    ],
)
def test_what_the_host_lacks_is_one_line_and_exit_1(
    host: Host, prepare: Callable[[Host], Callable[[], None]], flags: list[str], failures: str
) -> None:
    restore = prepare(host)
    try:
        code, log = ended(host, *flags)
    finally:
        restore()
    assert code == 1
    assert log.splitlines()[-1].endswith(f"] {failures}")
    assert "Traceback" not in log
    assert "flannel0" not in host.run("ip", "link").stdout


# Many at once


def test_a_second_daemon_for_a_subnet_file_is_refused(lab: Lab, host: Host) -> None:
    first = started(host, "-iface=eth1")
    second = host.start_daemon("-iface=eth1")
    assert second.process.wait(10) == 1
    message = "a flannelpy runs here with the subnet file /run/flannel/subnet.env: stop it first"
    assert second.log().splitlines()[-1].endswith(message)
    assert (host.run_dir / "flannel/ready").exists()
    assert first.stop() == 0


def test_twenty_hosts_that_start_together_get_twenty_subnets() -> None:
    with Lab(hosts=20) as lab:
        lab.put_config()
        daemons = [host.start_daemon("-iface=eth1") for host in lab.hosts]
        for daemon in daemons:
            daemon.wait_ready(60)
        assert len({host.subnet() for host in lab.hosts}) == 20
        assert len(lab.leases()) == 20
