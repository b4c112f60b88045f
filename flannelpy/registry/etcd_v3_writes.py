"""Writes to etcd v3.  All calls block.

flannelpy chooses the ID of a lease of etcd itself.  A request whose reply was lost is therefore sent again: a key that
is attached to the lease of this very write shows that the first try has succeeded.  A write without a lease is
recognised by its value.

A lease that was granted for a refused write is revoked, and so is the lease of an entry that got another one.  After a
write that etcd may have executed it is not, because the key may be attached to it.  A lease that other programs have
attached keys to is never revoked: that would delete their keys.  Only leases that this process has granted are extended
or revoked.
"""

from __future__ import annotations

import contextlib
import functools
import random
from typing import TYPE_CHECKING, Any, NamedTuple

from flannelpy.errors import CompareFailed, KeyExists, KeyNotFound, RegistryError
from flannelpy.registry.base import expires_in
from flannelpy.registry.etcd_v3_messages import LEASE_EXISTS, Node, Refusal, encoded, header_of, number, only_node_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from flannelpy.registry.base import KeyValue
    from flannelpy.registry.endpoints import Rotation
    from flannelpy.registry.etcd_v3_client import V3Client
    from flannelpy.registry.etcd_v3_messages import Header
    from flannelpy.registry.etcd_v3_store import Keys

_IDS = random.SystemRandom()


class _Outcome(NamedTuple):
    """Whether a transaction has written, and the key as it then is."""

    is_written: bool
    found: Node | None


class _Granted(NamedTuple):
    """A lease of etcd that this process has granted: its ID, and the seconds that were asked for."""

    lease: int
    lease_ttl: int


class Writes:
    """The conditional writes of entries, and the leases of etcd that this process has granted."""

    def __init__(self, cluster: Rotation[V3Client], keys: Keys) -> None:
        self._cluster = cluster
        self._keys = keys
        self._own_leases: dict[str, _Granted] = {}  # by the names of the entries that were attached to them

    def create(self, name: str, value: str, lease_ttl: int) -> KeyValue:
        """Create an entry.  Raises KeyExists."""
        absent = {"target": "VERSION", "version": "0"}
        return self._write_leased(name, value, lease_ttl, absent, self._exists)

    def swap(self, name: str, value: str, lease_ttl: int | None, version: int) -> KeyValue:
        """Replace an entry.  Raises CompareFailed, KeyNotFound."""
        if lease_ttl is None:
            return self._write_permanent(name, value, version)
        return self._write_leased(name, value, lease_ttl, _at(version), functools.partial(self._changed, version))

    def renew(self, name: str, value: str, lease_ttl: int, version: int) -> KeyValue:
        """Extend the lease of an entry.  Raises CompareFailed, KeyNotFound.

        If another process has granted the lease, such as an earlier run, or this one with another TTL, the entry gets a
        new lease: other keys may be attached to the old one.
        """
        found = self.find(self._keys.of(name))
        if found is None or found.version != version:
            raise self._changed(version, name, found)
        if found.value != value:
            return self.swap(name, value, lease_ttl if found.lease else None, version)
        if not found.lease:
            return found.entry(name)
        if self._own_leases.get(name) != (found.lease, lease_ttl):
            return self.swap(name, value, lease_ttl, version)
        seconds = self._keep_alive(found.lease)
        if not seconds:
            raise KeyNotFound(f"{found.key}: its lease has expired")
        return found.entry(name)._replace(lifetime=expires_in(seconds))

    def delete(self, name: str, version: int) -> None:
        """Delete an entry.  Raises CompareFailed, KeyNotFound."""

        def send(client: V3Client) -> None:
            delete = {"request_delete_range": {"key": encoded(self._keys.of(name))}}
            outcome = self._transact(client, self._keys.of(name), _at(version), delete)
            if not outcome.is_written:
                raise self._changed(version, name, outcome.found)

        def settle(client: V3Client) -> None:
            with contextlib.suppress(KeyNotFound):  # deleted by the first try
                send(client)

        self._cluster.ask(send, settle)
        self._replace_own_lease(name, None)

    def write_config(self, value: str, version: int) -> None:
        """Write the config if it is at ``version``, 0 for none.  Raises CompareFailed."""
        key = self._keys.config
        put = {"request_put": {"key": encoded(key), "value": encoded(value)}}

        def send(client: V3Client) -> None:
            is_written, found = self._transact(client, key, _at(version), put)
            if not is_written and (found is None or found.value != value):
                raise CompareFailed(f"{key}: changed meanwhile")

        self._cluster.ask(send, send)

    def find(self, key: str) -> Node | None:
        """Return a key as stored."""
        return self.read(key)[1]

    def read(self, key: str) -> tuple[Header, Node | None]:
        """Return the revision of the store, and a key as stored."""

        def send(client: V3Client) -> tuple[Header, Node | None]:
            answer = client.call("kv/range", {"key": encoded(key)})
            return header_of(answer), only_node_of(answer)

        return self._cluster.ask(send)

    def seconds_left(self, name: str) -> int | None:
        """Return in how many seconds an entry expires; None for a permanent entry, and without one."""
        found = self.find(self._keys.of(name))
        if found is None or not found.lease:
            return None
        request = {"ID": str(found.lease)}
        return self._cluster.ask(lambda client: number(client.call("lease/timetolive", request), "TTL"))

    def _write_leased(
        self,
        name: str,
        value: str,
        lease_ttl: int,
        condition: dict[str, str],
        refusal: Callable[[str, Node | None], RegistryError],
    ) -> KeyValue:
        """Write an entry that is attached to a new lease.  Revoke the lease that is not needed after that."""
        lease, seconds = self._grant(lease_ttl)
        may_be_written = False

        def send(client: V3Client) -> Node:
            nonlocal may_be_written
            try:
                is_written, found = self._put(client, name, value, condition, lease)
            except Exception as error:
                may_be_written |= getattr(error, "sent", True)
                raise
            if found and (is_written or (found.lease, found.value) == (lease, value)):
                return found
            may_be_written = False
            raise refusal(name, found)

        try:
            node = self._cluster.ask(send, send)
        except RegistryError:
            if not may_be_written:
                self._revoke(lease)
            raise
        self._replace_own_lease(name, _Granted(lease, lease_ttl))
        return node.entry(name)._replace(lifetime=expires_in(seconds))

    def _write_permanent(self, name: str, value: str, version: int) -> KeyValue:
        def send(client: V3Client, is_repeated: bool = False) -> Node:
            is_written, found = self._put(client, name, value, _at(version), 0)
            if found and (is_written or (is_repeated and (found.value, found.lease) == (value, 0))):
                return found
            raise self._changed(version, name, found)

        node = self._cluster.ask(send, functools.partial(send, is_repeated=True))
        self._replace_own_lease(name, None)
        return node.entry(name)

    def _put(self, client: V3Client, name: str, value: str, condition: dict[str, str], lease: int) -> _Outcome:
        put = {"key": encoded(self._keys.of(name)), "value": encoded(value), "lease": str(lease)}
        return self._transact(client, self._keys.of(name), condition, {"request_put": put})

    def _transact(self, client: V3Client, path: str, condition: dict[str, str], write: dict[str, Any]) -> _Outcome:
        """Execute ``write`` if the key is in the state of ``condition``, and read the key."""
        key = encoded(path)
        read = {"request_range": {"key": key}}
        compare = {"key": key, "result": "EQUAL", **condition}
        answer = client.call("kv/txn", {"compare": [compare], "success": [write, read], "failure": [read]})
        found = only_node_of({"header": answer["header"], **answer["responses"][-1]["response_range"]})
        return _Outcome(answer.get("succeeded") is True, found)

    def _grant(self, lease_ttl: int) -> tuple[int, int]:
        """Have etcd grant a lease; return its ID and its seconds, which can be more than ``lease_ttl``."""
        lease = _IDS.randrange(1, 1 << 63)

        def send(client: V3Client) -> int:
            try:
                return _seconds_of(lease, client.call("lease/grant", {"ID": str(lease), "TTL": str(lease_ttl)}))
            except Refusal as refusal:
                if LEASE_EXISTS not in refusal.message:
                    raise
            return _keep_alive(client, lease)  # granted by an earlier try

        return lease, self._cluster.ask(send, send)

    def _keep_alive(self, lease: int) -> int:
        """Extend a lease of etcd; return its seconds, 0 if it has expired."""
        return self._cluster.ask(lambda client: _keep_alive(client, lease), lambda client: _keep_alive(client, lease))

    def _revoke(self, lease: int) -> None:
        """Revoke a lease without keys.  If it has keys, or if that fails, the lease expires by itself."""
        with contextlib.suppress(RegistryError):
            self._cluster.ask(functools.partial(_revoke_without_keys, lease))

    def _replace_own_lease(self, name: str, lease: _Granted | None) -> None:
        """Note the lease of an entry; revoke the one before, if this process has granted it."""
        before = self._own_leases.pop(name, None)
        if lease:
            self._own_leases[name] = lease
        if before:
            self._revoke(before.lease)

    def _exists(self, name: str, _: Node | None) -> KeyExists:
        return KeyExists(f"{self._keys.of(name)}: key already exists")

    def _changed(self, version: int, name: str, found: Node | None) -> RegistryError:
        if found is None:
            return KeyNotFound(f"{self._keys.of(name)}: key not found")
        return CompareFailed(f"{self._keys.of(name)}: compare failed ([{version} != {found.version}])")


def _at(version: int) -> dict[str, str]:
    return {"target": "MOD", "mod_revision": str(version)}


def _revoke_without_keys(lease: int, client: V3Client) -> None:
    if not client.call("lease/timetolive", {"ID": str(lease), "keys": True}).get("keys"):
        client.call("lease/revoke", {"ID": str(lease)})


def _keep_alive(client: V3Client, lease: int) -> int:
    return _seconds_of(lease, client.call("lease/keepalive", {"ID": str(lease)}))


def _seconds_of(lease: int, answer: dict[str, Any]) -> int:
    """Return the seconds of a lease, 0 if it has expired.  Raises ValueError if the answer is about no lease."""
    header_of(answer)
    if number(answer, "ID") != lease:
        raise ValueError("an answer about another lease")
    return max(number(answer, "TTL"), 0)
