"""An HTTP response that stays open and delivers events.

A reader thread splits the body into JSON values, converts each into events and hands these to the event loop.  If more
than ``MOST_WAITING`` characters wait for the loop, the stream ends, and its user asks again from the last position.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from flannelpy.errors import RegistryUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from urllib3 import BaseHTTPResponse

Event = TypeVar("Event")

MOST_WAITING = 4 << 20  # characters of JSON
MOST_AT_ONCE = 200  # events for one turn of the loop: a millisecond or two
# etcd refuses requests of more than 1.5 MB unless configured otherwise; an event may hold two values, escaped.
LONGEST_EVENT = 64 << 20

_PIECE = 65536  # bytes
_CHARACTERS_PER_SECOND = 65536
_COST = 100  # characters that count for each event, however short
_DECODE = json.JSONDecoder().raw_decode


class EventStream(Generic[Event]):
    """The events that arrive on ``response``; ``convert`` makes those of one JSON value.

    ``interrupt`` ends a read of the response from any thread.  All public methods belong to the event loop.  The
    constructor raises RegistryUnavailable if no thread can start.
    """

    def __init__(
        self, response: BaseHTTPResponse, interrupt: Callable[[], None], convert: Callable[[Any], Iterable[Event]]
    ) -> None:
        self._response = response
        self._interrupt = interrupt
        self._convert = convert
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._waiting: deque[tuple[Event, int]] = deque()
        self._handed_over = self._taken = 0  # characters, of the reader thread and of the loop
        self._began = time.monotonic()
        self._seconds = 0.0
        self._incomplete: tuple[float, int] | None = None  # time of its first part, and its length so far
        #: Why the stream has ended; empty while more events may come.
        self.end = ""
        try:
            threading.Thread(target=self._read, name="etcd watch", daemon=True).start()
        except (RuntimeError, MemoryError) as error:
            response.close()
            raise RegistryUnavailable(f"no thread to watch in: {error}") from error

    @property
    def is_over(self) -> bool:
        """Whether the stream has ended and all its events are taken."""
        return bool(self.end) and not self._waiting

    @property
    def has_news(self) -> bool:
        """Whether there are events to take, or the stream has ended."""
        return self._news.is_set()

    @property
    def is_short(self) -> bool:
        """Whether the stream ended within a second."""
        return bool(self.end) and self._seconds < 1

    def is_stuck(self, seconds: float) -> bool:
        """Return whether an event has been incomplete for longer than ``seconds``; a long event gets more time."""
        if (incomplete := self._incomplete) is None:
            return False
        since, length = incomplete
        return time.monotonic() - since > seconds + length / _CHARACTERS_PER_SECOND

    async def wait(self, seconds: float) -> None:
        """Wait for events or the end of the stream, for at most ``seconds``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    def take(self) -> list[Event]:
        """Take the oldest waiting events, at most ``MOST_AT_ONCE``."""
        taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_AT_ONCE))]
        self._taken += sum(size for _, size in taken)
        if not self._waiting and not self.end:
            self._news.clear()
        return [event for event, _ in taken]

    def close(self, why: str = "it was closed") -> None:
        """End the stream."""
        self._finish(why)
        self._interrupt()

    def _read(self) -> None:
        """Hand over event after event, in the reader thread."""
        why = "etcd ended the watch"
        try:
            for value, length in json_values(self._pieces(), self._note_incomplete):
                self._incomplete = None
                for event in self._convert(value):
                    self._hand_over(event, length + _COST)
                    length = 0
                if self._handed_over - self._taken > MOST_WAITING:
                    why = "more events than can be taken in"
                    break
        except Exception as error:
            why = str(error) or type(error).__name__
        finally:
            with contextlib.suppress(Exception):
                self._response.close()
        self._call_in_loop(self._finish, why)

    def _hand_over(self, event: Event, size: int) -> None:
        self._handed_over += size
        self._call_in_loop(self._add, (event, size))

    def _note_incomplete(self, length: int) -> None:
        since = self._incomplete[0] if self._incomplete else time.monotonic()
        self._incomplete = (since, length) if length else None

    def _pieces(self) -> Iterator[str]:
        return codecs.iterdecode(iter(lambda: self._response.read1(_PIECE), b""), "utf-8")

    def _call_in_loop(self, method: Callable[[Any], None], argument: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(method, argument)

    def _add(self, event: tuple[Event, int]) -> None:
        if not self.end:
            self._waiting.append(event)
            self._news.set()

    def _finish(self, why: str) -> None:
        if not self.end:
            self.end = why
            self._seconds = time.monotonic() - self._began
            self._news.set()


def json_values(
    pieces: Iterable[str], note_incomplete: Callable[[int], None] = lambda _: None
) -> Iterator[tuple[Any, int]]:
    """Yield the JSON values in ``pieces`` and their lengths in characters, each as soon as it is complete.

    After each piece, ``note_incomplete`` gets the length of the incomplete value, or 0.

    A value may be split anywhere, and a piece may hold many values.  Parsing starts only after a line feed or a closing
    brace, so a long value is not parsed again for each of its pieces.  Raises ValueError if the text ends within a
    value, or if a value is longer than ``LONGEST_EVENT``.
    """
    parts: list[str] = []
    length = 0
    for piece in pieces:
        parts.append(piece)
        length += len(piece)
        if "\n" in piece or piece.endswith("}"):
            rest = yield from _complete_values("".join(parts))
            parts, length = [rest], len(rest)
        note_incomplete(length)
        if length > LONGEST_EVENT:
            raise ValueError(f"an event of more than {LONGEST_EVENT} characters")
    if "".join(parts).strip():
        raise ValueError("the watch ended within an event")


def _complete_values(text: str) -> Generator[tuple[Any, int], None, str]:
    """Yield the values at the beginning of ``text``; return the rest of it."""
    at = len(text) - len(text.lstrip())
    while at < len(text):
        try:
            value, end = _DECODE(text, at)
        except ValueError:
            break
        yield value, end - at
        at = end
        while at < len(text) and text[at].isspace():
            at += 1
    return text[at:]
