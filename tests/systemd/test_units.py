"""flannelpy's units under a real systemd, beside Debian's Docker, firewalld and ufw.

One host of the lab boots; the other host has a daemon as in all labs.  The tests share the booted system.  Each test
leaves flannelpy, Docker and one container running.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Interface
from os import kill
from pathlib import Path

import pytest
from lab import CONFIG, ETCD_PREFIX, Container, Lab, wait_for
from support.systemd_machine import PROJECT, Machine

PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "kmod", "iptables", "iproute2", "iputils-ping", "python3-venv"),
    *("docker.io", "busybox-static", "firewalld", "ufw"),
)
DEFAULTS = "FLANNELD_IFACE=eth1\nFLANNELD_ETCD_ENDPOINTS=http://172.17.8.1:2379\n"
BOTH = "flannelpy.service docker.service"
CAPABILITIES = f"{1 << 12 | 1 << 13:016x}"  # CAP_NET_ADMIN and CAP_NET_RAW in include/uapi/linux/capability.h


def pasted() -> list[str]:
    """Return the manual's commands for systemd."""
    sections = re.split(r"^## ", (PROJECT / "docs/manual.md").read_text(), flags=re.MULTILINE)
    [systemd] = [text for text in sections if text.startswith("systemd\n")]
    commands = re.findall(r"^# (.*)$", systemd, re.MULTILINE)
    assert len(commands) > 3
    return commands


class World:
    """The booted host, and the lab's other host with a container."""

    def __init__(self, lab: Lab, machine: Machine, other: Container) -> None:
        self.lab = lab
        self.machine = machine
        self.other = other

    def subnet(self) -> IPv4Interface:
        """Return FLANNEL_SUBNET of the subnet file, which is docker0's address."""
        return IPv4Interface(self.machine.sh(". /run/flannel/subnet.env; echo $FLANNEL_SUBNET").strip())

    def is_up(self, subnet: IPv4Interface | None = None) -> bool:
        """Return whether both units run, with ``subnet`` unless that is None."""
        states = self.machine.systemctl("is-active", *BOTH.split(), check=False).split()
        return states == ["active", "active"] and (subnet is None or subnet == self.subnet())

    def wait_until_up(self, deadline: float = 30) -> None:
        try:
            wait_for(self.is_up, deadline, "flannelpy and Docker to run", pause=0.1)
        except TimeoutError as error:
            error.add_note(self.machine.journal()[-8000:])
            raise

    def pid(self, unit: str = "flannelpy") -> int:
        return int(self.machine.show(unit, "MainPID"))

    def log_of_daemon(self) -> str:
        """Return what the daemon that runs has logged."""
        return self.machine.run("journalctl", "--no-pager", f"_PID={self.pid()}").stdout

    def restart_docker(self) -> None:
        """Restart Docker, also if it was started more often than systemd allows in a minute."""
        self.machine.systemctl("reset-failed", "docker")
        self.machine.systemctl("restart", "docker")

    def set_docker_options(self, options: str) -> None:
        """Restart Docker with these options in Debian's /etc/default/docker."""
        self.machine.sh(f"printf 'DOCKER_OPTS=\"%s\"\\n' {shlex.quote(options)} >/etc/default/docker")
        self.restart_docker()

    def signal(self, number: int) -> None:
        """Send the daemon a signal."""
        kill(self.machine.outside(self.pid()), number)

    def set_defaults(self, text: str) -> None:
        """Write /etc/default/flannelpy."""
        self.machine.sh(f"printf %s {shlex.quote(text)} >/etc/default/flannelpy")

    def container(self) -> dict[str, str]:
        """Return what identifies a run of the container, and its address."""
        state = json.loads(self.machine.run("docker", "inspect", "one").stdout)[0]
        address: str = state["NetworkSettings"]["IPAddress"]
        return {"started": state["State"]["StartedAt"], "pid": str(state["State"]["Pid"]), "address": address}

    def reaches(self, count: int = 1) -> bool:
        """Return whether the containers of both hosts get answers from each other over the overlay."""
        target, address = str(self.other.address), self.container()["address"]
        there = self.machine.run(
            *("docker", "exec", "one", "busybox", "ping", f"-c{count}", "-W1", target), check=False
        ).stdout
        back = self.other.run("ping", "-n", f"-c{count}", "-W1", address, check=False).stdout
        return "ttl=60 " in there and "ttl=60 " in back

    def wait_for_answers(self, deadline: float = 20) -> None:
        try:
            wait_for(self.reaches, deadline, "pings to be answered", pause=0.1)
        except TimeoutError as error:
            error.add_note(self.machine.journal("flannelpy")[-4000:])
            error.add_note(self.machine.sh("ip -brief address; ip route; iptables-save -c; nft list ruleset"))
            raise

    @contextmanager
    def same_docker(self) -> Iterator[None]:
        """Assert that the block changes neither Docker, nor its container, nor the subnet, and that packets flow."""
        before = self.pid("docker"), self.container(), self.subnet()
        yield
        self.wait_until_up()
        self.wait_for_answers()
        assert (self.pid("docker"), self.container(), self.subnet()) == before


def start_container(machine: Machine) -> None:
    """Start a container that Docker restarts whenever dockerd starts."""
    machine.sh(
        "mkdir -p /tmp/image/bin && cp /bin/busybox /tmp/image/bin && tar -C /tmp/image -c . | docker import - tiny"
    )
    machine.sh("docker run --detach --name one --restart=always tiny busybox sleep 100000")


@pytest.fixture(scope="module")
def world(root: None) -> Iterator[World]:
    """Run the manual's commands on a host where Docker runs already and nothing forwards."""
    first, *rest = pasted()
    with Lab(hosts=2) as lab:
        lab.put_config()
        lab.hosts[1].start_daemon("-iface=eth1").wait_ready()
        lab.hosts[0].run("sysctl", "-w", "net.ipv4.ip_forward=0")
        started = time.monotonic()
        with Machine(lab.hosts[0], PACKAGES, ["systemctl --quiet disable firewalld ufw", first]) as machine:
            report("booted with Docker", started)
            world = World(lab, machine, lab.hosts[1].add_container())
            world.set_defaults(DEFAULTS)
            try:
                for command in rest:
                    machine.sh(f"cd /usr/src/flannelpy; {command}")
                world.wait_until_up()
                start_container(machine)
            except Exception as error:
                error.add_note(machine.journal()[-8000:])
                raise
            yield world


def report(what: str, started: float) -> None:
    print(f"  {what}: {time.monotonic() - started:.1f} s", flush=True)


def test_the_manuals_commands_connect_containers_though_nothing_forwarded_before(world: World) -> None:
    world.wait_for_answers()
    assert world.machine.sh("cat /proc/sys/net/ipv4/ip_forward").strip() == "1"
    options = world.machine.sh("cat /run/docker_opts.env")
    assert f"--bip={world.subnet()}" in options
    arguments = world.machine.sh(f"tr '\\0' ' ' </proc/{world.pid('docker')}/cmdline")
    assert f"--bip={world.subnet()} --mtu=1472 --ip-masq=true" in arguments


def test_systemd_finds_no_fault_in_the_units(world: World) -> None:
    verified = world.machine.run("systemd-analyze", "verify", *BOTH.split())
    complaints = (verified.stdout + verified.stderr).splitlines()
    assert not [line for line in complaints if "flannel" in line]


def test_the_daemon_is_ready_in_its_sandbox(world: World) -> None:
    machine = world.machine
    status = Path(f"/proc/{machine.outside(world.pid())}/status").read_text()
    powers = dict(re.findall(r"^(\w+):\s*(.*)$", status, re.MULTILINE))
    uid = machine.sh("id -u flannelpy").strip()
    assert uid != "0"
    assert powers["Uid"].split() == [uid] * 4
    assert {powers[key] for key in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {CAPABILITIES}
    assert (powers["NoNewPrivs"], powers["Seccomp"]) == ("1", "2")
    overall = machine.run("systemd-analyze", "security", "flannelpy").stdout.splitlines()[-1]
    print(f"  {overall.strip()}")
    assert float(re.findall(r"\d+\.\d+", overall)[0]) < 3
    assert machine.show("flannelpy", "StatusText").startswith(f"subnet {world.subnet().network} ")
    assert machine.sh("cat /run/flannel/ready; id -u -n flannelpy").strip() == "flannelpy"


def test_a_restart_keeps_docker_and_its_containers(world: World) -> None:
    with world.same_docker():
        address = world.container()["address"]
        ping = world.other.popen("ping", "-n", "-i0.2", "-c25", address)
        wait_for(lambda: ping.stdout and "bytes from" in ping.stdout.readline(), 10, "the first answer")
        started = time.monotonic()
        world.machine.systemctl("restart", "flannelpy")
        report("restart", started)
        statistics = ping.communicate(timeout=30)[0]
        print(f"  {re.findall('.* packet loss', statistics)[0]}")
    assert "Docker's options have changed" not in world.machine.journal("flannelpy")


def test_docker_runs_on_while_flannelpy_is_stopped(world: World) -> None:
    with world.same_docker():
        world.machine.systemctl("stop", "flannelpy")
        assert world.machine.systemctl("is-active", "docker") == "active"
        world.machine.systemctl("start", "flannelpy")


def test_an_upgrade_keeps_containers(world: World) -> None:
    """The new version is installed while the old version runs, and its units replace the old units."""
    with world.same_docker():
        old = world.pid()
        pip = "CC=/bin/false /opt/flannelpy/bin/pip install --force-reinstall --no-deps ."  # in seconds
        world.machine.sh_with_internet(f"cd /usr/src/flannelpy; {pip}", timeout=300)
        for command in pasted()[1:-1]:
            world.machine.sh(f"cd /usr/src/flannelpy; {command}")
        assert world.pid() == old
        world.machine.sh("systemctl daemon-reload && systemctl restart flannelpy")
        assert world.pid() != old


def test_a_daemon_that_is_killed_is_back_with_its_subnet(world: World) -> None:
    with world.same_docker():
        old, started = world.pid(), time.monotonic()
        world.signal(signal.SIGKILL)
        wait_for(lambda: world.pid() not in {0, old}, 15, "another daemon", pause=0.1)
        world.wait_until_up()
        report("back after SIGKILL", started)


def test_the_watchdog_ends_a_daemon_that_hangs(world: World) -> None:
    with world.same_docker():
        old, started = world.pid(), time.monotonic()
        world.signal(signal.SIGSTOP)
        wait_for(lambda: world.pid() not in {0, old}, 100, "another daemon", pause=0.5)
        world.wait_until_up()
        report("back after SIGSTOP", started)
    assert "Watchdog timeout" in world.machine.journal("flannelpy")


def test_a_wrong_flag_is_not_retried(world: World) -> None:
    with world.same_docker():
        world.set_defaults(f"{DEFAULTS}FLANNELD_SUBNET_LEASE_TTL=nonsense\n")
        assert world.machine.run("systemctl", "restart", "flannelpy", check=False).returncode
        assert world.machine.show("flannelpy", "ExecMainStatus") == "2"
        assert world.machine.show("flannelpy", "SubState") == "failed"  # and not auto-restart
        world.set_defaults(DEFAULTS)
        world.machine.systemctl("start", "flannelpy")


def test_docker_follows_a_lease_that_was_lost(world: World) -> None:
    """flannelpy exits with 3 and leases another subnet; Docker is restarted with it, and restarts the container."""
    old, docker, started = world.subnet(), world.pid("docker"), time.monotonic()
    key = str(old.network).replace("/", "-")
    world.lab.etcd_request("PUT", f"{ETCD_PREFIX}/subnets/{key}", value='{"PublicIP":"172.17.8.250"}', ttl="3600")

    def follows() -> bool:
        """Without a lease there is no subnet file for a moment, and docker0 still has the old subnet."""
        leased = world.machine.run("sed", "-n", "s/^FLANNEL_SUBNET=//p", "/run/flannel/subnet.env", check=False).stdout
        addresses = world.machine.run("ip", "-brief", "address", "show", "docker0").stdout
        return world.is_up() and leased.strip() not in ("", str(old)) and f" {leased.strip()} " in addresses

    wait_for(follows, 60, "Docker with another subnet", pause=0.2)
    world.wait_for_answers()
    report("on another subnet", started)
    assert world.pid("docker") != docker
    journal = world.machine.journal("flannelpy")
    assert "status=3" in journal
    assert journal.count("Docker's options have changed") == 1


def test_a_docker_that_failed_without_a_subnet_is_started_when_there_is_one(world: World) -> None:
    """The interface appears late: flannelpy fails repeatedly, and Docker more often than systemd allows."""
    world.machine.systemctl("stop", "docker.socket", *BOTH.split())
    world.machine.sh("rm /run/flannel/subnet.env")
    world.set_defaults(DEFAULTS.replace("eth1", "eth9"))
    assert world.machine.run("systemctl", "start", "docker", check=False, timeout=90).returncode
    wait_for(
        lambda: world.machine.systemctl("is-active", "docker", check=False) == "failed",
        30,
        "a failed Docker",
        pause=0.1,
    )
    assert "does flannelpy run?" in world.machine.journal("docker")
    world.set_defaults(DEFAULTS)
    started = time.monotonic()
    world.wait_until_up()
    report("Docker after a start that failed", started)
    world.wait_for_answers()


def test_a_docker_that_was_stopped_by_hand_stays_stopped(world: World) -> None:
    world.machine.systemctl("stop", "docker.socket", "docker.service")
    world.machine.systemctl("restart", "flannelpy")
    assert world.machine.systemctl("is-active", "docker", check=False) == "inactive"
    world.machine.systemctl("start", "docker")
    world.wait_until_up()
    world.wait_for_answers()


def test_docker_keeps_the_options_of_its_defaults_file(world: World) -> None:
    world.set_docker_options("--label=lab=yes --debug")
    assert "lab=yes" in world.machine.run("docker", "info").stdout
    world.wait_for_answers()
    world.set_docker_options("")
    world.wait_for_answers()


def test_with_live_restore_containers_survive_a_restart_of_docker(world: World) -> None:
    world.set_docker_options("--live-restore")
    before = world.container()
    world.restart_docker()
    assert world.container() == before
    world.wait_for_answers()
    world.set_docker_options("")
    world.wait_for_answers()


def test_a_config_with_another_mtu_restarts_docker_once(world: World) -> None:
    docker = world.pid("docker")
    world.lab.put_config(CONFIG.replace("}", ',"Backend":{"Type":"vxlan"}}'))
    world.machine.systemctl("restart", "flannelpy")
    wait_for(lambda: world.pid("docker") not in {0, docker} and world.is_up(), 30, "another Docker", pause=0.1)
    assert "--mtu=1450" in world.machine.sh("cat /run/docker_opts.env")
    docker = world.pid("docker")
    world.machine.systemctl("restart", "flannelpy")
    assert world.pid("docker") == docker
    world.lab.put_config()
    world.machine.systemctl("restart", "flannelpy")
    wait_for(lambda: world.pid("docker") not in {0, docker} and world.is_up(), 30, "the first Docker's", pause=0.1)
    world.wait_for_answers()


def test_with_ufw_packets_between_containers_pass(world: World) -> None:
    world.machine.sh("ufw --force enable")
    try:
        assert "-P FORWARD DROP" in world.machine.sh("iptables -S FORWARD")
        world.wait_for_answers()
    finally:
        world.machine.sh("ufw disable")
    world.wait_for_answers()


def test_firewalld_is_named_and_the_command_in_the_log_lets_packets_pass(world: World) -> None:
    command = re.compile(r"firewall-cmd .* && firewall-cmd --reload")
    world.machine.systemctl("start", "firewalld")
    try:
        wait_for(lambda: "table inet firewalld" in world.machine.sh("nft list tables"), 20, "the table", pause=0.2)
        wait_for(lambda: command.search(world.machine.journal("flannelpy")), 30, "the remedy in the log", pause=0.5)
        assert not world.reaches()
        for line in command.findall(world.machine.journal("flannelpy"))[:1]:
            world.machine.sh(line)
        world.wait_for_answers()
    finally:
        world.machine.systemctl("stop", "firewalld")
        world.restart_docker()
    world.wait_for_answers()


def test_both_units_start_at_boot(world: World) -> None:
    """The host forwards nothing, and has no leftovers."""
    machine = world.machine
    machine.sh("docker rm --force one")
    machine.systemctl("stop", "docker.socket", *BOTH.split())
    machine.sh("ip link delete docker0; nft flush ruleset; rm /run/flannel/subnet.env /run/docker_opts.env")
    world.lab.hosts[0].run("sysctl", "-w", "net.ipv4.ip_forward=0")
    started = time.monotonic()
    machine.systemctl("start", "multi-user.target")
    world.wait_until_up()
    report("up with multi-user.target", started)
    start_container(machine)
    world.wait_for_answers()
    assert machine.sh("cat /proc/sys/net/ipv4/ip_forward").strip() == "1"


# -datapath=auto, by the drop-in


@contextmanager
def in_kernel(world: World) -> Iterator[None]:
    """Have the kernel of both hosts carry packets, as the manual describes it, during the block."""
    machine, other = world.machine, world.lab.hosts[1]
    machine.sh("cp -r /usr/src/flannelpy/scripts/systemd/flannelpy.service.d /etc/systemd/system")
    world.set_defaults(f"{DEFAULTS}FLANNELD_DATAPATH=auto\n")
    machine.sh("systemctl daemon-reload && systemctl restart flannelpy")
    other.daemons[-1].stop()
    other.start_daemon("-iface=eth1", "-datapath=kernel").wait_ready()
    try:
        wait_for(lambda: "Datapath kernel: " in world.log_of_daemon(), 30, "the kernel of the booted host", pause=0.2)
        other.daemons[-1].wait_for_datapath()
        world.wait_for_answers()
        yield
    finally:
        machine.sh("rm -r /etc/systemd/system/flannelpy.service.d")
        world.set_defaults(DEFAULTS)
        machine.sh("systemctl daemon-reload && systemctl restart flannelpy")
        other.daemons[-1].stop()
        other.start_daemon("-iface=eth1").wait_ready()
    world.wait_for_answers()
    assert "flannel0-gro" not in machine.sh("ip link")


def test_with_the_drop_in_no_packet_is_lost_while_the_service_restarts(world: World) -> None:
    with in_kernel(world):
        machine = world.machine
        [backend] = re.findall("backend: .*", machine.sh("/opt/flannelpy/bin/flannelpy status"))
        assert backend.endswith("datapath kernel")
        index = machine.sh("cat /sys/class/net/flannel0/ifindex")
        for end in ("systemctl restart flannelpy", "systemctl kill --signal=KILL --kill-whom=main flannelpy"):
            old = world.pid()
            ping = world.other.popen("ping", "-nq", "-i0.05", "-c200", "-W1", world.container()["address"])
            machine.sh(end)
            wait_for(lambda old=old: world.pid() not in {0, old}, 15, "another daemon", pause=0.1)  # type: ignore[misc]
            world.wait_until_up()
            assert "200 received" in ping.communicate(timeout=30)[0]
            assert machine.sh("cat /sys/class/net/flannel0/ifindex") == index


def test_with_the_drop_in_a_stopped_service_leaves_no_device_and_no_traffic(world: World) -> None:
    with in_kernel(world):
        world.machine.systemctl("stop", "flannelpy")
        wait_for(lambda: "flannel0:" not in world.machine.sh("ip link"), 5, "the removal of the device")
        assert not world.reaches()
        world.machine.sh("/opt/flannelpy/bin/flannelpy cleanup; ! tc qdisc show dev eth1 | grep clsact")
