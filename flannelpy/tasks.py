"""Tasks that end together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


async def run_together(*works: Coroutine[object, object, object]) -> None:
    """Run these at the same time.  If one fails, the others are cancelled and its exception is raised as it is."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for work in works:
                tasks.create_task(work)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures
