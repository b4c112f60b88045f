"""Upgrades under traffic, from the version before the marks and from flanneld v0.5.5, and the way back.

The old versions are not run: the tests create the recorded kernel state by hand.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from faults.backends import HOST_GW, UDP, VXLAN, Backend, over
from lab import Host, Lab, wait_connected, wait_for
from support.hosts import belongings
from support.overlay import unbroken_stream

from flannelpy.options import lock_path

pytestmark = [pytest.mark.usefixtures("root"), pytest.mark.sample("backend", 1)]

RATE = 2_000_000  # bytes a second


@pytest.fixture
def lab(make_lab: Callable[..., Lab], backend: Backend) -> Lab:
    lab = make_lab(hosts=2)
    lab.put_config(backend.config())
    lab.start_daemons("-iface=eth1", "-ip-masq")
    for host in lab.hosts:
        host.add_container()
    return lab


def shown(host: Host, *argv: str) -> list[str]:
    return [line.strip() for line in host.run(*argv).stdout.splitlines()]


def become_old(host: Host, backend: Backend, origin: str) -> None:
    """Give the stopped host the state of the old version, in such an order that packets still pass."""
    lock_path(host.run_dir / "flannel/subnet.env").unlink()
    if backend is UDP:
        address = f"{host.subnet().network_address}/16"
        host.configure("tuntap add flannel0 mode tun", f"address add {address} dev flannel0", "link set flannel0 up")
    if backend is VXLAN:
        host.configure("link set flannel.1 alias ''")
    routes = [line for line in shown(host, "ip", "route") if " proto 85" in line and " via " in line]
    if backend is VXLAN and origin == "v0.5.5":
        _answer_as_flanneld(host)
        host.configure(*(f"route delete {line}" for line in routes))
        host.configure(
            *(f"neighbour delete {line.split()[2]} dev flannel.1" for line in routes),
        )
    else:
        host.configure(*(f"route replace {line.replace('proto 85', 'proto boot')}" for line in routes))
    _masquerade_as_old(host, origin)


#: The chain that both versions share, with its jump; flanneld also has a rule outside of it.
OLD_RULES = {
    "before the marks": (
        "FLANNEL -s 11.0.0.0/16 -d 11.0.0.0/16 -j RETURN",
        "FLANNEL -s 11.0.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE",
        "FLANNEL ! -s 11.0.0.0/16 -d 11.0.0.0/16 -j MASQUERADE",
        "POSTROUTING -j FLANNEL",
    ),
    "v0.5.5": (
        "FLANNEL -d 11.0.0.0/16 -j ACCEPT",
        "FLANNEL ! -d 224.0.0.0/4 -j MASQUERADE",
        "POSTROUTING -s 11.0.0.0/16 -j FLANNEL",
        "POSTROUTING ! -s 11.0.0.0/16 -d 11.0.0.0/16 -j MASQUERADE",
    ),
}


def _masquerade_as_old(host: Host, origin: str) -> None:
    """Add the old rules in one step, so that no packet meets a table without rules."""
    rules = "".join(f"-A {rule}\n" for rule in OLD_RULES[origin])
    host.run("iptables-restore", input=f"*nat\n:FLANNEL - [0:0]\n{rules}COMMIT\n")
    for table in ("mangle", "raw"):
        host.run("iptables", "-t", table, "-F")
        host.run("iptables", "-t", table, "-X")


def nat_rules(host: Host) -> list[str]:
    return shown(host, "iptables", "-t", "nat", "-S")


def _answer_as_flanneld(host: Host) -> None:
    """Add the neighbour of each container, as flanneld does when the kernel asks."""
    for other in host.lab.hosts:
        if other is not host:
            [mac] = {link["address"] for link in json.loads(other.run("ip", "-j", "link", "show", "flannel.1").stdout)}
            for container in other.containers:
                host.run("ip", "neighbour", "replace", str(container.address), "lladdr", mac, "dev", "flannel.1")


@contextmanager
def no_ping_lost(lab: Lab, backend: Backend) -> Iterator[None]:
    """Assert that the block loses no ping; with udp, pings may be lost while there is no device."""
    one, other = (host.containers[0] for host in lab.hosts)
    ping = one.popen("ping", "-n", "-q", "-i0.02", "-c100000", "-W2", str(other.address), stdout=subprocess.PIPE)
    yield
    ping.send_signal(signal.SIGINT)
    summary = ping.communicate(timeout=10)[0]
    assert backend is UDP or ", 0% packet loss" in summary, summary


@over(UDP, VXLAN, HOST_GW)
@pytest.mark.parametrize("origin", ["before the marks", "v0.5.5"])
def test_an_upgrade_loses_no_connection_and_leaves_nothing(lab: Lab, backend: Backend, origin: str) -> None:
    one, other = (host.containers[0] for host in lab.hosts)
    devices = [shown(host, "ip", "-o", "link", "show", "type", "vxlan") for host in lab.hosts]
    rules = [nat_rules(host) for host in lab.hosts]
    with unbroken_stream(one, other, RATE) as stream, no_ping_lost(lab, backend):
        for host in lab.hosts:
            host.daemons[-1].stop()
            become_old(host, backend, origin)
            if backend is not UDP:
                stream.wait_for_more()
            host.start_daemon("-iface=eth1", "-ip-masq")
        wait_connected([host.daemons[-1] for host in lab.hosts])
        for host in lab.hosts:
            wait_for(lambda host=host: backend.is_as_it_should_be(host), 5, "all entries")  # type: ignore[misc]
        stream.wait_for_more()
    assert [shown(host, "ip", "-o", "link", "show", "type", "vxlan") for host in lab.hosts] == devices
    assert [nat_rules(host) for host in lab.hosts] == rules


@over(UDP, VXLAN, HOST_GW)
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_the_way_back_with_cleanup_leaves_nothing_and_breaks_no_connection(
    make_lab: Callable[..., Lab], backend: Backend, end: str
) -> None:
    """After -cleanup, a host has only its lease, the lock file and Docker's bridge left.

    The connection waits until an old version runs again; a start of the present version stands for that.
    """
    lab = make_lab(hosts=2)
    lab.put_config(backend.config())
    lab.start_daemons("-iface=eth1", "-ip-masq")
    for host in lab.hosts:
        host.add_container()
        host.daemons[-1].stop()
        _clean_up(host)
    before = [belongings(host) for host in lab.hosts]
    lab.start_daemons("-iface=eth1", "-ip-masq")
    one, other = (host.containers[0] for host in lab.hosts)
    with unbroken_stream(one, other, RATE) as stream:
        for host in lab.hosts:
            host.daemons[-1].stop() if end == "stop" else host.daemons[-1].kill()
            _clean_up(host)
        assert [belongings(host) for host in lab.hosts] == before
        lab.start_daemons("-iface=eth1", "-ip-masq")
        stream.wait_for_more()


def _clean_up(host: Host) -> None:
    host.run(sys.executable, "-P", "-m", "flannelpy", "-cleanup")
