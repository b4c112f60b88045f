"""The fast path is forbidden at once by what it would bypass, and by what cannot be found out."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import IPv4Address

import pytest
from support.fakes_iptables import FakeTables

from flannelpy.chunks import in_turns
from flannelpy.errors import HostError
from flannelpy.host import bypass_guard
from flannelpy.host.bypass_guard import BypassGuard
from flannelpy.linux import iptables, nftables
from flannelpy.netfilter import bypassed
from flannelpy.netfilter.address_ranges import AddressRanges
from flannelpy.netfilter.bypassed import OuterDatagrams
from flannelpy.netfilter.nft_listing import Entries, NftTable

DATAGRAMS = OuterDatagrams(IPv4Address("192.0.2.1"), 8285, "eth1")
POLICIES = "the kernel has XFRM policies (ip xfrm policy)"
DROP = (
    "the iptables rule '-A INPUT -s 192.0.2.7/32 -j DROP' (table filter, listed by iptables-save) may match the "
    "datagrams between hosts"
)
MISSING = "the firewall rules cannot be checked: the command nft is missing"


def raw_with_zone() -> NftTable:
    """Return the table raw as nft lists it, with a rule at OUTPUT whose effect it cannot tell."""
    chain = {"family": "ip", "table": "raw", "name": "OUTPUT", "hook": "output", "type": "filter", "policy": "accept"}
    rule = {"family": "ip", "table": "raw", "chain": "OUTPUT", "expr": [{"xt": {"type": "target", "name": "CT"}}]}
    found = NftTable("ip", "raw")
    entries = Entries(found.take)
    entries.feed(json.dumps({"nftables": [{"metainfo": {}}, {"chain": chain}, {"rule": rule}]}).encode())
    entries.close()
    return found


class FakePolicies:
    """XFRM policies in memory, whose changes are reported by a socket."""

    def __init__(self) -> None:
        self.state = ""
        self.error = 0
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)

    def opened(self) -> FakePolicies:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        return self

    def change(self, state: str) -> None:
        self.state = state
        self._write.send(b"x")

    def fileno(self) -> int:
        return self._read.fileno()

    def discard_changes(self) -> None:
        try:
            self._read.recv(100)
        except BlockingIOError:
            return

    def found(self) -> str:
        return self.opened().state

    def close(self) -> None:
        """Stay open for the next guard."""

    def end(self) -> None:
        self._read.close()
        self._write.close()


class World:
    """A host with a guard."""

    def __init__(self, tables: FakeTables, policies: FakePolicies) -> None:
        self.tables = tables
        self.policies = policies
        self.peers: AddressRanges | None = AddressRanges([])
        self.guard = BypassGuard(DATAGRAMS, lambda: self.peers, 3600)

    def run(self, story: Callable[[], Awaitable[None]]) -> None:
        async def bounded() -> None:
            try:
                async with asyncio.timeout(10):
                    await story()
            finally:
                self.guard.close()

        asyncio.run(bounded())


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    tables, policies = FakeTables(), FakePolicies()
    tables.install(monkeypatch)
    monkeypatch.setattr(bypass_guard, "XfrmPolicies", policies.opened)
    monkeypatch.setattr(iptables, "unlisted_tables", list)
    monkeypatch.setattr(bypass_guard, "_PAUSE_SECONDS", 0.01)
    yield World(tables, policies)
    policies.end()


def test_before_the_first_check_the_fast_path_is_forbidden(world: World) -> None:
    async def story() -> None:
        assert world.guard.reason() == "the firewall rules have not been checked yet"
        assert await world.guard.check() is None
        assert world.guard.reason() is None

    world.run(story)


def test_a_policy_forbids_at_once_and_its_removal_permits(world: World) -> None:
    async def story() -> None:
        await world.guard.check()
        world.policies.change(POLICIES)
        await world.guard.wait_change()
        assert world.guard.reason() == POLICIES
        world.policies.change("")
        await world.guard.wait_change()
        assert world.guard.reason() is None

    world.run(story)


def test_a_rule_counts_for_the_peers_that_there_are(world: World) -> None:
    async def story() -> None:
        world.tables.tables["filter"]["INPUT"].append("-s 192.0.2.7/32 -j DROP")
        assert await world.guard.check() is None
        running = asyncio.create_task(world.guard.run())
        world.peers = AddressRanges([(int(IPv4Address("192.0.2.7")),) * 2])
        world.guard.peers_changed()
        await world.guard.wait_change()
        assert world.guard.reason() == DROP
        running.cancel()

    world.run(story)


def test_a_rule_counts_for_new_peers_also_if_a_listing_fails_once(world: World) -> None:
    async def story() -> None:
        world.tables.tables["filter"]["INPUT"].append("-s 192.0.2.7/32 -j DROP")
        assert await world.guard.check() is None
        world.peers = AddressRanges([(int(IPv4Address("192.0.2.7")),) * 2])
        world.tables.failure = "busy"
        assert await world.guard.check() == DROP

    world.run(story)


def test_the_latest_peers_count_if_two_searches_overlap(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = asyncio.Event()

    async def slow_at_first(search: bypassed.Search) -> str:
        if world.peers is None:
            await may_end.wait()
        return await in_turns(search)

    async def story() -> None:
        monkeypatch.setattr(bypass_guard, "in_turns", slow_at_first)
        world.tables.tables["filter"]["INPUT"].append("-s 192.0.2.7/32 -j DROP")
        world.peers = None
        former = asyncio.create_task(world.guard.check())
        await asyncio.sleep(0.01)
        world.peers = AddressRanges([])
        latter = asyncio.create_task(world.guard.check())
        await asyncio.sleep(0.01)
        may_end.set()
        await former
        assert await latter is None
        assert world.guard.reason() is None

    world.run(story)


def test_all_who_wait_see_a_change(world: World) -> None:
    async def story() -> None:
        await world.guard.check()
        waiting = [asyncio.create_task(world.guard.wait_change()) for _ in range(3)]
        await asyncio.sleep(0)
        world.policies.change(POLICIES)
        await asyncio.gather(*waiting)

    world.run(story)


def test_rules_are_checked_every_resync_period(world: World) -> None:
    async def story() -> None:
        world.guard = BypassGuard(DATAGRAMS, lambda: None, 0.01)
        running = asyncio.create_task(world.guard.run())
        await world.guard.wait_change()
        world.tables.tables["filter"]["INPUT"].append("-s 192.0.2.7/32 -j DROP")
        await world.guard.wait_change()
        assert world.guard.reason() == DROP
        world.tables.tables["filter"]["INPUT"].clear()
        await world.guard.wait_change()
        assert world.guard.reason() is None
        running.cancel()

    world.run(story)


def test_rules_that_change_during_a_listing_are_listed_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nft lists a table of ours that iptables had not listed yet, and whose rules are not known as ours."""
    empty: tuple[list[object], list[NftTable]] = ([], [])
    listings = iter([([], [raw_with_zone()]), empty, empty])

    async def listed() -> object:
        return next(listings)

    async def story() -> None:
        await world.guard.check()
        monkeypatch.setattr(bypass_guard, "_list", listed)
        assert await world.guard.check() is None

    world.run(story)


def test_rules_that_nothing_has_changed_are_not_listed_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        world.tables.generation = 1
        assert await world.guard.check() is None
        monkeypatch.setattr(bypass_guard, "_list", pytest.fail)
        assert await world.guard.check() is None

    world.run(story)


def test_a_listing_that_nothing_confirms_is_not_searched(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    listings: Iterator[object] = iter([([], [raw_with_zone()])])
    searched = asyncio.Event()

    def peers() -> None:
        searched.set()

    async def listed() -> object:
        for listing in listings:
            return listing
        raise HostError("iptables-save is missing")

    async def story() -> None:
        world.guard = BypassGuard(DATAGRAMS, peers, 3600)
        await world.guard.check()
        monkeypatch.setattr(bypass_guard, "_list", listed)
        assert await world.guard.check() is None
        searched.clear()
        world.guard.peers_changed()
        running = asyncio.create_task(world.guard._follow_peers())
        await searched.wait()
        await asyncio.sleep(0)
        assert world.guard.reason() is None
        running.cancel()

    world.run(story)


def test_rules_that_change_all_the_time_are_searched(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def change() -> dict[str, NftTable | HostError]:
        world.tables.tables["filter"]["INPUT"].append("-s 192.0.2.7/32 -j DROP")
        return {}

    async def story() -> None:
        world.peers = None
        monkeypatch.setattr(nftables, "tables", lambda *_, **__: change())
        assert await world.guard.check() == DROP

    world.run(story)


def test_rules_that_cannot_be_listed_twice_forbid_the_fast_path(world: World) -> None:
    async def story() -> None:
        await world.guard.check()
        world.tables.nft_tables = {"inet fw": HostError("the command nft is missing")}
        assert await world.guard.check() is None
        assert await world.guard.check() == MISSING
        world.tables.nft_tables = {}
        assert await world.guard.check() is None

    world.run(story)


def test_a_listing_that_failed_is_repeated_before_the_period_ends(world: World) -> None:
    async def story() -> None:
        await world.guard.check()
        world.tables.failure = "busy"
        running = asyncio.create_task(world.guard.run())
        await world.guard.wait_change()
        assert world.guard.reason() == "the firewall rules cannot be checked: busy"
        running.cancel()

    world.run(story)


def test_a_first_listing_that_failed_is_repeated_before_it_counts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    async def listed() -> dict[str, NftTable | HostError]:
        nonlocal calls
        calls += 1
        return {"inet fw": HostError("the host is busy")} if calls == 1 else {}

    async def story() -> None:
        monkeypatch.setattr(nftables, "tables", lambda *_, **__: listed())
        assert await world.guard.check() is None

    world.run(story)


def test_a_host_whose_rules_cannot_be_listed_does_not_wait_at_every_check(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        world.tables.failure = "the command iptables-save is missing"
        await world.guard.check()
        monkeypatch.setattr(bypass_guard, "_PAUSE_SECONDS", 3600)
        await world.guard.check()

    world.run(story)


def test_rules_that_have_never_been_listed_forbid_the_fast_path(world: World) -> None:
    async def story() -> None:
        world.tables.nft_tables = {"inet fw": HostError("the command nft is missing")}
        assert await world.guard.check() == MISSING

    world.run(story)


def test_tables_for_which_there_is_no_command_forbid_the_fast_path(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        monkeypatch.setattr(iptables, "unlisted_tables", lambda: ["filter"])
        expected = "iptables-legacy-save is missing, and the kernel has its tables filter"
        assert await world.guard.check() == f"the firewall rules cannot be checked: {expected}"

    world.run(story)


def test_a_fault_of_ours_forbids_the_fast_path(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        await world.guard.check()
        monkeypatch.setattr(bypassed, "searches", lambda *_: 1 // 0)
        world.peers = None
        reason = await world.guard.check()
        assert reason is not None
        assert reason.startswith("the firewall rules cannot be checked: Unexpected error")

    world.run(story)


def test_a_kernel_without_xfrm_has_no_policies(world: World) -> None:
    async def story() -> None:
        world.policies.error = errno.EPROTONOSUPPORT
        assert await world.guard.check() is None
        world.policies.error = 0
        world.policies.state = POLICIES
        assert await world.guard.check() == POLICIES

    world.run(story)


def test_policies_that_cannot_be_read_forbid_the_fast_path_until_they_can(world: World) -> None:
    async def story() -> None:
        world.policies.error = errno.EPERM
        assert await world.guard.check() == "XFRM policies cannot be read: Operation not permitted"
        world.policies.error = 0
        assert await world.guard.check() is None
        world.policies.error = errno.EBADMSG
        world.policies.change("")
        await world.guard.wait_change()
        assert world.guard.reason() == "XFRM policies cannot be read: Bad message"

    world.run(story)
