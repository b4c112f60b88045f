"""The kernel's datapath while a daemon is away, and while hosts change between it and a version that has the loop only.

All hosts are on veth pairs, which leave checksums unfinished: what a program sent to a loop would be lost.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from lab import Lab, wait_for
from support.datapaths import (
    FLAGS,
    KERNEL,
    announces,
    by_kernel,
    containers,
    pings,
    start,
    state,
    wait_until_it_sends,
)
from support.earlier import LAST_WITHOUT_KERNEL, unpack
from support.overlay import OUTER_PORT, Capture, Stream, unbroken_stream
from support.pcap import ETHERNET, moments

pytestmark = pytest.mark.usefixtures("root")

RATE = 2_000_000  # bytes a second
PING_PAUSE = 0.05


@pytest.fixture
def pair(make_lab: Callable[..., Lab]) -> Lab:
    """Return two hosts without daemons."""
    lab = make_lab(hosts=2)
    lab.put_config()
    return lab


@pytest.mark.parametrize("seconds", [10, pytest.param(60, marks=pytest.mark.soak)])
def test_a_daemon_that_is_away_within_its_lease_loses_no_packet(pair: Lab, seconds: int) -> None:
    daemons = start(pair, (*KERNEL, f"-subnet-lease-ttl={3 * seconds}s"), KERNEL)
    one, other = containers(pair)
    assert pings(one, other) == 3  # the hosts know each other's MAC
    count = round((seconds + 3) / PING_PAUSE)
    with (
        unbroken_stream(one, other, RATE) as stream,
        unbroken_stream(other, one, RATE) as back,
        by_kernel(*pair.hosts),
    ):
        ping = one.popen("ping", "-nq", f"-c{count}", f"-i{PING_PAUSE}", "-W1", str(other.address))
        daemons[0].kill()
        gone = time.monotonic()
        while time.monotonic() < gone + seconds:
            flow(stream, back)
        pair.hosts[0].start_daemon(*KERNEL).wait_ready()
        flow(stream, back)
        text, _ = ping.communicate(timeout=60)
    assert f"{count} received" in text


def test_a_lease_that_expires_while_the_daemon_is_away_ends_all_traffic_until_it_is_back(
    pair: Lab, tmp_path: Path
) -> None:
    ttl, file = 8, tmp_path / "underlay.pcap"
    daemons = start(pair, (*KERNEL, f"-subnet-lease-ttl={ttl}s"), KERNEL)
    one, other = containers(pair)
    assert pings(one, other) == 3
    host = pair.hosts[0]
    flood = one.popen("ping", "-nq", "-i0.02", str(other.address))
    daemons[0].kill()
    wait_for(lambda: str(host.public_ip) not in str(pair.leases()), 2 * ttl, "the end of the lease")
    time.sleep(1)  # the store may be earlier
    with Capture(pair.switch, "host1", f"udp port {OUTER_PORT} and src {host.public_ip}", file):
        time.sleep(3)  # in which 150 pings are sent
    flood.kill()
    assert list(moments(file, ETHERNET)) == []
    host.start_daemon(*KERNEL).wait_ready()
    wait_for(lambda: pings(one, other) == 3, 10, "pings of the new daemon")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Return the variables of the last version that has no kernel's datapath."""
    return unpack(LAST_WITHOUT_KERNEL, tmp_path_factory.mktemp("old") / "flannelpy")


@pytest.mark.parametrize("end", ["stop", "cleanup"])
def test_a_peer_is_upgraded_and_downgraded_under_tcp(pair: Lab, old: Mapping[str, str], end: str) -> None:
    """``end``: of the new version, before the old one starts; a killed one needs flannelpy -cleanup."""
    first, second = pair.hosts
    new_daemon = first.start_daemon(*KERNEL)
    old_daemon = second.start_daemon(*FLAGS, env=old)
    for daemon in (new_daemon, old_daemon):
        daemon.wait_ready()
    one, other = containers(pair)
    before = state(second)
    with unbroken_stream(one, other, RATE) as stream, unbroken_stream(other, one, RATE) as back:
        assert old_daemon.stop() == 0
        new_daemon = second.start_daemon(*KERNEL)
        new_daemon.wait_ready()
        wait_until_it_sends(new_daemon, second)
        with by_kernel(first, second):
            flow(stream, back)
        if end == "stop":
            assert new_daemon.stop() == 0
        else:
            new_daemon.kill()
            flow(stream, back)
            second.run(sys.executable, "-P", "-m", "flannelpy", "-cleanup")
        second.start_daemon(*FLAGS, env=old).wait_ready()
        wait_for(lambda: not announces(second), 10, "the lease without the kernel")
        flow(stream, back)
    assert state(second) == before


def flow(*streams: Stream) -> None:
    for stream in streams:
        stream.wait_for_more()
