"""A lease of seconds, and a daemon that sleeps through its end."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Daemon, Host, Lab, wait_for

pytestmark = pytest.mark.usefixtures("root")

LEASE_TTL = 5


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(hosts=1) as lab:
        lab.put_config()
        yield lab


@pytest.fixture
def host(lab: Lab) -> Host:
    return lab.hosts[0]


@pytest.fixture
def daemon(host: Host) -> Daemon:
    daemon = host.start_daemon("-iface=eth1", f"-subnet-lease-ttl={LEASE_TTL}s")
    daemon.wait_ready()
    return daemon


def freeze(daemon: Daemon) -> None:
    daemon.process.send_signal(signal.SIGSTOP)
    wait_for(lambda: Path(f"/proc/{daemon.pid}/stat").read_text().split()[2] == "T", 5, "the daemon to stop")


def thaw(daemon: Daemon) -> None:
    daemon.process.send_signal(signal.SIGCONT)


def test_its_time_is_the_flags_and_it_is_renewed_in_time(lab: Lab, host: Host, daemon: Daemon) -> None:
    [first] = lab.leases()
    assert first["ttl"] in (LEASE_TTL - 1, LEASE_TTL)
    daemon.wait_for_log(r"Lease renewed, new expiration: ")
    [renewed] = lab.leases()
    assert renewed["key"] == first["key"]
    assert renewed["createdIndex"] < renewed["modifiedIndex"]


def test_a_daemon_that_slept_through_the_end_takes_its_subnet_back(lab: Lab, host: Host, daemon: Daemon) -> None:
    """As a virtual machine that was suspended; the original notices nothing until its next renewal."""
    subnet = host.subnet()
    freeze(daemon)
    wait_for(lambda: not lab.leases(), LEASE_TTL + 5, "the lease to run out", pause=0.2)
    thaw(daemon)
    wait_for(lab.leases, 3, "the lease to be back")
    daemon.wait_for_log(rf"W.*Own lease {subnet} was deleted or has expired, taking it back")
    assert host.subnet() == subnet
    assert daemon.process.poll() is None


def test_a_daemon_whose_subnet_was_given_away_while_it_slept_leaves_at_once(
    lab: Lab, host: Host, daemon: Daemon
) -> None:
    [lease] = lab.leases()
    freeze(daemon)
    wait_for(lambda: not lab.leases(), LEASE_TTL + 5, "the lease to run out", pause=0.2)
    lab.etcd_request("PUT", lease["key"], value=json.dumps({"PublicIP": "172.17.8.200"}), ttl="60")
    thaw(daemon)
    assert daemon.process.wait(3) == 3
    assert "is held by 172.17.8.200 now, not by us" in daemon.log()
    assert "flannel0" not in host.run("ip", "link").stdout
    assert list((host.run_dir / "flannel").glob("*")) == []
