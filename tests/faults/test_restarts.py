"""A daemon is killed and started again, many times, under traffic: nothing changes, no leftovers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import cycle, islice

import pytest
from faults.backends import HOST_GW, UDP, VXLAN, Backend
from lab import Host, Lab, wait_for
from support.hosts import Belongings, assert_in_order, belongings, leased_again, subnet_in_file
from support.overlay import unbroken_stream

BYTES_PER_SECOND = 20_000_000
FLAGS = ("-iface=eth1", "-ip-masq")
FILES_RUNNING = {"control.sock", "ready", "subnet.env"}
FILES_STOPPED = {"subnet.env"}


@pytest.mark.parametrize(
    ("backend", "restarts"),
    [(UDP, 10), pytest.param(UDP, 50, marks=pytest.mark.soak), (VXLAN, 6), (HOST_GW, 6)],
    ids=str,
)
def test_daemons_killed_again_and_again_under_traffic(
    make_lab: Callable[..., Lab], backend: Backend, restarts: int
) -> None:
    lab = make_lab(hosts=2)
    lab.put_config(backend.config())
    daemons = dict(zip(lab.hosts, lab.start_daemons(*FLAGS), strict=True))
    source, sink = (host.add_container() for host in lab.hosts)
    for host, peer in (lab.hosts, lab.hosts[::-1]):
        wait_for(partial(backend.has_rules_about, host, [peer]), 10, f"rules about {peer.name}")
    before = {host: belongings(host) for host in lab.hosts}
    assert [has.ways for has in before.values()] == [backend.wanted(host) for host in lab.hosts]
    with unbroken_stream(source, sink, BYTES_PER_SECOND) as stream:
        for host in islice(cycle(lab.hosts), restarts):
            daemons[host].kill()
            daemons[host] = host.start_daemon(*FLAGS)
            daemons[host].wait_ready()
            assert subnet_in_file(host) == before[host].subnet
            stream.wait_for_more(1 << 16)
    for host in lab.hosts:
        wait_for(partial(_has, host, before[host]), 10, "what it had")
    assert leased_again(lab)
    assert len(lab.leases()) == len(lab.hosts)
    assert_in_order(list(daemons.values()))
    assert [has.files for has in before.values()] == [FILES_RUNNING] * len(lab.hosts)
    assert [daemon.stop() for daemon in daemons.values()] == [0] * len(lab.hosts)
    assert [belongings(host).files for host in lab.hosts] == [FILES_STOPPED] * len(lab.hosts)


def _has(host: Host, expected: Belongings) -> bool:
    return belongings(host) == expected
