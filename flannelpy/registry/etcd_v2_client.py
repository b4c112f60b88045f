"""One endpoint of etcd's v2 API: python-etcd, with etcd's error codes as errors of flannelpy.

python-etcd is synchronous and cannot read a watch that stays open, nor a long listing piece by piece.  Both use its
urllib3 pool directly.  python-etcd's fail-over and urllib3's retries are off, as endpoints.py demands.

The first call but ``node`` imports python-etcd.  A host whose config is in etcd v3 asks v2 for nothing else.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import http
import json
import logging
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from flannelpy.errors import CompareFailed, HistoryGone, HistoryOverrun, KeyExists, KeyNotFound, RegistryError
from flannelpy.foreign import shown
from flannelpy.registry import endpoints
from flannelpy.registry.endpoints import LONGEST_CAUSE, NoAnswer, NoSuchApi, as_latin1, no_answer
from flannelpy.registry.json_list import elements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import urllib3
    from etcd import Client, EtcdResult
    from urllib3 import BaseHTTPResponse

    from flannelpy.registry.endpoints import Access, Endpoint

# Source: etcd Documentation/v2/errorcode.md
_REFUSALS: dict[int, type[RegistryError]] = {100: KeyNotFound, 101: CompareFailed, 105: KeyExists}
_HISTORY_CLEARED = 401

_MOST_CONNECTIONS = 10  # that are kept open
_PIECE = 65536  # bytes of an answer that are read at a time


class OpenedWatch(NamedTuple):
    """A watch that an endpoint has accepted; ``start`` is the endpoint's index at that moment."""

    client: V2Client
    response: BaseHTTPResponse
    start: int
    interrupt: Callable[[], None]


class V2Client:
    """A client of one endpoint.

    Raises, from every call: etcd's refusals as RegistryError, and NoAnswer.
    """

    def __init__(self, url: Endpoint, access: Access) -> None:
        self.url = url
        self._tls = access.tls
        self._user = _user_of(access)
        self._is_replaced = False

    def node(self, key: str) -> dict[str, Any]:
        """Return the node of ``key`` as etcd's JSON has it."""
        import urllib3

        headers = urllib3.make_headers(basic_auth=":".join(self._user)) if self._user else {}
        url = f"{self.url}/v2/keys{key}"
        try:
            reply = self._pools.request("GET", url, fields={"quorum": "true"}, headers=headers, redirect=False)
        except urllib3.exceptions.HTTPError as error:
            raise no_answer(error) from error
        if reply.status != http.HTTPStatus.OK:
            raise _failure(key, reply)
        node: dict[str, Any] = json.loads(reply.data)["node"]
        return node

    def read(self, key: str, **options: bool) -> EtcdResult:
        """Read a key."""
        with self._errors_translated(key):
            return self._client.read(key, **options)

    @contextlib.contextmanager
    def list(self, key: str) -> Iterator[tuple[Iterator[EtcdResult], int]]:
        """Yield the direct children of a directory, parsed while they arrive, and etcd's index."""
        from flannelpy.registry.bounded_http import allow_long
        from flannelpy.registry.python_etcd import etcd

        with self._errors_translated(key), contextlib.closing(self._request(key, {"quorum": "true"})) as response:
            allow_long(response)
            pieces = codecs.iterdecode(response.stream(_PIECE), "utf-8")
            yield (etcd.EtcdResult(node=node) for node in children(pieces)), int(response.headers["X-Etcd-Index"])
            response.drain_conn()

    def write(self, key: str, value: str, ttl: int | None, **condition: int) -> EtcdResult:
        """Write a key under ``condition``, prevExist or prevIndex: python-etcd ignores other names silently."""
        with self._errors_translated(key):
            return self._client.write(key, value, ttl=ttl, **condition)

    def delete(self, key: str, **condition: int) -> None:
        """Delete a key under ``condition``, prevIndex."""
        with self._errors_translated(key):
            self._client.delete(key, **condition)

    def watch(self, key: str, cursor: int, poll: float | None) -> OpenedWatch:
        """Begin to watch all keys below ``key`` from ``cursor`` on.  Raises HistoryGone.

        ``poll``: open a long poll for one event instead of a stream.  It may wait this many seconds for the first byte
        of the answer.
        """
        from flannelpy.registry.bounded_http import lift_deadline

        fields = {"wait": "true", "recursive": "true", "waitIndex": str(cursor), "stream": str(poll is None).lower()}
        self._check_identity()
        try:
            with self._errors_translated(key):
                response = self._request(key, fields, poll or 0)
        except NoAnswer:
            self._check_identity()
            raise
        try:
            start = int(response.headers.get("X-Etcd-Index", cursor - 1))
            return OpenedWatch(self, response, start, lift_deadline(response))
        except BaseException:
            response.close()
            raise

    def _request(self, key: str, fields: dict[str, str], poll: float = 0) -> BaseHTTPResponse:
        """Send a GET as python-etcd's ``api_execute`` does, which would read the whole answer first."""
        import urllib3

        client = self._client
        url = f"{client.base_uri}{client.key_endpoint}{key}"
        patience = urllib3.Timeout(connect=endpoints.REPLY_TIMEOUT, total=max(poll, endpoints.REPLY_TIMEOUT))
        options = {"timeout": patience, "redirect": False, "preload_content": False}
        response: BaseHTTPResponse = client.http.request(
            "GET", url, fields=fields, headers=client._get_headers(), **options
        )
        try:
            client._check_cluster_id(response)
            client._handle_server_response(response)
        except BaseException:
            response.close()
            raise
        return response

    def _check_identity(self) -> None:
        """Raise HistoryGone if this or an earlier call has met another cluster: the cursor belongs to the old one."""
        if self._is_replaced:
            self._is_replaced = False
            raise HistoryGone("etcd was replaced by another cluster")

    @contextlib.contextmanager
    def _errors_translated(self, key: str) -> Iterator[None]:
        import urllib3

        from flannelpy.registry.python_etcd import etcd

        try:
            yield
        except (etcd.EtcdException, urllib3.exceptions.HTTPError) as error:
            self._is_replaced |= isinstance(error, etcd.EtcdClusterIdChanged)
            raise (_refusal(key, getattr(error, "payload", None) or {}) or _no_answer(error)) from error

    @functools.cached_property
    def _client(self) -> Client:
        import urllib3

        from flannelpy.registry.python_etcd import etcd

        logging.getLogger("etcd").setLevel(logging.CRITICAL)  # it logs at ERROR, with a traceback, what flannelpy logs
        scheme, host, port = self.url
        username, password = self._user or (None, None)
        client = etcd.Client(host, port, protocol=scheme, allow_redirect=False, username=username, password=password)
        client.http = self._pools
        client._read_timeout = urllib3.Timeout(total=endpoints.REPLY_TIMEOUT)  # its constructor takes numbers only
        return client

    @functools.cached_property
    def _pools(self) -> urllib3.PoolManager:
        import urllib3

        from flannelpy.registry.bounded_http import bound

        logging.getLogger("urllib3").setLevel(logging.CRITICAL)
        patience = urllib3.Timeout(total=endpoints.REPLY_TIMEOUT)
        pools = urllib3.PoolManager(maxsize=_MOST_CONNECTIONS, timeout=patience, retries=urllib3.Retry(0), **self._tls)
        bound(pools)
        return pools


def children(pieces: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Yield the child nodes of the directory in an answer; raises as ``elements`` does."""
    answer = yield from elements(pieces, "nodes")
    yield from answer["node"].get("nodes", ())


def _user_of(access: Access) -> tuple[str, str] | None:
    """Return name and password for basic authentication."""
    if access.username and access.password:
        return as_latin1(access.username), as_latin1(access.password)
    return None


def index_of(refusal: RegistryError) -> int:
    """Return etcd's index at the moment of a refusal."""
    error: Any = refusal.__cause__
    return int(error.payload["index"])


def event_of(document: dict[str, Any]) -> EtcdResult:
    """Return an event of a watch as python-etcd has it."""
    from flannelpy.registry.python_etcd import etcd

    return etcd.EtcdResult(**document)


def _refusal(key: str, payload: dict[str, Any]) -> RegistryError | None:
    """Return etcd's refusal as an error of flannelpy, or None if ``payload`` is no refusal."""
    words = shown(payload.get("message")), shown(payload.get("cause"), LONGEST_CAUSE)
    text = f"{unquote(key)}: {words[0]} ({words[1]})"
    code = payload.get("errorCode", 0)
    if code == _HISTORY_CLEARED:
        return HistoryOverrun(text, int(payload["index"]) + 1)
    return _REFUSALS[code](text) if code in _REFUSALS else None


def _no_answer(error: Exception) -> NoAnswer:
    from flannelpy.registry.python_etcd import etcd

    if isinstance(error, etcd.EtcdInsufficientPermissions):
        return _permission_denied()
    return _known_text(str(error)) or no_answer(error)


def _failure(key: str, reply: BaseHTTPResponse) -> RegistryError | NoAnswer:
    """Return what a reply without a node means, as ``_errors_translated`` does for python-etcd's errors."""
    text = reply.data.decode("utf-8", "replace")
    try:
        payload = dict(json.loads(text))
    except (TypeError, ValueError):
        payload = {"message": "Bad response", "cause": text}
    if refusal := _refusal(key, payload):
        return refusal
    if reply.status == http.HTTPStatus.UNAUTHORIZED:
        return _permission_denied()
    words = f"{payload.get('message')} : {payload.get('cause')}"
    return _known_text(words) or NoAnswer(words, sent=True)


def _known_text(text: str) -> NoAnswer | None:
    off = NoSuchApi("the v2 API is switched off, start etcd with --enable-v2=true")
    return off if "404 page not found" in text else None


def _permission_denied() -> NoAnswer:
    return NoAnswer("permission denied, see -etcd-username and -etcd-password", sent=False)
