"""What is measured about the control part: start-up, and how everything grows with the number of leases.

etcd holds a network for each number of leases, most of them of hosts that do not exist.  A daemon is started in each
network.  In the smallest and the largest, pairs of hosts forward packets all the time, to compare the cost of each.
Two more networks have the fewest and the most leases that announce the kernel, for pairs with -datapath=kernel.
"""

from __future__ import annotations

import math
import random
import re
import sys
import time
import timeit
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

from lab import ETCD_PREFIX, Lab

from benchmark import traffic
from benchmark.contenders import BACKENDS, KERNEL_FLAG, Contender, contender, flannelpy, put_network
from benchmark.data_path import Effort, Measurement
from benchmark.starts import running_daemon, seconds_to_subnet_file, seconds_until
from flannelpy.datapath.routes import NextHop, Routes
from flannelpy.subnet.lease import LeaseAttrs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

    from lab import Daemon, Host

    from benchmark.results import Values

_CONFIG = '{"Network":"11.0.0.0/8"}'
# Beyond the first hundred subnets, of which a host takes one.
_FIRST_SUBNET = IPv4Address("11.1.0.0")
_FIRST_HOST = IPv4Address("10.0.0.0")
_LEASE_TTL = 86_400
# Well below what the slowest contender can do, so that all packets arrive.
_PACKETS_PER_SECOND = 20_000
_KERNEL_PACKETS_PER_SECOND = 50_000
# A daemon with 10,000 peers needs some % of a processor for this check, with and without packets.
_NO_RESYNC = "-iptables-resync=3600"
_LOOK_UPS = 100_000
_ROUTE_CHANGES = 20_000


def lease_counts(largest: int) -> tuple[int, ...]:
    """10, 100, … up to ``largest``."""
    return tuple(10**power for power in range(1, round(math.log10(largest)) + 1))


def prefix(count: int, *, in_kernel: bool = False) -> str:
    """Where etcd keeps the network with so many leases, which may announce the kernel."""
    return f"/kernel-leases-{count}" if in_kernel else f"/leases-{count}"


def subnet(number: int) -> IPv4Network:
    """Return the lease of the host of that number, which does not exist."""
    return IPv4Network((int(_FIRST_SUBNET) + (number << 8), 24))


def lease(count: int, number: int, *, in_kernel: bool = False) -> tuple[str, str]:
    """Its key and value, in the network with so many."""
    key = f"{prefix(count, in_kernel=in_kernel)}/subnets/{subnet(number).network_address}-24"
    return key, LeaseAttrs(_FIRST_HOST + number, in_kernel=in_kernel).encode()


def put_leases(lab: Lab, count: int, *, in_kernel: bool = False) -> None:
    """Write a network with so many leases to etcd."""
    lab.etcd.put(f"{prefix(count, in_kernel=in_kernel)}/config", _CONFIG)
    lab.etcd.put_all(dict(lease(count, number, in_kernel=in_kernel) for number in range(count)), _LEASE_TTL)


def connected(hosts: Sequence[Host], count: int, *, in_kernel: bool = False) -> Contender:
    """Return a contender in the network with so many leases."""
    flags = [f"-etcd-prefix={prefix(count, in_kernel=in_kernel)}", _NO_RESYNC, *([KERNEL_FLAG] if in_kernel else [])]
    return contender(hosts, lambda hosts: flannelpy(hosts, *flags))


@dataclass(eq=False)
class Control:
    """The measurements on a lab of its own."""

    counts: tuple[int, ...]
    interpreter: str
    effort: Effort
    with_kernel: bool

    def measurements(self, names: Sequence[str]) -> list[Measurement]:
        """All there are; ``names`` are the contenders, of which those with flannelpy have a start-up."""
        counts = [str(count) for count in self.counts]
        ends = list(map(str, self._ends))
        started = [name for name in ("flannelpy", "flannelpy-kernel", "interpreted", *BACKENDS) if name in names]
        return [
            Measurement("start-up", started, self._start_up, self),
            Measurement("leases-routes", counts, self._routes, self),
            Measurement("leases-look-up", counts, look_up, self),
            Measurement("leases-cost", ends, self._cost, self),
            Measurement("leases-kernel-cost", ends if self.with_kernel else [], self._kernel_cost, self),
        ]

    def build(self, cleanup: ExitStack) -> None:
        """Set up the leases, pairs of hosts with the fewest and the most leases, and a host to start on."""
        lab = cleanup.enter_context(Lab(hosts=9 if self.with_kernel else 5))
        lab.put_config()
        self._prefixes = {name: put_network(lab, backend) for name, backend in BACKENDS.items()}
        for count in self.counts:
            put_leases(lab, count)
        for count in self._ends if self.with_kernel else ():
            put_leases(lab, count, in_kernel=True)
        self._host, *others = lab.hosts
        self._pairs = self._build_pairs(others[:4])
        self._kernel_pairs = self._build_pairs(others[4:], in_kernel=True) if self.with_kernel else {}

    @property
    def _ends(self) -> tuple[int, int]:
        return self.counts[0], self.counts[-1]

    def _build_pairs(self, hosts: Sequence[Host], *, in_kernel: bool = False) -> dict[str, Contender]:
        pairs = zip(self._ends, (hosts[:2], hosts[2:]), strict=True)
        return {str(count): connected(pair, count, in_kernel=in_kernel) for count, pair in pairs}

    def _start_up(self, name: str) -> Values:
        python = self.interpreter if name == "interpreted" else sys.executable
        flags = [KERNEL_FLAG] if name == "flannelpy-kernel" else []
        etcd_prefix = self._prefixes.get(name, ETCD_PREFIX)
        return {"start-up": seconds_to_subnet_file(self._host, etcd_prefix, *flags, python=python)}

    def _routes(self, subject: str) -> Values:
        """Start among so many leases, then have one more."""
        count = int(subject)
        etcd = self._host.lab.etcd
        key, value = lease(count, count)
        began = time.monotonic()
        with running_daemon(self._host, prefix(count)) as daemon:
            routes = seconds_until(lambda: _next_hops(daemon) >= count, began)
            before = _next_hops(daemon)
            began = time.monotonic()
            etcd.put(key, value, _LEASE_TTL)
            change = seconds_until(lambda: _next_hops(daemon) > before, began)
            megabytes = traffic.resident_megabytes(daemon.pid)
            etcd.delete(key)
        return {"leases-routes": routes, "leases-change": change * 1000, "leases-rss": megabytes}

    def _cost(self, subject: str) -> Values:
        """Return what packets cost among so many leases: µs each of the smallest, and seconds per Gbit of a stream."""
        hosts = self._pairs[subject]
        began = traffic.cpu_seconds(hosts.pids)
        udp = traffic.udp(hosts.client, hosts.server, self.effort.seconds, 64, _PACKETS_PER_SECOND)
        between = traffic.cpu_seconds(hosts.pids)
        tcp = traffic.tcp(hosts.client, hosts.server, self.effort.seconds)
        ended = traffic.cpu_seconds(hosts.pids)
        packets = udp.offered * self.effort.seconds
        return {"leases-cost": (between - began) / packets * 1e6, "leases-cost-tcp": (ended - between) / tcp.data}

    def _kernel_cost(self, subject: str) -> Values:
        """Return what a packet costs the whole machine among so many leases, in µs, sender and receiver included."""
        hosts = self._kernel_pairs[subject]
        began = traffic.machine_cpu_seconds()
        udp = traffic.udp(hosts.client, hosts.server, self.effort.seconds, 64, _KERNEL_PACKETS_PER_SECOND)
        used = traffic.machine_cpu_seconds() - began
        return {"leases-kernel-cost": used / (udp.offered * self.effort.seconds) * 1e6}


def look_up(subject: str) -> Values:
    """Return the routing table alone, without a daemon."""
    count = int(subject)
    subnets = [subnet(number) for number in range(count)]
    routes = Routes()
    for each in subnets:
        routes.set(each, NextHop("10.0.0.1", 8285))
    rng = random.Random(count)
    addresses = [int(rng.choice(subnets).network_address) + 2 for _ in range(_LOOK_UPS)]
    changed = [rng.choice(subnets) for _ in range(_ROUTE_CHANGES)]
    next_hop = NextHop("10.0.0.2", 8285)

    def look_all_up() -> None:
        for address in addresses:
            routes.lookup(address)

    def set_all() -> None:
        for each in changed:
            routes.set(each, next_hop)

    def remove_all() -> None:
        for each in changed:
            routes.remove(each)
            routes.set(each, next_hop)

    return {
        "leases-look-up": timeit.timeit(look_all_up, number=1) / _LOOK_UPS * 1e9,
        "leases-set": timeit.timeit(set_all, number=1) / _ROUTE_CHANGES * 1e6,
        "leases-remove": timeit.timeit(remove_all, number=1) / _ROUTE_CHANGES * 1e6,
    }


def _next_hops(daemon: Daemon) -> int:
    """Return the number in the status that the daemon has reported to systemd."""
    found = re.search(r"next hops: (\d+)", daemon.notified[-1]) if daemon.notified else None
    return int(found[1]) if found else 0
