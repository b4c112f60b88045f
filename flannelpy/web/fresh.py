"""Answers that are made at most once a second, however many clients ask for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_SECONDS = 1.0


class Fresh(Generic[T]):
    """The result of ``produce``, which runs once at a time.  A result, or an error, serves all who ask within 1 s."""

    def __init__(self, produce: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._produce = produce
        self._task: asyncio.Task[T] | None = None
        self._started_at = 0.0

    async def get(self) -> T:
        """Return the result.  Raises what ``produce`` raises.  If the caller is cancelled, ``produce`` continues."""
        now = asyncio.get_running_loop().time()
        if self._task is None or (self._task.done() and now - self._started_at >= _SECONDS):
            self._started_at = now
            self._task = asyncio.create_task(self._produce())
            self._task.add_done_callback(_note_error)
        return await asyncio.shield(self._task)


def _note_error(task: asyncio.Task[T]) -> None:
    """Retrieve the error, which asyncio would log if all callers were cancelled."""
    if not task.cancelled():
        task.exception()
