"""One answer serves all who ask within a second."""

from __future__ import annotations

import asyncio

import pytest

from flannelpy.web import fresh
from flannelpy.web.fresh import Fresh


class Source:
    """Counts, after a pause; fails if it is to."""

    def __init__(self, seconds: float = 0, failure: Exception | None = None) -> None:
        self.calls = 0
        self.seconds, self.failure = seconds, failure

    async def produce(self) -> int:
        self.calls += 1
        await asyncio.sleep(self.seconds)
        if self.failure:
            raise self.failure
        return self.calls


def test_a_result_serves_for_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> list[int]:
        values = Fresh(Source().produce)
        first = [await values.get(), await values.get()]
        monkeypatch.setattr(fresh, "_SECONDS", 0.0)
        return [*first, await values.get()]

    assert asyncio.run(ask()) == [1, 1, 2]


def test_those_who_ask_meanwhile_wait_for_the_same_result() -> None:
    async def ask() -> list[int]:
        values = Fresh(Source(0.01).produce)
        return await asyncio.gather(*(values.get() for _ in range(10)))

    assert asyncio.run(ask()) == [1] * 10


def test_one_who_gives_up_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh, "_SECONDS", 0.0)
    source = Source(0.05)

    async def ask() -> int:
        values = Fresh(source.produce)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await values.get()
        return await values.get()

    assert asyncio.run(ask()) == 1
    assert source.calls == 1


def test_a_failure_serves_for_a_second_too() -> None:
    source = Source(failure=ValueError("why"))

    async def ask() -> None:
        values = Fresh(source.produce)
        for _ in range(3):
            with pytest.raises(ValueError, match="why"):
                await values.get()

    asyncio.run(ask())
    assert source.calls == 1
