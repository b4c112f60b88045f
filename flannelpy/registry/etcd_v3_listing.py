"""The listing of a network in etcd v3: page after page, all at the revision of the first.  All calls block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flannelpy.errors import RegistryError, RegistryUnavailable
from flannelpy.registry.etcd_v3_messages import (
    OUT_OF_RANGE,
    TOO_LARGE,
    Header,
    Refusal,
    header_of,
    node_of,
)
from flannelpy.registry.unwanted import Reduction

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from flannelpy.registry.base import KeyValue
    from flannelpy.registry.endpoints import Rotation
    from flannelpy.registry.etcd_v3_client import V3Client
    from flannelpy.registry.etcd_v3_store import Keys

PAGE = 1000  # keys
# Each try has as long as etcd keeps its history; Kubernetes compacts every five minutes.
_MOST_TRIES = 3


class _RevisionGoneError(RegistryError):
    """The revision of the first page was compacted, or the store was wiped."""


class _PageTooLargeError(RegistryError):
    """The JSON gateway refuses answers of more than 4 MB, in some releases of etcd."""


class Listing:
    """All wanted entries at one moment; ``header`` has its revision.

    ``config`` is the version of the config: the revision of its last write, or 0 if there is no config.
    """

    def __init__(self, cluster: Rotation[V3Client], keys: Keys, is_wanted: Callable[[str], bool]) -> None:
        self._cluster = cluster
        self._keys = keys
        self._is_wanted = is_wanted
        self._limit = PAGE
        self._begin()

    def run(self) -> Listing:
        """List all pages.  Raises RegistryUnavailable."""
        for _ in range(_MOST_TRIES):
            self._begin()
            try:
                while self._add_page():
                    pass
            except _RevisionGoneError:
                continue
            return self
        raise RegistryUnavailable(f"etcd lost the revision of the first page of a list {_MOST_TRIES} times")

    def _begin(self) -> None:
        self.entries: list[KeyValue] = []
        self.header = Header(0, 0)
        self.config = 0
        self._last = ""
        self._reduction = Reduction(self._is_wanted)

    def _add_page(self) -> bool:
        """Add the next page; return whether there are more.  After a page that was too large, halve the pages."""
        try:
            page = self._cluster.ask(self._page)
        except _PageTooLargeError:
            self._limit //= 2
            return True
        self._limit = min(max(2 * self._limit, 1), PAGE)
        self.entries += page.entries
        self.config = page.config or self.config
        self.header = self.header if self.header.revision else page.header
        self._last = page.last
        return page.has_more

    def _page(self, client: V3Client) -> _Page:
        try:
            with client.list(self._request()) as kvs:
                return _Page(kvs, self._keys, self._reduction, self._last)
        except Refusal as refusal:
            if TOO_LARGE in refusal.message and self._limit:
                raise _PageTooLargeError(refusal.message) from None
            if refusal.code == OUT_OF_RANGE:
                raise _RevisionGoneError(refusal.message) from None
            raise

    def _request(self) -> dict[str, Any]:
        """Return the request of the next page.  A single key that is too large is asked for without its value."""
        span = self._keys.after(self._last) if self._last else self._keys.span
        at = {"revision": str(self.header.revision)} if self.header.revision else {}
        return span | at | {"limit": str(max(self._limit, 1)), "keys_only": self._limit == 0}


class _Page:
    """One answer: its entries, its last key, and what ``Listing`` has."""

    def __init__(self, kvs: Generator[Any, None, Any], keys: Keys, reduction: Reduction, after: str) -> None:
        self.config = 0
        self.last = after
        self._answer: dict[str, Any] = {}
        self.entries = list(reduction.of(self._read(kvs, keys)))
        self.header = header_of(self._answer)
        self.has_more = self._answer.get("more") is True
        if self.has_more and self.last == after:
            raise ValueError("a page without keys, before others")

    def _read(self, kvs: Generator[Any, None, Any], keys: Keys) -> Iterator[KeyValue]:
        """Yield the entries among the keys."""
        for kv in self._keep_answer(kvs):
            node = node_of(kv)
            self.last = node.key
            if node.key == keys.config:
                self.config = node.version
            elif entry := keys.entry(node):
                yield entry

    def _keep_answer(self, kvs: Generator[Any, None, Any]) -> Iterator[Any]:
        self._answer = yield from kvs
