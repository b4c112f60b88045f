"""-cleanup removes what a host has of ours, and with -release its lease; nothing else."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator

import pytest
from lab import Host, Lab

pytestmark = pytest.mark.usefixtures("root")

LINGERING = (
    "tuntap add flannel0 mode tun",
    "address add 11.0.59.0/16 dev flannel0",
    "link set flannel0 up",
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(hosts=1) as lab:
        lab.put_config()
        yield lab


@pytest.fixture
def host(lab: Lab) -> Iterator[Host]:
    """One that has run for a while, with everything that it can have left behind; no daemon outlives a test of it."""
    [host] = lab.hosts
    host.run("iptables", "-t", "nat", "-F")
    host.run("iptables", "-t", "nat", "-A", "POSTROUTING", "-s", "10.9.0.0/16", "-j", "MASQUERADE")
    daemon = host.start_daemon("-iface=eth1", "-ip-masq")
    daemon.wait_ready()
    daemon.stop()
    yield host
    for daemon in host.daemons:
        if daemon.process.poll() is None:
            daemon.kill()


def clean_up(host: Host, *flags: str, host_id: str = "host1") -> tuple[int, list[str]]:
    """Exit code, and the messages without their heads."""
    given = {"-etcd-endpoints": host.lab.etcd.url, "-iface": "eth1", "-host-id": host_id}
    argv = [sys.executable, "-P", "-m", "flannelpy", *(f"{name}={value}" for name, value in given.items()), *flags]
    done = host.run(*argv, "-cleanup", check=False)
    return done.returncode, [line.split("] ", 1)[1] for line in done.stderr.splitlines()]


def test_everything_goes_and_what_is_others_stays(lab: Lab, host: Host) -> None:
    host.configure(*LINGERING)
    code, said = clean_up(host)
    assert code == 0
    assert said == [
        "Removed leftover device flannel0",
        "Removed iptables rule: POSTROUTING -j FLANNEL",
        "Removed iptables rule: chain FLANNEL",
        "Removed /run/flannel/subnet.env",
    ]
    assert "flannel" not in host.run("ip", "link").stdout + host.run("ip", "route").stdout
    rules = host.run("iptables", "-t", "nat", "-S").stdout
    assert "FLANNEL" not in rules
    assert "-A POSTROUTING -s 10.9.0.0/16 -j MASQUERADE" in rules
    assert list((host.run_dir / "flannel").glob("*")) == []
    assert len(lab.leases()) == 1
    assert clean_up(host) == (0, [])


def test_while_it_runs_nothing_is_removed(host: Host) -> None:
    daemon = host.start_daemon("-iface=eth1")
    daemon.wait_ready()
    # Not IPv6: the kernel gives the device addresses, and needs a moment to find them unique.
    before = host.run("ip", "-o", "-4", "address").stdout
    said = "a flannelpy runs here with -subnet-file /run/flannel/subnet.env: stop it first"
    assert clean_up(host, "-release") == (1, [said])
    assert host.run("ip", "-o", "-4", "address").stdout == before
    assert (host.run_dir / "flannel/subnet.env").exists()
    daemon.stop()


def test_a_device_that_is_down_may_be_in_use_of_another_daemon(host: Host) -> None:
    daemon = host.start_daemon("-iface=eth1")
    daemon.wait_ready()
    daemon.process.send_signal(signal.SIGSTOP)  # or it would be up again at once
    host.configure("link set flannel0 down")
    assert clean_up(host, "-subnet-file=/run/of-another.env") == (
        1,
        ["flannel0 is in use: stop flannelpy, then clean up"],
    )
    daemon.process.send_signal(signal.SIGCONT)
    daemon.stop()


def test_release_gives_the_lease_back(lab: Lab, host: Host) -> None:
    subnet = host.subnet()
    code, said = clean_up(host, "-release")
    assert (code, said[-1]) == (0, f"Released the lease of {subnet}")
    assert lab.leases() == []
    code, said = clean_up(host, "-release")
    assert (code, said[-1]) == (0, f"There is no lease with our public IP {host.public_ip}")


def test_release_leaves_what_is_not_ours(lab: Lab, host: Host) -> None:
    [lease] = lab.leases()
    subnet = host.subnet()
    code, said = clean_up(host, "-release", host_id="another")
    assert (code, said[-1]) == (0, f"Leaving the lease of {subnet} alone: it is another host's (host1)")
    lab.etcd_request("PUT", lease["key"], value=json.dumps({"PublicIP": str(host.public_ip)}))
    code, said = clean_up(host, "-release")
    assert (code, said[-1]) == (0, f"Leaving the reservation of {subnet} alone: it is the operator's")
    assert len(lab.leases()) == 1
    lab.etcd_request("DELETE", lease["key"])


def test_an_etcd_that_does_not_answer_is_said(lab: Lab, host: Host) -> None:
    code, said = clean_up(host, "-release", "-etcd-endpoints=http://127.0.0.1:1")
    assert (code, said[-1]) == (1, "http://127.0.0.1:1: connection refused")
    assert len(lab.leases()) == 1
