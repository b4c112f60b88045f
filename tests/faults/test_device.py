"""Somebody changes our device, or the interface below: repaired within two seconds, and the socket lives on."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Container, Daemon, Host, Lab, wait_for

pytestmark = pytest.mark.usefixtures("root")

REPAIR_SECONDS = 2.0
DEVICE = re.compile(
    r"flannel0: <\S*\bUP,LOWER_UP> mtu 1472 .*qlen 1000\n.*\n\s+inet (11\.0\.\d+\.0)/16 scope global flannel0\n",
    re.DOTALL,
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(hosts=2) as lab:
        lab.put_config()
        lab.start_daemons("-iface=eth1")
        for host in lab.hosts:
            host.add_container()
        yield lab


@pytest.fixture
def host(lab: Lab) -> Host:
    return lab.hosts[0]


@pytest.fixture
def daemon(host: Host) -> Daemon:
    return host.daemons[-1]


def ping(source: Container, target: Container, *options: str) -> subprocess.CompletedProcess[str]:
    return source.run("ping", "-n", "-c", "1", "-W", "1", *options, str(target.address), check=False)


def as_it_should_be(host: Host) -> bool:
    device = DEVICE.search(host.run("ip", "address", "show", "flannel0", check=False).stdout)
    route = host.run("ip", "route", "show", "11.0.0.0/16").stdout
    return (
        device is not None
        and route.strip() == f"11.0.0.0/16 dev flannel0 proto kernel scope link src {device[1]}"
        and host.run("cat", "/proc/sys/net/ipv4/conf/flannel0/accept_local").stdout == "1\n"
    )


def sockets(host: Host) -> str:
    return host.run("ss", "-nlupe", "sport = :8285").stdout


def cpu_seconds(daemon: Daemon) -> float:
    fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


@pytest.mark.parametrize(
    ("commands", "said"),
    [
        (["link delete flannel0"], ["was removed"]),
        (["link set flannel0 down"], ["was set down"]),
        (["address flush dev flannel0"], ["lost its address 11.0.*", "lost the route to 11.0.0.0/16"]),
        (["route delete 11.0.0.0/16"], ["lost the route to 11.0.0.0/16"]),
        (["link set flannel0 mtu 1400"], ["got MTU 1400 instead of 1472"]),
        (["link set flannel0 down", "address flush dev flannel0"], ["was set down", "lost its address 11.0.*"]),
        (["link delete flannel0", "tuntap add flannel0 mode tun", "link delete flannel0"], ["was removed"]),
    ],
    ids=["deleted", "down", "flushed", "route", "mtu", "down and flushed", "replaced"],
)
def test_it_is_repaired(lab: Lab, host: Host, daemon: Daemon, commands: list[str], said: list[str]) -> None:
    """Regression against the original, which burns a processor, or does nothing, and says nothing."""
    before, repairs = sockets(host), daemon.log().count("put right")
    host.configure(*commands)
    wait_for(lambda: as_it_should_be(host), REPAIR_SECONDS, "the device to be as it should be")
    ours, theirs = (host.containers[0] for host in lab.hosts)
    assert ping(ours, theirs).returncode == 0
    assert ping(theirs, ours).returncode == 0
    assert sockets(host) == before
    for flaw in said:
        daemon.wait_for_log(rf"W\d.*\] flannel0 {flaw}: put right$")
    wait_for(lambda: f"repairs: {repairs + len(said)}," in daemon.notified[-1], 5, "the count in the status line")
    assert daemon.log().count("put right") == repairs + len(said)


def test_a_repair_that_fails_at_first_is_tried_until_it_works(lab: Lab, host: Host, daemon: Daemon) -> None:
    """Between the old device and the new one nothing is carried: that must not be taken for all being well."""
    ready = host.run_dir / "flannel/ready"
    host.configure(
        "link add rival type veth peer name lavir",
        "link set rival up",
        "link set lavir up",
        "route add 11.0.0.0/16 dev rival metric 50",
        "link delete flannel0",
    )
    daemon.wait_for_log(r"E.*\] the route to 11\.0\.0\.0/16 leads to rival instead of flannel0 alone; remove it$")
    wait_for(lambda: not ready.exists(), 2, "the ready file to go")
    host.configure("link delete rival")
    wait_for(ready.exists, 5, "the ready file to come back")
    assert as_it_should_be(host)
    ours, theirs = (host.containers[0] for host in lab.hosts)
    assert ping(ours, theirs).returncode == 0
    assert ping(theirs, ours).returncode == 0


def test_an_idle_hour_after_repairs_costs_nothing(host: Host, daemon: Daemon) -> None:
    host.configure("link delete flannel0")
    wait_for(lambda: as_it_should_be(host), REPAIR_SECONDS, "the device to be as it should be")
    before, start = cpu_seconds(daemon), time.monotonic()
    wait_for(lambda: time.monotonic() > start + 3, 10, "three seconds to pass")
    assert cpu_seconds(daemon) - before < 0.3


def test_somebody_who_deletes_it_all_the_time_costs_no_processor(lab: Lab, host: Host, daemon: Daemon) -> None:
    before, end = cpu_seconds(daemon), time.monotonic() + 4
    while time.monotonic() < end:
        host.run("ip", "link", "delete", "flannel0", check=False)
    assert cpu_seconds(daemon) - before < 2
    wait_for(lambda: as_it_should_be(host), REPAIR_SECONDS, "the device to be as it should be")
    ours, theirs = (host.containers[0] for host in lab.hosts)
    assert ping(ours, theirs).returncode == 0


def test_connections_between_containers_live_on(lab: Lab, host: Host) -> None:
    """A ping that waits has its answer delivered by the new device."""
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
            host.configure("link delete flannel0")
        source.stdin.close()


def test_an_external_interface_that_is_down_for_a_while(lab: Lab, host: Host, daemon: Daemon) -> None:
    """A network restart, which takes address and routes away and brings them back."""
    ready = host.run_dir / "flannel/ready"
    assert ready.exists()
    host.configure("link set eth1 down", "address flush dev eth1")
    daemon.wait_for_log(f"E.*Address {host.public_ip} is gone from eth1: no packets to and from other hosts")
    wait_for(lambda: not ready.exists(), 2, "the ready file to go")
    wait_for(lambda: "not ready: address" in daemon.notified[-1], 2, "the status line")
    host.configure(f"address add {host.public_ip}/24 dev eth1", "link set eth1 up")
    daemon.wait_for_log(f"I.*Address {host.public_ip} is back on eth1")
    wait_for(ready.exists, 2, "the ready file to come back")
    ours, theirs = (host.containers[0] for host in lab.hosts)
    assert ping(ours, theirs, "-W", "5").returncode == 0


def test_another_mtu_below_is_said(host: Host, daemon: Daemon) -> None:
    host.configure("link set eth1 mtu 1400")
    daemon.wait_for_log(r"W.*MTU of eth1 is 1400 now, it was 1500 at the start")
    host.configure("link set eth1 mtu 1500")


def test_the_watchdog_gets_signs_of_life_while_all_is_well(lab: Lab, host: Host) -> None:
    host.daemons[-1].stop()
    daemon = host.start_daemon("-iface=eth1", env={"WATCHDOG_USEC": "600000"})
    daemon.wait_ready()
    wait_for(lambda: daemon.notified.count("WATCHDOG=1") > 5, 4, "signs of life, five a second")


def test_a_frozen_daemon_gives_no_sign_of_life(host: Host) -> None:
    daemon = host.daemons[-1]
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        wait_for(lambda: Path(f"/proc/{daemon.pid}/stat").read_text().split()[2] == "T", 5, "it to stop")
        seen, start = daemon.notified.count("WATCHDOG=1"), time.monotonic()
        wait_for(lambda: time.monotonic() > start + 1, 5, "a second to pass")
        assert daemon.notified.count("WATCHDOG=1") <= seen + 1  # one may have been on its way
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    seen = daemon.notified.count("WATCHDOG=1")
    wait_for(lambda: daemon.notified.count("WATCHDOG=1") > seen, 5, "a sign of life")


def test_a_leftover_persistent_device_is_removed_at_start(lab: Lab, host: Host) -> None:
    host.daemons[-1].stop()
    host.configure("tuntap add flannel3 mode tun", "address add 11.0.59.0/16 dev flannel3", "link set flannel3 up")
    daemon = host.start_daemon("-iface=eth1")
    daemon.wait_ready()
    assert re.search(r"W.*Removed leftover device flannel3$", daemon.log(), re.MULTILINE)
    assert "flannel3" not in host.run("ip", "link").stdout
    assert as_it_should_be(host)


def test_another_address_for_good_ends_it(lab: Lab, host: Host) -> None:
    """Last, since it takes its time and the host is another one afterwards."""
    daemon = host.daemons[-1]
    host.configure("address flush dev eth1", "address add 172.17.8.199/24 dev eth1")
    assert daemon.process.wait(60) == 1
    assert re.search(
        rf"E.*eth1 has 172\.17\.8\.199 now instead of {host.public_ip}: flannelpy has to start anew$",
        daemon.log(),
        re.MULTILINE,
    )
    assert not (host.run_dir / "flannel/ready").exists()
