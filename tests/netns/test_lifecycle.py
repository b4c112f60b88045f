"""Signals, a container without rights, and networks of one daemon that end: their causes, and what is free then."""

from __future__ import annotations

import json
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.backends import HOST_GW, UDP, VXLAN, Backend, over
from lab import CONFIG, ETCD_PREFIX, Daemon, Host, Lab, wait_for
from support.tenants import NETWORKS, Tenant, subnet_file

pytestmark = pytest.mark.usefixtures("root")

_SETTLE_SECONDS = 20


def python(host: Host, name: str, *before: str) -> str:
    """Return a Python that a shell starts after these commands."""
    script = host.run_dir / name
    script.write_text("\n".join(["#!/bin/sh -e", *before, f'exec {shlex.quote(sys.executable)} "$@"', ""]))
    script.chmod(0o755)
    return f"/run/{name}"


def is_ready(host: Host, network: str = "") -> bool:
    path = f"flannel/networks/{network}.env.ready" if network else "flannel/ready"
    return (host.run_dir / path).exists()


def trigger(host: Host) -> None:
    """Have the repair loop check at once."""
    host.configure("address add 192.0.2.77/32 dev lo", "address delete 192.0.2.77/32 dev lo")


@pytest.fixture
def host(shared_lab: Callable[[str, int], Lab]) -> Iterator[Host]:
    """Return a host without a daemon."""
    [host] = shared_lab(CONFIG, 1).hosts
    yield host
    host.kill_daemons()


# Signals


@pytest.mark.parametrize(
    ("ignored", "ignored_signals", "ends"),
    [
        ("HUP", [signal.SIGHUP], signal.SIGINT),  # nohup flannelpy
        ("INT", [signal.SIGINT], signal.SIGHUP),  # flannelpy & in a script
        ("HUP INT", [signal.SIGHUP, signal.SIGINT], signal.SIGTERM),
    ],
)
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(
    host: Host, ignored: str, ignored_signals: list[signal.Signals], ends: signal.Signals
) -> None:
    daemon = host.start_daemon("-iface=eth1", python=python(host, "nohup", f"trap '' {ignored}"))
    daemon.wait_ready()
    for number in ignored_signals:
        daemon.process.send_signal(number)
    trigger(host)
    wait_for(lambda: is_ready(host), 5, "the ready file")
    assert "Exiting..." not in daemon.log()
    daemon.process.send_signal(ends)
    assert daemon.process.wait(10) == 0


def test_a_terminal_that_is_closed_sends_sighup_more_than_once(host: Host) -> None:
    daemon = host.start_daemon("-iface=eth1")
    daemon.wait_ready()
    for _ in range(3):
        daemon.process.send_signal(signal.SIGHUP)
    assert daemon.process.wait(10) == 0


# A container without rights

_READ_ONLY = ("mount --bind /proc/sys /proc/sys", "mount -o remount,bind,ro /proc/sys")
_HIDDEN = ("mount -t tmpfs none /proc/sys",)


@pytest.mark.parametrize(
    ("mounts", "sysctl", "warning"),
    [
        (_READ_ONLY, "", r"accept_local of flannel0: cannot write \S+: Read-only file system; packets travel"),
        (_READ_ONLY, "net.ipv4.conf.all.accept_local", ""),
        (_READ_ONLY, "net.ipv4.conf.default.accept_local", ""),
        (_HIDDEN, "", r"accept_local of flannel0: cannot read \S+: No such file or directory; packets travel"),
    ],
)
def test_settings_that_cannot_be_written_are_one_warning_at_most(
    host: Host, mounts: tuple[str, ...], sysctl: str, warning: str
) -> None:
    if sysctl:
        host.run("sysctl", "-q", "-w", f"{sysctl}=1")
    daemon = host.start_daemon("-iface=eth1", "-iptables-resync=1", python=python(host, "locked", *mounts))
    daemon.wait_ready()
    wait_for(lambda: is_ready(host), 5, "the ready file")
    wait_for(lambda: "FLANNEL-A" in host.run("iptables-save", "-t", "filter").stdout, 10, "two checks of the rules")
    host.configure("link set flannel0 down")
    daemon.wait_for_log("flannel0 .*; restored")
    warned = re.findall(r"^[WEF].*accept_local.*$", daemon.log(), re.MULTILINE)
    assert daemon.stop() == 0
    if sysctl:
        host.run("sysctl", "-q", "-w", f"{sysctl}=0")
    assert len(warned) == bool(warning)
    assert all(re.search(warning, line) for line in warned)


@over(UDP, VXLAN, HOST_GW)
def test_a_device_that_does_not_forward_is_named_with_the_command_that_cures_it(
    make_lab: Callable[..., Lab], backend: Backend
) -> None:
    """The check runs without iptables rules, too; the host's setting counts only with those of its devices."""
    lab = make_lab(hosts=1)
    lab.put_config(backend.config())
    [host] = lab.hosts
    daemon = host.start_daemon("-iface=eth1", "-iptables-forward-rules=false")
    daemon.wait_ready()
    device = backend.device or "eth1"
    host.run("sysctl", "-q", "-w", f"net.ipv4.conf.{device.replace('.', '/')}.forwarding=0")
    trigger(host)
    host.add_container()
    for name in (device, "docker0"):
        host.run("sysctl", "-q", "-w", f"net.ipv4.conf.{name.replace('.', '/')}.forwarding=0")
        wait_for(lambda: not is_ready(host), 5, "the ready file to go")
        command = daemon.wait_for_log(rf"E.* Forwarding is 0 for {re.escape(name)}, .*set it: (sysctl .*)$")[1]
        wait_for(lambda name=name: f"not ready: Forwarding is 0 for {name}" in daemon.notified[-1], 5, "the status")  # type: ignore[misc]
        host.run(*command.split())
        wait_for(lambda: is_ready(host), 5, "the ready file to come back")
    host.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=0")
    command = daemon.wait_for_log(r"E.* net.ipv4.ip_forward is 0, .*set it: (sysctl .*)$")[1]
    for name in (device, "docker0"):
        host.run("sysctl", "-q", "-w", f"net.ipv4.conf.{name.replace('.', '/')}.forwarding=1")
    wait_for(lambda: is_ready(host), 5, "the ready file to come back")
    host.run("sysctl", "-q", "-w", "net.ipv4.conf.docker0.forwarding=0")
    wait_for(lambda: not is_ready(host), 5, "the ready file to go")
    host.run(*command.split())
    wait_for(lambda: is_ready(host), 5, "the ready file to come back")


# Networks of one daemon

# Runs in the daemon before its start: the file /run/fault names the next fault.
_FAULTS = """
from pathlib import Path
from flannelpy.commands import daemon
from flannelpy.datapath.engine import Engine
from flannelpy.backend.vxlan.backend import VxlanBackend

daemon._RESTART_SECONDS = 1.0
fault, repair, inbound = Path("/run/fault"), VxlanBackend.repair, Engine.inbound

def fail(where):
    if fault.exists() and fault.read_text().startswith(where):
        kind = fault.read_text().partition(" ")[2]
        fault.unlink()
        raise eval(kind)

async def failing_repair(self, netlink):
    fail("vxlan")
    return await repair(self, netlink)

def failing_inbound(self, trains, now):
    fail("udp")
    return inbound(self, trains, now)

VxlanBackend.repair, Engine.inbound = failing_repair, failing_inbound
"""
_TYPES = {"blue": "vxlan", "green": "udp"}
_FLAGS = ("-iface=eth1", "-networks=blue,green")


def put_config(lab: Lab, name: str, network: object, kind: str) -> None:
    lab.etcd.put(f"{ETCD_PREFIX}/{name}/config", json.dumps({"Network": str(network), "Backend": {"Type": kind}}))


@pytest.fixture(scope="module")
def world(root: None) -> Iterator[Lab]:
    with Lab(hosts=2) as lab:
        for name, network in NETWORKS.items():
            put_config(lab, name, network, _TYPES[name])
        for host in lab.hosts:
            (host.run_dir / "faults").mkdir()
            (host.run_dir / "faults/sitecustomize.py").write_text(_FAULTS)
            host.start_daemon(*_FLAGS, env={"PYTHONPATH": "/run/faults"})
        for host in lab.hosts:
            host.daemons[-1].wait_ready()
        yield lab


def reaches(one: Tenant, other: Tenant) -> bool:
    return " 0% packet loss" in one.ping(other).stdout


@pytest.fixture(scope="module")
def tenants(world: Lab) -> dict[str, list[Tenant]]:
    """Return a container of each network on each host, which reach each other."""
    found = {name: [Tenant(host, name) for host in world.hosts] for name in NETWORKS}
    for pair in found.values():
        for tenant in pair:
            tenant.start()
        wait_for(lambda pair=pair: reaches(*pair), 10, "packets")  # type: ignore[misc]
    return found


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("blue", "OSError(24, 'Too many open files')", r"OSError: \[Errno 24\] Too many open files"),
        ("blue", "RecursionError()", "RecursionError"),
        ("green", "IndexError('a fault')", "IndexError: a fault"),
        ("green", "OSError(5, 'Input/output error')", r"OSError: \[Errno 5\] Input/output error"),
    ],
)
def test_a_fault_in_one_network_ends_only_that_network(
    world: Lab, tenants: dict[str, list[Tenant]], name: str, kind: str, text: str
) -> None:
    host = world.hosts[0]
    daemon, other = host.daemons[-1], next(one for one in NETWORKS if one != name)
    before = len(daemon.log())
    wait_for(lambda: is_ready(host, name), _SETTLE_SECONDS, f"{name} to be ready")
    (host.run_dir / "fault").write_text(f"{_TYPES[name]} {kind}")
    trigger(host)
    tenants["green"][1].ping(tenants["green"][0])
    line = rf"^E.*\] {name}: Unexpected error in \w+.py:\d+ \({text}\): .*; trying again in 1 s$"
    wait_for(lambda: re.search(line, daemon.log()[before:], re.MULTILINE), 5, "the line")
    assert is_ready(host, other)
    assert reaches(*tenants[other])
    wait_for(lambda: is_ready(host, name), _SETTLE_SECONDS, f"{name} to be back")
    wait_for(lambda: reaches(*tenants[name]), 10, "packets")
    assert "Traceback" not in daemon.log()
    assert not [line for line in daemon.notified if "STOPPING" in line]


def test_a_line_of_the_packet_path_names_its_network(world: Lab) -> None:
    host = world.hosts[0]
    daemon = host.daemons[-1]
    wait_for(lambda: is_ready(host, "green"), _SETTLE_SECONDS, "green to be ready")
    host.configure("link delete flannel0")
    daemon.wait_for_log(r"^E.*\] green: flannel0 (cannot be read any more|is gone)")
    daemon.wait_for_log(r"^W.*\] green: flannel0 was removed; restored")


def lose_subnet(host: Host, daemon: Daemon, name: str) -> None:
    """Have another host take the subnet of a network, whose config is no longer valid either."""
    subnet = subnet_file(host, name).read_text().partition("FLANNEL_SUBNET=")[2].partition("\n")[0]
    key = re.sub(r"\.\d+/", ".0-", subnet)
    host.lab.etcd.put(f"{ETCD_PREFIX}/{name}/config", "gone")
    host.lab.etcd.put(f"{ETCD_PREFIX}/{name}/subnets/{key}", '{"PublicIP":"172.17.8.200"}')
    daemon.wait_for_log(rf"^E.*\] {name}: subnet \S+ is held by 172.17.8.200 now")


def test_the_resources_of_an_ended_network_are_free(world: Lab) -> None:
    """After a lost lease, another network of the same daemon gets addresses and VNI."""
    host = world.hosts[0]
    daemon = host.daemons[-1]
    for name in NETWORKS:
        wait_for(lambda name=name: is_ready(host, name), _SETTLE_SECONDS, f"{name} to be ready")  # type: ignore[misc]
    lose_subnet(host, daemon, "blue")
    lose_subnet(host, daemon, "green")
    put_config(world, "green", NETWORKS["blue"], "vxlan")
    wait_for(lambda: is_ready(host, "green"), _SETTLE_SECONDS, "green, with what was blue's")
    assert f"FLANNEL_NETWORK={NETWORKS['blue']}" in subnet_file(host, "green").read_text()
    put_config(world, "blue", NETWORKS["green"], "udp")
    wait_for(lambda: is_ready(host, "blue"), _SETTLE_SECONDS, "blue, with what was green's")


def test_conflicting_leftovers_of_an_ended_network_are_removed(world: Lab) -> None:
    """After a fault, device, routes and iptables chains stay for the next start, unless another network needs them."""
    host = world.hosts[0]
    daemon = host.daemons[-1]
    world.etcd.put(f"{ETCD_PREFIX}/blue/config", "gone")
    lose_subnet(host, daemon, "blue")
    wait_for(lambda: is_ready(host, "green"), _SETTLE_SECONDS, "green to be ready")
    (host.run_dir / "fault").write_text("vxlan RuntimeError('a fault')")
    world.etcd.put(f"{ETCD_PREFIX}/green/config", "gone")
    trigger(host)
    daemon.wait_for_log(r"^E.*\] green: Unexpected error .*RuntimeError: a fault")
    daemon.wait_for_log(r"^E.*\] green: Failed to retrieve network config")
    assert "flannel.1" in host.run("ip", "route").stdout
    assert subnet_file(host, "green").exists()
    inner = next(NETWORKS["blue"].subnets(new_prefix=17))
    put_config(world, "blue", inner, "vxlan")
    wait_for(lambda: is_ready(host, "blue"), _SETTLE_SECONDS, "blue, with a part of what was green's")
    daemon.wait_for_log(
        r"^W.*\] blue: Removing the state of the ended network green: 11.1.0.0/16 belongs to this network now"
    )
    assert not subnet_file(host, "green").exists()
    assert str(NETWORKS["blue"]) not in host.run("ip", "route").stdout + host.run("ip", "rule").stdout
    saved = f"FLANNEL-[A-Z]-{re.escape(str(NETWORKS['blue']))}"
    wait_for(lambda: not re.search(saved, host.run("iptables-save").stdout), 10, "its iptables chains to go")


def test_the_log_holds_no_traceback(world: Lab) -> None:
    assert "Traceback" not in Path(world.hosts[0].log_file).read_text()
