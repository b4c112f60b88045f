"""What the daemon reports counts more than the flags of the check."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest
from support.fakes_clock import run
from support.fakes_netlink import EXTERNAL, FakeNetlink

from flannelpy import cli
from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.check import gather_host
from flannelpy.check.observations import DaemonSeen, HostSeen
from flannelpy.errors import HostError
from flannelpy.host import external_endpoint
from flannelpy.linux.instance_lock import InstanceLock
from flannelpy.options import Options
from flannelpy.report import DaemonReport, InterfaceReport, NetworkReport, NetworkState
from flannelpy.rtnetlink.links import Link

OTHER = ExternalInterface("eth0", IPv4Address("10.0.0.1"), 1500)


class Kernel(FakeNetlink):
    """Lists its interfaces, too."""

    async def links(self) -> list[Link]:
        return list(self.there.values())


def daemon(address: IPv4Address) -> DaemonSeen:
    interface = InterfaceReport("eth1", "", address, address, 1500)
    return DaemonSeen(DaemonReport((NetworkReport("", NetworkState.READY, interface=interface),)))


def look(monkeypatch: pytest.MonkeyPatch, chosen: ExternalInterface | None, seen: DaemonSeen) -> HostSeen:
    async def choose(_: Options) -> tuple[ExternalInterface, IPv4Address]:
        if chosen is None:
            raise HostError("no default route")
        return chosen, chosen.address

    monkeypatch.setattr(external_endpoint, "choose", choose)
    return run(gather_host.look(Kernel(), cli.parse([]), seen))


def test_the_interface_of_the_daemon_counts_and_the_difference_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = look(monkeypatch, OTHER, daemon(EXTERNAL.address))
    assert (seen.external, seen.identity.public_ip) == (EXTERNAL, EXTERNAL.address)
    assert seen.differs == (
        "the external interface of flannelpy is eth1 with 172.17.8.101, public IP 172.17.8.101, and these flags choose "
        "eth0 with 10.0.0.1, public IP 10.0.0.1"
    )
    assert "none (no default route)" in look(monkeypatch, None, daemon(EXTERNAL.address)).differs


def test_the_same_choice_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    assert look(monkeypatch, EXTERNAL, daemon(EXTERNAL.address)).differs == ""
    assert look(monkeypatch, EXTERNAL, DaemonSeen()).differs == ""


def test_an_address_that_the_host_has_lost_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = daemon(IPv4Address("172.17.8.200"))
    assert look(monkeypatch, EXTERNAL, lost).external == EXTERNAL
    with pytest.raises(HostError, match="no default route"):
        look(monkeypatch, None, lost)


def test_the_subnet_files_of_other_daemons_are_found_by_their_locks(tmp_path: Path) -> None:
    one, other, gone = (tmp_path / name for name in ("subnet.env", "networks/blue.env", "gone.env"))
    locks = [InstanceLock(file) for file in (one, other)]
    InstanceLock(gone).close()
    (tmp_path / ".foreign.lock").symlink_to("nowhere")
    (tmp_path / "..lock").touch()
    try:
        options = cli.parse([f"-subnet-file={tmp_path}/mine.env", f"-subnet-dir={tmp_path}/networks"])
        assert gather_host.running(options) == [one, other]
    finally:
        for lock in locks:
            lock.close()
