"""What every Registry promises, sentence by sentence of flannelpy/registry/base.py."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

import pytest

from flannelpy.errors import CompareFailed, HistoryGone, HistoryOverrun, KeyExists, KeyNotFound, RegistryUnavailable
from flannelpy.registry.base import EXPIRES, PERMANENT, Changes, Deleted, KeyValue, Put, Registry, Snapshot, expires_in

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from contract.conftest import Store

Result = TypeVar("Result")

DAY = 86400
DEADLINE = 20.0
A, B, C = "11.0.1.0-24", "11.0.2.0-24", "11.0.3.0-24"


def run(store: Store, test: Callable[[Registry], Awaitable[Result]]) -> Result:
    """``test`` with a registry that is closed afterwards."""

    async def body() -> Result:
        registry = store.connect()
        try:
            async with asyncio.timeout(DEADLINE):
                return await test(registry)
        finally:
            await registry.close()

    return asyncio.run(body())


def timeless(*changes: Put | Deleted) -> list[Put | Deleted]:
    """The changes without the seconds of their lifetimes, which not every store reports."""
    return [
        Put(change.entry._replace(lifetime=EXPIRES))
        if isinstance(change, Put) and change.entry.lifetime.expires
        else change
        for change in changes
    ]


async def follow(registry: Registry, cursor: int, count: int) -> tuple[list[Put | Deleted], int]:
    """The next ``count`` changes, timeless, and the cursor after them."""
    followed: list[Put | Deleted] = []
    while len(followed) < count:
        changes, cursor, _ = await registry.watch(cursor, DEADLINE)
        followed += timeless(*changes)
    return followed, cursor


async def _deletion_of(name: str, registry: Registry, cursor: int) -> None:
    changes: list[Put | Deleted] = []
    while Deleted(name) not in changes:
        changes, cursor = await follow(registry, cursor, 1)


class TestConfig:
    def test_is_returned_as_stored(self, store: Store) -> None:
        config = '{ "Network": "11.0.0.0/16",\n\t"Häuser": "a=b&c d%20+" }\n'
        store.set_config(config)
        assert run(store, lambda registry: registry.read_config()) == config

    def test_missing(self, store: Store) -> None:
        with pytest.raises(KeyNotFound):
            run(store, lambda registry: registry.read_config())


class TestSnapshot:
    def test_no_leases_yet_is_an_empty_one_to_watch_from(self, store: Store) -> None:
        async def test(registry: Registry) -> None:
            snapshot = await registry.snapshot()
            assert snapshot.entries == ()
            entry = await registry.create(A, "a", DAY)
            assert await follow(registry, snapshot.cursor, 1) == (timeless(Put(entry)), entry.version + 1)

        run(store, test)

    def test_a_directory_that_became_empty(self, store: Store) -> None:
        store.put(A, "a", None)
        store.delete(A)
        assert run(store, lambda registry: registry.snapshot()).entries == ()

    def test_all_leases_with_relative_names(self, store: Store) -> None:
        store.put(A, "a", None)
        store.put(B, "", DAY)

        async def test(registry: Registry) -> tuple[KeyValue, Snapshot]:
            return await registry.create(C, '{"PublicIP":"10.0.0.1"}', DAY), await registry.snapshot()

        created, snapshot = run(store, test)
        entries = {entry.name: entry for entry in snapshot.entries}
        assert set(entries) == {A, B, C}
        assert (entries[A].value, entries[A].lifetime) == ("a", PERMANENT)
        assert entries[B].value == ""
        assert entries[B].lifetime.expires
        assert DAY - DEADLINE <= (entries[B].lifetime.seconds or DAY) <= DAY
        assert entries[C]._replace(lifetime=created.lifetime) == created
        assert entries[A].version < entries[B].version < entries[C].version < snapshot.cursor


class TestSnapshotOf:
    def test_is_the_entry_as_in_a_snapshot_of_all(self, store: Store) -> None:
        store.put(A, "a", DAY)
        store.put(B, "b", None)

        async def test(registry: Registry) -> None:
            everything = await registry.snapshot()
            assert len(everything.entries) == 2
            for entry in everything.entries:
                assert await registry.snapshot_of(entry.name) == Snapshot((entry,), everything.cursor)

        run(store, test)

    @pytest.mark.parametrize("name", [C, "11.0.1.0-2", "11.0.1.0-24&fd00::-64", "a b?c=1"])
    def test_of_nothing_is_empty_and_to_watch_from(self, store: Store, name: str) -> None:
        store.put(A, "a", DAY)

        async def test(registry: Registry) -> None:
            found = await registry.snapshot_of(name)
            assert found.entries == ()
            entry = await registry.create(B, "b", DAY)
            assert await follow(registry, found.cursor, 1) == (timeless(Put(entry)), entry.version + 1)

        run(store, test)

    def test_before_there_is_any_lease(self, store: Store) -> None:
        assert run(store, lambda registry: registry.snapshot_of(A)).entries == ()


class TestCreate:
    def test_returns_what_is_stored(self, store: Store) -> None:
        entry = run(store, lambda registry: registry.create(A, "a & b = ü", DAY))
        assert entry[:3] == (A, "a & b = ü", expires_in(DAY))

    def test_is_the_creation_and_the_next_one_is_a_later_one(self, store: Store) -> None:
        async def test(registry: Registry) -> tuple[KeyValue, KeyValue, KeyValue]:
            first, other = await registry.create(A, "a", DAY), await registry.create(B, "b", DAY)
            await registry.compare_and_delete(A, first.version)
            return first, other, await registry.create(A, "a", DAY)

        first, other, again = run(store, test)
        assert (first.created, other.created, again.created) == (first.version, other.version, again.version)
        assert first.created < other.created < again.created

    def test_of_what_is_set_without_a_condition_depends_on_the_store(self, store: Store) -> None:
        """As flanneld renews its lease."""

        async def test(registry: Registry) -> list[KeyValue]:
            found: list[KeyValue] = []
            for value in ("a", "b"):
                store.put(A, value, DAY)
                found += (await registry.snapshot()).entries
            return found

        before, after = run(store, test)
        assert before.version < after.version
        assert after.created == (before.created if store.keeps_creation else after.version)

    def test_taken(self, store: Store) -> None:
        store.put(A, "a", None)

        async def test(registry: Registry) -> Snapshot:
            with pytest.raises(KeyExists):
                await registry.create(A, "b", DAY)
            return await registry.snapshot()

        (entry,) = run(store, test).entries
        assert (entry.value, entry.lifetime) == ("a", PERMANENT)

    def test_taken_with_the_same_value(self, store: Store) -> None:
        store.put(A, "a", DAY)
        with pytest.raises(KeyExists):
            run(store, lambda registry: registry.create(A, "a", DAY))

    def test_of_sixteen_at_once_one_wins(self, store: Store) -> None:
        async def test(registry: Registry) -> tuple[list[KeyValue | BaseException], Snapshot]:
            creators = (registry.create(A, f"creator {number}", DAY) for number in range(16))
            return await asyncio.gather(*creators, return_exceptions=True), await registry.snapshot()

        outcomes, snapshot = run(store, test)
        winners = [outcome for outcome in outcomes if isinstance(outcome, KeyValue)]
        assert [entry._replace(lifetime=expires_in(DAY)) for entry in snapshot.entries] == winners
        assert sum(isinstance(outcome, KeyExists) for outcome in outcomes) == 15

    @pytest.mark.parametrize("lease_ttl", [0, -1])
    def test_never_makes_a_lifetime_of_none_into_for_ever(self, store: Store, lease_ttl: int) -> None:
        with pytest.raises(ValueError, match="lease_ttl"):
            run(store, lambda registry: registry.create(A, "a", lease_ttl))


class TestCompareAndSwap:
    def test_replaces_value_lifetime_and_version(self, store: Store) -> None:
        async def test(registry: Registry) -> tuple[KeyValue, KeyValue, Snapshot]:
            old = await registry.create(A, "old", 100)
            return old, await registry.compare_and_swap(A, "new", DAY, old.version), await registry.snapshot()

        old, new, snapshot = run(store, test)
        assert new[:3] == (A, "new", expires_in(DAY))
        assert new.version > old.version
        assert [entry._replace(lifetime=expires_in(DAY)) for entry in snapshot.entries] == [new]

    def test_keeps_the_creation(self, store: Store) -> None:
        async def test(registry: Registry) -> list[KeyValue]:
            first = await registry.create(A, "old", 100)
            second = await registry.compare_and_swap(A, "new", DAY, first.version)
            third = await registry.compare_and_swap(A, "newer", None, second.version)
            return [first, second, third, *(await registry.snapshot()).entries]

        entries = run(store, test)
        assert {entry.created for entry in entries} == {entries[0].version}

    def test_of_no_lifetime_is_for_ever(self, store: Store) -> None:
        async def test(registry: Registry) -> tuple[KeyValue, Snapshot]:
            old = await registry.create(A, "a", 1)
            snapshot = await registry.snapshot()
            new = await registry.compare_and_swap(A, "a", None, old.version)
            # That B goes shows that A would have gone too.
            await registry.create(B, "b", 1)
            followed, _ = await follow(registry, snapshot.cursor, 3)
            assert followed[2] == Deleted(B)
            return new, await registry.snapshot()

        new, snapshot = run(store, test)
        assert new.lifetime == PERMANENT
        assert snapshot.entries == (new,)

    def test_at_another_version(self, store: Store) -> None:
        async def test(registry: Registry) -> None:
            old = await registry.create(A, "old", DAY)
            new = await registry.compare_and_swap(A, "new", DAY, old.version)
            with pytest.raises(CompareFailed):
                await registry.compare_and_swap(A, "newest", DAY, old.version)
            (entry,) = (await registry.snapshot()).entries
            assert (entry.value, entry.version) == ("new", new.version)

        run(store, test)

    def test_of_nothing(self, store: Store) -> None:
        with pytest.raises(KeyNotFound):
            run(store, lambda registry: registry.compare_and_swap(A, "a", DAY, 1))


class TestRenew:
    def test_extends_the_lifetime(self, store: Store) -> None:
        async def test(registry: Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            entry = await registry.create(A, "a", 3)
            await registry.create(B, "b", 3)
            expiring = asyncio.create_task(_deletion_of(B, registry, cursor))
            while not expiring.done():
                entry = await registry.renew(A, "a", 3, entry.version)
                assert entry.lifetime == expires_in(3)
                await asyncio.wait([expiring], timeout=0.5)
            assert [entry.name for entry in (await registry.snapshot()).entries] == [A]

        run(store, test)

    def test_is_reported_or_keeps_the_version(self, store: Store) -> None:
        async def test(registry: Registry) -> None:
            old = await registry.create(A, "a", DAY)
            renewed = await registry.renew(A, "a", DAY, old.version)
            assert (renewed.value, renewed.lifetime, renewed.created) == ("a", expires_in(DAY), old.created)
            other = await registry.create(B, "b", DAY)
            expected = [Put(renewed), Put(other)] if store.reports_renewals else [Put(other)]
            assert (renewed.version > old.version) == store.reports_renewals
            assert (await follow(registry, old.version + 1, len(expected)))[0] == timeless(*expected)

        run(store, test)

    def test_can_be_repeated(self, store: Store) -> None:
        async def test(registry: Registry) -> None:
            entry = await registry.create(A, "a", DAY)
            for _ in range(3):
                entry = await registry.renew(A, "a", DAY, entry.version)
            assert (await registry.snapshot()).entries[0].version == entry.version

        run(store, test)

    def test_changes_the_lifetime_of_an_entry(self, store: Store) -> None:
        """A host may renew with another TTL than it, or an administrator, has created the entry with."""

        async def test(registry: Registry) -> tuple[KeyValue, Snapshot]:
            store.put(A, "a", 2)
            (old,) = (await registry.snapshot()).entries
            renewed = await registry.renew(A, "a", DAY, old.version)
            again = await registry.renew(A, "a", DAY, renewed.version)
            assert (again.version > renewed.version) == store.reports_renewals
            # That B goes shows that A would have gone too.
            b = await registry.create(B, "b", 2)
            assert (await follow(registry, b.version + 1, 1))[0] == [Deleted(B)]
            return again, await registry.snapshot()

        renewed, snapshot = run(store, test)
        assert renewed.lifetime == expires_in(DAY)
        assert timeless(*map(Put, snapshot.entries)) == timeless(Put(renewed))

    @pytest.mark.parametrize("value", ["a", "another"])
    def test_of_a_permanent_entry_leaves_it_permanent(self, store: Store, value: str) -> None:
        async def test(registry: Registry) -> tuple[KeyValue, Snapshot]:
            store.put(A, "a", None)
            (old,) = (await registry.snapshot()).entries
            return await registry.renew(A, value, DAY, old.version), await registry.snapshot()

        renewed, snapshot = run(store, test)
        assert (renewed.value, renewed.lifetime) == (value, PERMANENT)
        assert snapshot.entries == (renewed,)

    def test_of_another_value_writes_the_value(self, store: Store) -> None:
        async def test(registry: Registry) -> tuple[KeyValue, Snapshot]:
            old = await registry.create(A, "old", DAY)
            return await registry.renew(A, "new", DAY, old.version), await registry.snapshot()

        renewed, snapshot = run(store, test)
        assert (renewed.value, renewed.lifetime) == ("new", expires_in(DAY))
        assert timeless(*map(Put, snapshot.entries)) == timeless(Put(renewed))

    def test_at_another_version(self, store: Store) -> None:
        async def test(registry: Registry) -> None:
            old = await registry.create(A, "a", DAY)
            await registry.compare_and_swap(A, "a", DAY, old.version)
            with pytest.raises(CompareFailed):
                await registry.renew(A, "a", DAY, old.version)

        run(store, test)

    def test_of_nothing(self, store: Store) -> None:
        with pytest.raises(KeyNotFound):
            run(store, lambda registry: registry.renew(A, "a", DAY, 1))


class TestWaitForConfigChange:
    def test_ends_after_a_change(self, store: Store) -> None:
        """A store whose watch does not report it returns after the seconds that are given."""

        async def test(registry: Registry) -> float:
            store.set_config("{}")
            await registry.read_config()
            waiting = asyncio.create_task(registry.wait_for_config_change(1.0))
            cursor = (await registry.snapshot()).cursor
            watching = asyncio.create_task(registry.watch(cursor, DEADLINE))
            await asyncio.wait([waiting], timeout=0.3)
            assert not waiting.done()
            began = time.monotonic()
            store.set_config('{"Network":"11.0.0.0/16"}')
            await waiting
            watching.cancel()
            return time.monotonic() - began

        run(store, test)

    def test_without_a_change(self, store: Store) -> None:
        async def test(registry: Registry) -> bool:
            store.set_config("{}")
            await registry.read_config()
            cursor = (await registry.snapshot()).cursor
            waiting = asyncio.create_task(registry.wait_for_config_change(0.3))
            await registry.watch(cursor, 1.0)
            waiting.cancel()
            return waiting.done()

        assert run(store, test) != store.reports_config


class TestCompareAndDelete:
    def test_deletes(self, store: Store) -> None:
        async def test(registry: Registry) -> Snapshot:
            entry = await registry.create(A, "a", DAY)
            await registry.compare_and_delete(A, entry.version)
            return await registry.snapshot()

        assert run(store, test).entries == ()

    def test_at_another_version(self, store: Store) -> None:
        async def test(registry: Registry) -> Snapshot:
            old = await registry.create(A, "old", DAY)
            await registry.compare_and_swap(A, "new", DAY, old.version)
            with pytest.raises(CompareFailed):
                await registry.compare_and_delete(A, old.version)
            return await registry.snapshot()

        assert [entry.value for entry in run(store, test).entries] == ["new"]

    def test_of_nothing(self, store: Store) -> None:
        with pytest.raises(KeyNotFound):
            run(store, lambda registry: registry.compare_and_delete(A, 1))


class TestWatch:
    def test_from_where_the_store_has_not_come_yet(self, store: Store) -> None:
        """It was wiped or restored from a backup; what comes next has smaller numbers than what was seen."""

        async def test(registry: Registry) -> None:
            cursor = (await registry.snapshot()).cursor + 100
            with pytest.raises(HistoryGone):
                await registry.watch(cursor, 0.5)
            watching = asyncio.create_task(registry.watch(cursor, DEADLINE))
            await asyncio.sleep(0)  # it begins
            for number in range(110):  # and is there long before the store has come that far
                await registry.create(f"11.0.{number}.0-24", "x", DAY)
            with pytest.raises(HistoryGone):
                await watching

        run(store, test)

    def test_tells_everything_after_a_snapshot_in_order(self, store: Store) -> None:
        store.put(C, "before", None)

        async def test(registry: Registry) -> None:
            snapshot = await registry.snapshot()
            a = await registry.create(A, "1", DAY)
            b = await registry.create(B, "2", DAY)
            swapped = await registry.compare_and_swap(A, "3", None, a.version)
            store.put(A, "4", None)
            await registry.compare_and_delete(B, b.version)
            store.delete(A)
            followed, _ = await follow(registry, snapshot.cursor, 6)
            by_hand = followed.pop(3)
            assert followed == timeless(Put(a), Put(b), Put(swapped), Deleted(B), Deleted(A))
            assert isinstance(by_hand, Put)
            assert by_hand.entry[:3] == (A, "4", PERMANENT)

        run(store, test)

    def test_tells_nothing_twice(self, store: Store) -> None:
        async def test(registry: Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            for value in "abc":
                store.put(A, value, None)
                (change,), cursor = await follow(registry, cursor, 1)
                assert isinstance(change, Put)
                assert change.entry.value == value

        run(store, test)

    def test_waits_for_what_is_to_come(self, store: Store) -> None:
        async def test(registry: Registry) -> None:
            snapshot = await registry.snapshot()
            watching = asyncio.create_task(registry.watch(snapshot.cursor, DEADLINE))
            entry = await registry.create(A, "a", DAY)
            assert timeless(*(await watching).changes) == timeless(Put(entry))

        run(store, test)

    def test_tells_a_swap_that_keeps_the_value(self, store: Store) -> None:
        async def test(registry: Registry) -> None:
            old = await registry.create(A, "same", 100)
            snapshot = await registry.snapshot()
            new = await registry.compare_and_swap(A, "same", DAY, old.version)
            assert await follow(registry, snapshot.cursor, 1) == (timeless(Put(new)), new.version + 1)

        run(store, test)

    def test_tells_an_expiry(self, store: Store) -> None:
        async def test(registry: Registry) -> None:
            snapshot = await registry.snapshot()
            await registry.create(A, "a", 1)
            followed, _ = await follow(registry, snapshot.cursor, 2)
            assert followed[1] == Deleted(A)
            assert (await registry.snapshot()).entries == ()

        run(store, test)

    def test_in_vain_is_empty_and_leaves_the_cursor(self, store: Store) -> None:
        store.put(A, "a", None)

        async def test(registry: Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            begin = time.monotonic()
            assert await registry.watch(cursor, 1.0) == Changes((), cursor)
            assert 0.9 <= time.monotonic() - begin < 3

        run(store, test)

    def test_reports_how_far_behind_it_is(self, store: Store) -> None:
        async def test(registry: Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            for number in range(30):
                await registry.create(f"11.0.{number}.0-24", "a", DAY)
            followed = await registry.watch(cursor, DEADLINE)
            if store.reports_behind:
                assert len(followed.changes) + followed.behind == 30
            else:
                assert followed.behind == 0
                assert len((await follow(registry, cursor, 30))[0]) == 30

        run(store, test)

    def test_does_not_tell_the_config(self, store: Store) -> None:
        async def test(registry: Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            store.set_config("{}")
            store.put(A, "a", None)
            (change,), _ = await follow(registry, cursor, 1)
            assert isinstance(change, Put)
            assert change.entry.name == A

        run(store, test)

    def test_beyond_the_history(self, store: Store) -> None:
        async def test(registry: Registry) -> None:
            old = (await registry.snapshot()).cursor
            store.forget_history()
            with pytest.raises(HistoryOverrun) as caught:
                await registry.watch(old, DEADLINE)
            snapshot = await registry.snapshot()
            assert caught.value.cursor == snapshot.cursor
            assert [entry.value for entry in snapshot.entries] == ["1000"]
            entry = await registry.create(B, "b", DAY)
            assert await follow(registry, snapshot.cursor, 1) == (timeless(Put(entry)), entry.version + 1)

        run(store, test)

    def test_through_more_changes_elsewhere_than_the_history_holds(self, store: Store) -> None:
        async def test(registry: Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            watching = asyncio.create_task(follow(registry, cursor, 1))
            await asyncio.wait([watching], timeout=0.3)  # it begins
            for _ in range(store.history_length + 1):
                store.set_config("{}")
            entry = await registry.create(A, "a", DAY)
            assert await watching == (timeless(Put(entry)), entry.version + 1)

        run(store, test)

    def test_of_a_directory_that_is_removed(self, store: Store) -> None:
        store.put(A, "a", None)

        async def test(registry: Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            watching = asyncio.create_task(registry.watch(cursor, DEADLINE))
            store.remove_subnets()
            if store.has_directories:
                with pytest.raises(HistoryGone):
                    await watching
            else:
                assert (await watching).changes == (Deleted(A),)
            snapshot = await registry.snapshot()
            assert snapshot.entries == ()
            entry = await registry.create(B, "b", DAY)
            assert await follow(registry, snapshot.cursor, 1) == (timeless(Put(entry)), entry.version + 1)

        run(store, test)

    def test_that_is_cancelled_holds_nothing_up(self, store: Store) -> None:
        async def test(registry: Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            begin = time.monotonic()
            for _ in range(5):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(registry.watch(cursor, DEADLINE), 0.1)
            entry = await registry.create(A, "a", DAY)
            assert await follow(registry, cursor, 1) == (timeless(Put(entry)), entry.version + 1)
            assert time.monotonic() - begin < 3

        run(store, test)


class TestUnavailable:
    def test_in_every_call_and_only_while_it_lasts(self, store: Store) -> None:
        store.put(A, "a", DAY)

        async def test(registry: Registry) -> None:
            snapshot = await registry.snapshot()
            (before,) = snapshot.entries
            store.go_down()
            try:
                for call in (
                    registry.read_config(),
                    registry.snapshot(),
                    registry.snapshot_of(A),
                    registry.create(B, "b", DAY),
                    registry.compare_and_swap(A, "a", DAY, before.version),
                    registry.renew(A, "a", DAY, before.version),
                    registry.compare_and_delete(A, before.version),
                    registry.watch(snapshot.cursor, DEADLINE),
                ):
                    with pytest.raises(RegistryUnavailable):
                        await call
            finally:
                store.come_up()
            (after,) = (await registry.snapshot()).entries
            assert after._replace(lifetime=before.lifetime) == before

        run(store, test)

    def test_in_the_middle_of_a_watch(self, store: Store) -> None:
        async def test(registry: Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            watching = asyncio.create_task(registry.watch(cursor, DEADLINE))
            await asyncio.wait([watching], timeout=0.3)  # time to be accepted; the outcome is the same without
            store.go_down()
            try:
                with pytest.raises(RegistryUnavailable):
                    await watching
            finally:
                store.come_up()
            entry = await registry.create(A, "a", DAY)
            assert await follow(registry, cursor, 1) == (timeless(Put(entry)), entry.version + 1)

        run(store, test)


class TestClose:
    def test_ends_every_pending_call(self, store: Store) -> None:
        async def test(registry: Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            watching = asyncio.create_task(registry.watch(cursor, DEADLINE))
            await asyncio.wait([watching], timeout=0.1)
            await registry.close()
            with pytest.raises(RegistryUnavailable, match="closed"):
                await watching

        run(store, test)
