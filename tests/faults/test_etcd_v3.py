"""Failures between the v3 registry and a real etcd: leases of etcd, strangers, foreign data, permissions.

test_etcd.py has those that v2 has, too, and test_etcd_v3_watch.py those of a watch.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from base64 import b64encode
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from lab.etcd_server import EtcdServer, ServerTls
from lab.etcd_stores import Api
from support.etcd_faults import (
    DAY,
    KEY,
    SUBNETS,
    A,
    B,
    DrippingProxy,
    LossyProxy,
    answering,
    changes_after,
    dead_url,
    persistent,
    proxy,
    serving,
    short_timeout,
    use,
)
from support.etcd_v3 import connect, registry, server, shared_server

from flannelpy.errors import (
    CompareFailed,
    HistoryGone,
    KeyExists,
    KeyNotFound,
    RegistryError,
    RegistryUnavailable,
    WritesRefused,
)
from flannelpy.registry.base import EXPIRES, PERMANENT, Put, expires_in
from flannelpy.registry.etcd_v3 import EtcdV3Registry

__all__ = ["dead_url", "proxy", "registry", "server", "shared_server", "short_timeout"]

GRANT, TXN, KEEP_ALIVE, REVOKE, RANGE = "lease/grant", "kv/txn", "lease/keepalive", "lease/revoke", "kv/range"


def held_leases(server: EtcdServer) -> set[int]:
    """Return the leases of the keys in the network; a lease beyond them was left behind."""
    return {server.v3.lease_of(key.key) for key in server.list(SUBNETS)} - {0}


class TestAlarm:
    @pytest.mark.parametrize("alarm", ["NOSPACE", "CORRUPT"])
    def test_writes_are_refused_by_name_until_it_is_disarmed_and_reads_and_renewals_are_not(
        self, server: EtcdServer, alarm: str
    ) -> None:
        async def run(registry: EtcdV3Registry) -> None:
            entry = await registry.create(A, "mine", DAY)
            assert await registry.alarms() == []
            server.v3.raise_alarm(alarm)
            try:
                assert [one.name for one in await registry.alarms()] == [alarm]
                with pytest.raises(WritesRefused, match=f"^etcd v3 refuses writes: .*alarm {alarm}.*alarm disarm$"):
                    await registry.create(B, "mine", DAY)
                [report] = registry.store_reports()
                assert report.silent_since is None
                assert (await registry.snapshot()).entries[0].name == A
                assert (await registry.renew(A, "mine", DAY, entry.version)).version == entry.version
            finally:
                server.v3.disarm(alarm)
            assert (await registry.create(B, "mine", DAY)).name == B

        use(connect(server.url), run)
        assert server.v3.leases() == held_leases(server)


class TestLostWrite:
    def test_create_by_a_lease_whose_grant_happened_is_ours(
        self, proxy: LossyProxy, registry: EtcdV3Registry, server: EtcdServer
    ) -> None:
        proxy.lose("reply", GRANT)
        entry = use(registry, lambda registry: registry.create(A, "mine", DAY))
        assert entry[:3] == (A, "mine", expires_in(DAY))
        [stored] = server.list(SUBNETS)
        assert (stored.value, stored.version) == ("mine", entry.version)

    @pytest.mark.parametrize("lost", [GRANT, TXN])
    def test_create_that_did_not_happen_is_sent_again(
        self, proxy: LossyProxy, registry: EtcdV3Registry, server: EtcdServer, lost: str
    ) -> None:
        proxy.lose("request", lost)
        assert use(registry, lambda registry: registry.create(A, "mine", DAY))[:3] == (A, "mine", expires_in(DAY))
        assert server.v3.leases() == held_leases(server)

    def test_create_with_the_value_of_another_client_is_not_ours(
        self, proxy: LossyProxy, registry: EtcdV3Registry, server: EtcdServer
    ) -> None:
        """Two hosts with one public IP and no host ID write the same value: only the lease tells whose it is."""
        proxy.lose("request", TXN, lambda: server.put(KEY, "mine", DAY))
        with pytest.raises(KeyExists):
            use(registry, lambda registry: registry.create(A, "mine", DAY))
        assert server.v3.leases() == held_leases(server)

    def test_swap_to_a_reservation_that_happened_is_ours(self, proxy: LossyProxy, registry: EtcdV3Registry) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            old = await registry.create(A, "mine", 100)
            proxy.lose("reply", TXN)
            new = await registry.compare_and_swap(A, "mine", None, old.version)
            assert new.lifetime == PERMANENT
            assert (await registry.snapshot()).entries == (new,)

        use(registry, test)

    @pytest.mark.parametrize("call", [TXN, RANGE, KEEP_ALIVE])
    @pytest.mark.parametrize("loss", ["request", "reply"])
    def test_renewal_is_sent_again(self, proxy: LossyProxy, registry: EtcdV3Registry, loss: str, call: str) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            entry = await registry.create(A, "mine", DAY)
            proxy.lose(loss, call)  # not every one of these calls is part of a renewal
            assert await persistent(lambda: registry.renew(A, "mine", DAY, entry.version)) == entry
            assert [one.version for one in (await registry.snapshot()).entries] == [entry.version]

        use(registry, test)


class TestDrippingWrite:
    """A write whose answer does not arrive in time has happened, which is detected as after a lost reply."""

    @pytest.mark.parametrize("call", [GRANT, TXN, KEEP_ALIVE])
    def test_whose_every_answer_drips_ends(self, server: EtcdServer, short_timeout: float, call: str) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            entry = await registry.create(A, "mine", DAY)
            await registry.renew(A, "mine", DAY, entry.version)

        dripping = DrippingProxy(server, call, 9)
        with dripping.running(), pytest.raises(RegistryUnavailable, match="no answer in time"):
            use(connect(dripping.url), test)


class TestRefusedWrite:
    """A lease that was granted for a refused write would stay in etcd for a day."""

    @pytest.mark.parametrize("refused_by", ["a permanent key", "a lease"])
    def test_create_leaves_no_lease(self, server: EtcdServer, refused_by: str) -> None:
        server.put(KEY, "theirs", DAY if refused_by == "a lease" else None)
        with pytest.raises(KeyExists):
            use(connect(server.url), lambda registry: registry.create(A, "mine", DAY))
        assert server.v3.leases() == held_leases(server)
        assert server.list(SUBNETS)[0].value == "theirs"

    def test_swap_leaves_no_lease(self, server: EtcdServer) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            old = await registry.create(A, "mine", DAY)
            server.put(KEY, "theirs", DAY)
            before = server.v3.leases()
            with pytest.raises(CompareFailed):
                await registry.compare_and_swap(A, "mine", DAY, old.version)
            with pytest.raises(KeyNotFound):
                await registry.compare_and_swap(B, "mine", DAY, old.version)
            assert server.v3.leases() <= before

        use(connect(server.url), test)

    @pytest.mark.parametrize("loss", ["request", "reply"])
    def test_is_reported_even_if_the_lease_cannot_be_revoked(
        self, proxy: LossyProxy, server: EtcdServer, loss: str
    ) -> None:
        server.put(KEY, "theirs")
        for _ in range(9):
            proxy.lose(loss, REVOKE)
        with pytest.raises(KeyExists):
            use(connect(proxy.url), lambda registry: registry.create(A, "mine", DAY))

    def test_of_a_cancelled_create_leaves_the_key_or_nothing(self, server: EtcdServer) -> None:
        """The daemon is stopped while it creates its lease."""

        async def test(registry: EtcdV3Registry) -> None:
            for pause in range(10):
                creating = asyncio.create_task(registry.create(f"11.0.{pause}.0-24", "mine", DAY))
                await asyncio.sleep(pause / 1000)
                creating.cancel()
            await asyncio.sleep(0.2)  # no condition marks the end of an abandoned call
            assert server.v3.leases() == held_leases(server)

        use(connect(server.url), test)


class TestRenewal:
    def test_tells_no_watcher_and_keeps_the_version(self, server: EtcdServer) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            entry = await registry.create(A, "mine", 100)
            watching = asyncio.create_task(changes_after(registry, entry.version + 1))
            before = server.v3.revision()
            for _ in range(3):
                assert await registry.renew(A, "mine", 100, entry.version) == entry
            assert server.v3.revision() == before
            assert not watching.done()
            later = await registry.create(B, "b", DAY)
            changes, _ = await watching
            assert changes == [Put(later._replace(lifetime=EXPIRES))]

        use(connect(server.url), test)

    def test_extends_the_lifetime(self, server: EtcdServer) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            entry = await registry.create(A, "mine", 3)
            end = time.monotonic() + 5
            while time.monotonic() < end:
                await asyncio.sleep(0.5)
                entry = await registry.renew(A, "mine", 3, entry.version)
            [stored] = server.list(SUBNETS)
            assert stored.ttl in (2, 3)

        use(connect(server.url), test)

    def test_of_a_lease_of_an_earlier_process_with_another_ttl(self, server: EtcdServer) -> None:
        """LeaseKeepAlive restores the TTL that was granted: after a change of the flag, it would be the former one."""

        async def test(registry: EtcdV3Registry) -> None:
            [entry] = (await registry.snapshot()).entries
            entry = await registry.renew(A, "mine", 1000, entry.version)
            assert entry.lifetime == expires_in(1000)
            [stored] = server.list(SUBNETS)
            assert stored.ttl in (999, 1000)
            assert stored.version == entry.version
            assert await registry.renew(A, "mine", 1000, entry.version) == entry

        server.put(KEY, "mine", 100)
        use(connect(server.url), test)

    def test_of_a_lease_of_an_earlier_process(self, server: EtcdServer) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            [entry] = (await registry.snapshot()).entries
            assert entry.lifetime.expires
            renewed = await registry.renew(A, "mine", 100, entry.version)
            assert (renewed.lifetime, renewed.value, renewed.created) == (expires_in(100), "mine", entry.created)

        server.put(KEY, "mine", 100)
        use(connect(server.url), test)

    @pytest.mark.parametrize("ttl", [DAY, None])
    def test_notices_an_overwritten_key(self, server: EtcdServer, ttl: int | None) -> None:
        """flanneld with the same public IP writes without a condition; our lease exists, but holds no key."""

        async def test(registry: EtcdV3Registry) -> None:
            entry = await registry.create(A, "mine", DAY)
            server.put(KEY, "mine", ttl)
            with pytest.raises(CompareFailed):
                await registry.renew(A, "mine", DAY, entry.version)

        use(connect(server.url), test)

    @pytest.mark.parametrize("removed", ["lease", "key"])
    def test_notices_a_removed_key(self, server: EtcdServer, removed: str) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            entry = await registry.create(A, "mine", DAY)
            if removed == "lease":
                server.v3.revoke(server.v3.lease_of(KEY))
            else:
                server.delete(KEY)
            with pytest.raises(KeyNotFound):
                await registry.renew(A, "mine", DAY, entry.version)
            assert server.list(SUBNETS) == ()

        use(connect(server.url), test)

    def test_notices_a_key_that_was_created_again(self, server: EtcdServer) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            entry = await registry.create(A, "mine", DAY)
            server.delete(KEY)
            server.put(KEY, "mine", DAY)
            with pytest.raises(CompareFailed):
                await registry.renew(A, "mine", DAY, entry.version)

        use(connect(server.url), test)

    def test_of_a_reservation_keeps_it_permanent(self, server: EtcdServer) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            [entry] = (await registry.snapshot()).entries
            renewed = await registry.renew(A, "mine", DAY, entry.version)
            assert renewed.lifetime == PERMANENT
            [stored] = server.list(SUBNETS)
            assert stored.ttl is None
            assert server.v3.leases() == frozenset()

        server.put(KEY, "mine")
        use(connect(server.url), test)

    def test_after_a_restart_of_etcd(self, tmp_path: Path) -> None:
        """The leases begin again at their full TTL."""

        async def test(registry: EtcdV3Registry) -> None:
            entry = await registry.create(A, "mine", 60)
            etcd.stop()
            with pytest.raises(RegistryUnavailable):
                await registry.renew(A, "mine", 60, entry.version)
            etcd.start()
            assert await registry.renew(A, "mine", 60, entry.version) == entry

        with EtcdServer(tmp_path, api=Api.V3) as etcd:
            use(connect(etcd.url), test)


FOREIGN = "/elsewhere/lock"


class TestLeasesOfOthers:
    """Several keys can be attached to one lease of etcd; a lease that is revoked takes all of them along."""

    def attach(self, server: EtcdServer, lease: int) -> None:
        key, value = (b64encode(text.encode()).decode() for text in (FOREIGN, "theirs"))
        server.v3.call("kv/put", key=key, value=value, lease=lease)

    @pytest.mark.parametrize("write", ["a lease", "a reservation", "a deletion"])
    def test_a_key_of_another_program_that_is_attached_to_our_lease_stays(self, server: EtcdServer, write: str) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            entry = await registry.create(A, "a", DAY)
            self.attach(server, server.v3.lease_of(KEY))
            if write == "a deletion":
                await registry.compare_and_delete(A, entry.version)
            else:
                await registry.compare_and_swap(A, "b", DAY if write == "a lease" else None, entry.version)
            assert [key.value for key in server.list("/elsewhere")] == ["theirs"]

        use(connect(server.url), test)

    def test_a_former_lease_without_keys_is_revoked(self, server: EtcdServer) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            entry = await registry.create(A, "a", DAY)
            for ttl in (DAY, 1000):
                entry = await registry.compare_and_swap(A, "b", ttl, entry.version)
                assert server.v3.leases() == held_leases(server)
            entry = await registry.renew(A, "b", DAY, entry.version)
            assert server.v3.leases() == held_leases(server)
            await registry.compare_and_delete(A, entry.version)
            assert server.v3.leases() == frozenset()

        use(connect(server.url), test)

    def test_a_lease_that_another_process_has_granted_is_not_extended(self, server: EtcdServer) -> None:
        """The key gets a lease of its own; that of the other program ends when that program wants."""
        theirs = server.v3.grant(100)
        self.attach(server, theirs)
        key, value = (b64encode(text.encode()).decode() for text in (KEY, "mine"))
        server.v3.call("kv/put", key=key, value=value, lease=theirs)

        async def test(registry: EtcdV3Registry) -> None:
            [entry] = (await registry.snapshot()).entries
            before = server.calls()
            renewed = await registry.renew(A, "mine", 100, entry.version)
            assert renewed.version > entry.version
            assert server.v3.lease_of(KEY) not in (theirs, 0)
            assert server.calls().get("LeaseKeepAlive", 0) == before.get("LeaseKeepAlive", 0)
            assert await registry.renew(A, "mine", 100, renewed.version) == renewed
            assert [found.value for found in server.list("/elsewhere")] == ["theirs"]

        use(connect(server.url), test)


CALLS: dict[str, tuple[Any, ...]] = {
    "read_config": (),
    "snapshot": (),
    "snapshot_of": (A,),
    "create": (A, "a", DAY),
    "compare_and_swap": (A, "a", DAY, 1),
    "renew": (A, "a", DAY, 1),
    "compare_and_delete": (A, 1),
    "watch": (10, 1.0),
}
REFUSALS = (KeyExists, KeyNotFound, CompareFailed, HistoryGone)
over_calls = pytest.mark.parametrize("call", CALLS)


async def make(registry: EtcdV3Registry, call: str) -> object:
    """Make one of CALLS."""
    outcome: object = await getattr(registry, call)(*CALLS[call])
    return outcome


class TestFrozen:
    @over_calls
    def test_is_unavailable_in_time(self, server: EtcdServer, short_timeout: float, call: str) -> None:
        begin = time.monotonic()
        server.pause()
        try:
            with pytest.raises(RegistryUnavailable, match="no answer in time"):
                use(connect(server.url), lambda registry: make(registry, call))
        finally:
            server.resume()
        assert time.monotonic() - begin < 8 * short_timeout


class TestStrangers:
    @over_calls
    @pytest.mark.parametrize(
        ("status", "body"),
        [
            (200, "\xe9 caf\xe9"),
            (200, "[]"),
            (200, "{}"),
            (200, "null"),
            (200, '{"kvs":[{"key":7,"value":"?"}],"header":{"revision":"many"}}'),
            (200, '{"kvs":[{"key":"YQ==","value":"!","mod_revision":"1"}],"header":{"revision":"1"}}'),
            (200, '{"header":[],"ID":{},"TTL":"x","succeeded":"yes","responses":[1]}'),
            (200, '{"result":[]}'),
            (200, '{"error":7}'),
            (200, "[" * 100_000),
            (404, '{"error":[],"code":"x"}'),
            (404, "404 page not found\n"),
            (400, '{"code":[]}'),
            (401, "\xfc"),
            (502, "\xfc <html>"),
        ],
    )
    def test_a_service_that_is_no_etcd_is_skipped(self, server: EtcdServer, call: str, status: int, body: str) -> None:
        with answering(status, body) as url:
            with pytest.raises(RegistryUnavailable):
                use(connect(url), lambda registry: make(registry, call))
            with contextlib.suppress(*REFUSALS):
                use(connect(url, server.url), lambda registry: make(registry, call))

    @over_calls
    @pytest.mark.parametrize("status", [301, 302, 307, 308])
    def test_a_redirection_is_not_followed(self, server: EtcdServer, call: str, status: int) -> None:
        """The request may hold the password."""
        with answering(status, "", Location=f"{server.url}/v3/kv/range") as url:
            before = server.calls()
            with pytest.raises(RegistryUnavailable):
                use(connect(url), lambda registry: make(registry, call))
            assert server.calls() == before

    @over_calls
    def test_an_endless_answer_ends_the_call(self, short_timeout: float, call: str) -> None:
        class Endless(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(OSError):
                    while True:
                        self.wfile.write(b" " * 65536)

            def log_message(self, *_: object) -> None:
                pass

        with serving(Endless) as url, pytest.raises(RegistryUnavailable):
            use(connect(url), lambda registry: make(registry, call))

    @pytest.mark.parametrize(
        ("status", "body"),
        [
            (400, '{"error":"a\\nE0101 forged%s","message":"b","code":3}' % ("x" * 1000)),
            (403, '{"error":"\\u001b[2J\\u202e","code":7}'),
            (500, '{"code":2,"message":"\\u2028\\u009b%s"}' % ("y" * 1000)),
            (502, "a\n\x1b[2J" * 100_000),
        ],
    )
    def test_foreign_text_is_one_short_line(self, status: int, body: str) -> None:
        with answering(status, body) as url, pytest.raises(RegistryError) as caught:
            use(connect(url), lambda registry: registry.read_config())
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400


class TestForeignKeys:
    ODD_NAMES = ("a b", "a%2Fb", "\u00fcber\u202e", "n" * 3000, "a\nb", "11.0.1.0-24x", "-", "?", "#", "x/y", "x//", "")

    def test_only_direct_children_are_listed_and_none_of_them_ends_a_call(self, server: EtcdServer) -> None:
        server.put(KEY, "lease")
        server.put(SUBNETS, "a value in the place of the directory")
        server.put(f"{PREFIX_OF_OTHERS}/{B}", "of a network whose name begins as ours")
        server.put(f"{SUBNETS}/" + "x/" * 5000, "deep")
        server.put(f"{SUBNETS}/{B}&fd00::-64", '{"PublicIP":"1.2.3.4","PublicIPv6":"fd00::1"}')
        for name in self.ODD_NAMES:
            server.put(f"{SUBNETS}/{name}", f"value of {name}")
        server.v3.put(f"{SUBNETS}/binary", bytes(range(256)))
        server.v3.put(f"{SUBNETS}/".encode() + b"\xff\xfe\x00", "of a key that is no text")
        server.put(f"{SUBNETS}/empty", "")
        found = use(connect(server.url), lambda registry: registry.snapshot())
        contents = {entry.name: entry.value for entry in found.entries}
        assert contents[A] == "lease"
        assert contents["empty"] == ""
        assert set(contents) >= {"a b", "a%2Fb", "n" * 3000, "a\nb", "11.0.1.0-24x", f"{B}&fd00::-64"}
        assert B not in contents
        assert not [name for name in contents if "/" in name]

    def test_a_page_of_each_answer(self, server: EtcdServer) -> None:
        names = {f"11.{number // 250}.{number % 250}.0-24" for number in range(2500)}
        server.v3.put_together({f"{SUBNETS}/{name}": "x" for name in names}, DAY)
        found = use(connect(server.url), lambda registry: registry.snapshot())
        assert {entry.name for entry in found.entries} == names
        assert {entry.lifetime for entry in found.entries} == {EXPIRES}
        assert found.cursor == server.v3.revision() + 1

    def test_values_of_more_bytes_than_etcd_puts_into_an_answer(self, server: EtcdServer) -> None:
        for number in range(7):
            server.put(f"{SUBNETS}/{number}", str(number) * 1_000_000)
        found = use(connect(server.url), lambda registry: registry.snapshot())
        assert [entry.value[:3] for entry in found.entries] == [str(number) * 3 for number in range(7)]

    def test_a_listing_is_of_one_moment(self, proxy: LossyProxy, server: EtcdServer) -> None:
        """A key moves from the end to the beginning while the pages are read."""
        names = [f"11.{number // 250}.{number % 250}.0-24" for number in range(2500)]
        server.v3.put_together({f"{SUBNETS}/{name}": "x" for name in names[1:]}, DAY)

        def move() -> None:
            server.delete(f"{SUBNETS}/{max(names)}")
            server.put(f"{SUBNETS}/{names[0]}", "x", DAY)

        async def test(registry: EtcdV3Registry) -> None:
            proxy.before(RANGE, 2, move)
            found = await registry.snapshot()
            [moved] = {names[0], max(names)} & {entry.name for entry in found.entries}
            count = 2 if moved == max(names) else 1
            changes, _ = await changes_after(registry, found.cursor, count)
            assert len(changes) == count

        use(connect(proxy.url), test)

    def test_a_compaction_during_a_listing(self, proxy: LossyProxy, server: EtcdServer) -> None:
        names = {f"11.{number // 250}.{number % 250}.0-24" for number in range(2500)}
        server.v3.put_together({f"{SUBNETS}/{name}": "x" for name in names}, DAY)

        def compact() -> None:
            server.put("/elsewhere", "x")
            server.v3.compact()

        proxy.before(RANGE, 2, compact)
        found = use(connect(proxy.url), lambda registry: registry.snapshot())
        assert {entry.name for entry in found.entries} == names

    def test_unwanted_keys_cost_no_memory(self, server: EtcdServer) -> None:
        names = {f"foreign-{number}": "x" * 100 for number in range(10_000)}
        server.v3.put_together({f"{SUBNETS}/{name}": value for name, value in names.items()})
        server.put(KEY, "lease")
        found = use(connect(server.url), lambda registry: registry.snapshot(lambda name: name[:1].isdigit()))
        assert [entry.name for entry in found.entries if entry.value] == [A]
        assert 0 < len(found.entries) < 5000

    @pytest.mark.parametrize("value", [b"\xff\xfe", b"\x00", b""])
    def test_a_config_that_is_no_text(self, server: EtcdServer, value: bytes) -> None:
        """The config's parser rejects it with the key's name; it must not count as no answer."""
        server.v3.put("/network/config", value)
        assert isinstance(use(connect(server.url), lambda registry: registry.read_config()), str)


PREFIX_OF_OTHERS = "/network/subnets0"


class TestOptions:
    def test_gateway_switched_off(self, tmp_path: Path) -> None:
        with EtcdServer(tmp_path, api=Api.V3, arguments=["--enable-grpc-gateway=false"]) as server:
            for call in ("read_config", "snapshot", "create", "watch"):
                with pytest.raises(RegistryUnavailable, match="gateway"):
                    use(connect(server.url), partial(make, call=call))


USER, PASSWORD = "flannel", "pass: wörd €"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """Return an etcd that accepts only USER, and whose tokens last 2 seconds after their last use."""
    with EtcdServer(tmp_path_factory.mktemp("auth"), api=Api.V3, arguments=["--auth-token-ttl=2"]) as etcd:
        etcd.v3.add_role("network", "/network/")
        etcd.v3.add_user(USER, PASSWORD, ["network"])
        etcd.v3.add_user("stranger", PASSWORD)
        etcd.v3.enable_auth()
        yield etcd


@pytest.fixture
def guarded_url(guarded: EtcdServer) -> str:
    """Return the URL of ``guarded``, whose network is empty."""
    guarded.delete(SUBNETS)
    return guarded.url


GIVEN = {"username": USER, "password": PASSWORD}
REJECTED: dict[str, dict[str, str]] = {
    "no user": {},
    "wrong password": {"username": USER, "password": "wrong"},
    "no password": {"username": USER},
    "unknown user": {"username": "nemo", "password": "wrong"},
    "no permission": {"username": "stranger", "password": PASSWORD},
}


class TestAuth:
    def test_right_password(self, guarded_url: str) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            entry = await registry.create(A, "a", DAY)
            changes, _ = await changes_after(registry, cursor)
            assert changes == [Put(entry._replace(lifetime=EXPIRES))]
            assert await registry.renew(A, "a", DAY, entry.version) == entry
            swapped = await registry.compare_and_swap(A, "b", DAY, entry.version)
            await registry.compare_and_delete(A, swapped.version)
            with pytest.raises(KeyNotFound):
                await registry.read_config()

        use(connect(guarded_url, **GIVEN), test)

    @pytest.mark.parametrize("rejected", REJECTED)
    @over_calls
    def test_wrong_password(self, guarded_url: str, rejected: str, call: str) -> None:
        with pytest.raises(RegistryUnavailable, match="-etcd-username and -etcd-password") as caught:
            use(connect(guarded_url, **REJECTED[rejected]), lambda registry: make(registry, call))
        assert "wrong" not in str(caught.value)
        assert PASSWORD not in str(caught.value)

    def test_a_token_serves_many_calls(self, guarded: EtcdServer, guarded_url: str) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            await registry.snapshot()
            before = guarded.calls()["Authenticate"]
            await asyncio.gather(*(registry.snapshot() for _ in range(10)))
            # Reading the metrics needs no token.
            assert guarded.calls()["Authenticate"] == before

        use(connect(guarded_url, **GIVEN), test)

    def test_an_expired_token_is_replaced(self, guarded: EtcdServer, guarded_url: str) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            entry = await registry.create(A, "a", DAY)
            before = guarded.calls()["Authenticate"]
            await asyncio.sleep(4)  # etcd looks every second which tokens have expired
            assert await registry.renew(A, "a", DAY, entry.version) == entry
            assert guarded.calls()["Authenticate"] == before + 1

        use(connect(guarded_url, **GIVEN), test)

    @over_calls
    def test_a_token_of_before_a_restart_is_replaced(self, tmp_path: Path, guarded: EtcdServer, call: str) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            await registry.snapshot()
            guarded.kill()
            guarded.start()
            with contextlib.suppress(*REFUSALS):
                await make(registry, call)

        guarded.delete(SUBNETS)
        use(connect(guarded.url, **GIVEN), test)

    @over_calls
    def test_switched_on_and_off_while_running(self, server: EtcdServer, call: str) -> None:
        """Credentials that etcd does not ask for yet are no reason to fail."""

        async def given(registry: EtcdV3Registry) -> None:
            await registry.snapshot()
            server.v3.enable_auth()
            with contextlib.suppress(*REFUSALS):
                await make(registry, call)
            server.v3.disable_auth()
            with contextlib.suppress(*REFUSALS):
                await make(registry, call)

        async def missing(registry: EtcdV3Registry) -> None:
            await registry.snapshot()
            server.v3.enable_auth()
            try:
                with pytest.raises(RegistryUnavailable, match="-etcd-username and -etcd-password"):
                    await make(registry, call)
            finally:
                server.v3.disable_auth()
            with contextlib.suppress(*REFUSALS):
                await make(registry, call)

        use(connect(server.url, username="root", password="root"), given)
        use(connect(server.url), missing)

    def test_a_permission_that_is_withdrawn_is_reported(self, server: EtcdServer) -> None:
        async def test(registry: EtcdV3Registry) -> None:
            await registry.create(A, "a", DAY)
            server.v3.call("auth/user/revoke", name=USER, role="network")
            with pytest.raises(RegistryUnavailable, match="-etcd-username and -etcd-password"):
                await registry.create(B, "b", DAY)
            server.v3.call("auth/user/grant", user=USER, role="network")
            await registry.create(B, "b", DAY)
            # The role may write its own keys, but no other network's.
            assert {key.key for key in server.list("/")} == {KEY, f"{SUBNETS}/{B}"}

        server.v3.add_role("network", "/network/")
        server.v3.add_user(USER, PASSWORD, ["network"])
        server.v3.enable_auth()
        try:
            use(connect(server.url, **GIVEN), test)
        finally:
            server.v3.disable_auth()


SPAN = ("/network/config", "/network/subnets0")
LEASES = ("/network/subnets/", "/network/subnets0")
CONFIG_ALONE = ("/network/config", "")
#: Permissions, and the calls that etcd then denies: docs/etcd.md.
ROLES: dict[str, tuple[list[tuple[str, str, str]], set[str]]] = {
    "the least": ([("READ", *SPAN), ("READWRITE", *LEASES)], set()),
    "a gap": ([("READ", *CONFIG_ALONE), ("READWRITE", *LEASES)], {"snapshot", "watch"}),
    "no config": ([("READWRITE", *LEASES)], {"read_config", "snapshot", "watch"}),
    "no writes": ([("READ", *SPAN)], {"create", "compare_and_swap", "compare_and_delete"}),
}


@pytest.fixture(scope="module")
def with_roles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """Return an etcd that has a user for each of ROLES, of the same name."""
    with EtcdServer(tmp_path_factory.mktemp("roles"), api=Api.V3) as etcd:
        for role, (permissions, _) in ROLES.items():
            etcd.v3.call("auth/role/add", name=role)
            for kind, *span in permissions:
                key, end = (b64encode(text.encode()).decode() for text in span)
                permission = {"permType": kind, "key": key, "range_end": end}
                etcd.v3.call("auth/role/grant", name=role, perm=permission)
            etcd.v3.add_user(role, PASSWORD, [role])
        etcd.v3.enable_auth()
        yield etcd


class TestPermissions:
    @over_calls
    @pytest.mark.parametrize("role", ROLES)
    def test_that_is_missing_is_named(self, with_roles: EtcdServer, role: str, call: str) -> None:
        with_roles.put("/network/config", "{}")
        with_roles.delete(SUBNETS)
        cause = "permission denied for keys below /network, see -etcd-username and -etcd-password"
        is_denied = call in ROLES[role][1]
        expected = pytest.raises(RegistryUnavailable, match=cause) if is_denied else contextlib.suppress(*REFUSALS)
        with expected:
            use(connect(with_roles.url, username=role, password=PASSWORD), lambda registry: make(registry, call))


@pytest.fixture(scope="module")
def server_only_url(pki: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    tls = ServerTls(pki / "server-only.crt", pki / "server-only.key", client_ca=pki / "ca.crt")
    with EtcdServer(tmp_path_factory.mktemp("tls"), api=Api.V3, tls=tls) as etcd:
        yield etcd.url


@pytest.fixture(scope="module")
def certificate_user_url(pki: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("tls")
    with EtcdServer(directory, api=Api.V3) as etcd:
        etcd.v3.add_user("client", "right")
        etcd.v3.enable_auth()
    tls = ServerTls(pki / "server.crt", pki / "server.key", client_ca=pki / "ca.crt")
    with EtcdServer(directory, api=Api.V3, tls=tls) as etcd:
        yield etcd.url


class TestTls:
    def connect(self, url: str, pki: Path, ca: str | None = "ca", client: str | None = "client") -> EtcdV3Registry:
        return connect(
            url,
            cafile=ca and str(pki / f"{ca}.crt"),
            certfile=client and str(pki / f"{client}.crt"),
            keyfile=client and str(pki / f"{client}.key"),
        )

    @over_calls
    def test_a_server_certificate_without_client_usage_is_explained(
        self, pki: Path, server_only_url: str, call: str
    ) -> None:
        """etcd's gateway shows the server's certificate as a client, so it must be valid for both."""
        with pytest.raises(RegistryUnavailable, match="clientAuth"):
            use(self.connect(server_only_url, pki), lambda registry: make(registry, call))

    @over_calls
    @pytest.mark.parametrize("options", [{}, {"username": "client", "password": "right"}], ids=["", "with password"])
    def test_a_certificate_as_the_user_is_explained(
        self, pki: Path, certificate_user_url: str, call: str, options: dict[str, str]
    ) -> None:
        """etcd takes the name of a client certificate for the user, but not from its gateway."""
        files = {"cafile": "ca.crt", "certfile": "client.crt", "keyfile": "client.key"}
        paths = {option: str(pki / name) for option, name in files.items()}
        with pytest.raises(RegistryUnavailable, match="certificate"):
            use(connect(certificate_user_url, **paths, **options), lambda registry: make(registry, call))
