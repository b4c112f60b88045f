"""The change-over from etcd's v2 store to its v3 store and back, host after host, for tests/faults and tests/soak."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Network

from faults.backends import ALLOC, Backend
from lab import ETCD_PREFIX, Daemon, Host, Lab, wait_connected, wait_for
from lab.etcd_stores import Store
from support.hosts import next_hops, subnet_in_file
from support.mesh import unbroken_mesh

V2, V3 = "-etcd-api=2", "-etcd-api=3"
SUBNETS = f"{ETCD_PREFIX}/subnets"
CONFIG_KEY = f"{ETCD_PREFIX}/config"
# A start takes seconds while many hosts start, and the lease must not expire before a new daemon takes it.
LEASE_TTL = 15
DEADLINE = 60.0
COPY = "CopiedFromV2"


def holders(store: Store) -> dict[IPv4Network, str]:
    """The public IP that holds each subnet in a store."""
    return {
        IPv4Network(key.key.rpartition("/")[2].replace("-", "/")): json.loads(key.value)["PublicIP"]
        for key in store.list(SUBNETS)
    }


@contextmanager
def copying(lab: Lab) -> Iterator[subprocess.Popen[str]]:
    """copy-to-v3 -follow runs on the switch, from when all keys have been copied once to the end of the block."""
    command = [sys.executable, "-P", "-m", "flannelpy", "copy-to-v3", "-follow", f"-etcd-endpoints={lab.etcd.url}"]
    with (lab.dir / "copy.log").open("w") as log:
        process = lab.switch.popen(*command, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: " unchanged, " in copy_log(lab), DEADLINE, "the first copy")
        yield process
    finally:
        process.terminate()
        process.wait(DEADLINE)
        print(copy_log(lab)[-2000:])


def copy_log(lab: Lab) -> str:
    return (lab.dir / "copy.log").read_text()


class ChangeOver:
    """The hosts of a lab, whose daemons are restarted with another flag, one by one."""

    def __init__(self, lab: Lab, flags: Sequence[str]) -> None:
        self.lab = lab
        self._flags = flags
        self.daemons: dict[Host, Daemon] = {}

    def start(self, hosts: Sequence[Host], api: str) -> None:
        for host in hosts:
            self.daemons[host] = host.start_daemon("-iface=eth1", api, *self._flags)

    def restart_each(self, api: str) -> None:
        """Restart host after host; each must have its subnet again, and nothing else may change."""
        for host, daemon in list(self.daemons.items()):
            subnet = host.subnet()
            assert daemon.stop(DEADLINE) == 0, daemon.log()
            self.start([host], api)
            self.daemons[host].wait_ready(DEADLINE)
            assert host.subnet() == subnet, self.daemons[host].log()
            self.look()

    def look(self) -> None:
        """No daemon has ended, and no host has lost the lease of another one."""
        subnets = {str(subnet_in_file(host)) for host in self.daemons}
        for daemon in self.daemons.values():
            log = daemon.log()
            assert daemon.process.poll() is None, log
            assert "Traceback" not in log, log
            assert not subnets.intersection(re.findall(r"Subnet removed: (\S+)", log)), log

    def owners(self) -> dict[IPv4Network, str]:
        """The public IP of the host that has each subnet in its subnet file; two hosts never have the same."""
        found = {host: subnet for host in self.daemons if (subnet := subnet_in_file(host))}
        assert len(set(found.values())) == len(found), f"a subnet twice: {found}"
        return {subnet: str(host.public_ip) for host, subnet in found.items()}

    def agree(self, *stores: Store) -> bool:
        """Whether each of these stores names every host for its subnet."""
        return all(self.owners().items() <= holders(store).items() for store in stores)

    def assert_agreed(self, *stores: Store) -> None:
        wait_for(partial(self.agree, *stores), DEADLINE, "every host's lease in the stores", pause=0.2)

    def end_v2(self, key: str = CONFIG_KEY) -> None:
        """Delete the config in v2, or all of the directory; all hosts notice, and write no more there."""
        self.lab.etcd.v2.delete(key)
        for daemon in self.daemons.values():
            daemon.wait_for_log("Network config is gone from etcd v2", DEADLINE)


def there_and_back(make_lab: Callable[..., Lab], backend: Backend, hosts: int, *, is_finished: bool) -> None:
    """Hosts under traffic change from v2 to v3, and back.

    ``is_finished``: the config in v2 is deleted in between, and the leases that are left there expire.
    """
    lab = make_lab(hosts=hosts)
    lab.put_config(backend.config())
    change = ChangeOver(lab, [f"-subnet-lease-ttl={LEASE_TTL}s"])
    change.start(lab.hosts, "-etcd-api=auto")
    for daemon in change.daemons.values():
        daemon.wait_ready(DEADLINE)
    wait_connected(list(change.daemons.values()))
    for host in lab.hosts:
        host.add_container()
    before = change.owners()
    with unbroken_mesh(lab.hosts):
        with copying(lab) as copy:
            change.restart_each(V3)
            change.assert_agreed(lab.etcd.v2, lab.etcd.v3)
            if is_finished:
                change.end_v2()
                assert copy.wait(DEADLINE) == 0
            else:
                change.restart_each(V2)
                assert copy.poll() is None
        if is_finished:
            wait_for(lambda: not holders(lab.etcd.v2), DEADLINE, "the leases in v2 to expire", pause=0.5)
            lab.put_config(backend.config())
            change.restart_each(V3)
            change.assert_agreed(lab.etcd.v2, lab.etcd.v3)
            change.restart_each(V2)
        change.assert_agreed(lab.etcd.v2)
    assert change.owners() == before


def joining_on_both_sides(
    make_lab: Callable[..., Lab],
    backend: Backend,
    hosts: int,
    lease_ttl: int = LEASE_TTL,
    deleted: str = CONFIG_KEY,
) -> None:
    """All hosts join at the same moment, every other one on v3, in a network with few subnets to spare.

    Then the others follow to v3, for longer than twice the time of a lease.  ``deleted``: what is deleted in v2 at the
    end; hosts notice at once that the directory is gone, and within half a minute that the config is.
    """
    lab = make_lab(hosts=hosts)
    few = {"SubnetMin": "11.0.10.0", "SubnetMax": f"11.0.{10 + hosts + hosts // 4}.0"}
    lab.put_config(json.dumps(json.loads(backend.config()) | few))
    change = ChangeOver(lab, [f"-subnet-lease-ttl={lease_ttl}s"])
    with copying(lab) as copy:
        began = time.monotonic()
        change.start(lab.hosts[::2], V3)
        change.start(lab.hosts[1::2], V2)
        for daemon in change.daemons.values():
            _until(partial(_is_ready, daemon), change)
        change.assert_agreed(lab.etcd.v2, lab.etcd.v3)
        before = change.owners()
        for host in lab.hosts[1::2]:
            assert change.daemons[host].stop(DEADLINE) == 0
            change.start([host], V3)
            _until(partial(_is_ready, change.daemons[host]), change)
        _until(lambda: time.monotonic() - began > 2 * lease_ttl + 1, change)
        change.assert_agreed(lab.etcd.v2, lab.etcd.v3)
        change.end_v2(deleted)
        assert copy.wait(DEADLINE) == 0
    wait_for(lambda: not holders(lab.etcd.v2), DEADLINE, "the leases in v2 to expire", pause=0.5)
    change.look()
    assert change.owners() == before
    wait_for(lambda: holders(lab.etcd.v3) == before, DEADLINE, "the lease of every host in v3", pause=0.5)
    if backend is not ALLOC:
        for daemon in change.daemons.values():
            wait_for(partial(_knows, daemon, hosts - 1), DEADLINE, "all next hops")
        for host in lab.hosts:
            host.add_container()
        with unbroken_mesh(lab.hosts):
            time.sleep(2)


def _knows(daemon: Daemon, count: int) -> bool:
    return next_hops(daemon) == count


def _is_ready(daemon: Daemon) -> bool:
    assert daemon.process.poll() is None, daemon.log()
    return "READY=1" in daemon.notified


def _until(condition: Callable[[], bool], change: ChangeOver) -> None:
    """Wait for ``condition``; meanwhile no subnet may have two hosts, in the subnet files or between the stores."""

    def is_met() -> bool:
        change.owners()
        _assert_one_holder_each(change.lab)
        return condition()

    wait_for(is_met, DEADLINE, "the hosts", pause=0.2)


def _assert_one_holder_each(lab: Lab) -> None:
    """No subnet has one holder in v2 and another one in v3."""
    second, first = holders(lab.etcd.v2), holders(lab.etcd.v3)
    both = {subnet: (second[subnet], first[subnet]) for subnet in second.keys() & first.keys()}
    assert all(one == other for one, other in both.values()), both
