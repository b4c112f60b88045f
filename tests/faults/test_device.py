"""Other programs change what a backend has set up, or the interface below: restored within two seconds with one socket.

Each backend has a lab of its own, which its tests share.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from faults.backends import HOST_GW, UDP, VXLAN, Backend, over
from lab import Container, Daemon, Host, Lab, wait_for
from support.hosts import asleep

pytestmark = pytest.mark.usefixtures("root")

REPAIR_SECONDS = 2.0


class Change(NamedTuple):
    """``ip`` commands of another program, and what flannelpy logs about each change that it restores."""

    backends: tuple[Backend, ...]
    commands: tuple[str, ...]
    logged: tuple[str, ...]


#: Of the backend's device, and of the route to the other host's subnet.
CHANGES = {
    "deleted": Change((UDP, VXLAN), ("link delete {device}",), ("{device} was removed",)),
    "down": Change((UDP, VXLAN), ("link set {device} down",), ("{device} was set down",)),
    "flushed": Change(
        (UDP, VXLAN),
        ("address flush dev {device}",),
        ("{device} lost its address 11.0.*", "{device} lost the route to 11.0.0.0/16"),
    ),
    "route": Change((UDP, VXLAN), ("route delete 11.0.0.0/16",), ("{device} lost the route to 11.0.0.0/16",)),
    "mtu": Change((UDP, VXLAN), ("link set {device} mtu 1400",), ("{device} got MTU 1400 instead of {mtu}",)),
    "down and flushed": Change(
        (UDP, VXLAN),
        ("link set {device} down", "address flush dev {device}"),
        ("{device} was set down", "{device} lost its address 11.0.*"),
    ),
    "replaced": Change(
        (UDP,),
        ("link delete {device}", "tuntap add {device} mode tun", "link delete {device}"),
        ("{device} was removed",),
    ),
    "settings": Change((VXLAN,), ("link set {device} type vxlan id 1 learning",), ("{device} got other settings",)),
    "lease's route": Change((VXLAN, HOST_GW), ("route delete {subnet}",), ("The route to {subnet} via .*",)),
    "lease's route bent": Change(
        (VXLAN, HOST_GW), ("route replace {subnet} via 172.17.8.1 proto 85",), ("The route to {subnet} via .*",)
    ),
}


class Obstacle(NamedTuple):
    """Commands that make a repair fail, what flannelpy logs about it, and the remedy."""

    commands: tuple[str, ...]
    failures: str
    remedy: str


OBSTACLES: dict[Backend, Obstacle] = {
    UDP: Obstacle(
        (
            "link add rival type veth peer name lavir",
            "link set rival up",
            "link set lavir up",
            "link delete flannel0",
            "route add 11.0.0.0/16 dev rival",
        ),
        "Packets to every peer do not take flannelpy's routes: "
        "route 11.0.0.0/16 dev rival proto boot scope link takes containers' packets; "
        "route 11.0.0.0/16 dev rival proto boot scope link takes the host's packets",
        "link delete rival",
    ),
    VXLAN: Obstacle(
        ("link delete flannel.1", "link add flannel.1 type bridge"),
        "flannel.1 exists and is not a VXLAN device; remove it, or choose another Backend.VNI",
        "link delete flannel.1",
    ),
}


@pytest.fixture
def lab(shared_lab: Callable[[str, int], Lab], backend: Backend) -> Lab:
    lab = shared_lab(backend.config(), 2)
    if not lab.hosts[0].daemons:
        lab.start_daemons("-iface=eth1")
        for host in lab.hosts:
            host.add_container()
            wait_until_repaired(host, backend)
    return lab


@pytest.fixture
def host(lab: Lab) -> Host:
    return lab.hosts[0]


@pytest.fixture
def daemon(host: Host) -> Daemon:
    return host.daemons[-1]


def wait_until_repaired(host: Host, backend: Backend) -> None:
    wait_for(partial(backend.is_as_it_should_be, host), REPAIR_SECONDS, "everything to be as it should be")


def ping(source: Container, target: Container, *options: str) -> subprocess.CompletedProcess[str]:
    return source.run("ping", "-n", "-c", "1", "-W", "1", *options, str(target.address), check=False)


def assert_connected(lab: Lab) -> None:
    """Assert that the containers reach each other."""
    one, other = (host.containers[0] for host in lab.hosts)
    assert ping(one, other).returncode == 0
    assert ping(other, one).returncode == 0


def repairs_of(daemon: Daemon) -> int:
    return len(re.findall("; restored$", daemon.log(), re.MULTILINE))


def sockets(host: Host) -> str:
    return host.run("ss", "-nlupe", "sport = :8285").stdout


def cpu_seconds(daemon: Daemon) -> float:
    fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


@pytest.mark.parametrize(
    ("backend", "change"),
    [
        pytest.param(backend, change, id=f"{backend}-{name}")
        for name, change in CHANGES.items()
        for backend in change.backends
    ],
)
def test_a_change_by_another_program_is_repaired(
    lab: Lab, host: Host, daemon: Daemon, backend: Backend, change: Change
) -> None:
    """The original uses a whole processor, or does nothing, and logs nothing."""
    names = {"device": backend.device, "mtu": backend.mtu, "subnet": lab.hosts[1].subnet()}
    before, repairs = sockets(host), repairs_of(daemon)
    with asleep(daemon):  # or the daemon might see a part of it
        host.configure(*(command.format_map(names) for command in change.commands))
    wait_until_repaired(host, backend)
    assert_connected(lab)
    wait_for(lambda: sockets(host) == before, 5, "the same sockets")  # a child that starts has them for a moment
    for flaw in change.logged:
        daemon.wait_for_log(rf"W\d.*\] {flaw.format_map(names)}; restored$")
    count = repairs + len(change.logged)
    wait_for(lambda: f"repairs: {count}," in daemon.notified[-1], 5, "the count in the status line")
    assert repairs_of(daemon) == count


@over(*OBSTACLES)
def test_a_repair_that_fails_at_first_is_retried_until_it_works(
    lab: Lab, host: Host, daemon: Daemon, backend: Backend
) -> None:
    """Between the old device and the new one no packets travel, so the host must not be ready."""
    ready, obstacle = host.run_dir / "flannel/ready", OBSTACLES[backend]
    with asleep(daemon):  # or the repair might be faster
        host.configure(*obstacle.commands)
    daemon.wait_for_log(rf"E.*\] {re.escape(obstacle.failures)}$")
    wait_for(lambda: not ready.exists(), 2, "the ready file to go")
    host.configure(obstacle.remedy)
    wait_for(ready.exists, 5, "the ready file to come back")
    assert backend.is_as_it_should_be(host)
    assert_connected(lab)


CARRIER = {"udp": ("carrier off", "carrier on"), "vxlan": ("protodown on", "protodown off")}


@over(UDP, VXLAN)
def test_a_device_without_a_carrier_is_named_and_not_ready(host: Host, daemon: Daemon, backend: Backend) -> None:
    """A device without a carrier drops all packets, although it is up and has its address and route."""
    ready, (off, on) = host.run_dir / "flannel/ready", CARRIER[backend.name]
    wait_until_repaired(host, backend)
    host.configure(f"link set {backend.device} {off}")
    daemon.wait_for_log(rf"E.*\] {backend.device} has no carrier, so it drops all packets", 15)
    wait_for(lambda: not ready.exists(), 2, "the ready file to go")
    host.configure(f"link set {backend.device} {on}")
    wait_for(ready.exists, 15, "the ready file to come back")


@pytest.mark.sample("backend", 1)
@pytest.mark.timed
@over(UDP, VXLAN)
def test_an_idle_hour_after_repairs_costs_nothing(host: Host, daemon: Daemon, backend: Backend) -> None:
    host.configure(f"link delete {backend.device}")
    wait_until_repaired(host, backend)
    before, start = cpu_seconds(daemon), time.monotonic()
    wait_for(lambda: time.monotonic() > start + 3, 10, "three seconds to pass")
    assert cpu_seconds(daemon) - before < 0.3


@pytest.mark.sample("backend", 1)
@pytest.mark.timed
@over(UDP, VXLAN)
def test_a_program_that_deletes_the_device_all_the_time_costs_no_processor(
    lab: Lab, host: Host, daemon: Daemon, backend: Backend
) -> None:
    before, end = cpu_seconds(daemon), time.monotonic() + 4
    while time.monotonic() < end:
        host.run("ip", "link", "delete", backend.device, check=False)
    assert cpu_seconds(daemon) - before < 2
    wait_until_repaired(host, backend)
    assert_connected(lab)


@over(UDP, VXLAN)
def test_connections_between_containers_survive(lab: Lab, host: Host, backend: Backend) -> None:
    """The new device delivers the answer to a ping that waits."""
    ours, theirs = (host.containers[0] for host in lab.hosts)
    with (
        theirs.popen("socat", "-u", "TCP-LISTEN:7000", "-") as sink,
        ours.popen(
            "socat", "-u", "-", f"TCP:{theirs.address}:7000,retry=20,interval=0.1", stdin=subprocess.PIPE
        ) as source,
    ):
        assert source.stdin
        assert sink.stdout
        for word in ("before", "between", "after"):
            source.stdin.write(f"{word}\n")
            source.stdin.flush()
            assert sink.stdout.readline() == f"{word}\n"
            host.configure(f"link delete {backend.device}")
        source.stdin.close()


@over(UDP, VXLAN, HOST_GW)
def test_an_external_interface_that_is_down_for_a_while(lab: Lab, host: Host, daemon: Daemon, backend: Backend) -> None:
    """A network restart removes address and routes, and restores them."""
    ready = host.run_dir / "flannel/ready"
    assert ready.exists()
    host.configure("link set eth1 down", "address flush dev eth1")
    daemon.wait_for_log(f"E.*Address {host.public_ip} is gone from eth1: no packets to and from other hosts")
    wait_for(lambda: not ready.exists(), 2, "the ready file to go")
    wait_for(lambda: "not ready: address" in daemon.notified[-1], 2, "the status line")
    host.configure(f"address add {host.public_ip}/24 dev eth1", "link set eth1 up")
    daemon.wait_for_log(f"I.*Address {host.public_ip} is back on eth1")
    wait_for(ready.exists, 2, "the ready file to come back")
    wait_until_repaired(host, backend)
    ours, theirs = (host.containers[0] for host in lab.hosts)
    assert ping(ours, theirs, "-W", "5").returncode == 0


@over(UDP)
def test_another_mtu_of_the_external_interface_is_logged(host: Host, daemon: Daemon) -> None:
    host.configure("link set eth1 mtu 1400")
    daemon.wait_for_log(r"W.*MTU of eth1 changed from 1500 to 1400")
    host.configure("link set eth1 mtu 1500")


@over(UDP)
def test_the_watchdog_gets_keep_alives_while_the_host_is_ready(lab: Lab, host: Host) -> None:
    host.daemons[-1].stop()
    daemon = host.start_daemon("-iface=eth1", env={"WATCHDOG_USEC": "600000"})
    daemon.wait_ready()
    wait_for(lambda: daemon.notified.count("WATCHDOG=1") > 5, 4, "signs of life, five a second")


@over(UDP)
def test_a_frozen_daemon_sends_no_keep_alive(host: Host) -> None:
    daemon = host.daemons[-1]
    with asleep(daemon):
        seen, start = daemon.notified.count("WATCHDOG=1"), time.monotonic()
        wait_for(lambda: time.monotonic() > start + 1, 5, "a second to pass")
        assert daemon.notified.count("WATCHDOG=1") <= seen + 1  # one may have been in transit
    seen = daemon.notified.count("WATCHDOG=1")
    wait_for(lambda: daemon.notified.count("WATCHDOG=1") > seen, 5, "a sign of life")


@over(UDP)
def test_a_leftover_persistent_device_is_removed_at_start(host: Host, backend: Backend) -> None:
    host.daemons[-1].stop()
    address = f"{host.subnet().network_address}/16"
    host.configure("tuntap add flannel3 mode tun", f"address add {address} dev flannel3", "link set flannel3 up")
    daemon = host.start_daemon("-iface=eth1")
    daemon.wait_ready()
    assert re.search(r"W.*Removed leftover device flannel3$", daemon.log(), re.MULTILINE)
    assert "flannel3" not in host.run("ip", "link").stdout
    wait_until_repaired(host, backend)


@over(UDP)
def test_a_permanent_new_address_ends_the_daemon(lab: Lab, host: Host) -> None:
    """This test is the last, because the host has another address afterwards."""
    daemon = host.daemons[-1]
    host.configure("address flush dev eth1", "address add 172.17.8.199/24 dev eth1")
    assert daemon.process.wait(60) == 1
    assert re.search(
        rf"E.*eth1 has 172\.17\.8\.199 now instead of {host.public_ip}: restart flannelpy to use it$",
        daemon.log(),
        re.MULTILINE,
    )
    assert not (host.run_dir / "flannel/ready").exists()
