"""One endpoint of etcd's v3 API: its JSON gateway, by urllib3, with etcd's errors as errors of flannelpy.

Every request is a POST of a JSON document.  urllib3's retries are off, as endpoints.py demands.

A token is asked for only if etcd refuses a request for the lack of one.  A store without authentication therefore
needs no request more, and authentication can be switched on and off at any time.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import json
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from flannelpy.registry import endpoints
from flannelpy.registry.endpoints import no_answer
from flannelpy.registry.etcd_v3_messages import (
    DENIED,
    INVALID,
    NOT_ENABLED,
    Refusal,
    checked,
    in_words,
    refusal_of,
    writes_refused,
)
from flannelpy.registry.json_list import elements

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from urllib3 import BaseHTTPResponse, PoolManager

    from flannelpy.registry.endpoints import Access, Endpoint

_PIECE = 65536  # bytes of an answer that are read at a time
# A member without a leader ends a watch with this header after 5 s; without it, the watch would be silent.
_NEEDS_LEADER = {"Grpc-Metadata-hasleader": "true"}


class OpenedWatch(NamedTuple):
    """A watch that an endpoint has accepted."""

    client: V3Client
    response: BaseHTTPResponse
    interrupt: Callable[[], None]


class V3Client:
    """A client of one endpoint, for the keys below ``root``.

    Raises NoAnswer from every call; a ``Refusal`` if etcd has answered, and WritesRefused if it has an alarm.
    """

    def __init__(self, url: Endpoint, access: Access, root: str) -> None:
        self.url = url
        self._access = access
        self._root = root
        self._token: str | None = None
        self._token_is_old = False

    def call(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to ``request``."""
        with self._errors_translated(), contextlib.closing(self._ask(path, request)) as response:
            return checked(json.loads(response.read()))

    @contextlib.contextmanager
    def list(self, request: dict[str, Any]) -> Iterator[Generator[Any, None, Any]]:
        """Yield a generator of the keys of a range, parsed while they arrive; it returns the rest of the answer."""
        from flannelpy.registry.bounded_http import allow_long

        with self._errors_translated(), contextlib.closing(self._ask("kv/range", request)) as response:
            allow_long(response)
            yield _keys(codecs.iterdecode(response.stream(_PIECE), "utf-8"))

    def watch(self, request: dict[str, Any]) -> OpenedWatch:
        """Begin a watch."""
        from flannelpy.registry.bounded_http import lift_deadline

        with self._errors_translated():
            response = self._ask("watch", {"create_request": request}, _NEEDS_LEADER)
            try:
                return OpenedWatch(self, response, lift_deadline(response))
            except BaseException:
                response.close()
                raise

    def in_words(self, refusal: Refusal) -> Refusal:
        """Return the refusal of a watch in words.  If a new token may help, the next request gets one before."""
        self._token_is_old |= refusal.code == DENIED or refusal.asks_for_token
        return in_words(refusal, self._access, self._root)

    def _ask(self, path: str, request: dict[str, Any], headers: dict[str, str] | None = None) -> BaseHTTPResponse:
        """Send ``request``; if etcd wants a token, or another one, authenticate and send it once more."""
        try:
            if self._token_is_old:
                self._authenticate()
            try:
                return self._send(path, request, headers)
            except Refusal as refusal:
                if not (self._access.username and self._lacks_token(refusal)):
                    raise
            self._authenticate()
            return self._send(path, request, headers)
        except Refusal as refusal:
            raise writes_refused(refusal) or in_words(refusal, self._access, self._root) from None

    def _lacks_token(self, refusal: Refusal) -> bool:
        """Return whether a new token may change etcd's answer.

        A request with a client certificate has no user, and is therefore denied instead of asked for one.
        """
        return refusal.asks_for_token or (refusal.code == DENIED and self._token is None)

    def _authenticate(self) -> None:
        """Get a token; without authentication in etcd, or without a user, there is none."""
        self._token, self._token_is_old = None, False
        if not self._access.username:
            return
        user = {"name": self._access.username, "password": self._access.password or ""}
        try:
            with contextlib.closing(self._send("auth/authenticate", user)) as response:
                self._token = str(checked(json.loads(response.read()))["token"])
        except Refusal as refusal:
            if NOT_ENABLED in refusal.message:
                return
            if refusal.code != INVALID:
                raise
            raise Refusal(INVALID, f"{refusal.message}, see -etcd-username and -etcd-password") from None

    def _send(self, path: str, request: dict[str, Any], headers: dict[str, str] | None = None) -> BaseHTTPResponse:
        import urllib3

        response = self._pools.request(
            "POST",
            f"{self.url}/v3/{path}",
            body=json.dumps(request).encode(),
            headers=(headers or {}) | ({"Authorization": self._token} if self._token else {}),
            timeout=urllib3.Timeout(connect=endpoints.REPLY_TIMEOUT, total=endpoints.REPLY_TIMEOUT),
            redirect=False,
            preload_content=False,
        )
        if response.status == 200:
            return response
        with contextlib.closing(response):
            raise refusal_of(response.status, response.read())

    @contextlib.contextmanager
    def _errors_translated(self) -> Iterator[None]:
        import urllib3

        try:
            yield
        except urllib3.exceptions.HTTPError as error:
            raise no_answer(error) from error

    @functools.cached_property
    def _pools(self) -> PoolManager:
        import urllib3

        from flannelpy.registry.bounded_http import bound

        logging.getLogger("urllib3").setLevel(logging.CRITICAL)  # it logs failures that flannelpy logs itself
        pools = urllib3.PoolManager(retries=urllib3.Retry(0), **self._access.tls)
        bound(pools)
        return pools


def _keys(pieces: Iterator[str]) -> Generator[Any, None, Any]:
    """Yield the keys in an answer; return the rest of the answer."""
    answer = yield from elements(pieces, "kvs")
    yield from checked(answer).get("kvs", ())
    return answer
