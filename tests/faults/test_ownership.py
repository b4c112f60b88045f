"""Which state of a host is flannelpy's: devices that resemble its own, several daemons, what -cleanup removes.

Each backend has a lab with one host; a test leaves no daemon behind.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from faults.backends import HOST_GW, UDP, VXLAN, Backend, over
from lab import ETCD_PREFIX, Daemon, Host, Lab, wait_for
from support.hosts import freeze, thaw

pytestmark = [pytest.mark.usefixtures("root"), pytest.mark.sample("backend", 1)]

ALIAS = "flannelpy /run/flannel/subnet.env"
ANOTHERS_ALIAS = "flannelpy /run/another/subnet.env"
MAC = "02:00:00:00:00:77"


@pytest.fixture
def lab(shared_lab: Callable[[str, int], Lab], backend: Backend) -> Lab:
    return shared_lab(backend.config(), 1)


@pytest.fixture
def host(lab: Lab) -> Iterator[Host]:
    """Return the host, without daemons and leftovers of earlier tests."""
    [host] = lab.hosts
    yield host
    host.kill_daemons()
    for link in links(host):
        if str(link["ifname"]).startswith("flannel"):
            host.configure(f"link delete {link['ifname']}")
    clean_up(host)


def links(host: Host) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(host.run("ip", "-j", "-d", "address").stdout)
    return found


def link(host: Host, name: str) -> dict[str, object] | None:
    """Return what ``ip`` shows of a device, without the lifetimes of IPv6."""
    for found in links(host):
        if found["ifname"] == name:
            found.pop("operstate", None)
            found["addr_info"] = [one["local"] for one in found["addr_info"] if one["family"] == "inet"]  # type: ignore[attr-defined]
            return found
    return None


def alias(host: Host, name: str) -> object:
    return (link(host, name) or {}).get("ifalias")


def started(host: Host, *flags: str) -> Daemon:
    daemon = host.start_daemon("-iface=eth1", *flags)
    daemon.wait_ready()
    return daemon


def clean_up(host: Host, *flags: str) -> str:
    """Run -cleanup; return its log."""
    return host.run(sys.executable, "-P", "-m", "flannelpy", *flags, "-cleanup").stderr


def own_address(host: Host) -> str:
    return f"{host.subnet().network_address}/16"


# Devices


def vxlan(host: Host, name: str, number: int) -> str:
    return f"link add {name} type vxlan id {number} local {host.public_ip} dev eth1 dstport 8472 nolearning"


@over(UDP, VXLAN, HOST_GW)
def test_foreign_devices_that_resemble_ours_always_stay(host: Host, backend: Backend) -> None:
    """They stay through a start, a stop, a start with another backend, and -cleanup."""
    host.configure(
        vxlan(host, "flannel.7", 7),
        "address add 10.8.0.0/16 dev flannel.7",
        "link set flannel.7 up",
        vxlan(host, "flannel.8", 9),
        "address add 11.0.99.1/32 dev flannel.8",
        f"link set flannel.8 alias '{ANOTHERS_ALIAS}'",
        "link add flannel.9 type bridge",
        "link add flannel0 type bridge",
        "tuntap add flannel1 mode tun user 4242",
        "tuntap add flannel2 mode tap",
        "address add 11.0.98.0/32 dev flannel2",
        "tuntap add flannel3 mode tun",
        "address add 10.9.0.1/24 dev flannel3",
        "link set flannel3 up",
    )
    names = ("flannel.7", "flannel.8", "flannel.9", *(f"flannel{number}" for number in range(4)))
    before = [link(host, name) for name in names]
    assert None not in before
    for one in (backend, UDP if backend is not UDP else VXLAN):
        host.lab.put_config(one.config())
        assert started(host).stop() == 0
    host.lab.put_config(backend.config())
    clean_up(host)
    assert [link(host, name) for name in names] == before


#: How a foreign flannel.1 is created, and the error about it.
FOREIGN_DEVICES = {
    "no address, another MAC": (["link set flannel.1 up"], "neither our alias nor our MAC"),
    "another address of the network": (["address add 11.0.222.0/16 dev flannel.1"], "it has 11.0.222.0/16 instead of"),
    "another prefix length": (["address add {address}/24 dev flannel.1"], "it has {address}/24 instead of"),
    "our address and one more": (
        ["address add {address}/16 dev flannel.1", "address add 10.1.1.1/24 dev flannel.1"],
        "10.1.1.1/24 instead of",
    ),
    "another overlay": (["address add 10.244.3.0/32 dev flannel.1"], "flannel.1 has 10.244.3.0, of another overlay"),
    "another daemon's": (
        ["address add {address}/16 dev flannel.1", f"link set flannel.1 alias '{ANOTHERS_ALIAS}'"],
        f"belongs to another daemon (alias: {ANOTHERS_ALIAS})",
    ),
}


@pytest.mark.sample("kind", 3)
@over(VXLAN)
@pytest.mark.parametrize("kind", FOREIGN_DEVICES)
def test_a_foreign_device_of_our_name_ends_the_start_with_one_line(host: Host, backend: Backend, kind: str) -> None:
    commands, logged = FOREIGN_DEVICES[kind]
    started(host).stop()
    address = {"address": str(host.subnet().network_address)}
    host.configure("link delete flannel.1", vxlan(host, f"flannel.1 address {MAC}", 1))
    host.configure(*(command.format_map(address) for command in commands))
    before = link(host, "flannel.1")
    daemon = host.start_daemon("-iface=eth1")
    assert daemon.process.wait(10) == 1
    last = daemon.log().splitlines()[-1]
    assert "] flannel.1 " in last
    assert logged.format_map(address) in last
    assert "Backend.VNI" in last
    assert link(host, "flannel.1") == before


@over(UDP, VXLAN)
def test_our_device_has_our_alias_and_a_changed_alias_is_restored(host: Host, backend: Backend) -> None:
    daemon = started(host)
    index = (link(host, backend.device) or {})["ifindex"]
    for changed in ("", "uplink", ANOTHERS_ALIAS):
        assert alias(host, backend.device) == ALIAS
        host.configure(f"link set {backend.device} alias '{changed}'")
        wait_for(lambda: alias(host, backend.device) == ALIAS, 2, "the alias to come back")
        daemon.wait_for_log(rf'{backend.device} got the alias "{changed}" instead of "{ALIAS}"')
    assert (link(host, backend.device) or {})["ifindex"] == index


@over(VXLAN)
@pytest.mark.parametrize("subnet", ["as leased", "of the subnet file"])
def test_a_device_of_an_earlier_version_is_adopted(host: Host, backend: Backend, subnet: str) -> None:
    """The device is recognised by the address of our lease, or of the subnet file if the lease has changed."""
    started(host).stop()
    host.configure("link set flannel.1 alias ''")
    index = (link(host, "flannel.1") or {})["ifindex"]
    if subnet != "as leased":
        name = str(host.subnet()).replace("/", "-")
        host.lab.etcd_request("DELETE", f"{ETCD_PREFIX}/subnets/{name}")
        host.lab.etcd_request("PUT", f"{ETCD_PREFIX}/subnets/{name}", value='{"PublicIP":"172.17.8.150"}')
    daemon = started(host)
    found = link(host, "flannel.1") or {}
    assert (found["ifindex"], found["ifalias"]) == (index, ALIAS)
    assert found["addr_info"] == [str(host.subnet().network_address)]
    daemon.stop()


@over(VXLAN)
def test_our_device_under_another_name_is_removed(host: Host, backend: Backend) -> None:
    daemon = started(host)
    host.configure("link set flannel.1 down", "link set flannel.1 name renamed")
    wait_for(lambda: alias(host, "flannel.1") == ALIAS, 3, "a device of our name")
    assert link(host, "renamed") is None
    daemon.stop()
    host.configure("link set flannel.1 down", "link set flannel.1 name renamed")
    started(host)
    assert link(host, "renamed") is None


@over(UDP)
@pytest.mark.parametrize("is_ours", [True, False])
def test_an_idle_tun_device_is_removed_only_if_it_has_our_address(host: Host, backend: Backend, is_ours: bool) -> None:
    started(host).stop()
    address = host.subnet().network_address if is_ours else "11.0.222.0"
    host.configure("tuntap add flannel3 mode tun", f"address add {address}/16 dev flannel3")
    daemon = started(host)
    assert ("Removed leftover device flannel3" in daemon.log()) is is_ours
    assert (link(host, "flannel3") is None) is is_ours


#: The kernel's routes to these addresses would take packets to other hosts.
FOREIGN_ADDRESSES = (
    "11.0.200.1/24",
    "11.0.201.0/16",
    "11.0.202.1 peer 11.0.203.1/32",
    "11.0.204.1 peer 192.168.5.1/24",
    "192.168.1.1 peer 11.0.205.0/24",
)


@over(UDP, VXLAN)
def test_addresses_inside_the_network_are_removed_from_our_device_and_others_stay(host: Host, backend: Backend) -> None:
    daemon = started(host)
    expected = [str(host.subnet().network_address), "192.168.77.1", "192.168.78.1"]
    for address in ("192.168.77.1/24", "192.168.78.1 peer 192.168.79.1/32", *FOREIGN_ADDRESSES):
        host.configure(f"address add {address} dev {backend.device}")
    wait_for(lambda: (link(host, backend.device) or {})["addr_info"] == expected, 3, "the addresses to go")
    for address in FOREIGN_ADDRESSES:
        daemon.wait_for_log(f"{backend.device} got the address {address.partition(' ')[0].partition('/')[0]}; restored")
    daemon.stop()
    if backend is VXLAN:
        host.configure("address add 11.0.201.1/32 dev flannel.1")
        started(host)
        assert (link(host, "flannel.1") or {})["addr_info"] == expected


@over(UDP, VXLAN)
def test_an_alias_on_an_interface_of_another_kind_marks_nothing(host: Host, backend: Backend) -> None:
    """Neither the external interface nor a bridge counts as flannelpy's, with any alias of an operator."""
    host.configure("link set eth1 alias 'flannelpy underlay'", "link add flannel.5 type bridge")
    host.configure(f"link set flannel.5 alias '{ALIAS}'")
    started(host).stop()
    assert "flannel.5" not in clean_up(host)
    assert alias(host, "flannel.5") == ALIAS
    host.configure("link set eth1 alias ''", "link delete flannel.5")


#: Changes after which our device must be recreated, and which of its routes are foreign.
LOST_ROUTES = ("10.55.0.0/16 dev flannel.1 proto static scope link", "10.56.0.0/16 dev flannel.1 proto 85 scope link")


@over(VXLAN)
@pytest.mark.parametrize("when", ["while it runs", "at start", "cleanup"])
def test_foreign_routes_that_are_removed_with_our_device_are_named(host: Host, backend: Backend, when: str) -> None:
    daemon = started(host)
    inside = "11.0.220.0/24 dev flannel.1 proto static scope link"
    if when != "while it runs":
        daemon.stop()
        host.configure(*(f"route add {route}" for route in (*LOST_ROUTES, inside)))
        host.lab.put_config(json.dumps({"Network": "11.0.0.0/16", "Backend": {"Type": "vxlan", "Port": 4789}}))
        logged = clean_up(host) if when == "cleanup" else started(host).log()
        host.lab.put_config(backend.config())
    else:
        freeze(daemon)
        host.configure("link set flannel.1 down", "link set flannel.1 name renamed", "link set renamed up")
        host.configure(*(f"route add {route.replace('flannel.1', 'renamed')}" for route in LOST_ROUTES))
        thaw(daemon)
        daemon.wait_for_log("it is our flannel.1 under another name")
        logged = daemon.log().replace("renamed", "flannel.1")
    assert f"The removal of device flannel.1 removes routes of other programs: {', '.join(LOST_ROUTES)}\n" in logged


@over(UDP, VXLAN)
def test_a_device_that_a_running_flanneld_has_open_ends_the_start(host: Host, backend: Backend) -> None:
    """flannelpy changes nothing before."""
    started(host).stop()
    code = "import time; from flannelpy.linux.tun import Tun; tun = Tun(); print(tun.name, flush=True); time.sleep(60)"
    flanneld = host.popen(sys.executable, "-c", code)
    assert flanneld.stdout
    name = flanneld.stdout.readline().strip()
    host.configure(f"address add {own_address(host)} dev {name}", f"link set {name} up")
    before = host.run("ip", "-4", "route").stdout
    daemon = host.start_daemon("-iface=eth1")
    assert daemon.process.wait(10) == 1
    logged = f"another process, such as flanneld, has our device {name} open: stop that process first"
    assert daemon.log().splitlines()[-1].endswith(logged)
    assert host.run("ip", "-4", "route").stdout == before
    flanneld.kill()
    flanneld.wait()


# Routes

#: Routes with a nexthop object, and how each is created; inside the network, on our own device or marked.
OF_NEXTHOP_OBJECTS = (
    "11.0.210.0/24 nhid 71",
    "11.0.211.0/24 nhid 72 proto 85",
    "11.0.212.0/24 nhid 73 proto 85 metric 7",
    "11.0.213.0/24 nhid 74 proto 85",
)


@over(VXLAN)
@pytest.mark.parametrize("who", ["repair", "cleanup"])
def test_our_routes_with_nexthop_objects_are_removed_like_others(host: Host, backend: Backend, who: str) -> None:
    daemon = started(host)
    if who == "cleanup":
        daemon.stop()
    outside = "10.9.0.0/24 nhid 73 proto 85"
    host.configure(
        "nexthop add id 71 via 11.0.210.0 dev flannel.1 onlink",
        "nexthop add id 72 via 172.17.8.9 dev eth1",
        "nexthop add id 73 via 172.17.8.10 dev eth1",
        "nexthop add id 74 group 72/73",
        *(f"route add {route}" for route in (*OF_NEXTHOP_OBJECTS, outside)),
    )
    if who == "cleanup":
        clean_up(host)
    left = wait_for(
        lambda: [found] if "11.0.21" not in (found := host.run("ip", "route").stdout) else [], 3, "the routes to go"
    )
    assert outside.split()[0] in left[0]
    if who == "repair":
        host.configure("route add 11.0.214.0/24 via 172.17.8.9 proto 85")
        daemon.wait_for_log("route to 11.0.214.0/24 via 172.17.8.9 leads to no peer; removed")
        assert "Invalid argument" not in daemon.log()
    host.configure("route delete 10.9.0.0/24", *(f"nexthop delete id {number}" for number in (74, 73, 72)))


@over(UDP, VXLAN, HOST_GW)
def test_device_names_that_are_not_utf_8_are_harmless(host: Host, backend: Backend) -> None:
    """The kernel accepts any bytes except blanks, slashes and colons as a name, and any bytes as an alias."""
    names = ["a\udcff\udcfeb", "\x1b[31m", "flannel.\udcc3"]
    for number, name in enumerate(names):
        host.run("ip", "link", "add", name, "type", "bridge")
        host.run("ip", "link", "set", name, "alias", "flannelpy \udcff" if number else "\udcff")
    try:
        daemon = started(host)
        assert daemon.stop() == 0
        clean_up(host)
        wrong = host.start_daemon("-iface=no-such-device")
        assert wrong.process.wait(10) == 1
        assert "Traceback" not in daemon.log() + wrong.log()
        assert wrong.log().isascii()
    finally:
        for name in names:
            host.run("ip", "link", "delete", name)


# The external interface


@over(VXLAN)
@pytest.mark.parametrize("mark", ["ours", "another daemon's", "an earlier version's"])
def test_a_device_of_flannelpy_is_never_the_external_interface(host: Host, backend: Backend, mark: str) -> None:
    started(host).stop()
    aliases = {"ours": ALIAS, "another daemon's": ANOTHERS_ALIAS, "an earlier version's": ""}
    host.configure(f"link set flannel.1 alias '{aliases[mark]}'", "route add default dev flannel.1")
    for iface in ("flannel.1", str(host.subnet().network_address)):
        daemon = host.start_daemon(f"-iface={iface}")
        assert daemon.process.wait(10) == 1
        assert f"] -iface={iface!r} means flannel.1, a device of flannelpy itself" in daemon.log().splitlines()[-1]
    daemon = host.start_daemon()
    assert daemon.process.wait(10) == 1
    assert "Unable to find default route" in daemon.log().splitlines()[-1]
    host.configure("route add default via 172.17.8.1 metric 500")
    daemon = host.start_daemon()
    daemon.wait_for_log(f"Using {host.public_ip} as external interface")
    daemon.kill()
    host.configure("route delete default metric 500")


# Several daemons on one host


class Tenant:
    """A daemon with a network, a key prefix and a subnet file of its own."""

    def __init__(self, host: Host, number: int, backend: Backend) -> None:
        self.host = host
        self.network = f"11.{number}.0.0/16"
        self.prefix = f"/tenant{number}"
        self.flags = (f"-etcd-prefix={self.prefix}", f"-subnet-file=/run/flannel/tenant{number}.env", "-ip-masq")
        settings = {"VNI": number, "Port": 8285 + number} if backend is not HOST_GW else {}
        config = {"Network": self.network, "Backend": {"Type": backend.name, **settings}}
        host.lab.etcd.put(f"{self.prefix}/config", json.dumps(config))
        key, value = backend.foreign_lease(foreign_subnet(number))
        host.lab.etcd.put(key.replace(ETCD_PREFIX, self.prefix), value)

    def state(self) -> list[str]:
        """Return all state of a host that names the tenant's network or subnet file."""
        shown = [
            *self.host.run("ip", "-4", "route").stdout.splitlines(),
            *self.host.run("ip", "-o", "address").stdout.splitlines(),
            *self.host.run("ip", "-o", "link").stdout.splitlines(),
            *self.host.run("iptables-save").stdout.splitlines(),
        ]
        words = (self.network.removesuffix("0.0/16"), f"{self.flags[1].partition('=')[2]}")
        return sorted(line.partition(" [")[0] for line in shown if any(word in line for word in words))


def has_all(tenant: Tenant, backend: Backend) -> bool:
    """Return whether the route to the peer and all iptables rules about it exist; some are added in the background."""
    state = tenant.state()
    about_peer = [line for line in state if re.match("-A FLANNEL-[AD]-.*/32 ", line)]
    has_rules = len(about_peer) == (2 if backend is HOST_GW else 1) and any(
        "FORWARD -j FLANNEL-A" in one for one in state
    )
    return has_rules and (backend is UDP or any("200.0/24" in line for line in state))


def foreign_subnet(number: int) -> IPv4Network:
    return IPv4Network(f"11.{number}.200.0/24")


@contextmanager
def two_tenants(host: Host, backend: Backend) -> Iterator[tuple[Tenant, Tenant]]:
    one, other = Tenant(host, 1, backend), Tenant(host, 2, backend)
    yield one, other
    for tenant in (one, other):
        clean_up(host, *tenant.flags)
        assert tenant.state() == []


@over(UDP, VXLAN, HOST_GW)
def test_several_daemons_with_subnet_files_of_their_own(host: Host, backend: Backend) -> None:
    """The daemons run side by side and survive a restart; -cleanup of one does not affect the other."""
    with two_tenants(host, backend) as (one, other):
        first, second = (started(host, *tenant.flags) for tenant in (one, other))
        wait_for(lambda: all(has_all(each, backend) for each in (one, other)), 15, "routes and rules")
        before = one.state(), other.state()
        assert first.stop() == 0
        assert started(host, *one.flags).stop() == 0
        wait_for(lambda: other.state() == before[1], 5, "the second daemon to be as before")
        assert second.process.poll() is None
        clean_up(host, *one.flags)
        assert one.state() == []
        assert other.state() == before[1]
        refused = host.run(sys.executable, "-P", "-m", "flannelpy", *other.flags, "-cleanup", check=False)
        assert refused.returncode == 1
        assert "a flannelpy runs here with the subnet file /run/flannel/tenant2.env: stop it first" in refused.stderr
        assert other.state() == before[1]
        assert "; restored" not in second.log()
        assert second.stop() == 0


# -cleanup


@over(UDP, VXLAN, HOST_GW)
def test_cleanup_needs_no_subnet_file(host: Host, backend: Backend) -> None:
    with two_tenants(host, backend) as (one, _):
        before = one.state()
        daemon = started(host, *one.flags)
        wait_for(lambda: any("200.0/24" in line for line in one.state()) or backend is UDP, 5, "the routes")
        daemon.kill()
        (host.run_dir / "flannel/tenant1.env").unlink()
        clean_up(host, *one.flags)
        assert one.state() == before == []


@over(UDP, HOST_GW)
def test_cleanup_lists_what_an_earlier_version_may_have_left(host: Host, backend: Backend) -> None:
    foreign = ["route 11.1.7.0/24 via 172.17.8.1 dev eth1", "rule from 11.1.0.0/16 to 11.9.0.0/16 prohibit"]
    others = ["route 11.1.8.0/24 via 172.17.8.1 dev eth1 proto static", "rule from 11.8.0.0/16 to 11.9.0.0/16 prohibit"]
    with two_tenants(host, backend) as (one, _):
        started(host, *one.flags).stop()
        for each in (*foreign, *others):
            host.configure(f"{each.replace(' ', ' add ', 1)}{' priority 8285' * each.startswith('rule')}")
        shown = [host.run("ip", kind).stdout for kind in ("route", "rule")]
        logged = clean_up(host, *one.flags)
        for each in foreign:
            assert f"to remove it: ip {each.replace(' ', ' del ', 1)}" in logged
        assert logged.count("to remove it: ip ") == len(foreign)
        after = [host.run("ip", kind).stdout for kind in ("route", "rule")]
        assert [line for line in shown[0].splitlines() if "proto 85" not in line] == after[0].splitlines()
        assert after[1] == shown[1]
        for each in (*foreign, *others):
            host.configure(each.replace(" ", " del ", 1))


@over(VXLAN, HOST_GW)
def test_cleanup_without_any_record_removes_nothing_and_lists_what_is_marked(host: Host, backend: Backend) -> None:
    with two_tenants(host, backend) as (one, _):
        daemon = started(host, *one.flags)
        wait_for(lambda: any("200.0/24" in line for line in one.state()), 5, "the routes")
        daemon.stop()
        before = one.state()
        record = host.run_dir / "flannel/.tenant1.env.lock"
        subnet_file = host.run_dir / "flannel/tenant1.env"
        kept: list[tuple[Path, bytes]] = [(path, path.read_bytes()) for path in (record, subnet_file)]
        record.write_text("{}")
        subnet_file.unlink()
        logged = clean_up(host, *one.flags)
        assert one.state() == before
        assert "route to 11.1.200.0/24 via " in logged
        assert ("device flannel.1 (flannelpy /run/flannel/tenant1.env)" in logged) == (backend is VXLAN)
        for path, content in kept:
            path.write_bytes(content)


@over(VXLAN, HOST_GW)
def test_a_run_on_another_network_removes_all_of_the_old_one(host: Host, backend: Backend) -> None:
    """The old state is removed also if the subnet file is missing."""
    with two_tenants(host, backend) as (one, _):
        for has_file in (True, False):
            host.lab.etcd.put(f"{one.prefix}/config", backend.config(IPv4Network("11.1.0.0/16")))
            started(host, *one.flags)
            wait_for(lambda: any("200.0/24" in line for line in one.state()), 5, "the routes")
            host.daemons[-1].kill()
            if not has_file:
                (host.run_dir / "flannel/tenant1.env").unlink()
            host.lab.etcd.put(f"{one.prefix}/config", backend.config(IPv4Network("11.77.0.0/16")))
            started(host, *one.flags).stop()
            routes = [line.strip() for line in host.run("ip", "route").stdout.splitlines() if line.startswith("11.1.")]
            assert routes == []


@over(VXLAN, HOST_GW)
def test_a_record_of_an_impossible_network_gives_no_ownership(host: Host, backend: Backend) -> None:
    """Otherwise a user who can write the lock file could have -cleanup remove the routes of all daemons."""
    foreign = [
        f"{network} via 172.17.8.1 dev eth1 proto 85" for network in ("10.7.0.0/16", "128.9.0.0/24", "11.9.0.0/16")
    ]
    started(host).stop()
    host.configure(*(f"route add {route}" for route in foreign))
    record = host.run_dir / "flannel/.subnet.env.lock"
    known = json.loads(record.read_text())
    record.write_text(json.dumps({**known, "networks": ["0.0.0.0/0", "10.0.0.0/7", "128.0.0.0/1", *known["networks"]]}))
    clean_up(host)
    left = [line.strip() for line in host.run("ip", "route", "show", "proto", "85").stdout.splitlines()]
    assert left == [route.replace(" proto 85", "") for route in sorted(foreign)]
    host.configure(*(f"route delete {route}" for route in foreign))


@over(UDP, VXLAN, HOST_GW)
def test_leftovers_of_an_earlier_version_in_another_network_are_named_at_start(host: Host, backend: Backend) -> None:
    """The config has changed between the two runs."""
    started(host).stop()
    lock = host.run_dir / "flannel/.subnet.env.lock"
    lock.unlink()
    old = ("11.0.231.0/24 via 172.17.8.1 dev eth1", "11.0.232.128/25 via 172.17.8.1 dev eth1")
    others = ("11.0.233.0/24 via 172.17.8.1 dev eth1 proto static", "10.3.0.0/16 via 172.17.8.1 dev eth1")
    rule = "from 11.0.0.0/16 to 11.9.0.0/16 prohibit"
    host.configure(*(f"route add {route}" for route in (*old, *others)), f"rule add {rule} priority 8285")
    host.lab.put_config(backend.config(IPv4Network("11.77.0.0/16")))
    logged = started(host).log()
    host.lab.put_config(backend.config())
    for command in (*(f"ip route del {route} proto boot" for route in old), f"ip rule del {rule}"):
        assert f"Kept unmarked state, since another program may have added it; to remove it: {command}\n" in logged
    assert logged.count("Kept unmarked state") == len(old) + 1
    host.configure(*(f"route delete {route}" for route in (*old, *others)), f"rule delete {rule} priority 8285")


@over(VXLAN)
def test_an_earlier_network_around_the_present_one_does_not_affect_our_device(host: Host, backend: Backend) -> None:
    """The record of the earlier network stays until its iptables chains are gone."""
    key, value = backend.foreign_lease(foreign_subnet(0))
    host.lab.etcd.put(key, value)
    started(host)
    wait_for(lambda: "11.0.200.0/24" in host.run("ip", "route").stdout, 3, "the route")
    host.daemons[-1].stop()
    record = host.run_dir / "flannel/.subnet.env.lock"
    known = json.loads(record.read_text())
    record.write_text(json.dumps({**known, "networks": [*known["networks"], "11.0.0.0/12"]}))
    with host.popen("ip", "-4", "monitor", "address", "route") as monitor:
        started(host)
        monitor.terminate()
        assert [line for line in monitor.communicate()[0].splitlines() if line.startswith("Deleted")] == []
    host.lab.etcd_request("DELETE", key)
