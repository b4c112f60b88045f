"""When the endpoints of a store answered last, and since when they are silent.  Any thread may note and read.

Counterpart: none; flanneld logs each failure alone.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from flannelpy.report import StoreReport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class _Silence(NamedTuple):
    """Since when no request was answered, and why the last one was not."""

    since: float
    failure: str


class Answers:
    """The answers of all endpoints of a store by one version of etcd's API."""

    def __init__(self, now: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        """``now``: seconds of a clock that is never set; ``wall``: Unix seconds."""
        self.now = now
        self._wall = wall
        self._lock = threading.Lock()
        self._answered_at: float | None = None
        self._silence: _Silence | None = None

    def answered(self) -> None:
        """Note a usable answer."""
        with self._lock:
            self._answered_at, self._silence = self.now(), None

    def failed(self, began: float, failure: str) -> None:
        """Note a request that began at ``began`` and got no usable answer, unless a later one has got one."""
        with self._lock:
            if self._answered_at is None or began > self._answered_at:
                self._silence = _Silence(min(self._silence.since, began) if self._silence else began, failure)

    def report(self, api: int, endpoint: str) -> StoreReport:
        """Return what was noted, in Unix time, of the store with that version of etcd's API."""
        with self._lock:
            answered_at, silence = self._answered_at, self._silence
        offset = self._wall() - self.now()
        return StoreReport(
            api,
            endpoint,
            None if answered_at is None else answered_at + offset,
            silence.since + offset if silence else None,
            silence.failure if silence else "",
        )


def undecided(stores: Sequence[StoreReport]) -> StoreReport:
    """Return one report of all stores that may have the config, while none is chosen."""
    answers = [store.answered_at for store in stores if store.answered_at is not None]
    silent = next((store for store in stores if store.silent_since is not None), None)
    return StoreReport(
        None,
        (silent or stores[0]).endpoint,
        max(answers, default=None),
        silent.silent_since if silent else None,
        silent.failure if silent else "",
    )
