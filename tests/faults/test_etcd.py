"""Failures between a registry and a real etcd that both of etcd's APIs have in common.

Lost replies, dead and frozen endpoints, TLS, and processes that end.  test_etcd_v2.py and test_etcd_v3.py have what
only one of the APIs has, test_etcd_v3_watch.py the watch of v3.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lab.etcd_server import EtcdServer, ServerTls
from support.etcd_faults import (
    DAY,
    DEADLINE,
    KEY,
    SUBNETS,
    V2,
    V3,
    A,
    DrippingProxy,
    Kind,
    LossyProxy,
    changes_after,
    dead_url,
    proxy,
    short_timeout,
    use,
)

import flannelpy
from flannelpy.errors import CompareFailed, HostError, KeyExists, KeyNotFound, RegistryUnavailable, UsageError
from flannelpy.registry.base import EXPIRES, Changes, Deleted, KeyValue, Put, Registry, expires_in

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["dead_url", "proxy", "short_timeout"]


@pytest.fixture(scope="module", params=[V2, V3], ids=["etcd v2", "etcd v3"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Return what is tested: the registry of an API."""
    found: Kind = request.param
    return found


@pytest.fixture(scope="module")
def shared_server(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd"), api=kind.api) as server:
        yield server


@pytest.fixture
def server(kind: Kind, shared_server: EtcdServer) -> EtcdServer:
    """Return a running, empty etcd."""
    kind.empty(shared_server)
    return shared_server


@pytest.fixture(params=["one endpoint", "two endpoints"])
def registry(request: pytest.FixtureRequest, kind: Kind, proxy: LossyProxy, server: EtcdServer) -> Registry:
    """Return a registry whose first endpoint is the proxy."""
    return kind.connect(*[proxy.url, server.url][: 1 if request.param == "one endpoint" else 2])


def timeless(entry: KeyValue) -> KeyValue:
    """Return an entry without the seconds of its lifetime, which v3 does not report."""
    return entry._replace(lifetime=EXPIRES)


async def first_change(registry: Registry, cursor: int) -> KeyValue:
    """Return the entry that the next change after ``cursor`` writes, timeless."""
    [change], _ = await changes_after(registry, cursor)
    assert isinstance(change, Put)
    return timeless(change.entry)


class TestLostWrite:
    def test_create_that_happened_is_ours(
        self, kind: Kind, proxy: LossyProxy, registry: Registry, server: EtcdServer
    ) -> None:
        proxy.lose("reply", kind.write)
        entry = use(registry, lambda registry: registry.create(A, "mine", DAY))
        assert entry[:3] == (A, "mine", expires_in(DAY))
        [stored] = server.list(SUBNETS)
        assert (stored.value, stored.version) == ("mine", entry.version)

    def test_create_that_happened_is_not_repeated(self, kind: Kind, proxy: LossyProxy, registry: Registry) -> None:
        async def test(registry: Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            proxy.lose("reply", kind.write)
            entry = await registry.create(A, "mine", DAY)
            assert await first_change(registry, cursor) == timeless(entry)
            assert entry.version == (await registry.snapshot()).cursor - 1

        use(registry, test)

    def test_create_that_did_not_happen_is_sent_again(self, kind: Kind, proxy: LossyProxy, registry: Registry) -> None:
        proxy.lose("request", kind.write)
        assert use(registry, lambda registry: registry.create(A, "mine", DAY))[:3] == (A, "mine", expires_in(DAY))

    @pytest.mark.parametrize("loss", ["request", "reply"])
    def test_create_while_another_client_is_faster(
        self, kind: Kind, proxy: LossyProxy, registry: Registry, server: EtcdServer, loss: str
    ) -> None:
        proxy.lose(loss, kind.write, lambda: server.put(KEY, "theirs"))
        with pytest.raises(KeyExists):
            use(registry, lambda registry: registry.create(A, "mine", DAY))
        assert server.list(SUBNETS)[0].value == "theirs"
        assert server.v3.leases() == frozenset()

    def test_swap_that_happened_is_ours(
        self, kind: Kind, proxy: LossyProxy, registry: Registry, server: EtcdServer
    ) -> None:
        async def test(registry: Registry) -> None:
            old = await registry.create(A, "mine", 100)
            proxy.lose("reply", kind.write)
            new = await registry.compare_and_swap(A, "mine", DAY, old.version)
            assert new[:3] == (A, "mine", expires_in(DAY))
            assert new.version > old.version
            assert new.created == old.created
            assert [timeless(entry) for entry in (await registry.snapshot()).entries] == [timeless(new)]
            [stored] = server.list(SUBNETS)
            assert stored.ttl is not None
            assert stored.ttl > 100

        use(registry, test)

    @pytest.mark.parametrize("loss", ["request", "reply"])
    @pytest.mark.parametrize("lease_ttl", [DAY, None])
    def test_swap_while_another_client_is_faster(
        self,
        kind: Kind,
        proxy: LossyProxy,
        registry: Registry,
        server: EtcdServer,
        loss: str,
        lease_ttl: int | None,
    ) -> None:
        async def test(registry: Registry) -> None:
            old = await registry.create(A, "mine", DAY)
            proxy.lose(loss, kind.write, lambda: server.put(KEY, "theirs"))
            with pytest.raises(CompareFailed):
                await registry.compare_and_swap(A, "mine too", lease_ttl, old.version)

        use(registry, test)
        assert server.list(SUBNETS)[0].value == "theirs"

    def test_swap_of_what_is_gone_meanwhile(
        self, kind: Kind, proxy: LossyProxy, registry: Registry, server: EtcdServer
    ) -> None:
        async def test(registry: Registry) -> None:
            old = await registry.create(A, "mine", DAY)
            proxy.lose("reply", kind.write, lambda: server.delete(KEY))
            with pytest.raises(KeyNotFound):
                await registry.compare_and_swap(A, "mine", DAY, old.version)

        use(registry, test)
        assert server.list(SUBNETS) == ()

    @pytest.mark.parametrize("loss", ["request", "reply"])
    def test_delete(self, kind: Kind, proxy: LossyProxy, registry: Registry, loss: str) -> None:
        async def test(registry: Registry) -> None:
            entry = await registry.create(A, "mine", DAY)
            proxy.lose(loss, kind.delete)
            await registry.compare_and_delete(A, entry.version)
            assert (await registry.snapshot()).entries == ()

        use(registry, test)

    def test_delete_while_another_client_is_faster(
        self, kind: Kind, proxy: LossyProxy, registry: Registry, server: EtcdServer
    ) -> None:
        async def test(registry: Registry) -> None:
            entry = await registry.create(A, "mine", DAY)
            proxy.lose("request", kind.delete, lambda: server.put(KEY, "theirs"))
            with pytest.raises(CompareFailed):
                await registry.compare_and_delete(A, entry.version)
            assert server.list(SUBNETS)[0].value == "theirs"

        use(registry, test)

    def test_create_whose_every_reply_is_lost_ends(self, kind: Kind, proxy: LossyProxy) -> None:
        for _ in range(9):
            proxy.lose("reply", kind.write)
        with pytest.raises(RegistryUnavailable):
            use(kind.connect(proxy.url), lambda registry: registry.create(A, "mine", DAY))

    def test_create_whose_settling_is_lost_too_ends(self, kind: Kind, proxy: LossyProxy) -> None:
        proxy.lose("reply", kind.write)
        for _ in range(9):
            proxy.lose("reply", kind.settle)
        with pytest.raises(RegistryUnavailable):
            use(kind.connect(proxy.url), lambda registry: registry.create(A, "mine", DAY))


class TestDrippingWrite:
    """A write whose answer does not arrive in time has happened, which is detected as after a lost reply."""

    @pytest.mark.parametrize("is_alone", [True, False], ids=["one endpoint", "two endpoints"])
    def test_that_happened_is_ours(self, kind: Kind, server: EtcdServer, short_timeout: float, is_alone: bool) -> None:
        async def test(registry: Registry) -> None:
            created = await registry.create(A, "mine", DAY)
            swapped = await registry.compare_and_swap(A, "mine too", DAY, created.version)
            assert [timeless(entry) for entry in (await registry.snapshot()).entries] == [timeless(swapped)]
            await registry.compare_and_delete(A, swapped.version)
            assert (await registry.snapshot()).entries == ()

        dripping = DrippingProxy(server, kind.write, 1)
        with dripping.running():
            began = time.monotonic()
            use(kind.connect(*[dripping.url, server.url][: 1 if is_alone else 2]), test)
            assert short_timeout <= time.monotonic() - began < 6 * short_timeout

    def test_whose_every_answer_drips_ends(self, kind: Kind, server: EtcdServer, short_timeout: float) -> None:
        dripping = DrippingProxy(server, kind.write, 9)
        with dripping.running(), pytest.raises(RegistryUnavailable, match="no answer in time"):
            use(kind.connect(dripping.url), lambda registry: registry.create(A, "mine", DAY))


class TestEndpoints:
    def test_the_next_one_is_tried(self, kind: Kind, server: EtcdServer, dead_url: str) -> None:
        server.put("/network/config", "{}")
        assert use(kind.connect(dead_url, server.url), lambda registry: registry.read_config()) == "{}"

    def test_a_create_refused_after_a_dead_endpoint_is_refused(
        self, kind: Kind, server: EtcdServer, dead_url: str
    ) -> None:
        server.put(KEY, "mine")  # nothing was sent to the dead endpoint, so the key is another client's
        with pytest.raises(KeyExists):
            use(kind.connect(dead_url, server.url), lambda registry: registry.create(A, "mine", DAY))

    def test_the_one_that_worked_comes_first_from_then_on(
        self, kind: Kind, server: EtcdServer, short_timeout: float
    ) -> None:
        async def test(registry: Registry) -> None:
            begin = time.monotonic()
            for _ in range(10):
                await registry.snapshot()
            assert time.monotonic() - begin < 3 * short_timeout

        with socket.create_server(("127.0.0.1", 0)) as silent:
            use(kind.connect(f"http://127.0.0.1:{silent.getsockname()[1]}", server.url), test)

    def test_all_dead_names_each_and_recovers(self, kind: Kind, tmp_path: Path) -> None:
        servers = [EtcdServer(tmp_path / name, api=kind.api) for name in "12"]

        async def test(registry: Registry) -> None:
            with pytest.raises(RegistryUnavailable) as caught:
                await registry.snapshot()
            assert str(caught.value) == "; ".join(f"{one.url}: connection refused" for one in servers)
            for one in servers:  # each endpoint alone suffices
                with one:
                    assert (await registry.snapshot()).entries == ()
                with pytest.raises(RegistryUnavailable):
                    await registry.snapshot()

        use(kind.connect(*(one.url for one in servers)), test)

    def test_an_unknown_name(self, kind: Kind) -> None:
        with pytest.raises(RegistryUnavailable, match=r"^http://nowhere\.invalid:2379: \S"):
            use(kind.connect("http://nowhere.invalid"), lambda registry: registry.snapshot())

    @pytest.mark.parametrize(
        "text",
        [
            "", "127.0.0.1:2379", "127.0.0.1", "ftp://a", "http://", "http://:2379", "http://a:port", "http://a:0",
            "http://a:65536", "http://a/v2", "http://a/v3", "http://a?b", "http://a b", "http://[::1",
        ],
    )  # fmt: skip
    def test_a_malformed_one(self, kind: Kind, text: str) -> None:
        with pytest.raises(UsageError) as caught:
            kind.connect(text)
        assert "-etcd-endpoints" in str(caught.value)
        assert repr(text) in str(caught.value)

    def test_none(self, kind: Kind) -> None:
        with pytest.raises(UsageError, match="-etcd-endpoints"):
            kind.connect()


class TestFrozen:
    def test_holds_up_neither_other_calls_nor_other_endpoints(
        self, kind: Kind, server: EtcdServer, short_timeout: float, tmp_path: Path
    ) -> None:
        async def test(registry: Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            frozen.pause()
            watching = asyncio.create_task(registry.watch(cursor, DEADLINE))
            begin = time.monotonic()
            await asyncio.gather(*(registry.snapshot() for _ in range(10)))
            assert time.monotonic() - begin < 3 * short_timeout
            watching.cancel()

        with EtcdServer(tmp_path, api=kind.api) as frozen:
            use(kind.connect(frozen.url, server.url), test)


class _MeasuringProxy(LossyProxy):
    """A proxy that counts the bytes of all replies."""

    received = 0

    def passed(self, client: socket.socket, reply: bytes) -> bytes:
        self.received += len(reply)
        return reply


def test_one_lease_of_many_is_read_by_a_short_answer(kind: Kind, server: EtcdServer) -> None:
    """A list of 10,000 leases is megabytes; a host reads back its own lease after each refused renewal."""
    server.put_all({f"{SUBNETS}/11.1.{number}.0-24": "x" * 100 for number in range(200)}, DAY)
    proxy = _MeasuringProxy(server)
    with proxy.running():
        found = use(kind.connect(proxy.url), lambda registry: registry.snapshot_of("11.1.77.0-24"))
    assert [(entry.name, entry.value) for entry in found.entries] == [("11.1.77.0-24", "x" * 100)]
    assert proxy.received < 2000


@pytest.mark.parametrize(
    "error", [RecursionError("deep"), MemoryError(), OverflowError("much"), EOFError(), OSError(5)]
)
@pytest.mark.parametrize("call", ["read_config", "snapshot"])
def test_every_exception_of_a_call_is_no_usable_answer(
    kind: Kind, server: EtcdServer, call: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("json.loads", fail)
    with pytest.raises(RegistryUnavailable, match=f"{server.url}: not an answer of etcd's"):
        use(kind.connect(server.url), lambda registry: getattr(registry, call)())


def test_without_a_thread_to_ask_in_there_is_no_answer(
    kind: Kind, server: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", fail)
    with pytest.raises(RegistryUnavailable, match="can't start new thread"):
        use(kind.connect(server.url), lambda registry: registry.snapshot())


@pytest.mark.parametrize("prefix", ["", "/", "network", "//a//b/", "/a b/ü"])
def test_any_prefix(kind: Kind, server: EtcdServer, prefix: str) -> None:
    async def test(registry: Registry) -> None:
        cursor = (await registry.snapshot()).cursor
        entry = await registry.create(A, "a", DAY)
        assert entry.name == A
        assert await first_change(registry, cursor) == timeless(entry)
        await registry.compare_and_delete(A, entry.version)
        assert (await registry.watch(entry.version + 1, DEADLINE)).changes == (Deleted(A),)
        with pytest.raises(KeyNotFound):
            await registry.read_config()

    use(kind.registry([server.url], prefix), test)


@pytest.fixture(scope="module")
def tls_url(kind: Kind, pki: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    tls = ServerTls(pki / "server.crt", pki / "server.key", client_ca=pki / "ca.crt")
    with EtcdServer(tmp_path_factory.mktemp("tls"), api=kind.api, tls=tls) as etcd:
        yield etcd.url


class TestTls:
    def connect(
        self, kind: Kind, url: str, pki: Path, ca: str | None = "ca", client: str | None = "client"
    ) -> Registry:
        return kind.connect(
            url,
            cafile=ca and str(pki / f"{ca}.crt"),
            certfile=client and str(pki / f"{client}.crt"),
            keyfile=client and str(pki / f"{client}.key"),
        )

    def test_ca_and_client_certificate(self, kind: Kind, tls_url: str, pki: Path) -> None:
        async def test(registry: Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            entry = await registry.create(A, "a", DAY)
            assert await first_change(registry, cursor) == timeless(entry)
            assert timeless(await registry.renew(A, "a", DAY, entry.version))[:3] == timeless(entry)[:3]

        use(self.connect(kind, tls_url, pki), test)

    def test_without_client_certificates(self, kind: Kind, pki: Path, tmp_path: Path) -> None:
        """The flag -etcd-cafile alone suffices; flanneld v0.20.2 ignores it without a client certificate."""
        tls = ServerTls(pki / "server.crt", pki / "server.key")
        with EtcdServer(tmp_path, api=kind.api, tls=tls) as etcd:
            found = use(self.connect(kind, etcd.url, pki, client=None), lambda registry: registry.snapshot())
        assert found.entries == ()

    def test_a_watch_that_is_left_leaves_no_thread(
        self, kind: Kind, tls_url: str, pki: Path, server: EtcdServer
    ) -> None:
        async def test(registry: Registry) -> None:
            cursor = (await registry.snapshot()).cursor
            assert await registry.watch(cursor, 0.1) == Changes((), cursor)
            assert "etcd watch" in {thread.name for thread in threading.enumerate()}

        use(self.connect(kind, tls_url, pki), test)
        use(kind.connect(server.url), test)
        deadline = time.monotonic() + 2
        while [thread for thread in threading.enumerate() if thread.name.startswith("etcd")]:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    @pytest.mark.parametrize("ca", [None, "stranger"])
    def test_unknown_authority_is_refused(self, kind: Kind, tls_url: str, pki: Path, ca: str | None) -> None:
        with pytest.raises(RegistryUnavailable, match="certificate refused: "):
            use(self.connect(kind, tls_url, pki, ca=ca), lambda registry: registry.snapshot())

    def test_wrong_name_is_refused(self, kind: Kind, tls_url: str, pki: Path) -> None:
        wrong = tls_url.replace("127.0.0.1", "localhost")
        with pytest.raises(RegistryUnavailable, match=r"certificate refused: .*localhost"):
            use(self.connect(kind, wrong, pki), lambda registry: registry.snapshot())

    @pytest.mark.parametrize("client", [None, "stranger"])
    @pytest.mark.parametrize("call", ["create", "watch"])
    def test_server_refuses_us(self, kind: Kind, tls_url: str, pki: Path, client: str | None, call: str) -> None:
        arguments = {"create": (A, "a", DAY), "watch": (10, 1.0)}[call]
        with pytest.raises(RegistryUnavailable, match=tls_url):
            use(
                self.connect(kind, tls_url, pki, client=client),
                lambda registry: getattr(registry, call)(*arguments),
            )

    @pytest.mark.parametrize("option", ["cafile", "certfile", "keyfile"])
    def test_missing_file(self, kind: Kind, pki: Path, option: str) -> None:
        files = {"certfile": str(pki / "client.crt"), "keyfile": str(pki / "client.key"), option: str(pki / "missing")}
        with pytest.raises(HostError, match=f"^-etcd-{option}: .*/missing: No such file"):
            kind.connect("https://127.0.0.1", **files)

    def test_ca_that_is_none(self, kind: Kind, pki: Path) -> None:
        with pytest.raises(HostError, match=r"^-etcd-cafile: .*/ca\.key"):
            kind.connect("https://127.0.0.1", cafile=str(pki / "ca.key"))

    def test_key_of_another_certificate(self, kind: Kind, pki: Path) -> None:
        with pytest.raises(HostError, match=r"^-etcd-certfile, -etcd-keyfile: .*/client\.crt and .*/server\.key"):
            kind.connect("https://127.0.0.1", certfile=str(pki / "client.crt"), keyfile=str(pki / "server.key"))

    def test_encrypted_key_does_not_ask(self, kind: Kind, pki: Path, tmp_path: Path) -> None:
        key = tmp_path / "encrypted.key"
        command = ["openssl", "ec", "-in", str(pki / "client.key"), "-aes256", "-passout", "pass:secret"]
        subprocess.run([*command, "-out", str(key)], check=True, capture_output=True)
        with pytest.raises(HostError, match="unencrypted"):
            kind.connect("https://127.0.0.1", certfile=str(pki / "client.crt"), keyfile=str(key))

    @pytest.mark.parametrize("option", ["certfile", "keyfile"])
    def test_half_a_pair(self, kind: Kind, pki: Path, option: str) -> None:
        with pytest.raises(UsageError, match="-etcd-keyfile and -etcd-certfile"):
            kind.connect("https://127.0.0.1", **{option: str(pki / "client.crt")})


PROGRAM = """
import asyncio, signal, sys
from {module} import {name} as Registry

async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    registry = Registry(sys.argv[1:], "/network")
    try:
        await registry.watch(1, 600)
    except asyncio.CancelledError:
        await registry.close()

asyncio.run(main())
"""


class TestProcess:
    ROOT = Path(flannelpy.__file__).parents[1]

    def start(self, kind: Kind, *urls: str) -> subprocess.Popen[str]:
        """Start a process that watches until SIGTERM."""
        program = PROGRAM.format(module=kind.registry.__module__, name=kind.registry.__name__)
        command = [sys.executable, "-c", program, *urls]
        return subprocess.Popen(command, cwd=self.ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    @pytest.mark.parametrize("headers", [b"", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"])
    def test_leaves_while_a_watch_hangs(self, kind: Kind, headers: bytes) -> None:
        with contextlib.ExitStack() as cleanup:
            listener = cleanup.enter_context(socket.create_server(("127.0.0.1", 0)))
            listener.settimeout(DEADLINE)
            process = cleanup.enter_context(self.start(kind, f"http://127.0.0.1:{listener.getsockname()[1]}"))
            cleanup.callback(process.kill)
            connection = cleanup.enter_context(listener.accept()[0])
            connection.settimeout(DEADLINE)
            assert kind.watch.encode() in connection.recv(65536)
            connection.sendall(headers)
            begin = time.monotonic()
            process.terminate()
            assert process.communicate(timeout=DEADLINE) == ("", "")
            assert process.returncode == 0
            assert time.monotonic() - begin < 2

    def test_logs_nothing_itself(self, kind: Kind, dead_url: str) -> None:
        with self.start(kind, dead_url) as process:
            out, err = process.communicate(timeout=DEADLINE)
        assert out == ""
        assert err.splitlines()[0].startswith("Traceback"), "something was logged before our own error"
        assert err.splitlines()[-1] == f"flannelpy.errors.RegistryUnavailable: {dead_url}: connection refused"

    def test_imports_http_clients_only_when_needed(self, kind: Kind) -> None:
        modules = f"import sys, {kind.registry.__module__}"
        program = f"{modules}; print({{'etcd', 'urllib3', 'dns'}} & set(sys.modules))"
        command = [sys.executable, "-c", program]
        result = subprocess.run(command, cwd=self.ROOT, check=True, capture_output=True, text=True)
        assert result.stdout == "set()\n"
