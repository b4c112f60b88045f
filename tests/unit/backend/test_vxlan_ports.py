"""Which peers mean another port by the same config, and who has ours."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from support.fakes_machine import FakeMachine

from flannelpy.backend.vxlan import conflict, port_probe
from flannelpy.backend.vxlan.port_probe import PortProbe, config_with
from flannelpy.datapath import vxlan_settings
from flannelpy.linux import port_owner, udp_probe
from flannelpy.linux.netlink.connection import Taken
from flannelpy.linux.udp_probe import PortState, probe
from flannelpy.registry.base import expires_in
from flannelpy.rtnetlink.links import Link, Vxlan
from flannelpy.subnet import config
from flannelpy.subnet.lease import Lease, LeaseAttrs

OURS = IPv4Address("172.17.8.101")
CLOSED, SILENT, UNKNOWN = PortState.CLOSED, PortState.SILENT, PortState.UNKNOWN


def lease(number: int, host_id: str = "", public_ip: int | None = None) -> Lease:
    attrs = LeaseAttrs(IPv4Address(f"172.17.8.{public_ip or number}"), "vxlan", None, host_id)
    return Lease(IPv4Network(f"11.0.{number}.0/24"), attrs, expires_in(86400), 1, 1)


class World:
    """``ports`` is the state of those ports of hosts that are not silent."""

    def __init__(self, **backend: object) -> None:
        parsed = config.parse(json.dumps({"Network": "11.0.0.0/16", "Backend": {"Type": "vxlan", **backend}}))
        self.ports: dict[tuple[str, int], PortState] = {}
        self.asked: list[tuple[str, int]] = []
        self.probe = PortProbe(OURS, vxlan_settings.parse(parsed.backend.options, 1500), parsed, self._ask)

    async def _ask(self, source: IPv4Address, target: IPv4Address, port: int) -> PortState:
        assert source == OURS
        self.asked.append((str(target), port))
        await asyncio.sleep(0)
        return self.ports.get((str(target), port), SILENT)

    async def has_asked(self, count: int) -> None:
        """Return when so many questions were asked, and their answers taken in."""
        while len(self.asked) < count:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)


def play(world: World, scenario: Callable[[World], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_probe, "_PAUSE_SECONDS", 0)
    monkeypatch.setattr(port_probe, "_AGAIN_SECONDS", 0.02)

    async def whole() -> None:
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            task = tasks.create_task(world.probe.run())
            await scenario(world)
            task.cancel()

    asyncio.run(whole())


def test_a_host_of_the_original_with_the_other_port_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        world.ports = {("172.17.8.2", 7890): CLOSED}
        world.probe.follow(lease(2))
        world.probe.follow(lease(3, public_ip=2))
        await world.has_asked(8)
        assert set(world.asked) == {("172.17.8.2", 7890), ("172.17.8.2", 53790)}

    play(World(Port=7890), scenario, monkeypatch)
    [line] = caplog.messages
    assert line == (
        "Peer 172.17.8.2 (11.0.2.0/24, 11.0.3.0/24) is unreachable: UDP port 7890 is closed, and 53790 is not. "
        "flanneld up to v0.5.5 swaps the bytes of Backend.Port. To reach such a peer, put this config into etcd and "
        'restart flannelpy on all hosts: {"Network":"11.0.0.0/16","SubnetLen":24,"SubnetMin":"11.0.1.0",'
        '"SubnetMax":"11.0.255.0","Backend":{"Type":"vxlan","Port":7890,"PortSwapped":true}}'
    )


@pytest.mark.parametrize(
    "ports",
    [
        {7890: SILENT, 53790: SILENT},
        {7890: SILENT, 53790: CLOSED},
        {7890: CLOSED, 53790: CLOSED},
        {7890: CLOSED, 53790: UNKNOWN},
        {7890: UNKNOWN, 53790: SILENT},
    ],
)
def test_any_other_answer_proves_nothing(
    ports: dict[int, PortState], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        world.ports = {("172.17.8.2", port): state for port, state in ports.items()}
        world.probe.follow(lease(2))
        await world.has_asked(4)

    play(World(Port=7890), scenario, monkeypatch)
    assert caplog.messages == []


def test_a_host_that_is_upgraded_and_set_back_is_logged_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        for number, state in enumerate((CLOSED, CLOSED, SILENT, SILENT, CLOSED), 1):
            world.ports = {("172.17.8.2", 7890): state}
            if number == 1:
                world.probe.follow(lease(2))
            await world.has_asked(len(world.asked) + 2)

    play(World(Port=7890), scenario, monkeypatch)
    assert len(caplog.messages) == 2


def test_all_hosts_are_probed_again_although_leases_change_all_the_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        world.probe.follow(lease(2))
        await world.has_asked(2)
        world.ports = {("172.17.8.2", 7890): CLOSED}
        async with asyncio.timeout(2):
            while not caplog.messages:
                world.probe.follow(lease(3))
                await asyncio.sleep(0)

    play(World(Port=7890), scenario, monkeypatch)
    assert caplog.messages[0].startswith("Peer 172.17.8.2 (11.0.2.0/24) is unreachable")


def test_what_was_logged_of_removed_hosts_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        world.ports = {("172.17.8.2", 7890): CLOSED}
        world.probe.follow(lease(2))
        await world.has_asked(2)
        assert world.probe._unreachable
        world.probe.forget(lease(2).subnet)
        async with asyncio.timeout(2):
            while world.probe._unreachable:  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.001)

    play(World(Port=7890), scenario, monkeypatch)


def test_with_swapped_bytes_every_host_that_has_the_plain_port_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        world.ports = {("172.17.8.2", 53790): CLOSED, ("172.17.8.3", 53790): CLOSED}
        world.probe.follow(lease(2))
        world.probe.follow(lease(3, host_id="host3"))
        await world.has_asked(4)

    play(World(Port=7890, PortSwapped=True), scenario, monkeypatch)
    [line] = caplog.messages
    assert line.startswith("Peers 172.17.8.2 (11.0.2.0/24), 172.17.8.3 (11.0.3.0/24) are unreachable: UDP port 53790 ")
    assert "is closed, and 7890 is not. Such a peer runs flanneld v0.5.6 or later" in line
    assert line.endswith('"Backend":{"Type":"vxlan","Port":7890}}')


@pytest.mark.parametrize("backend", [{}, {"Port": 0}, {"Port": 257}, {"Port": None}])
def test_if_both_byte_orders_mean_one_port_no_host_is_probed(
    backend: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(world: World) -> None:
        world.probe.follow(lease(2))
        await asyncio.sleep(0.05)
        assert world.asked == []

    play(World(**backend), scenario, monkeypatch)


def test_flannelpy_peers_and_removed_hosts_are_not_probed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        world.ports = {("172.17.8.3", 7890): CLOSED}
        world.probe.follow(lease(2, host_id="host2"))
        world.probe.follow(lease(3))
        world.probe.forget(lease(3).subnet)
        await asyncio.sleep(0.05)
        assert {target for target, _ in world.asked} <= {"172.17.8.3"}
        asked = len(world.asked)
        await asyncio.sleep(0.05)
        assert len(world.asked) == asked

    play(World(Port=7890), scenario, monkeypatch)
    assert caplog.messages == []


def test_the_config_in_the_log_keeps_all_other_keys() -> None:
    text = (
        '{"Network":"11.0.0.0/8","SubnetLen":20,"SubnetMin":"11.10.0.0","SubnetMax":"11.99.0.0",'
        '"Backend":{"type":"vxlan","PORT":7890,"portswapped":%s,"Extra":[1]}}'
    )
    parsed = config.parse(text % "false")
    pasted: Any = json.loads(config_with(parsed, is_swapped=True))
    assert pasted == {
        **json.loads(text % "false"),
        "Backend": {"type": "vxlan", "PORT": 7890, "Extra": [1], "PortSwapped": True},
    }
    assert config.parse(config_with(parsed, is_swapped=True)) == config.parse(
        text.replace('"portswapped":%s,"Extra":[1]', '"Extra":[1],"PortSwapped":true')
    )
    assert "wapped" not in config_with(config.parse(text % "true"), is_swapped=False)


# The probe


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    monkeypatch.setattr(udp_probe, "_WAIT_SECONDS", 0.02)
    end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    end.bind(("127.0.0.1", 0))
    return end


def state(port: int, target: str = "127.0.0.1") -> PortState:
    return asyncio.run(probe(IPv4Address("127.0.0.1"), IPv4Address(target), port))


def test_a_closed_port_is_distinguished_from_an_open_one(bound: socket.socket) -> None:
    port = bound.getsockname()[1]
    assert state(port) is SILENT
    assert bound.recv(10) == b""
    bound.close()
    assert state(port) is CLOSED


def test_an_answer_means_an_open_port(bound: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_probe, "_WAIT_SECONDS", 5)

    async def answered() -> PortState:
        loop = asyncio.get_running_loop()

        def answer() -> None:
            bound.sendto(b"", bound.recvfrom(10)[1])

        loop.add_reader(bound, answer)
        try:
            return await probe(IPv4Address("127.0.0.1"), IPv4Address("127.0.0.1"), bound.getsockname()[1])
        finally:
            loop.remove_reader(bound)

    with bound:
        assert asyncio.run(answered()) is SILENT


def test_a_port_that_cannot_be_probed_is_unknown(bound: socket.socket) -> None:
    with bound:
        assert state(bound.getsockname()[1], "255.255.255.255") is UNKNOWN


# Who has our port


WANTED = Vxlan(1, 8472, OURS, 2)


def named(code: int, *links: Link) -> str:
    machine = FakeMachine()
    for link in links:
        machine.have(link)
    return asyncio.run(conflict.name(machine, "flannel.1", WANTED, Taken("", code)))


def device(name: str, vni: int, port: int = 8472, *, is_up: bool = True, alias: str = "") -> Link:
    return Link(90 + vni, name, 1450, "vxlan", is_up=is_up, vxlan=Vxlan(vni, port, OURS, 2), alias=alias)


def test_the_device_that_has_the_vni_is_named() -> None:
    others = device("a", 1, 4789), device("b", 2), device("flannel.1", 1)
    text = named(errno.EEXIST, *others, device("vx", 1, is_up=False, alias="flannelpy /run/x.env"))
    assert text.startswith("vx (alias: flannelpy /run/x.env) has VNI 1 and port 8472 already; remove it, or choose ")
    assert named(errno.EEXIST, *others).startswith("a VXLAN device that was moved into another network namespace has ")


def test_of_a_port_the_devices_that_are_up_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    text = named(errno.EADDRINUSE, device("a", 2), device("b", 3), device("c", 4, is_up=False))
    assert text.startswith("a and b have UDP port 8472, with settings that differ from ours; remove it, ")
    monkeypatch.setattr(port_owner, "describe", {8472: "process 7 (socat)"}.get)
    assert named(errno.EADDRINUSE, device("c", 4, is_up=False)).startswith(
        "UDP port 8472 belongs to process 7 (socat); stop it, "
    )
    monkeypatch.setattr(port_owner, "describe", lambda _: "")
    assert "belongs to something that is not listed" in named(errno.EADDRINUSE)


HEAD = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer\n"


def proc_line(address: str, port: int, uid: int, inode: int) -> str:
    return (
        f"  289: {address}:{port:04X} {address}:0000 07 00000000:00000000 00:00000000 00000000  {uid} 0 {inode} 2 0\n"
    )


def test_the_program_that_has_a_port_is_named(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net/udp").write_text(HEAD + proc_line("0100007F", 8472, 1000, 77) + proc_line("0" * 8, 53, 0, 78))
    (tmp_path / "net/udp6").write_text(HEAD + proc_line("0" * 32, 8473, 0, 79))
    for pid, inode in ((12, 77), (9, 79), (30, 77)):
        (tmp_path / f"{pid}/fd").mkdir(parents=True)
        (tmp_path / f"{pid}/fd/3").symlink_to(f"socket:[{inode}]")
        (tmp_path / f"{pid}/comm").write_text(f"prog\x1b{pid}\n")
    assert port_owner.describe(8472, tmp_path) == r"process 12 (prog\x1b12), process 30 (prog\x1b30)"
    assert port_owner.describe(8473, tmp_path) == r"process 9 (prog\x1b9)"
    assert port_owner.describe(53, tmp_path) == (
        "a socket of user 0, of the kernel itself or of a process that flannelpy may not look at"
    )
    assert port_owner.describe(54, tmp_path) == ""
    assert port_owner.describe(54, tmp_path / "none") == ""
