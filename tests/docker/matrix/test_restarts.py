"""dockerd or flannelpy is restarted under traffic."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from faults.backends import HOST_GW, UDP, VXLAN, Backend
from lab import Daemon
from support.docker_rig import Rig, assert_connected
from support.overlay import unbroken_stream

BACKENDS = pytest.mark.parametrize("backend", [UDP, VXLAN, HOST_GW], ids=str)
MASQUERADING = pytest.mark.parametrize("flags", [(), ("-ip-masq",)], ids=["", "masq"])
RATE = 1 << 20


def stop(daemon: Daemon) -> None:
    assert daemon.stop() == 0


@BACKENDS
@MASQUERADING
@pytest.mark.parametrize("end", [stop, Daemon.kill], ids=["stopped", "killed"])
def test_flannelpy_is_restarted_and_connections_of_containers_continue(
    start_rig: Callable[..., Rig], backend: Backend, flags: tuple[str, ...], end: Callable[[Daemon], None]
) -> None:
    rig = start_rig(backend.config(), *flags)
    one, other = rig.containers
    with unbroken_stream(one, other, RATE) as stream:
        for host in rig.hosts:
            end(host.daemons[-1])
            rig.start_flannelpy(host)
            stream.wait_for_more(deadline=30)
    assert_connected(other, one)


@BACKENDS
@MASQUERADING
@pytest.mark.parametrize("is_killed", [False, True], ids=["stopped", "killed"])
def test_with_live_restore_dockerd_is_restarted_and_connections_continue(
    start_rig: Callable[..., Rig], backend: Backend, flags: tuple[str, ...], is_killed: bool
) -> None:
    rig = start_rig(backend.config(), *flags, options=["--live-restore"])
    one, other = rig.containers
    with unbroken_stream(one, other, RATE) as stream:
        for docker in rig.dockers:
            docker.kill() if is_killed else docker.stop()
            stream.wait_for_more()
            docker.start("--live-restore")
            stream.wait_for_more()
    assert_connected(other, one)
    assert_connected(rig.hosts[0], other)


@BACKENDS
@MASQUERADING
@pytest.mark.parametrize("is_killed", [False, True], ids=["stopped", "killed"])
def test_without_live_restore_containers_come_back_and_reach_each_other(
    start_rig: Callable[..., Rig], backend: Backend, flags: tuple[str, ...], is_killed: bool
) -> None:
    rig = start_rig(backend.config(), *flags)
    for docker in rig.dockers:
        docker.kill() if is_killed else docker.stop()
        docker.start()
    rig.look()
    one, other = rig.containers
    assert_connected(one, other)
    assert_connected(other, one)


@BACKENDS
def test_both_are_restarted(start_rig: Callable[..., Rig], backend: Backend) -> None:
    """As at a reboot of the host, except that its iptables rules still exist."""
    rig = start_rig(backend.config())
    [docker, _], [host, _] = rig.dockers, rig.hosts
    docker.stop()
    stop(host.daemons[-1])
    rig.start_flannelpy(host)
    docker.start()
    rig.look()
    one, other = rig.containers
    assert_connected(one, other)
    assert_connected(other, one)
