"""Two hosts with one public IP, as on VirtualBox, where every host's eth0 has 10.0.2.15."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from lab import Daemon, Host, Lab, wait_for

from flannelpy.subnet.renewal import CLAIM_SECONDS

pytestmark = pytest.mark.usefixtures("root")

SHARED = "-public-ip=192.0.2.15"
NOT_UNIQUE = r"public IP 192\.0\.2\.15 is not unique: .*; give each its own by -iface or -public-ip$"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(hosts=2) as lab:
        lab.put_config()
        yield lab


def started(host: Host, **env: str) -> Daemon:
    return host.start_daemon("-iface=eth1", SHARED, env=env)


def refused(daemon: Daemon) -> None:
    """It ends with one line that says why, and leaves nothing that Docker could start with."""
    assert daemon.process.wait(20) == 3
    assert len(re.findall(rf"^E.*\] {NOT_UNIQUE}", daemon.log(), re.MULTILINE)) == 1
    assert "Traceback" not in daemon.log()
    assert "READY=1" not in daemon.notified
    host = daemon.host
    assert "flannel0" not in host.run("ip", "link").stdout
    assert list((host.run_dir / "flannel").glob("*")) == []


def lease(lab: Lab) -> dict[str, Any]:
    [lease] = lab.leases()
    value: dict[str, Any] = json.loads(lease["value"])
    return value


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["lower identity first", "higher identity first"])
def test_the_one_that_is_there_stays_and_the_newcomer_leaves(lab: Lab, order: tuple[int, int]) -> None:
    """The original gives both the same subnet, and says nothing."""
    holder, newcomer = (lab.hosts[number] for number in order)
    first = started(holder)
    first.wait_ready()
    subnet = holder.subnet()
    for _ in range(2):  # systemd tries again
        refused(started(newcomer))
        first.wait_for_log(rf"W.*\] {NOT_UNIQUE}")
        assert lease(lab) == {"PublicIP": "192.0.2.15", "HostID": holder.name}
    assert first.process.poll() is None
    assert holder.subnet() == subnet


def test_at_the_same_moment_one_stays(lab: Lab) -> None:
    daemons = [started(host) for host in lab.hosts]
    wait_for(lambda: any(daemon.process.poll() is not None for daemon in daemons), 20, "one of them to leave")
    [loser] = [daemon for daemon in daemons if daemon.process.poll() is not None]
    [winner] = [daemon for daemon in daemons if daemon is not loser]
    assert loser.process.poll() == 3
    assert re.search(rf"E.*\] {NOT_UNIQUE}", loser.log(), re.MULTILINE)
    winner.wait_ready()
    assert lease(lab) == {"PublicIP": "192.0.2.15", "HostID": winner.host.name}


def test_a_reinstalled_host_gets_its_subnet_after_a_short_wait(lab: Lab) -> None:
    host = lab.hosts[0]
    before = started(host, FLANNELD_HOST_ID="before")
    before.wait_ready()
    subnet = host.subnet()
    before.stop()
    (host.run_dir / "flannel/subnet.env").unlink()
    after = started(host, FLANNELD_HOST_ID="after")
    after.wait_ready(CLAIM_SECONDS + 5)
    assert host.subnet() == subnet
    assert lease(lab) == {"PublicIP": "192.0.2.15", "HostID": "after"}


def test_a_plain_flanneld_with_our_public_ip_is_said(lab: Lab) -> None:
    """It looks at nothing and writes blindly, at its start and once a day: that much can be seen of it."""
    daemon = started(lab.hosts[0])
    daemon.wait_ready()
    [before] = lab.leases()
    lab.etcd_request("PUT", before["key"], value='{"PublicIP":"192.0.2.15"}', ttl="86400")
    daemon.wait_for_log(
        r"W.*written by somebody without an identity, such as flanneld.*public IP 192.0.2.15 is not unique"
    )
    wait_for(lambda: "HostID" in lease(lab), 5, "the lease to be ours again")


def test_two_that_both_hold_it_are_one_again(lab: Lab) -> None:
    """A holder that did not see a newcomer's claim in time: the later identity gives way."""
    daemon = started(lab.hosts[1])
    daemon.wait_ready()
    [before] = lab.leases()
    lab.etcd_request("PUT", before["key"], value='{"PublicIP":"192.0.2.15","HostID":"host1"}', ttl="86400")
    assert daemon.process.wait(10) == 3
    assert re.search(rf"E.*\] {NOT_UNIQUE}", daemon.log(), re.MULTILINE)
    assert lease(lab) == {"PublicIP": "192.0.2.15", "HostID": "host1"}
    assert list((lab.hosts[1].run_dir / "flannel").glob("*")) == []


def test_an_address_of_virtualbox_is_warned_of(lab: Lab) -> None:
    host = lab.hosts[0]
    host.configure(
        "link add eth0 type veth peer name nat0",
        "address add 10.0.2.15/24 dev eth0",
        "link set eth0 up",
        "route add default via 10.0.2.2 dev eth0",
    )
    daemon = host.start_daemon()
    daemon.wait_for_log(r"W.*\] 10\.0\.2\.15 on eth0 looks like VirtualBox's NAT, .* with -iface$")
