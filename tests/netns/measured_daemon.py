"""Run flannelpy, and measure how much processor time its event loop uses in one turn.

Run as ``python measured_daemon.py FILE ARGUMENTS…``.  FILE has the longest turn in milliseconds since the file was
last removed, and what ran in that turn.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from asyncio import events
from pathlib import Path
from typing import Any

RESULT = Path(sys.argv[1])
longest = 0.0
_run_once = asyncio.BaseEventLoop._run_once  # type: ignore[attr-defined]
_handle_run = events.Handle._run
_ran: list[str] = []
_collections: list[float] = []


def measured_handle(self: events.Handle) -> Any:
    """Record the callbacks that run in this turn."""
    _ran.append(repr(getattr(self, "_callback", None))[:300])
    return _handle_run(self)


def measured_turn(self: asyncio.BaseEventLoop) -> None:
    """Run one turn, and record the longest; the time asleep in select is no processor time."""
    global longest
    _ran.clear()
    before = time.thread_time()
    _run_once(self)
    took = (time.thread_time() - before) * 1000
    if not RESULT.exists():
        longest = 0.0
    if took > longest:
        longest = took
        draft = RESULT.with_suffix(".draft")
        draft.write_text(f"{took:.3f} {_ran}")
        draft.replace(RESULT)


def measured_collection(phase: str, info: dict[str, int]) -> None:
    """Record the share of the garbage collector in this turn."""
    _collections.append(time.thread_time())
    if phase == "stop":
        stop, start = _collections.pop(), _collections.pop()
        _ran.append(f"generation {info['generation']} collected in {(stop - start) * 1000:.3f} ms")


if __name__ == "__main__":
    gc.callbacks.append(measured_collection)
    events.Handle._run = measured_handle  # type: ignore[method-assign]
    asyncio.BaseEventLoop._run_once = measured_turn  # type: ignore[attr-defined]
    from flannelpy.cli import main

    sys.exit(main(sys.argv[2:]))
