"""A daemon that is killed and started again, many times, under traffic: nothing changes, nothing is left over."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Network
from itertools import cycle, islice
from typing import NamedTuple

from hosts import assert_in_order, leased_again, subnet_in_file
from lab import Host, Lab
from overlay import unbroken_stream

RESTARTS = 50
BYTES_PER_SECOND = 20_000_000
FLAGS = ("-iface=eth1", "-ip-masq")
FILES_RUNNING = {"ready", "subnet.env"}
FILES_STOPPED = {"subnet.env"}


class Belongings(NamedTuple):
    """What a host has of its daemon."""

    subnet: IPv4Network | None
    files: set[str]
    devices: set[str]
    routes: list[str]
    rules: list[str]


def belongings(host: Host) -> Belongings:
    return Belongings(
        subnet_in_file(host),
        {path.name for path in (host.run_dir / "flannel").iterdir()},
        {line.split(": ")[1] for line in host.run("ip", "-oneline", "link").stdout.splitlines()},
        sorted(host.run("ip", "-4", "route", "show", "table", "all").stdout.splitlines()),
        [rule for table in ("filter", "nat") for rule in host.run("iptables", "-t", table, "-S").stdout.splitlines()],
    )


def test_daemons_killed_fifty_times_under_traffic(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=2)
    lab.put_config()
    daemons = dict(zip(lab.hosts, lab.start_daemons(*FLAGS), strict=True))
    source, sink = (host.add_container() for host in lab.hosts)
    before = {host: belongings(host) for host in lab.hosts}
    with unbroken_stream(source, sink, BYTES_PER_SECOND) as stream:
        for host in islice(cycle(lab.hosts), RESTARTS):
            daemons[host].kill()
            daemons[host] = host.start_daemon(*FLAGS)
            daemons[host].wait_ready()
            assert subnet_in_file(host) == before[host].subnet
            stream.wait_for_more(1 << 16)
    for host in lab.hosts:
        assert belongings(host) == before[host]
    assert leased_again(lab)
    assert len(lab.leases()) == len(lab.hosts)
    assert_in_order(list(daemons.values()))
    assert [has.files for has in before.values()] == [FILES_RUNNING] * len(lab.hosts)
    assert [daemon.stop() for daemon in daemons.values()] == [0] * len(lab.hosts)
    assert [belongings(host).files for host in lab.hosts] == [FILES_STOPPED] * len(lab.hosts)
