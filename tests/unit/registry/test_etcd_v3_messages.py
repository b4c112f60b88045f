"""Messages of etcd's JSON gateway as values, and its errors in words."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from flannelpy.registry.base import EXPIRES, PERMANENT, KeyValue
from flannelpy.registry.endpoints import ANONYMOUS, Access, NoAnswer
from flannelpy.registry.etcd_v3_messages import (
    Header,
    Refusal,
    alarms_of,
    checked,
    decoded,
    encoded,
    header_of,
    in_words,
    node_of,
    number,
    refusal_of,
    refusal_of_cancel,
    writes_refused,
)

CERTIFICATE = Access(certfile="/client.crt", keyfile="/client.key")


@pytest.mark.parametrize(
    "text", ["", "/coreos.com/network/config", "ü\0\n", b"\xff\xc3".decode(errors="surrogateescape")]
)
def test_keys_and_values_survive(text: str) -> None:
    assert decoded(encoded(text)) == text


@pytest.mark.parametrize(("field", "value"), [("7", 7), (7, 7), ("-1", -1), (str(2**64 - 1), 2**64 - 1)])
def test_numbers_are_strings_or_not(field: object, value: int) -> None:
    assert number({"a": field}, "a") == value


def test_a_zero_is_absent() -> None:
    assert number({}, "a") == 0


@pytest.mark.parametrize("field", [True, 1.5, None, [], {}, "x", "", str(2**64), str(-(2**63) - 1), "9" * 5000])
def test_what_is_no_number_is_refused(field: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        number({"a": field}, "a")


def test_header() -> None:
    header = {"cluster_id": "14841639068965178418", "member_id": "1", "revision": "4", "raft_term": "2"}
    assert header_of({"header": header}) == Header(14841639068965178418, 4)


@pytest.mark.parametrize(("lease", "lifetime"), [({}, PERMANENT), ({"lease": "7587899160175441684"}, EXPIRES)])
def test_node(lease: dict[str, str], lifetime: object) -> None:
    kv = {"key": encoded("/a"), "value": encoded("b"), "mod_revision": "4", "create_revision": "3", "version": "2"}
    assert node_of(kv | lease).entry("a") == KeyValue("a", "b", lifetime, 4, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "document",
    [
        {"error": "etcdserver: no leader", "message": "etcdserver: no leader", "code": 14},
        {"code": 14, "message": "etcdserver: no leader", "details": []},
        {"error": {"grpc_code": 14, "http_code": 503, "message": "etcdserver: no leader", "http_status": "x"}},
        {"error": {"code": 14, "message": "etcdserver: no leader"}},
    ],
)
def test_an_error_in_any_form(document: Any) -> None:
    for raise_it in (lambda: checked(document), lambda: _raise(refusal_of(503, json.dumps(document).encode()))):
        with pytest.raises(Refusal, match=r"^no leader$") as caught:
            raise_it()
        assert (caught.value.code, caught.value.sent) == (14, True)


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("code", "sent"), [(2, True), (4, True), (14, True), (3, False), (5, False), (7, False), (16, False)]
)
def test_which_errors_leave_open_whether_the_request_was_executed(code: int, sent: bool) -> None:
    assert Refusal(code, "x").sent == sent


@pytest.mark.parametrize("document", [None, [], "x", 7, {"result": []}, {"result": None}])
def test_what_is_no_answer_is_none(document: object) -> None:
    with pytest.raises(NoAnswer, match="not an answer"):
        checked(document)


def test_the_answer_of_a_stream() -> None:
    assert checked({"result": {"a": 1}}) == {"a": 1}
    assert checked({"a": 1}) == {"a": 1}


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (404, b"404 page not found\n", "etcd 3.4 or later with --enable-grpc-gateway"),
        (404, b'{"code":5,"message":"Not Found"}', "Not Found"),
        (400, b"CommonName of client sending a request against gateway will be ignored", "Common Name"),
        (502, b"<html>Bad Gateway</html>", "HTTP status 502 <html>Bad Gateway</html>"),
        (301, b"", "HTTP status 301"),
        (500, b"[" * 100_000, r"HTTP status 500 \[\["),
        (500, b'{"error":{}}', "HTTP status 500"),
        (500, b'{"code":true,"message":"x"}', "HTTP status 500"),
        (500, b"\xff\xfe", "HTTP status 500"),
    ],
)
def test_statuses_in_words(status: int, body: bytes, text: str) -> None:
    error = refusal_of(status, body)
    with pytest.raises(NoAnswer, match=text):
        raise error
    assert len(str(error)) < 240


@pytest.mark.parametrize(
    ("code", "message", "access", "text"),
    [
        (3, "user name is empty", ANONYMOUS, "etcd asks for a user, see -etcd-username and -etcd-password"),
        (7, "permission denied", ANONYMOUS, "permission denied for keys below /network, see -etcd-username"),
        (14, "connection closed", CERTIFICATE, r"extended key usage clientAuth \(connection closed\)"),
        (14, "connection closed", ANONYMOUS, "^connection closed$"),
        (14, "no leader", CERTIFICATE, "^no leader$"),
        (8, "too many requests", ANONYMOUS, "^too many requests$"),
    ],
)
def test_refusals_in_words(code: int, message: str, access: Access, text: str) -> None:
    with pytest.raises(Refusal, match=text) as caught:
        raise in_words(Refusal(code, message), access, "/network")
    assert (caught.value.code, caught.value.message) == (code, message)
    assert not str(caught.value).endswith("characters)")


@pytest.mark.parametrize(
    ("code", "message", "text"),
    [
        (
            8,
            "mvcc: database space exceeded",
            r"its database is full \(alarm NOSPACE\): compact and defragment it, then",
        ),
        (15, "corrupt cluster", r"the data of its members differ \(alarm CORRUPT\): replace the member that etcdctl"),
    ],
)
def test_a_write_that_is_refused_because_of_an_alarm(code: int, message: str, text: str) -> None:
    error = writes_refused(Refusal(code, message))
    assert error
    assert not error.sent
    assert re.match(f"etcd v3 refuses writes: {text}", str(error))
    assert writes_refused(Refusal(code, "too many requests")) is None


def test_alarms_are_those_of_members_as_etcdctl_shows_them() -> None:
    found = alarms_of({"alarms": [{"memberID": "10276657743932975437", "alarm": "NOSPACE"}]})
    assert found == [("8e9e05c52164694d", "NOSPACE")]
    assert alarms_of({}) == []


@pytest.mark.parametrize(
    ("code", "message", "asks"),
    [
        (16, "anything", True),
        (3, "user name is empty", True),
        (3, "revision of auth store is old", True),
        (2, "invalid auth token", True),
        (7, "permission denied", False),
        (14, "no leader", False),
    ],
)
def test_which_refusals_a_token_may_change(code: int, message: str, asks: bool) -> None:
    assert Refusal(code, message).asks_for_token == asks


def test_the_reason_of_a_canceled_watch() -> None:
    refusal = refusal_of_cancel("rpc error: code = PermissionDenied desc = etcdserver: permission denied")
    assert (refusal.code, refusal.message) == (7, "permission denied")
