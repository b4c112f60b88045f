"""Time that passes at once: an event loop whose clock jumps to the next timer whenever there is nothing to do."""

from __future__ import annotations

import asyncio
import selectors
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")

# No scenario lasts that long: something must go round in circles.
_LIMIT = 365 * 86400.0
BOOT = datetime(2026, 11, 22, 10, 59, 23, tzinfo=UTC)


class _JumpingSelector(selectors.SelectSelector):
    """Never waits; ``now`` is where the time-outs have brought it."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "all tasks wait for each other"
            self.now += max(timeout, 0)
            assert self.now < _LIMIT, "this never ends"
        return ready


class _JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run(scenario: Coroutine[None, None, T]) -> T:
    """Like asyncio.run, but hours take milliseconds."""
    with asyncio.Runner(loop_factory=_JumpingLoop) as runner:
        return runner.run(scenario)


class LoopClock:
    """The manager's Clock on the running loop's time; the loop is at 0 at ``BOOT``."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> datetime:
        return BOOT + timedelta(seconds=self.now())

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
