"""The kernel carries packets while others change the devices that they pass, and while both hosts restart."""

from __future__ import annotations

import signal
from collections.abc import Callable
from itertools import product

import pytest
from lab import Container, Host, Lab, wait_for
from support.datapaths import KERNEL, by_kernel, containers, pings, programs, start, status
from support.overlay import transfer

pytestmark = pytest.mark.usefixtures("root")

MIB = 1 << 20
#: Of ethtool -K.
OFFLOADS = ("tso", "gso", "gro", "tx", "rx", "sg", "tx-udp-segmentation", "rx-gro-list")


@pytest.fixture
def pair(make_lab: Callable[..., Lab]) -> Lab:
    """Return two hosts without daemons."""
    lab = make_lab(hosts=2)
    lab.put_config()
    return lab


def assert_carried(hosts: list[Host], one: Container, other: Container) -> None:
    """Assert that TCP, and pings of the largest packet, pass by the kernel in both directions."""
    assert pings(one, other) == 3  # the hosts know each other's MAC
    with by_kernel(*hosts):
        for source, sink in ((one, other), (other, one)):
            transfer(source, sink, str(sink.address), MIB)
            largest = hosts[0].lab.mtu - 28
            ping = ["ping", "-nq", "-c50", "-i0.002", "-Mdo", f"-s{largest - 28}", str(sink.address)]
            assert "50 received" in source.run(*ping).stdout


@pytest.mark.parametrize("device", ["eth1", "flannel0", "flannel0-gro", "flannel0-cut"])
def test_offloads_of_each_device_change(pair: Lab, device: str) -> None:
    start(pair, KERNEL, KERNEL)
    one, other = containers(pair)
    for offload, state in product(OFFLOADS, ("off", "on")):
        pair.hosts[0].run("ethtool", "-K", device, offload, state, check=False)  # not each device has each
        assert_carried(pair.hosts, one, other)


def test_an_underlay_with_jumbo_frames(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=2, mtu=9000)
    lab.put_config()
    start(lab, KERNEL, KERNEL)
    assert_carried(lab.hosts, *containers(lab))


@pytest.mark.parametrize("device", ["eth1", "flannel0"])
def test_a_device_is_set_down_and_up(pair: Lab, device: str) -> None:
    daemons = start(pair, KERNEL, KERNEL)
    one, other = containers(pair)
    host = pair.hosts[0]
    for _ in range(3):
        host.configure(f"link set {device} down")
        host.configure(f"link set {device} up")
        wait_for(lambda: pings(one, other, 1), 20, "a packet")
    assert_carried(pair.hosts, one, other)
    assert status(host) == {"datapath": "kernel", "cause": ""}
    assert [daemon.process.poll() for daemon in daemons] == [None, None]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_both_hosts_restart_at_once(pair: Lab, how: signal.Signals) -> None:
    daemons = start(pair, KERNEL, KERNEL)
    one, other = containers(pair)
    for daemon in daemons:
        daemon.process.send_signal(how)
    for daemon in daemons:
        daemon.process.wait(20)
    is_killed = how is signal.SIGKILL
    assert pings(one, other) == (3 if is_killed else 0)
    assert all(bool(attached) is is_killed for host in pair.hosts for attached in programs(host).values())
    start(pair, KERNEL, KERNEL)
    assert_carried(pair.hosts, one, other)
