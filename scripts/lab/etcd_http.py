"""HTTP requests to one etcd without TLS, sent from inside a network namespace if it listens in one."""

from __future__ import annotations

import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

REPLY_DEADLINE = 10.0  # seconds
FORM = "application/x-www-form-urlencoded"
_AT_ONCE = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


class RefusedError(RuntimeError):
    """An answer of etcd with an HTTP ``status`` other than success."""

    def __init__(self, what: str, status: int, body: bytes) -> None:
        super().__init__(f"etcd refused {what}: {status} {body.decode(errors='replace')}")
        self.status = status


class EtcdHttp:
    """The etcd at ``address``, inside the network namespace ``netns`` (None: ours)."""

    def __init__(self, address: tuple[str, int], netns: str | None) -> None:
        self._address = address
        self._netns = netns

    def request(self, method: str, path: str, form: Mapping[str, str] | None = None, body: str = "") -> Any:
        """Send a form, or a body of JSON, and return the JSON document of the answer.  Raises RefusedError."""
        headers = {"Content-Type": FORM if form else "application/json"}
        content = self.send(method, path, urlencode(form) if form else body, headers)
        return json.loads(content) if content else None

    def text(self, path: str) -> str:
        """Return the text at ``path``.  Raises RefusedError."""
        return self.send("GET", path).decode()

    def send(self, method: str, path: str, body: str = "", headers: Mapping[str, str] | None = None) -> bytes:
        """Send one request and return the body of the answer.  Raises RefusedError, OSError, HTTPException."""
        [answer] = self.map(lambda _: self.send_here(method, path, body, headers), [None])
        return answer

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Call ``function`` for several items at a time, in threads from which ``send_here`` reaches etcd."""
        # The threads end with the call: only the thread that enters a network namespace is in it.
        with ThreadPoolExecutor(_AT_ONCE, initializer=self._enter_netns) as threads:
            return list(threads.map(function, items))

    def send_here(self, method: str, path: str, body: str = "", headers: Mapping[str, str] | None = None) -> bytes:
        """Send one request as ``send`` does, from the thread of the caller."""
        with closing(http.client.HTTPConnection(*self._address, timeout=REPLY_DEADLINE)) as connection:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            content = response.read()
        if response.status not in (200, 201, 204):
            raise RefusedError(f"{method} {path}", response.status, content)
        return content

    def _enter_netns(self) -> None:
        if self._netns:
            from pyroute2 import netns  # not needed, and slow to import, without a namespace

            netns.setns(self._netns)
