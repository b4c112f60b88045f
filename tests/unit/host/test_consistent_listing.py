"""How often all rules are listed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest
from support.fakes_clock import run

from flannelpy.errors import HostError
from flannelpy.host.consistent_listing import ConsistentListing
from flannelpy.linux import rules_generation


class Rules:
    """Rules that change during some listings; ``counts``: whether the kernel counts their changes."""

    def __init__(self, changes: Sequence[bool] = (), *, counts: bool) -> None:
        self.generation = 1
        self.listed = 0
        self._changes = [*changes]
        self._seen = 0
        self._counts = counts

    def current(self) -> int | None:
        return self.generation if self._counts else None

    async def list_all(self) -> bool:
        self.listed += 1
        seen, self._seen = self._seen, self.generation
        if self._changes and self._changes.pop(0):
            self.generation += 1
        return self._seen == seen


Install = Callable[[Rules], Rules]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    def put(rules: Rules) -> Rules:
        monkeypatch.setattr(rules_generation, "current", rules.current)
        return rules

    return put


@pytest.mark.parametrize(
    ("counts", "changes", "listings"),
    [
        (True, [], 1),
        (True, [True], 2),
        (True, [True] * 9, 3),
        (False, [], 2),
        (False, [True], 3),
        (False, [True] * 9, 3),
    ],
)
def test_a_first_listing_is_repeated_until_it_is_consistent(
    install: Install, counts: bool, changes: list[bool], listings: int
) -> None:
    rules = install(Rules(changes, counts=counts))
    asyncio.run(ConsistentListing().update(rules.list_all))
    assert rules.listed == listings


@pytest.mark.parametrize(("counts", "unchanged", "changed"), [(True, 0, 1), (False, 1, 2)])
def test_later_listings(install: Install, counts: bool, unchanged: int, changed: int) -> None:
    async def story() -> None:
        rules, listing = install(Rules(counts=counts)), ConsistentListing()
        await listing.update(rules.list_all)
        for change, expected in ((0, unchanged), (1, changed), (0, unchanged)):
            rules.generation += change
            rules.listed = 0
            await listing.update(rules.list_all)
            assert rules.listed == expected

    asyncio.run(story())


def test_after_a_minute_rules_are_listed_again(install: Install) -> None:
    """A table whose owner has ended is gone, and the kernel does not count that."""

    async def story() -> None:
        rules, listing = install(Rules(counts=True)), ConsistentListing()
        for seconds, expected in ((0, 1), (59, 1), (2, 2), (59, 2), (2, 3)):
            await asyncio.sleep(seconds)
            await listing.update(rules.list_all)
            assert rules.listed == expected

    run(story())


def test_after_a_failure_rules_are_listed_again(install: Install) -> None:
    rules, listing = install(Rules(counts=True)), ConsistentListing()

    async def fail() -> bool:
        raise HostError("iptables-save is missing")

    async def story() -> None:
        with pytest.raises(HostError, match="is missing"):
            await listing.update(fail)
        await listing.update(rules.list_all)
        listing.expire()
        await listing.update(rules.list_all)

    asyncio.run(story())
    assert rules.listed == 2
