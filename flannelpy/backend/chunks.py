"""Work on thousands of items without keeping the event loop from its packets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

# What is done with an item takes some microseconds, so a chunk takes about a millisecond.
_SIZE = 200


async def in_chunks(items: Iterable[T]) -> AsyncIterator[list[T]]:
    """The items, some at a time; in between the event loop runs, so ``items`` must not change."""
    left = iter(items)
    while chunk := list(islice(left, _SIZE)):
        yield chunk
        await asyncio.sleep(0)
