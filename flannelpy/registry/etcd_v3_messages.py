"""Messages of etcd's v3 JSON gateway as values of Python, and etcd's errors in words.  No I/O.

Keys and values are in base64.  int64 are strings, and absent if they are zero.  An answer of another form raises any
exception of Python's, which ``Rotation`` translates.

Sources: api/etcdserverpb/rpc.proto, api/v3rpc/rpctypes/error.go of etcd.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from flannelpy.errors import WritesRefused
from flannelpy.registry.base import EXPIRES, PERMANENT, KeyValue
from flannelpy.registry.endpoints import NoAnswer, NoSuchApi

if TYPE_CHECKING:
    from flannelpy.registry.endpoints import Access

# Codes of gRPC that an endpoint may answer although it, or another one, executes the request: unknown, deadline
# exceeded, unavailable.
_UNCERTAIN = {2, 4, 14}
INVALID, DENIED, OUT_OF_RANGE, UNAVAILABLE, UNAUTHENTICATED = 3, 7, 11, 14, 16
# Words by which a message tells what its code does not.
LEASE_EXISTS = "lease already exists"
TOO_LARGE = "larger than max"
NOT_ENABLED = "authentication is not enabled"
_USER_EMPTY = "user name is empty"
_OLD_TOKEN = ("invalid auth token", "auth store is old", "auth revision is old")

_LEAST, _MOST = -(1 << 63), 1 << 64  # of int64 and uint64
_NO_GATEWAY = "the v3 API's JSON gateway is not there: etcd 3.4 or later with --enable-grpc-gateway serves it"
_NO_USER = "etcd asks for a user, see -etcd-username and -etcd-password"
_NO_CLIENT_AUTH = (
    "etcd's JSON gateway has no connection to etcd; if this lasts, and etcd has --client-cert-auth, etcd's certificate "
    "lacks the extended key usage clientAuth"
)
_CUT_OFF = ("connection", "handshake", "SubConn")  # texts of gRPC about its connection
# By the message with which etcd refuses a write while it has an alarm.
_ALARMS = {
    "database space exceeded": (
        "its database is full (alarm NOSPACE): compact and defragment it, then etcdctl alarm disarm"
    ),
    "corrupt cluster": (
        "the data of its members differ (alarm CORRUPT): replace the member that etcdctl alarm list names, then "
        "etcdctl alarm disarm"
    ),
}
_NAME_REFUSED = "CommonName of client"
_NAME_IN_CERTIFICATE = (
    "etcd's JSON gateway takes no client certificate with a Common Name while authentication is on: let -etcd-certfile "
    "have none, and give the user by -etcd-username and -etcd-password"
)


class Header(NamedTuple):
    """Which cluster has answered, and its revision."""

    cluster: int
    revision: int


class Alarm(NamedTuple):
    """An alarm of a member, whose ID is in hexadecimal digits, as etcdctl shows it; ``name``: such as NOSPACE."""

    member: str
    name: str


class Node(NamedTuple):
    """A key as stored; ``lease`` is the ID of the lease that it is attached to, or 0."""

    key: str
    value: str
    version: int
    created: int
    lease: int

    def entry(self, name: str) -> KeyValue:
        """Return the node as the entry ``name``.  A node does not tell in how many seconds its lease expires."""
        return KeyValue(name, self.value, EXPIRES if self.lease else PERMANENT, self.version, self.created)


class Refusal(NoAnswer):
    """etcd has refused a request, with a code of gRPC and a message."""

    def __init__(self, code: int, message: str, text: str = "") -> None:
        super().__init__(text or message, sent=code in _UNCERTAIN)
        self.code = code
        self.message = message

    @property
    def asks_for_token(self) -> bool:
        """Whether a new token may change the answer."""
        return self.code == UNAUTHENTICATED or any(words in self.message for words in (*_OLD_TOKEN, _USER_EMPTY))


def encoded(text: str) -> str:
    """Return a key or value as the gateway takes it."""
    return base64.b64encode(text.encode("utf-8", "surrogateescape")).decode()


def decoded(field: str) -> str:
    """Return a key or value that the gateway has sent; bytes that are not UTF-8 become surrogates."""
    return base64.b64decode(field, validate=True).decode("utf-8", "surrogateescape")


def number(message: dict[str, Any], field: str) -> int:
    """Return an integer field.  Raises ValueError, TypeError."""
    found = message.get(field, 0)
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise TypeError(f"{field} is no number")
    value = int(found)
    if not _LEAST <= value < _MOST:
        raise ValueError(f"{field} is no 64-bit number")
    return value


def header_of(message: dict[str, Any]) -> Header:
    """Return the header of an answer.  Raises ValueError without a revision: another program may have answered."""
    header = Header(number(message["header"], "cluster_id"), number(message["header"], "revision"))
    if header.revision < 1:
        raise ValueError("an answer without a revision")
    return header


def node_of(kv: dict[str, Any]) -> Node:
    """Return a key of an answer."""
    return Node(
        decoded(kv["key"]),
        decoded(kv.get("value", "")),
        number(kv, "mod_revision"),
        number(kv, "create_revision"),
        number(kv, "lease"),
    )


def only_node_of(message: dict[str, Any]) -> Node | None:
    """Return the key in an answer about one key; None if the key does not exist."""
    header_of(message)
    kvs = message.get("kvs")
    return node_of(kvs[0]) if kvs else None


def alarms_of(message: dict[str, Any]) -> list[Alarm]:
    """Return the alarms in an answer about them."""
    return [Alarm(f"{number(one, 'memberID'):x}", str(one["alarm"])) for one in message.get("alarms", ())]


def refusal_in(document: Any) -> Refusal | None:
    """Return the error in an answer, in any of the three forms of etcd's versions; None if there is none."""
    if not isinstance(document, dict):
        return None
    inner = document.get("error")
    found = inner if isinstance(inner, dict) else document
    code = found.get("code", found.get("grpc_code"))
    if not isinstance(code, int) or isinstance(code, bool):
        return None
    message = str(found.get("message") or inner).removeprefix("etcdserver: ")
    return Refusal(code, message)


def checked(document: Any) -> dict[str, Any]:
    """Return the answer in ``document``; an answer of a stream is in ``result``.  Raises Refusal, NoAnswer."""
    if refusal := refusal_in(document):
        raise refusal
    answer = document.get("result", document) if isinstance(document, dict) else None
    if not isinstance(answer, dict):
        raise NoAnswer("not an answer of etcd's", sent=True)
    return answer


def refusal_of(status: int, body: bytes) -> NoAnswer:
    """Return what an HTTP status other than 200 means."""
    try:
        refusal = refusal_in(json.loads(body))
    except (ValueError, RecursionError):
        refusal = None
    if refusal:
        return refusal
    text = body.decode(errors="replace")
    if status == 404:
        return NoSuchApi(_NO_GATEWAY)
    if _NAME_REFUSED in text:
        return NoAnswer(_NAME_IN_CERTIFICATE, sent=False)
    return NoAnswer(f"HTTP status {status} {text}", sent=status >= 500)


def refusal_of_cancel(reason: str) -> Refusal:
    """Return the refusal that ``cancel_reason`` of a watch describes."""
    message = reason.rpartition("desc = ")[2].removeprefix("etcdserver: ")
    return Refusal(DENIED if "permission denied" in message else UNAVAILABLE, message)


def writes_refused(refusal: Refusal) -> WritesRefused | None:
    """Return what a refusal means that is due to an alarm; None for any other one."""
    cause = next((cause for message, cause in _ALARMS.items() if message in refusal.message), "")
    return WritesRefused(f"etcd v3 refuses writes: {cause}") if cause else None


def in_words(refusal: Refusal, access: Access, root: str) -> Refusal:
    """Return ``refusal`` with a text that names the cause and the remedy; the keys are below ``root``."""
    message = refusal.message
    if _USER_EMPTY in message:
        text = _NO_USER
    elif refusal.code == DENIED:
        text = f"{message} for keys below {root}, see -etcd-username and -etcd-password"
    elif access.certfile and refusal.code == UNAVAILABLE and any(words in message for words in _CUT_OFF):
        text = f"{_NO_CLIENT_AUTH} ({message})"
    else:
        text = message
    return Refusal(refusal.code, message, text)
