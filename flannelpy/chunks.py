"""Work on thousands of items in chunks, so that the event loop forwards packets in between."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterable
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

# The work on one item takes some microseconds, so a chunk takes about a millisecond.
_SIZE = 100
# A garbage collection takes some microseconds for the objects that are kept of an item.
_MANY = 1000


async def in_chunks(items: Iterable[T]) -> AsyncIterator[list[T]]:
    """Yield the items in chunks; between two chunks the event loop runs, and ``items`` must not change."""
    left = iter(items)
    while chunk := list(islice(left, _SIZE)):
        yield chunk
        await asyncio.sleep(0)


def set_aside(count: int) -> None:
    """If ``count`` items are many, exclude all present objects, those made of the items included, from collections."""
    if count > _MANY:
        gc.freeze()
