"""An asyncio event loop that calls the packet path's handlers directly.

asyncio takes a few microseconds to bring one readiness event to its callback: a queue, a handle, a context.  All
processing of a single packet takes as long.  So the packet path's descriptors are in an epoll of their own, together
with the epoll that asyncio uses for all others, and the handlers are called where its poll returns.  If asyncio has
something to do, it runs after the current round of handlers, each of which is bounded.

Source: epoll(7), on an epoll descriptor inside another.
"""

from __future__ import annotations

import asyncio
import select
import selectors
import time
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any, TypeVar

T = TypeVar("T")

#: The argument is true if the last round did not call this handler: then probably a single packet waits, else several.
#: Returns whether the handler gave asyncio something to do (a future is done, a callback is due).
Handler = Callable[[bool], bool]

# The packet path has two descriptors, asyncio one; the default is a thousand.
_MAX_READY = 8


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine as ``asyncio.run`` does, on a ``PacketLoop``."""
    with asyncio.Runner(loop_factory=PacketLoop) as runner:
        return runner.run(work)


class PacketLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop that also has packet readers."""

    def __init__(self) -> None:
        self._packet_selector = _PacketSelector()
        super().__init__(self._packet_selector)

    def add_packet_reader(self, fd: int, handler: Handler) -> None:
        """Call ``handler`` in the caller's context whenever ``fd`` is readable, until ``remove_packet_reader``."""
        context = copy_context()
        self._packet_selector.add_packet_reader(fd, lambda fresh: context.run(handler, fresh))

    def remove_packet_reader(self, fd: int) -> None:
        """Stop calling the handler of ``fd``, if it has one."""
        self._packet_selector.remove_packet_reader(fd)


class _PacketSelector(selectors.EpollSelector):
    def __init__(self) -> None:
        super().__init__()
        self._handlers: dict[int, Handler] = {super().fileno(): lambda _: True}
        self._served: list[int] = []  # in the last round, empty after a wait
        self._epoll = select.epoll()
        self._epoll.register(super().fileno(), select.EPOLLIN)

    def add_packet_reader(self, fd: int, handler: Handler) -> None:
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def remove_packet_reader(self, fd: int) -> None:
        if self._handlers.pop(fd, None):
            self._epoll.unregister(fd)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what asyncio has to do; the list may be empty before the timeout if a handler returned true."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            ready = self._epoll.poll(0, _MAX_READY)
            if not ready:
                wait = -1.0 if end is None else end - time.monotonic()
                if wait != -1.0 and wait <= 0:
                    return []
                self._served = []
                ready = self._epoll.poll(wait, _MAX_READY)
            if self._serve(ready):
                return super().select(0)
            if end is not None and time.monotonic() >= end:
                return []

    def _serve(self, ready: list[tuple[int, int]]) -> bool:
        """Call the handlers; return whether asyncio has something to do."""
        due = False
        for fd, _ in ready:
            handler = self._handlers.get(fd)  # none if an earlier handler has removed it
            if handler is not None and handler(fd not in self._served):
                due = True
        self._served = [fd for fd, _ in ready]
        return due

    def close(self) -> None:
        self._epoll.close()
        super().close()
