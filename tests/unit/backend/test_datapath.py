"""When the kernel carries packets: what forbids it, how the lease follows, and what is kept of its counters."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Container
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Never, cast

import pytest
from support.fakes_clock import run as run_in_virtual_time
from support.fakes_netlink import FakeNetlink

from flannelpy.backend.udp import datapath
from flannelpy.backend.udp.datapath import LEASE_SECONDS, PAUSE_SECONDS, KernelDatapath
from flannelpy.backend.udp.fast_path import FastPathConfig
from flannelpy.backend.udp.kernel_mode import KernelMode
from flannelpy.datapath.routes import Totals
from flannelpy.datapath.source_check import SourceCheck
from flannelpy.errors import HostError
from flannelpy.linux.clock import BootClock
from flannelpy.netfilter.address_ranges import AddressRanges
from flannelpy.registry.base import expires_in
from flannelpy.subnet.lease import Lease, LeaseAttrs
from flannelpy.subnet.lease_table import LeaseAdded, LeaseRemoved

CONFIG = FastPathConfig(
    IPv4Network("11.0.59.0/24"),
    IPv4Network("11.0.0.0/16"),
    IPv4Address("172.17.8.101"),
    8285,
    SourceCheck.PEER,
    "flannel0",
    "eth1",
    "flannelpy /run/flannel/subnet.env",
)
SUBNET = IPv4Network("11.0.60.0/24")
PEER_IP = IPv4Address("172.17.8.102")


def added(*, in_kernel: bool = True, subnet: IPv4Network = SUBNET) -> LeaseAdded:
    return LeaseAdded(Lease(subnet, LeaseAttrs(PEER_IP, in_kernel=in_kernel), expires_in(86400), 1, 1))


class FakeFastPath:
    """Notes what is asked of it in the story of its world."""

    def __init__(self, world: World, config: FastPathConfig) -> None:
        self.world = world
        self.config = config
        self.peers: dict[IPv4Network, bool] = {}
        self.deadline = 0.0
        self.may_send = True
        self.may_answer = asyncio.Event()  # for flaws
        self.may_answer.set()
        self.carried = 0
        self.removed_tally = Totals()
        self.found: list[str] = []

    async def open(self, netlink: object) -> None:
        self.world.tell("open")

    async def attach(self, netlink: object) -> None:
        assert bool(self.deadline) is bool(self.peers)
        self.world.tell(f"attach {len(self.peers)}")

    async def close_outgoing(self, netlink: object) -> None:
        self.world.tell("close outgoing")

    async def close(self, netlink: object) -> None:
        self.world.tell("close")

    def release(self) -> None:
        self.world.tell("release")

    def set(self, subnet: IPv4Network, public_ip: IPv4Address, *, in_kernel: bool) -> None:
        assert public_ip == PEER_IP
        self.peers[subnet] = in_kernel

    def remove(self, subnet: IPv4Network) -> None:
        self.removed_tally.add(self.tally(subnet))
        del self.peers[subnet]

    def extend(self, deadline: float) -> None:
        self.deadline = deadline

    def allow_sending(self, *, is_allowed: bool) -> None:
        self.may_send = is_allowed

    def tally(self, subnet: IPv4Network) -> Totals:
        total = Totals()
        total.packets_out = self.carried
        return total

    async def flaws(self, netlink: object) -> list[str]:
        await self.may_answer.wait()
        return self.found

    async def repair(self, netlink: object) -> None:
        self.world.tell("repair")


class FakeTun:
    def __init__(self, name: str = "flannel0") -> None:
        self.name = name


class World:
    """The kernel mode of a host: its lease, guard and keeper are the world itself."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, is_required: bool, survives_stop: bool) -> None:
        self.story: list[str] = []
        self.fails: dict[str, str] = {}
        self.during: dict[str, Callable[[], None]] = {}
        self.blocked: str | None = None
        self.left: float | None = 3600.0
        self.left_peers: AddressRanges | None = None
        self.has_store = asyncio.Event()  # the store answers
        self.has_store.set()
        self.written_at: float | None = -math.inf
        self.changed = asyncio.Event()
        self.survives_stop = survives_stop
        self.peers: Callable[[], AddressRanges | None] = lambda: None
        self.fast_paths: list[FakeFastPath] = []
        monkeypatch.setattr(datapath, "FastPath", self._fast_path)
        monkeypatch.setattr(datapath, "Netlink", FakeNetlink)
        monkeypatch.setattr(datapath, "remove_left_programs", self._remove_left)
        monkeypatch.setattr(datapath, "has_left_programs", self._has_left_programs)
        monkeypatch.setattr(datapath, "left_peers", self._left_peers)
        mode = KernelMode(is_required, self, self._guard, cast("Any", self))
        self.tun = FakeTun()
        self.kernel = KernelDatapath(mode, CONFIG, cast("Any", self.tun))

    @property
    def fast_path(self) -> FakeFastPath:
        return self.fast_paths[-1]

    def tell(self, what: str) -> None:
        self.story.append(what)
        self.during.get(what, lambda: None)()
        if what.split()[0] in self.fails:
            raise HostError(self.fails[what.split()[0]])

    def _fast_path(self, config: FastPathConfig) -> FakeFastPath:
        self.fast_paths.append(FakeFastPath(self, config))
        return self.fast_path

    async def _remove_left(self, netlink: object, alias: str, keep: Container[str] = ()) -> list[str]:
        assert alias == CONFIG.alias
        self.tell("remove elsewhere" if "eth1" in keep else "remove left")
        return []

    async def _has_left_programs(self, netlink: object, device: str, external: str, alias: str) -> bool:
        assert (device, external, alias) == (CONFIG.device, CONFIG.external, CONFIG.alias)
        return self.left_peers is not None

    async def _left_peers(self, netlink: object, alias: str) -> AddressRanges | None:
        assert alias == CONFIG.alias
        return self.left_peers

    def _guard(self, datagrams: object, peers: Callable[[], AddressRanges | None]) -> World:
        self.peers = peers
        return self

    # OwnLease

    def seconds_left(self) -> float | None:
        return self.left

    def announce(self, *, in_kernel: bool) -> None:
        self.tell(f"announce {in_kernel}")
        self.written_at = None

    async def announced(self) -> float:
        await self.has_store.wait()
        now = asyncio.get_running_loop().time()
        if self.written_at is None:
            self.written_at = now
        return now - self.written_at

    # Guard

    def block(self, reason: str | None) -> None:
        self.blocked = reason
        self.changed.set()
        self.changed = asyncio.Event()

    def reason(self) -> str | None:
        return self.blocked

    async def check(self) -> str | None:
        return self.blocked

    async def run(self) -> Never:
        await asyncio.Event().wait()
        raise AssertionError

    async def wait_change(self) -> None:
        await self.changed.wait()

    def peers_changed(self) -> None:
        pass

    def close(self) -> None:
        pass

    # TunKeeper

    def keep(self, tun: FakeTun) -> None:
        self.tell(f"keep {tun.name}")

    def replace(self, former: FakeTun, tun: FakeTun) -> None:
        self.tell(f"keep {tun.name} instead of {former.name}")

    def release(self, tun: FakeTun) -> None:
        self.tell(f"let go {tun.name}")


def play(
    monkeypatch: pytest.MonkeyPatch,
    scenario: Callable[[World], Awaitable[None]],
    *,
    is_required: bool = False,
    survives_stop: bool = False,
) -> None:
    async def whole() -> None:
        await scenario(World(monkeypatch, is_required=is_required, survives_stop=survives_stop))

    run_in_virtual_time(whole())


async def running(world: World) -> asyncio.Task[None]:
    """Open the datapath with one peer, and return its task once the kernel carries packets, or is known not to."""
    await world.kernel.open(cast("Any", FakeNetlink()))
    task = asyncio.create_task(world.kernel.run())
    world.kernel.apply([added()])
    await world.kernel.settled()
    await asyncio.sleep(1)
    return task


STARTED = ["open", "attach 0", "keep flannel0"]
USED = [*STARTED, "attach 1", "remove elsewhere", "keep flannel0", "announce True"]


def test_the_lease_announces_the_kernel_after_the_programs_are_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        await running(world)
        assert world.story == USED
        assert world.kernel.is_used
        assert world.fast_path.peers == {SUBNET: True}
        await world.kernel.close()
        assert world.story[len(USED) :] == ["close", "let go flannel0"]

    play(monkeypatch, scenario)


def test_with_a_descriptor_store_programs_and_device_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        await running(world)
        await world.kernel.close()
        assert world.story[len(USED) :] == ["release"]

    play(monkeypatch, scenario, survives_stop=True)


@pytest.mark.parametrize("level", [logging.WARNING, logging.ERROR])
def test_switching_back_and_forth(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, level: int
) -> None:
    async def scenario(world: World) -> None:
        await running(world)
        world.fast_path.carried = 5
        world.story.clear()
        world.block("an XFRM policy")
        await asyncio.sleep(0.01)
        assert world.story == ["close outgoing", "announce False"]
        assert (world.kernel.is_used, world.kernel.loop_cause) == (False, "an XFRM policy")
        await asyncio.sleep(LEASE_SECONDS)
        assert world.story[2:] == ["close", "let go flannel0"]
        assert world.kernel.carried(SUBNET).packets_out == 5
        world.story.clear()
        world.block(None)
        await asyncio.sleep(PAUSE_SECONDS + 1)
        assert world.story == ["open", "attach 1", "remove elsewhere", "keep flannel0", "announce True"]
        assert (world.kernel.is_used, world.kernel.loop_cause) == (True, "")
        world.fast_path.carried = 2
        assert world.kernel.carried(SUBNET).packets_out == 7
        world.kernel.apply([LeaseRemoved(SUBNET)])
        assert world.kernel.removed.packets_out == 7

    play(monkeypatch, scenario, is_required=level is logging.ERROR)
    [record] = [record for record in caplog.records if "switched" in record.message]
    assert record.levelno == level
    assert record.message == "Datapath switched from kernel to loop: an XFRM policy"


def test_the_outgoing_program_stops_at_once_while_filters_are_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        await running(world)
        assert world.fast_path.may_send
        world.story.clear()
        world.fast_path.may_answer.clear()
        repair = asyncio.create_task(world.kernel.repair(cast("Any", FakeNetlink()), cast("Any", world.tun)))
        await asyncio.sleep(0.01)
        world.block("an XFRM policy")
        await asyncio.sleep(0.01)
        assert (world.story, world.fast_path.may_send) == ([], False)
        world.fast_path.may_answer.set()
        await repair
        await asyncio.sleep(0.01)
        assert world.story == ["close outgoing", "announce False"]
        world.block(None)
        await asyncio.sleep(LEASE_SECONDS + PAUSE_SECONDS + 1)
        assert (world.kernel.is_used, world.fast_path.may_send) == (True, True)

    play(monkeypatch, scenario)


def test_what_forbids_the_kernel_while_programs_load_stops_the_outgoing_one_before_it_is_attached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(world: World) -> None:
        world.block("a rule")
        await running(world)
        world.during["open"] = lambda: world.block("a policy")
        world.block(None)
        await asyncio.sleep(0.01)
        assert world.story[3:7] == ["open", "attach 1", "remove elsewhere", "keep flannel0"]
        assert world.story[-2:] == ["close outgoing", "announce False"]
        assert not world.fast_path.may_send

    play(monkeypatch, scenario)


def test_programs_are_attached_with_settings_that_work_without_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be killed right after the attachment."""

    async def scenario(world: World) -> None:
        settings: list[tuple[bool, bool]] = []
        world.during["attach 1"] = lambda: settings.append((world.fast_path.may_send, world.fast_path.deadline > 0))
        await running(world)
        assert settings == [(True, True)]
        world.block("a policy")
        await asyncio.sleep(LEASE_SECONDS + PAUSE_SECONDS + 1)
        world.during["open"] = lambda: world.block("a rule")
        world.block(None)
        await asyncio.sleep(0.01)
        assert settings[1:] == [(False, True)]

    play(monkeypatch, scenario)


def test_what_forbids_the_kernel_at_the_start_removes_what_an_earlier_process_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        world.block("a rule")
        task = await running(world)
        assert world.story == ["announce False", "let go flannel0", "remove left"]
        assert world.kernel.loop_cause == "a rule"
        world.block(None)
        await asyncio.sleep(1)
        assert world.story[3:] == ["open", "attach 1", "remove elsewhere", "keep flannel0", "announce True"]
        assert not task.done()

    play(monkeypatch, scenario)
    assert [record.message for record in caplog.records if record.levelno > logging.INFO] == ["Datapath loop: a rule"]


def test_a_kernel_that_rejects_the_programs_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        world.fails["open"] = "Operation not permitted"
        await (await running(world))
        assert world.story == ["open", "announce False", "let go flannel0", "remove left"]
        assert world.kernel.loop_cause == "Operation not permitted"

    play(monkeypatch, scenario)


def test_the_outgoing_program_begins_without_an_answer_of_the_store(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The incoming program of a peer takes datagrams of every known peer, so the lease need not be read first."""
    caplog.set_level(logging.INFO)

    async def scenario(world: World) -> None:
        world.has_store.clear()
        await running(world)
        assert (world.kernel.is_used, world.fast_path.may_send) == (True, True)

    play(monkeypatch, scenario)
    assert [message.partition(":")[0] for message in caplog.messages] == ["Datapath kernel"]


def test_the_incoming_program_stays_until_peers_have_read_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        await running(world)
        world.story.clear()
        world.has_store.clear()
        world.block("a rule")
        await asyncio.sleep(1)
        deadline = world.fast_path.deadline
        await asyncio.sleep(1000)
        assert world.story == ["close outgoing", "announce False"]
        assert world.fast_path.deadline == deadline
        assert await world.kernel.repair(cast("Any", FakeNetlink()), cast("Any", world.tun)) == []
        world.has_store.set()
        await asyncio.sleep(LEASE_SECONDS - 0.5)
        assert len(world.story) == 2
        await asyncio.sleep(1)
        assert world.story[2:] == ["close", "let go flannel0"]

    play(monkeypatch, scenario)


def test_the_incoming_program_is_restored_until_peers_have_read_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        task = await running(world)
        netlink, tun = cast("Any", FakeNetlink()), cast("Any", world.tun)
        world.has_store.clear()
        world.block("a rule")
        await asyncio.sleep(1)
        world.story.clear()
        world.fast_path.found = ["eth1 lost the incoming program"]
        assert await world.kernel.repair(netlink, tun) == ["eth1 lost the incoming program"]
        assert world.story == ["repair"]
        world.fails["repair"] = "cannot attach"
        assert await world.kernel.repair(netlink, tun) == []
        assert (world.kernel.is_used, world.fast_path.may_send, task.done()) == (False, False, False)
        assert world.kernel.loop_cause == "a rule"

    play(monkeypatch, scenario)


def test_a_device_that_gets_another_name_during_a_switch_back_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs for the former name go, and no others come."""

    async def scenario(world: World) -> None:
        await running(world)
        world.has_store.clear()
        world.block("a rule")
        await asyncio.sleep(1)
        world.story.clear()
        assert await world.kernel.repair(cast("Any", FakeNetlink()), cast("Any", FakeTun("flannel1"))) == []
        assert world.story == ["keep flannel1 instead of flannel0", "close", "let go flannel1"]
        assert not world.kernel.is_used
        world.has_store.set()
        world.block(None)
        await asyncio.sleep(LEASE_SECONDS + PAUSE_SECONDS + 1)
        assert world.fast_path.config.device == "flannel1"
        assert world.kernel.is_used

    play(monkeypatch, scenario)


def test_programs_that_cannot_be_restored_give_way_to_the_loop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        task = await running(world)
        world.story.clear()
        world.fast_path.found = ["eth1 lost the incoming program"]
        world.fails["repair"] = world.fails["attach"] = "cannot attach"
        assert await world.kernel.repair(cast("Any", FakeNetlink()), cast("Any", world.tun)) == []
        await asyncio.sleep(1)
        assert world.story == ["repair", "close outgoing", "announce False"]
        assert (world.kernel.is_used, world.kernel.loop_cause) == (False, "cannot attach")
        await asyncio.sleep(LEASE_SECONDS + PAUSE_SECONDS + 1)
        assert world.kernel.loop_cause == "cannot attach"
        task.cancel()

    play(monkeypatch, scenario)
    assert caplog.messages == ["Datapath switched from kernel to loop: cannot attach"]


def test_a_required_kernel_that_does_not_attach_the_programs_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        world.fails["attach"] = "cannot attach"
        with pytest.raises(HostError, match=r"\(-datapath=kernel\): cannot attach"):
            await world.kernel.open(cast("Any", FakeNetlink()))
        assert world.story[:4] == ["open", "attach 0", "close", "let go flannel0"]
        assert world.story[4:] == ["announce False", "let go flannel0", "remove left"]

    play(monkeypatch, scenario, is_required=True)


def test_a_kernel_that_is_required_and_cannot_be_used_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        world.fails["open"] = "no BPF"
        with pytest.raises(HostError, match=r"\(-datapath=kernel\): no BPF"):
            await world.kernel.open(cast("Any", FakeNetlink()))
        assert world.story[-2:] == ["let go flannel0", "remove left"]

    play(monkeypatch, scenario, is_required=True)


@pytest.mark.parametrize("is_about_a_peer", [True, False])
def test_whether_a_rule_forbids_a_required_kernel_is_known_with_the_first_leases(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, is_about_a_peer: bool
) -> None:
    async def scenario(world: World) -> None:
        world.block("a rule")
        await world.kernel.open(cast("Any", FakeNetlink()))
        assert world.story == ["announce False", "let go flannel0", "remove left"]
        running = asyncio.create_task(world.kernel.run())
        settling = asyncio.create_task(world.kernel.settled())
        await asyncio.sleep(1)
        assert not running.done()
        assert not settling.done()
        world.block("a rule" if is_about_a_peer else None)
        world.kernel.apply([added()])
        await asyncio.sleep(1)
        if is_about_a_peer:
            with pytest.raises(HostError, match=r"\(-datapath=kernel\): a rule"):
                await running
            assert not settling.done(), "the host is never ready"
        else:
            assert settling.done()
            assert world.kernel.is_used

    play(monkeypatch, scenario, is_required=True)
    assert caplog.messages == []


@pytest.mark.parametrize("what", ["open", "attach"])
def test_a_required_kernel_that_rejects_the_programs_after_the_first_leases_ends_the_start(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """They are not loaded before if something forbids it."""

    async def scenario(world: World) -> None:
        world.block("a rule")
        world.fails[what] = "no BPF"
        await world.kernel.open(cast("Any", FakeNetlink()))
        world.block(None)
        running = asyncio.create_task(world.kernel.run())
        world.kernel.apply([added()])
        with pytest.raises(HostError, match=r"\(-datapath=kernel\): no BPF"):
            await asyncio.wait_for(running, 1)
        assert world.story[-1] == "remove left"

    play(monkeypatch, scenario, is_required=True)


def test_a_rule_that_concerns_a_peer_of_the_first_leases_begins_with_the_loop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Until then, programs of an earlier process work with the peers that it knew."""

    async def scenario(world: World) -> None:
        world.left_peers = AddressRanges([(7, 7)])
        await world.kernel.open(cast("Any", FakeNetlink()))
        assert world.peers() == world.left_peers
        world.block("a rule")
        task = asyncio.create_task(world.kernel.run())
        await asyncio.sleep(1)
        world.story.clear()
        world.kernel.apply([added()])
        await world.kernel.settled()
        await asyncio.sleep(1)
        assert world.story == ["announce False", "close", "let go flannel0", "let go flannel0", "remove left"]
        assert world.kernel.loop_cause == "a rule"
        world.block(None)
        await asyncio.sleep(1)
        assert (world.kernel.is_used, task.done()) == (True, False)

    play(monkeypatch, scenario)
    assert caplog.messages == ["Datapath loop: a rule"]


def test_programs_that_cannot_be_detached_stop_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        task = await running(world)
        world.fails["close"] = "no netlink"
        world.block("a policy")
        with pytest.raises(HostError, match="no netlink"):
            await task
        assert world.fast_path.deadline == 0

    play(monkeypatch, scenario)


@pytest.mark.parametrize(("left", "at_least"), [(3600.0, 3600.0), (0.0, 3.0), (1.0, 3.0), (None, math.inf)])
def test_the_deadline_follows_the_lease_and_a_living_daemon_moves_it_on(
    monkeypatch: pytest.MonkeyPatch, left: float | None, at_least: float
) -> None:
    async def scenario(world: World) -> None:
        await running(world)
        world.left = left
        await asyncio.sleep(1.5)
        assert world.fast_path.deadline - BootClock().now() == pytest.approx(at_least, abs=1)

    play(monkeypatch, scenario)


def test_peers_follow_their_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        assert world.peers() is None
        await running(world)
        address = int(PEER_IP)
        assert world.peers() == AddressRanges([(address, address)])
        world.kernel.apply([added(in_kernel=False)])
        assert world.fast_path.peers == {SUBNET: False}
        world.kernel.apply([LeaseRemoved(SUBNET)])
        assert world.fast_path.peers == {}
        assert world.peers() == AddressRanges([])

    play(monkeypatch, scenario)


def test_repairs(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        await running(world)
        netlink, tun = cast("Any", FakeNetlink()), cast("Any", world.tun)
        world.story.clear()
        assert await world.kernel.repair(netlink, tun) == []
        world.fast_path.found = ["eth1 lost the incoming program"]
        assert await world.kernel.repair(netlink, tun) == ["eth1 lost the incoming program"]
        assert world.story == ["repair"]
        world.fast_path.found, another = [], cast("Any", FakeTun())
        assert await world.kernel.repair(netlink, another) == []
        assert world.story[1:] == ["keep flannel0 instead of flannel0"]
        await world.kernel.repair(netlink, cast("Any", FakeTun("flannel1")))
        assert world.story[2:] == [
            "keep flannel1 instead of flannel0",
            "close",
            "let go flannel1",
            "open",
            "attach 1",
            "remove elsewhere",
            "keep flannel1",
        ]
        assert world.fast_path.config.device == "flannel1"
        assert world.kernel.is_used

    play(monkeypatch, scenario)


def test_a_device_that_got_another_name_while_the_loop_carries_gets_the_programs_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(world: World) -> None:
        await running(world)
        world.block("a policy")
        await asyncio.sleep(LEASE_SECONDS + 1)
        assert await world.kernel.repair(cast("Any", FakeNetlink()), cast("Any", FakeTun("flannel1"))) == []
        world.block(None)
        await asyncio.sleep(PAUSE_SECONDS + 1)
        assert world.fast_path.config.device == "flannel1"
        assert world.kernel.is_used

    play(monkeypatch, scenario)
