"""Half an hour of traffic while hosts leave and join every second: the resources of a daemon stay constant."""

from __future__ import annotations

import json
import os
import random
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

from lab import ETCD_PREFIX, Container, Daemon, Host, Lab
from support.chaos import Witness, seed
from support.hosts import assert_in_order

SECONDS = float(os.environ.get("FLANNELPY_SOAK_SECONDS", 10 * 60))
STABLE = 2
COMERS = 4
#: Short, so that hosts that leave are also forgotten.
LEASE_TTL = 5
CHANGES_APART = 1.0
FOREIGN_HOSTS = 100
TCP = ("-b", "200M")
UDP = ("-u", "-b", "20M", "-l", "1200")
#: The variation that is allowed: a call to etcd has a thread and a connection, and a few calls may run at a time.
FEW = 4
MEGABYTE = 1 << 20
PATIENCE = 30


class Needs(NamedTuple):
    """The resources that a daemon uses."""

    resident: int
    files: int
    threads: int


def needs(daemon: Daemon) -> Needs:
    proc = Path(f"/proc/{daemon.pid}")
    found = re.search(r"^VmRSS:\s+(\d+) kB", (proc / "status").read_text(), re.MULTILINE)
    assert found, "it has ended"
    return Needs(int(found[1]) * 1024, *(len(list((proc / name).iterdir())) for name in ("fd", "task")))


def test_nothing_grows_while_hosts_come_and_go(make_lab: Callable[..., Lab]) -> None:
    number = seed()
    print(f"FLANNELPY_SEED={number}")
    lab = make_lab(hosts=STABLE + COMERS)
    lab.put_config()
    flags = ("-iface=eth1", f"-subnet-lease-ttl={LEASE_TTL}s")
    stable = [host.start_daemon(*flags) for host in lab.hosts[:STABLE]]
    for daemon in stable:
        daemon.wait_ready()
    witness = Witness(stable)
    comers = Comers(lab.hosts[STABLE:], flags, random.Random(number))
    one, other = [daemon.host.add_container() for daemon in stable]
    series: list[tuple[Needs, ...]] = []
    end = time.monotonic() + SECONDS
    with iperf3(one, other, 5201, *TCP), iperf3(other, one, 5202, *UDP):
        while time.monotonic() < end:
            comers.change()
            series.append(tuple(map(needs, stable)))
            witness.look_for(CHANGES_APART)
    print(comers)
    for daemon, of_one in zip(stable, zip(*series, strict=True), strict=True):
        assert_flat(daemon.host.name, of_one)
    assert_in_order(stable)
    assert_in_order(comers.running())


class Comers:
    """Hosts that join and leave, and foreign leases that are added and removed."""

    def __init__(self, hosts: Sequence[Host], flags: Sequence[str], rng: random.Random) -> None:
        self._daemons: dict[Host, Daemon | None] = dict.fromkeys(hosts)
        self._flags = flags
        self._rng = rng
        self._joined = self._left = self._put = self._deleted = 0
        self._foreign: set[str] = set()

    def __str__(self) -> str:
        return f"{self._joined} hosts joined, {self._left} left; {self._put} leases put, {self._deleted} deleted"

    def running(self) -> list[Daemon]:
        return [daemon for daemon in self._daemons.values() if daemon]

    def change(self) -> None:
        """Have one host join or leave, in either way, and add or remove one foreign lease."""
        host = self._rng.choice(list(self._daemons))
        if daemon := self._daemons[host]:
            assert daemon.process.poll() is None, daemon.log()
            self._rng.choice((Daemon.stop, Daemon.kill))(daemon)
            self._daemons[host] = None
            self._left += 1
        else:
            self._daemons[host] = host.start_daemon(*self._flags)
            self._joined += 1
        self._change_foreign(host.lab, self._rng.randrange(FOREIGN_HOSTS))

    def _change_foreign(self, lab: Lab, number: int) -> None:
        """Add or remove a lease of a subnet beyond the network's first hundred, from which the hosts choose theirs."""
        key = f"{ETCD_PREFIX}/subnets/{IPv4Address('11.0.150.0') + (number << 8)}-24"
        if key in self._foreign:
            lab.etcd.delete(key)
            self._deleted += 1
        else:
            lab.etcd.put(key, f'{{"PublicIP":"{IPv4Address("192.0.2.1") + number}"}}')
            self._put += 1
        self._foreign ^= {key}


@contextmanager
def iperf3(source: Container, target: Container, port: int, *how: str) -> Iterator[None]:
    """Run traffic for the whole test; the block may end earlier.  Every interval must have traffic."""
    server = target.popen("iperf3", "-s", "-1", "-i", "0", "-p", str(port), "--forceflush")
    assert server.stdout is not None
    while "listening" not in (line := server.stdout.readline()):
        assert line, "iperf3 has ended"
    argv = ("iperf3", "-c", str(target.address), "-p", str(port), "-J", "-i", "1", "-t", str(round(SECONDS)))
    with source.popen(*argv, *how) as client:
        yield
        report = json.loads(client.communicate(timeout=PATIENCE)[0])
    assert "error" not in report, report["error"]
    sent = [interval["sum"]["bytes"] for interval in report["intervals"]]
    received = report["end"]["sum_received"]["bytes"]
    print(f"iperf3 {' '.join(how)}: {received / SECONDS * 8 / 1e6:.0f} Mbit/s")
    assert all(sent)
    assert received > 0


def assert_flat(name: str, series: Sequence[Needs]) -> None:
    """Assert that after a fifth for warming up, the first and the last quarter of the rest use the same."""
    warm = series[len(series) // 5 :]
    quarter = max(len(warm) // 4, 1)
    for what, first, last, tolerance in zip(
        Needs._fields, _medians(warm[:quarter]), _medians(warm[-quarter:]), (MEGABYTE, FEW, FEW), strict=True
    ):
        peak = max(getattr(each, what) for each in warm)
        print(f"{name}: {what} {first:,.0f} at first, {last:,.0f} at last, {peak:,} at most")
        assert last <= first + tolerance, f"{what} of flannelpy on {name} has grown from {first:,.0f} to {last:,.0f}"


def _medians(series: Sequence[Needs]) -> list[float]:
    return [statistics.median(values) for values in zip(*series, strict=True)]
