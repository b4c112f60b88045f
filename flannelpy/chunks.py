"""Work on thousands of items without keeping the event loop from its packets."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterable
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

# What is done with an item takes some microseconds, so a chunk takes about a millisecond.
_SIZE = 100
# The garbage collector takes some microseconds for what is kept of an item, too.
_MANY = 1000


async def in_chunks(items: Iterable[T]) -> AsyncIterator[list[T]]:
    """The items, some at a time; in between the event loop runs, so ``items`` must not change."""
    left = iter(items)
    while chunk := list(islice(left, _SIZE)):
        yield chunk
        await asyncio.sleep(0)


def set_aside(count: int) -> None:
    """If they are many, keep what was made of so many items out of all further garbage collections."""
    if count > _MANY:
        gc.freeze()
