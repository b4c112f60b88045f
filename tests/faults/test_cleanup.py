"""-cleanup removes a host's state of flannelpy, and with -release its lease; nothing else."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network

import pytest
from faults.backends import ALLOC, HOST_GW, NETWORK, UDP, VXLAN, Backend, over
from faults.change_over import holders
from lab import ETCD_PREFIX, Host, Lab, wait_for
from support.hosts import asleep, belongings, own_leases, ways

pytestmark = pytest.mark.usefixtures("root")

#: Leased to another host, so that routes to it exist.
FOREIGN = IPv4Network("11.0.200.0/24")
#: State that resembles flannelpy's, and is foreign.
OTHERS = (
    "link add flannel.7 type vxlan id 7 dev eth1 dstport 8472",
    "address add 10.8.0.0/16 dev flannel.7",
    "link set flannel.7 up",
    "route add 10.8.1.0/24 via 10.8.1.0 dev flannel.7 onlink",
    "route add 10.9.0.0/16 via 172.17.8.103 dev eth1",
    "route add 11.0.223.0/24 via 172.17.8.103 dev eth1 proto bird",
)
MASQUERADE = ("POSTROUTING", "-s", "10.9.0.0/16", "-j", "MASQUERADE")
#: udp's device goes with its daemon, unless that made it persistent.
LINGERING = (
    "tuntap add flannel0 mode tun",
    "address add {address}/16 dev flannel0",
    "link set flannel0 up",
)
#: What a second -cleanup logs.
NOTHING = "Removed nothing: there is neither /run/flannel/subnet.env nor a record of its last run"
REMOVED = {
    UDP: ["device flannel0"],
    VXLAN: ["route to 11.0.200.0/24 via 11.0.200.0", "device flannel.1"],
    HOST_GW: ["route to 11.0.200.0/24 via 172.17.8.130"],
}

ALL_CHAINS = {"FLANNEL-DOCKER-USER", *(f"FLANNEL-{kind}-{NETWORK}" for kind in "MDZAO")}
DATAGRAM_CHAINS = {f"FLANNEL-{kind}-{NETWORK}" for kind in "DZ"}
CHAINS = {UDP: ALL_CHAINS, VXLAN: ALL_CHAINS, HOST_GW: ALL_CHAINS - DATAGRAM_CHAINS}


@pytest.fixture
def lab(shared_lab: Callable[[str, int], Lab], backend: Backend) -> Lab:
    lab = shared_lab(backend.config(), 1)
    [host] = lab.hosts
    if not host.daemons:
        host.configure(*OTHERS)
        host.run("iptables", "-t", "nat", "-A", *MASQUERADE)
        lab.etcd.put(*backend.foreign_lease(FOREIGN))
    return lab


@pytest.fixture
def host(lab: Lab) -> Iterator[Host]:
    """Return the host; no daemon outlives a test."""
    [host] = lab.hosts
    yield host
    host.kill_daemons()


def run_for_a_while(host: Host, backend: Backend) -> None:
    """Run a daemon that leaves everything behind that a daemon can leave."""
    daemon = host.start_daemon("-iface=eth1", "-ip-masq")
    daemon.wait_ready()
    wait_for(lambda: ways(host) >= backend.wanted(host), 5, "the ways to the other host")
    wait_for(lambda: chains_of(host) == CHAINS[backend], 5, "the iptables rules")
    daemon.stop()
    if backend is UDP:
        address = host.subnet().network_address
        host.configure(*(command.format(address=address) for command in LINGERING))


def chains_of(host: Host) -> set[str]:
    """Return flannelpy's iptables chains."""
    return set(re.findall(r"^:(FLANNEL\S*)", host.run("iptables-save").stdout, re.MULTILINE))


def clean_up(host: Host, *flags: str, host_id: str = "host1") -> tuple[int, list[str]]:
    """Run -cleanup; return the exit code, and the messages without their heads."""
    given = {"-etcd-endpoints": host.lab.etcd.url, "-iface": "eth1", "-host-id": host_id}
    argv = [sys.executable, "-P", "-m", "flannelpy", *(f"{name}={value}" for name, value in given.items()), *flags]
    done = host.run(*argv, "-cleanup", check=False)
    return done.returncode, [line.split("] ", 1)[1] for line in done.stderr.splitlines()]


@over(UDP, VXLAN, HOST_GW)
def test_cleanup_removes_all_state_of_flannelpy_and_keeps_foreign_state(host: Host, backend: Backend) -> None:
    """This test is the first: no daemon has run on the host."""
    before = belongings(host)
    run_for_a_while(host, backend)
    assert belongings(host) != before
    code, messages = clean_up(host)
    assert code == 0
    chains = [message for message in messages if "iptables" in message]
    assert {name for message in chains for name in re.findall(r"FLANNEL\S*", message)} == CHAINS[backend]
    removed = [*REMOVED[backend], "/run/flannel/subnet.env"]
    assert [message for message in messages if message not in chains] == [f"Removed {what}" for what in removed]
    assert belongings(host) == before
    assert len(own_leases(host)) == 1
    assert clean_up(host) == (0, [NOTHING])


@over(UDP, VXLAN, HOST_GW)
def test_nothing_is_removed_while_a_daemon_runs(host: Host, backend: Backend) -> None:
    daemon = host.start_daemon("-iface=eth1", "-ip-masq")
    daemon.wait_ready()
    wait_for(lambda: ways(host) >= backend.wanted(host), 5, "the ways to the other host")
    logged = "a flannelpy runs here with the subnet file /run/flannel/subnet.env: stop it first"

    def is_kept() -> bool:
        before = belongings(host)
        assert clean_up(host, "-release") == (1, [logged])
        return belongings(host) == before

    wait_for(is_kept, 5, "all to be kept")  # once the daemon has added its last rules
    assert len(own_leases(host)) == 1
    assert daemon.stop() == 0


@over(UDP)
def test_a_device_of_flanneld_that_is_in_use_is_not_removed(host: Host) -> None:
    """A running flanneld does not use flannelpy's lock, so its device is the only sign of it."""
    daemon = host.start_daemon("-iface=eth1")
    daemon.wait_ready()
    with asleep(daemon):
        host.configure("link set flannel0 alias ''")
        (host.run_dir / "another.env").write_bytes((host.run_dir / "flannel/subnet.env").read_bytes())
        assert clean_up(host, "-subnet-file=/run/another.env") == (
            1,
            ["another process, such as flanneld, has our device flannel0 open: stop that process first"],
        )
    (host.run_dir / "another.env").unlink()
    daemon.stop()


@over(UDP, VXLAN, HOST_GW)
def test_release_deletes_the_lease(host: Host, backend: Backend) -> None:
    run_for_a_while(host, backend)
    subnet = host.subnet()
    code, logged = clean_up(host, "-release")
    assert (code, logged[-1]) == (0, f"Released the lease of {subnet}")
    assert own_leases(host) == []
    code, logged = clean_up(host, "-release")
    assert (code, logged[-1]) == (0, f"Found no lease with the public IP {host.public_ip} of this host")


@over(UDP)
def test_release_keeps_leases_of_other_hosts_and_reservations(lab: Lab, host: Host, backend: Backend) -> None:
    run_for_a_while(host, backend)
    [lease] = own_leases(host)
    subnet = host.subnet()
    code, logged = clean_up(host, "-release", host_id="another")
    assert (code, logged[-1]) == (0, f"Kept the lease of {subnet}: it belongs to another host (host1)")
    lab.etcd_request("PUT", lease["key"], value=json.dumps({"PublicIP": str(host.public_ip)}))
    code, logged = clean_up(host, "-release")
    assert (code, logged[-1]) == (0, f"Kept the reservation of {subnet}: it belongs to the operator")
    assert len(own_leases(host)) == 1
    lab.etcd_request("DELETE", lease["key"])


@over(UDP)
def test_an_etcd_that_does_not_answer_is_logged(host: Host, backend: Backend) -> None:
    run_for_a_while(host, backend)
    code, logged = clean_up(host, "-release", "-etcd-endpoints=http://127.0.0.1:1")
    assert (code, logged[-1]) == (1, "http://127.0.0.1:1: connection refused")
    assert len(own_leases(host)) == 1


def test_release_during_a_change_over_deletes_the_lease_from_both_stores(make_lab: Callable[..., Lab]) -> None:
    """Hosts on v2 would otherwise send packets to this host until its lease in v2 expires."""
    lab = make_lab(hosts=1)
    [host] = lab.hosts
    stores = (lab.etcd.v2, lab.etcd.v3)
    other, value = ALLOC.foreign_lease(FOREIGN)
    for store in stores:
        store.put(f"{ETCD_PREFIX}/config", ALLOC.config())
        store.put(other, value, 3600)
    daemon = host.start_daemon("-iface=eth1", "-etcd-api=3")
    daemon.wait_ready()
    subnet = host.subnet()
    assert [set(holders(store)) for store in stores] == [{FOREIGN, subnet}] * 2
    assert daemon.stop() == 0
    code, logged = clean_up(host, "-release", "-etcd-api=3")
    assert (code, logged[-1]) == (0, f"Released the lease of {subnet}")
    assert [set(holders(store)) for store in stores] == [{FOREIGN}] * 2
