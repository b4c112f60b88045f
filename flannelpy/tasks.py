"""Tasks that end together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


async def run_together(*works: Coroutine[object, object, object]) -> None:
    """Run coroutines at the same time until all end.  If one raises, cancel the others and raise its exception."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for work in works:
                tasks.create_task(work)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures
