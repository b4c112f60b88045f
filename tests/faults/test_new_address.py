"""DHCP gives hosts other addresses: they keep their subnets, unless a clone runs with the former address."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from faults.backends import HOST_GW, UDP, VXLAN, Backend
from lab import Daemon, Host, Lab, wait_for
from lab.etcd_stores import Api
from support.earlier import FIRST_WITH_CLAIMS, unpack
from support.hosts import own_leases
from support.overlay import unbroken_stream

from flannelpy.subnet.lease_policy import CLAIM_SECONDS

pytestmark = pytest.mark.usefixtures("root")

RATE = 1_000_000  # bytes a second
START_SECONDS = 5


def move(host: Host, address: str) -> None:
    """Stop the daemon, and give eth1 another address."""
    if host.daemons[-1].process.poll() is None:
        host.daemons[-1].stop()
    host.configure("address flush dev eth1", f"address add {address}/24 dev eth1")
    host.public_ip = IPv4Address(address)


def identified(lab: Lab) -> dict[str, tuple[str, int, object]]:
    """Return host ID, creation and backend data of each lease, by subnet."""
    leases = {lease["key"]: (json.loads(lease["value"]), lease["createdIndex"]) for lease in lab.leases()}
    return {key: (value["HostID"], created, value.get("BackendData")) for key, (value, created) in leases.items()}


@pytest.mark.parametrize("api", [Api.V3, pytest.param(Api.V2, marks=pytest.mark.soak)])
def test_the_subnets_and_all_connections_are_kept(make_lab: Callable[..., Lab]) -> None:
    """One of two hosts gets a new address, and the other host the first one's former address; with each backend."""
    overlays = [Overlay(make_lab(hosts=2), backend) for backend in (UDP, VXLAN, HOST_GW)]
    for overlay in overlays:
        overlay.start()
    with ExitStack() as streams:
        for overlay in overlays:
            stream = streams.enter_context(unbroken_stream(overlay.source, overlay.sink, RATE))
            streams.callback(stream.wait_for_more)
        for overlay in overlays:
            overlay.move()
        for overlay in overlays:
            overlay.wait_until_moved()
    for overlay in overlays:
        overlay.assert_kept()


class Overlay:
    """Two hosts of a backend that move, with a container each."""

    def __init__(self, lab: Lab, backend: Backend) -> None:
        self.lab, self.hosts, self.backend = lab, lab.hosts, backend

    def start(self) -> None:
        self.lab.put_config(self.backend.config())
        self.lab.start_daemons("-iface=eth1")
        self.source, self.sink = (host.add_container() for host in self.hosts)
        self.before = identified(self.lab)

    def move(self) -> None:
        addresses = "172.17.8.151", str(self.hosts[0].public_ip)
        for host, address in zip(self.hosts, addresses, strict=True):
            move(host, address)
        for host in self.hosts:
            host.start_daemon("-iface=eth1")

    def wait_until_moved(self) -> None:
        for host in self.hosts:
            host.daemons[-1].wait_ready(CLAIM_SECONDS + 2 * START_SECONDS)
        for host in self.hosts:
            wait_for(partial(self.backend.is_as_it_should_be, host), 5, "all entries")

    def assert_kept(self) -> None:
        assert identified(self.lab) == self.before
        for host in self.hosts:
            [lease] = own_leases(host)
            assert lease["key"].endswith(str(host.subnet()).replace("/", "-"))
            assert "Claim" not in lease["value"]
            assert not any(f"Subnet removed: {host.subnet()}" in each.log() for each in self.hosts)


@pytest.mark.parametrize("api", [Api.V3, Api.V2])
def test_a_running_clone_of_any_version_keeps_the_lease(make_lab: Callable[..., Lab], tmp_path: Path, api: Api) -> None:
    """The clone has machine ID and former address of the other host; two pairs of hosts run at the same time."""
    lab = make_lab(hosts=4)
    lab.put_config(UDP.config())
    newcomers, clones = lab.hosts[:2], lab.hosts[2:]
    # Earlier versions know the v2 API only.
    versions: list[dict[str, str]] = [{}, unpack(FIRST_WITH_CLAIMS, tmp_path / "earlier") if api is Api.V2 else {}]
    for host in newcomers:
        host.start_daemon("-iface=eth1")
    for host in newcomers:
        host.daemons[-1].wait_ready()
    subnets = [host.subnet() for host in newcomers]
    live: list[Daemon] = []
    for newcomer, clone, version in zip(newcomers, clones, versions, strict=True):
        address = str(newcomer.public_ip)
        move(newcomer, f"172.17.8.{150 + newcomers.index(newcomer)}")
        env = {"FLANNELD_HOST_ID": newcomer.name, **version}
        live.append(clone.start_daemon("-iface=eth1", f"-public-ip={address}", env=env))
    for daemon in live:
        daemon.wait_ready(20)
    held = [(lease["key"], lease["value"]) for lease in lab.leases()]
    for host in newcomers:
        host.start_daemon("-iface=eth1")
    for host in newcomers:
        host.daemons[-1].wait_ready(CLAIM_SECONDS + 2 * START_SECONDS)
    for newcomer, clone, daemon, subnet in zip(newcomers, clones, live, subnets, strict=True):
        assert clone.subnet() == subnet
        assert newcomer.subnet() != subnet
        assert daemon.process.poll() is None
        newcomer.daemons[-1].wait_for_log(rf"W.*Lease \({subnet}\) is held by another host .* with our host ID")
    left = [(lease["key"], lease["value"]) for lease in lab.leases()]
    assert [lease for lease in left if lease in held] == held
    assert len(left) == 4
