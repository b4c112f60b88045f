"""The two stores of an etcd, that of the v2 API and that of the v3 API, as an administrator uses them."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import quote, urlencode

from lab.etcd_http import FORM, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lab.etcd_http import EtcdHttp

# etcd refuses a transaction of more operations.
MOST_OPERATIONS = 128
# Of refusals: a simple token vanishes when etcd restarts, and is obsolete after a change of users.
_TOKEN_FAULTS = ("invalid auth token", "revision")


class Api(Enum):
    """An API of etcd, each with a store of its own."""

    V2 = "2"
    V3 = "3"


class Key(NamedTuple):
    """What etcd stores at one path; ``ttl`` in seconds, None: for ever; the versions of its creation and last write."""

    key: str
    value: str
    ttl: int | None
    created: int = 0
    version: int = 0


class Store(Protocol):
    """A store of keys that are paths."""

    def put(self, key: str, value: str, ttl: int | None = None) -> None:
        """Store ``value``, over any earlier one."""

    def put_all(self, values: Mapping[str, str], ttl: int) -> None:
        """Store many values, several at a time, each by a write of its own."""

    def delete(self, key: str) -> None:
        """Remove a key and every key below it."""

    def list(self, directory: str) -> tuple[Key, ...]:
        """Return the keys in ``directory``, by name; none if there is no such directory."""


class V2Store:
    """The store of the v2 API, as ``etcdctl set`` sees it."""

    def __init__(self, http: EtcdHttp) -> None:
        self._http = http

    def put(self, key: str, value: str, ttl: int | None = None) -> None:
        """Store a value, as Store demands."""
        self.put_all({key: value}, ttl)

    def put_all(self, values: Mapping[str, str], ttl: int | None) -> None:
        """Store many values, as Store demands."""

        def put(key: str) -> None:
            form = {"value": values[key]} | ({} if ttl is None else {"ttl": str(ttl)})
            self._http.send_here("PUT", f"/v2/keys{quote(key)}", urlencode(form), {"Content-Type": FORM})

        self._http.map(put, values)

    def delete(self, key: str) -> None:
        """Remove a key, as Store demands.  Raises RefusedError if there is none."""
        self._http.request("DELETE", f"/v2/keys{quote(key)}?recursive=true")

    def list(self, directory: str) -> tuple[Key, ...]:
        """Return the direct children of a directory, as Store demands; a directory has an empty value."""
        try:
            node = self._http.request("GET", f"/v2/keys{quote(directory)}?sorted=true&quorum=true")["node"]
        except RefusedError as error:
            if error.status != 404:
                raise
            return ()
        return tuple(
            Key(each["key"], each.get("value", ""), each.get("ttl"), each["createdIndex"], each["modifiedIndex"])
            for each in node.get("nodes", ())
        )


class V3Store:
    """The store of the v3 API, by etcd's JSON gateway.  A TTL is a lease of the key's own.

    Once ``enable_auth`` has been called, every request is root's.
    """

    def __init__(self, http: EtcdHttp) -> None:
        self._http = http
        self._root_password = self._token = ""

    def call(self, path: str, /, **message: object) -> dict[str, Any]:
        """POST to ``/v3/PATH``, and return the answer.  Raises RefusedError."""
        [answer] = self._http.map(lambda _: self._call_here(path, message), [None])
        return answer

    def put(self, key: str | bytes, value: str | bytes, ttl: int | None = None) -> None:
        """Store a value, as Store demands."""
        self.call("kv/put", **_pair(key, value), lease=0 if ttl is None else self.grant(ttl))

    def put_all(self, values: Mapping[str, str], ttl: int | None) -> None:
        """Store many values, as Store demands, all by one lease."""
        lease = 0 if ttl is None else self.grant(ttl)
        self._http.map(lambda key: self._call_here("kv/put", _pair(key, values[key]) | {"lease": lease}), values)

    def put_together(self, values: Mapping[str, str], ttl: int | None = None) -> None:
        """Store many values by transactions of MOST_OPERATIONS writes, so that many keys have the same version."""
        lease = 0 if ttl is None else self.grant(ttl)
        puts = [{"request_put": _pair(key, value) | {"lease": lease}} for key, value in values.items()]
        batches = [puts[begin : begin + MOST_OPERATIONS] for begin in range(0, len(puts), MOST_OPERATIONS)]
        self._http.map(lambda batch: self._call_here("kv/txn", {"success": batch}), batches)

    def delete(self, key: str) -> None:
        """Remove a key, as Store demands."""
        ranges = ({"key": _base64(key)}, _below(key))
        self.call("kv/txn", success=[{"request_delete_range": each} for each in ranges])

    def list(self, directory: str) -> tuple[Key, ...]:
        """Return the keys in a directory, as Store demands, nested ones included."""
        found = self.call("kv/range", **_below(directory)).get("kvs", ())
        lifetimes = {lease: self.seconds_left(lease) for lease in {each["lease"] for each in found if "lease" in each}}
        return tuple(
            Key(
                _text(each["key"]),
                _text(each.get("value", "")),
                lifetimes.get(each.get("lease")),
                int(each["create_revision"]),
                int(each["mod_revision"]),
            )
            for each in found
        )

    def revision(self) -> int:
        """Return the revision of the store."""
        return int(self.call("kv/range", key=_base64("\0"), serializable=False)["header"]["revision"])

    def compact(self) -> int:
        """Forget the history up to now; return the revision that is kept."""
        revision = self.revision()
        self.call("kv/compaction", revision=revision, physical=True)
        return revision

    def grant(self, ttl: int) -> int:
        """Grant a lease of ``ttl`` seconds and return its ID."""
        return int(self.call("lease/grant", TTL=ttl)["ID"])

    def revoke(self, lease: int) -> None:
        """Revoke a lease, with the keys that it holds."""
        self.call("lease/revoke", ID=lease)

    def leases(self) -> frozenset[int]:
        """Return the IDs of all leases."""
        return frozenset(int(lease["ID"]) for lease in self.call("lease/leases").get("leases", ()))

    def lease_of(self, key: str) -> int:
        """Return the ID of a key's lease, 0 if it has none.  Raises ValueError if there is no such key."""
        [found] = self.call("kv/range", key=_base64(key)).get("kvs", ())
        return int(found.get("lease", 0))

    def seconds_left(self, lease: int | str) -> int:
        """Return the remaining seconds of a lease, -1 if it has expired."""
        return int(self.call("lease/timetolive", ID=lease).get("TTL", 0))

    def raise_alarm(self, alarm: str) -> None:
        """Raise NOSPACE or CORRUPT, so that etcd refuses writes."""
        self.call("maintenance/alarm", action="ACTIVATE", memberID=self._member(), alarm=alarm)

    def disarm(self, alarm: str) -> None:
        """End an alarm that ``raise_alarm`` has raised."""
        self.call("maintenance/alarm", action="DEACTIVATE", memberID=self._member(), alarm=alarm)

    def _member(self) -> str:
        return str(self.call("maintenance/status")["header"]["member_id"])

    def add_role(self, role: str, prefix: str) -> None:
        """Create a role that may read and write the keys that begin with ``prefix``."""
        self.call("auth/role/add", name=role)
        permission = {"permType": "READWRITE", "key": _base64(prefix), "range_end": _base64(_end_of(prefix))}
        self.call("auth/role/grant", name=role, perm=permission)

    def add_user(self, user: str, password: str, roles: Iterable[str] = ()) -> None:
        """Create a user with ``roles``."""
        self.call("auth/user/add", name=user, password=password)
        for role in roles:
            self.call("auth/user/grant", user=user, role=role)

    def enable_auth(self, root_password: str = "root") -> None:
        """Refuse requests without a token from now on.  Creates root, if it is missing."""
        if "root" not in self.call("auth/user/list").get("users", ()):
            self.call("auth/role/add", name="root")
            self.add_user("root", root_password, ["root"])
        self.call("auth/enable")
        self._root_password = root_password

    def disable_auth(self) -> None:
        """Accept requests without a token again."""
        self.call("auth/disable")
        self._root_password = ""

    def token(self, user: str, password: str) -> str:
        """Return a token of the user.  Raises RefusedError."""
        login = {"name": user, "password": password}
        return str(self._http.request("POST", "/v3/auth/authenticate", body=json.dumps(login))["token"])

    def _call_here(self, path: str, message: Mapping[str, object]) -> dict[str, Any]:
        try:
            return self._call_with_token(path, message)
        except RefusedError as error:
            if not self._root_password or not any(part in str(error) for part in _TOKEN_FAULTS):
                raise
            self._token = ""
            return self._call_with_token(path, message)

    def _call_with_token(self, path: str, message: Mapping[str, object]) -> dict[str, Any]:
        if self._root_password and not self._token:
            self._token = self.token("root", self._root_password)
        headers = {"Authorization": self._token} if self._root_password else {}
        answer: dict[str, Any] = json.loads(self._http.send_here("POST", f"/v3/{path}", json.dumps(message), headers))
        return answer


def _pair(key: str | bytes, value: str | bytes) -> dict[str, object]:
    return {"key": _base64(key), "value": _base64(value)}


def _below(directory: str) -> dict[str, str]:
    """Return the range of the keys below ``directory``."""
    prefix = directory.rstrip("/") + "/"
    return {"key": _base64(prefix), "range_end": _base64(_end_of(prefix))}


def _end_of(prefix: str) -> bytes:
    encoded = prefix.encode()
    return encoded[:-1] + bytes([encoded[-1] + 1])


def _base64(content: str | bytes) -> str:
    return b64encode(content.encode() if isinstance(content, str) else content).decode()


def _text(content: str) -> str:
    return b64decode(content).decode(errors="backslashreplace")
