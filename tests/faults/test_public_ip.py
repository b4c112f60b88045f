"""Two hosts with one public IP, as on VirtualBox, where every host's eth0 has 10.0.2.15."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from faults.backends import ALLOC, UDP, VXLAN, Backend, lease_key, over, over_stores
from lab import Daemon, Host, Lab, wait_for
from support.hosts import ways

from flannelpy.subnet.lease_policy import CLAIM_SECONDS

pytestmark = pytest.mark.usefixtures("root")

SHARED = "-public-ip=192.0.2.15"
NOT_UNIQUE = r"public IP 192\.0\.2\.15 is not unique: .*; give each its own by -iface or -public-ip$"


@pytest.fixture
def lab(make_lab: Callable[..., Lab], backend: Backend) -> Lab:
    lab = make_lab(hosts=2)
    lab.put_config(backend.config())
    return lab


def started(host: Host, **env: str) -> Daemon:
    return host.start_daemon("-iface=eth1", SHARED, env=env)


def refused(daemon: Daemon) -> None:
    """Assert that the daemon exits with one line about the cause, and leaves neither a subnet file nor routes."""
    assert daemon.process.wait(20) == 3
    assert len(re.findall(rf"^E.*\] {NOT_UNIQUE}", daemon.log(), re.MULTILINE)) == 1
    assert "Traceback" not in daemon.log()
    host = daemon.host
    assert ways(host) == set()
    assert [path.name for path in (host.run_dir / "flannel").iterdir()] == [".subnet.env.lock"]  # never removed


def assert_leased(host: Host, backend: Backend, host_id: str = "") -> None:
    """Assert that the only lease is that host's, with its backend data."""
    [lease] = host.lab.leases()
    expected = {"PublicIP": "192.0.2.15", **backend.attrs(mac(host, backend)), "HostID": host_id or host.name}
    found = json.loads(lease["value"])
    found.get("BackendData", {}).pop("VNI", None)  # written over v3 only, as is PublicIPv6
    assert {name: value for name, value in found.items() if name != "PublicIPv6"} == expected
    assert lease["key"] == lease_key(host.subnet())


def mac(host: Host, backend: Backend) -> str:
    """Return the MAC of the backend's device, if its kind has one."""
    shown = host.run("ip", "-j", "link", "show", backend.device).stdout
    return str(json.loads(shown)[0].get("address", ""))


@over_stores(UDP, VXLAN)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["lower identity first", "higher identity first"])
def test_the_holder_stays_and_the_newcomer_exits(lab: Lab, backend: Backend, order: tuple[int, int]) -> None:
    """The original gives both the same subnet, and logs nothing."""
    holder, newcomer = (lab.hosts[number] for number in order)
    first = started(holder)
    first.wait_ready()
    subnet = holder.subnet()
    for _ in range(2):  # systemd restarts it
        second = started(newcomer)
        refused(second)
        assert "READY=1" not in second.notified
        first.wait_for_log(rf"W.*\] {NOT_UNIQUE}")
        assert_leased(holder, backend)
    assert first.process.poll() is None
    assert holder.subnet() == subnet
    assert backend.is_as_it_should_be(holder)


@over_stores(UDP, VXLAN, v2=[UDP])
def test_of_two_hosts_that_start_at_the_same_moment_one_stays(lab: Lab, backend: Backend) -> None:
    daemons = [started(host) for host in lab.hosts]
    wait_for(lambda: any(daemon.process.poll() is not None for daemon in daemons), 20, "one of them to leave")
    [loser] = [daemon for daemon in daemons if daemon.process.poll() is not None]
    [winner] = [daemon for daemon in daemons if daemon is not loser]
    refused(loser)
    winner.wait_ready()
    assert_leased(winner.host, backend)


@over_stores(UDP, VXLAN)
def test_a_reinstalled_host_gets_its_subnet_after_a_short_wait(lab: Lab, backend: Backend) -> None:
    """Its MAC is the same too, so that peers need not change their entries."""
    host = lab.hosts[0]
    before = started(host, FLANNELD_HOST_ID="before")
    before.wait_ready()
    subnet, known = host.subnet(), mac(host, backend)
    before.stop()
    (host.run_dir / "flannel/subnet.env").unlink()
    host.run("ip", "link", "delete", backend.device, check=False)
    after = started(host, FLANNELD_HOST_ID="after")
    after.wait_ready(CLAIM_SECONDS + 5)
    assert (host.subnet(), mac(host, backend)) == (subnet, known)
    assert_leased(host, backend, "after")


@over_stores(UDP, VXLAN, v2=[UDP])
def test_a_plain_flanneld_with_our_public_ip_is_logged(lab: Lab, backend: Backend) -> None:
    """flanneld writes without reading, at its start and once a day; only these writes are visible."""
    host = lab.hosts[0]
    daemon = started(host)
    daemon.wait_ready()
    lab.etcd.put(lease_key(host.subnet()), backend.lease("192.0.2.15"), ttl=86400)
    daemon.wait_for_log(r"W.*was overwritten without a host ID, as by flanneld.*public IP 192.0.2.15 is not unique")
    wait_for(lambda: "HostID" in lab.leases()[0]["value"], 5, "the lease to be ours again")
    assert_leased(host, backend)


@over_stores(UDP, VXLAN, ALLOC)
def test_of_two_holders_the_one_with_the_higher_host_id_exits(lab: Lab, backend: Backend) -> None:
    """A holder did not see a newcomer's claim in time: the host with the higher host ID exits."""
    daemon = started(lab.hosts[1])
    daemon.wait_ready()
    [before] = lab.leases()
    theirs = json.dumps({**json.loads(backend.lease("192.0.2.15")), "HostID": "host1"})
    lab.etcd.put(lease_key(daemon.host.subnet()), theirs, ttl=86400)
    refused(daemon)
    [after] = lab.leases()
    assert (after["key"], after["value"]) == (before["key"], theirs)


@over(UDP)
def test_an_address_of_virtualbox_causes_a_warning(lab: Lab) -> None:
    host = lab.hosts[0]
    host.configure(
        "link add eth0 type veth peer name nat0",
        "address add 10.0.2.15/24 dev eth0",
        "link set eth0 up",
        "route add default via 10.0.2.2 dev eth0",
    )
    daemon = host.start_daemon()
    daemon.wait_for_log(r"W.*\] 10\.0\.2\.15 on eth0 looks like VirtualBox's NAT, .* with -iface$")
