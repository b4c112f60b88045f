"""A host without a lease floods a daemon's port with datagrams, while two containers exchange packets."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from lab import Daemon, Host, Lab, wait_connected, wait_for
from support.overlay import OUTER_PORT, running, throughput

pytestmark = [pytest.mark.usefixtures("root"), pytest.mark.timed]

UDP_GRO = 104
# A socket like the daemon's, which receives whole trains; it is never read, so the kernel drops most of the flood.
_DISCARD = (
    "import signal, socket, sys;"
    "discard = socket.socket(type=socket.SOCK_DGRAM);"
    f"discard.setsockopt(socket.IPPROTO_UDP, {UDP_GRO}, 1);"
    "discard.bind(('0.0.0.0', int(sys.argv[1])));"
    "print('listening', flush=True);"
    "signal.pause()"
)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Return two hosts with daemons and containers, a host that floods, and a host to be flooded for comparison."""
    with Lab(hosts=4) as lab:
        lab.put_config()
        yield lab


@contextmanager
def flood(source: Host, target: Host, size: int, count: int) -> Iterator[None]:
    """Send datagrams of ``size`` bytes, ``count`` with one call, as fast as possible."""

    def sent() -> int:
        return int(source.run("cat", "/sys/class/net/eth1/statistics/tx_packets").stdout)

    with running(source, "udp-flood", str(target.public_ip), str(OUTER_PORT), str(size), str(count)):
        enough = sent() + 10_000
        wait_for(lambda: sent() > enough, 10, "the flood")
        yield
        enough = sent() + 1000
        wait_for(lambda: sent() > enough, 10, "the flood to continue")


@pytest.mark.sample("size", 2)
@pytest.mark.parametrize(("size", "count"), [(28, 1), (28, 64), (1400, 46)])
def test_a_flood_of_an_unknown_host_costs_peers_no_more_than_its_processor_time(
    lab: Lab, size: int, count: int
) -> None:
    """The comparison is the same flood on another host, because on one machine the sender itself uses a processor.

    Without the filter in the kernel a flood fills the socket's queue, and hardly any other datagram passes.
    """
    one, other, flooder, bystander = lab.hosts
    daemons = [host.start_daemon("-iface=eth1") for host in (one, other)]
    wait_connected(daemons)
    ends = one.add_container(), other.add_container()
    discard = bystander.popen(sys.executable, "-I", "-S", "-c", _DISCARD, str(OUTER_PORT))
    assert discard.stdout is not None
    assert discard.stdout.readline() == "listening\n"
    undisturbed = throughput(*ends)
    lines = log_lines(daemons)
    with flood(flooder, bystander, size, count):
        beside = throughput(*ends)
    with flood(flooder, other, size, count):
        flooded = throughput(*ends)
    figures = f"{undisturbed / 1e9:.2f} Gbit/s, flood beside it {beside / 1e9:.2f}, flood on it {flooded / 1e9:.2f}"
    print(figures)
    assert flooded > beside / 2, figures
    assert daemons[1].stop() == 0
    [refused, unknown] = (
        int(count) for count in re.findall(r"(?:socket_filtered_or_full|unknown_sender) (\d+)", daemons[1].log())[:2]
    )
    assert refused > 10_000
    assert unknown > 100
    assert f"(last from {flooder.public_ip})" in daemons[1].log()
    assert log_lines(daemons) - lines <= 4


def log_lines(daemons: list[Daemon]) -> int:
    return sum(len(daemon.log().splitlines()) for daemon in daemons)
