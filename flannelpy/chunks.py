"""Work on thousands of items in chunks or turns, so that the event loop forwards packets in between."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Generator, Iterable
from itertools import islice
from typing import TypeVar, cast

T = TypeVar("T")

# The work on one item takes some microseconds, so a chunk takes about a millisecond.
_SIZE = 100
# One step of a generator takes 20 microseconds, or a millisecond.
_TURN_SECONDS = 0.001
# A garbage collection takes some microseconds for the objects that are kept of an item.
_MANY = 1000


async def in_chunks(items: Iterable[T]) -> AsyncIterator[list[T]]:
    """Yield the items in chunks; between two chunks the event loop runs, and ``items`` must not change."""
    left = iter(items)
    while chunk := list(islice(left, _SIZE)):
        yield chunk
        await asyncio.sleep(0)


async def in_turns(work: Generator[None, None, T]) -> T:
    """Return the result of a generator; before it and in between the event loop runs."""
    await asyncio.sleep(0)
    try:
        while True:
            end = time.perf_counter() + _TURN_SECONDS
            while time.perf_counter() < end:
                next(work)
            await asyncio.sleep(0)
    except StopIteration as stop:
        return cast(T, stop.value)


def set_aside(count: int) -> None:
    """If ``count`` items are many, exclude all present objects, those made of the items included, from collections."""
    if count > _MANY:
        gc.freeze()
