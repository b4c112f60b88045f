"""A lease of seconds, and a daemon that sleeps past the expiry."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from faults.backends import ALLOC, HOST_GW, UDP, VXLAN, Backend, lease_key, over_stores
from lab import Host, Lab, wait_for
from lab.etcd_stores import Api
from support.hosts import freeze, own_leases, thaw, ways

pytestmark = [pytest.mark.usefixtures("root"), over_stores(UDP, VXLAN, HOST_GW, ALLOC, v2=[UDP])]

LEASE_TTL = 5
HOSTS = 3


@pytest.fixture
def hosts(shared_lab: Callable[[str, int, Api], Lab], backend: Backend, api: Api) -> list[Host]:
    """Return three hosts that know each other; all daemons but the first sleep from then on, as long as tests need."""
    lab = shared_lab(backend.config(), HOSTS, api)
    if not lab.hosts[0].daemons:
        daemons = [host.start_daemon("-iface=eth1", f"-subnet-lease-ttl={LEASE_TTL}s") for host in lab.hosts]
        for daemon in daemons:
            daemon.wait_ready()
        for host in lab.hosts:
            wait_for(partial(backend.is_as_it_should_be, host), 5, f"all ways from {host.name}")
        for daemon in daemons[1:]:
            freeze(daemon)
    return lab.hosts


def test_the_ttl_is_the_flags_and_the_lease_is_renewed_in_time(hosts: list[Host], api: Api) -> None:
    host, *_ = hosts
    [daemon] = host.daemons
    [first] = own_leases(host)
    renewals = daemon.log().count("Lease renewed")
    wait_for(lambda: daemon.log().count("Lease renewed") > renewals, LEASE_TTL, "a renewal")
    [renewed] = own_leases(host)
    assert renewed["ttl"] in (LEASE_TTL - 1, LEASE_TTL)
    assert (renewed["key"], renewed["value"]) == (first["key"], first["value"])
    assert renewed["createdIndex"] == first["createdIndex"]
    # Over v3, a renewal keeps the key as it is, so that no watcher receives an event.
    assert (renewed["modifiedIndex"] > first["modifiedIndex"]) is (api is Api.V2)


def test_a_daemon_that_slept_past_the_expiry_recreates_its_lease(hosts: list[Host]) -> None:
    """A suspended virtual machine sleeps so; the original notices nothing until its next renewal."""
    _, host, _ = hosts
    [daemon] = host.daemons
    subnet, before = host.subnet(), ways(host)
    wait_for(lambda: not own_leases(host), LEASE_TTL + 5, "the lease to run out", pause=0.2)
    thaw(daemon)
    wait_for(lambda: own_leases(host), 3, "the lease to be back")
    daemon.wait_for_log(rf"W.*Own lease {subnet} was deleted or has expired; recreating the lease")
    assert host.subnet() == subnet
    assert ways(host) == before
    assert daemon.process.poll() is None


def test_a_daemon_whose_subnet_was_taken_while_it_slept_exits_at_once(hosts: list[Host], backend: Backend) -> None:
    """No state that leads packets to other hosts stays."""
    *_, host = hosts
    [daemon] = host.daemons
    wait_for(lambda: not own_leases(host), LEASE_TTL + 5, "the lease to run out", pause=0.2)
    host.lab.etcd.put(lease_key(host.subnet()), backend.lease("172.17.8.200"), ttl=60)
    thaw(daemon)
    assert daemon.process.wait(3) == 3
    assert "is held by 172.17.8.200 now, not by us" in daemon.log()
    assert ways(host) == set()
    assert [path.name for path in (host.run_dir / "flannel").iterdir()] == [".subnet.env.lock"]  # never removed
